/** DIFFIT_TF32=1: f32 matrix products and convolutions on tensor cores, with operands of 10 bits of mantissa. A process of its own: it is read once. */
process.env.DIFFIT_TF32 = '1';

import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { conv2d } from '../../lib/ops/conv.js';
import { matmul } from '../../lib/ops/linear.js';
import { scope } from '../../lib/scope.js';
import { assertNear, device, normError, random, rounding } from './lowp.js';
import * as reference from './reference.js';

t.before(() => setDefaultDevice(device));
/** Rounded to the nearest 10 bits of mantissa, ties away from zero, as cvt.rna does it. */
function tf32(values: Float64Array): Float64Array {
  const bits = new Uint32Array(Float32Array.from(values).buffer).map((v) => ((v + 0x1000) & 0xffffe000) >>> 0);
  return Float64Array.from(new Float32Array(bits.buffer));
}

t.test('matmul in all transpositions, fast and number by number', async (t) => {
  for (const [m, n, k] of [
    [40, 72, 36],
    [33, 29, 21],
    [256, 260, 20],
  ]) {
    for (const [transA, transB] of [
      [false, false],
      [false, true],
      [true, false],
      [true, true],
    ]) {
      await scope(async () => {
        const a = random(1, transA ? [k, m] : [m, k], 'f32');
        const b = random(2, transB ? [n, k] : [k, n], 'f32');
        const [left, right] = [tf32(a.values), tf32(b.values)];
        const expected = reference.matmul(
          transA ? reference.transpose(left, k, m) : left,
          transB ? reference.transpose(right, n, k) : right,
          m,
          k,
          n,
        );
        const y = matmul(a.t, b.t, { transA, transB });
        const name = `${m} x ${n} x ${k}${transA ? ' a^T' : ''}${transB ? ' b^T' : ''}`;
        await assertNear(t, y, expected, rounding.f32, name);
      });
    }
  }
});

t.test('it is TF32, not f32', async (t) => {
  await scope(async () => {
    const [a, b] = [random(1, [16, 64], 'f32'), random(2, [64, 16], 'f32')];
    const error = normError(await matmul(a.t, b.t).data(), reference.matmul(a.values, b.values, 16, 64, 16));
    t.ok(error > 2e-5 && error < 1e-3, `error against f32: ${error}`);
  });
});

t.test('convolution and its gradients', async (t) => {
  for (const [i, o, stride] of [
    [8, 12, 1],
    [3, 5, 2],
  ]) {
    await scope(async () => {
      const s = { b: 2, h: 6, w: 5, i, o, k: 3, stride, pad: 1 };
      const [x, w] = [random(1, [2, 6, 5, i], 'f32'), random(2, [o, 3, 3, i], 'f32')];
      x.t.requiresGrad = w.t.requiresGrad = true;
      const y = conv2d(x.t, w.t, undefined, { stride, padding: 1 });
      const g = random(3, [...y.shape], 'f32');
      y.backward(g.t);
      const expected = reference.conv2d(tf32(x.values), tf32(w.values), s, tf32(g.values));
      await assertNear(t, y, expected.y, rounding.f32, 'y');
      await assertNear(t, x.t.grad, expected.dx, rounding.f32, 'dx');
      await assertNear(t, w.t.grad, expected.dw, rounding.f32, 'dw');
      for (const leaf of [x, w]) leaf.t.grad?.dispose();
    });
  }
});
