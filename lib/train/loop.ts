/**
 * The training loop: batches in, optimizer steps and moving averages out, one scope per step. A step's loss is read while
 * the next step is already enqueued, so the device never waits for JavaScript; at most two steps are in flight.
 *
 * A step depends on the weights, its batch, and random streams named by (seed, step) alone, so a run that was stopped
 * and resumed repeats the uninterrupted one bit for bit.
 *
 * Whether a step's loss and gradients are finite is decided on the device: the optimizer's scale becomes NaN, with which it changes nothing.
 * So a step that is not finite leaves no trace in the weights, however late the host hears of it.
 */
import type { Batch, LatentBatch, LoaderState } from '../data/index.js';
import { NonFiniteError, OptionError, TrainError } from '../errors.js';
import { replayed } from '../graph.js';
import { Module } from '../nn/index.js';
import { defaultGenerator } from '../ops/random.js';
import { clipScale, squareSums } from '../optim/clip.js';
import { Adam, Ema, type LrSchedule, squareSum } from '../optim/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { autocast, noGrad, scope } from '../scope.js';
import type { Tensor } from '../tensor.js';
import { type Objective, type TensorBatch, uploadBatch } from './objective.js';

/** A source of batches that can be stopped and continued; data.DataLoader and data.LatentLoader are. */
export interface BatchSource extends AsyncIterable<Batch | LatentBatch> {
  /** The position after the batches handed out so far; plain JSON. */
  state(): LoaderState;
  /** Puts the source back to a position of state(). */
  restore(state: LoaderState): void;
}

/** Options of {@link Trainer}. */
export interface TrainerOptions<M extends Module> {
  /** The network being trained; put into training mode. */
  model: M;
  /** A second network of the same configuration: holds the moving average of the weights. */
  average: M;
  /** Of the model's parameters. */
  optimizer: Adam;
  /** Loss of a batch; a mean over its images. */
  objective: Objective<M>;
  /** Where the batches come from. */
  loader: BatchSource;
  /** Names all random numbers of the run. Default 0. */
  seed?: number;
  /** Learning rate by images seen before the step. Default: the optimizer's. */
  lr?: LrSchedule;
  /** Decay of the average, by images seen before the step and images of the step. Default: 0.9999. */
  emaDecay?: (images: number, batch: number) => number;
  /** Most images per forward pass; larger batches are accumulated over several. Default: the whole batch. */
  microBatch?: number;
  /** Largest L2 norm of all gradients. Default: no clipping. */
  gradClip?: number;
  /**
   * 'bf16': the objective runs in autocast('bf16'); weights, their gradients and the optimizer stay f32. Default 'f32'. (f16 would need its losses
   * scaled, which this loop does not do.)
   */
  precision?: TrainingPrecision;
  /** What to do about steps whose loss or gradients are NaN or infinite. Default 'stop'. */
  nonFinite?: NonFinitePolicy;
}

/** In what training can multiply matrices. */
export type TrainingPrecision = 'f32' | 'bf16';

/**
 * A step whose loss or gradients are not finite never changes weights, averages or the optimizer's moments. After it the run ends with a NonFiniteError
 * ('stop'), goes on ('skip'), or first goes back to the weights of the last checkpoint, and on with the data that follow ('rewind'), since the
 * weights may have gone astray before. After ten such steps in a row every run ends.
 */
export type NonFinitePolicy = (typeof nonFinitePolicies)[number];
export const nonFinitePolicies = ['stop', 'skip', 'rewind'] as const;

const optionsSchema = schema((z, is) => {
  const model = is.value<Module>((x) => x instanceof Module, 'a Module');
  const precisionMessage = (input: unknown): string | undefined =>
    input === 'f16' ? 'expected "f32" or "bf16" (f16 needs loss scaling, which there is none of)' : undefined;
  return z.strictObject({
    model,
    average: model,
    optimizer: is.value<Adam>((x) => x instanceof Adam, 'an Adam'),
    objective: is.callback<Objective<Module>>(),
    loader: is.having<BatchSource>(['state', 'restore'], 'a source of batches'),
    seed: is.natural.default(0),
    lr: is.callback<LrSchedule>().optional(),
    emaDecay: is.callback<NonNullable<TrainerOptions<Module>['emaDecay']>>().optional(),
    microBatch: is.count.optional(),
    gradClip: z.number().positive().optional(),
    precision: z.enum(['f32', 'bf16'], { error: ({ input }) => precisionMessage(input) }).default('f32'),
    nonFinite: z.enum(nonFinitePolicies).default('stop'),
  } satisfies Fields<TrainerOptions<Module>>);
});

/** One step as it is logged. */
export interface StepReport {
  /** From 1. */
  step: number;
  /** Mean over the step's images. */
  loss: number;
  /** Learning rate of the step. */
  lr: number;
  /** Seen by the end of the step. */
  images: number;
  /** Since the report before. */
  imagesPerSecond: number;
  /** Before clipping; only with gradClip. */
  gradNorm?: number;
  /** What was NaN or infinite: "loss", or the parameters whose gradients were. The step has then changed no weight. */
  nonFinite?: readonly string[];
  /** Held from the device, by live tensors and the pool's free blocks; only in a run's log. */
  memoryBytes?: number;
}

/** Options of {@link Trainer.run}. */
export interface RunOptions {
  /** Stops after the step being computed when aborted; run() then returns normally. */
  signal?: AbortSignal;
  /** Called once per step, in order, when its loss has arrived (the device is then one step further). */
  onStep?: (report: StepReport) => void | Promise<void>;
  /** Called with the number of the step between steps; when it returns true, `atRest` is called. */
  restsAfter?: (step: number) => boolean;
  /** Called when every step so far is done and reported: the moment to save or sample. */
  atRest?: (step: number) => Promise<void>;
  /** Of the policy 'rewind': puts the weights, the averages and the optimizer back to an earlier state. The trainer is at rest. */
  rewind?: () => Promise<void>;
}

const runSchema = schema((z, is) =>
  z.strictObject({
    signal: is.signal.optional(),
    onStep: is.callback<NonNullable<RunOptions['onStep']>>().optional(),
    restsAfter: is.callback<NonNullable<RunOptions['restsAfter']>>().optional(),
    atRest: is.callback<NonNullable<RunOptions['atRest']>>().optional(),
    rewind: is.callback<NonNullable<RunOptions['rewind']>>().optional(),
  } satisfies Fields<RunOptions>),
);

interface InFlight {
  step: number;
  lr: number;
  images: number;
  batch: number;
  loss: Promise<number>;
  /** Sums of squares: of all gradients, and of each by its name. */
  squares: Promise<Float32Array>;
  names: readonly string[];
}

/** Steps in a row that are not finite, after which no policy goes on. */
const mostInRow = 10;

/** Streams per step, and how many the objective may use; the rest is the model's (dropout). */
const streamsPerStep = 2 ** 16;
const objectiveStreams = 16;

/** Trains a network by an objective, step by step; see {@link TrainerOptions}. {@link TrainingRun} adds folder, log and checkpoints. */
export class Trainer<M extends Module> implements Disposable {
  /** Steps done. */
  step = 0;
  /** Images seen. */
  images = 0;
  /** The network that is trained. */
  readonly model: M;
  /** Its moving average. */
  readonly average: M;
  /** Of the model's parameters. */
  readonly optimizer: Adam;
  /** Where the batches come from. */
  readonly loader: BatchSource;
  /** Names all random numbers of the run. */
  readonly seed: number;
  private readonly ema: Ema;
  private readonly options: TrainerOptions<M>;
  private reportedAt = 0;
  /** By its first image, what replayed() knows the work of each part of a step by. */
  private readonly parts: Record<number, object> = {};

  /**
   * Sets the averages to the model's weights.
   *
   * @throws {OptionError} An option that is missing, unknown or out of range; networks whose parameters differ.
   */
  constructor(options: TrainerOptions<M>) {
    const { seed } = parseOptions(optionsSchema, options, 'Trainer');
    const { model, average, optimizer, loader } = options;
    this.options = options;
    this.model = model.train();
    this.average = average.eval();
    this.optimizer = optimizer;
    this.loader = loader;
    this.seed = seed;
    this.ema = new Ema(model.namedParameters(), average.namedParameters());
    this.ema.reset();
  }

  /**
   * Trains until `steps` steps are done in all. Throws NonFiniteError when a loss or gradient is not finite and the policy is 'stop', or ten steps
   * in a row were not; the trainer is then at rest and its weights are good. Throws TrainError when the data end.
   */
  async run(steps: number, options: RunOptions = {}): Promise<void> {
    const { signal, onStep, restsAfter, atRest, rewind } = parseOptions(runSchema, options, 'Trainer.run');
    if (!(steps >= 0)) throw new OptionError(`Trainer.run: steps is ${steps}, expected a number of at least 0.`);
    const { nonFinite: policy = 'stop' } = this.options;
    if (policy === 'rewind' && !rewind)
      throw new OptionError('Trainer.run: the policy "rewind" needs the option rewind.');
    const inFlight: InFlight[] = [];
    let bad: NonFiniteError | undefined;
    let inRow = 0;
    const settle = async (atMost: number): Promise<void> => {
      while (inFlight.length > atMost) {
        const error = await this.report(inFlight.shift() as InFlight, onStep);
        inRow = error ? inRow + 1 : 0;
        bad ??= error;
      }
    };
    const treat = async (): Promise<void> => {
      if (!bad) return;
      const error = bad;
      if (policy !== 'skip') await settle(0);
      if (policy === 'stop') throw error;
      if (inRow >= mostInRow)
        throw new NonFiniteError(`${inRow} steps in a row were not finite: ${error.message}`, error);
      if (policy === 'rewind') await rewind?.();
      bad = undefined;
    };
    const batches = this.loader[Symbol.asyncIterator]();
    this.reportedAt = performance.now();
    try {
      while (this.step < steps && !signal?.aborted) {
        const position = this.loader.state();
        const { value: batch, done } = await batches.next();
        if (done) throw new TrainError(`The data ended after ${this.step} of ${steps} steps.`);
        inFlight.push(this.attempt(batch, position));
        await settle(1);
        await treat();
        if (atRest && restsAfter?.(this.step)) {
          await settle(0);
          await treat();
          await atRest(this.step);
          this.reportedAt = performance.now();
        }
      }
      await settle(0);
      await treat();
    } finally {
      await batches.return?.();
      await Promise.allSettled(inFlight.map(({ loss }) => loss));
    }
  }

  /** Frees the optimizer's running means and what gradients there are. The networks and the loader stay the caller's. */
  dispose(): void {
    this.optimizer.zeroGrad();
    this.optimizer.dispose();
  }

  /** Called at the end of the block by `using trainer = …`: {@link Trainer.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Throws TrainError when a weight is no longer finite, which the next step's loss would show too late. */
  async checkWeights(): Promise<void> {
    const sum = scope(() => squareSum(this.model.parameters()).item());
    if (!Number.isFinite(await sum)) {
      throw new TrainError(`The weights are no longer finite after step ${this.step}; training stopped.`);
    }
  }

  /** One step, enqueued; one that cannot be, for want of memory, leaves nothing and can be taken again, from the batch at `position`. */
  private attempt(batch: Batch | LatentBatch, position: LoaderState): InFlight {
    try {
      return this.enqueue(batch);
    } catch (error) {
      this.optimizer.zeroGrad();
      this.loader.restore(position);
      throw error;
    }
  }

  /** One step, enqueued. */
  private enqueue(batch: Batch | LatentBatch): InFlight {
    const { lr, emaDecay = () => 0.9999, gradClip } = this.options;
    const step = this.step + 1;
    const [count] = batch.shape;
    const rate = lr?.(this.images) ?? this.optimizer.lr;
    const reads = scope(() => {
      const [{ device }] = this.model.parameters();
      const loss = this.gradients(uploadBatch(batch, device), (step + streamsPerStep) * streamsPerStep);
      const graded = [...this.model.namedParameters()].filter(([, { grad }]) => grad);
      const squares = squareSums(graded.map(([, { grad }]) => grad as Tensor));
      const scale = noGrad(() => finiteScale(loss, squares.slice(0, 0, 1), gradClip));
      this.optimizer.lr = rate;
      this.optimizer.step({ scale, ema: { averages: this.ema, decay: emaDecay(this.images, count) } });
      this.optimizer.zeroGrad();
      return {
        loss: quiet(loss.item()),
        squares: quiet(squares.data() as Promise<Float32Array>),
        names: graded.map(([name]) => name),
      };
    });
    this.step = step;
    this.images += count;
    return { step, lr: rate, images: this.images, batch: count, ...reads };
  }

  /** Leaves the gradient of the batch's mean loss in the parameters, and returns that loss. */
  private gradients(batch: TensorBatch, stream: number): Tensor {
    const count = batch.images.shape[0];
    const { objective, microBatch = count, precision = 'f32' } = this.options;
    const before = defaultGenerator.state();
    defaultGenerator.restore({ seed: this.seed, stream: stream + objectiveStreams });
    try {
      let total: Tensor | undefined;
      for (let first = 0; first < count; first += microBatch) {
        const last = Math.min(first + microBatch, count);
        const part: TensorBatch = {
          images: batch.images.slice(0, first, last),
          std: batch.std?.slice(0, first, last),
          labels: batch.labels?.slice(0, first, last),
        };
        const key = { seed: this.seed, stream, firstSample: first };
        this.parts[first] ??= {};
        const share = replayed(this.parts[first], part.images.device, () => {
          const mean = autocast(precision, () => objective(this.model, part, key));
          const share = last - first === count ? mean : mean.mul((last - first) / count);
          share.backward();
          return share;
        });
        total = total ? total.add(share.detach()) : share.detach();
      }
      return total as Tensor;
    } finally {
      defaultGenerator.restore(before);
    }
  }

  /** Tells onStep of a step; returns the error of one that is not finite. */
  private async report(inFlight: InFlight, onStep: RunOptions['onStep']): Promise<NonFiniteError | undefined> {
    const { step, lr, images, batch } = inFlight;
    const [loss, squares] = await Promise.all([inFlight.loss, inFlight.squares]);
    const now = performance.now();
    const imagesPerSecond = Number(((1000 * batch) / (now - this.reportedAt)).toFixed(2));
    this.reportedAt = now;
    const nonFinite = notFinite(loss, squares, inFlight.names);
    await onStep?.({
      step,
      loss,
      lr,
      images,
      imagesPerSecond,
      ...(this.options.gradClip === undefined ? {} : { gradNorm: Math.fround(Math.sqrt(squares[0])) }),
      ...(nonFinite && { nonFinite }),
    });
    return nonFinite && describe(nonFinite, loss, step, lr);
  }
}

/** What the optimizer's step multiplies gradients by: the clipping's scale, or 1; NaN when the loss or a gradient is not finite. */
function finiteScale(loss: Tensor, squares: Tensor, gradClip: number | undefined): Tensor {
  const nothing = loss.reshape([1]).mul(0).add(squares.mul(0)); // 0, or NaN
  return gradClip === undefined ? nothing.add(1) : nothing.add(clipScale(squares, gradClip).scale);
}

/** "loss", or whose gradients were not finite; undefined when all is well. */
function notFinite(loss: number, squares: Float32Array, names: readonly string[]): string[] | undefined {
  if (!Number.isFinite(loss)) return ['loss'];
  if (Number.isFinite(squares[0])) return undefined;
  const bad = names.filter((_, i) => !Number.isFinite(squares[1 + i]));
  return bad.length > 0 ? bad : [...names]; // the sum of all is too large for f32
}

function describe(tensors: string[], loss: number, step: number, lr: number): NonFiniteError {
  const [first, ...others] = tensors;
  const more = others.length > 0 ? ` and ${others.length} more` : '';
  const rate = `learning rate ${lr.toPrecision(3)}`;
  const what =
    first === 'loss'
      ? `The loss is ${loss} at step ${step} (${rate})`
      : `The gradient of ${first}${more} is not finite at step ${step} (loss ${loss.toPrecision(4)}, ${rate})`;
  return new NonFiniteError(`${what}.`, { step, tensors });
}

/** A rejection of this promise is seen where it is awaited, later; until then it is not "unhandled". */
function quiet<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined);
  return promise;
}
