/** Gradients of operations and of chains of them, as models use them, against finite differences. */
import t from 'tap';
import '../../lib/autograd.js';
import * as F from '../../lib/nn/functional.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { forEachDevice, numbers } from '../helpers.js';
import { checkSlopes } from './check.js';

const chains: Record<string, { shapes: number[][]; run: (x: Tensor[]) => Tensor; h?: number }> = {
  softmax: { shapes: [[3, 7]], run: ([x]) => F.softmax(F.affine(x, 3, 0)) },
  'cross entropy': {
    shapes: [[4, 6]],
    run: ([x]) => F.crossEntropy(x, tensor([5, 0, 2, 2], { dtype: 'i64', device: x.device })),
  },
  'rational function': { shapes: [[2, 3], [3], [2, 1]], run: ([a, b, c]) => F.div(F.mul(a, b), F.add(F.mul(c, c), 1)) },
  'exp, log, roots': {
    shapes: [[9]],
    run: ([x]) => F.unary('log', F.add(F.unary('exp', x), F.unary('rsqrt', F.add(x.square(), 0.5)))),
  },
  'sin, cos, tanh, sigmoid': {
    shapes: [[9]],
    run: ([x]) => F.add(F.mul(F.sin(x), F.cos(x)), F.mul(F.tanh(x), F.sigmoid(x))),
  },
  pow: { shapes: [[5], [5]], run: ([a, b]) => F.pow(F.add(a.square(), 0.5), b) },
  'mlp with residual': {
    shapes: [[2, 3, 6], [10, 6], [10], [6, 10], [6]],
    run: ([x, w1, b1, w2, b2]) =>
      F.linear(F.linear(F.layerNorm(x), w1, b1, { activation: 'geluTanh' }), w2, b2, { residual: x }),
  },
  'mlp as one operation': {
    shapes: [[2, 3, 6], [10, 6], [10], [6, 10], [6]],
    run: ([x, weight, bias, w2, b2]) =>
      F.mlp(F.layerNorm(x), { weight, bias }, { weight: w2, bias: b2 }, { activation: 'geluTanh', residual: x }),
  },
  'linear with every activation': {
    shapes: [
      [4, 3],
      [5, 3],
    ],
    run: ([x, w]) =>
      F.concat(
        (['geluTanh', 'geluErf', 'silu', 'tanh', 'sigmoid'] as const).map((activation) =>
          F.linear(x, w, undefined, { activation }),
        ),
        1,
      ),
  },
  'layer norm': { shapes: [[4, 5], [5], [5]], run: ([x, weight, bias]) => F.layerNorm(x, { weight, bias }) },
  'norm, SiLU, convolution, stride': {
    shapes: [[2, 6, 5, 4], [4], [4], [6, 3, 3, 4], [6]],
    run: ([x, weight, bias, w, b]) =>
      F.conv2d(F.groupNorm(x, { groups: 2, weight, bias, silu: true }), w, b, { stride: 2, padding: 1 }),
  },
  'convolution of odd padding with residual': {
    shapes: [[1, 4, 5, 3], [2, 2, 3, 3], [2], [1, 4, 5, 2]],
    run: ([x, w, b, residual]) => F.conv2d(x, w, b, { padding: [1, 2, 0, 0], residual }),
  },
  attention: {
    shapes: [
      [2, 4, 4, 48],
      [2, 48],
      [9, 2],
    ],
    run: ([qkv, time, table]) => F.attention(qkv, { heads: 2, window: [2, 2], time, table }),
  },
  'attention with a table per sample': {
    shapes: [
      [2, 2, 4, 24],
      [2, 9, 2],
    ],
    run: ([qkv, table]) => F.attention(qkv, { heads: 2, window: [2, 2], table }),
  },
  'attention over tokens from a linear': {
    shapes: [
      [1, 3, 3, 8],
      [24, 8],
      [1, 24],
      [25, 1],
    ],
    run: ([x, w, time, table]) => F.attention(F.linear(x, w), { heads: 1, time, table }),
  },
  'U-turn': {
    shapes: [
      [1, 2, 3, 2],
      [1, 4, 6, 3],
    ],
    run: ([x, skip]) =>
      F.permute(F.concat([F.upsample2x(x), skip], 3), [0, 3, 1, 2])
        .slice(1, 1, 4)
        .reshape([6, -1]),
  },
  'matmul of four transposes': {
    shapes: [
      [4, 3],
      [3, 5],
    ],
    run: ([a, b]) => {
      const [at, bt] = [F.permute(a, [1, 0]), F.permute(b, [1, 0])];
      const all = [
        F.matmul(a, b),
        F.matmul(at, b, { transA: true }),
        F.matmul(a, bt, { transB: true }),
        F.matmul(at, bt, { transA: true, transB: true }),
      ];
      return F.concat(all, 0);
    },
  },
  'shared matrix in a batch': {
    shapes: [
      [2, 3, 4],
      [4, 2],
      [5, 3],
    ],
    run: ([a, b, c]) => F.matmul(c, F.matmul(a, b)),
  },
  'mean, sum, max': {
    shapes: [[3, 4, 5]],
    run: ([x]) => F.add(F.mean(x, [0, 2]), F.sum(x.square(), [2, 0])).add(F.max(x, 0).mean(1)),
    h: 1e-3,
  },
  'embedding and dropout': {
    shapes: [[4, 3]],
    run: ([x]) =>
      F.dropout(F.embedding(x, tensor([3, 0, 3], { dtype: 'i64', device: x.device })).square(), 0.4, { seed: 3 }),
  },
};

t.test('gradients of operations and chains agree with finite differences', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const [name, { shapes, run, h }] of Object.entries(chains)) {
      const size = (shape: number[]): number => shape.reduce((n, d) => n * d, 1);
      const inputs = shapes.map((shape, i) => ({ shape, data: numbers(i + 20, size(shape), 1.5) }));
      await checkSlopes(t, device, { name, inputs, run, h });
    }
  }),
);
