/**
 * Gradients that are computed together: those of mlp() against the two linear layers it stands for, whatever is frozen; and layer norm's,
 * which takes what has gathered for its input along, against the sum of the parts, whoever else holds that.
 */
import t from 'tap';
import { checkpoint } from '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import * as F from '../../lib/nn/functional.js';
import { autocast, type LowPrecision, noGrad } from '../../lib/scope.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { assertClose, forEachDevice, numbers, withoutLeaks } from '../helpers.js';
import { normError } from './lowp.js';

type Layers = (Tensor | undefined)[]; // x, w1, b1, w2, b2, residual
const apart = ([x, w1, b1, w2, b2, residual]: Layers, activation: F.Activation): Tensor =>
  F.linear(F.linear(x as Tensor, w1 as Tensor, b1, { activation }), w2 as Tensor, b2, { residual });
const together = ([x, weight, bias, w2, b2, residual]: Layers, activation: F.Activation): Tensor =>
  F.mlp(x as Tensor, { weight: weight as Tensor, bias }, { weight: w2 as Tensor, bias: b2 }, { activation, residual });

/** One letter per input: T trained, F frozen, - absent. */
const kinds = [
  'TTTTTT',
  'TTTTT-',
  'TT-T--',
  'FTTTTF',
  'FTTTTT',
  'TFFFFT',
  'FFFTTT',
  'FFFFFT',
  'FTFFFF',
  'FFTFF-',
  'FFFTF-',
];
const sizes = [
  { m: [2, 3], k: 6, hidden: 10, n: 6 },
  { m: [5], k: 7, hidden: 33, n: 3 },
  { m: [3, 24], k: 32, hidden: 128, n: 32 },
];

t.test('mlp() has the result and the gradients of two linear layers', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    for (const [low, limit] of [
      ['f32', 1e-6],
      ['bf16', 1e-2],
      ['f16', 1e-2],
    ] as [LowPrecision | 'f32', number][]) {
      for (const [i, { m, k, hidden, n }] of sizes.entries()) {
        const shapes = [[...m, k], [hidden, k], [hidden], [n, hidden], [n], [...m, n]];
        for (const kind of kinds) {
          await withoutLeaks(t, device, async () => {
            const run = async (forward: typeof apart) => {
              const inputs = shapes.map((shape, j) => {
                if (kind[j] === '-') return undefined;
                const data = numbers(
                  j + 1,
                  shape.reduce((a, b) => a * b),
                );
                return tensor(data, { shape, requiresGrad: kind[j] === 'T' });
              });
              const y = autocast(low, () => forward(inputs, (['geluTanh', 'silu', 'geluErf'] as const)[i]));
              y.backward(tensor(numbers(9, y.size), { shape: y.shape }).to(y.dtype));
              const values = inputs.map(async (x) => x?.grad && { data: await x.grad.data(), dtype: x.grad.dtype });
              const all = { y: [...(await y.data())], dtype: y.dtype, grads: await Promise.all(values) };
              for (const x of inputs) x?.grad?.dispose();
              return all;
            };
            const [is, should] = [await run(together), await run(apart)];
            t.strictSame([is.dtype, is.y], [should.dtype, should.y], `${low} ${kind} [${m}, ${k}]: result`);
            let worst = 0;
            for (const [j, expected] of should.grads.entries()) {
              const grad = is.grads[j];
              const trained = kind[j] === 'T';
              if (trained !== (grad !== undefined) || grad?.dtype !== expected?.dtype) worst = Number.POSITIVE_INFINITY;
              if (grad && expected) worst = Math.max(worst, normError(grad.data, expected.data as Float32Array));
            }
            t.ok(worst <= limit, `${low} ${kind} [${m}, ${k}]: gradients differ by ${worst.toExponential(1)}`);
          });
        }
      }
    }
  }),
);

/** Numbers that bf16 holds, and what layer norm alone makes of the gradient 'dy' there. */
const shape = [3, 4, 40];
const count = 480;
const eighths = (seed: number): Float32Array => numbers(seed, count).map((v) => Math.round(v * 8) / 8);
const alone = async (dtype: 'f32' | LowPrecision): Promise<Float32Array> => {
  const x = tensor(eighths(1), { shape, dtype, requiresGrad: true });
  F.layerNorm(x).backward(tensor(eighths(2), { shape, dtype }));
  const { grad } = x;
  x.grad = undefined;
  const values = (await (grad as Tensor).data()) as Float32Array;
  grad?.dispose();
  return values;
};

/** Ways a gradient goes around a layer norm; each gives dL/dx = layer norm's own + times * 'dy'. */
const ways: Record<string, { run: (x: Tensor, dy: Tensor) => void; times: number }> = {
  'before it': { run: (x, dy) => F.add(x, F.layerNorm(x)).backward(dy), times: 1 },
  'after it': {
    run: (x, dy) => {
      const twice = x.mul(2);
      F.add(F.layerNorm(x), twice).backward(dy);
    },
    times: 2,
  },
  'on both sides': {
    run: (x, dy) => {
      const twice = x.mul(2);
      const y = F.layerNorm(x);
      F.add(F.add(y, twice), x.mul(3)).backward(dy);
    },
    times: 5,
  },
  'to a result': {
    run: (x, dy) => {
      const h = x.mul(1);
      F.add(F.layerNorm(h), h.mul(3)).backward(dy);
    },
    times: 3,
  },
  'shared with a leaf': {
    run: (x, dy) => {
      const h = x.mul(1);
      const other = tensor(eighths(5), { shape, dtype: x.dtype, requiresGrad: true });
      F.add(F.layerNorm(h), F.add(h, other)).backward(dy);
      x.mul(3).backward(other.grad as Tensor); // still dy
      other.grad?.dispose();
    },
    times: 4,
  },
  'inside checkpoint()': {
    run: (x, dy) => checkpoint((h) => F.add(F.layerNorm(h), h.mul(3)), x).backward(dy),
    times: 3,
  },
  'of an earlier backward()': {
    run: (x, dy) => {
      x.mul(2).backward(dy);
      F.layerNorm(x).backward(dy);
    },
    times: 2,
  },
  'in the caller hands': {
    run: (x, dy) => {
      x.grad = dy.detach();
      F.layerNorm(x).backward(dy);
    },
    times: 1,
  },
};

t.test('layer norm adds its gradient to what went around it', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    for (const [dtype, limit] of [
      ['f32', 1e-6],
      ['bf16', 1e-2],
    ] as ['f32' | LowPrecision, number][]) {
      for (const [name, { run, times }] of Object.entries(ways)) {
        await withoutLeaks(t, device, async () => {
          const x = tensor(eighths(1), { shape, dtype, requiresGrad: true });
          const dy = tensor(eighths(2), { shape, dtype });
          run(x, dy);
          const grad = x.grad as Tensor;
          t.equal(grad.dtype, dtype);
          const own = await alone(dtype);
          const expected = eighths(2).map((g, i) => own[i] + times * g);
          const error = normError(await grad.data(), expected);
          t.ok(error <= limit, `${dtype} ${name}: gradient differs by ${error.toExponential(1)}`);
          t.strictSame([...(await dy.data())], [...eighths(2)], `${dtype} ${name}: the gradient handed in stays`);
          grad.dispose();
        });
      }
    }
    await withoutLeaks(t, device, async () => {
      const x = tensor(eighths(1), { shape, dtype: 'bf16', requiresGrad: true });
      x.grad = tensor(eighths(3), { shape });
      F.layerNorm(x).backward(tensor(eighths(2), { shape, dtype: 'bf16' }));
      const own = await alone('bf16');
      t.equal(x.grad.dtype, 'f32', 'what has gathered in another dtype keeps it');
      const expected = eighths(3).map((g, i) => own[i] + g);
      assertClose(t, (await x.grad.data()) as Float32Array, expected, 1e-6, 'f32 for a bf16 input');
      x.grad.dispose();
    });
    await withoutLeaks(t, device, async () => {
      const x = tensor(eighths(1), { shape, requiresGrad: true });
      const weight = noGrad(() => tensor(numbers(4, 40), { requiresGrad: true }));
      F.add(F.layerNorm(x.detach(), { weight }), x).backward(tensor(eighths(2), { shape }));
      t.strictSame([...(await (x.grad as Tensor).data())], [...eighths(2)], 'an input that is cut off gets nothing');
      t.ok(weight.grad);
      for (const leaf of [x, weight]) leaf.grad?.dispose();
    });
  }),
);
