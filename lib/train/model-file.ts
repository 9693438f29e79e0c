/**
 * Model files: the weights of one network in PyTorch's names and layouts, with the network's class and configuration in
 * the metadata, so that a file alone is enough to sample from.
 */
import { z } from 'zod';
import { FileFormatError, unknownName } from '../errors.js';
import { readSafetensorsHeader, saveSafetensors } from '../io/index.js';
import { ImageDiffiT } from '../models/index.js';
import { forLoading } from '../nn/init.js';
import { scope } from '../scope.js';
import { checkpointFormat, readCheckpointState } from './checkpoint.js';
import { type LoadWeightsOptions, loadWeights } from './load-weights.js';
import { samplerSchema } from './recipe.js';

const modelFormat = 'diffit-model';
const kinds = { ImageDiffiT };

const descriptionSchema = z.object({
  /** Class of the network. */
  kind: z.string(),
  /** Its constructor's options. */
  config: z.record(z.string(), z.unknown()),
  /** Preset it comes from. */
  preset: z.string().optional(),
  /** How it is meant to be sampled. */
  sampler: samplerSchema.prefault({}),
});

/** What a model file says about its network; the part of a run's config that stays with the weights. */
export type ModelDescription = z.output<typeof descriptionSchema>;

/** Describes a network for {@link saveModel} and for checkpoints. */
export function describeModel(
  model: ImageDiffiT,
  { preset, sampler = samplerSchema.parse({}) }: Partial<Pick<ModelDescription, 'preset' | 'sampler'>> = {},
): ModelDescription {
  return { kind: 'ImageDiffiT', config: { ...model.config }, ...(preset === undefined ? {} : { preset }), sampler };
}

/** Writes a model file; `dtype` converts the weights. Throws FileError. */
export async function saveModel(
  path: string,
  model: ImageDiffiT,
  {
    description = describeModel(model),
    dtype,
  }: { description?: ModelDescription; dtype?: 'f32' | 'bf16' | 'f16' } = {},
): Promise<void> {
  const metadata = { format: modelFormat, formatVersion: '1', model: JSON.stringify(description) };
  await scope(() => saveSafetensors(path, model.stateDict(), metadata, { dtype }));
}

/** What a model file or a training checkpoint describes, from its header alone. Throws FileError, FileFormatError. */
export async function readModelDescription(path: string): Promise<ModelDescription> {
  const { metadata } = await readSafetensorsHeader(path);
  let value: unknown;
  if (metadata.format === checkpointFormat) {
    value = (await readCheckpointState(path)).config.model;
  } else if (metadata.format === modelFormat) {
    try {
      value = JSON.parse(metadata.model);
    } catch {
      value = undefined;
    }
  } else {
    throw new FileFormatError(`${path} holds tensors, but no diffit model: its metadata name no configuration.`, {
      path,
    });
  }
  const result = descriptionSchema.safeParse(value);
  if (!result.success) throw new FileFormatError(`${path} has a damaged model description in its metadata.`, { path });
  return result.data;
}

/** Options of {@link loadModel}. */
export interface LoadModelOptions extends Pick<LoadWeightsOptions, 'onProgress' | 'signal'> {
  /** 'bf16' keeps the matrices of Linear layers in half the memory. Default 'f32'. */
  weights?: 'f32' | 'bf16';
}

/**
 * The network of a model file, or the averaged one of a training checkpoint, in inference mode. Throws FileError,
 * FileFormatError, OptionError for a configuration this version does not know, StateDictError for other weights.
 */
export async function loadModel(
  path: string,
  { weights = 'f32', onProgress, signal }: LoadModelOptions = {},
): Promise<{ model: ImageDiffiT; description: ModelDescription }> {
  const description = await readModelDescription(path);
  const { kind, config } = description;
  if (!Object.hasOwn(kinds, kind)) throw unknownName(`kind of model in ${path}`, kind, Object.keys(kinds));
  const make = kinds[kind as keyof typeof kinds];
  const model = forLoading(() => new make(config as unknown as ImageDiffiT['config']), { weights }).eval();
  try {
    await loadWeights(model, path, { rename: withoutTraining, onProgress, signal });
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { model, description };
}

/** Names of a checkpoint's averaged weights in the model; the parts that sampling does not need are skipped. */
function withoutTraining(name: string): string | undefined {
  return name.startsWith('model.') || name.startsWith('optimizer.') ? undefined : name.replace(/^ema\./, '');
}
