/** The one interface of data sets, and the implementation for those that fit into memory. */
import { DataError, OptionError } from '../errors.js';

/** One image, 8 bits, row-major, channels last; its label is 0 in an unlabelled set. */
export interface Sample {
  image: Uint8Array;
  label: number;
}

/** Labelled or unlabelled images of one size, read by index in any order and several at a time. */
export interface Dataset {
  readonly length: number;
  /** [height, width, channels] of every image. */
  readonly imageShape: readonly [number, number, number];
  /** Labels are 0 .. numClasses - 1; 0 for an unlabelled set. */
  readonly numClasses: number;
  readonly classNames?: readonly string[];
  get(index: number): Promise<Sample>;
  /** Faster than get() for many: fills `out` [indices.length, height, width, channels], and `labels` where given. */
  readBatch?(indices: ArrayLike<number>, out: Uint8Array, labels?: BigInt64Array): Promise<void>;
  /** Gives files back; the set cannot be read afterwards. */
  close?(): void;
}

/** Throws OptionError unless `index` is one of the data set. */
export function checkIndex(index: number, length: number): void {
  if (!Number.isInteger(index) || index < 0 || index >= length) {
    throw new OptionError(`Index ${index} is outside the data set of ${length} images.`);
  }
}

/** A data set held in memory. */
export class MemoryDataset implements Dataset {
  readonly length: number;
  readonly numClasses: number;
  private readonly imageBytes: number;

  /**
   * @param images [length, height, width, channels]
   * @param labels One per image, below the number of `classNames` where there are any. None: an unlabelled set.
   */
  constructor(
    private readonly images: Uint8Array,
    readonly imageShape: readonly [number, number, number],
    private readonly labels?: Uint8Array,
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

  async get(index: number): Promise<Sample> {
    checkIndex(index, this.length);
    const image = new Uint8Array(this.images.subarray(index * this.imageBytes, (index + 1) * this.imageBytes));
    return { image, label: this.labels?.[index] ?? 0 };
  }

  async readBatch(indices: ArrayLike<number>, out: Uint8Array, labels?: BigInt64Array): Promise<void> {
    const { images, imageBytes } = this;
    for (let i = 0; i < indices.length; i++) {
      const index = indices[i];
      checkIndex(index, this.length);
      out.set(images.subarray(index * imageBytes, (index + 1) * imageBytes), i * imageBytes);
      if (labels) labels[i] = BigInt(this.labels?.[index] ?? 0);
    }
  }
}
