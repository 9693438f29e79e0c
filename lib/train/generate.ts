/**
 * Images from a trained network, batch by batch, as 8-bit pixels. Image i of a seed is the same whatever the batch size
 * and however many others are asked for: its noise is sample i of the seed's streams.
 */
import type { SamplerStep } from '../diffusion/index.js';
import { OptionError } from '../errors.js';
import { type DiffusionModel, ImageDiffiT } from '../models/index.js';
import { affine, cast, clamp } from '../ops/elementwise.js';
import { permute } from '../ops/index.js';
import { randn } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { noGrad, scope } from '../scope.js';
import { type Tensor, tensor } from '../tensor.js';
import { defaultSampler, parseSampler, type SamplerOptions, startSampler } from './sampler-settings.js';

/** What turns latents into images; models.AutoencoderKL is one. */
export interface LatentDecoder {
  /** Of the autoencoder: what its latents were multiplied by, and the channels of its images. */
  readonly config: { readonly scalingFactor: number; readonly outChannels: number };
  /** Pixels per latent, along a side. */
  readonly factor: number;
  /** z [B, C, h, w], not scaled -> images [B, outChannels, h factor, w factor] in [-1, 1]. */
  decode(z: Tensor): Tensor;
}

/** Options of {@link generate}. */
export interface GenerateOptions {
  /** How many images. */
  count: number;
  /** One class per image, for a class-conditional model. Default: image i is of class i modulo the number of classes. */
  labels?: readonly number[];
  /** Default 0. */
  seed?: number;
  /** Images at a time. Default 64. */
  batch?: number;
  /** Default: EDM's sampler with 18 steps for image-space models, DDPM with 250 for latent ones; no guidance. */
  sampler?: SamplerOptions;
  /** Needed for a latent model. */
  vae?: LatentDecoder;
  /** Called after every sampler step of every batch. */
  onStep?: (progress: { done: number; total: number }) => void;
  /** Ends the sampling after the step being computed. */
  signal?: AbortSignal;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    count: is.natural,
    labels: z.array(z.number()).readonly().optional(),
    seed: is.natural.default(0),
    batch: is.count.default(64),
    // parseSampler() checks what is in it.
    sampler: is.value<SamplerOptions>((x) => typeof x === 'object' && x !== null, "a sampler's settings").optional(),
    vae: is.having<LatentDecoder>(['decode'], 'a decoder of latents').optional(),
    onStep: is.callback<NonNullable<GenerateOptions['onStep']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<GenerateOptions>),
);

/** [H, W, C] of the images a model makes, with its decoder when it makes latents. Throws OptionError without one. */
export function imageShape(model: DiffusionModel, vae?: LatentDecoder): readonly [number, number, number] {
  const [channels, side] = noiseShape(model);
  if (model instanceof ImageDiffiT) return [side, side, model.config.outChannels ?? channels];
  if (!vae) throw new OptionError('This model makes latents; a VAE is needed to turn them into images.');
  return [side * vae.factor, side * vae.factor, vae.config.outChannels];
}

/** [C, S, S] of what a model denoises. */
function noiseShape({ config }: DiffusionModel): [number, number, number] {
  const side = 'imgResolution' in config ? config.imgResolution : config.inputSize;
  return [config.inChannels, side, side];
}

/** Throws OptionError unless the labels fit the model and the number of images. Returns one label per image, if any. */
export function checkLabels(
  { config }: DiffusionModel,
  count: number,
  labels?: readonly number[],
): readonly number[] | undefined {
  const { numClasses } = config;
  if (numClasses === 0) {
    if (labels) throw new OptionError('Labels were given, but this model is unconditional.');
    return undefined;
  }
  if (!labels) return Array.from({ length: count }, (_, i) => i % numClasses);
  if (labels.length !== count) throw new OptionError(`${labels.length} labels were given for ${count} images.`);
  const wrong = labels.find((label) => !(Number.isInteger(label) && label >= 0 && label < numClasses));
  if (wrong !== undefined)
    throw new OptionError(`Label ${wrong} is not one of this model's classes, 0 to ${numClasses - 1}.`);
  return labels;
}

/** Bytes of images [n, H, W, C], batch by batch. Throws OptionError; rejects with the signal's reason when aborted. */
export async function* generate(model: DiffusionModel, options: GenerateOptions): AsyncGenerator<Uint8Array> {
  const { count, seed, batch, vae, onStep, signal, ...given } = parseOptions(optionsSchema, options, 'generate');
  const sampler = parseSampler(given.sampler ?? defaultSampler(model));
  const labels = checkLabels(model, count, given.labels);
  imageShape(model, vae); // says so when the decoder is missing
  const total = Math.ceil(count / batch) * sampler.steps;
  const [{ device }] = model.parameters();
  let done = 0;
  for (let first = 0; first < count; first += batch) {
    const size = Math.min(batch, count - first);
    yield await scope(async () => {
      const noise = randn([size, ...noiseShape(model)], { seed, stream: 0, firstSample: first, device });
      const ids = labels && tensor(BigInt64Array.from(labels.slice(first, first + size), BigInt), { device });
      let last: SamplerStep | undefined;
      for await (const step of startSampler(model, noise, sampler, { labels: ids, seed, firstSample: first, signal })) {
        onStep?.({ done: ++done, total });
        last = step;
      }
      const { sample } = last as SamplerStep;
      return vae ? decode(sample, vae) : toPixels(sample);
    });
  }
}

/** Latents [B, C, h, w] to bytes [B, H, W, C], image by image: the decoder's activations are large. */
async function decode(latents: Tensor, vae: LatentDecoder): Promise<Uint8Array> {
  const images: Uint8Array[] = [];
  for (let i = 0; i < latents.shape[0]; i++) {
    images.push(
      await scope(() => {
        const z = affine(latents.slice(0, i, i + 1), 1 / vae.config.scalingFactor, 0);
        return toPixels(noGrad(() => vae.decode(z)));
      }),
    );
  }
  return Buffer.concat(images);
}

/** [B, C, H, W] in [-1, 1] to bytes [B, H, W, C] as EDM converts: x 127.5 + 128, clamped to 0..255, truncated. */
export async function toPixels(images: Tensor): Promise<Uint8Array> {
  const pixels = noGrad(() =>
    scope(() => cast(clamp(affine(permute(images, [0, 2, 3, 1]), 127.5, 128), 0, 255), 'u8')),
  );
  try {
    return await pixels.bytes();
  } finally {
    pixels.dispose();
  }
}
