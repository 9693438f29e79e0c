/** Twenty Adam steps on the EDM loss equal the PyTorch twin's, from the same weights, images, sigmas and noise. */
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { edmLoss } from '../../lib/diffusion/edm.js';
import { ImageDiffiT } from '../../lib/models/image-diffit.js';
import { Adam } from '../../lib/optim/index.js';
import { scope } from '../../lib/scope.js';
import {
  forEachDevice,
  loadFixture,
  maxElementError,
  maxRelativeError,
  toTensor,
  toTensors,
  withoutLeaks,
} from '../helpers.js';

const fixture = loadFixture('train_image20.safetensors');

/** The k rows of the attention's projections have gradient 0 up to rounding, which Adam turns into steps of lr. */
function withoutKeys(name: string, data: Float32Array): Float32Array {
  if (!/qkv\.bias$|qkv_temb\.(weight|bias)$/.test(name)) return data;
  const third = data.length / 3;
  return Float32Array.of(...data.subarray(0, third), ...data.subarray(2 * third));
}

t.test('every loss, and every weight after the last step', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      const model = new ImageDiffiT(fixture.json.config);
      model.loadStateDict(toTensors(fixture.group('sd0.')));
      const { lr, betas, eps } = fixture.json.optimizer;
      const optimizer = new Adam(model.namedParameters(), { lr, betas, eps });
      const [images, rndNormal, noise, labels] = ['images', 'rnd_normal', 'noise', 'labels'].map((key) =>
        toTensor(fixture.tensor(`in.${key}`)),
      );
      const losses: number[] = [];
      for (let step = 0; step < 20; step++) {
        const loss = scope(() => {
          const [y, r, n, l] = [images, rndNormal, noise, labels].map((x) =>
            x.slice(0, step, step + 1).reshape(x.shape.slice(1)),
          );
          return edmLoss(model, y, { rndNormal: r, noise: n, labels: l }).loss;
        });
        loss.backward();
        optimizer.step();
        optimizer.zeroGrad();
        losses.push(await loss.item());
      }
      const error = maxElementError(losses, fixture.f32('losses'));
      t.ok(
        error <= 2e-6,
        `20 losses from ${losses[0].toFixed(3)} to ${losses[19].toFixed(3)}, relative error ${error.toExponential(1)}`,
      );
      const errors = new Map<string, number>();
      for (const [name, value] of Object.entries(model.stateDict())) {
        const [actual, expected] = [(await value.data()) as Float32Array, fixture.f32(`final.${name}`)];
        errors.set(name, maxRelativeError(withoutKeys(name, actual), withoutKeys(name, expected)));
      }
      const [name, worst] = [...errors].reduce((a, b) => (b[1] > a[1] ? b : a));
      t.ok(worst <= 1e-5, `${errors.size} weights after 20 steps, largest error ${worst.toExponential(1)} in ${name}`);
      optimizer.dispose();
      model.dispose();
    });
  }),
);
