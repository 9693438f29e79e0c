/** Empty and single-element inputs of every operation. */
import t from 'tap';
import '../../lib/autograd.js';
import * as F from '../../lib/nn/functional.js';
import { full, type Tensor, tensor } from '../../lib/tensor.js';
import { type FixtureTensor, forEachDevice, numbers } from '../helpers.js';
import { checkOp, checkSlopes } from './check.js';

const f32 = (shape: number[], values?: ArrayLike<number>): FixtureTensor => ({
  shape,
  data: values
    ? Float32Array.from(values)
    : numbers(
        shape.length + 1,
        shape.reduce((n, d) => n * d, 1),
      ),
});
const zerosOf = ({ shape }: FixtureTensor): FixtureTensor =>
  f32(shape, new Float32Array(shape.reduce((n, d) => n * d, 1)));

type Run = (x: Tensor[]) => Tensor;

/** Operations on inputs with an empty dimension: [name, shapes of the inputs, call, shape of the result]. */
const empty: [string, number[][], Run, number[]][] = [
  ['unary', [[0]], ([x]) => F.silu(x), [0]],
  ['affine', [[2, 0]], ([x]) => F.affine(x, 2, 1), [2, 0]],
  ['clamp', [[0, 2]], ([x]) => F.clamp(x, 0, 1), [0, 2]],
  ['add row', [[0, 3], [3]], ([a, b]) => F.add(a, b), [0, 3]],
  ['mul one', [[0], [1]], ([a, b]) => F.mul(a, b), [0]],
  ['div scalar', [[2, 0], []], ([a, b]) => F.div(a, b), [2, 0]],
  [
    'where',
    [
      [0, 1],
      [1, 3],
    ],
    ([a, b]) => F.where(full([1], 1, { device: a.device }), a, b),
    [0, 3],
  ],
  [
    'linearCombination',
    [[0], [0]],
    ([a, b]) =>
      F.linearCombination([
        [1, a],
        [2, b],
      ]),
    [0],
  ],
  ['cast', [[0]], ([x]) => x.to('bf16').to('f32'), [0]],
  ['sum all', [[0]], ([x]) => F.sum(x), []],
  ['sum axis', [[2, 0, 3]], ([x]) => F.sum(x, 1), [2, 3]],
  ['sum kept', [[0, 3]], ([x]) => F.sum(x, 1, true), [0, 1]],
  ['mean of none', [[0, 3]], ([x]) => F.mean(x, 1), [0]],
  ['max of none', [[0, 3]], ([x]) => F.max(x, 1), [0]],
  ['softmax', [[0, 3]], ([x]) => F.softmax(x), [0, 3]],
  ['softmax width', [[3, 0]], ([x]) => F.softmax(x), [3, 0]],
  ['crossEntropy', [[0, 3]], ([x]) => F.crossEntropy(x, tensor([], { dtype: 'i64', device: x.device })), [0]],
  [
    'matmul m',
    [
      [0, 3],
      [3, 4],
    ],
    ([a, b]) => F.matmul(a, b),
    [0, 4],
  ],
  [
    'matmul n',
    [
      [2, 3],
      [3, 0],
    ],
    ([a, b]) => F.matmul(a, b),
    [2, 0],
  ],
  [
    'matmul k',
    [
      [2, 0],
      [0, 4],
    ],
    ([a, b]) => F.matmul(a, b),
    [2, 4],
  ],
  [
    'matmul batch',
    [
      [0, 2, 3],
      [3, 4],
    ],
    ([a, b]) => F.matmul(a, b),
    [0, 2, 4],
  ],
  ['linear', [[0, 3], [4, 3], [4]], ([x, w, b]) => F.linear(x, w, b, { activation: 'geluTanh' }), [0, 4]],
  ['linear residual', [[0, 3], [4, 3], [4], [0, 4]], ([x, w, b, residual]) => F.linear(x, w, b, { residual }), [0, 4]],
  [
    'mlp',
    [[0, 3], [4, 3], [4], [2, 4]],
    ([x, w1, bias, w2]) => F.mlp(x, { weight: w1, bias }, { weight: w2 }, { activation: 'silu' }),
    [0, 2],
  ],
  ['conv2d', [[0, 5, 5, 2], [3, 3, 3, 2], [3]], ([x, w, b]) => F.conv2d(x, w, b, { padding: 1 }), [0, 5, 5, 3]],
  ['layerNorm', [[0, 5], [5], [5]], ([x, weight, bias]) => F.layerNorm(x, { weight, bias }), [0, 5]],
  [
    'groupNorm',
    [[0, 2, 2, 4], [4], [4]],
    ([x, weight, bias]) => F.groupNorm(x, { groups: 2, weight, bias }),
    [0, 2, 2, 4],
  ],
  [
    'attention',
    [
      [0, 2, 2, 12],
      [0, 12],
      [9, 2],
    ],
    ([qkv, time, table]) => F.attention(qkv, { heads: 2, time, table }),
    [0, 2, 2, 4],
  ],
  [
    'embedding',
    [[3, 2]],
    ([x]) => F.embedding(x, tensor([], { dtype: 'i64', shape: [2, 0], device: x.device })),
    [2, 0, 2],
  ],
  ['reshape', [[0, 3]], ([x]) => F.reshape(x, [3, 0]), [3, 0]],
  ['permute', [[2, 0, 3]], ([x]) => F.permute(x, [1, 2, 0]), [0, 3, 2]],
  ['slice', [[2, 3]], ([x]) => F.slice(x, 1, 1, 1), [2, 0]],
  ['slice rows', [[2, 3]], ([x]) => F.slice(x, 0, 2), [0, 3]],
  [
    'concat',
    [
      [2, 0],
      [2, 3],
    ],
    ([a, b]) => F.concat([a, b.mul(0)], 1),
    [2, 3],
  ],
  [
    'pad',
    [[2, 0]],
    ([x]) =>
      F.pad(x, [
        [0, 0],
        [1, 1],
      ]),
    [2, 2],
  ],
  ['upsample2x', [[0, 2, 2, 3]], ([x]) => F.upsample2x(x), [0, 4, 4, 3]],
  ['dropout', [[0, 2]], ([x]) => F.dropout(x, 0.5, { seed: 1 }), [0, 2]],
];

/** On one element: values of the inputs, call, and the result worked out by hand. */
const e = Math.E;
const single: [string, [number[], number[]][], Run, number[], number[]][] = [
  ['exp', [[[], [1]]], ([x]) => F.unary('exp', x), [], [e]],
  ['sum', [[[], [3]]], ([x]) => F.sum(x), [], [3]],
  ['mean', [[[1, 1], [3]]], ([x]) => F.mean(x), [], [3]],
  ['softmax', [[[1], [100]]], ([x]) => F.softmax(x), [1], [1]],
  ['permute', [[[], [3]]], ([x]) => F.permute(x, []), [], [3]],
  ['reshape', [[[], [3]]], ([x]) => F.reshape(x, [1, -1]), [1, 1], [3]],
  ['slice', [[[1], [3]]], ([x]) => F.slice(x, 0, 0), [1], [3]],
  [
    'concat',
    [
      [[1], [3]],
      [[1], [4]],
    ],
    (x) => F.concat(x, 0),
    [2],
    [3, 4],
  ],
  ['pad', [[[1], [3]]], ([x]) => F.pad(x, [[1, 0]]), [2], [0, 3]],
  [
    'mul scalars',
    [
      [[], [3]],
      [[], [4]],
    ],
    ([a, b]) => F.mul(a, b),
    [],
    [12],
  ],
  [
    'scalar to rank 6',
    [
      [[], [3]],
      [[1, 1, 1, 1, 1, 1], [4]],
    ],
    ([a, b]) => F.sub(a, b),
    [1, 1, 1, 1, 1, 1],
    [-1],
  ],
  [
    'linear',
    [
      [[1], [3]],
      [[1, 1], [2]],
      [[1], [1]],
    ],
    ([x, w, b]) => F.linear(x, w, b),
    [1],
    [7],
  ],
  [
    'conv2d',
    [
      [[1, 1, 1, 1], [3]],
      [
        [1, 3, 3, 1],
        [0, 0, 0, 0, 2, 0, 0, 0, 9],
      ],
      [[1], [1]],
    ],
    ([x, w, b]) => F.conv2d(x, w, b, { padding: 1 }),
    [1, 1, 1, 1],
    [7],
  ],
  [
    'layerNorm',
    [
      [[1, 1], [3]],
      [[1], [5]],
      [[1], [2]],
    ],
    ([x, weight, bias]) => F.layerNorm(x, { weight, bias }),
    [1, 1],
    [2],
  ],
  ['groupNorm', [[[1, 1], [3]]], ([x]) => F.groupNorm(x, { groups: 1 }), [1, 1], [0]],
  [
    'attention',
    [
      [
        [1, 1, 1, 3],
        [5, 6, 7],
      ],
      [
        [1, 3],
        [1, 2, 3],
      ],
      [[1, 1], [4]],
    ],
    ([qkv, time, table]) => F.attention(qkv, { heads: 1, time, table }),
    [1, 1, 1, 1],
    [10],
  ],
  ['upsample2x', [[[1, 1, 1, 1], [3]]], ([x]) => F.upsample2x(x), [1, 2, 2, 1], [3, 3, 3, 3]],
  ['max', [[[1], [3]]], ([x]) => F.max(x, 0), [], [3]],
];

t.test('empty inputs give empty results and zero gradients', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const [name, shapes, run, shape] of empty) {
      const inputs = Object.fromEntries(shapes.map((s, i) => [`${i}`, f32(s)]));
      await checkOp(t, device, {
        name,
        inputs,
        run: (x) => run(Object.values(x)),
        out: zerosOf({ shape, data: new Float32Array() }),
        dout: zerosOf({ shape, data: new Float32Array() }),
        grads: Object.fromEntries(Object.entries(inputs).map(([key, value]) => [key, zerosOf(value)])),
      });
    }
  }),
);

t.test('single elements', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const [name, values, run, shape, out] of single) {
      const inputs = Object.fromEntries(values.map(([s, v], i) => [`${i}`, f32(s, v)]));
      await checkOp(t, device, {
        name,
        inputs,
        run: (x) => run(Object.values(x)),
        out: f32(shape, out),
        tolerance: { out: 1e-6 },
      });
      await checkSlopes(t, device, { name, inputs: Object.values(inputs), run });
    }
  }),
);
