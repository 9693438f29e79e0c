/**
 * Everything that can take long stops when its signal is aborted: before it starts, at once after, and in its midst. Then no temporary file, no
 * tensor, no open file and no listener is left, what was at the path still is, and the promise is rejected with the signal's own reason (or
 * resolves, where stopping early is a result: training and encoding).
 */
import { getEventListeners } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { runGroup } from '../../lib/bench/run.js';
import { DataLoader, type Dataset, openDataset, openImageFolder } from '../../lib/data/index.js';
import { sampleEdm } from '../../lib/diffusion/index.js';
import { hubFile } from '../../lib/io/hub.js';
import { forEachTensor, loadSafetensors, saveSafetensors, writeImageNpz, writeNpz } from '../../lib/io/index.js';
import { AutoencoderKL } from '../../lib/models/index.js';
import { randn } from '../../lib/ops/random.js';
import {
  encodeLatents,
  generate,
  loadAutoencoder,
  loadModel,
  loadWeights,
  planTraining,
  readRecipe,
  saveAutoencoder,
  saveModel,
  TrainingRun,
} from '../../lib/train/index.js';
import { settledMemory } from '../helpers.js';
import { startHub } from '../io/hub-server.js';
import { bits, temporaryFolder, tinyModel, tinyTrainer } from '../train/fixtures.js';
import { makeRecipe } from './training.js';

/** Milliseconds in which a call must have stopped; a step of what runs here takes less. */
const promptly = 2000;

interface Call {
  run(signal: AbortSignal): Promise<unknown>;
  /** It resolves instead. */
  resolves?: boolean;
  /** It never ends by itself. */
  endless?: boolean;
}

const never = new Promise<never>(() => undefined);
const folder = temporaryFolder(t);
const recipe = await makeRecipe(folder);
const images = join(folder, 'images');
const drain = async (items: AsyncIterable<unknown>): Promise<void> => {
  for await (const item of items) void item;
};
const model = tinyModel().eval();
const free = tinyModel(0, { numClasses: 0 }).eval();
const tensors = Object.fromEntries(Array.from({ length: 16 }, (_, i) => [`t${i}`, randn([512, 512], { seed: i })]));
const vae = new AutoencoderKL({
  blockOutChannels: [8, 8],
  layersPerBlock: 1,
  normNumGroups: 4,
  latentChannels: 2,
}).eval();
const pixels: Dataset = {
  length: 64,
  imageShape: [8, 8, 3],
  numClasses: 0,
  get: () => sleep(0, { image: new Uint8Array(8 * 8 * 3), label: 0 }), // as a file is read: timers have their turns between
};
const stuck: Dataset = { ...pixels, get: () => never };
const place = (name: string): string => join(folder, name);
mkdirSync(place('out'));
await saveSafetensors(place('tensors.safetensors'), tensors);
await saveModel(place('model.safetensors'), model);
await saveAutoencoder(place('vae.safetensors'), vae);
const hub = await startHub(t, { 'file.bin': new Uint8Array(1 << 24) });
t.teardown(() => hub.close());
const old = 'what was there';
const out = place('out/file');
async function* slowly(): AsyncGenerator<Uint8Array> {
  yield new Uint8Array(100);
  await never;
}
let number = 0;

const calls: Record<string, Call> = {
  'Trainer.run': {
    resolves: true,
    endless: true,
    run: async (signal) => {
      const trainer = tinyTrainer();
      await trainer.run(1e6, { signal });
      trainer.dispose();
      trainer.model.dispose();
      trainer.average.dispose();
    },
  },
  'TrainingRun.train': {
    resolves: true,
    endless: true,
    run: async (signal) => {
      const run = await TrainingRun.open({
        plan: planTraining(await readRecipe(recipe)),
        out: place(`run${number++}`),
      });
      await run.train(1e6, { signal });
      await run.close();
    },
  },
  generate: {
    endless: true,
    run: (signal) => drain(generate(model, { count: 1e5, batch: 2, seed: 1, sampler: { steps: 10 }, signal })),
  },
  sampleEdm: {
    endless: true,
    run: async (signal) => {
      const noise = randn([1, 1, 8, 8], { seed: 1 });
      await drain(sampleEdm(free, noise, { steps: 1e5, signal })).finally(() => noise.dispose());
    },
  },
  saveSafetensors: { run: (signal) => saveSafetensors(out, tensors, {}, { checksums: true, signal }) },
  saveModel: { run: (signal) => saveModel(out, model, { signal }) },
  saveAutoencoder: { run: (signal) => saveAutoencoder(place('out/vae.safetensors'), vae, { signal }) },
  'saveAutoencoder, a folder': { run: (signal) => saveAutoencoder(place('out/vae'), vae, { signal }) },
  writeNpz: {
    endless: true,
    run: (signal) => writeNpz(out, { a: { dtype: 'u8', shape: [1000], chunks: slowly() } }, { signal }),
  },
  'writeNpz, compressed': {
    run: (signal) =>
      writeNpz(
        out,
        { a: { dtype: 'u8', shape: [1 << 24], bytes: new Uint8Array(1 << 24) } },
        { compress: true, signal },
      ),
  },
  writeImageNpz: { endless: true, run: (signal) => writeImageNpz(out, slowly(), [10, 8, 8, 3], { signal }) },
  loadSafetensors: {
    run: async (signal) => {
      const { tensors } = await loadSafetensors(place('tensors.safetensors'), { signal });
      for (const tensor of Object.values(tensors)) tensor.dispose();
    },
  },
  forEachTensor: { run: (signal) => forEachTensor(place('tensors.safetensors'), () => undefined, { signal }) },
  loadModel: { run: async (signal) => (await loadModel(place('model.safetensors'), { signal })).model.dispose() },
  loadWeights: { run: (signal) => loadWeights(model, place('model.safetensors'), { signal }) },
  loadAutoencoder: { run: async (signal) => (await loadAutoencoder(place('vae.safetensors'), { signal })).dispose() },
  hubFile: {
    run: (signal) =>
      hubFile('hf://owner/model/file.bin', { endpoint: hub.endpoint, cacheDir: place(`hub${number++}`), signal }),
  },
  openImageFolder: { run: async (signal) => (await openImageFolder(images, { signal })).close() },
  openDataset: { run: async (signal) => (await openDataset(images, { signal })).close?.() },
  DataLoader: { endless: true, run: (signal) => drain(new DataLoader(pixels, { batchSize: 2, seed: 1, signal })) },
  'DataLoader, waiting': {
    endless: true,
    run: (signal) => drain(new DataLoader(stuck, { batchSize: 2, seed: 1, signal })),
  },
  encodeLatents: {
    resolves: true,
    run: (signal) =>
      encodeLatents({ dataset: pixels, vae, out: place(`latents${number++}`), batch: 1, shardSize: 4, signal }),
  },
  decodeTiled: {
    run: async (signal) => {
      const latents = randn([1, 2, 24, 24], { seed: 1 });
      await vae
        .decodeTiled(latents, { tileSize: 4, overlap: 0.25, signal })
        .then((image) => image.dispose())
        .finally(() => latents.dispose());
    },
  },
  'diffit bench': {
    run: (signal) => runGroup({ group: 'gemm', device: 'cpu', dtype: 'f32', quick: true, signal }),
  },
};

/** Files below a folder that a write left unfinished. */
const leftovers = (): string[] =>
  readdirSync(folder, { recursive: true })
    .map(String)
    .filter((name) => /\.tmp$/.test(name));
const files = (): number => readdirSync('/proc/self/fd').length;

for (const [name, { run, resolves = false, endless = false }] of Object.entries(calls)) {
  t.test(name, async (t) => {
    await run(AbortSignal.abort()).catch(() => undefined); // what it opens for good is open then
    for (const after of ['before', 0, 20] as const) {
      writeFileSync(out, old);
      const { liveBuffers } = await settledMemory();
      const open = files();
      const controller = new AbortController();
      const reason = new Error('enough');
      if (after === 'before') controller.abort(reason);
      const running = run(controller.signal).then(
        () => 'resolved',
        (error) => error,
      );
      if (typeof after === 'number') await sleep(after);
      controller.abort(reason);
      const started = performance.now();
      const outcome = await Promise.race([running, sleep(10_000, 'hangs', { ref: false })]);
      const took = performance.now() - started;
      const when = after === 'before' ? 'aborted before' : `aborted after ${after} ms`;
      const finished = !endless && typeof after === 'number' && after > 0; // it may have been done by then
      t.ok(outcome === (resolves ? 'resolved' : reason) || (finished && outcome === 'resolved'), `${when}: ${outcome}`);
      t.ok(took < promptly, `${when}: stopped after ${took.toFixed(0)} ms`);
      t.equal(getEventListeners(controller.signal, 'abort').length, 0, `${when}: no listener is left`);
      t.same(leftovers(), [], `${when}: no temporary file is left`);
      if (outcome === reason) t.equal(readFileSync(out, 'utf8'), old, `${when}: what was there still is`);
      const left = (await settledMemory()).liveBuffers - liveBuffers;
      t.ok(left <= 0, `${when}: ${left} tensors are left`);
      for (let i = 0; files() > open && i < 700; i++) await sleep(10); // a connection is kept for some seconds
      t.ok(files() <= open, `${when}: ${files() - open} files are open`);
    }
  });
}

t.test('nothing of that has changed the model', async (t) => {
  const fresh = tinyModel();
  t.strictSame(await bits(model), await bits(fresh));
});
