/**
 * Images from a trained network, batch by batch, as 8-bit pixels. Image i of a seed is the same whatever the batch size
 * and however many others are asked for: its noise is sample i of the seed's streams.
 */
import { type SamplerStep, sampleEdm } from '../diffusion/index.js';
import { OptionError } from '../errors.js';
import type { ImageDiffiT } from '../models/index.js';
import { affine, cast, clamp } from '../ops/elementwise.js';
import { permute } from '../ops/index.js';
import { randn } from '../ops/random.js';
import { noGrad, scope } from '../scope.js';
import { type Tensor, tensor } from '../tensor.js';

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
  /** Noise levels of the sampler. Default 18. */
  steps?: number;
  /** Classifier-free guidance. Default 1: none. */
  cfgScale?: number;
  /** S_churn of EDM's sampler. Default 0: deterministic. */
  churn?: number;
  /** Called after every sampler step of every batch. */
  onStep?: (progress: { done: number; total: number }) => void;
  signal?: AbortSignal;
}

/** [H, W, C] of a network's images. */
export function imageShape({ config }: ImageDiffiT): readonly [number, number, number] {
  return [config.imgResolution, config.imgResolution, config.outChannels ?? config.inChannels];
}

/** Throws OptionError unless the labels fit the model and the number of images. Returns one label per image, if any. */
export function checkLabels(
  { config }: ImageDiffiT,
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
export async function* generate(model: ImageDiffiT, options: GenerateOptions): AsyncGenerator<Uint8Array> {
  const { count, seed = 0, batch = 64, steps = 18, cfgScale, churn, onStep, signal } = options;
  const labels = checkLabels(model, count, options.labels);
  const [height, width, channels] = imageShape(model);
  const total = Math.ceil(count / batch) * steps;
  let done = 0;
  for (let first = 0; first < count; first += batch) {
    const size = Math.min(batch, count - first);
    yield await scope(async () => {
      const noise = randn([size, channels, height, width], { seed, stream: 0, firstSample: first });
      const ids = labels && tensor(BigInt64Array.from(labels.slice(first, first + size), BigInt));
      let last: SamplerStep | undefined;
      for await (const step of sampleEdm(model, noise, {
        steps,
        labels: ids,
        cfgScale,
        churn,
        seed,
        firstSample: first,
        signal,
      })) {
        onStep?.({ done: ++done, total });
        last = step;
      }
      return toPixels((last as SamplerStep).sample);
    });
  }
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
