/**
 * A training run in a folder:
 *
 *     DIR/run.json                         settings, steps to do, when it ran and how it ended
 *     DIR/log.jsonl                        one JSON object per step
 *     DIR/checkpoint-0001000.safetensors   the newest two, or as many as are to be kept
 *     DIR/samples/0001000.png              images of the averaged weights
 *     DIR/report.html                      with `report`: a page about the run, renewed as it goes on
 *     DIR/model.safetensors, DIR/loss.svg  at the end: the averaged weights, and the loss curve
 */
import { rename, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { DataLoader, type Dataset, type LatentDataset, LatentLoader, openDataset, openLatents } from '../data/index.js';
import { devices, memory } from '../device.js';
import { GaussianDiffusion } from '../diffusion/index.js';
import { DataError, FileFormatError, NonFiniteError, OptionError, TrainError } from '../errors.js';
import { makeFolder, removeTemporaries, toFileError } from '../io/files.js';
import { imageGrid, saveImage } from '../io/index.js';
import { type DiffusionModel, ImageDiffiT, LatentTransformer, modelKinds } from '../models/index.js';
import { defaultGenerator } from '../ops/random.js';
import { AdamW, edmEmaDecay, type LrSchedule, rampLr } from '../optim/index.js';
import { type Fields, type Output, parseOptions, schema } from '../options.js';
import { autocast } from '../scope.js';
import {
  checkpointPath,
  listCheckpoints,
  pruneCheckpoints,
  type RunConfig,
  restoreCheckpoint,
  restoreWeights,
  saveCheckpoint,
} from './checkpoint.js';
import { generate, imageShape, type LatentDecoder } from './generate.js';
import { readLog, TrainLog } from './log.js';
import { type BatchSource, type NonFinitePolicy, nonFinitePolicies, type StepReport, Trainer } from './loop.js';
import { lossCurveSvg } from './loss-curve.js';
import { describeModel, type ModelDescription, saveModel } from './model-file.js';
import { edmObjective, gaussianObjective, latentObjective, type Objective } from './objective.js';
import type { TrainingPlan } from './recipe.js';
import { RunRecorder, readRecord } from './record.js';
import { ReportKeeper } from './report/write.js';
import { checkSampler } from './sampler-settings.js';

/** Options of {@link TrainingRun.open}. */
export interface TrainingRunOptions {
  /** What to train on what, from planTraining(). */
  plan: TrainingPlan;
  /** Folder of the run; made if there is none. */
  out: string;
  /** Names all random numbers of the run: initial weights, order of the data, noise. Default 0. */
  seed?: number;
  /** Go on from the folder's newest checkpoint that is whole. Default false: the folder must not hold a run. */
  resume?: boolean;
  /** Steps between checkpoints. Default 1000; one is also written at the end and when a signal stops the run. */
  checkpointEvery?: number;
  /** Newest checkpoints to keep. Default 2. */
  keepCheckpoints?: number;
  /** What to do about steps that are not finite. Default 'stop', which writes a checkpoint first. */
  nonFinite?: NonFinitePolicy;
  /** Told, in a sentence, what was found and dealt with: a damaged checkpoint, a step that was not finite. */
  onNote?: (text: string) => void;
  /** Steps between sample grids; 0 for none. Default 0. */
  sampleEvery?: number;
  /** Turns a latent model's samples into images, for sample grids. */
  vae?: LatentDecoder;
  /** Learning rate by images seen; default the plan's linear ramp. */
  lr?: LrSchedule;
  /** Keep a page about the run in report.html, as writeReport() makes it: every ten seconds at most, and at the end. Default false. */
  report?: boolean;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    plan: is.value<TrainingPlan>(
      (x) => typeof x === 'object' && x !== null && 'training' in x && 'sampler' in x,
      'a plan, from planTraining()',
    ),
    out: is.name,
    seed: is.natural.default(0),
    resume: z.boolean().default(false),
    checkpointEvery: is.natural.default(1000),
    keepCheckpoints: is.count.default(2),
    nonFinite: z.enum(nonFinitePolicies).default('stop'),
    onNote: is.callback<NonNullable<TrainingRunOptions['onNote']>>().optional(),
    sampleEvery: is.natural.default(0),
    vae: is.having<LatentDecoder>(['decode'], 'a decoder of latents').optional(),
    lr: is.callback<LrSchedule>().optional(),
    report: z.boolean().default(false),
  } satisfies Fields<TrainingRunOptions>),
);
type Settings = Output<typeof optionsSchema>;

/** What {@link TrainingRun.train} reports while it works. */
export interface TrainCallbacks {
  /** Stops after the step being computed and writes a checkpoint. */
  signal?: AbortSignal;
  /** Called once per step, in order. */
  onStep?: (report: StepReport) => void;
  /** A checkpoint, a sample grid or the model was written. */
  onFile?: (path: string) => void;
}

const callbacksSchema = schema((z, is) =>
  z.strictObject({
    signal: is.signal.optional(),
    onStep: is.callback<NonNullable<TrainCallbacks['onStep']>>().optional(),
    onFile: is.callback<NonNullable<TrainCallbacks['onFile']>>().optional(),
  } satisfies Fields<TrainCallbacks>),
);

/** Images per class, and of an unconditional model, in sample grids. */
const sampleColumns = 4;
const sampleCount = 16;

/** A training run in a folder: opened, trained, finished, closed (or opened with `await using`). It resumes bit for bit. */
export class TrainingRun implements AsyncDisposable {
  private constructor(
    /** The loop, with the model, the optimizer and the position in the data. */
    readonly trainer: Trainer<DiffusionModel>,
    /** The network whose weights are the moving average. */
    readonly average: DiffusionModel,
    /** What it trains on. */
    readonly dataset: Dataset | LatentDataset,
    private readonly log: TrainLog,
    private readonly recorder: RunRecorder,
    private readonly report: ReportKeeper | undefined,
    private readonly options: Settings,
    private readonly config: RunConfig & { model: ModelDescription },
  ) {}

  /**
   * Opens the data, makes the model, and loads the newest checkpoint when resuming. Throws OptionError, DataError,
   * FileError, TrainError (there is a run already, or none to resume, or its settings differ).
   */
  static async open(options: TrainingRunOptions): Promise<TrainingRun> {
    const settings = parseOptions(optionsSchema, options, 'TrainingRun.open');
    const { plan, out, seed, resume, sampleEvery, vae, nonFinite } = settings;
    const { training, data } = plan;
    if (data === undefined) throw new OptionError('There is no data to train on: name a data set.');
    const [newest] = (await listCheckpoints(out)).slice(-1);
    // A run that was killed before its first checkpoint goes on from its start.
    if (resume && !newest && !(await readRecord(out).catch(() => undefined)))
      throw new TrainError(`${out} holds no checkpoint to resume from.`);
    if (!resume && newest)
      throw new TrainError(`${out} already holds a run (${newest}): resume it, or choose another folder.`);
    const [model, average] = makeModels(plan, seed);
    checkSampler(model, plan.sampler);
    if (sampleEvery > 0) imageShape(model, vae); // says so when the decoder is missing
    const { dataset, classNames, loader } = await openData(data, model, {
      batchSize: training.batch,
      seed,
      flip: training.flip,
    });
    const { emaDecay, emaHalfLifeImages: halfLifeImages, emaRampUp: rampUp = null } = training;
    const trainer = new Trainer<DiffusionModel>({
      model,
      average,
      loader,
      seed,
      optimizer: new AdamW(model.namedParameters(), {
        lr: training.lr,
        weightDecay: training.weightDecay,
      }),
      objective: objectiveOf(model, training),
      lr:
        settings.lr ??
        rampLr(training.lr, training.lrRampImages, { decay: training.lrDecayImages, final: training.lr / 100 }),
      emaDecay: (images, batch) => emaDecay ?? edmEmaDecay(images, batch, { halfLifeImages, rampUp }),
      microBatch: training.microBatch,
      gradClip: training.gradClip,
      precision: training.precision,
      nonFinite,
    });
    const config = {
      model: describeModel(model, { preset: plan.preset, sampler: plan.sampler, classNames }),
      training,
      data: { images: dataset.length },
    };
    if (newest) await restoreNewest(settings, trainer, config);
    await makeFolder(out);
    await sweepLeftovers(out);
    const [{ device }] = model.parameters();
    const recorder = await RunRecorder.open(out, trainer.step, {
      seed,
      device,
      deviceModel: devices().find(({ name }) => name === device)?.model,
      parameters: model.parameterCount(),
      data,
      config,
    });
    const log = await TrainLog.open(join(out, 'log.jsonl'), trainer.step);
    const report = settings.report ? new ReportKeeper(out) : undefined;
    return new TrainingRun(trainer, average, dataset, log, recorder, report, settings, config);
  }

  /** Trains until `steps` steps are done in all; false when the signal stopped it. Throws TrainError on a loss that is not finite. */
  async train(steps: number, callbacks: TrainCallbacks = {}): Promise<boolean> {
    parseOptions(callbacksSchema, callbacks, 'TrainingRun.train');
    await this.recorder.running(steps);
    try {
      await this.work(steps, callbacks);
    } catch (error) {
      await this.ended('failed', (error as Error).message).catch(() => undefined); // the first error is the one to tell
      throw error;
    }
    const finished = this.trainer.step >= steps;
    await this.ended(finished ? 'finished' : 'interrupted');
    if (this.report) callbacks.onFile?.(this.report.path);
    return finished;
  }

  /** Writes the averaged weights and the loss curve, and returns their paths, and the report's where one is kept. */
  async finish(): Promise<{ model: string; lossCurve: string; report?: string }> {
    const model = join(this.options.out, 'model.safetensors');
    await saveModel(model, this.average, { description: this.config.model });
    const lossCurve = join(this.options.out, 'loss.svg');
    const svg = lossCurveSvg(await readLog(join(this.options.out, 'log.jsonl')));
    await writeFile(lossCurve, svg).catch((error) => {
      throw toFileError(error, lossCurve, 'written');
    });
    if (this.recorder.status !== 'finished') await this.ended('finished');
    return { model, lossCurve, ...(this.report && { report: this.report.path }) };
  }

  /** Frees everything but the model that was averaged. */
  async close(): Promise<void> {
    await this.log.close();
    if ('close' in this.dataset) this.dataset.close?.();
    this.trainer.dispose();
    this.trainer.model.dispose();
    this.average.dispose();
  }

  /** As close(). */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  private async work(steps: number, callbacks: TrainCallbacks): Promise<void> {
    const { trainer } = this;
    const { checkpointEvery, sampleEvery } = this.options;
    const due = (step: number, every: number): boolean => every > 0 && step % every === 0;
    const [{ device }] = trainer.model.parameters();
    if (this.options.nonFinite === 'rewind' && (await listCheckpoints(this.options.out)).length === 0)
      await this.checkpoint(callbacks);
    const training = trainer.run(steps, {
      signal: callbacks.signal,
      onStep: async (report) => {
        await this.log.write({ ...report, memoryBytes: memory(device).reservedBytes });
        this.report?.touch();
        if (report.nonFinite)
          this.options.onNote?.(`Step ${report.step} was not finite (${report.nonFinite.join(', ')}) and is left out.`);
        callbacks.onStep?.(report);
      },
      restsAfter: (step) => due(step, checkpointEvery) || due(step, sampleEvery),
      rewind: async () => {
        const [newest] = (await listCheckpoints(this.options.out)).slice(-1);
        this.options.onNote?.(`Back to the weights of ${newest}.`);
        await restoreWeights(newest, trainer);
      },
      atRest: async (step) => {
        if (due(step, checkpointEvery)) await this.checkpoint(callbacks);
        if (due(step, sampleEvery)) await this.samples(callbacks);
        this.report?.touch();
      },
    });
    try {
      await training;
    } catch (error) {
      // Such steps have changed no weight: what was learnt until then is kept, unless the weights had overflowed before.
      if (error instanceof NonFiniteError) {
        await this.checkpoint(callbacks).catch((failure) => this.options.onNote?.((failure as Error).message));
      }
      throw error;
    }
    await this.checkpoint(callbacks);
  }

  private async ended(status: 'finished' | 'interrupted' | 'failed', error?: string): Promise<void> {
    await this.recorder.ended(status, error);
    await this.report?.write();
  }

  private async checkpoint({ onFile }: TrainCallbacks): Promise<void> {
    const path = checkpointPath(this.options.out, this.trainer.step);
    const [newest] = (await listCheckpoints(this.options.out)).slice(-1);
    if (newest === path) return;
    await saveCheckpoint(path, this.trainer, this.config);
    await pruneCheckpoints(this.options.out, this.options.keepCheckpoints);
    onFile?.(path);
  }

  /** A grid of the averaged model's images; the same noise every time, so that one sees them become clear. */
  private async samples({ signal, onFile }: TrainCallbacks): Promise<void> {
    const { average } = this;
    const { vae, plan } = this.options;
    const { sampler } = plan;
    const { numClasses } = average.config;
    const rows = Math.min(numClasses, 10);
    const count = rows > 0 ? rows * sampleColumns : sampleCount;
    const labels = rows > 0 ? Array.from({ length: count }, (_, i) => Math.floor(i / sampleColumns)) : undefined;
    const [height, width, channels] = imageShape(average, vae);
    const pixels = new Uint8Array(count * height * width * channels);
    let filled = 0;
    try {
      await autocast(plan.training.precision, async () => {
        for await (const part of generate(average, { count, labels, sampler, vae, signal })) {
          pixels.set(part, filled);
          filled += part.length;
        }
      });
    } catch (error) {
      if (signal?.aborted) return;
      throw error;
    }
    const folder = join(this.options.out, 'samples');
    await makeFolder(folder);
    const path = join(folder, `${String(this.trainer.step).padStart(7, '0')}.png`);
    await saveImage(path, imageGrid(pixels, [count, height, width, channels], { columns: sampleColumns }));
    onFile?.(path);
  }
}

/** The network and its average, with initial weights that depend on the seed alone. */
function makeModels({ kind, model, training }: TrainingPlan, seed: number): [DiffusionModel, DiffusionModel] {
  const type = modelKinds[kind] as new (config: object) => DiffusionModel;
  const before = defaultGenerator.state();
  defaultGenerator.restore({ seed, stream: 0 });
  try {
    const [network, average] = [new type(model), new type(model)];
    if (network instanceof LatentTransformer) network.gradientCheckpointing = training.gradientCheckpointing;
    return [network, average];
  } finally {
    defaultGenerator.restore(before);
  }
}

/** EDM's loss for image-space models, Gaussian diffusion's for latent ones. */
function objectiveOf(
  model: DiffusionModel,
  { pMean, pStd, augment, weighting }: TrainingPlan['training'],
): Objective<DiffusionModel> {
  if (model instanceof ImageDiffiT) return edmObjective({ pMean, pStd, augment }) as Objective<DiffusionModel>;
  const ddpm = new GaussianDiffusion({ learnSigma: model.config.learnSigma, weighting });
  return latentObjective(gaussianObjective(ddpm) as Objective<DiffusionModel>);
}

/** The images, or for a latent model the folder of latents, and batches of them. Throws DataError when they do not fit. */
async function openData(
  data: string,
  model: DiffusionModel,
  { flip, ...options }: { batchSize: number; seed: number; flip: boolean },
): Promise<{ dataset: Dataset | LatentDataset; classNames?: readonly string[]; loader: BatchSource }> {
  if (model instanceof ImageDiffiT) {
    const { imgResolution: size, inChannels } = model.config;
    const dataset = await openDataset(data, { size, channels: inChannels as 1 | 3 });
    const { numClasses, classNames } = dataset;
    checkFits(data, dataset.imageShape, imageShape(model));
    checkClasses(data, numClasses, classNames, model);
    return { dataset, classNames, loader: new DataLoader(dataset, { ...options, flip: flip ? 0.5 : 0 }) };
  }
  const dataset = await openLatents(data);
  const { latentShape, numClasses, classNames, mirrored } = dataset.settings;
  const { inChannels, inputSize } = model.config;
  checkFits(data, latentShape, [inChannels, inputSize, inputSize]);
  checkClasses(data, numClasses, classNames, model);
  return { dataset, classNames, loader: new LatentLoader(dataset, { ...options, flip: flip && mirrored ? 0.5 : 0 }) };
}

function checkFits(data: string, given: readonly number[], expected: readonly number[]): void {
  if (String(given) === String(expected)) return;
  throw new DataError(`${data} has samples of ${given.join(' x ')}, this model makes ${expected.join(' x ')}.`);
}

/** A class without images would be sampled and never learnt: where the data name their classes, the model has those. */
function checkClasses(
  data: string,
  classes: number,
  classNames: readonly string[] | undefined,
  { config: { numClasses } }: DiffusionModel,
): void {
  if (numClasses === 0) return;
  if (classes === 0) throw new DataError(`${data} has no labels, and this model has ${numClasses} classes.`);
  if (classNames ? classes === numClasses : classes <= numClasses) return;
  throw new DataError(
    `${data} has ${classes} classes, this model ${numClasses}: set "numClasses" to ${classes} in the recipe's "model".`,
  );
}

/** Loads the newest checkpoint that is whole; damaged ones are put aside under another name. Throws when none is whole. */
async function restoreNewest(
  { out, onNote }: TrainingRunOptions,
  trainer: Trainer<DiffusionModel>,
  config: RunConfig,
): Promise<void> {
  const paths = (await listCheckpoints(out)).reverse();
  for (const [i, path] of paths.entries()) {
    try {
      await restoreCheckpoint(path, trainer, config);
      for (const damaged of paths.slice(0, i)) await rename(damaged, `${damaged}.damaged`);
      return;
    } catch (error) {
      if (!(error instanceof FileFormatError) || i === paths.length - 1) throw error;
      onNote?.(`${error.message} Going on from ${paths[i + 1]}.`);
    }
  }
}

/** Deletes half-written files of a process of this machine that is gone, as a killed one leaves them. */
async function sweepLeftovers(out: string): Promise<void> {
  const record = await readRecord(out).catch(() => undefined);
  if (!record || record.process.host !== hostname() || alive(record.process.pid)) return;
  for (const folder of [out, join(out, 'samples')]) await removeTemporaries(folder);
}

function alive(pid: number): boolean {
  if (pid === process.pid) return false; // its number was given to us
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
