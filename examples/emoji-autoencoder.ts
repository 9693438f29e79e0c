/**
 * A small autoencoder for 64x64 emoji, trained from nothing: step 1 of latent DiffiT on your own images.
 *
 *     npx tsx examples/emoji-autoencoder.ts [--out out/emoji] [--minutes 8]
 *
 * Writes OUT/images/CLASS/NAME.png (emoji-datasource-twitter on white, in five classes), OUT/vae (diffusers' layout) and
 * OUT/reconstructions.png: images above, what the autoencoder makes of them below. examples/README.md has the steps that follow.
 */
import { readFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { parseArgs } from 'node:util';
import { data, io, manualSeed, models, noGrad, optim, scope, tensor, train } from 'diffit';
import sharp from 'sharp';

const { values } = parseArgs({
  options: { out: { type: 'string', default: 'out/emoji' }, minutes: { type: 'string', default: '8' } },
});
/** Folder, which is to say class, of an emoji: the first whose pattern its subcategory matches. */
const classes: [name: string, subcategories: RegExp][] = [
  ['animal', /^animal/],
  ['face', /^(face|cat-face|monkey-face)/],
  ['flag', /-flag$/],
  ['hand', /^hand/],
  ['person', /^person(-gesture)?$/],
];
const [side, batch, peakLr] = [64, 16, 2e-3];
/** Weight of the KL divergence per latent number: enough to keep latents small, too little to blur. */
const klWeight = 1e-4;

interface Emoji {
  image: string;
  has_img_twitter: boolean;
}

/** The PNGs on white, a folder per class, as `diffit data` and `diffit data encode` read them; every skin tone is an image. */
async function writeImages(folder: string): Promise<void> {
  const root = dirname(createRequire(import.meta.url).resolve('emoji-datasource-twitter/package.json'));
  type Entry = Emoji & { subcategory: string; skin_variations?: Record<string, Emoji> };
  const entries: Entry[] = JSON.parse(readFileSync(join(root, 'emoji.json'), 'utf8'));
  for (const [name, subcategories] of classes) {
    await mkdir(join(folder, name), { recursive: true });
    const chosen = entries.filter((entry) => subcategories.test(entry.subcategory));
    for (const emoji of chosen.flatMap((entry) => [entry, ...Object.values(entry.skin_variations ?? {})])) {
      if (!emoji.has_img_twitter) continue;
      const white = sharp(join(root, 'img', 'twitter', '64', emoji.image)).flatten({ background: '#fff' });
      await white
        .resize(side, side)
        .png()
        .toFile(join(folder, name, emoji.image));
    }
  }
}

const images = join(values.out, 'images');
await writeImages(images);
const dataset = await data.openDataset(images, { size: side, channels: 3 });
console.log(`${dataset.length} images in ${classes.length} classes`);

manualSeed(0);
const vae = new models.AutoencoderKL({ blockOutChannels: [16, 32, 32], layersPerBlock: 1, normNumGroups: 8 });
const optimizer = new optim.Adam(vae.namedParameters(), { lr: peakLr });
const loader = new data.DataLoader(dataset, { batchSize: batch, seed: 0, flip: 0.5 });
console.log(`autoencoder of ${(vae.parameterCount() / 1e6).toFixed(2)}M parameters, ${vae.factor}x smaller latents`);

const started = performance.now();
const duration = Number(values.minutes) * 60_000;
let step = 0;
let first: Uint8Array | undefined;
for await (const { images: bytes, shape } of loader) {
  first ??= bytes.slice();
  const done = (performance.now() - started) / duration;
  optimizer.lr =
    peakLr * Math.min(1, (step + 1) / 50) * Math.max(0.02, 0.5 * (1 + Math.cos(Math.PI * Math.min(done, 1))));
  const loss = await scope(async () => {
    const x = tensor(bytes, { shape })
      .to('f32')
      .permute([0, 3, 1, 2])
      .mul(1 / 127.5)
      .sub(1);
    const { reconstruction, posterior } = vae.forward(x);
    const numbers = posterior.mean.size / posterior.mean.shape[0];
    const error = reconstruction.sub(x);
    const total = error
      .abs()
      .mean()
      .add(error.square().mean())
      .add(
        posterior
          .kl()
          .mean()
          .mul(klWeight / numbers),
      );
    total.backward();
    optimizer.step();
    optimizer.zeroGrad();
    return step % 50 === 0 ? total.item() : undefined;
  });
  if (loss !== undefined) {
    console.log(
      `step ${step}  loss ${loss.toFixed(4)}  ${((1000 * step * batch) / (performance.now() - started)).toFixed(0)} images/s`,
    );
  }
  step++;
  if (done >= 1) break;
}
optimizer.dispose();
vae.eval();

// The latents' standard deviation over the data set: a diffusion model wants it to be 1.
let [sum, squares, count] = [0, 0, 0];
for await (const { images: bytes, shape } of new data.DataLoader(dataset, {
  batchSize: batch,
  shuffle: false,
  epochs: 1,
})) {
  const latents = await scope(async () => {
    const x = tensor(bytes, { shape })
      .to('f32')
      .permute([0, 3, 1, 2])
      .mul(1 / 127.5)
      .sub(1);
    return noGrad(() => vae.encode(x).mean).data();
  });
  for (const value of latents as Float32Array) {
    sum += value;
    squares += value * value;
    count++;
  }
}
const scalingFactor = 1 / Math.sqrt(squares / count - (sum / count) ** 2);
const scaled = new models.AutoencoderKL({ ...vae.config, scalingFactor });
scope(() => scaled.loadStateDict(vae.stateDict()));
await train.saveAutoencoder(join(values.out, 'vae'), scaled);
console.log(`latents have mean ${(sum / count).toFixed(3)}, scaling factor ${scalingFactor.toFixed(4)}`);

const shape = [batch, side, side, 3] as const;
const again = await scope(async () => {
  const x = tensor(first as Uint8Array, { shape })
    .to('f32')
    .permute([0, 3, 1, 2])
    .mul(1 / 127.5)
    .sub(1);
  return train.toPixels(noGrad(() => vae.decode(vae.encode(x).mode())));
});
const both = Buffer.concat([first as Uint8Array, again]);
await io.saveImage(
  join(values.out, 'reconstructions.png'),
  io.imageGrid(both, [2 * batch, side, side, 3], { columns: batch }),
);
