/** Tensors: making them, reading them, dtypes, views, disposal. */
import t from 'tap';
import '../lib/autograd.js';
import { memory } from '../lib/device.js';
import { arange, full, ones, Tensor, tensor, zeros } from '../lib/tensor.js';
import { assertFails, forEachDevice, settledMemory, withoutLeaks } from './helpers.js';

t.test('tensors take their shape and dtype from the data, or from the options', (t) =>
  forEachDevice(t, (t, device) =>
    withoutLeaks(t, device, async () => {
      const nested = tensor(
        [
          [1, 2, 3],
          [4, 5, 6],
        ],
        { device },
      );
      t.strictSame(nested.shape, [2, 3]);
      t.equal(nested.dtype, 'f32');
      t.equal(nested.device, device);
      t.strictSame(await nested.toArray(), [
        [1, 2, 3],
        [4, 5, 6],
      ]);
      t.strictSame(tensor(7, { device }).shape, []);
      t.equal(await tensor(7, { device }).toArray(), 7);
      t.strictSame(tensor([[], []], { device }).shape, [2, 0]);
      t.strictSame(await tensor([[], []], { device }).toArray(), [[], []]);
      t.strictSame(tensor([1, 2, 3, 4], { shape: [2, 2], device }).shape, [2, 2]);
      for (const [data, dtype] of [
        [Float32Array.of(0.5, -2), 'f32'],
        [Int32Array.of(-(2 ** 31), 7), 'i32'],
        [BigInt64Array.of(-(2n ** 63n), 2n ** 63n - 1n), 'i64'],
        [Uint8Array.of(0, 255), 'u8'],
      ] as const) {
        const made = tensor(data, { device });
        t.equal(made.dtype, dtype);
        t.strictSame(await made.data(), data, `${dtype} comes back as it was`);
      }
      t.equal(tensor(Uint8ClampedArray.of(1), { device }).dtype, 'u8');
      t.strictSame(
        await tensor(new Float32Array(8).fill(3).subarray(6), { device }).toArray(),
        [3, 3],
        'a part of an ArrayBuffer',
      );

      const data = Float32Array.of(1, 2);
      const copied = tensor(data, { device });
      data[0] = 9;
      t.strictSame(await copied.toArray(), [1, 2], 'the data was copied');
      const shape = [2, 1];
      const kept = zeros(shape, { device });
      shape[0] = 5;
      t.strictSame(kept.shape, [2, 1], 'the shape was copied');

      t.strictSame(await zeros([2], { device, dtype: 'i64' }).data(), BigInt64Array.of(0n, 0n));
      t.strictSame(await ones([2], { device }).toArray(), [1, 1]);
      t.strictSame(await full([3], -2, { device, dtype: 'i32' }).data(), Int32Array.of(-2, -2, -2));
      t.strictSame(await full([], 2.5, { device, dtype: 'bf16' }).toArray(), 2.5);
      t.strictSame(await arange(4, undefined, 1, { device }).toArray(), [0, 1, 2, 3]);
      t.strictSame(await arange(5, -1, -2, { device, dtype: 'i64' }).data(), BigInt64Array.of(5n, 3n, 1n));
      t.strictSame(arange(3, 3, 1, { device }).shape, [0]);
    }),
  ),
);

t.test('data that makes no tensor is one clear error', async (t) => {
  const made: [() => unknown, string, RegExp][] = [
    [() => tensor([[1, 2], [3]]), 'ShapeError', /ragged: expected 2 entries at depth 1/],
    [() => tensor([[1], 2] as never), 'ShapeError', /ragged/],
    [() => tensor([1, [2]] as never), 'ShapeError', /ragged/],
    [() => tensor(['1'] as never), 'ShapeError', /not a number/],
    [() => tensor('1' as never), 'OptionError', /expected a number, an array of numbers, or a TypedArray/],
    [() => tensor(new Float64Array(2) as never), 'DTypeError', /Float64Array has no matching dtype/],
    [() => tensor([1, 2, 3], { shape: [2, 2] }), 'ShapeError', /\[2, 2\] has 4 elements, the data has 3/],
    [() => tensor([1], { dtype: 'f64' as never }), 'OptionError', /Unknown dtype "f64"; did you mean/],
    [() => tensor([1], { device: 'gpu' }), 'OptionError', /Unknown device "gpu"/],
    [() => tensor([1.5], { dtype: 'i64' }), 'DTypeError', /1.5 is not a value of i64/],
    [() => tensor([256], { dtype: 'u8' }), 'DTypeError', /256 is not a value of u8/],
    [() => tensor([Number.NaN], { dtype: 'i32' }), 'DTypeError', /NaN is not a value of i32/],
    [() => tensor([1], { dtype: 'i64', requiresGrad: true }), 'DTypeError', /i64 has no gradient/],
    [() => zeros([2, -1]), 'ShapeError', /at most 6 non-negative integers, got \[2,-1\]/],
    [() => zeros([1.5]), 'ShapeError', /non-negative integers/],
    [() => zeros([1, 1, 1, 1, 1, 1, 1]), 'ShapeError', /at most 6/],
    [() => zeros([2 ** 21, 2 ** 21]), 'ShapeError', /more elements than any device holds/],
    [() => zeros(3 as never), 'ShapeError', /a shape is a list/],
    [() => arange(0, 1, 0), 'OptionError', /never ends/],
    [() => Tensor.fromBytes(new Uint8Array(7), { shape: [2], dtype: 'f32' }), 'ShapeError', /is 8 bytes, got 7/],
    [() => zeros([2]).item(), 'ShapeError', /expected one element, this tensor is \[2\]/],
  ];
  for (const [make, name, message] of made) await assertFails(t, make, name, message);
});

t.test('bf16 and f16 round to nearest even; bytes are what files hold', (t) =>
  forEachDevice(t, (t, device) =>
    withoutLeaks(t, device, async () => {
      // bf16 keeps 8 bits of mantissa, f16 11: halves between two neighbours go to the even one.
      const bf16 = [
        [1 + 2 ** -8, 1],
        [1 + 3 * 2 ** -8, 1 + 2 ** -6],
        [1 + 2 ** -8 + 2 ** -20, 1 + 2 ** -7],
        [3.3895314e38, 3.3895314e38],
        [3.4e38, Infinity],
        [-0, -0],
      ];
      const f16 = [
        [1 + 2 ** -11, 1],
        [1 + 3 * 2 ** -11, 1 + 2 ** -9],
        [65519, 65504],
        [65520, Infinity],
        [2 ** -24, 2 ** -24],
        [2 ** -25, 0],
        [-(2 ** -14), -(2 ** -14)],
      ];
      for (const [dtype, pairs] of [
        ['bf16', bf16],
        ['f16', f16],
      ] as const) {
        const narrow = tensor(
          pairs.map(([from]) => from),
          { dtype, device },
        );
        t.equal(narrow.dtype, dtype);
        t.strictSame(
          await narrow.data(),
          Float32Array.from(pairs, ([, to]) => to),
          dtype,
        );
        t.equal((await narrow.bytes()).length, 2 * pairs.length);
        const nan = tensor([Number.NaN], { dtype, device });
        t.ok(Number.isNaN(await nan.item()), `${dtype} NaN`);
      }
      t.strictSame(await tensor([1, -2], { dtype: 'bf16', device }).bytes(), Uint8Array.of(0x80, 0x3f, 0x00, 0xc0));
      t.strictSame(await tensor([1, -2], { dtype: 'f16', device }).bytes(), Uint8Array.of(0x00, 0x3c, 0x00, 0xc0));
      t.strictSame(await tensor([1], { device }).bytes(), Uint8Array.of(0, 0, 0x80, 0x3f));

      for (const dtype of ['f32', 'bf16', 'f16', 'i32', 'i64', 'u8'] as const) {
        const source = tensor([0, 1, 2, 100], { dtype, device });
        const again = Tensor.fromBytes(await source.bytes(), { shape: [4], dtype, device });
        t.strictSame(await again.toArray(), [0, 1, 2, 100], `${dtype} through bytes`);
        for (const other of ['f32', 'bf16', 'f16', 'i32', 'i64', 'u8'] as const) {
          const converted = source.to(other);
          t.equal(converted.dtype, other);
          t.strictSame(await converted.toArray(), [0, 1, 2, 100], `${dtype} to ${other}`);
        }
      }
      t.strictSame(
        await tensor(Float32Array.of(-1, 1.9, 300, Number.NaN), { dtype: 'u8', device }).data(),
        Uint8Array.of(0, 1, 255, 0),
      );
      t.strictSame(await tensor(BigInt64Array.of(3n), { dtype: 'f32', device }).toArray(), [3]);
      t.strictSame(
        (await Tensor.fromBytes(new Uint8Array(0), { shape: [0, 3], dtype: 'f32', device }).data()).length,
        0,
      );
    }),
  ),
);

t.test('reshape and leading slices are views of one buffer; permute and inner slices are copies', (t) =>
  forEachDevice(t, (t, device) =>
    withoutLeaks(t, device, async () => {
      const x = arange(0, 12, 1, { device }).reshape([3, 4]);
      const { liveBuffers } = await settledMemory(device);
      const views = [
        x.reshape([2, 6]),
        x.reshape([-1]),
        x.reshape([4, -1]),
        x.slice(0, 1),
        x.slice(0, -2, -1),
        x.detach(),
        x.to('f32'),
      ];
      t.equal(memory(device).liveBuffers, liveBuffers, 'no buffer for views');
      t.strictSame(await views[2].toArray(), [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9, 10, 11],
      ]);
      t.strictSame(await views[3].toArray(), [
        [4, 5, 6, 7],
        [8, 9, 10, 11],
      ]);
      t.strictSame(await views[4].toArray(), [[4, 5, 6, 7]]);
      x.copyFrom(full([3, 4], 1, { device }));
      for (const view of views)
        t.ok(
          [...(await view.data())].every((v) => v === 1),
          'a view sees what its buffer gets',
        );
      const copies = [x.permute([1, 0]), x.slice(1, 0, 2)];
      x.copyFrom(zeros([3, 4], { device }));
      for (const copy of copies)
        t.ok(
          [...(await copy.data())].every((v) => v === 1),
          'a copy does not',
        );

      const buffers = memory(device).liveBuffers;
      x.dispose();
      t.strictSame(
        await views[3].toArray(),
        [
          [0, 0, 0, 0],
          [0, 0, 0, 0],
        ],
        'a view outlives the tensor it came from',
      );
      t.equal(memory(device).liveBuffers, buffers, 'and keeps the buffer');
    }),
  ),
);

t.test('dispose frees at once, twice is once, and use afterwards is an error', (t) =>
  forEachDevice(t, async (t, device) => {
    const { liveBuffers, liveBytes } = await settledMemory(device);
    const x = zeros([1000], { device });
    t.equal(memory(device).liveBuffers, liveBuffers + 1);
    t.ok(memory(device).liveBytes >= liveBytes + 4000);
    t.notOk(x.isDisposed);
    x.dispose();
    x.dispose();
    t.ok(x.isDisposed);
    t.equal(memory(device).liveBuffers, liveBuffers);
    {
      using inside = zeros([1000], { device });
      t.equal(memory(device).liveBuffers, liveBuffers + 1, `${inside.size} elements`);
    }
    t.equal(memory(device).liveBuffers, liveBuffers, 'using');

    const other = zeros([1000], { device });
    const uses: Record<string, () => unknown> = {
      data: () => x.data(),
      bytes: () => x.bytes(),
      add: () => x.add(1),
      'second operand': () => other.add(x),
      reshape: () => x.reshape([10, 100]),
      slice: () => x.slice(0, 1),
      detach: () => x.detach(),
      to: () => x.to('bf16'),
      'to the same dtype': () => x.to('f32'),
      copyFrom: () => x.copyFrom(other),
      'copied from': () => other.copyFrom(x),
    };
    for (const [name, use] of Object.entries(uses)) {
      await assertFails(t, use, 'DisposedError', /This tensor \[1000\] was disposed/).catch((error) =>
        t.fail(name, { error }),
      );
    }
    t.equal(memory(device).liveBuffers, liveBuffers + 1, 'a failing call makes nothing');
    t.strictSame(x.shape, [1000], 'shape and dtype stay readable');
    const alias = other.detach();
    other.dispose();
    t.equal((await alias.data()).length, 1000, 'an alias outlives the original');
    alias.dispose();
    t.equal(memory(device).liveBuffers, liveBuffers);
  }),
);

t.test('what a read resolves with is the value when it was asked for', (t) =>
  forEachDevice(t, (t, device) =>
    withoutLeaks(t, device, async () => {
      const x = zeros([4], { device });
      const before = x.data();
      x.copyFrom(ones([4], { device }));
      const after = x.data();
      x.dispose();
      t.strictSame(await before, new Float32Array(4));
      t.strictSame(await after, new Float32Array(4).fill(1), 'dispose after asking does not hurt');
      (await after)[0] = 5;
      t.equal(await full([], 1, { device }).item(), 1, 'a read is a copy of its own');
    }),
  ),
);

t.test('reshape, slice, permute and copyFrom check their arguments', async (t) => {
  const x = zeros([2, 6]);
  const bad: [() => unknown, string, RegExp][] = [
    [() => x.reshape([5]), 'ShapeError', /\[2, 6\] has 12 elements and cannot become \[5\]/],
    [() => x.reshape([-1, 5]), 'ShapeError', /reshape \[2, 6\] to \[-1, 5\]/],
    [() => x.reshape([-1, -1]), 'ShapeError', /reshape \[2, 6\] to \[-1, -1\]/],
    [() => x.slice(2, 0), 'OptionError', /axis 2 is outside a tensor of 2 dimensions/],
    [() => x.slice(1, 0, 7), 'OptionError', /\[0, 7\) is not inside axis 1 of \[2, 6\]/],
    [() => x.slice(1, 4, 2), 'OptionError', /\[4, 2\)/],
    [() => x.slice(0, 0.5), 'OptionError', /slice/],
    [() => x.permute([0]), 'OptionError', /\[0\] is not an order of 2 axes/],
    [() => x.permute([0, 0]), 'OptionError', /not an order/],
    [() => x.permute([0, 2]), 'OptionError', /axis 2 is outside/],
    [() => x.copyFrom(zeros([5])), 'ShapeError', /cannot copy \[5\] into \[2, 6\]/],
    [() => x.copyFrom(zeros([2, 6], { device: 'cpu:baseline' })), 'DeviceError', /on cpu:baseline, this tensor on cpu/],
  ];
  for (const [use, name, message] of bad) await assertFails(t, use, name, message);
});
