/**
 * Mean and covariance of a stream of features, in f64 whatever the features are. Rows are merged in blocks of a fixed size, so the result has
 * the same bits however they were cut into batches.
 */
import { DataError, OptionError, ShapeError } from '../errors.js';
import type { NativeRows } from '../native.js';
import { processor, settled, statistics } from './native.js';

/** A normal distribution by its moments, as Fréchet's distance compares them. */
export interface Gaussian {
  /** [D]. */
  readonly mean: Float64Array;
  /** [D, D], row after row; of the samples, with n - 1 in the denominator. */
  readonly covariance: Float64Array;
}

/** Rows that are merged at a time. */
const blockRows = 256;

/**
 * Mean and covariance of features that come batch by batch: a pass over them, D^2 numbers of memory, f64 throughout.
 *
 * Batches are merged by Chan, Golub and LeVeque's update (1979) on the CPU's threads; add() resolves when that is done, and the event loop is free.
 */
export class FeatureStatistics {
  /** Features of a row. */
  readonly width: number;
  private rows = 0;
  private readonly sums: Float64Array;
  private readonly scatter: Float64Array;
  private readonly waiting: Float64Array;
  private waitingRows = 0;
  private last: Promise<void> = Promise.resolve();

  /** @throws {OptionError} A width that is not an integer of at least 1. */
  constructor(width: number) {
    if (!Number.isSafeInteger(width) || width < 1) {
      throw new OptionError(`FeatureStatistics: width is ${width}, expected an integer of at least 1.`);
    }
    this.width = width;
    this.sums = new Float64Array(width);
    this.scatter = new Float64Array(width * width);
    this.waiting = new Float64Array(blockRows * width);
  }

  /** Rows so far. */
  get count(): number {
    return this.rows + this.waitingRows;
  }

  /**
   * Adds rows [n, width]; they are copied or merged when it resolves. Calls run one after another.
   *
   * @throws {ShapeError} Numbers that are no whole rows.
   * @throws {DataError} A feature that is NaN or infinite.
   */
  add(rows: Float32Array | Float64Array): Promise<void> {
    const { width } = this;
    if (rows.length % width !== 0) {
      throw new ShapeError(`FeatureStatistics: ${rows.length} numbers are no whole rows of ${width}.`);
    }
    checkFinite(rows, width, this.count);
    return this.inTurn(async () => {
      for (let row = 0; row < rows.length / width; ) {
        const some = Math.min(blockRows - this.waitingRows, rows.length / width - row);
        this.waiting.set(rows.subarray(row * width, (row + some) * width), this.waitingRows * width);
        this.waitingRows += some;
        row += some;
        if (this.waitingRows === blockRows) await this.flush();
      }
    });
  }

  /**
   * Mean and covariance of all rows.
   *
   * @throws {DataError} Fewer than two rows.
   */
  async result(): Promise<Gaussian> {
    await this.inTurn(() => this.flush());
    const { rows, width, scatter } = this;
    if (rows < 2) throw new DataError(`A covariance needs at least 2 samples, got ${rows}.`);
    const covariance = new Float64Array(width * width);
    for (let i = 0; i < width; i++) {
      for (let j = 0; j <= i; j++) {
        const value = scatter[i * width + j] / (rows - 1);
        covariance[i * width + j] = value;
        covariance[j * width + i] = value;
      }
    }
    return { mean: this.sums.slice(), covariance };
  }

  /**
   * Adds what another one has seen, which stays as it is: parts of a set may be computed apart.
   *
   * @throws {ShapeError} Another width.
   */
  async merge(other: FeatureStatistics): Promise<void> {
    if (other.width !== this.width) {
      throw new ShapeError(`FeatureStatistics: cannot merge features of ${other.width} into those of ${this.width}.`);
    }
    await other.inTurn(() => other.flush());
    await this.inTurn(async () => {
      await this.flush();
      const total = this.rows + other.rows;
      if (other.rows === 0) return;
      const { width, sums, scatter } = this;
      const apart = other.sums.map((mean, i) => mean - sums[i]);
      const weight = (this.rows * other.rows) / total;
      for (let i = 0; i < width; i++) {
        for (let j = 0; j <= i; j++) {
          scatter[i * width + j] += other.scatter[i * width + j] + weight * apart[i] * apart[j];
        }
      }
      for (let i = 0; i < width; i++) sums[i] += (apart[i] * other.rows) / total;
      this.rows = total;
    });
  }

  private inTurn(work: () => Promise<void>): Promise<void> {
    const next = this.last.then(work);
    this.last = next.catch(() => undefined);
    return next;
  }

  private async flush(): Promise<void> {
    const { waitingRows, width } = this;
    if (waitingRows === 0) return;
    const block = this.waiting.subarray(0, waitingRows * width);
    await settled(
      'FeatureStatistics',
      statistics.mergeRows(processor(), block, width, this.rows, this.sums, this.scatter),
    );
    this.rows += waitingRows;
    this.waitingRows = 0;
  }
}

/** Throws DataError where a number of the rows is NaN or infinite; the first row is number `first`. @internal */
export function checkFinite(rows: NativeRows, width: number, first = 0): void {
  let sum = 0;
  for (let i = 0; i < rows.length; i++) sum += rows[i] - rows[i]; // NaN and infinity leave a NaN
  if (sum === 0) return;
  const at = rows.findIndex((value) => !Number.isFinite(value));
  throw new DataError(`Feature ${at % width} of sample ${first + Math.floor(at / width)} is ${rows[at]}.`);
}
