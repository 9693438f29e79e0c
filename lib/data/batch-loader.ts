/**
 * Batches of anything that can be read by index, read in the background. Every epoch has an order of its own that depends
 * on the seed and the epoch alone (Philox), so a loader restored to a position goes on with the same batches as one that
 * never stopped.
 */
import { DataError, DisposedError, OptionError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { HOST_LANE, HostRandom, philox4x32, splitWords } from '../random.js';

/** Options of {@link BatchLoader}. */
export interface LoaderOptions {
  /** Images per batch. */
  batchSize: number;
  /** Seeds the orders and the flips. Default 0. */
  seed?: number;
  /** A new order for each epoch, else that of the data set. Default true. */
  shuffle?: boolean;
  /** Leaves out the images at the end of an epoch that do not fill a batch. Default true. */
  dropLast?: boolean;
  /** Batches read ahead while one is in use, 0 for none. Default 2. */
  prefetch?: number;
  /** Epochs until the iteration ends, counted from the start of training. Default: endless. */
  epochs?: number;
  /** Probability of a horizontal flip, drawn per image and epoch. Default 0. */
  flip?: number;
  /** Ends the iteration with the signal's reason. */
  signal?: AbortSignal;
}

/** The schema's entries of {@link LoaderOptions}. */
export const loaderFields = (...[z, is]: Parameters<Parameters<typeof schema>[0]>) =>
  ({
    batchSize: is.count,
    seed: is.natural.default(0),
    shuffle: z.boolean().default(true),
    dropLast: z.boolean().default(true),
    prefetch: is.natural.default(2),
    epochs: z.union([is.natural, z.literal(Number.POSITIVE_INFINITY)]).default(Number.POSITIVE_INFINITY),
    flip: is.share.default(0),
    signal: is.signal.optional(),
  }) satisfies Fields<LoaderOptions>;
const loaderSchema = schema((z, is) => z.strictObject(loaderFields(z, is)));

/** Where a loader stands: `cursor` images of the order of `epoch` were delivered. Plain JSON. */
export interface LoaderState {
  /** From 0. */
  epoch: number;
  /** Images delivered, from 0. */
  cursor: number;
}

/** What a batch is to hold. */
export interface Draw {
  /** Which images of the data set. */
  indices: Uint32Array;
  /** From 0. */
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
 * Batches of what can be read by index, read in the background. Every epoch has an order of its own that depends on the seed and the epoch alone.
 *
 * `for await (const batch of loader)`: the position belongs to the loader, so leaving the loop and iterating again goes
 * on where it was. Errors of the data set end the iteration at the batch they belong to. {@link BatchLoader.dispose} stops the reading ahead.
 */
export abstract class BatchLoader<B> implements AsyncIterable<B>, Disposable {
  /** Batches of an epoch; with dropLast, full ones. */
  readonly batchesPerEpoch: number;
  private readonly options: Required<Omit<LoaderOptions, 'signal'>>;
  private readonly signal?: AbortSignal;
  private readonly key: [number, number];
  private readonly running = new Set<AbortController>();
  private disposed = false;
  private position: LoaderState = { epoch: 0, cursor: 0 };
  private order?: { epoch: number; indices: Uint32Array };

  /**
   * @param length - Images of the data set.
   * @throws {OptionError} An option that is missing, unknown or out of range; with dropLast, a batch larger than the data set.
   * @throws {DataError} An empty data set.
   */
  constructor(
    private readonly length: number,
    options: LoaderOptions,
  ) {
    const { signal, ...settings } = parseOptions(loaderSchema, options, new.target.name);
    const { batchSize, seed, dropLast } = settings;
    this.options = settings;
    this.signal = signal;
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

  /** Stops the reading ahead and ends every iteration. The data set stays open: it is its owner's. Calling it again does nothing. */
  dispose(): void {
    this.disposed = true;
    for (const stop of this.running) stop.abort();
  }

  /** Called at the end of the block by `using loader = …`: {@link BatchLoader.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /**
   * Batches from the position on. Rejects with the signal's reason when aborted.
   *
   * @throws {DisposedError} After dispose().
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<B, void, undefined> {
    if (this.disposed) throw new DisposedError('This loader was disposed; make another one to read on.');
    const stop = new AbortController();
    this.running.add(stop);
    let queue: Pending<B>[] = [];
    try {
      for (;;) {
        if (this.disposed) return;
        this.signal?.throwIfAborted();
        if (queue.length > 0 && !samePosition(queue[0].start, this.position)) queue = [];
        while (queue.length <= this.options.prefetch) {
          const start = queue.at(-1)?.end ?? this.position;
          if (start.epoch >= this.options.epochs) break;
          queue.push(this.load(start, stop.signal));
        }
        const next = queue.shift();
        if (!next) return;
        const batch = await untilAborted(next.batch, this.signal).catch((error) => {
          if (!this.disposed) throw error;
          return undefined;
        });
        if (batch === undefined) return;
        if (!samePosition(next.start, this.position)) continue; // restore() was called meanwhile
        this.position = next.end;
        yield batch;
      }
    } finally {
      stop.abort();
      this.running.delete(stop);
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
