/** The one interface of data sets, and the implementation for those that fit into memory. */
import { DataError, OptionError } from '../errors.js';

/** One image, 8 bits, row-major, channels last; its label is 0 in an unlabelled set. */
export interface Sample {
  /** [height, width, channels]. */
  image: Uint8Array;
  /** Its class, from 0. */
  label: number;
}

/** Labelled or unlabelled images of one size, read by index in any order and several at a time: what {@link DataLoader} takes. */
export interface Dataset {
  /** Number of images. */
  readonly length: number;
  /** [height, width, channels] of every image. */
  readonly imageShape: readonly [number, number, number];
  /** Labels are 0 .. numClasses - 1; 0 for an unlabelled set. */
  readonly numClasses: number;
  /** Name of each label, where there are names. */
  readonly classNames?: readonly string[];
  /** Image `index`, 0 .. length - 1. */
  get(index: number): Promise<Sample>;
  /** Faster than get() for many: fills `out` [indices.length, height, width, channels], and `labels` where given. */
  readBatch?(indices: ArrayLike<number>, out: Uint8Array, labels?: BigInt64Array): Promise<void>;
  /** Gives files back; the set cannot be read afterwards. */
  close?(): void;
}

/** A data set that was opened: `using dataset = await data.openDataset('mnist')` closes it at the end of the block. */
export interface OpenDataset extends Dataset, Disposable {
  /** Gives files back; a set that holds some cannot be read afterwards. */
  close(): void;
}

/** Throws OptionError unless `index` is one of the data set. @internal */
export function checkIndex(index: number, length: number): void {
  if (!Number.isInteger(index) || index < 0 || index >= length) {
    throw new OptionError(`Index ${index} is outside the data set of ${length} images.`);
  }
}

/** A data set held in memory. */
export class MemoryDataset implements OpenDataset {
  /** Number of images. */
  readonly length: number;
  /** Labels are 0 .. numClasses - 1; 0 for an unlabelled set. */
  readonly numClasses: number;
  private readonly imageBytes: number;

  /**
   * @param images - [length, height, width, channels]; not copied.
   * @param imageShape - [height, width, channels].
   * @param labels - One per image, below the number of `classNames` where there are any. None: an unlabelled set.
   * @param classNames - Name of each label.
   * @throws {DataError} Bytes that are no whole images, another number of labels, a label out of range.
   */
  constructor(
    private readonly images: Uint8Array,
    /** [height, width, channels] of every image. */
    readonly imageShape: readonly [number, number, number],
    private readonly labels?: Uint8Array,
    /** Name of each label, where there are names. */
    readonly classNames?: readonly string[],
  ) {
    this.imageBytes = imageShape[0] * imageShape[1] * imageShape[2];
    this.length = images.length / this.imageBytes;
    this.numClasses = labels ? (classNames?.length ?? labels.reduce((most, label) => Math.max(most, label), 0) + 1) : 0;
    if (!Number.isInteger(this.length) || this.length === 0) {
      throw new DataError(
        `A data set needs at least one whole image of ${imageShape.join(' x ')}; got ${images.length} bytes.`,
      );
    }
    if (labels && labels.length !== this.length) {
      throw new DataError(`${this.length} images need as many labels; got ${labels.length}.`);
    }
    const wrong = labels?.findIndex((label) => label >= this.numClasses) ?? -1;
    if (wrong >= 0) {
      throw new DataError(`Image ${wrong} has the label ${labels?.[wrong]}; expected 0 .. ${this.numClasses - 1}.`);
    }
  }

  /** A copy of image `index` and its label. Throws OptionError for an index outside. */
  async get(index: number): Promise<Sample> {
    checkIndex(index, this.length);
    const image = new Uint8Array(this.images.subarray(index * this.imageBytes, (index + 1) * this.imageBytes));
    return { image, label: this.labels?.[index] ?? 0 };
  }

  /** Fills `out` [indices.length, height, width, channels], and `labels` where given. Throws OptionError for an index outside. */
  async readBatch(indices: ArrayLike<number>, out: Uint8Array, labels?: BigInt64Array): Promise<void> {
    const { images, imageBytes } = this;
    for (let i = 0; i < indices.length; i++) {
      const index = indices[i];
      checkIndex(index, this.length);
      out.set(images.subarray(index * imageBytes, (index + 1) * imageBytes), i * imageBytes);
      if (labels) labels[i] = BigInt(this.labels?.[index] ?? 0);
    }
  }

  /** There are no files to give back: the images go with the object. */
  close(): void {}

  /** As close(). */
  [Symbol.dispose](): void {}
}
