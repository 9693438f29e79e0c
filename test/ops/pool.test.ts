/** Pooling against the definition, on every device: windows that reach over the edge, tails of channels, low precision, NaN, errors. */
import t from 'tap';
import '../../lib/autograd.js';
import * as F from '../../lib/nn/functional.js';
import { noGrad, scope } from '../../lib/scope.js';
import { ones, type Tensor, tensor } from '../../lib/tensor.js';
import { assertClose, assertFails, forEachDevice, numbers, withoutLeaks } from '../helpers.js';

interface Case {
  shape: [number, number, number, number];
  options: F.Pool2dOptions;
}

const cases: Case[] = [
  { shape: [2, 7, 9, 37], options: { kind: 'max', size: 3, stride: 2 } },
  { shape: [2, 7, 9, 37], options: { kind: 'mean', size: 3, padding: 1 } },
  { shape: [1, 5, 5, 16], options: { kind: 'max', size: 3, padding: 1 } },
  { shape: [1, 8, 6, 8], options: { kind: 'mean', size: 2, stride: 2 } },
  { shape: [3, 4, 4, 1], options: { kind: 'mean', size: 4, stride: 3, padding: 3 } },
  { shape: [1, 1, 1, 3], options: { kind: 'max', size: 3, padding: 1 } },
];

function expected(x: Float32Array, [b, h, w, c]: Case['shape'], options: F.Pool2dOptions): Float32Array {
  const { kind, size, stride = 1, padding = 0 } = options;
  const [oh, ow] = [h, w].map((n) => Math.floor((n + 2 * padding - size) / stride) + 1);
  const inside = (first: number, n: number): number[] =>
    Array.from({ length: size }, (_, k) => first * stride - padding + k).filter((at) => at >= 0 && at < n);
  const y = new Float32Array(b * oh * ow * c);
  for (let i = 0; i < y.length; i++) {
    const [n, oy, ox, channel] = [
      Math.floor(i / (oh * ow * c)),
      Math.floor(i / (ow * c)) % oh,
      Math.floor(i / c) % ow,
      i % c,
    ];
    const values = inside(oy, h).flatMap((yy) => inside(ox, w).map((xx) => x[((n * h + yy) * w + xx) * c + channel]));
    y[i] = kind === 'max' ? Math.max(...values) : values.reduce((sum, v) => sum + v, 0) / values.length;
  }
  return y;
}

t.test('pool2d', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const [i, { shape, options }] of cases.entries()) {
      const data = numbers(
        i + 1,
        shape.reduce((n, side) => n * side, 1),
      );
      await withoutLeaks(t, device, async () => {
        const y = F.pool2d(tensor(data, { shape, device }), options);
        const name = `${options.kind} ${options.size}/${options.stride ?? 1} of ${shape}`;
        assertClose(t, await read(y), expected(data, shape, options), 2e-7, name);
        for (const dtype of ['bf16', 'f16'] as const) {
          const x = tensor(data, { shape, device }).to(dtype);
          const low = F.pool2d(x, options);
          t.equal(low.dtype, dtype);
          const of = expected(await read(x.to('f32')), shape, options);
          assertClose(t, await read(low.to('f32')), of, dtype === 'bf16' ? 2 ** -8 : 2 ** -11, `${name} ${dtype}`);
        }
      });
    }
    await scope(async () => {
      const x = numbers(1, 64);
      x[20] = Number.NaN;
      const y = await read(F.pool2d(tensor(x, { shape: [1, 4, 4, 4], device }), { kind: 'max', size: 2, stride: 2 }));
      t.same(
        [...y.entries()].filter(([, v]) => Number.isNaN(v)).map(([at]) => at),
        [0],
        'NaN stays where it is seen',
      );
    });
  }),
);

t.test('errors', (t) =>
  scope(async () => {
    const x = ones([1, 4, 4, 2]);
    await assertFails(t, () => F.pool2d(ones([4, 4]), { kind: 'max', size: 2 }), 'ShapeError', /pool2d: x is \[4, 4\]/);
    await assertFails(t, () => F.pool2d(x, { kind: 'max', size: 5 }), 'ShapeError', /window of 5 does not fit/);
    await assertFails(t, () => F.pool2d(x, { kind: 'max', size: 0 }), 'OptionError', /size is 0/);
    await assertFails(t, () => F.pool2d(x, { kind: 'max', size: 2, padding: 2 }), 'OptionError', /padding is 2/);
    await assertFails(t, () => F.pool2d(x, { kind: 'min' as 'max', size: 2 }), 'OptionError', /kind is min/);
    x.requiresGrad = true;
    await assertFails(t, () => F.pool2d(x, { kind: 'max', size: 2 }), 'AutogradError', /no gradient/);
    t.same(noGrad(() => F.pool2d(x, { kind: 'max', size: 2 })).shape, [1, 3, 3, 2]);
  }),
);

async function read(x: Tensor): Promise<Float32Array> {
  return (await x.data()) as Float32Array;
}
