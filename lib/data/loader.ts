/** Batches of images; see BatchLoader. */
import { DataError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { BatchLoader, type Draw, type LoaderOptions, loaderFields } from './batch-loader.js';
import type { Dataset } from './dataset.js';
import { Gate } from './gate.js';

/** What a {@link DataLoader} delivers. */
export interface Batch {
  /** [batch, height, width, channels], 8 bits. */
  images: Uint8Array;
  /** [batch, height, width, channels]. */
  shape: readonly [number, number, number, number];
  /** One per image; undefined for an unlabelled data set. */
  labels: BigInt64Array | undefined;
  /** Which images of the data set these are. */
  indices: Uint32Array;
  /** From 0. */
  epoch: number;
}

/** Options of {@link DataLoader}. */
export interface DataLoaderOptions extends LoaderOptions {
  /** Images read at the same time, for data sets without readBatch. Default 8. */
  concurrency?: number;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({ ...loaderFields(z, is), concurrency: is.count.default(8) } satisfies Fields<DataLoaderOptions>),
);

/** Batches of a data set of images; see {@link BatchLoader}. */
export class DataLoader extends BatchLoader<Batch> {
  private readonly gate: Gate;

  /** As {@link BatchLoader}'s. */
  constructor(
    /** Where the images come from; it stays the caller's. */
    readonly dataset: Dataset,
    options: DataLoaderOptions,
  ) {
    const { concurrency, ...rest } = parseOptions(optionsSchema, options, 'DataLoader');
    super(dataset.length, rest);
    this.gate = new Gate(concurrency);
  }

  /** Reads and mirrors one batch. */
  protected async read({ indices, epoch, flips }: Draw, stop: AbortSignal): Promise<Batch> {
    const { dataset } = this;
    const count = indices.length;
    const [height, width, channels] = dataset.imageShape;
    const imageBytes = height * width * channels;
    const images = new Uint8Array(count * imageBytes);
    const labels = dataset.numClasses > 0 ? new BigInt64Array(count) : undefined;
    if (dataset.readBatch) await dataset.readBatch(indices, images, labels);
    else
      await Promise.all(
        Array.from(indices, (index, i) => this.gate.run(() => this.readOne(index, i, images, labels, stop))),
      );
    for (let i = 0; flips && i < count; i++) {
      if (flips(i)) mirror(images.subarray(i * imageBytes, (i + 1) * imageBytes), width, channels);
    }
    return { images, shape: [count, height, width, channels], labels, indices, epoch };
  }

  private async readOne(
    index: number,
    i: number,
    images: Uint8Array,
    labels: BigInt64Array | undefined,
    stop: AbortSignal,
  ) {
    stop.throwIfAborted();
    const { image, label } = await this.dataset.get(index);
    const expected = this.dataset.imageShape.reduce((product, n) => product * n, 1);
    if (image.length !== expected) {
      throw new DataError(
        `Image ${index} has ${image.length} bytes; ${this.dataset.imageShape.join(' x ')} needs ${expected}.`,
      );
    }
    images.set(image, i * expected);
    if (labels) labels[i] = BigInt(label);
  }
}

/** Mirrors an image [height, width, channels], or many of one size, in place, left to right. */
export function mirror(image: Uint8Array, width: number, channels: number): void {
  const row = width * channels;
  for (let start = 0; start < image.length; start += row) {
    let left = start;
    let right = start + row - channels;
    for (; left < right; left += channels, right -= channels) {
      for (let c = 0; c < channels; c++) {
        const value = image[left + c];
        image[left + c] = image[right + c];
        image[right + c] = value;
      }
    }
  }
}
