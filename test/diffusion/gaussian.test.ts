/**
 * GaussianDiffusion against DiT (goldens/gaussian_process): the forward process, the posterior, the model's
 * distribution, training losses and their gradients, single DDPM and DDIM steps; loss weights; bad input.
 */
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { ddimStep } from '../../lib/diffusion/ddim.js';
import { ddpmStep } from '../../lib/diffusion/ddpm.js';
import {
  GaussianDiffusion,
  type GaussianDiffusionOptions,
  type GaussianNetwork,
} from '../../lib/diffusion/gaussian.js';
import * as F from '../../lib/nn/functional.js';
import { slice } from '../../lib/ops/index.js';
import { noGrad } from '../../lib/scope.js';
import { full, ones, type Tensor, tensor, zeros } from '../../lib/tensor.js';
import { assertClose, assertFails, forEachDevice, loadFixture, toTensor, withoutLeaks } from '../helpers.js';

const golden = loadFixture('goldens/gaussian_process.safetensors');
const twin = loadFixture('samplers.safetensors');
const { a, b, c } = golden.json.config.toy;

const load = (name: string): Tensor => toTensor(golden.tensor(name));
const integers = (name: string): number[] => Array.from(golden.tensor(name).data, Number);
const f32 = async (x: Tensor): Promise<Float32Array> => (await x.data()) as Float32Array;
const close = async (t: Test, x: Tensor | undefined, name: string, tolerance: number): Promise<void> =>
  assertClose(t, x ? await f32(x) : [], golden.f32(name), tolerance, name);

/** The golden's network [a x + b sin(t / 1000), c x], from plain numbers or from leaves. */
const toy = (weights: readonly (Tensor | number)[] = [a, b, c]): GaussianNetwork => ({
  forward: (x, time) => {
    const [wa, wb, wc] = weights as Tensor[];
    const wave = F.sin(F.affine(time.reshape([time.size, 1, 1, 1]), 1 / 1000, 0));
    return F.concat([F.add(F.mul(x, wa), F.mul(wave, wb)), F.mul(x, wc)], 1);
  },
});

t.test('forward process, posterior, model distribution and single steps', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, () =>
      noGrad(async () => {
        const ddpm = new GaussianDiffusion();
        const [x, noise, x0] = ['step.x', 'step.noise', 'loss.x_start'].map(load);
        const steps = integers('step.t');
        await close(t, ddpm.qSample(x, steps, noise), 'qsample.x_t', 3e-7);
        const posterior = ddpm.qPosterior(x0, x, steps);
        await close(t, posterior.mean, 'qposterior.mean', 3e-7);
        await close(t, posterior.variance, 'qposterior.variance', 3e-7);
        await close(t, posterior.logVariance, 'qposterior.log_variance', 3e-7);

        const output = toy().forward(x, tensor(steps));
        for (const [name, clipDenoised] of [
          ['step.noclip', false],
          ['step.clip', true],
        ] as const) {
          const p = ddpm.pMeanVariance(output, x, steps, { clipDenoised });
          await close(t, p.mean, `${name}.mean`, 1e-6);
          await close(t, p.variance, `${name}.variance`, 3e-6);
          await close(t, p.logVariance, `${name}.log_variance`, 1e-6);
          await close(t, p.xStart, `${name}.pred_xstart`, 2e-6);
          // The samplers take one timestep at a time.
          const each = await Promise.all(
            steps.map(async (step, i) => {
              const of = (all: Tensor): Tensor => slice(all, 0, i, i + 1);
              const state = { ddpm, output: of(output), x: of(x), t: step, clipDenoised, noise: () => of(noise) };
              const results = [ddpmStep(state), ddimStep(state, 0), ddimStep(state, 1)];
              return Promise.all(results.map(({ sample }) => f32(sample)));
            }),
          );
          for (const [j, [kind, tolerance]] of (
            [
              ['p_sample', 2e-6],
              // The original's own float32 is off by up to 1.4e-4 here: it takes a difference of nearly equal numbers.
              ['ddim_eta0', clipDenoised ? 1e-4 : 5e-6],
              ['ddim_eta1', clipDenoised ? 2e-4 : 5e-6],
            ] as const
          ).entries()) {
            const all = each.flatMap((results) => Array.from(results[j]));
            assertClose(t, all, golden.f32(`${name}.${kind}`), tolerance, `${name}.${kind}`);
          }
        }

        // One timestep for the whole batch is the same as that timestep for each sample.
        const [one, many] = [ddpm.pMeanVariance(output, x, 7), ddpm.pMeanVariance(output, x, [7, 7, 7, 7])];
        for (const key of ['mean', 'variance', 'logVariance', 'xStart'] as const) {
          assertClose(t, await f32(one[key]), await f32(many[key]), 5e-7, `${key} by number and by list`);
        }
        await close(t, ddpm.predictXStart(slice(output, 1, 0, 4), x, steps), 'step.noclip.pred_xstart', 2e-6);
      }),
    );
  }),
);

t.test('training losses and their gradients', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      const [x0, noise] = [load('loss.x_start'), load('loss.noise')];
      const losses = Object.entries<{ respacing: string; loss: string }>(golden.json.config.losses);
      t.equal(losses.length, 4);
      for (const [name, { respacing, loss: kind }] of losses) {
        const ddpm = new GaussianDiffusion({ respacing, rescaledVlb: kind === 'RESCALED_MSE' });
        const steps = integers(respacing ? 'loss_resp.t' : 'loss.t');
        const xt = ddpm.qSample(x0, steps, noise);
        await close(t, xt, `${name}.x_t`, 3e-7);
        /** RESCALED_KL is the variational term alone, times the number of steps. */
        const losses = (network: GaussianNetwork): { loss: Tensor; mse?: Tensor; vb?: Tensor } =>
          kind === 'RESCALED_KL'
            ? {
                loss: F.affine(
                  ddpm.variationalBound(
                    network.forward(xt, tensor(steps.map((i) => ddpm.timesteps[i]))),
                    x0,
                    xt,
                    steps,
                  ),
                  ddpm.numTimesteps,
                  0,
                ),
              }
            : ddpm.trainingLosses(network, x0, steps, { noise });

        const leaves = [a, b, c].map((value: number) => tensor(value, { requiresGrad: true }));
        const result = losses(toy(leaves));
        await close(t, result.loss, `${name}.loss`, 2e-6);
        for (const term of ['mse', 'vb'] as const) {
          if (!golden.has(`${name}.${term}`)) continue;
          await close(t, result[term], `${name}.${term}`, 2e-6);
          t.notOk(result[term]?.requiresGrad, `${term} is detached`);
        }
        result.loss.mean().backward();
        const grads = await Promise.all(leaves.map(async ({ grad }) => (await grad?.item()) ?? Number.NaN));
        assertClose(t, grads, golden.f32(`${name}.grad_abc`), 2e-5, `${name}: gradient of a, b, c`);

        // The network's output as a leaf: which half each term reaches.
        const output = toTensor(golden.tensor(`${name}.model_output`), { requiresGrad: true });
        losses({ forward: () => output })
          .loss.mean()
          .backward();
        const grad = output.grad ? await f32(output.grad) : new Float32Array();
        const expected = golden.f32(`${name}.grad_model_output`);
        // At t = 0 the likelihood's gradient cancels: the original's own float32 is off by 4e-5.
        assertClose(t, grad, expected, 3e-4, `${name}.grad_model_output`);
        const size = expected.length / steps.length;
        const later = (_: number, i: number): boolean => steps[Math.floor(i / size)] > 0;
        assertClose(t, grad.filter(later), expected.filter(later), 2e-6, `${name}.grad_model_output, t > 0`);
        const model = toy().forward(xt, tensor(steps.map((i) => ddpm.timesteps[i])));
        await close(t, model, `${name}.model_output`, 3e-7);
        for (const leaf of [...leaves, output]) leaf.grad?.dispose();
      }
    });
  }),
);

t.test('timesteps of training reach the network; weights; variance that is not learned', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    const [x0, noise] = [load('loss.x_start'), load('loss.noise')];
    const steps = integers('loss_resp.t');
    const ddpm = new GaussianDiffusion({ respacing: '250' });
    const y = tensor([3, 1, 2, 0], { dtype: 'i64' });
    let asked: Promise<Float32Array> | undefined;
    const network: GaussianNetwork = {
      forward: (x, time, labels) => {
        asked = f32(time);
        t.equal(labels, y, 'labels are passed on');
        return toy().forward(x, time);
      },
    };
    const plain = ddpm.trainingLosses(network, x0, steps, { noise, y });
    t.strictSame(
      Array.from((await asked) ?? []),
      steps.map((i) => ddpm.timesteps[i]),
    );

    // Importance by signal-to-noise ratio touches the noise term alone.
    const all = integers('loss.t');
    const weights = all.map((i) => Number(twin.tensor('min_snr_5').data[i]));
    const expected = all.map((_, i) => weights[i] * golden.f32('mse.mse')[i] + golden.f32('mse.vb')[i]);
    const weighted = new GaussianDiffusion({ weighting: 'min-snr-5' }).trainingLosses(toy(), x0, all, { noise });
    assertClose(t, await f32(weighted.loss), expected, 2e-6, 'min-SNR');
    await close(t, weighted.mse, 'mse.mse', 1e-6);
    t.ok(weights.some((w) => w < 0.1) && weights.some((w) => w === 1), 'the weights matter here');
    assertClose(t, await f32(plain.loss), golden.f32('mse_resp.loss'), 2e-6, 'uniform');

    // Without a learned variance the network returns noise alone, and there is no variational term.
    const fixed = new GaussianDiffusion({ respacing: '250', learnSigma: false });
    const noiseOnly: GaussianNetwork = { forward: (x, time) => slice(toy().forward(x, time), 1, 0, 4) };
    const { loss, mse, vb } = fixed.trainingLosses(noiseOnly, x0, steps, { noise });
    t.equal(vb, undefined);
    await close(t, loss, 'mse_resp.mse', 1e-6);
    await close(t, mse, 'mse_resp.mse', 1e-6);
    const shape = [2, 1, 1, 1];
    const { variance } = fixed.pMeanVariance(zeros(shape), ones(shape), [0, 9]);
    assertClose(t, await f32(variance), [fixed.posteriorVariance[1], fixed.betas[9]], 1e-6, 'fixed variance');
  });
});

t.test('a sample whose timestep is 0 does not change its neighbours', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    const ddpm = new GaussianDiffusion();
    const [x0, noise] = [load('loss.x_start'), load('loss.noise')];
    const vb = async (steps: number[]): Promise<Float32Array> =>
      f32(ddpm.trainingLosses(toy(), x0, steps, { noise }).vb as Tensor);
    const mixed = await vb([0, 500, 1, 0]);
    const [zero, rest] = [await vb([0, 0, 0, 0]), await vb([3, 500, 1, 9])];
    assertClose(t, mixed, [zero[0], rest[1], rest[2], zero[3]], 1e-7, 'likelihood at 0, divergence elsewhere');
  });
});

t.test('what does not fit is one typed error', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    const ddpm = new GaussianDiffusion({ respacing: '50' });
    const x = ones([2, 4, 2, 2]);
    const losses = (t: number[], options: { noise?: Tensor; network?: GaussianNetwork } = {}) =>
      ddpm.trainingLosses(options.network ?? toy(), x, t, { noise: options.noise ?? x });
    await assertFails(t, () => losses([0]), 'OptionError', /1 timesteps for a batch of 2/);
    await assertFails(t, () => losses([0, 50]), 'OptionError', /timestep 50, expected an integer from 0 to 49/);
    await assertFails(t, () => losses([0, 1.5]), 'OptionError', /timestep 1.5/);
    await assertFails(t, () => losses([-1, 1]), 'OptionError', /timestep -1/);
    await assertFails(t, () => losses([0, 1], { noise: ones([1, 4, 2, 2]) }), 'ShapeError', /noise is \[1, 4, 2, 2\]/);
    const narrow: GaussianNetwork = { forward: (y) => F.affine(y, 1, 0) };
    await assertFails(
      t,
      () => losses([0, 1], { network: narrow }),
      'ShapeError',
      /the network's output \(learnSigma true\) is \[2, 4, 2, 2\], expected \[2, 8, 2, 2\]/,
    );
    const options: GaussianDiffusionOptions = { learnSigma: false };
    const wide = (): unknown => new GaussianDiffusion(options).pMeanVariance(full([2, 8, 2, 2], 0), x, 0);
    await assertFails(t, wide, 'ShapeError', /learnSigma false\) is \[2, 8, 2, 2\], expected \[2, 4, 2, 2\]/);
  });
});
