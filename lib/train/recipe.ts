/**
 * What is trained and how: a preset, or a JSON recipe, with some settings replaced.
 *
 *     { "preset": "cifar10", "model": { "numClasses": 10 }, "data": "photos/", "training": { "batch": 128 } }
 *
 * Every part is optional where a preset gives it; without one, "model" and "training" with "batch" and "lr" are needed.
 */
import { existsSync, readdirSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { type DeviceName, defaultDevice } from '../device.js';
import { parseAugment } from '../diffusion/augment.js';
import { type AugmentOptions, augmentLabels } from '../diffusion/augment-draw.js';
import { FileFormatError, OptionError, unknownName } from '../errors.js';
import { messageOf, toFileError } from '../io/files.js';
import { preset } from '../models/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { packageRoot } from '../package.js';
import { parseSampler, type SamplerSettings } from './sampler-settings.js';

/** How a plan trains its network; in a recipe's "training" everything but `batch` and `lr` has a default. */
export interface PlannedTraining {
  /** Images per step. */
  batch: number;
  /** Most images per forward pass. Default: the whole batch. */
  microBatch?: number;
  /** Images in all, from which `diffit train` has its steps. Default: none, the steps are given. */
  images?: number;
  /** Peak learning rate of AdamW, at least 0. */
  lr: number;
  /** Images over which the learning rate rises from 0. Default 0. */
  lrRampImages: number;
  /** Images between which the rate falls to 1% along a half cosine. Default: it stays. */
  lrDecayImages?: [from: number, to: number];
  /** EMA half-life in images (EDM). Default 500,000. */
  emaHalfLifeImages: number;
  /** EMA decay per step, from 0 to 1; goes before the half-life. */
  emaDecay?: number;
  /** The half-life is at most this share of the images seen so far. Default: no ramp-up. */
  emaRampUp?: number;
  /** Random horizontal flips. Default false. */
  flip: boolean;
  /**
   * EDM, image-space models: augmentation whose labels the network is told (diffusion.Augmenter), which has to be made with augmentDim 9, as a
   * plan does by itself. p = 0: none. Default: none.
   */
  augment?: AugmentOptions;
  /** AdamW's, decoupled, at least 0. Default 0. */
  weightDecay: number;
  /** EDM, image-space models: mean of ln(sigma). Default -1.2. */
  pMean: number;
  /** EDM, image-space models: standard deviation of ln(sigma). Default 1.2. */
  pStd: number;
  /** Gaussian diffusion, latent models: weight of a timestep's loss. Default 'uniform'. */
  weighting: 'uniform' | 'min-snr-5';
  /** Latent models: recompute blocks in the backward pass instead of keeping their activations. Default false. */
  gradientCheckpointing: boolean;
  /** Largest L2 norm of all gradients. Default: no clipping. */
  gradClip?: number;
  /** Of matrix products and activations; weights, sums and the optimizer are f32. Default: the preset's on a GPU, else f32. */
  precision: 'f32' | 'bf16';
}

const trainingSchema = schema((z, is) =>
  z.strictObject({
    batch: is.count,
    microBatch: is.count.optional(),
    images: is.count.optional(),
    lr: is.atLeastZero,
    lrRampImages: is.atLeastZero.default(0),
    lrDecayImages: z
      .tuple([is.atLeastZero, is.atLeastZero])
      .refine(([from, to]) => from < to, 'expected [from, to] with from < to')
      .optional(),
    emaHalfLifeImages: is.atLeastZero.default(500_000),
    emaDecay: is.share.optional(),
    emaRampUp: z.number().positive().optional(),
    flip: z.boolean().default(false),
    augment: is.value<AugmentOptions>((x) => typeof x === 'object' && x !== null, 'options of an Augmenter').optional(),
    weightDecay: is.atLeastZero.default(0),
    pMean: z.number().default(-1.2),
    pStd: z.number().positive().default(1.2),
    weighting: z.enum(['uniform', 'min-snr-5']).default('uniform'),
    gradientCheckpointing: z.boolean().default(false),
    gradClip: z.number().positive().optional(),
    precision: z.enum(['f32', 'bf16'], { error: ({ input }) => precisionMessage(input) }).default('f32'),
  } satisfies Record<keyof PlannedTraining, unknown>),
);

function precisionMessage(input: unknown): string | undefined {
  return input === 'f16' ? 'expected "f32" or "bf16" (f16 would need loss scaling, which there is none of)' : undefined;
}

const kinds = ['ImageDiffiT', 'LatentDiffiT', 'DiT'] as const;

/** A recipe as its file has it. Every part is optional where a preset gives it. */
export interface Recipe {
  /** Name of a preset that gives what the recipe leaves out. */
  preset?: string;
  /** Class of the network. Default: the preset's, else 'ImageDiffiT'. 'DiT' on a latent preset trains the baseline. */
  kind?: 'ImageDiffiT' | 'LatentDiffiT' | 'DiT';
  /** Options of the network, over the preset's. */
  model?: Record<string, unknown>;
  /** What data.openDataset() takes, or for a latent model a folder of latents. Default: the preset's. */
  data?: string;
  /** {@link PlannedTraining}, over the preset's; checked when it is planned. */
  training?: Record<string, unknown>;
  /** {@link SamplerOptions}, over the preset's; checked when it is planned. */
  sampler?: Record<string, unknown>;
  /** How `diffit eval` measures the model. */
  evaluation?: RecipeEvaluation;
  /** Where a setting comes from, by its name with dots ("training.lr"). */
  sources?: Record<string, string>;
}

/** A recipe's evaluation. */
export interface RecipeEvaluation {
  /** Images to draw. Default 50,000. */
  samples?: number;
  /** What to compute. Default: the Fréchet distance. */
  metrics?: ('fid' | 'sfid' | 'is' | 'pr')[];
  /** Reference images or statistics: a path. */
  reference?: string;
}

const recipeSchema = schema((z, is) =>
  z.strictObject({
    preset: z.string().optional(),
    kind: z.enum(kinds).optional(),
    model: z.record(z.string(), z.unknown()).optional(),
    data: z.string().optional(),
    training: z.record(z.string(), z.unknown()).optional(),
    sampler: z.record(z.string(), z.unknown()).optional(),
    evaluation: z
      .strictObject({
        samples: is.count.optional(),
        metrics: z.array(z.enum(['fid', 'sfid', 'is', 'pr'])).optional(),
        reference: is.name.optional(),
      } satisfies Fields<RecipeEvaluation>)
      .optional(),
    sources: z.record(z.string(), z.string()).optional(),
  } satisfies Fields<Recipe>),
);

/** Options of {@link planTraining}. */
export interface PlanOptions {
  /** Where the run will be. Default: defaultDevice(). */
  device?: DeviceName;
}

const planSchema = schema((z, is) => z.strictObject({ device: is.name.optional() } satisfies Fields<PlanOptions>));

/** A recipe with everything filled in. */
export interface TrainingPlan {
  /** Name of the preset it began with. */
  preset?: string;
  /** Class of the model. */
  kind: (typeof kinds)[number];
  /** Checked when the model is made. */
  model: Record<string, unknown>;
  /** What data.openDataset() takes, or for a latent model a folder of latents. */
  data?: string;
  /** Settings of the training, complete. */
  training: PlannedTraining;
  /** Settings of the sampler of grids and of the saved model, complete. */
  sampler: SamplerSettings;
  /** The recipe's. */
  evaluation?: RecipeEvaluation;
}

const recipesFolder = join(packageRoot, 'recipes');

/** Names of the recipes that come with the package, those of the paper's four experiments. */
export function shippedRecipes(): string[] {
  return readdirSync(recipesFolder)
    .filter((file) => file.endsWith('.json'))
    .map((file) => basename(file, '.json'))
    .sort();
}

/** The file of a shipped recipe by its name, else the path as it is. */
function recipePath(nameOrPath: string): string {
  const isName = /^\w+$/.test(nameOrPath) && !existsSync(nameOrPath);
  if (!isName) return nameOrPath;
  if (!shippedRecipes().includes(nameOrPath)) throw unknownName('recipe', nameOrPath, shippedRecipes());
  return join(recipesFolder, `${nameOrPath}.json`);
}

/** Reads a recipe file, or one of {@link shippedRecipes} by its name. Throws FileError, FileFormatError when it is not JSON, OptionError naming a wrong setting. */
export async function readRecipe(nameOrPath: string): Promise<Recipe> {
  const path = recipePath(nameOrPath);
  const text = await readFile(path, 'utf8').catch((error) => {
    throw toFileError(error, path, 'read');
  });
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new FileFormatError(`${path} is not JSON: ${messageOf(cause)}.`, { path, cause });
  }
  return parseOptions(recipeSchema, value, `Recipe ${path}`);
}

/**
 * A recipe over its preset, for a run on `device`. Throws OptionError for an unknown preset (with a suggestion) and for a wrong or missing
 * setting.
 */
export function planTraining(recipe: Recipe, options: PlanOptions = {}): TrainingPlan {
  const { device = defaultDevice() } = parseOptions(planSchema, options, 'planTraining');
  const parsed = parseOptions(recipeSchema, recipe, 'Recipe');
  const { preset: name, kind, model, data, training, sampler, evaluation } = parsed;
  const base = name === undefined ? undefined : preset(name);
  if (!base && !model) throw new OptionError('Recipe: a preset or a "model" is needed.');
  const given = Object.fromEntries(Object.entries(training ?? {}).filter(([, value]) => value !== undefined));
  // Processors multiply in f32 whatever the operands are stored in.
  const precision = device.startsWith('cuda') ? base?.training.precision : undefined;
  const { augment, ...settings } = parseOptions(
    trainingSchema,
    { ...base?.training, precision, ...given },
    'Recipe, training',
  );
  const planned = augment && parseAugment(augment, 'Recipe, training, augment');
  const augments = planned !== undefined && planned.p > 0;
  if (augments && (kind ?? base?.kind ?? 'ImageDiffiT') !== 'ImageDiffiT')
    throw new OptionError('Recipe, training: augment is for image-space models; encode latents with --flip instead.');
  const defaults = { kind: kind === undefined || kind === 'ImageDiffiT' ? 'edm' : 'ddpm' };
  return {
    ...(name === undefined ? {} : { preset: name }),
    kind: kind ?? base?.kind ?? 'ImageDiffiT',
    model: { ...base?.model, ...(augments && { augmentDim: augmentLabels }), ...model },
    data: data ?? base?.dataset,
    training: { ...settings, ...(augments && { augment: planned }) },
    sampler: parseSampler({ ...(base?.sampler ?? defaults), ...sampler }, 'Recipe, sampler'),
    ...(evaluation && { evaluation }),
  };
}
