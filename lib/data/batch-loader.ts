/**
 * Batches of anything that can be read by index, read in the background. Every epoch has an order of its own that depends
 * on the seed and the epoch alone (Philox), so a loader restored to a position goes on with the same batches as one that
 * never stopped.
 */
import { DataError, OptionError } from '../errors.js';
import { HOST_LANE, HostRandom, philox4x32, splitWords } from '../random.js';

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

/** What a batch is to hold. */
export interface Draw {
  indices: Uint32Array;
  epoch: number;
  /** Is image i of the batch to be mirrored? Absent: none is. */
  flips?: (i: number) => boolean;
}

interface Pending<B> {
  start: LoaderState;
  end: LoaderState;
  batch: Promise<B>;
}

/** High words of the random streams: one order per epoch, one flip per image and epoch. */
const orderStream = 1;
const flipStream = 2;

/**
 * `for await (const batch of loader)`: the position belongs to the loader, so leaving the loop and iterating again goes
 * on where it was. Errors of the data set end the iteration at the batch they belong to.
 */
export abstract class BatchLoader<B> implements AsyncIterable<B> {
  readonly batchesPerEpoch: number;
  private readonly options: Required<Omit<LoaderOptions, 'signal'>>;
  private readonly signal?: AbortSignal;
  private readonly key: [number, number];
  private position: LoaderState = { epoch: 0, cursor: 0 };
  private order?: { epoch: number; indices: Uint32Array };

  constructor(
    private readonly length: number,
    options: LoaderOptions,
  ) {
    const { batchSize, seed = 0, shuffle = true, dropLast = true, prefetch = 2 } = options;
    const { epochs = Number.POSITIVE_INFINITY, flip = 0, signal } = options;
    this.options = { batchSize, seed, shuffle, dropLast, prefetch, epochs, flip };
    this.signal = signal;
    checkCount('batchSize', batchSize, 1);
    checkCount('prefetch', prefetch, 0);
    if (epochs !== Number.POSITIVE_INFINITY) checkCount('epochs', epochs, 0);
    if (!(flip >= 0 && flip <= 1)) throw new OptionError(`flip must be a probability in 0 .. 1, got ${flip}.`);
    if (length === 0) throw new DataError('The data set is empty.');
    if (dropLast && batchSize > length) {
      throw new OptionError(
        `batchSize ${batchSize} is larger than the data set of ${length} images; with dropLast no batch is ever full.`,
      );
    }
    this.key = splitWords(seed, 'seed');
    const batches = length / batchSize;
    this.batchesPerEpoch = dropLast ? Math.floor(batches) : Math.ceil(batches);
  }

  /** Reads one batch; rejects with the reason of `stop` when nobody wants it any more. */
  protected abstract read(draw: Draw, stop: AbortSignal): Promise<B>;

  /** The position after the last batch that was delivered. */
  state(): LoaderState {
    return { ...this.position };
  }

  /** Goes to a position, also in the middle of an iteration. Throws OptionError unless the data set has it. */
  restore({ epoch, cursor }: LoaderState): void {
    checkCount('epoch', epoch, 0);
    checkCount('cursor', cursor, 0);
    if (cursor > this.length) {
      throw new OptionError(`cursor ${cursor} is outside the data set of ${this.length} images; is it another one?`);
    }
    this.position = this.normalize({ epoch, cursor });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<B, void, undefined> {
    const stop = new AbortController();
    let queue: Pending<B>[] = [];
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
  private load(start: LoaderState, stop: AbortSignal): Pending<B> {
    const { epoch, cursor } = start;
    const count = Math.min(this.options.batchSize, this.length - cursor);
    const flips = this.options.flip > 0 ? (i: number) => this.flips(epoch, cursor + i) : undefined;
    const batch = this.read({ epoch, indices: this.indices(epoch, cursor, count), flips }, stop);
    batch.catch(() => undefined); // whoever awaits the batch gets the error; an abandoned one is nobody's
    return { start, end: this.normalize({ epoch, cursor: cursor + count }), batch };
  }

  /** The same position, at the start of the next epoch when this one has no batch left. */
  private normalize({ epoch, cursor }: LoaderState): LoaderState {
    const left = this.length - cursor;
    const over = left < (this.options.dropLast ? this.options.batchSize : 1);
    return over ? { epoch: epoch + 1, cursor: 0 } : { epoch, cursor };
  }

  private indices(epoch: number, cursor: number, count: number): Uint32Array {
    if (!this.options.shuffle) return Uint32Array.from({ length: count }, (_, i) => cursor + i);
    if (this.order?.epoch !== epoch) {
      const random = new HostRandom(this.options.seed, orderStream * 2 ** 32 + epoch);
      this.order = { epoch, indices: random.permutation(this.length) };
    }
    return this.order.indices.slice(cursor, cursor + count);
  }

  private flips(epoch: number, position: number): boolean {
    const [word] = philox4x32([position, HOST_LANE, epoch, flipStream], this.key);
    return word < this.options.flip * 2 ** 32;
  }
}

function samePosition(a: LoaderState, b: LoaderState): boolean {
  return a.epoch === b.epoch && a.cursor === b.cursor;
}

export function checkCount(name: string, value: number, least: number): void {
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
