/** Autoencoders on disk: diffusers' folder and the single file, round trips, and everything that is no VAE. */
import { mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { AutoencoderKL, ImageDiffiT } from '../../lib/models/index.js';
import { noGrad } from '../../lib/scope.js';
import { autoencoderConfig, loadAutoencoder, loadModel, saveAutoencoder, saveModel } from '../../lib/train/index.js';
import { assertClose, assertFails, loadFixture, toTensor, toTensors, withoutLeaks } from '../helpers.js';
import { tinyConfig } from './fixtures.js';

const tiny = loadFixture('vae_tiny.safetensors');
const golden = loadFixture('goldens/vae.safetensors');

function tinyVae(): AutoencoderKL {
  const vae = new AutoencoderKL(tiny.json.config);
  vae.loadStateDict(toTensors(tiny.group('sd.')));
  return vae;
}

async function mean(vae: AutoencoderKL): Promise<ArrayLike<number | bigint>> {
  return noGrad(() => vae.encode(toTensor(tiny.tensor('in.x')))).mean.data();
}

t.test("diffusers' folder, the file with our metadata, and halves load as they were saved", (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const folder = t.testdir();
    using vae = tinyVae();
    for (const [name, dtype, tolerance] of [
      ['new/folder', undefined, 0],
      ['vae.safetensors', undefined, 0],
      ['half.safetensors', 'f16', 5e-3],
    ] as const) {
      const path = join(folder, name);
      await saveAutoencoder(path, vae, { dtype });
      using loaded = await loadAutoencoder(path);
      t.strictSame(loaded.config, vae.config, name);
      t.equal(loaded.training, false);
      assertClose(t, await mean(loaded), await mean(vae), tolerance, name);
    }
    const json = JSON.parse(readFileSync(join(folder, 'new/folder/config.json'), 'utf8'));
    t.match(json, { _class_name: 'AutoencoderKL', block_out_channels: [8, 16], scaling_factor: 0.18215 });
    t.strictSame(json.down_block_types, ['DownEncoderBlock2D', 'DownEncoderBlock2D']);
  }),
);

t.test("a configuration as diffusers writes it, with the older names of the attention's weights", (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const folder = t.testdir({ 'config.json': JSON.stringify(golden.json.config) });
    using vae = new AutoencoderKL(autoencoderConfig(golden.json.config));
    t.strictSame(vae.config.blockOutChannels, [32, 32, 64, 64]);
    await saveAutoencoder(join(folder, 'saved'), vae);
    const bytes = readFileSync(join(folder, 'saved/diffusion_pytorch_model.safetensors'));
    const length = Number(bytes.readBigUInt64LE());
    const current = bytes.toString('utf8', 8, 8 + length);
    const older = current
      .replaceAll('.to_q.', '.query.')
      .replaceAll('.to_k.', '.key.')
      .replaceAll('.to_v.', '.value.')
      .replaceAll('.to_out.0.', '.proj_attn.');
    const header = Buffer.from(older.trimEnd().padEnd(8 * Math.ceil(older.trimEnd().length / 8)));
    const size = Buffer.alloc(8);
    size.writeBigUInt64LE(BigInt(header.length));
    writeFileSync(
      join(folder, 'diffusion_pytorch_model.safetensors'),
      Buffer.concat([size, header, bytes.subarray(8 + length)]),
    );
    using loaded = await loadAutoencoder(folder);
    const latent = toTensor(golden.tensor('in.latent'));
    const [expected, found] = noGrad(() => [vae.decode(latent), loaded.decode(latent)]);
    t.strictSame(await found.data(), await expected.data());
  }),
);

t.test('what is no VAE is said, with what was expected', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const folder = t.testdir({ empty: {}, 'x.bin': '', bare: { 'config.json': '{}' } });
    const missing = /expected a folder with config\.json and diffusion_pytorch_model\.safetensors/;
    for (const [name, reason] of [
      ['none', /none is no VAE: there is no such file or folder/],
      ['empty', /it has no config\.json/],
      ['bare', /it has no diffusion_pytorch_model\.safetensors/],
      ['x.bin', /it is another kind of file/],
    ] as const) {
      await assertFails(t, () => loadAutoencoder(join(folder, name)), 'FileError', reason);
      await assertFails(t, () => loadAutoencoder(join(folder, name)), 'FileError', missing);
    }
    const path = join(folder, 'vae');
    using vae = tinyVae();
    await saveAutoencoder(path, vae);
    const config = join(path, 'config.json');
    const good = JSON.parse(readFileSync(config, 'utf8'));
    for (const [change, name, message] of [
      [{ act_fn: 'relu' }, 'OptionError', /config\.json: act_fn is "relu"/],
      [{ shift_factor: 0.1 }, 'OptionError', /shift_factor is 0\.1/],
      [{ _class_name: 'VQModel' }, 'OptionError', /_class_name is "VQModel"/],
      [{ layers_per_block: 0 }, 'OptionError', /layersPerBlock/],
      [{ layers_per_block: 2 }, 'StateDictError', /missing \(encoder\.down_blocks\.0\.resnets\.1\.norm1\.weight, /],
      [
        { latent_channels: 4 },
        'StateDictError',
        /misshapen \(encoder\.conv_out\.weight: \[4, 16, 3, 3\], expected \[8/,
      ],
    ] as const) {
      writeFileSync(config, JSON.stringify({ ...good, ...change }));
      await assertFails(t, () => loadAutoencoder(path), name, message);
    }
    writeFileSync(config, JSON.stringify({ ...good, shift_factor: null, force_upcast: true, sample_size: 64 }));
    (await loadAutoencoder(path)).dispose();
    for (const text of ['{', '[]', 'null']) {
      writeFileSync(config, text);
      await assertFails(t, () => loadAutoencoder(path), 'FileFormatError', /config\.json is not a JSON object/);
    }
    writeFileSync(config, JSON.stringify(good));
    const weights = join(path, 'diffusion_pytorch_model.safetensors');
    writeFileSync(weights, readFileSync(weights).subarray(0, -4));
    await assertFails(t, () => loadAutoencoder(path), 'FileFormatError', /diffusion_pytorch_model\.safetensors/);
    rmSync(weights);
    mkdirSync(weights);
    await assertFails(t, () => loadAutoencoder(path), 'FileError', /not a regular file|is a folder/);
  }),
);

t.test('model files and autoencoder files are told apart', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const folder = t.testdir();
    using vae = tinyVae();
    using model = new ImageDiffiT(tinyConfig);
    const [ours, theirs] = [join(folder, 'vae.safetensors'), join(folder, 'model.safetensors')];
    await saveAutoencoder(ours, vae);
    await saveModel(theirs, model);
    await assertFails(
      t,
      () => loadAutoencoder(theirs),
      'FileFormatError',
      /kind "ImageDiffiT", expected AutoencoderKL/,
    );
    await assertFails(t, () => loadModel(ours), 'OptionError', /Unknown kind of model .*"AutoencoderKL"/);
  }),
);
