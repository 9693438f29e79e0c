/** The commands doing their work, in this process and in one of their own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { run } from '../../lib/cli/program.js';
import { openLatents, readLatentIndex } from '../../lib/data/index.js';
import { hostValues, loadImage, readNpz, saveImage } from '../../lib/io/index.js';
import { AutoencoderKL } from '../../lib/models/index.js';
import { HostRandom } from '../../lib/random.js';
import { readCheckpointState, readLog, saveAutoencoder, saveModel } from '../../lib/train/index.js';
import { temporaryFolder, tinyConfig, tinyModel } from '../train/fixtures.js';

async function diffit(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const [out, err]: string[][] = [[], []];
  const code = await run(argv, {
    stdout: { write: (text) => out.push(text) },
    stderr: { write: (text) => err.push(text) },
  });
  return { code, out: out.join(''), err: err.join('') };
}

/** A folder with a recipe, images of three classes, and a model. */
async function workplace(t: Test): Promise<{ folder: string; recipe: string; data: string; model: string }> {
  const folder = temporaryFolder(t);
  const data = join(folder, 'images');
  const random = new HostRandom(1);
  for (const [i, name] of ['cat', 'dog', 'eel'].entries()) {
    mkdirSync(join(data, name), { recursive: true });
    for (let k = 0; k < 3 + i; k++) {
      const pixels = Uint8Array.from({ length: 64 }, () => random.integer(256));
      await saveImage(join(data, name, `${k}.png`), { data: pixels, width: 8, height: 8, channels: 1 });
    }
  }
  const recipe = join(folder, 'recipe.json');
  const training = { batch: 4, lr: 1e-3 };
  writeFileSync(recipe, JSON.stringify({ model: tinyConfig, data, training, sampler: { steps: 2 } }));
  const model = join(folder, 'model.safetensors');
  await saveModel(model, tinyModel(1));
  return { folder, recipe, data, model };
}

t.test('data', async (t) => {
  const { data, folder } = await workplace(t);
  const out = join(folder, 'grid.png');
  const { code, out: json } = await diffit('data', data, '--json', '--num', '4', '--out', out);
  t.equal(code, 0);
  t.same(JSON.parse(json), {
    path: data,
    images: 12,
    imageShape: [8, 8, 3],
    numClasses: 3,
    classes: [
      { label: 0, name: 'cat', count: 3 },
      { label: 1, name: 'dog', count: 4 },
      { label: 2, name: 'eel', count: 5 },
    ],
    grid: out,
  });
  const grid = await loadImage(out);
  t.same([grid.width, grid.height], [18, 18]);
  const first = await loadImage(join(data, 'cat', '0.png'));
  t.same([...grid.data.subarray(0, 24)], [...first.data.subarray(0, 24)], 'the first image comes first');
  t.match(await diffit('data', data), { code: 0, out: /12 images of 8 x 8 x 3, 3 classes\n {2}0 cat: 3\n/ });
  writeFileSync(join(data, 'dog', '1.png'), 'no image');
  t.match(await diffit('data', data), { code: 1, err: /dog.1\.png is not an intact image/ });
});

t.test('data convert: what it says, in words and as JSON', async (t) => {
  const { data, folder } = await workplace(t);
  const out = join(folder, 'out.zip');
  const said = await diffit('data', 'convert', data, '--out', out, '--size', '4');
  t.match(said, { code: 0, out: /out\.zip: 12 images of 4 x 4 x 3 in [\d.]+ s\n {2}mean .* std .*\n {2}0 cat: 3\n/ });
  t.match(await diffit('data', out), { code: 0, out: /12 images of 4 x 4 x 3, 3 classes\n {2}0 cat: 3\n/ });
  t.match(await diffit('data', 'convert', data, '--out', out), { code: 1, err: /is there already/ });
  t.match(await diffit('data', 'convert', data, '--out', 'x.tar'), { code: 2, err: /ends in \.zip or \.npz/ });
  t.match(await diffit('data', 'convert', data, '--out', out, '--crop', 'top'), { code: 2, err: /--crop/ });
  writeFileSync(join(data, 'dog', '1.png'), 'no image');
  const npz = join(folder, 'out.npz');
  const argv = ['data', 'convert', data, '--out', npz, '--size', '4', '--json'];
  t.match(await diffit(...argv), { code: 1, err: /dog.1\.png is not an intact image/ });
  const { code, out: json } = await diffit(...argv, '--skip-broken');
  t.equal(code, 0);
  const { classes, ...report } = JSON.parse(json);
  t.match(report, { finished: true, images: 11, total: 12, skipped: [{ index: 4 }] });
  t.same(
    classes.map(({ count }: { count: number }) => count),
    [3, 3, 5],
  );
});

t.test('sample: grid, single images and npz show the same images', async (t) => {
  const { folder, model } = await workplace(t);
  const [out, outDir, npz] = [join(folder, 'new', 'grid.png'), join(folder, 'single'), join(folder, 'batch.npz')];
  const argv = ['sample', '--checkpoint', model, '--steps', '2', '--seed', '7', '--labels', '2,0', '--num', '6'];
  const { code, out: json } = await diffit(
    ...argv,
    '--batch',
    '4',
    '--out',
    out,
    '--out-dir',
    outDir,
    '--npz',
    npz,
    '--json',
  );
  t.equal(code, 0);
  t.match(JSON.parse(json), { images: 6, steps: 2, seed: 7, grid: out, folder: outDir, npz });
  const { arr_0: images, arr_1: labels } = await readNpz(npz);
  t.same(images.shape, [6, 8, 8, 1]);
  t.equal(images.dtype, 'u8');
  t.same([...hostValues(labels)].map(Number), [2, 2, 2, 0, 0, 0], 'a row per label');
  const files = readdirSync(outDir).sort();
  t.same(files[0], '000000_class2.png');
  t.same(files[5], '000005_class0.png');
  const pixels = hostValues(images) as Uint8Array;
  const grid = await loadImage(out, { channels: 1 });
  t.same([grid.width, grid.height], [3 * 10 - 2, 2 * 10 - 2]);
  for (let i = 0; i < 6; i++) {
    const image = pixels.subarray(64 * i, 64 * (i + 1));
    t.equal(Buffer.compare((await loadImage(join(outDir, files[i]), { channels: 1 })).data, image), 0, `image ${i}`);
    const row = (10 * Math.floor(i / 3) + 3) * grid.width + 10 * (i % 3);
    t.equal(Buffer.compare(grid.data.subarray(row, row + 8), image.subarray(24, 32)), 0, `image ${i} in the grid`);
  }
});

t.test('sample: how many, and of which class', async (t) => {
  const { folder, model } = await workplace(t);
  const labelsOf = async (...argv: string[]): Promise<number[]> => {
    const npz = join(folder, 'x.npz');
    const { code, err } = await diffit('sample', '--checkpoint', model, '--steps', '1', '--npz', npz, ...argv);
    t.equal(code, 0, err);
    return [...hostValues((await readNpz(npz)).arr_1)].map(Number);
  };
  t.same(await labelsOf('--num', '5'), [0, 1, 2, 0, 1], 'classes take turns');
  t.same(await labelsOf('--class', '1'), new Array(8).fill(1));
  t.same(await labelsOf('--labels', '0-2', '--num', '4'), [0, 1, 2, 0]);
  t.equal((await labelsOf()).length, 24, 'eight of each class');
  t.match(await diffit('sample', '--checkpoint', model, '--labels', '3'), {
    code: 2,
    err: /Label 3 is not one of this model's classes, 0 to 2/,
  });
});

t.test('train, then sample from what it wrote, then resume', async (t) => {
  const { folder, recipe } = await workplace(t);
  const out = join(folder, 'run');
  const argv = ['train', '--recipe', recipe, '--out', out, '--checkpoint-every', '2', '--sample-every', '0'];
  const first = await diffit(...argv, '--steps', '3');
  t.match(first, {
    code: 0,
    out: /^3 steps, 12 images: .*model\.safetensors, .*loss\.svg\n$/,
    err: /Training 3\/3 {2}loss /,
  });
  t.match(await diffit(...argv, '--steps', '4'), { code: 1, err: /already holds a run/ });
  const more = await diffit(...argv, '--steps', '4', '--resume', '--json');
  t.equal(more.code, 0);
  const lines = more.out
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  t.match(lines, [
    { step: 4, loss: Number },
    { step: 4, images: 16, model: join(out, 'model.safetensors') },
  ]);
  t.same(
    (await readLog(join(out, 'log.jsonl'))).map(({ step }) => step),
    [1, 2, 3, 4],
  );
  t.match(await diffit(...argv, '--steps', '5', '--resume', '--lr', '0.5'), {
    code: 1,
    err: /training\.lr: 0\.001 in the checkpoint, 0\.5 now/,
  });
  const sample = ['sample', '--num', '1', '--out', join(folder, 'x.png')];
  for (const name of ['model', 'checkpoint-0000004']) {
    t.match(
      await diffit(...sample, '--checkpoint', join(out, `${name}.safetensors`)),
      { code: 0, out: /^1 images in / },
      name,
    );
  }
});

/** Saves a small autoencoder, which halves the sides of images, and returns its folder. */
async function tinyVae(folder: string, inChannels: number): Promise<string> {
  const shape = { latentChannels: 2, blockOutChannels: [4, 4], layersPerBlock: 1, normNumGroups: 2 };
  using vae = new AutoencoderKL({ inChannels, ...shape });
  await saveAutoencoder(folder, vae);
  return folder;
}

/** The command in a process of its own. */
function start(...argv: string[]): ChildProcess & { stderr: NonNullable<ChildProcess['stderr']> } {
  const main = fileURLToPath(new URL('../../lib/cli/main.ts', import.meta.url));
  const child = spawn(process.execPath, ['--import', 'tsx', main, ...argv], { stdio: ['ignore', 'ignore', 'pipe'] });
  child.stderr.setEncoding('utf8');
  return child as ReturnType<typeof start>;
}

/** Resolves when the log in a run's folder has `steps` steps, or the process has ended. */
async function logged(out: string, steps: number, child: ChildProcess): Promise<void> {
  while ((await readLog(join(out, 'log.jsonl'))).length < steps && child.exitCode === null) await setTimeout(50);
}

t.test('a killed process, resumed, gives the loss curve of an uninterrupted one', async (t) => {
  const { folder, recipe } = await workplace(t);
  const [whole, killed] = [join(folder, 'whole'), join(folder, 'killed')];
  const argv = (out: string) => [
    'train',
    '--recipe',
    recipe,
    '--out',
    out,
    '--checkpoint-every',
    '3',
    '--sample-every',
    '0',
  ];
  const child = start(...argv(killed), '--steps', '1000000');
  const exited = new Promise((resolve) => child.on('exit', resolve));
  await logged(killed, 5, child);
  child.kill('SIGKILL');
  await exited;
  const done = (await readLog(join(killed, 'log.jsonl'))).length;
  const steps = String(done + 4);
  t.match(await diffit(...argv(killed), '--steps', steps, '--resume'), { code: 0 });
  t.match(await diffit(...argv(whole), '--steps', steps), { code: 0 });
  const losses = async (out: string) => (await readLog(join(out, 'log.jsonl'))).map(({ step, loss }) => [step, loss]);
  t.same(await losses(killed), await losses(whole), `killed after step ${done}`);
});

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  t.test(`${signal} during training: a checkpoint, and exit code ${code}`, async (t) => {
    const { folder, recipe } = await workplace(t);
    const out = join(folder, 'run');
    const child = start('train', '--recipe', recipe, '--out', out, '--steps', '1000000', '--sample-every', '0');
    const said: string[] = [];
    child.stderr.on('data', (text: string) => said.push(text));
    const log = join(out, 'log.jsonl');
    const exited = new Promise((resolve) => child.on('exit', (...status) => resolve(status)));
    await logged(out, 3, child);
    child.kill(signal);
    child.kill(signal); // as npm does when Ctrl-C has already reached all
    const exit = await exited;
    t.same(exit, [code, null], said.join(''));
    const [checkpoint] = readdirSync(out).filter((name) => name.startsWith('checkpoint-'));
    const { step } = await readCheckpointState(join(out, checkpoint));
    t.equal((await readLog(log)).length, step, 'the checkpoint is of the last logged step');
    t.match(said.join(''), new RegExp(`Stopped after step ${step}`));
  });
}

t.test('data encode: latents of images, refused when settings differ', async (t) => {
  const { folder, data } = await workplace(t);
  const vae = await tinyVae(join(folder, 'vae'), 3);
  const out = join(folder, 'latents');
  const argv = ['data', 'encode', '--data', data, '--vae', vae, '--out', out, '--size', '16'];
  const { code, out: json } = await diffit(...argv, '--json', '--shard-size', '8');
  t.equal(code, 0);
  t.match(JSON.parse(json), { out, images: 12, total: 12, encoded: 12 });
  const { settings, length } = await openLatents(out);
  t.match(settings, { latentShape: [2, 8, 8], classNames: ['cat', 'dog', 'eel'], dtype: 'f16', mirrored: false });
  t.equal(length, 12);
  t.match(await diffit(...argv), { code: 0, out: /latents of 12 images, 0 of them/, err: /Encoding 12\/12/ });
  t.match(await diffit(...argv, '--flip'), { code: 1, err: /mirrored: false in the folder, true now/ });
  t.match(await diffit(...argv, '--size', '15'), { code: 2, err: /these are 15 x 15/ });
  t.match(await diffit(...argv, '--vae', data), {
    code: 1,
    err: /is no VAE: it has no config\.json; expected a folder with config\.json and diffusion_pytorch_model/,
  });
  t.match(await diffit('data', 'encode', '--data', data), { code: 2, err: /required option '--vae <path>'/ });
  t.match(await diffit('data', out), { code: 1, err: /holds latents, not images/ });
});

t.test('SIGINT while encoding: a shorter shard, and the next run goes on behind it', async (t) => {
  const { folder } = await workplace(t);
  const vae = await tinyVae(join(folder, 'vae'), 1);
  const out = join(folder, 'latents');
  const argv = ['data', 'encode', '--data', 'mnist', '--vae', vae, '--out', out, '--size', '32', '--batch', '2'];
  const child = start(...argv, '--shard-size', '50');
  const said: string[] = [];
  child.stderr.on('data', (text: string) => said.push(text));
  const exited = new Promise((resolve) => child.on('exit', (...status) => resolve(status)));
  const shards = async () => (await readLatentIndex(out).catch(() => undefined))?.shards ?? [];
  while ((await shards()).length < 2 && child.exitCode === null) await setTimeout(50);
  child.kill('SIGINT');
  t.same(await exited, [130, null], said.join(''));
  const written = await shards();
  const images = written.reduce((sum, shard) => sum + shard.images, 0);
  t.ok(written.slice(0, -1).every((shard) => shard.images === 50));
  t.match(said.join(''), new RegExp(`Stopped after ${images} of 60000 images`));
  t.same(readdirSync(out).filter((name) => name.startsWith('shard')).length, written.length);
});

t.test('exit codes of the process itself', async (t) => {
  const exitOf = (...argv: string[]): Promise<number> =>
    new Promise((resolve) => start(...argv).on('exit', (code) => resolve(code as number)));
  t.equal(await exitOf('info'), 0);
  t.equal(await exitOf('inof'), 2);
  t.equal(await exitOf('sample', '--checkpoint', '/nowhere/x.safetensors', '--num', '1', '--npz', '/tmp/never.npz'), 1);
});
