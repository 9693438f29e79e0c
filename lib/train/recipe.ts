/**
 * What is trained and how: a preset, or a JSON recipe, with some settings replaced.
 *
 *     { "preset": "cifar10", "model": { "numClasses": 10 }, "data": "photos/", "training": { "batch": 128 } }
 *
 * Every part is optional where a preset gives it; without one, "model" and "training" with "batch" and "lr" are needed.
 */
import { readFile } from 'node:fs/promises';
import { z } from 'zod';
import { FileFormatError, OptionError } from '../errors.js';
import { toFileError } from '../io/files.js';
import { type ImageDiffiTConfig, preset } from '../models/index.js';
import { parseOptions } from '../options.js';
import { parseSampler, type SamplerSettings } from './sampler-settings.js';

const trainingSchema = z.strictObject({
  /** Images per step. */
  batch: z.int().min(1),
  /** Most images per forward pass; default the whole batch. */
  microBatch: z.int().min(1).optional(),
  /** Peak learning rate of Adam. */
  lr: z.number().min(0),
  /** Images over which the learning rate rises from 0. */
  lrRampImages: z.number().min(0).default(0),
  /** [from, to]: images between which the rate falls to 1% along a half cosine; absent: it stays. */
  lrDecayImages: z
    .tuple([z.number().min(0), z.number().min(0)])
    .refine(([from, to]) => from < to, 'expected [from, to] with from < to')
    .optional(),
  /** EMA half-life in images. */
  emaHalfLifeImages: z.number().min(0).default(500_000),
  /** The half-life is at most this share of the images seen so far; absent: no ramp-up. */
  emaRampUp: z.number().positive().optional(),
  /** Random horizontal flips. */
  flip: z.boolean().default(false),
  /** ln(sigma) ~ N(pMean, pStd^2); EDM's values by default. */
  pMean: z.number().default(-1.2),
  pStd: z.number().positive().default(1.2),
  /** Largest L2 norm of all gradients; absent: no clipping. */
  gradClip: z.number().positive().optional(),
});

const recipeSchema = z.strictObject({
  preset: z.string().optional(),
  model: z.record(z.string(), z.unknown()).optional(),
  data: z.string().optional(),
  training: z.record(z.string(), z.unknown()).optional(),
  sampler: z.record(z.string(), z.unknown()).optional(),
});

/** A recipe as its file has it. */
export type Recipe = z.input<typeof recipeSchema>;

/** A recipe with everything filled in. */
export interface TrainingPlan {
  preset?: string;
  /** Checked when the model is made. */
  model: ImageDiffiTConfig;
  /** What data.openDataset() takes. */
  data?: string;
  training: z.output<typeof trainingSchema>;
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
    throw new FileFormatError(`${path} is not JSON: ${(cause as Error).message}.`, { path, cause });
  }
  return parseOptions(recipeSchema, value, `Recipe ${path}`);
}

/** A recipe over its preset. Throws OptionError for an unknown preset (with a suggestion) and for a wrong or missing setting. */
export function planTraining(recipe: Recipe): TrainingPlan {
  const { preset: name, model, data, training, sampler } = parseOptions(recipeSchema, recipe, 'Recipe');
  const base = name === undefined ? undefined : preset(name);
  if (!base && !model) throw new OptionError('Recipe: a preset or a "model" is needed.');
  const given = Object.fromEntries(Object.entries(training ?? {}).filter(([, value]) => value !== undefined));
  return {
    ...(name === undefined ? {} : { preset: name }),
    model: { ...base?.model, ...model } as ImageDiffiTConfig,
    data: data ?? base?.dataset,
    training: parseOptions(trainingSchema, { ...base?.training, ...given }, 'Recipe, training'),
    sampler: parseSampler({ ...base?.sampler, ...sampler }, 'Recipe, sampler'),
  };
}
