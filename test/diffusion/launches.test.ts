/** Sampling and training with replayed graphs: the same bits, most network evaluations in one launch, few operations besides. */
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { defaultDevice, setDefaultDevice, synchronize } from '../../lib/device.js';
import { sampleDdim } from '../../lib/diffusion/ddim.js';
import { sampleDdpm } from '../../lib/diffusion/ddpm.js';
import { sampleDpmSolver } from '../../lib/diffusion/dpm-solver.js';
import { type EdmNetwork, sampleEdm } from '../../lib/diffusion/edm.js';
import { GaussianDiffusion, type GaussianNetwork } from '../../lib/diffusion/gaussian.js';
import type { SamplerStep } from '../../lib/diffusion/sampler.js';
import { graphStats, setGraphs } from '../../lib/graph.js';
import { LatentDiffiT } from '../../lib/models/latent-diffit.js';
import { type NativeOps, native } from '../../lib/native.js';
import * as F from '../../lib/nn/functional.js';
import { manualSeed, randn } from '../../lib/ops/random.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import type { StepReport } from '../../lib/train/index.js';
import { device } from '../ops/lowp.js';
import { bits, tinyTrainer } from '../train/fixtures.js';

const ddpm = new GaussianDiffusion({ respacing: '12' });

/** Runs `fn` with a CUDA device as the default one. */
const onDevice = async (fn: () => Promise<void>): Promise<void> => {
  const before = defaultDevice();
  setDefaultDevice(device);
  try {
    await fn();
  } finally {
    setDefaultDevice(before);
  }
};

/** Every sample and preview as hexadecimal bytes. */
async function trace(steps: AsyncGenerator<SamplerStep>): Promise<string[]> {
  const seen: string[] = [];
  for await (const { step, steps: all, sample, denoised } of steps) {
    seen.push(Buffer.from(await sample.bytes()).toString('hex'), Buffer.from(await denoised.bytes()).toString('hex'));
    if (step === all) sample.dispose();
  }
  return seen;
}

/** The same with graphs and without; at least `least` parts of it replayed. */
async function compare(t: Test, name: string, least: number, run: () => Promise<unknown>): Promise<void> {
  setGraphs(false);
  const expected = await run();
  setGraphs(true);
  await synchronize(device);
  const before = graphStats(device);
  t.same(await run(), expected, `${name}: the same bits`);
  await synchronize(device);
  const { replayed, plain } = graphStats(device);
  const counts = `${replayed - before.replayed} replayed, ${plain - before.plain} plain`;
  t.ok(replayed - before.replayed >= least, `${name}: ${counts}`);
}

const channel = (x: Tensor): Tensor => x.reshape([x.size, 1, 1, 1]);
/** A network for noise and variance; with twice as many labels it repeats the images. */
const toy: GaussianNetwork = {
  nullClass: 3,
  forward: (images, times, labels) => {
    const y = channel((labels as Tensor).to('f32'));
    const twice = y.size > images.shape[0];
    const [x, time] = twice ? [F.concat([images, images], 0), F.concat([times, times], 0)] : [images, times];
    const eps = F.add(F.mul(x, F.affine(y, 0.03, 0.9)), F.sin(F.affine(channel(time), 1e-3, 0)));
    return F.concat([eps, F.tanh(x)], 1);
  },
};
const edmToy: EdmNetwork = {
  nullClass: 3,
  forward: (x, level, labels) =>
    F.add(F.tanh(x), F.mul(channel(level), F.affine(channel((labels as Tensor).to('f32')), 0.1, 0.2))),
};

t.test('samplers', (t) =>
  onDevice(async () => {
    const [noise, y] = [randn([2, 4, 4, 4], { seed: 1 }), tensor([0, 2], { dtype: 'i64' })];
    for (const cfgScale of [1, 2.5]) {
      const options = { ddpm, y, cfgScale, seed: 4, guidanceInterval: [200, 1000] as const };
      await compare(t, `DDPM at ${cfgScale}`, 6, () => trace(sampleDdpm(toy, noise, options)));
      await compare(t, `DDIM at ${cfgScale}`, 6, () => trace(sampleDdim(toy, noise, { ...options, eta: 1 })));
      await compare(t, `DPM-Solver at ${cfgScale}`, 6, () => trace(sampleDpmSolver(toy, noise, options)));
      const edm = { steps: 10, labels: y, cfgScale };
      await compare(t, `EDM at ${cfgScale}`, 11, () => trace(sampleEdm(edmToy, noise, edm)));
      await compare(t, `EDM at ${cfgScale} with churn`, 9, () => trace(sampleEdm(edmToy, noise, { ...edm, churn: 5 })));
    }
    noise.dispose();
    y.dispose();
  }),
);

t.test('a model that is conditioned once, and sampled again', (t) =>
  onDevice(async () => {
    manualSeed(3);
    const size = { inputSize: 4, patchSize: 2, inChannels: 4, hiddenSize: 32, depth: 1, numHeads: 2, numClasses: 3 };
    const model = new LatentDiffiT(size).eval();
    const noise = randn([2, 4, 4, 4], { seed: 1 });
    const y = tensor([0, 2], { dtype: 'i64' });
    const run = () => trace(sampleDdpm(model, noise, { ddpm, y, cfgScale: 3 }));
    await compare(t, 'the first time', 8, run);
    await compare(t, 'the second time', 10, run);
    for (const parameter of model.parameters()) parameter.dispose();
  }),
);

t.test('operations per step besides the network', async (t) => {
  const counts: Partial<Record<keyof NativeOps, number>> = {};
  const real = native.ops;
  let inNetwork = 0;
  native.ops = new Proxy(real, {
    get: (ops, name: keyof NativeOps) => {
      if (inNetwork === 0) counts[name] = (counts[name] ?? 0) + 1;
      return ops[name];
    },
  });
  t.teardown(() => {
    native.ops = real;
  });
  const hidden = <N extends EdmNetwork | GaussianNetwork>(network: N): N => ({
    ...network,
    forward: (...args: Parameters<N['forward']>) => {
      inNetwork++;
      try {
        return (network.forward as (...args: unknown[]) => Tensor)(...args);
      } finally {
        inNetwork--;
      }
    },
  });
  const [noise, y] = [randn([2, 4, 4, 4], { seed: 1 }), tensor([0, 2], { dtype: 'i64' })];
  const count = async (steps: AsyncGenerator<SamplerStep>): Promise<Record<string, number>[]> => {
    const perStep: Record<string, number>[] = [];
    for (const name in counts) delete counts[name as keyof NativeOps];
    for await (const { step, steps: all, sample } of steps) {
      perStep.push({ ...counts });
      for (const name in counts) delete counts[name as keyof NativeOps];
      if (step === all) sample.dispose();
    }
    return perStep;
  };
  for (const sampler of [sampleDdpm, sampleDdim, sampleDpmSolver]) {
    for (const cfgScale of [1, 3]) {
      const [, second] = await count(sampler(hidden(toy), noise, { ddpm, y, cfgScale }));
      t.same(second, { fill: 1, sampler_step: 1 }, `${sampler.name} at ${cfgScale}: the timestep, and one kernel`);
    }
  }
  for (const cfgScale of [1, 3]) {
    const [, second] = await count(sampleEdm(hidden(edmToy), noise, { steps: 4, labels: y, cfgScale }));
    const joined = cfgScale === 1 ? {} : { strided_copy: 4 };
    t.same(second, { fill: 2, sampler_step: 2, ...joined }, `EDM at ${cfgScale}: two levels, one kernel each`);
    const [, noisy] = await count(sampleEdm(hidden(edmToy), noise, { steps: 4, labels: y, cfgScale, churn: 3 }));
    t.same(noisy, { fill: 2, sampler_step: 3, ...joined }, `EDM at ${cfgScale} with churn: one more`);
  }
});

t.test('training', (t) =>
  onDevice(async () => {
    const run = async () => {
      const losses: number[] = [];
      const trainer = tinyTrainer({ gradClip: 0.5 });
      await trainer.run(5, { onStep: ({ loss }: StepReport) => void losses.push(loss) });
      return [losses, await bits(trainer.model), await bits(trainer.average)];
    };
    await compare(t, 'five steps', 5, run);
  }),
);
