/**
 * The latent way from images to images through the commands: data encode, train (DiffiT, DiT, masked; stopped and resumed),
 * sample with a VAE; released checkpoints without metadata; and what each says when something is missing.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { run } from '../../lib/cli/program.js';
import { loadImage, readSafetensorsHeader, saveImage, saveSafetensors } from '../../lib/io/index.js';
import { AutoencoderKL, LatentDiffiT } from '../../lib/models/index.js';
import { manualSeed, randn } from '../../lib/ops/random.js';
import { HostRandom } from '../../lib/random.js';
import { scope } from '../../lib/scope.js';
import { loadModel, readLog, saveAutoencoder } from '../../lib/train/index.js';
import { startHub } from '../io/hub-server.js';
import { bits, temporaryFolder } from '../train/fixtures.js';

async function diffit(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const [out, err]: string[][] = [[], []];
  const code = await run(argv, {
    stdout: { write: (text) => out.push(text) },
    stderr: { write: (text) => err.push(text) },
  });
  return { code, out: out.join(''), err: err.join('') };
}

const model = { inputSize: 4, inChannels: 2, hiddenSize: 16, depth: 3, numHeads: 2, numClasses: 3 };
const training = { batch: 4, lr: 1e-3, lrRampImages: 8, emaDecay: 0.9, flip: true };
const sampler = { kind: 'dpm', steps: 3, cfgScale: 2, cfgAllChannels: true };

interface Workplace {
  folder: string;
  vae: string;
  latents: string;
  /** Writes a recipe with some parts replaced. */
  recipe: (name: string, changes?: object) => string;
}

/** Twelve images of 8 x 8 in three classes, a random autoencoder, and their latents 2 x 4 x 4. */
async function workplace(t: Test): Promise<Workplace> {
  const folder = temporaryFolder(t);
  const images = join(folder, 'images');
  const random = new HostRandom(1);
  for (const name of ['cat', 'dog', 'eel']) {
    mkdirSync(join(images, name), { recursive: true });
    for (let k = 0; k < 4; k++) {
      const data = Uint8Array.from({ length: 192 }, () => random.integer(256));
      await saveImage(join(images, name, `${k}.png`), { data, width: 8, height: 8, channels: 3 });
    }
  }
  manualSeed(2);
  using autoencoder = new AutoencoderKL({
    latentChannels: 2,
    blockOutChannels: [8, 8],
    layersPerBlock: 1,
    normNumGroups: 4,
  });
  const vae = join(folder, 'vae');
  await saveAutoencoder(vae, autoencoder);
  const latents = join(folder, 'latents');
  const { code, err } = await diffit(
    ...['data', 'encode', '--data', images, '--vae', vae, '--out', latents, '--size', '8', '--flip'],
  );
  t.equal(code, 0, err);
  const recipe = (name: string, changes: object = {}): string => {
    const path = join(folder, `${name}.json`);
    writeFileSync(path, JSON.stringify({ kind: 'LatentDiffiT', model, data: latents, training, sampler, ...changes }));
    return path;
  };
  return { folder, vae, latents, recipe };
}

t.test('a latent DiffiT, a DiT and a masked one train, resume bit for bit, and draw', async (t) => {
  const { folder, vae, recipe } = await workplace(t);
  for (const [name, changes] of Object.entries({
    diffit: {},
    dit: { kind: 'DiT' },
    masked: {
      model: { ...model, maskRatio: 0.5, decodeLayers: 1 },
      training: { ...training, gradientCheckpointing: true },
    },
  })) {
    const file = recipe(name, changes);
    const [whole, parts] = [join(folder, `${name}-whole`), join(folder, `${name}-parts`)];
    const train = (out: string, steps: string, ...more: string[]): ReturnType<typeof diffit> =>
      diffit('train', '--recipe', file, '--steps', steps, '--seed', '5', '--out', out, ...more);
    const first = await train(whole, '4', '--vae', vae, '--sample-every', '2');
    t.equal(first.code, 0, first.err);
    t.equal((await train(parts, '2')).code, 0);
    t.equal((await train(parts, '4', '--resume')).code, 0);
    const losses = (await readLog(join(whole, 'log.jsonl'))).map(({ step, loss }) => [step, loss]);
    t.same(
      (await readLog(join(parts, 'log.jsonl'))).map(({ step, loss }) => [step, loss]),
      losses,
      `${name}: losses`,
    );
    const [a, b] = await Promise.all([whole, parts].map((out) => loadModel(join(out, 'model.safetensors'))));
    t.same(await bits(a.model), await bits(b.model), `${name}: weights`);
    t.equal(a.description.kind, name === 'dit' ? 'DiT' : 'LatentDiffiT');
    const samples = await loadImage(join(whole, 'samples', '0000002.png'));
    t.ok(samples.width >= 4 * 8 && samples.height >= 3 * 8, 'a sample grid was drawn');

    const grid = join(folder, `${name}.png`);
    const checkpoint = join(whole, 'model.safetensors');
    const options = [
      '--checkpoint',
      checkpoint,
      '--vae',
      vae,
      '--labels',
      'cat,1,Eel',
      '--num',
      '6',
      '--out',
      grid,
      '--json',
    ];
    for (const more of [
      [],
      ['--sampler', 'ddim', '--steps', '4'],
      ['--sampler', 'ddpm', '--steps', '5', '--cfg-scale', '1'],
    ]) {
      const drawn = await diffit('sample', ...options, ...more);
      t.match(drawn, { code: 0 }, drawn.err);
      t.match(JSON.parse(drawn.out), { images: 6, grid });
    }
  }
});

t.test('weights without metadata, as NVIDIA releases them, are recognised', async (t) => {
  const { folder, vae } = await workplace(t);
  manualSeed(3);
  using released = new LatentDiffiT({ ...model, inputSize: 32, depth: 1, numClasses: 1000 });
  const path = join(folder, 'diffit_256.safetensors');
  await scope(() => saveSafetensors(path, released.stateDict()));
  t.same((await readSafetensorsHeader(path)).metadata, {});
  const out = join(folder, 'ducks.png');
  const run = await diffit(
    ...[
      'sample',
      '--checkpoint',
      path,
      '--vae',
      vae,
      '--class',
      'drake,207',
      '--num',
      '2',
      '--steps',
      '2',
      '--out',
      out,
      '--json',
    ],
  );
  t.equal(run.code, 0, run.err);
  t.match(JSON.parse(run.out), { images: 2, steps: 2, cfgScale: 4.4 });
  t.match(await diffit('sample', '--checkpoint', path, '--vae', vae, '--class', 'drak'), {
    code: 2,
    err: /Unknown ImageNet class "drak"\. Did you mean "drake"\?/,
  });
  t.match(await diffit('sample', '--checkpoint', path, '--vae', vae, '--class', '1000'), {
    code: 2,
    err: /Label 1000 is not one of this model's classes, 0 to 999/,
  });
});

t.test('checkpoint and VAE from the hub, cut on the way and gone on with', async (t) => {
  const { folder, vae, recipe } = await workplace(t);
  const out = join(folder, 'run');
  t.equal((await diffit('train', '--recipe', recipe('a'), '--steps', '1', '--out', out)).code, 0);
  const read = (path: string): Uint8Array => readFileSync(path);
  const hub = await startHub(t, {
    'diffit.safetensors': read(join(out, 'model.safetensors')),
    'config.json': read(join(vae, 'config.json')),
    'diffusion_pytorch_model.safetensors': read(join(vae, 'diffusion_pytorch_model.safetensors')),
  });
  hub.cuts = [1000];
  const environment = { HF_ENDPOINT: hub.endpoint, HF_HUB_CACHE: join(folder, 'cache') };
  const before = Object.fromEntries(Object.keys(environment).map((name) => [name, process.env[name]]));
  t.teardown(() => {
    for (const [name, value] of Object.entries(before)) {
      if (value === undefined) delete process.env[name];
      else process.env[name] = value;
    }
  });
  Object.assign(process.env, environment);
  const grid = join(folder, 'grid.png');
  const options = ['--num', '3', '--steps', '2', '--out', grid];
  const address = 'hf://owner/model/diffit.safetensors';
  const drawn = await diffit('sample', '--checkpoint', address, '--vae', 'hf://owner/model', ...options);
  t.equal(drawn.code, 0, drawn.err);
  t.match(drawn.err, /Downloading hf:\/\/owner\/model\/diffit.safetensors/, 'progress is shown');
  t.match(hub.ranges[1], /bytes=[1-9]\d*-/, 'the cut download went on');
  t.ok((await loadImage(grid)).width > 0);
  t.match(await diffit('sample', '--checkpoint', 'hf://owner/model/nothing.safetensors'), {
    code: 1,
    err: /owner\/model has no file nothing.safetensors/,
  });
});

t.test('what is missing or does not fit is said', async (t) => {
  const { folder, vae, latents, recipe } = await workplace(t);
  const out = join(folder, 'run');
  const train = (file: string, ...more: string[]): ReturnType<typeof diffit> =>
    diffit('train', '--recipe', file, '--steps', '1', '--out', out, ...more);
  t.match(await train(recipe('a', { model: { ...model, inputSize: 8 } })), {
    code: 1,
    err: /has samples of 2 x 4 x 4, this model makes 2 x 8 x 8/,
  });
  t.match(await train(recipe('b', { model: { ...model, numClasses: 2 } })), { err: /has 3 classes, this model 2/ });
  t.match(await train(recipe('c', { data: folder })), {
    code: 1,
    err: /holds no latents; make them with diffit data encode/,
  });
  t.match(await train(recipe('d', { sampler: { kind: 'edm' } })), { err: /sampler edm is not for this latent model/ });
  t.match(await train(recipe('e', { sampler: { kind: 'euler' } })), { err: /Unknown sampler "euler"/ });
  t.match(await train(recipe('f'), '--sample-every', '1'), { code: 2, err: /a VAE is needed/ });
  t.match(await train(recipe('g', { kind: 'DiffiT' })), { code: 2, err: /kind/ });
  t.match(await train(recipe('h'), '--vae', join(folder, 'nothing')), { code: 1, err: /nothing/ });
  t.match(await train(recipe('i', { model: { ...model, maskRatio: 0.5, decodeLayers: 3 } })), {
    code: 2,
    err: /decodeLayers 3/,
  });
  t.match(await train(recipe('j', { model: { ...model, classDropoutProb: 0 } })), { code: 2, err: /null class/ });

  await train(recipe('k'));
  const checkpoint = join(out, 'model.safetensors');
  t.match(await diffit('sample', '--checkpoint', checkpoint), { code: 2, err: /makes latents; give --vae PATH/ });
  t.match(await diffit('sample', '--checkpoint', checkpoint, '--vae', latents), { code: 1, err: /latents/ });
  t.match(await diffit('sample', '--checkpoint', checkpoint, '--vae', vae, '--sampler', 'edm'), {
    code: 2,
    err: /sampler edm is not for this latent model; use ddpm, ddim or dpm/,
  });
  t.match(await diffit('sample', '--checkpoint', checkpoint, '--vae', vae, '--class', 'otter'), {
    code: 2,
    err: /Unknown class "otter"\. Expected one of: cat, dog, eel\./,
  });
  const broken = join(folder, 'tensors.safetensors');
  await scope(() => saveSafetensors(broken, { x: randn([2]) }));
  t.match(await diffit('sample', '--checkpoint', broken), { code: 1, err: /no diffit model/ });
});
