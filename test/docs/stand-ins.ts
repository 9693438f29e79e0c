/**
 * Files with the names that the pages use, small enough for a test: photos/, a VAE, a released checkpoint, a run. Made once, then copied
 * into the folder where a page's blocks run.
 */
import '../../lib/autograd.js';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import type { Test } from 'tap';
import { run } from '../../lib/cli/program.js';
import { saveImage, saveSafetensors, writeImageNpz } from '../../lib/io/index.js';
import { AutoencoderKL, LatentDiffiT, type ModelKind } from '../../lib/models/index.js';
import { manualSeed } from '../../lib/ops/random.js';
import { HostRandom } from '../../lib/random.js';
import { saveAutoencoder } from '../../lib/train/index.js';
import { tar } from '../data/archives.js';
import { root } from './markdown.js';

/** The networks that stand in for large ones, by kind. */
export const smallModels: Readonly<Record<string, Record<string, unknown>>> = {
  ImageDiffiT: { baseChannels: 8, channelMult: [1, 2], numBlocks: 1, windowSize: 4, timeDim: 16, channelsPerHead: 8 },
  LatentDiffiT: { hiddenSize: 16, depth: 2, numHeads: 2 },
  DiT: { hiddenSize: 16, depth: 2, numHeads: 2 },
} satisfies Record<ModelKind, object>;

let made: Promise<string> | undefined;

/** A new folder with all stand-ins, removed at the test's end. */
export async function workplace(t: Test): Promise<string> {
  made ??= make();
  const folder = mkdtempSync(join(tmpdir(), 'diffit-docs-'));
  cpSync(await made, folder, { recursive: true });
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

async function make(): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'diffit-stand-ins-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  const random = new HostRandom(1);
  for (const name of ['cat', 'dog']) {
    mkdirSync(join(folder, 'photos', name), { recursive: true });
    for (let k = 0; k < 4; k++) {
      const data = Uint8Array.from({ length: 32 * 32 * 3 }, () => random.integer(256));
      await saveImage(join(folder, 'photos', name, `${k}.png`), { data, width: 32, height: 32, channels: 3 });
    }
  }
  await otherSets(folder);
  for (const name of ['samples', 'VIRTUAL_imagenet256_labeled']) {
    const pixels = Uint8Array.from({ length: 8 * 16 * 16 * 3 }, () => random.integer(256));
    await writeImageNpz(join(folder, `${name}.npz`), [pixels], [8, 16, 16, 3]);
  }
  // Inception's place is taken by what gives the same kinds of features, a row's mean each.
  const rows = "const rows = images.to('f32').mean([2, 3]);";
  writeFileSync(
    join(folder, 'inception.mjs'),
    `export default (images) => { ${rows} return { features: rows, spatial: rows.slice(1, 0, 1), logits: rows }; };`,
  );
  manualSeed(2);
  using vae = new AutoencoderKL({ blockOutChannels: [8, 8, 8, 8], layersPerBlock: 1, normNumGroups: 4 });
  await saveAutoencoder(join(folder, 'sd-vae-ft-ema'), vae);
  for (const [name, inputSize] of [
    ['diffit_256', 32],
    ['diffit_512', 64],
  ] as const) {
    using model = new LatentDiffiT({ inputSize, ...smallModels.LatentDiffiT });
    await saveSafetensors(join(folder, `${name}.safetensors`), model.stateDict());
  }
  cpSync(join(root, 'weights'), join(folder, 'node_modules/diffit/weights'), { recursive: true });
  for (const name of ['a', 'b', 'c']) await finishedRun(join(folder, 'runs', name));
  return folder;
}

/** CIFAR-10's archive with two images, FFHQ with two, ImageNet with two classes. */
async function otherSets(folder: string): Promise<void> {
  const record = (label: number): Uint8Array =>
    Uint8Array.from({ length: 3073 }, (_, i) => (i === 0 ? label : i % 251));
  const batch = Buffer.concat([record(3), record(5)]);
  writeFileSync(join(folder, 'cifar-10-python.tar.gz'), gzipSync(tar({ 'data_batch_1.bin': batch })));
  const data = Uint8Array.from({ length: 128 * 128 * 3 }, (_, i) => (i * 7) % 256);
  for (const path of [
    'ffhq/00000/00000.png',
    'ffhq/01000/01000.png',
    'imagenet/n01440764/1.png',
    'imagenet/n01443537/1.png',
  ]) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    await saveImage(join(folder, path), { data, width: 128, height: 128, channels: 3 });
  }
}

/** A run of two steps, with its checkpoint, log and model. */
async function finishedRun(out: string): Promise<void> {
  const recipe = join(out, '..', 'recipe.json');
  mkdirSync(join(out, '..'), { recursive: true });
  const model = { imgResolution: 32, inChannels: 1, numClasses: 10, ...smallModels.ImageDiffiT };
  writeFileSync(recipe, JSON.stringify({ preset: 'mnist', model, training: { batch: 2 }, sampler: { steps: 2 } }));
  const errors: string[] = [];
  const streams = { stdout: { write: () => {} }, stderr: { write: (text: string) => void errors.push(text) } };
  const code = await run(['train', '--recipe', recipe, '--steps', '2', '--sample-every', '2', '--out', out], streams);
  rmSync(recipe);
  if (code !== 0) throw new Error(errors.join(''));
}
