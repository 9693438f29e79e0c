/** `diffit train`: a training run in a folder, from a preset or a recipe. */
import '../autograd.js';
import { setDefaultDevice } from '../device.js';
import { OptionError } from '../errors.js';
import {
  type NonFinitePolicy,
  planTraining,
  type Recipe,
  readRecipe,
  type StepReport,
  TrainingRun,
} from '../train/index.js';
import { openVae } from './download.js';
import { interruptible } from './interrupt.js';
import { ensureWritableFolder } from './output.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface TrainOptions {
  preset?: string;
  recipe?: string;
  vae?: string;
  data?: string;
  steps?: number;
  batch?: number;
  microBatch?: number;
  lr?: number;
  augment?: number;
  precision?: 'f32' | 'bf16';
  seed: number;
  device: string;
  checkpointEvery: number;
  keep: number;
  nonFinite: NonFinitePolicy;
  sampleEvery?: number;
  out: string;
  resume?: boolean;
  report?: boolean;
  plan?: boolean;
  gpu: string;
  gpus: number;
  utilization?: number;
}

/** Steps between sample grids. */
const defaultSampleEvery = 1000;

export async function train(options: TrainOptions, terminal: Terminal): Promise<number> {
  const { out, seed, resume, checkpointEvery, report } = options;
  const plan = planTraining(await recipeOf(options), { device: options.device });
  if (options.plan) {
    await (await import('./plan.js')).printCost(plan, options.steps, options, terminal);
    return 0;
  }
  const { images, batch: batchSize } = plan.training;
  const steps = options.steps ?? (images && Math.ceil(images / batchSize));
  const canSample = plan.kind === 'ImageDiffiT' || options.vae !== undefined;
  const sampleEvery = options.sampleEvery ?? (canSample ? defaultSampleEvery : 0);
  if (steps === undefined)
    throw new OptionError('Give --steps N, the number of optimizer steps, or "images" in a recipe.');
  if (plan.data === undefined)
    throw new OptionError(
      'Give --data PATH: a folder of images, a zip, IDX or CIFAR-10 files, "mnist", or for a latent model what `diffit data encode` made.',
    );
  setDefaultDevice(options.device);
  await ensureWritableFolder(out);
  const vae = await openVae(options.vae, terminal);
  const { keep: keepCheckpoints, nonFinite } = options;
  let note = (text: string): void => terminal.note(text);
  const onNote = (text: string): void => note(text);
  const kept = { checkpointEvery, keepCheckpoints, sampleEvery, nonFinite };
  const run = await TrainingRun.open({ plan, out, seed, resume, ...kept, vae, report, onNote });
  try {
    const { trainer, dataset } = run;
    const { batch, precision } = plan.training;
    terminal.note(
      `${plan.preset ?? 'recipe'}: ${(trainer.model.parameterCount() / 1e6).toFixed(2)}M parameters in ${precision}, ` +
        `${dataset.length} images, ${steps} steps of ${batch}${trainer.step > 0 ? `, resuming after step ${trainer.step}` : ''}`,
    );
    return await interruptible(
      terminal,
      'Finishing the step and writing a checkpoint (again to stop at once).',
      async (signal) => {
        const progress = await terminal.progress('Training', steps, trainer.step);
        note = (text) => progress.note(text);
        const onStep = (report: StepReport): void => {
          progress.update(report.step, details(report));
          terminal.data(report);
        };
        let finished = false;
        try {
          finished = await run.train(steps, { signal, onStep, onFile: (path) => progress.note(path) });
        } finally {
          progress.stop();
        }
        if (!finished) {
          terminal.note(`Stopped after step ${trainer.step}. Go on with --resume.`);
          return 0;
        }
        const files = await run.finish();
        terminal.data({ step: trainer.step, images: trainer.images, ...files });
        terminal.print(`${trainer.step} steps, ${trainer.images} images: ${Object.values(files).join(', ')}`);
        return 0;
      },
    );
  } finally {
    await run.close();
    vae?.dispose();
  }
}

/** The recipe of --preset or --recipe, with the options that replace parts of it. */
async function recipeOf(options: TrainOptions): Promise<Recipe> {
  const { preset, recipe, data, batch, microBatch, lr, precision, augment: p } = options;
  if (preset !== undefined && recipe !== undefined) throw new OptionError('Give --preset or --recipe, not both.');
  if (preset === undefined && recipe === undefined) throw new OptionError('Give --preset NAME or --recipe FILE.');
  const base: Recipe = recipe === undefined ? { preset } : await readRecipe(recipe);
  const augment = p === undefined ? undefined : { ...(base.training?.augment as object | undefined), p };
  const given = Object.entries({ batch, microBatch, lr, precision, augment }).filter(
    ([, value]) => value !== undefined,
  );
  return { ...base, ...(data !== undefined && { data }), training: { ...base.training, ...Object.fromEntries(given) } };
}

function details({ loss, lr, imagesPerSecond }: StepReport): string {
  return `loss ${loss.toFixed(4)}  lr ${lr.toExponential(2)}  ${imagesPerSecond.toFixed(0)} images/s`;
}
