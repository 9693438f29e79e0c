/** Convolutions in bf16 and f16 on tensor cores, against sums in double precision over the rounded operands. */
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import type { DType } from '../../lib/dtype.js';
import { native } from '../../lib/native.js';
import { conv2d } from '../../lib/ops/conv.js';
import { autocast, scope } from '../../lib/scope.js';
import { Tensor, tensor } from '../../lib/tensor.js';
import { withoutLeaks } from '../helpers.js';
import { assertNear, device, random, rounded, rounding } from './lowp.js';
import * as reference from './reference.js';

t.before(() => setDefaultDevice(device));

// Chunks of eight channels and not, 1x1, strides, windows that reach far outside, both tiles, pieces of k.
const shapes: (reference.ConvSizes & { type?: DType })[] = [
  { b: 2, h: 7, w: 6, i: 16, o: 24, k: 3, stride: 1, pad: 1 },
  { b: 1, h: 9, w: 8, i: 8, o: 16, k: 3, stride: 2, pad: 1, type: 'f16' },
  { b: 2, h: 6, w: 5, i: 3, o: 8, k: 3, stride: 1, pad: 1 },
  { b: 2, h: 6, w: 7, i: 8, o: 5, k: 3, stride: 2, pad: 0, type: 'f16' },
  { b: 1, h: 5, w: 6, i: 16, o: 40, k: 1, stride: 1, pad: 0 },
  { b: 1, h: 6, w: 6, i: 8, o: 8, k: 1, stride: 2, pad: 0 },
  { b: 1, h: 4, w: 4, i: 8, o: 8, k: 5, stride: 1, pad: 4, type: 'f16' },
  { b: 1, h: 6, w: 5, i: 72, o: 8, k: 3, stride: 1, pad: 1 },
  { b: 1, h: 20, w: 19, i: 8, o: 136, k: 3, stride: 1, pad: 1 },
];
const nameOf = (s: reference.ConvSizes & { type?: DType }): string =>
  `${s.type ?? 'bf16'} ${s.b} x ${s.h} x ${s.w} x ${s.i} -> ${s.o}, ${s.k}x${s.k}, stride ${s.stride}, padding ${s.pad}`;

t.test('forward with bias and residual, and both gradients', (t) =>
  withoutLeaks(t, device, async () => {
    for (const s of shapes) {
      await scope(async () => {
        const { b, h, w, i, o, k, stride, pad, type = 'bf16' } = s;
        const [oh, ow] = [h, w].map((n) => Math.floor((n + 2 * pad - k) / stride) + 1);
        const x = random(1, [b, h, w, i], type);
        const weight = random(2, [o, k, k, i], type);
        const dy = random(3, [b, oh, ow, o], type);
        const bias = random(4, [o], 'f32');
        const residual = random(5, [b, oh, ow, o], type === 'f16' ? 'f16' : 'f32');
        const expected = reference.conv2d(x.values, weight.values, s, dy.values);
        const options = { stride, padding: pad };
        const y = conv2d(x.t, weight.t, bias.t, { ...options, residual: residual.t });
        t.equal(y.dtype, residual.t.dtype);
        const whole = expected.y.map((v, at) => v + bias.values[at % o] + residual.values[at]);
        await assertNear(t, y, whole, rounding[y.dtype], nameOf(s));
        await assertNear(t, conv2d(x.t, weight.t, undefined, options), expected.y, rounding[type], 'nothing else');
        const [dx, dw] = [Tensor.empty([b, h, w, i], type), Tensor.empty([o, k, k, i], 'f32')];
        native.ops.conv2d_dgrad(dy.t.id, weight.t.id, dx.id, stride, pad, pad);
        native.ops.conv2d_wgrad(x.t.id, dy.t.id, dw.id, stride, pad, pad);
        await assertNear(t, dx, expected.dx, rounding[type], 'dx');
        await assertNear(t, dw, expected.dw, rounding.f32, 'dw');
      });
    }
  }),
);

t.test('whole numbers come out exactly', async (t) => {
  for (const type of ['bf16', 'f16'] as const) {
    await scope(async () => {
      const sizes = { b: 1, h: 6, w: 6, i: 8, o: 8, k: 3, stride: 1, pad: 1 };
      const whole = (seed: number, count: number) =>
        Float32Array.from({ length: count }, (_, i) => ((i * 5 + seed * 3) % 7) - 3);
      const [x, w] = [whole(1, 288), whole(2, 576)];
      const expected = reference.conv2d(x, w, sizes, new Float32Array(288));
      const residual = tensor(new Float32Array(288), { shape: [1, 6, 6, 8] });
      const inputs = [tensor(x, { shape: [1, 6, 6, 8], dtype: type }), tensor(w, { shape: [8, 3, 3, 8], dtype: type })];
      const y = conv2d(inputs[0], inputs[1], undefined, { padding: 1, residual });
      t.strictSame(Array.from((await y.data()) as Float32Array), Array.from(expected.y), type);
    });
  }
});

t.test('gradients under autocast', async (t) => {
  for (const low of ['bf16', 'f16'] as const) {
    await withoutLeaks(t, device, async () => {
      const s = { b: 2, h: 6, w: 6, i: 16, o: 8, k: 3, stride: 1, pad: 1 };
      const leaf = (seed: number, shape: number[]) => {
        const made = random(seed, shape, 'f32');
        made.t.requiresGrad = true;
        return made;
      };
      const [x, weight, bias] = [leaf(1, [2, 6, 6, 16]), leaf(2, [8, 3, 3, 16]), leaf(3, [8])];
      const residual = leaf(4, [2, 6, 6, 8]);
      const g = random(5, [2, 6, 6, 8], 'f32');
      const y = autocast(low, () => conv2d(x.t, weight.t, bias.t, { padding: 1, residual: residual.t }));
      t.equal(y.dtype, 'f32');
      y.backward(g.t);
      const [lowX, lowW, lowG] = [x, weight, g].map((v) => rounded(v.values, low));
      const expected = reference.conv2d(lowX, lowW, s, lowG);
      await assertNear(t, x.t.grad, expected.dx, rounding[low], `${low}: dx`);
      await assertNear(t, weight.t.grad, expected.dw, rounding.f32, `${low}: dw`);
      const db = new Float64Array(8);
      for (const [i, v] of g.values.entries()) db[i % 8] += v;
      await assertNear(t, bias.t.grad, db, rounding.f32, `${low}: db`);
      await assertNear(t, residual.t.grad, g.values, 0, `${low}: dresidual`);
      t.strictSame([x.t.grad?.dtype, weight.t.grad?.dtype], ['f32', 'f32']);
      for (const { t: made } of [x, weight, bias, residual]) made.grad?.dispose();
    });
  }
});

t.test('dtypes that do not fit together', async (t) => {
  await scope(async () => {
    const x = random(1, [1, 4, 4, 8], 'bf16').t;
    const w = random(2, [8, 3, 3, 8], 'f32').t;
    t.throws(() => conv2d(x, w), { name: 'DTypeError', message: /weight is f32, expected bf16 as x is/ });
    t.equal(autocast('f16', () => conv2d(x, w)).dtype, 'f16');
  });
});
