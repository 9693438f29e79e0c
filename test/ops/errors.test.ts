/** Each kind of bad input to an operation is one typed error that names the operation, the argument and what was expected. */
import t from 'tap';
import { checkpoint } from '../../lib/autograd.js';
import { memory, synchronize } from '../../lib/device.js';
import * as F from '../../lib/nn/functional.js';
import { type Tensor, tensor, zeros } from '../../lib/tensor.js';
import { assertFails, settledMemory, withoutLeaks } from '../helpers.js';

const f = (...shape: number[]): Tensor => zeros(shape);
const ids = (...values: number[]): Tensor => tensor(values, { dtype: 'i64' });
const elsewhere = (...shape: number[]): Tensor => zeros(shape, { device: 'cpu:baseline' });

type Bad = [call: () => unknown, error: string, message: RegExp];

const shapes: Bad[] = [
  [() => F.add(f(2, 3), f(2)), 'ShapeError', /add: shapes \[2, 3\] and \[2\] do not broadcast \(3 against 2\)/],
  [() => F.mul(f(0), f(2)), 'ShapeError', /mul: shapes \[0\] and \[2\]/],
  [() => F.where(f(2), f(3), f(3)), 'ShapeError', /where: shapes \[2\] and \[3\]/],
  [
    () =>
      F.linearCombination([
        [1, f(2)],
        [1, f(2, 1)],
      ]),
    'ShapeError',
    /linearCombination: shapes \[2\] and \[2, 1\] differ/,
  ],
  [() => F.matmul(f(2, 3), f(2, 3)), 'ShapeError', /matmul: \[2, 3\] and \[2, 3\] do not multiply/],
  [() => F.matmul(f(2, 3), f(2, 3), { transA: true, transB: true }), 'ShapeError', /\[2, 3\] \(transposed\)/],
  [() => F.matmul(f(2, 4, 3), f(3, 3, 4)), 'ShapeError', /do not multiply/],
  [() => F.matmul(f(3), f(3, 3)), 'ShapeError', /at least 2 dimensions, got \[3\]/],
  [() => F.linear(f(2, 3), f(5, 4)), 'ShapeError', /linear: weight is \[5, 4\], expected \[\*, 3\]/],
  [() => F.linear(f(2, 3), f(5, 3), f(4)), 'ShapeError', /linear: bias is \[4\], expected \[5\]/],
  [
    () => F.linear(f(2, 3), f(5, 3), undefined, { residual: f(2, 3) }),
    'ShapeError',
    /linear: residual is \[2, 3\], expected \[2, 5\]/,
  ],
  [() => F.linear(f(), f(5, 3)), 'ShapeError', /linear: x is a scalar/],
  [
    () => F.mlp(f(2, 3), { weight: f(5, 3) }, { weight: f(3, 4) }, { activation: 'silu' }),
    'ShapeError',
    /mlp fc2: weight is \[3, 4\], expected \[\*, 5\]/,
  ],
  [() => F.conv2d(f(2, 4, 4), f(1, 3, 3, 1)), 'ShapeError', /conv2d: x is \[2, 4, 4\], expected \[\*, \*, \*, \*\]/],
  [
    () => F.conv2d(f(2, 4, 4, 3), f(1, 3, 3, 2)),
    'ShapeError',
    /conv2d: weight is \[1, 3, 3, 2\], expected \[\*, \*, \*, 3\]/,
  ],
  [() => F.conv2d(f(2, 4, 4, 3), f(1, 3, 3, 3), f(2)), 'ShapeError', /conv2d: bias is \[2\], expected \[1\]/],
  [() => F.conv2d(f(2, 2, 4, 3), f(1, 3, 3, 3)), 'ShapeError', /a 3x3 window does not fit into x \[2, 2, 4, 3\]/],
  [
    () => F.conv2d(f(2, 4, 4, 3), f(1, 3, 3, 3), undefined, { residual: f(2, 4, 4, 1) }),
    'ShapeError',
    /conv2d: residual is \[2, 4, 4, 1\], expected \[2, 2, 2, 1\]/,
  ],
  [() => F.layerNorm(f(2, 3), { weight: f(2) }), 'ShapeError', /layerNorm: weight is \[2\], expected \[3\]/],
  [() => F.layerNorm(f(2, 3), { bias: f(1) }), 'ShapeError', /layerNorm: bias is \[1\], expected \[3\]/],
  [
    () => F.groupNorm(f(2, 3, 4), { groups: 2, weight: f(3) }),
    'ShapeError',
    /groupNorm: weight is \[3\], expected \[4\]/,
  ],
  [
    () => F.attention(f(1, 4, 12), { heads: 2 }),
    'ShapeError',
    /attention: qkv is \[1, 4, 12\], expected \[\*, \*, \*, \*\]/,
  ],
  [
    () => F.attention(f(1, 2, 2, 12), { heads: 2, time: f(2, 12) }),
    'ShapeError',
    /attention: time is \[2, 12\], expected \[1, 12\]/,
  ],
  [
    () => F.attention(f(1, 2, 2, 12), { heads: 2, table: f(8, 2) }),
    'ShapeError',
    /attention: table is \[8, 2\], expected .*\[9, 2\]/,
  ],
  [
    () => F.concat([f(2, 3), f(3, 3)], 1),
    'ShapeError',
    /concat: tensors\[1\] is \[3, 3\], which does not join \[2, 3\] along axis 1/,
  ],
  [() => F.concat([f(2, 3), f(2)], 0), 'ShapeError', /concat: tensors\[1\] is \[2\]/],
  [() => F.embedding(f(3), ids(0)), 'ShapeError', /embedding: table is \[3\], expected \[\*, \*\]/],
  [() => F.upsample2x(f(2, 3)), 'ShapeError', /upsample2x: x is \[2, 3\]/],
  [() => F.crossEntropy(f(2, 3), ids(0)), 'ShapeError', /crossEntropy: labels is \[1\], expected \[2\]/],
  [() => F.crossEntropy(f(2), ids(0, 1)), 'ShapeError', /crossEntropy: logits is \[2\]/],
  [() => F.mean(f(2, 0), 1), 'ShapeError', /mean: cannot reduce an empty axis of \[2, 0\]/],
  [() => F.max(f(0), 0), 'ShapeError', /max: cannot reduce an empty axis/],
  [() => F.argmax(f(2, 0), 1), 'ShapeError', /argmax: cannot reduce an empty axis/],
];

const dtypes: Bad[] = [
  [() => F.add(f(2), ids(1, 2)), 'DTypeError', /add: b is i64, expected f32 \(convert with \.to\('f32'\)\)/],
  [() => F.silu(zeros([2], { dtype: 'u8' })), 'DTypeError', /silu: x is u8, expected f32/],
  [() => F.where(zeros([2], { dtype: 'bf16' }), f(2), f(2)), 'DTypeError', /where: condition is bf16, expected f32/],
  [
    () => F.layerNorm(f(2, 3), { weight: zeros([3], { dtype: 'bf16' }) }),
    'DTypeError',
    /layerNorm: weight is bf16, expected f32/,
  ],
  [() => F.equal(ids(1), f(1)), 'DTypeError', /equal: b is f32, expected i64/],
  [() => F.add(ids(1), ids(1)), 'DTypeError', /add: a is i64/],
  [() => F.matmul(f(1, 1), zeros([1, 1], { dtype: 'u8' })), 'DTypeError', /matmul: b is u8/],
  [() => F.embedding(f(3, 2), f(1)), 'DTypeError', /embedding: ids is f32, expected i64/],
  [() => F.embedding(ids(3), ids(0)), 'DTypeError', /embedding: table is i64/],
  [
    () => F.crossEntropy(f(2, 3), zeros([2], { dtype: 'i32' })),
    'DTypeError',
    /crossEntropy: labels is i32, expected i64/,
  ],
  [() => F.softmax(ids(1)), 'DTypeError', /softmax: x is i64/],
  [() => F.concat([f(1), ids(1)], 0), 'DTypeError', /concat: tensors\[1\] is i64, expected f32/],
  [() => f(1).to('f64' as never), 'OptionError', /Unknown dtype "f64"/],
];

const options: Bad[] = [
  [() => F.sum(f(2, 3), 2), 'OptionError', /sum: axis 2 is outside a tensor of 2 dimensions/],
  [() => F.sum(f(2, 3), -3), 'OptionError', /sum: axis -3/],
  [() => F.mean(f(2, 3), [0, 0]), 'OptionError', /mean: an axis is named twice in \[0, 0\]/],
  [() => F.max(f(2, 3), 0.5), 'OptionError', /max: axis 0\.5/],
  [() => F.argmax(f(), 0), 'OptionError', /argmax: axis 0 is outside a tensor of 0 dimensions/],
  [() => F.concat([], 0), 'OptionError', /concat: expected at least one tensor/],
  [() => F.concat([f(1)], 1), 'OptionError', /concat: axis 1/],
  [() => F.pad(f(2, 2), [[1, 1]]), 'OptionError', /pad: expected \[before, after\] for each of 2 axes/],
  [() => F.pad(f(2), [[-1, 0]]), 'OptionError', /pad/],
  [() => F.clamp(f(1), 2, 1), 'OptionError', /clamp: low 2 is above high 1/],
  [() => F.clamp(f(1), Number.NaN, 1), 'OptionError', /clamp: low NaN/],
  [() => F.linearCombination([]), 'OptionError', /expected 1 to 3 terms, got 0/],
  [
    () => F.conv2d(f(1, 4, 4, 1), f(1, 3, 3, 1), undefined, { stride: 0 }),
    'OptionError',
    /conv2d: stride is 0, expected an integer of at least 1/,
  ],
  [() => F.conv2d(f(1, 4, 4, 1), f(1, 3, 3, 1), undefined, { padding: -1 }), 'OptionError', /conv2d: padding -1/],
  [() => F.layerNorm(f()), 'OptionError', /layerNorm: x is a scalar/],
  [() => F.groupNorm(f(2, 4), { groups: 3 }), 'OptionError', /groupNorm: 3 groups do not divide 4 channels/],
  [() => F.groupNorm(f(2, 4), { groups: 0 }), 'OptionError', /groupNorm: groups is 0/],
  [() => F.groupNorm(f(4), { groups: 1 }), 'OptionError', /groupNorm: x needs a batch and a channel axis/],
  [
    () => F.attention(f(1, 2, 2, 12), { heads: 3 }),
    'OptionError',
    /attention: 12 channels of qkv do not split into q, k, v of 3 heads/,
  ],
  [() => F.attention(f(1, 2, 2, 12), { heads: 0 }), 'OptionError', /attention: heads is 0/],
  [
    () => F.attention(f(1, 4, 6, 12), { heads: 2, window: [4, 4] }),
    'OptionError',
    /a 4x4 window does not divide the 4x6 map/,
  ],
  [() => F.attention(f(1, 4, 4, 12), { heads: 2, window: [0, 4] }), 'OptionError', /window height is 0/],
  [() => F.add({} as never, f(1)), 'OptionError', /add: a is not a tensor/],
  [() => F.linear(f(1, 2), { shape: [1, 2] } as never), 'OptionError', /linear: weight is not a tensor/],
];

const devices: Bad[] = [
  [() => F.add(f(1), elsewhere(1)), 'DeviceError', /add: b is on cpu:baseline, the others on cpu/],
  [() => F.where(f(1), f(1), elsewhere(1)), 'DeviceError', /where: b is on cpu:baseline/],
  [() => F.matmul(elsewhere(1, 1), f(1, 1)), 'DeviceError', /matmul: b is on cpu, the others on cpu:baseline/],
  [() => F.concat([f(1), elsewhere(1)], 0), 'DeviceError', /concat: tensors\[1\]/],
  [() => F.embedding(elsewhere(2, 2), ids(0)), 'DeviceError', /embedding: ids is on cpu/],
  [() => F.crossEntropy(elsewhere(1, 2), ids(0)), 'DeviceError', /crossEntropy: labels is on cpu/],
  [() => F.attention(f(1, 1, 1, 3), { heads: 1, time: elsewhere(1, 3) }), 'DeviceError', /attention: time/],
  [() => zeros([1], { device: 'cpu:altivec' }), 'DeviceError', /altivec/],
  [() => zeros([1], { device: 'cuda:7' }), 'DeviceError', /cuda:7|no NVIDIA driver/],
];

const gone = f(2, 2);
gone.dispose();
const disposed: Bad[] = (
  [
    () => F.silu(gone),
    () => F.add(f(2, 2), gone),
    () => F.affine(gone, 1, 0),
    () => F.matmul(gone, gone),
    () => F.linear(f(1, 2), gone),
    () => F.softmax(gone),
    () => F.sum(gone),
    () => F.permute(gone, [1, 0]),
    () => F.slice(gone, 1, 0, 1),
    () => F.concat([gone], 0),
    () =>
      F.pad(gone, [
        [0, 0],
        [1, 1],
      ]),
    () => F.layerNorm(gone),
    () => F.groupNorm(gone, { groups: 1 }),
    () => F.embedding(gone, ids(0)),
    () => F.dropout(gone, 0.5),
    () => F.dropout(gone, 0),
    () => F.where(gone, f(2, 2), f(2, 2)),
    () => F.clamp(gone, 0, 1),
    () => F.max(gone, 0),
    () => checkpoint((x) => x.mul(2), gone),
  ] as (() => unknown)[]
).map((call) => [call, 'DisposedError', /This tensor \[2, 2\] was disposed/]);

for (const [kind, list] of Object.entries({ shapes, dtypes, options, devices, disposed })) {
  t.test(`bad ${kind}`, (t) =>
    withoutLeaks(t, 'cpu', async () => {
      for (const [call, error, message] of list) await assertFails(t, call, error, message);
    }),
  );
}

t.test(
  'an id outside the table, or a label outside the classes, fails at the next read and leaves the device usable',
  async (t) => {
    const { liveBuffers } = await settledMemory('cpu');
    for (const [call, message] of [
      [() => F.embedding(f(3, 2), ids(0, 3)), /gather_rows.*3/s],
      [() => F.embedding(f(3, 2), ids(-1)), /gather_rows.*-1/s],
      [() => F.crossEntropy(f(2, 3), ids(0, 3)), /cross_entropy.*3/s],
    ] as const) {
      await withoutLeaks(t, 'cpu', async () => {
        const y = call();
        await assertFails(t, () => y.data(), 'DiffitError', message);
        t.strictSame(await tensor([1, 2]).add(1).toArray(), [2, 3], 'the next operation works');
      });
    }
    await synchronize('cpu');
    t.equal(memory('cpu').liveBuffers, liveBuffers);
  },
);
