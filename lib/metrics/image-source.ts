/** Images from files, batch by batch: .npz in guided-diffusion's layout, and every data set of lib/data (folders, archives). */
import { type OpenDataset, openDataset } from '../data/index.js';
import { openImageNpz } from '../io/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import type { ImageBatch } from './collect.js';

/** Options of {@link openImages}. */
export interface OpenImagesOptions {
  /** Scale and crop the images of folders and archives to squares of this side. Default: as they are, all of one size. */
  size?: number;
  /** The first so many. Default: all. */
  limit?: number;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({ size: is.count.optional(), limit: is.count.optional() } satisfies Fields<OpenImagesOptions>),
);

/** Images that were opened: read them with batches(), then close it, or open it with `using`. */
export interface ImageSource extends Disposable {
  /** Images in all. */
  readonly count: number;
  /** They in order, at most `size` at a time. */
  batches(size: number): AsyncGenerator<ImageBatch>;
  /** Gives files back. */
  close(): void;
}

/**
 * Opens images: a .npz with arr_0 uint8 [N, H, W, C], or whatever {@link data.openDataset} opens (a folder, a .zip, 'mnist').
 *
 * @throws {FileError} It cannot be read.
 * @throws {FileFormatError} A file is not what it claims to be.
 * @throws {DataError} There are no images.
 * @throws {OptionError} An option that is unknown or out of range.
 */
export async function openImages(path: string, options: OpenImagesOptions = {}): Promise<ImageSource> {
  const { size, limit = Number.POSITIVE_INFINITY } = parseOptions(optionsSchema, options, 'openImages');
  if (path.toLowerCase().endsWith('.npz')) {
    const file = await openImageNpz(path);
    const [n, ...image] = file.shape;
    const bytes = image.reduce((product, side) => product * side, 1);
    const count = Math.min(n, limit);
    return source(
      count,
      () => file.close(),
      async function* (at) {
        let left = count;
        for await (const pixels of file.batches(at)) {
          const some = Math.min(left, pixels.length / bytes);
          if (some > 0) yield { data: pixels.subarray(0, some * bytes), shape: [some, ...image] };
          left -= some;
          if (left === 0) return;
        }
      },
    );
  }
  const dataset = await openDataset(path, { size });
  const count = Math.min(dataset.length, limit);
  return source(
    count,
    () => dataset.close(),
    (at) => fromDataset(dataset, count, at),
  );
}

async function* fromDataset(dataset: OpenDataset, count: number, size: number): AsyncGenerator<ImageBatch> {
  const bytes = dataset.imageShape.reduce((product, side) => product * side, 1);
  for (let first = 0; first < count; first += size) {
    const indices = Array.from({ length: Math.min(size, count - first) }, (_, i) => first + i);
    const data = new Uint8Array(indices.length * bytes);
    if (dataset.readBatch) await dataset.readBatch(indices, data);
    else {
      const samples = await Promise.all(indices.map((index) => dataset.get(index)));
      for (const [i, { image }] of samples.entries()) data.set(image, i * bytes);
    }
    yield { data, shape: [indices.length, ...dataset.imageShape] };
  }
}

function source(count: number, close: () => void, batches: ImageSource['batches']): ImageSource {
  return { count, batches, close, [Symbol.dispose]: close };
}
