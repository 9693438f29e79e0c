/**
 * Model files: the weights of one network in PyTorch's names and layouts, with the network's class and configuration in
 * the metadata, so that a file alone is enough to sample from.
 */
import { FileFormatError, unknownName } from '../errors.js';
import { readSafetensorsHeader, saveSafetensors } from '../io/index.js';
import {
  type DiffusionModel,
  type InferredModel,
  inferLatentModel,
  type ModelKind,
  modelKinds,
} from '../models/index.js';
import { forLoading } from '../nn/init.js';
import { type Output, schema } from '../options.js';
import { scope } from '../scope.js';
import { checkpointFormat, readCheckpointState } from './checkpoint.js';
import { type LoadWeightsOptions, loadWeights } from './load-weights.js';
import { defaultSampler, parseSampler, type SamplerOptions, type SamplerSettings } from './sampler-settings.js';

export const modelFormat = 'diffit-model';

const descriptionSchema = schema((z) =>
  z.object({
    /** Class of the network. */
    kind: z.string(),
    /** Its constructor's options. */
    config: z.record(z.string(), z.unknown()),
    /** Preset it comes from. */
    preset: z.string().optional(),
    /** Names of the classes it was trained on, by label. */
    classNames: z.array(z.string()).optional(),
    /** How it is meant to be sampled. */
    sampler: z.record(z.string(), z.unknown()).default({}),
  }),
);

/** What a model file says about its network; the part of a run's config that stays with the weights. */
export interface ModelDescription extends Output<typeof descriptionSchema> {
  /** How to sample from it, unless told otherwise. */
  sampler: SamplerSettings;
}

/** Describes a network for {@link saveModel} and for checkpoints. */
export function describeModel(
  model: DiffusionModel,
  {
    preset,
    classNames,
    sampler = defaultSampler(model),
  }: { preset?: string; classNames?: readonly string[]; sampler?: SamplerOptions } = {},
): ModelDescription {
  const kind = Object.entries(modelKinds).find(([, type]) => model instanceof type)?.[0] as string;
  return {
    kind,
    config: { ...model.config },
    ...(preset !== undefined && { preset }),
    ...(classNames && { classNames: [...classNames] }),
    sampler: parseSampler(sampler),
  };
}

/** Writes a model file; `dtype` converts the weights. Throws FileError. */
export async function saveModel(
  path: string,
  model: DiffusionModel,
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
  const { metadata, entries } = await readSafetensorsHeader(path);
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
    const found = inferLatentModel(Object.fromEntries(entries.map(({ name, shape }) => [name, { shape }])));
    if (found) return { ...found, sampler: parseSampler(releasedSampler(found)) };
    const message = `${path} holds tensors, but no diffit model: its metadata name no configuration, and its weights are not a released DiffiT's or DiT's.`;
    throw new FileFormatError(message, { path });
  }
  try {
    const { sampler, ...rest } = descriptionSchema().parse(value);
    return { ...rest, sampler: parseSampler(sampler) };
  } catch (cause) {
    throw new FileFormatError(`${path} has a damaged model description in its metadata.`, { path, cause });
  }
}

/** How the papers sample: DiffiT's guidance (SPEC section 3), and DiT's 1.5. */
function releasedSampler({ kind, config: { inputSize } }: InferredModel): SamplerOptions {
  if (kind === 'DiT') return { kind: 'ddpm', steps: 250, cfgScale: 1.5 };
  return inputSize === 32
    ? { kind: 'ddpm', steps: 250, cfgScale: 4.4, scalePow: 4 }
    : { kind: 'ddpm', steps: 250, cfgScale: 1.49 };
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
): Promise<{ model: DiffusionModel; description: ModelDescription }> {
  const description = await readModelDescription(path);
  const { kind, config } = description;
  const model = forLoading(() => makeModel(kind, config, path), { weights }).eval();
  try {
    await loadWeights(model, path, { rename: withoutTraining, onProgress, signal });
  } catch (error) {
    model.dispose();
    throw error;
  }
  return { model, description };
}

/** A network of a described class. Throws OptionError for one this version does not know. */
function makeModel(kind: string, config: Record<string, unknown>, path: string): DiffusionModel {
  if (!Object.hasOwn(modelKinds, kind)) throw unknownName(`kind of model in ${path}`, kind, Object.keys(modelKinds));
  const type = modelKinds[kind as ModelKind] as new (config: Record<string, unknown>) => DiffusionModel;
  return new type(config);
}

/** Names of a checkpoint's averaged weights in the model; the parts that sampling does not need are skipped. */
function withoutTraining(name: string): string | undefined {
  return name.startsWith('model.') || name.startsWith('optimizer.') ? undefined : name.replace(/^ema\./, '');
}
