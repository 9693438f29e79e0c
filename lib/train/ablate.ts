/**
 * Ablations: the variants of a study trained on equal budgets, then measured alike, with one table and one plot. Each variant is a training
 * run in a folder of its own, so a study that was stopped goes on where it was.
 */
import { join } from 'node:path';
import { OptionError, unknownName } from '../errors.js';
import { makeFolder, writeAtomically } from '../io/files.js';
import { forwardFlops } from '../models/cost.js';
import type { DiffusionModel } from '../models/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { listCheckpoints } from './checkpoint.js';
import { readLog } from './log.js';
import type { StepReport } from './loop.js';
import { lossCurveSvg } from './loss-curve.js';
import { planTraining, type Recipe, type TrainingPlan } from './recipe.js';
import { readRecord } from './record.js';
import { TrainingRun } from './run.js';

/** What one variant of a study changes in the recipe. */
export type Variant = Pick<Recipe, 'kind' | 'model' | 'training' | 'sampler'>;

/** A question and the variants that answer it, by name. */
export interface Study {
  /** What is compared. */
  title: string;
  /** Where the paper asks it. */
  source: string;
  /** Variants of an image-space model. */
  image?: Readonly<Record<string, Variant>>;
  /** Variants of a latent model. */
  latent?: Readonly<Record<string, Variant>>;
}

const perValue = <V extends string | number>(
  values: readonly V[],
  change: (value: V) => Variant,
  name: (value: V) => string = String,
): Record<string, Variant> => Object.fromEntries(values.map((value) => [name(value), change(value)]));

/** The paper's ablations, as changes of a recipe. */
export const studies: Readonly<Record<string, Study>> = {
  conditioning: {
    title: 'Where the time token enters',
    source: 'Tables 5 and 6, Fig. 7b: TMSA, AdaLN, only the attention bias, only the MLP',
    image: perValue(['tmsa', 'adaln', 'bias-only', 'mlp-only'], (conditioning) => ({ model: { conditioning } })),
    latent: { tmsa: { kind: 'LatentDiffiT' }, adaln: { kind: 'DiT' } },
  },
  window: {
    title: 'Side of the attention window',
    source: 'section 4: 2, 4 and 8 tokens',
    image: perValue(
      [2, 4, 8],
      (windowSize) => ({ model: { windowSize } }),
      (side) => `window-${side}`,
    ),
  },
  embedding: {
    title: 'Frequencies of the time embedding',
    source: 'section 4: positional (DDPM++) and Fourier (NCSN++)',
    image: perValue(['positional', 'fourier'], (timeEmbedding) => ({ model: { timeEmbedding } })),
  },
  guidance: {
    title: 'Scale of classifier-free guidance, of one trained model',
    source: 'Fig. 8',
    image: perValue(
      [1, 1.25, 1.5, 2, 3],
      (cfgScale) => ({ sampler: { cfgScale } }),
      (scale) => `scale-${scale}`,
    ),
    latent: perValue(
      [1, 1.5, 2, 4, 4.4, 6],
      (cfgScale) => ({ sampler: { cfgScale } }),
      (scale) => `scale-${scale}`,
    ),
  },
};

/** What a variant came to. */
export interface VariantResult {
  /** Its name in the study. */
  variant: string;
  /** Folder of its run. */
  folder: string;
  /** Numbers that are learnt. */
  parameters: number;
  /** Operations of a forward pass of one image; a multiply-add counts as two. */
  flops: number;
  /** Optimizer steps. */
  steps: number;
  /** Mean loss of the last tenth of the steps. */
  loss: number;
  /** Median seconds of a step. */
  secondsPerStep: number;
  /** What `evaluate` found, by name. */
  metrics: Record<string, number>;
}

/** What {@link ablate} found; also in ablation.json. */
export interface AblationResult {
  /** Name of the study. */
  study: string;
  /** The recipe that the variants change. */
  recipe: Recipe;
  /** Of all runs. */
  seed: number;
  /** One per variant that is done, in the study's order. */
  results: VariantResult[];
  /** Paths of the table (Markdown) and the plot (SVG). */
  files: { table: string; plot: string };
}

/** A trained variant, for `evaluate`. */
export interface TrainedVariant {
  /** Its name. */
  variant: string;
  /** What it was trained with. */
  plan: TrainingPlan;
  /** The averaged weights. */
  model: DiffusionModel;
  /** Folder of its run. */
  folder: string;
}

/** Options of {@link ablate}. */
export interface AblateOptions {
  /** Name of one of {@link studies}. */
  study: string;
  /** What the variants change; its `data` is what all train on. */
  recipe: Recipe;
  /** Folder of the study; a run in a folder of its own for each variant. */
  out: string;
  /** Optimizer steps of every variant. */
  steps: number;
  /** Of all runs: the same data in the same order, the same noise. Default 0. */
  seed?: number;
  /** Names of the variants to do. Default: all of the study. */
  variants?: readonly string[];
  /** Steps between checkpoints. Default 1000. */
  checkpointEvery?: number;
  /** Measures a trained variant; numbers by name, columns of the table. */
  evaluate?: (trained: TrainedVariant) => Promise<Record<string, number>>;
  /** Stops after the step being computed and writes a checkpoint; ablate() then rejects with the signal's reason. */
  signal?: AbortSignal;
  /** Called once per step. */
  onStep?: (variant: string, report: StepReport) => void;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    study: is.name,
    recipe: is.value<Recipe>((x) => typeof x === 'object' && x !== null, 'a recipe'),
    out: is.name,
    steps: is.count,
    seed: is.natural.default(0),
    variants: z.array(is.name).min(1).optional(),
    checkpointEvery: is.count.default(1000),
    evaluate: is.callback<NonNullable<AblateOptions['evaluate']>>().optional(),
    signal: is.signal.optional(),
    onStep: is.callback<NonNullable<AblateOptions['onStep']>>().optional(),
  } satisfies Fields<AblateOptions>),
);

/**
 * Trains the variants of a study one after the other, measures them, and writes ablation.json, table.md and loss.svg into `out` after each.
 * Variants that differ in sampling alone share a run.
 *
 * @throws {OptionError} An unknown study or variant, one that is not for this kind of model, or a wrong setting; before anything is trained.
 * @throws {TrainError} A loss that is not finite, or a folder with a run of other settings.
 */
export async function ablate(options: AblateOptions): Promise<AblationResult> {
  const { study, recipe, out, steps, seed, signal, evaluate, onStep, ...rest } = parseOptions(
    optionsSchema,
    options,
    'ablate',
  );
  const chosen = variantsOf(study, recipe, rest.variants).map(([variant, change]) => {
    const changed = changedBy(recipe, change);
    return { variant, plan: planTraining(changed), training: JSON.stringify({ ...changed, sampler: undefined }) };
  });
  const files = { table: join(out, 'table.md'), plot: join(out, 'loss.svg') };
  const result: AblationResult = { study, recipe, seed, results: [], files };
  await makeFolder(out);
  for (const { variant, plan, training } of chosen) {
    const runner = chosen.find((other) => other.training === training) as (typeof chosen)[number];
    const folder = join(out, runner.variant);
    const resume =
      (await listCheckpoints(folder)).length > 0 || Boolean(await readRecord(folder).catch(() => undefined));
    await using run = await TrainingRun.open({
      plan: runner.plan,
      out: folder,
      seed,
      resume,
      checkpointEvery: rest.checkpointEvery,
    });
    const finished = await run.train(steps, { signal, onStep: (report) => onStep?.(variant, report) });
    if (!finished) throw signal?.reason;
    await run.finish();
    const metrics = (await evaluate?.({ variant, plan, model: run.average, folder })) ?? {};
    const log = await readLog(join(folder, 'log.jsonl'));
    result.results.push({
      variant,
      folder,
      parameters: run.average.parameterCount(),
      flops: forwardFlops(plan.kind, { ...run.average.config }),
      steps,
      loss: mean(log.slice(-Math.ceil(log.length / 10)).map(({ loss }) => loss)),
      secondsPerStep: median(log.map(({ imagesPerSecond }) => plan.training.batch / imagesPerSecond)),
      metrics,
    });
    await write(result);
  }
  return result;
}

/** The variants of a study for the recipe's kind of model, or those of these names. */
function variantsOf(name: string, recipe: Recipe, wanted: readonly string[] | undefined): [string, Variant][] {
  if (!Object.hasOwn(studies, name)) throw unknownName('study', name, Object.keys(studies));
  const { kind } = planTraining(recipe);
  const variants = studies[name][kind === 'ImageDiffiT' ? 'image' : 'latent'];
  if (!variants) {
    throw new OptionError(`The study ${name} is for image-space models, and this recipe's is a ${kind}.`);
  }
  for (const each of wanted ?? [])
    if (!Object.hasOwn(variants, each)) throw unknownName('variant', each, Object.keys(variants));
  return Object.entries(variants).filter(([each]) => wanted === undefined || wanted.includes(each));
}

function changedBy(recipe: Recipe, { kind, model, training, sampler }: Variant): Recipe {
  return {
    ...recipe,
    ...(kind && { kind }),
    ...((recipe.model || model) && { model: { ...recipe.model, ...model } }),
    training: { ...recipe.training, ...training },
    sampler: { ...recipe.sampler, ...sampler },
  };
}

const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
const median = (values: readonly number[]): number => [...values].sort((a, b) => a - b)[values.length >> 1];

async function write(result: AblationResult): Promise<void> {
  const { files, results } = result;
  const save = (path: string, text: string): Promise<void> =>
    writeAtomically(path, (handle) => handle.writeFile(text)) as Promise<void>;
  await save(join(files.table, '..', 'ablation.json'), `${JSON.stringify(result, null, 1)}\n`);
  await save(files.table, ablationTable(result));
  const curves = await Promise.all(
    results.map(async ({ variant, folder }) => [variant, await readLog(join(folder, 'log.jsonl'))] as const),
  );
  const title = `${studies[result.study].title}: training loss`;
  await save(files.plot, lossCurveSvg(Object.fromEntries(curves), { title }));
}

/** A study's results in Markdown, one row a variant. */
export function ablationTable({ study, results }: AblationResult): string {
  const metrics = [...new Set(results.flatMap(({ metrics }) => Object.keys(metrics)))];
  const heads = ['variant', 'parameters', 'GFLOP', 'loss', 's / step', ...metrics];
  const rows = results.map(({ variant, parameters, flops, loss, secondsPerStep, metrics: found }) => [
    variant,
    `${(parameters / 1e6).toFixed(2)}M`,
    (flops / 1e9).toPrecision(3),
    loss.toFixed(4),
    secondsPerStep.toPrecision(3),
    ...metrics.map((name) => (name in found ? found[name].toPrecision(4) : '')),
  ]);
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  const { title, source } = studies[study];
  const steps = results[0] ? `, ${results[0].steps} steps each; loss: the mean of the last tenth` : '';
  return `${[`${title} (${source})${steps}.`, '', line(heads), `|${'---|'.repeat(heads.length)}`, ...rows.map(line)].join('\n')}\n`;
}
