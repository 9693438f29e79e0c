/**
 * AutoencoderKL against diffusers' (goldens/vae), and against its PyTorch twin (vae_tiny): forward, every gradient,
 * tiled decoding; the posterior; options and inputs.
 */
import { readFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { type AutoencoderConfig, AutoencoderKL } from '../../lib/models/index.js';
import { forLoading } from '../../lib/nn/init.js';
import { add, mul } from '../../lib/ops/elementwise.js';
import { randn } from '../../lib/ops/random.js';
import { noGrad, scope } from '../../lib/scope.js';
import { tensor, zeros } from '../../lib/tensor.js';
import {
  assertClose,
  assertFails,
  type FixtureTensor,
  forEachDevice,
  loadFixture,
  toTensor,
  toTensors,
  withoutLeaks,
} from '../helpers.js';
import { checkGradients } from '../nn/check.js';

const golden = loadFixture('goldens/vae.safetensors');
const keys = JSON.parse(readFileSync(new URL('../fixtures/goldens/vae_keys.json', import.meta.url), 'utf8'));
const goldenConfig: AutoencoderConfig = { blockOutChannels: golden.json.config.block_out_channels };
const tiny = loadFixture('vae_tiny.safetensors');

t.test('encoder and decoder equal diffusers', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      using vae = new AutoencoderKL(goldenConfig);
      vae.loadStateDict(toTensors(golden.group('sd.')));
      const [image, { mean, logvar }] = noGrad(() => [
        vae.decode(toTensor(golden.tensor('in.latent'))),
        vae.encode(toTensor(golden.tensor('in.image'))),
      ]);
      t.strictSame(image.shape, [1, 3, 64, 64]);
      t.strictSame([mean.shape, logvar.shape], [golden.tensor('out.mean').shape, golden.tensor('out.logvar').shape]);
      for (const [name, found] of Object.entries({ image, mean, logvar })) {
        assertClose(t, await found.data(), golden.f32(`out.${name}`), 5e-6, name);
      }
    });
  }),
);

t.test('both attention namings load; the names saved are the current ones', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    const older: Record<string, string> = keys.deprecated_attention_names;
    const state = Object.entries(golden.group('sd.')).map(([name, value]) => [older[name] ?? name, value]);
    t.ok(state.some(([name]) => name === 'decoder.mid_block.attentions.0.proj_attn.weight'));
    using vae = new AutoencoderKL(goldenConfig);
    vae.loadStateDict(toTensors(Object.fromEntries(state)));
    const image = noGrad(() => vae.decode(toTensor(golden.tensor('in.latent'))));
    assertClose(t, await image.data(), golden.f32('out.image'), 5e-6, 'image');
    t.strictSame(Object.keys(vae.stateDict()).sort(), Object.keys(golden.group('sd.')).sort());
  }),
);

t.test("Stable Diffusion's configuration is the default: keys, shapes and their order", (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = forLoading(() => new AutoencoderKL());
    t.equal(vae.parameterCount(), keys.parameters);
    t.equal(vae.config.scalingFactor, 0.18215);
    t.equal(vae.factor, 8);
    t.strictSame(vae.stateNames(), Object.keys(keys.keys));
    vae.checkStateDict(
      Object.fromEntries(Object.entries<number[]>(keys.keys).map(([name, shape]) => [name, { shape }])),
    );
  }),
);

t.test('forward and every gradient equal the twin', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      using vae = new AutoencoderKL(tiny.json.config);
      vae.loadStateDict(toTensors(tiny.group('sd.')));
      const x = toTensor(tiny.tensor('in.x'), { requiresGrad: true });
      const posterior = vae.encode(x);
      const z = add(posterior.mean, mul(posterior.std(), toTensor(tiny.tensor('in.noise'))));
      const image = vae.decode(z);
      const kl = posterior.kl();
      for (const [name, found] of Object.entries({ mean: posterior.mean, logvar: posterior.logvar, image, kl })) {
        t.strictSame(found.shape, tiny.tensor(`out.${name}`).shape, name);
        assertClose(t, await found.data(), tiny.f32(`out.${name}`), 5e-6, name);
      }
      add(mul(image, toTensor(tiny.tensor('in.dout'))).sum(), kl.sum()).backward();
      const { x: gradient, ...parameters } = tiny.group('grad.');
      assertClose(t, (await x.grad?.data()) ?? [], gradient.data, 2e-5, 'gradient of x');
      x.grad?.dispose();
      await checkKeyBiases(t, vae, parameters);
      await checkGradients(t, vae, parameters, 3e-5);
    });
  }),
);

/** The same vector added to all keys changes no weight, so its gradient is rounding noise here and there: made 0 in both. */
async function checkKeyBiases(t: Test, vae: AutoencoderKL, expected: Record<string, FixtureTensor>): Promise<void> {
  for (const [name, { grad }] of vae.namedParameters()) {
    if (!name.endsWith('to_k.bias') || !grad) continue;
    const scale = Math.max(...tiny.f32(`grad.${name.replace('to_k', 'to_v')}`).map(Math.abs));
    const found = Math.max(...((await grad.data()) as Float32Array).map(Math.abs));
    t.ok(found <= 1e-5 * scale, `${name} of ${found.toExponential(1)} is noise beside ${scale.toExponential(1)}`);
    grad.copyFrom(zeros(grad.shape));
    expected[name] = { shape: [...grad.shape], data: new Float32Array(grad.size) };
  }
}

t.test('tiles are blended as diffusers does', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, async () => {
      using vae = new AutoencoderKL(tiny.json.config);
      vae.loadStateDict(toTensors(tiny.group('sd.')));
      const latent = toTensor(tiny.tensor('in.latent'));
      for (const [name, [tileSize, overlap]] of Object.entries<[number, number]>(tiny.json.tiles)) {
        const seen: number[] = [];
        const image = await vae.decodeTiled(latent, {
          tileSize,
          overlap,
          onTile: ({ done, total }) => seen.push(done / total),
        });
        t.strictSame(image.shape, tiny.tensor(`tiled.${name}`).shape);
        assertClose(t, await image.data(), tiny.f32(`tiled.${name}`), 5e-6, name);
        t.ok(seen.length > 4 && seen.at(-1) === 1, `${seen.length} tiles`);
      }
      const [whole, tiled] = [noGrad(() => vae.decode(latent)), await vae.decodeTiled(latent, { tileSize: 11 })];
      t.strictSame(await tiled.data(), await whole.data(), 'one tile is decode()');
      const controller = new AbortController();
      const onTile = () => controller.abort(new Error('enough'));
      await t.rejects(vae.decodeTiled(latent, { tileSize: 4, onTile, signal: controller.signal }), {
        message: 'enough',
      });
    });
  }),
);

t.test('the posterior: one draw per key, mode, limits of logvar', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    using vae = new AutoencoderKL(tiny.json.config);
    const x = toTensor(tiny.tensor('in.x'));
    const posterior = noGrad(() => scope(() => vae.encode(x)));
    const key = { seed: 3, stream: 2 };
    const expected = add(posterior.mean, mul(posterior.std(), randn(posterior.mean.shape, key)));
    t.strictSame(await posterior.sample(key).data(), await expected.data());
    t.notSame(await posterior.sample().data(), await expected.data());
    const second = posterior.mean.slice(0, 1, 2);
    const noise = randn(second.shape, { ...key, firstSample: 1 });
    const alone = add(second, mul(posterior.std().slice(0, 1, 2), noise));
    t.strictSame(await alone.data(), await expected.slice(0, 1, 2).data(), 'whatever the batch');
    t.equal(posterior.mode(), posterior.mean);
    const { reconstruction, posterior: again } = noGrad(() => vae.forward(x, key));
    t.strictSame(await reconstruction.data(), await noGrad(() => vae.decode(expected)).data(), 'forward samples');
    t.strictSame(await again.mean.data(), await posterior.mean.data());
    const bias = new Float32Array(4).fill(1000);
    bias[3] = -1000;
    vae.loadStateDict({ 'quant_conv.bias': tensor(bias) }, { strict: false });
    const values = await noGrad(() => vae.encode(x)).logvar.data();
    t.strictSame([values[0], values.at(-1)], [20, -30]);
  }),
);

t.test('options and inputs that do not fit', (t) =>
  withoutLeaks(t, 'cpu', async () => {
    await assertFails(
      t,
      () => new AutoencoderKL({ blockOutChannels: [48] }),
      'OptionError',
      /normNumGroups 32 does not divide 48/,
    );
    await assertFails(
      t,
      () => new AutoencoderKL({ latentChanels: 4 } as AutoencoderConfig),
      'OptionError',
      /did you mean "latentChannels"/,
    );
    using vae = new AutoencoderKL(tiny.json.config);
    await assertFails(
      t,
      () => vae.encode(zeros([1, 3, 8, 9])),
      'ShapeError',
      /\[1, 3, 8, 9\], expected sides that 2 divides/,
    );
    await assertFails(t, () => vae.encode(zeros([1, 1, 8, 8])), 'ShapeError', /x is \[1, 1, 8, 8\]/);
    await assertFails(t, () => vae.decode(zeros([1, 4, 8, 8])), 'ShapeError', /latents is \[1, 4, 8, 8\]/);
    const latent = zeros([1, 2, 8, 8]);
    await assertFails(t, () => vae.decodeTiled(latent, { tileSize: 0 }), 'OptionError', /tileSize is 0/);
    await assertFails(t, () => vae.decodeTiled(latent, { overlap: 1 }), 'OptionError', /overlap is 1, expected/);
    await assertFails(t, () => vae.decodeTiled(latent, { tileSize: 2, overlap: 0.9 }), 'OptionError', /overlap 0.9/);
  }),
);
