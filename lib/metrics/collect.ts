/** One pass over a set of images: features of each batch into running statistics, so that no images and, unless asked for, no features are kept. */
import { DataError, ShapeError } from '../errors.js';
import { autocast, noGrad, scope } from '../scope.js';
import { format, type Shape } from '../shape.js';
import { Tensor } from '../tensor.js';
import type { FeatureExtractor, Features } from './extractor.js';
import { InceptionScore, type InceptionScoreResult } from './inception-score.js';
import { FeatureStatistics, type Gaussian } from './statistics.js';

/** Images of one size, 8 bits, row-major, channels last. */
export interface ImageBatch {
  /** The pixels, [n, height, width, channels]. */
  data: Uint8Array;
  /** [n, height, width, channels]. */
  shape: Shape;
}

/** Images, batch by batch; batches may differ in number. */
export type ImageBatches = Iterable<ImageBatch> | AsyncIterable<ImageBatch>;

/** What is known of a set of images: what {@link evaluate} takes for a reference. */
export interface SetStatistics {
  /** Images; missing where the file does not say. */
  count?: number;
  /** Moments of the features. */
  features?: Gaussian;
  /** Moments of the spatial features. */
  spatial?: Gaussian;
  /** Every feature, [n, D], for precision and recall. */
  rows?: Float32Array;
}

/** What is to be known of a set. */
export interface Wanted {
  features: boolean;
  spatial: boolean;
  rows: boolean;
  /** Images of a split of the Inception Score. */
  splitSize?: number;
}

/** What {@link collect} gives. */
export interface Collected extends SetStatistics {
  count: number;
  inceptionScore?: InceptionScoreResult;
}

/** Images that go through the extractor at a time. */
export const defaultBatch = 32;

/** Goes over the images once. Errors as evaluate()'s. */
export async function collect(
  images: ImageBatches,
  extractor: FeatureExtractor,
  wanted: Wanted,
  { batch, signal, onImages }: { batch: number; signal?: AbortSignal; onImages?: (count: number) => void },
): Promise<Collected> {
  let count = 0;
  let pool: FeatureStatistics | undefined;
  let spatial: FeatureStatistics | undefined;
  let score: InceptionScore | undefined;
  const rows: Float32Array[] = [];
  for await (const whole of images) {
    for (const part of cut(whole, batch)) {
      signal?.throwIfAborted();
      const found = await extract(part, extractor, wanted);
      const { features } = found;
      pool ??= new FeatureStatistics(features.width);
      agree('features', pool.width, features.width);
      if (wanted.features) await pool.add(features.data);
      if (wanted.rows) rows.push(features.data);
      if (found.spatial) {
        spatial ??= new FeatureStatistics(found.spatial.width);
        agree('spatial features', spatial.width, found.spatial.width);
        await spatial.add(found.spatial.data);
      }
      if (found.logits) {
        score ??= new InceptionScore(found.logits.width, { splitSize: wanted.splitSize });
        score.addLogits(found.logits.data);
      }
      count += part.shape[0];
      onImages?.(count);
    }
  }
  if (count === 0) throw new DataError('There are no images.');
  return {
    count,
    features: wanted.features ? await pool?.result() : undefined,
    spatial: await spatial?.result(),
    rows: wanted.rows ? joined(rows) : undefined,
    inceptionScore: score?.result(),
  };
}

interface Rows {
  data: Float32Array;
  width: number;
}

async function extract(
  { data, shape }: ImageBatch,
  extractor: FeatureExtractor,
  wanted: Wanted,
): Promise<{ features: Rows; spatial?: Rows; logits?: Rows }> {
  return noGrad(() =>
    scope(async () => {
      const found: Features = await autocast('f32', () => extractor(Tensor.fromBytes(data, { shape, dtype: 'u8' })));
      const rowsOf = async (name: keyof Features): Promise<Rows> => {
        const tensor = found?.[name];
        if (tensor?.dtype !== 'f32' || tensor.ndim !== 2 || tensor.shape[0] !== shape[0]) {
          const given = tensor ? `${tensor.dtype} ${format(tensor.shape)}` : 'missing';
          throw new ShapeError(`The extractor's ${name} are ${given}, expected f32 [${shape[0]}, *].`);
        }
        return { data: (await tensor.data()) as Float32Array, width: tensor.shape[1] };
      };
      return {
        features: await rowsOf('features'),
        spatial: wanted.spatial ? await rowsOf('spatial') : undefined,
        logits: wanted.splitSize === undefined ? undefined : await rowsOf('logits'),
      };
    }),
  );
}

/** Parts of at most `count` images. */
function* cut({ data, shape }: ImageBatch, count: number): Generator<ImageBatch> {
  const [n, ...image] = shape;
  const size = image.reduce((product, side) => product * side, 1);
  if (shape.length !== 4 || data.length !== n * size) {
    throw new ShapeError(`A batch of images is ${format(shape)} with ${data.length} bytes, expected [N, H, W, C].`);
  }
  for (let first = 0; first < n; first += count) {
    const some = Math.min(count, n - first);
    yield { data: data.subarray(first * size, (first + some) * size), shape: [some, ...image] };
  }
}

function agree(what: string, before: number, now: number): void {
  if (now !== before) throw new ShapeError(`The extractor's ${what} were ${before} an image and now are ${now}.`);
}

/** One array of all parts; each part is given up as it is copied. */
function joined(parts: Float32Array[]): Float32Array {
  const all = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = all.length;
  for (let part = parts.pop(); part; part = parts.pop()) {
    at -= part.length;
    all.set(part, at);
  }
  return all;
}
