/** What the tape does not keep but makes again on the way back: results of norms, and the hidden layer of mlp(). */
import t from 'tap';
import '../../lib/autograd.js';
import { memory, setDefaultDevice } from '../../lib/device.js';
import * as F from '../../lib/nn/functional.js';
import { scope } from '../../lib/scope.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { assertClose, forEachDevice, numbers, settledMemory, withoutLeaks } from '../helpers.js';

const leaf = (seed: number, shape: number[]): Tensor =>
  tensor(
    numbers(
      seed,
      shape.reduce((a, b) => a * b),
    ),
    { shape, requiresGrad: true },
  );

t.test('a weight behind a norm has the gradient dy^T norm(x)', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    const [m, c, n] = [6, 8, 5];
    for (const groups of [1, 2]) {
      await withoutLeaks(t, device, () =>
        scope(async () => {
          const [x, scale, shift, weight] = [leaf(1, [m, c]), leaf(2, [c]), leaf(3, [c]), leaf(4, [n, c])];
          const dy = tensor(numbers(5, m * n), { shape: [m, n] });
          const affine = { weight: scale, bias: shift, eps: 1e-2 };
          const normed = groups === 1 ? F.layerNorm(x, affine) : F.groupNorm(x, { groups, silu: true, ...affine });
          const y = F.linear(normed, weight);
          normed.dispose();
          y.backward(dy);
          const [xs, ws, bs, gs] = [numbers(1, m * c), numbers(2, c), numbers(3, c), numbers(5, m * n)];
          const width = c / groups;
          const expected = new Float64Array(n * c);
          for (let row = 0; row < m; row++) {
            for (let j = 0; j < c; j++) {
              const from = row * c + Math.floor(j / width) * width;
              const part = Array.from(xs.slice(from, from + width));
              const mean = part.reduce((a, b) => a + b, 0) / width;
              const variance = part.reduce((a, b) => a + (b - mean) ** 2, 0) / width;
              const v = ((xs[row * c + j] - mean) / Math.sqrt(variance + 1e-2)) * ws[j] + bs[j];
              const value = groups === 1 ? v : v / (1 + Math.exp(-v));
              for (let o = 0; o < n; o++) expected[o * c + j] += gs[row * n + o] * value;
            }
          }
          const grad = weight.grad as Tensor;
          assertClose(t, await grad.data(), expected, 1e-5, `${groups} groups`);
          for (const { grad } of [x, scale, shift, weight]) grad?.dispose();
        }),
      );
    }
  }),
);

t.test("of norm and mlp the tape keeps the norm's input and the pre-activation", (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    const [m, c, hidden] = [64, 32, 128];
    const [x, w1, w2] = [leaf(1, [m, c]), leaf(2, [hidden, c]), leaf(3, [c, hidden])];
    const before = await settledMemory(device);
    const y = scope(() => F.mlp(F.layerNorm(x), { weight: w1 }, { weight: w2 }, { activation: 'geluTanh' }));
    const kept = memory(device).liveBytes - before.liveBytes;
    const floats = m * c + m * hidden + 2 * m; // y, the pre-activation, mean and rstd
    t.equal(kept, 4 * floats);
    for (const tensor of [y, x, w1, w2]) tensor.dispose();
  }),
);
