/**
 * Batches of a data set, read in the background. Every epoch has an order of its own that depends on the seed and the
 * epoch alone (Philox), so a loader restored to a position goes on with the same batches as one that never stopped.
 */
import { DataError, OptionError } from '../errors.js';
import { HOST_LANE, HostRandom, philox4x32, splitWords } from '../random.js';
import type { Dataset } from './dataset.js';

export interface Batch {
  /** [batch, height, width, channels], 8 bits. */
  images: Uint8Array;
  shape: readonly [number, number, number, number];
  /** One per image; undefined for an unlabelled data set. */
  labels: BigInt64Array | undefined;
  /** Which images of the data set these are. */
  indices: Uint32Array;
  epoch: number;
}

export interface LoaderOptions {
  batchSize: number;
  /** Seeds the orders and the flips. Default 0. */
  seed?: number;
  /** A new order for each epoch, else that of the data set. Default true. */
  shuffle?: boolean;
  /** Leaves out the images at the end of an epoch that do not fill a batch. Default true. */
  dropLast?: boolean;
  /** Batches read ahead while one is in use. Default 2. */
  prefetch?: number;
  /** Images read at the same time, for data sets without readBatch. Default 8. */
  concurrency?: number;
  /** Epochs until the iteration ends, counted from the start of training. Default: endless. */
  epochs?: number;
  /** Probability of a horizontal flip, drawn per image and epoch. Default 0. */
  flip?: number;
  /** Ends the iteration with the signal's reason. */
  signal?: AbortSignal;
}

/** Where a loader stands: `cursor` images of the order of `epoch` were delivered. Plain JSON. */
export interface LoaderState {
  epoch: number;
  cursor: number;
}

interface Pending {
  start: LoaderState;
  end: LoaderState;
  batch: Promise<Batch>;
}

/** High words of the random streams: one order per epoch, one flip per image and epoch. */
const orderStream = 1;
const flipStream = 2;

/**
 * `for await (const batch of loader)`: the position belongs to the loader, so leaving the loop and iterating again goes
 * on where it was. Errors of the data set end the iteration at the batch they belong to.
 */
export class DataLoader implements AsyncIterable<Batch> {
  readonly batchesPerEpoch: number;
  private readonly options: Required<Omit<LoaderOptions, 'signal'>>;
  private readonly signal?: AbortSignal;
  private readonly key: [number, number];
  private readonly gate: Gate;
  private position: LoaderState = { epoch: 0, cursor: 0 };
  private order?: { epoch: number; indices: Uint32Array };

  constructor(
    readonly dataset: Dataset,
    options: LoaderOptions,
  ) {
    const { batchSize, seed = 0, shuffle = true, dropLast = true, prefetch = 2, concurrency = 8 } = options;
    const { epochs = Number.POSITIVE_INFINITY, flip = 0, signal } = options;
    this.options = { batchSize, seed, shuffle, dropLast, prefetch, concurrency, epochs, flip };
    this.signal = signal;
    checkCount('batchSize', batchSize, 1);
    checkCount('prefetch', prefetch, 0);
    checkCount('concurrency', concurrency, 1);
    if (epochs !== Number.POSITIVE_INFINITY) checkCount('epochs', epochs, 0);
    if (!(flip >= 0 && flip <= 1)) throw new OptionError(`flip must be a probability in 0 .. 1, got ${flip}.`);
    if (dataset.length === 0) throw new DataError('The data set is empty.');
    if (dropLast && batchSize > dataset.length) {
      throw new OptionError(
        `batchSize ${batchSize} is larger than the data set of ${dataset.length} images; with dropLast no batch is ever full.`,
      );
    }
    this.key = splitWords(seed, 'seed');
    this.gate = new Gate(concurrency);
    const batches = dataset.length / batchSize;
    this.batchesPerEpoch = dropLast ? Math.floor(batches) : Math.ceil(batches);
  }

  /** The position after the last batch that was delivered. */
  state(): LoaderState {
    return { ...this.position };
  }

  /** Goes to a position, also in the middle of an iteration. Throws OptionError unless the data set has it. */
  restore({ epoch, cursor }: LoaderState): void {
    checkCount('epoch', epoch, 0);
    checkCount('cursor', cursor, 0);
    if (cursor > this.dataset.length) {
      throw new OptionError(
        `cursor ${cursor} is outside the data set of ${this.dataset.length} images; is it another one?`,
      );
    }
    this.position = this.normalize({ epoch, cursor });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Batch, void, undefined> {
    const stop = new AbortController();
    let queue: Pending[] = [];
    try {
      for (;;) {
        this.signal?.throwIfAborted();
        if (queue.length > 0 && !samePosition(queue[0].start, this.position)) queue = [];
        while (queue.length <= this.options.prefetch) {
          const start = queue.at(-1)?.end ?? this.position;
          if (start.epoch >= this.options.epochs) break;
          queue.push(this.load(start, stop.signal));
        }
        const next = queue.shift();
        if (!next) return;
        const batch = await untilAborted(next.batch, this.signal);
        if (!samePosition(next.start, this.position)) continue; // restore() was called meanwhile
        this.position = next.end;
        yield batch;
      }
    } finally {
      stop.abort();
    }
  }

  /** Starts reading the batch at a position that has one. */
  private load(start: LoaderState, stop: AbortSignal): Pending {
    const { epoch, cursor } = start;
    const count = Math.min(this.options.batchSize, this.dataset.length - cursor);
    const batch = this.read(epoch, cursor, count, stop);
    batch.catch(() => undefined); // whoever awaits the batch gets the error; an abandoned one is nobody's
    return { start, end: this.normalize({ epoch, cursor: cursor + count }), batch };
  }

  /** The same position, at the start of the next epoch when this one has no batch left. */
  private normalize({ epoch, cursor }: LoaderState): LoaderState {
    const left = this.dataset.length - cursor;
    const over = left < (this.options.dropLast ? this.options.batchSize : 1);
    return over ? { epoch: epoch + 1, cursor: 0 } : { epoch, cursor };
  }

  private async read(epoch: number, cursor: number, count: number, stop: AbortSignal): Promise<Batch> {
    const { dataset } = this;
    const [height, width, channels] = dataset.imageShape;
    const imageBytes = height * width * channels;
    const indices = this.indices(epoch, cursor, count);
    const images = new Uint8Array(count * imageBytes);
    const labels = dataset.numClasses > 0 ? new BigInt64Array(count) : undefined;
    if (dataset.readBatch) await dataset.readBatch(indices, images, labels);
    else
      await Promise.all(
        Array.from(indices, (index, i) => this.gate.run(() => this.readOne(index, i, images, labels, stop))),
      );
    if (this.options.flip > 0) {
      for (let i = 0; i < count; i++) {
        if (this.flips(epoch, cursor + i))
          flipRows(images.subarray(i * imageBytes, (i + 1) * imageBytes), width, channels);
      }
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

  private indices(epoch: number, cursor: number, count: number): Uint32Array {
    if (!this.options.shuffle) return Uint32Array.from({ length: count }, (_, i) => cursor + i);
    if (this.order?.epoch !== epoch) {
      const random = new HostRandom(this.options.seed, orderStream * 2 ** 32 + epoch);
      this.order = { epoch, indices: random.permutation(this.dataset.length) };
    }
    return this.order.indices.slice(cursor, cursor + count);
  }

  private flips(epoch: number, position: number): boolean {
    const [word] = philox4x32([position, HOST_LANE, epoch, flipStream], this.key);
    return word < this.options.flip * 2 ** 32;
  }
}

/** Mirrors an image [height, width, channels] in place, left to right. */
function flipRows(image: Uint8Array, width: number, channels: number): void {
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

/** Lets `free` tasks run at a time; the others wait in order. */
class Gate {
  private readonly waiting: (() => void)[] = [];
  constructor(private free: number) {}

  async run<T>(task: () => Promise<T>): Promise<T> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((resolve) => this.waiting.push(resolve));
    try {
      return await task();
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }
}

function samePosition(a: LoaderState, b: LoaderState): boolean {
  return a.epoch === b.epoch && a.cursor === b.cursor;
}

function checkCount(name: string, value: number, least: number): void {
  if (!Number.isInteger(value) || value < least || value >= 2 ** 32) {
    throw new OptionError(`${name} must be an integer of at least ${least}, got ${value}.`);
  }
}

/** The promise, or a rejection with the signal's reason when that comes first. */
function untilAborted<T>(promise: Promise<T>, signal?: AbortSignal): Promise<T> {
  if (!signal) return promise;
  return new Promise<T>((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
