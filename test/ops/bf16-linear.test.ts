/** linear() with a bf16 weight is linear() with that weight widened: bf16 to f32 is exact, so only the order of sums may differ. */
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { linear, mlp } from '../../lib/ops/linear.js';
import { randn } from '../../lib/ops/random.js';
import { noGrad, scope } from '../../lib/scope.js';
import { assertClose, forEachDevice, withoutLeaks } from '../helpers.js';

t.test('a bf16 weight multiplies as its f32 copy does', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      // Thin ones, tails in every dimension, several blocks of k, and the size of a DiffiT-XL projection.
      for (const [m, n, k] of [
        [1, 1, 1],
        [1, 130, 200],
        [3, 17, 65],
        [2, 1152, 1152],
        [37, 29, 401],
        [70, 3, 900],
        [256, 288, 1152],
      ]) {
        await scope(async () => {
          const weight = randn([n, k], { seed: 1 }).to('bf16');
          const [x, bias, residual] = [randn([m, k], { seed: 2 }), randn([n], { seed: 3 }), randn([m, n], { seed: 4 })];
          const options = { activation: 'silu', residual } as const;
          const expected = await linear(x, weight.to('f32'), bias, options).data();
          const y = await linear(x, weight, bias, options).data();
          assertClose(t, y as Float32Array, expected as Float32Array, 2e-6, `${m} x ${n} x ${k}`);
        });
      }
    });
  }),
);

t.test('it has no gradient, and says so', async (t) =>
  scope(async () => {
    const weight = randn([4, 3]).to('bf16');
    const x = randn([2, 3], { requiresGrad: true });
    t.throws(() => linear(x, weight), { name: 'DTypeError', message: /bf16 weight has no gradient/ });
    t.strictSame(noGrad(() => linear(x, weight)).shape, [2, 4]);
    const other = { weight: randn([5, 4]) };
    const both = () => mlp(x, { weight: randn([5, 3]) }, { weight: randn([2, 5]).to('bf16') }, { activation: 'silu' });
    t.throws(() => mlp(x, { weight }, other, { activation: 'silu' }), {
      message: /mlp fc1: a bf16 weight has no gradient/,
    });
    t.throws(both, { message: /mlp fc2: a bf16 weight has no gradient/ });
    t.throws(() => linear(x, weight.to('f16')), { name: 'DTypeError', message: /weight is f16, expected f32/ });
  }),
);
