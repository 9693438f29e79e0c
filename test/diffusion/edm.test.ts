/**
 * EDM against NVlabs/edm (goldens/edm): noise levels, preconditioning, loss, the deterministic and the churned Heun
 * trajectory step by step; aborting; independence of batch size and threads.
 */
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { cpuVariants, type DeviceName, memory, setDefaultDevice, setNumThreads } from '../../lib/device.js';
import {
  denoise,
  type EdmNetwork,
  edmLoss,
  edmSigmas,
  type SampleEdmOptions,
  sampleEdm,
} from '../../lib/diffusion/edm.js';
import { ImageDiffiT } from '../../lib/models/image-diffit.js';
import * as F from '../../lib/nn/functional.js';
import { randn } from '../../lib/ops/random.js';
import { noGrad, scope } from '../../lib/scope.js';
import { full, ones, type Tensor, tensor, zeros } from '../../lib/tensor.js';
import {
  assertClose,
  assertFails,
  forEachDevice,
  loadFixture,
  maxRelativeError,
  numbers,
  settledMemory,
  toTensor,
  withoutLeaks,
} from '../helpers.js';

const golden = loadFixture('goldens/edm.safetensors');
const { p, q } = golden.json.config;

/** The golden's network F(x, c) = tanh(p x + q c), from plain numbers or from leaves. */
const toy = (a: Tensor | number = p, b: Tensor | number = q): EdmNetwork => ({
  forward: (x, cNoise) =>
    F.tanh(F.add(F.mul(x, a as Tensor), F.mul(cNoise.reshape([cNoise.size, 1, 1, 1]), b as Tensor))),
});

const f32 = async (x: Tensor): Promise<Float32Array> => (await x.data()) as Float32Array;
/** Entry i of a stack [n, ...]. */
function at(name: string, i: number): Float32Array {
  const size = golden.f32(name).length / golden.tensor(name).shape[0];
  return golden.f32(name).subarray(i * size, (i + 1) * size);
}

t.test('noise levels', async (t) => {
  for (const [name, steps] of [
    ['sched0', 18],
    ['sched1', 40],
  ] as const) {
    const expected = golden.tensor(`${name}.t_steps`).data;
    const sigmas = edmSigmas(steps);
    t.equal(sigmas.length, steps + 1);
    t.equal(sigmas[steps], 0);
    t.ok(maxRelativeError(sigmas, expected) < 1e-14, `${steps} levels equal EDM's`);
  }
  t.strictSame(
    edmSigmas(1, 0.01, 5).map((s) => Math.round(s * 1e9) / 1e9),
    [5, 0],
    'one level',
  );
  for (const [make, message] of [
    [() => edmSigmas(0), /steps is 0, expected an integer of at least 1/],
    [() => edmSigmas(1.5), /steps is 1.5/],
    [() => edmSigmas(5, 0, 80), /0 < sigmaMin < sigmaMax, got 0 and 80/],
    [() => edmSigmas(5, 2, 1), /got 2 and 1/],
    [() => edmSigmas(5, 0.1, 1, 0), /rho is 0/],
  ] as const) {
    await assertFails(t, make, 'OptionError', message);
  }
});

t.test('preconditioning', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, () =>
      noGrad(async () => {
        const [x, sigma] = ['pre.x', 'pre.sigma'].map((name) => toTensor(golden.tensor(name)));
        assertClose(t, await f32(denoise(toy(), x, sigma)), golden.f32('pre.D_x'), 1e-6, 'D(x; sigma)');

        // Networks that give 0, 1 and their own input lay the four scalings open.
        const shape = [6, 1, 1, 1];
        const constant = (value: number): EdmNetwork => ({ forward: (y) => F.affine(y, 0, value) });
        const skip = await f32(denoise(constant(0), ones(shape), sigma));
        assertClose(t, skip, golden.f32('pre.c_skip'), 1e-6, 'c_skip');
        assertClose(t, await f32(denoise(constant(1), zeros(shape), sigma)), golden.f32('pre.c_out'), 1e-6, 'c_out');
        const identity = await f32(denoise({ forward: (y) => y.add(0) }, ones(shape), sigma));
        const cIn = identity.map((v, i) => (v - skip[i]) / golden.f32('pre.c_out')[i]);
        assertClose(t, cIn, golden.f32('pre.c_in'), 1e-5, 'c_in');
        const noise = await f32(denoise({ forward: (_, c) => c.reshape(shape) }, zeros(shape), sigma));
        assertClose(
          t,
          noise.map((v, i) => v / golden.f32('pre.c_out')[i]),
          golden.f32('pre.c_noise'),
          1e-6,
          'c_noise',
        );
      }),
    );
  }),
);

t.test('loss and its gradient', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      const [images, noise] = ['loss.images', 'loss.noise'].map((name) => toTensor(golden.tensor(name)));
      const rndNormal = tensor(golden.f32('loss.rnd_normal'));
      const leaves = [p, q].map((value) => tensor(value, { requiresGrad: true }));
      const { loss, perSample } = edmLoss(toy(leaves[0], leaves[1]), images, { rndNormal, noise });
      assertClose(t, [await loss.item()], golden.f32('loss.mean'), 1e-6, 'mean');
      const map = golden.f32('loss.map');
      const size = map.length / 6;
      const means = Array.from(
        { length: 6 },
        (_, b) => map.subarray(b * size, (b + 1) * size).reduce((s, v) => s + v, 0) / size,
      );
      assertClose(t, await f32(perSample), means, 1e-6, 'per sample');
      loss.backward();
      const grads = await Promise.all(
        leaves.map(async ({ grad }) => ((await grad?.item()) ?? Number.NaN) * map.length),
      );
      assertClose(t, grads, golden.f32('loss.grad_pq'), 2e-6, 'gradient of p and q');
      for (const { grad } of leaves) grad?.dispose();
      t.notOk(perSample.requiresGrad);
    });
  }),
);

/** Runs a sampler to its end; each step against the golden's. The last image. */
async function follow(t: Test, name: string, options: SampleEdmOptions): Promise<void> {
  const latents = toTensor(golden.tensor(`${name}.latents`));
  const errors = { sample: 0, denoised: 0 };
  let count = 0;
  for await (const { step, steps, sample, denoised } of sampleEdm(toy(), latents, options)) {
    t.equal(step, ++count);
    t.equal(steps, 18);
    errors.sample = Math.max(errors.sample, maxRelativeError(await f32(sample), at(`${name}.x_cur`, step)));
    errors.denoised = Math.max(
      errors.denoised,
      maxRelativeError(await f32(denoised), at(`${name}.denoised`, step - 1)),
    );
    if (step < steps) continue;
    t.ok(maxRelativeError(await f32(sample), golden.tensor(`${name}.final_f64`).data) < 2e-6, 'the final image');
    sample.dispose();
  }
  t.equal(count, 18);
  for (const [what, error] of Object.entries(errors))
    t.ok(error < 2e-6, `${what} of every step, error ${error.toExponential(1)}`);
}

t.test('18 Heun steps, deterministic and with churn, equal the original step by step', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      await follow(t, 'det', {});
      const { S_churn: churn, S_min: sMin, S_max: sMax, S_noise: sNoise } = golden.json.config.sto;
      const shape = golden.tensor('sto.latents').shape;
      await follow(t, 'sto', {
        churn,
        sMin,
        sMax,
        sNoise,
        churnNoise: (step) => tensor(at('sto.noises', step), { shape }),
      });

      // Euler's method by hand over the same levels, and one step, which is nothing but the denoiser.
      const sigmas = edmSigmas(18);
      let x = noGrad(() => F.affine(toTensor(golden.tensor('det.latents')), 80, 0));
      for (let i = 0; i < 18; i++) {
        const ratio = (sigmas[i + 1] - sigmas[i]) / sigmas[i];
        x = noGrad(() =>
          F.linearCombination([
            [1 + ratio, x],
            [-ratio, denoise(toy(), x, full([2], sigmas[i]))],
          ]),
        );
      }
      assertClose(t, await f32(x), Array.from(golden.tensor('euler.final_f64').data, Number), 2e-6, '18 Euler steps');
      const noise = randn([2, 3, 4, 4], { seed: 1 });
      for await (const { sample } of sampleEdm(toy(), noise, { steps: 1, sigmaMax: 3, sigmaMin: 1 })) {
        assertClose(
          t,
          await f32(sample),
          await f32(denoise(toy(), F.affine(noise, 3, 0), full([2], 3))),
          1e-6,
          'one step',
        );
        sample.dispose();
      }
    });
  }),
);

t.test('an abort acts within a step, with the reason given, and leaves nothing', async (t) => {
  const noise = randn([1, 1, 4, 4], { seed: 1 });
  const before = (await settledMemory('cpu')).liveBuffers;
  const reason = new Error('enough');
  const abort = new AbortController();
  let calls = 0;
  const network: EdmNetwork = {
    forward: (...args) => {
      if (++calls === 5) abort.abort(reason); // in the third step's first evaluation
      return toy().forward(...args);
    },
  };
  const steps: number[] = [];
  await t.rejects(async () => {
    for await (const { step } of sampleEdm(network, noise, { signal: abort.signal })) steps.push(step);
  }, reason);
  t.strictSame(steps, [1, 2]);
  t.equal(calls, 6, 'the step under way is finished, no other is begun');
  t.equal(memory('cpu').liveBuffers, before, 'aborted');

  calls = 100;
  await t.rejects(async () => {
    for await (const _ of sampleEdm(network, noise, { signal: abort.signal })) t.fail('a step after the abort');
  }, reason);
  t.equal(calls, 100, 'aborted before the start: the network is not asked');
  for await (const { step } of sampleEdm(toy(), noise)) if (step === 4) break;
  t.equal(memory('cpu').liveBuffers, before, 'broken off');
  const broken: EdmNetwork = {
    forward: (x) => {
      x.add(1);
      throw new RangeError('no network');
    },
  };
  await t.rejects(async () => {
    for await (const _ of sampleEdm(broken, noise)) t.fail('a step');
  }, new RangeError('no network'));
  t.equal(memory('cpu').liveBuffers, before, 'a network that throws');
  noise.dispose();
});

t.test('guidance: D = D_null + s (D_label - D_null), per sample', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      // F(x; label) = slope[label] x: guided by s it is the network with slope[null] + s (slope[label] - slope[null]).
      const slopes = [0.3, -0.5, 0.1];
      const linear = (table: number[]): EdmNetwork => {
        const weights = tensor(new Float32Array(table), { shape: [table.length, 1] });
        const slope = (labels: Tensor): Tensor => F.embedding(weights, labels).reshape([labels.size, 1, 1, 1]);
        return { nullClass: 2, forward: (x, _, labels) => F.mul(x, slope(labels as Tensor)) };
      };
      const cfgScale = 2.5;
      const noise = randn([4, 1, 3, 3], { seed: 5 });
      const labels = tensor(new BigInt64Array([0n, 1n, 1n, 0n]));
      const run = async (network: EdmNetwork, options: SampleEdmOptions): Promise<Float32Array> => {
        let last: Tensor | undefined;
        for await (const { sample } of sampleEdm(network, noise, { steps: 4, labels, ...options })) last = sample;
        return f32(last as Tensor);
      };
      await scope(async () => {
        const expected = await run(linear(slopes.map((k) => 0.1 + cfgScale * (k - 0.1))), {});
        assertClose(t, await run(linear(slopes), { cfgScale }), expected, 1e-5, 'guided trajectory');
        assertClose(t, await run(linear(slopes), { cfgScale: 1 }), await run(linear(slopes), {}), 0, 'scale 1 is none');
        await t.rejects(run({ forward: (x) => x }, { cfgScale }), { name: 'OptionError', message: /null class/ });
        await t.rejects(run(linear(slopes), { cfgScale, labels: undefined }), { message: /needs labels/ });
      });
    });
  }),
);

t.test('sampling records nothing and leaves its input alone', async (t) => {
  const weight = tensor(0.7, { requiresGrad: true });
  const noise = randn([2, 1, 4, 4], { seed: 2 });
  const bytes = await noise.bytes();
  for await (const { sample, denoised } of sampleEdm(toy(weight), noise, { steps: 3 })) {
    t.notOk(sample.requiresGrad || denoised.requiresGrad);
  }
  t.strictSame(await noise.bytes(), bytes);
});

t.test('a seed names an image: at any batch size, place in the batch, thread count and instruction set', async (t) => {
  const config = {
    imgResolution: 8,
    inChannels: 2,
    baseChannels: 16,
    channelMult: [1, 2],
    numBlocks: 1,
    windowSize: 4,
    timeDim: 32,
    numClasses: 3,
  };
  const sample = async (device: DeviceName, first: number, count: number): Promise<Float32Array> => {
    setDefaultDevice(device);
    const model = new ImageDiffiT(config).eval();
    const state = Object.entries(model.stateDict()).map(([name, { shape, size }], i) => [
      name,
      tensor(numbers(i, size, 0.15), { shape }),
    ]);
    model.loadStateDict(Object.fromEntries(state));
    const key = { seed: 7, firstSample: first };
    const labels = tensor([0, 1, 2, 1].slice(first, first + count), { dtype: 'i64' });
    const noise = randn([count, 2, 8, 8], key);
    let image: Float32Array = new Float32Array();
    for await (const step of sampleEdm(model, noise, { ...key, steps: 4, churn: 2, labels })) {
      if (step.step === step.steps) image = await f32(step.sample);
    }
    model.dispose();
    return image;
  };
  const [best, ...others] = cpuVariants();
  setNumThreads(1);
  const alone = await sample('cpu', 0, 4); // 'cpu' is opened here, with one thread
  setNumThreads(3);
  const threaded = await sample(best, 0, 4);
  t.strictSame(threaded, alone, 'one thread and three give the same bits');
  t.ok(alone.every(Number.isFinite) && maxRelativeError(alone, new Float32Array(alone.length)) > 0);
  for (const [first, count] of [
    [0, 1],
    [1, 2],
    [3, 1],
  ]) {
    const part = await sample('cpu', first, count);
    assertClose(t, part, alone.slice(first * 128, (first + count) * 128), 2e-6, `images ${first} to ${first + count}`);
  }
  for (const device of others) assertClose(t, await sample(device, 0, 4), alone, 1e-4, device);
  setNumThreads(0);
  setDefaultDevice('cpu');
});
