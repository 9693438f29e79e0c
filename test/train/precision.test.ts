/**
 * Training in bf16 autocast: small latent and image-space networks on the same batches and random numbers as in f32. Losses stay within 1% of
 * the f32 run's, the first gradients within 2% of f32's norm (bf16 has 8 bits), weights and optimizer are f32; a stopped run goes on
 * bit for bit, recomputed blocks give the same bits, and nothing is left behind. Fewer steps on the emulator, which takes its time.
 */
import { join } from 'node:path';
import t from 'tap';
import {
  cpuVariants,
  type DeviceName,
  memory,
  setDefaultDevice,
  setNumThreads,
  synchronize,
} from '../../lib/device.js';
import { GaussianDiffusion } from '../../lib/diffusion/index.js';
import { autocast, noGrad, scope, type Tensor, tensor } from '../../lib/index.js';
import { ImageDiffiT, LatentDiffiT } from '../../lib/models/index.js';
import type { Module } from '../../lib/nn/index.js';
import { manualSeed, randn } from '../../lib/ops/random.js';
import { AdamW } from '../../lib/optim/index.js';
import { restoreCheckpoint, saveCheckpoint } from '../../lib/train/checkpoint.js';
import { edmObjective, type Objective, Trainer, type TrainingPrecision } from '../../lib/train/index.js';
import { gaussianObjective } from '../../lib/train/objective.js';
import { numbers, settledMemory, withoutLeaks } from '../helpers.js';
import { bits, CountingSource, temporaryFolder } from './fixtures.js';

interface Kind {
  make(): Module;
  objective: Objective<Module>;
}

/** Networks for a CountingSource's batches: [B, 1, 8, 8], three classes. */
const latent: Kind = {
  make: () => new LatentDiffiT({ inputSize: 8, inChannels: 1, hiddenSize: 64, depth: 2, numHeads: 2, numClasses: 3 }),
  objective: gaussianObjective(new GaussianDiffusion({ learnSigma: true })) as Objective<Module>,
};
const image: Kind = {
  make: () =>
    new ImageDiffiT({
      imgResolution: 8,
      inChannels: 1,
      baseChannels: 32,
      channelMult: [1, 2],
      numBlocks: 1,
      windowSize: 4,
      timeDim: 32,
      numClasses: 3,
      dropout: 0.1,
      channelsPerHead: 32,
    }),
  objective: edmObjective() as Objective<Module>,
};

/** A network whose layers that start as zero do not, or most gradients would be zero. */
function network({ make }: Kind): Module {
  manualSeed(1);
  const model = make();
  noGrad(() => {
    for (const [stream, weight] of model.parameters().entries()) {
      scope(() => weight.copyFrom(weight.add(randn(weight.shape, { seed: 9, stream }).mul(0.02))));
    }
  });
  return model;
}

function trainer(kind: Kind, precision: TrainingPrecision, batch = 4): Trainer<Module> {
  const model = network(kind);
  return new Trainer<Module>({
    model,
    average: network(kind),
    optimizer: new AdamW(model.namedParameters(), { lr: 1e-3, weightDecay: 0 }),
    objective: kind.objective,
    loader: new CountingSource(batch),
    seed: 5,
    emaDecay: () => 0.9,
    precision,
  });
}

function close({ model, average, optimizer }: Trainer<Module>): void {
  for (const part of [model, average, optimizer]) part.dispose();
}

async function losses(run: Trainer<Module>, steps: number): Promise<number[]> {
  const list: number[] = [];
  await run.run(steps, { onStep: ({ loss }) => void list.push(loss) });
  return list;
}

/** The first step's gradients, left where they are by an optimizer that does nothing. */
async function gradients(run: Trainer<Module>): Promise<Map<string, Float32Array>> {
  run.optimizer.step = () => undefined;
  run.optimizer.zeroGrad = () => undefined;
  await run.run(1);
  const found = new Map<string, Float32Array>();
  for (const [name, { dtype, grad }] of run.model.namedParameters()) {
    if (dtype !== 'f32' || grad?.dtype !== 'f32') throw new Error(`${name} is ${dtype}, its gradient ${grad?.dtype}`);
    found.set(name, (await grad.data()) as Float32Array);
  }
  close(run);
  return found;
}

const norm = (x: Iterable<number>): number => Math.sqrt([...x].reduce((sum, v) => sum + v * v, 0));

const devices = process.env.DIFFIT_TEST_DEVICES?.split(',') ?? ['cpu', 'cuda-emulated'];
const eachDevice = (name: string, fn: (t: import('tap').Test, device: DeviceName) => Promise<void>): void => {
  for (const device of devices) {
    t.test(`${name}, ${device}`, async (t) => {
      setDefaultDevice(device);
      await fn(t, device).finally(() => setDefaultDevice('cpu'));
    });
  }
};

t.test('the same bits with one thread and with three', async (t) => {
  const results: unknown[] = [];
  for (const [device, threads] of [
    ['cpu', 1],
    [cpuVariants()[0], 3],
  ] as const) {
    setNumThreads(threads); // for the device that is opened next
    setDefaultDevice(device);
    for (const kind of [latent, image]) {
      const run = trainer(kind, 'bf16');
      results.push([await losses(run, 2), await bits(run.model)]);
      close(run);
    }
  }
  setNumThreads(0);
  setDefaultDevice('cpu');
  t.strictSame(results.slice(2), results.slice(0, 2));
});

for (const [name, kind] of Object.entries({ latent, image })) {
  eachDevice(`${name}: losses and gradients beside f32`, (t, device) => {
    const emulated = device === 'cuda-emulated';
    const [steps, batch] = emulated ? [name === 'latent' ? 20 : 3, 2] : [20, 4];
    return withoutLeaks(t, device, async () => {
      const wide = await gradients(trainer(kind, 'f32', batch));
      const low = await gradients(trainer(kind, 'bf16', batch));
      const errors = [...wide].map(([key, g]) => norm(g.map((v, i) => v - (low.get(key) as Float32Array)[i])));
      const error = norm(errors) / norm([...wide.values()].map(norm));
      t.ok(error > 1e-4 && error <= 2e-2, `${errors.length} gradients, together ${error.toExponential(1)} from f32's`);
      const runs = [trainer(kind, 'f32', batch), trainer(kind, 'bf16', batch)];
      const [f32, bf16] = [await losses(runs[0], steps), await losses(runs[1], steps)];
      const worst = Math.max(...f32.map((loss, i) => Math.abs(bf16[i] - loss) / loss));
      const fall = `${steps} losses from ${f32[0].toFixed(3)} to ${f32[steps - 1].toFixed(3)}`;
      t.ok(worst > 1e-6 && worst <= 1e-2, `${fall}, at most ${worst.toExponential(1)} from f32's`);
      const stale = runs[1].model.parameters().filter(({ lowered, writes }) => lowered && lowered.writes !== writes);
      const copies = runs[1].model.parameters().filter(({ lowered }) => lowered?.copy.dtype === 'bf16');
      t.ok(copies.length > 10 && stale.length === 0, `${copies.length} weights' copies, as the optimizer wrote them`);
      t.ok(Object.values(runs[1].optimizer.stateDict().tensors).every(({ dtype }) => dtype === 'f32'));
      for (const run of runs) close(run);
    });
  });
}

t.test('a run in bf16 goes on bit for bit from its checkpoint', async (t) => {
  for (const kind of [latent, image]) {
    const path = join(temporaryFolder(t), 'checkpoint.safetensors');
    const [whole, first, second] = [trainer(kind, 'bf16'), trainer(kind, 'bf16'), trainer(kind, 'bf16')];
    const expected = await losses(whole, 6);
    await losses(first, 3);
    await saveCheckpoint(path, first, {});
    await second.run(2); // its weights, copies and moments are others until the checkpoint is read
    await restoreCheckpoint(path, second, {});
    t.strictSame(await losses(second, 6), expected.slice(3));
    t.strictSame(await bits(second.model), await bits(whole.model));
    t.strictSame(await bits(second.average), await bits(whole.average));
    for (const run of [whole, first, second]) close(run);
  }
});

t.test('blocks recomputed in the backward pass are recomputed in bf16: the same bits', async (t) => {
  const [kept, recomputed] = [trainer(latent, 'bf16'), trainer(latent, 'bf16')];
  (recomputed.model as LatentDiffiT).gradientCheckpointing = true;
  t.strictSame(await losses(recomputed, 3), await losses(kept, 3));
  t.strictSame(await bits(recomputed.model), await bits(kept.model));
  for (const run of [kept, recomputed]) close(run);
});

t.test('memory stays flat over steps in bf16', async (t) => {
  const run = trainer(image, 'bf16');
  await run.run(2);
  const { liveBuffers, liveBytes } = await settledMemory();
  await run.run(5);
  await synchronize();
  t.strictSame([memory().liveBuffers, memory().liveBytes], [liveBuffers, liveBytes]);
  close(run);
});

t.test('models return f32 under autocast, near what they return without', async (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const [x, noise, labels] = [
      tensor(numbers(1, 128), { shape: [2, 1, 8, 8] }),
      tensor([0.3, 0.7]),
      tensor([0, 2], { dtype: 'i64' }),
    ];
    for (const kind of [latent, image]) {
      const model = network(kind).eval() as Module & { forward(x: Tensor, t: Tensor, y: Tensor): Tensor };
      const run = (): Tensor => noGrad(() => model.forward(x, noise, labels));
      const wide = (await run().data()) as Float32Array;
      for (const [dtype, limit] of [
        ['bf16', 2e-2],
        ['f16', 2e-3],
      ] as const) {
        const y = autocast(dtype, run);
        t.equal(y.dtype, 'f32');
        const low = (await y.data()) as Float32Array;
        const error = norm(wide.map((v, i) => v - low[i])) / norm(wide);
        t.ok(error > 1e-6 && error <= limit, `${dtype}: ${error.toExponential(1)}`);
      }
      model.dispose();
    }
  }),
);
