/**
 * What is trained and how: a preset, or a JSON recipe, with some settings replaced.
 *
 *     { "preset": "cifar10", "model": { "numClasses": 10 }, "data": "photos/", "training": { "batch": 128 } }
 *
 * Every part is optional where a preset gives it; without one, "model" and "training" with "batch" and "lr" are needed.
 */
import { readFile } from 'node:fs/promises';
import { type DeviceName, defaultDevice } from '../device.js';
import { FileFormatError, OptionError } from '../errors.js';
import { messageOf, toFileError } from '../io/files.js';
import { preset } from '../models/index.js';
import { type Input, type Output, parseOptions, schema } from '../options.js';
import { parseSampler, type SamplerSettings } from './sampler-settings.js';

const trainingSchema = schema((z) =>
  z.strictObject({
    /** Images per step. */
    batch: z.int().min(1),
    /** Most images per forward pass; default the whole batch. */
    microBatch: z.int().min(1).optional(),
    /** Peak learning rate of Adam. */
    lr: z.number().min(0),
    /** Images over which the learning rate rises from 0. */
    lrRampImages: z.number().min(0).default(0),
    /** `[from, to]`: images between which the rate falls to 1% along a half cosine; absent: it stays. */
    lrDecayImages: z
      .tuple([z.number().min(0), z.number().min(0)])
      .refine(([from, to]) => from < to, 'expected [from, to] with from < to')
      .optional(),
    /** EMA half-life in images (EDM). */
    emaHalfLifeImages: z.number().min(0).default(500_000),
    /** EMA decay per step instead. */
    emaDecay: z.number().min(0).max(1).optional(),
    /** The half-life is at most this share of the images seen so far; absent: no ramp-up. */
    emaRampUp: z.number().positive().optional(),
    /** Random horizontal flips. */
    flip: z.boolean().default(false),
    /** AdamW's, decoupled. */
    weightDecay: z.number().min(0).default(0),
    /** EDM, image-space models: ln(sigma) ~ N(pMean, pStd^2); EDM's values by default. */
    pMean: z.number().default(-1.2),
    pStd: z.number().positive().default(1.2),
    /** Gaussian diffusion, latent models: weight of a timestep's loss, 'uniform' or 'min-snr-5'. */
    weighting: z.enum(['uniform', 'min-snr-5']).default('uniform'),
    /** Latent models: recompute blocks in the backward pass instead of keeping their activations. */
    gradientCheckpointing: z.boolean().default(false),
    /** Largest L2 norm of all gradients; absent: no clipping. */
    gradClip: z.number().positive().optional(),
    /** Of matrix products and activations; weights, sums and the optimizer are f32. Default: the preset's on a GPU, else f32. */
    precision: z.enum(['f32', 'bf16'], { error: ({ input }) => precisionMessage(input) }).default('f32'),
  }),
);

function precisionMessage(input: unknown): string | undefined {
  return input === 'f16' ? 'f16 would need loss scaling, which there is none of; expected "f32" or "bf16"' : undefined;
}

const kinds = ['ImageDiffiT', 'LatentDiffiT', 'DiT'] as const;

const recipeSchema = schema((z) =>
  z.strictObject({
    preset: z.string().optional(),
    /** Class of the network: the preset's, else ImageDiffiT. "DiT" on a latent preset trains the baseline. */
    kind: z.enum(kinds).optional(),
    model: z.record(z.string(), z.unknown()).optional(),
    data: z.string().optional(),
    training: z.record(z.string(), z.unknown()).optional(),
    sampler: z.record(z.string(), z.unknown()).optional(),
  }),
);

/** A recipe as its file has it. */
export type Recipe = Input<typeof recipeSchema>;

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
  training: Output<typeof trainingSchema>;
  /** Settings of the sampler of grids and of the saved model, complete. */
  sampler: SamplerSettings;
}

/** Reads a recipe file. Throws FileError, FileFormatError when it is not JSON, OptionError naming a wrong setting. */
export async function readRecipe(path: string): Promise<Recipe> {
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
export function planTraining(recipe: Recipe, { device = defaultDevice() }: { device?: DeviceName } = {}): TrainingPlan {
  const { preset: name, kind, model, data, training, sampler } = parseOptions(recipeSchema, recipe, 'Recipe');
  const base = name === undefined ? undefined : preset(name);
  if (!base && !model) throw new OptionError('Recipe: a preset or a "model" is needed.');
  const given = Object.fromEntries(Object.entries(training ?? {}).filter(([, value]) => value !== undefined));
  // Processors multiply in f32 whatever the operands are stored in.
  const precision = device.startsWith('cuda') ? base?.training.precision : undefined;
  const defaults = { kind: kind === undefined || kind === 'ImageDiffiT' ? 'edm' : 'ddpm' };
  return {
    ...(name === undefined ? {} : { preset: name }),
    kind: kind ?? base?.kind ?? 'ImageDiffiT',
    model: { ...base?.model, ...model },
    data: data ?? base?.dataset,
    training: parseOptions(trainingSchema, { ...base?.training, precision, ...given }, 'Recipe, training'),
    sampler: parseSampler({ ...(base?.sampler ?? defaults), ...sampler }, 'Recipe, sampler'),
  };
}
