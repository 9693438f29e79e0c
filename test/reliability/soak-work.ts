/** The kinds of work that the soak mixes. Each is given random numbers of its own and leaves nothing behind, but for what the collector finds. */
import { mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { DataLoader, openImageFolder } from '../../lib/data/index.js';
import { memory, setMemoryLimit } from '../../lib/device.js';
import { DiffitError } from '../../lib/errors.js';
import { loadSafetensors, saveSafetensors } from '../../lib/io/index.js';
import { randn } from '../../lib/ops/random.js';
import type { HostRandom } from '../../lib/random.js';
import { scope } from '../../lib/scope.js';
import { type Tensor, zeros } from '../../lib/tensor.js';
import { restoreCheckpoint, saveCheckpoint } from '../../lib/train/checkpoint.js';
import { generate, loadModel, planTraining, readRecipe, saveModel, TrainingRun } from '../../lib/train/index.js';
import { tinyModel, tinyTrainer } from '../train/fixtures.js';
import { makeRecipe } from './training.js';
import { startWorker } from './worker.js';

/** Where the work has its files, and a recipe with its images. */
export interface Place {
  folder: string;
  recipe: string;
}

export async function makePlace(folder: string): Promise<Place> {
  mkdirSync(folder, { recursive: true });
  return { folder, recipe: await makeRecipe(folder) };
}

export type Work = (place: Place, random: HostRandom) => Promise<void>;

/** The error of the package that `fn` ends with; it is an error when there is none. */
async function fails(fn: () => unknown): Promise<void> {
  try {
    await fn();
  } catch (error) {
    if (error instanceof DiffitError) return;
    throw error;
  }
  throw new Error(`no error from ${fn}`);
}

/** Runs `fn` with a signal that is aborted after some milliseconds; that `fn` may then reject with. */
async function aborted(random: HostRandom, fn: (signal: AbortSignal) => Promise<unknown>): Promise<void> {
  const controller = new AbortController();
  const timer = setTimeout(() => controller.abort(), random.integer(60));
  try {
    await fn(controller.signal);
  } catch (error) {
    if (error !== controller.signal.reason) throw error;
  } finally {
    clearTimeout(timer);
  }
}

async function drain(items: AsyncIterable<unknown>): Promise<void> {
  for await (const item of items) void item;
}

export const work: Record<string, Work> = {
  async train(_, random) {
    const trainer = tinyTrainer({ modelSeed: random.integer(100) });
    await trainer.run(3);
    trainer.dispose();
    trainer.model.dispose();
    trainer.average.dispose();
  },

  async sample(_, random) {
    const model = tinyModel(random.integer(100)).eval();
    await drain(generate(model, { count: 4, batch: 2, seed: random.integer(100), sampler: { steps: 3 } }));
    model.dispose();
  },

  async files({ folder }, random) {
    const path = join(folder, `model-${random.integer(3)}.safetensors`);
    const model = tinyModel(random.integer(100));
    await saveModel(path, model);
    model.dispose();
    (await loadModel(path)).model.dispose();
    const { tensors } = await loadSafetensors(path);
    await saveSafetensors(join(folder, 'again.safetensors'), tensors);
    for (const tensor of Object.values(tensors)) tensor.dispose();
  },

  async checkpoint({ folder }) {
    const path = join(folder, 'checkpoint.safetensors');
    const [first, second] = [tinyTrainer(), tinyTrainer()];
    await first.run(1);
    await saveCheckpoint(path, first, {});
    await restoreCheckpoint(path, second, {});
    for (const trainer of [first, second]) {
      trainer.dispose();
      trainer.model.dispose();
      trainer.average.dispose();
    }
  },

  async images({ folder }, random) {
    using dataset = await openImageFolder(join(folder, 'images'), { channels: 1 });
    using loader = new DataLoader(dataset, { batchSize: 4, seed: random.integer(100), prefetch: 3 });
    let left = random.integer(12);
    for await (const batch of loader) {
      void batch;
      if (left-- === 0) break;
    }
  },

  async abort({ folder, recipe }, random) {
    const model = tinyModel().eval();
    await aborted(random, (signal) => drain(generate(model, { count: 8, seed: 1, sampler: { steps: 20 }, signal })));
    model.dispose();
    const path = join(folder, 'aborted.safetensors');
    const saved = tinyModel();
    await saveModel(path, saved);
    saved.dispose();
    await aborted(random, async (signal) => (await loadModel(path, { signal })).model.dispose());
    using dataset = await openImageFolder(join(folder, 'images'), { channels: 1 });
    await aborted(random, (signal) => drain(new DataLoader(dataset, { batchSize: 2, seed: 1, epochs: 50, signal })));
    const out = join(folder, 'run');
    rmSync(out, { recursive: true, force: true });
    for (const resume of [false, true]) {
      const run = await TrainingRun.open({ plan: planTraining(await readRecipe(recipe)), out, resume });
      await aborted(random, (signal) => run.train(1000, { signal }));
      await run.close();
    }
  },

  async errors({ folder }, random) {
    await fails(() => zeros([2, 3]).add(zeros([3, 2])));
    await fails(() => zeros([-1]));
    await fails(() => loadModel(join(folder, 'nothing.safetensors')));
    const path = join(folder, 'damaged.safetensors');
    writeFileSync(
      path,
      Uint8Array.from({ length: 200 }, () => random.integer(256)),
    );
    await fails(() => loadModel(path));
    await fails(() => {
      const x = zeros([4]);
      x.dispose();
      return x.data();
    });
    await fails(() => generate(tinyModel(), { count: 1, labels: [99] }).next());
    setMemoryLimit(memory().reservedBytes + (8 << 20));
    try {
      await scope(() => fails(() => Array.from({ length: 100 }, () => zeros([2 ** 18]))));
    } finally {
      setMemoryLimit(0);
    }
  },

  async abandon(_, random) {
    const kept: Tensor[] = [];
    for (let i = 0; i < 300; i++) {
      const x = randn([1 + random.integer(4096)], { seed: i });
      const y = x.mul(2).add(1);
      if (i % 3 === 0) kept.push(y);
      if (i % 3 === 1) x.dispose();
      if (i % 50 === 0) await sleep(0);
    }
    for (const tensor of kept) tensor.dispose();
  },

  async workers(_, random) {
    const ways = ['done', 'exit', 'throw', 'terminate'] as const;
    await Promise.all(
      [random.integer(4), random.integer(4)].map(async (i) => {
        const way = ways[i];
        const worker = startWorker(new URL('./soak-worker.ts', import.meta.url), { seed: random.integer(1000), way });
        let failure: Error | undefined;
        worker.on('error', (error: Error) => {
          failure = error;
        });
        const exit = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
        await Promise.race([new Promise((resolve) => worker.once('message', resolve)), exit]);
        if (way === 'terminate') {
          await sleep(random.integer(50));
          await worker.terminate();
        }
        await exit;
        if (failure && failure.message !== 'on purpose') throw failure;
      }),
    );
  },
};
