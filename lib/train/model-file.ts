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
import { type Fields, parseOptions, schema } from '../options.js';
import { scope, withDispose } from '../scope.js';
import { checkpointFormat, readCheckpointState } from './checkpoint.js';
import { type LoadWeightsOptions, loadWeights } from './load-weights.js';
import { defaultSampler, parseSampler, type SamplerOptions, type SamplerSettings } from './sampler-settings.js';

export const modelFormat = 'diffit-model';

const descriptionSchema = schema((z) =>
  z.object({
    kind: z.string(),
    config: z.record(z.string(), z.unknown()),
    preset: z.string().optional(),
    classNames: z.array(z.string()).optional(),
    sampler: z.record(z.string(), z.unknown()).default({}),
  } satisfies Record<keyof ModelDescription, unknown>),
);

/** What a model file says about its network; the part of a run's config that stays with the weights. */
export interface ModelDescription {
  /** Class of the network. */
  kind: string;
  /** Its constructor's options. */
  config: Record<string, unknown>;
  /** Preset it comes from. */
  preset?: string;
  /** Names of the classes it was trained on, by label. */
  classNames?: string[];
  /** How to sample from it, unless told otherwise. */
  sampler: SamplerSettings;
}

/** Options of {@link describeModel}. */
export interface DescribeOptions {
  /** Preset it comes from. */
  preset?: string;
  /** Names of the classes it was trained on, by label. */
  classNames?: readonly string[];
  /** How it is meant to be sampled. Default: EDM's sampler for image-space models, DDPM for latent ones; no guidance. */
  sampler?: SamplerOptions;
}

/** Options of {@link saveModel}. */
export interface SaveModelOptions {
  /** What the file says of the network. Default: describeModel(model). */
  description?: ModelDescription;
  /** Converts the weights. Default: as they are. */
  dtype?: 'f32' | 'bf16' | 'f16';
  /** Stops the writing; what was at the path stays. */
  signal?: AbortSignal;
}

const describeSchema = schema((z, is) =>
  z.strictObject({
    preset: z.string().optional(),
    classNames: z.array(z.string()).optional(),
    // parseSampler() checks what is in it.
    sampler: is.value<SamplerOptions>((x) => typeof x === 'object' && x !== null, "a sampler's settings").optional(),
  } satisfies Fields<DescribeOptions>),
);
const saveSchema = schema((z, is) =>
  z.strictObject({
    description: is
      .value<ModelDescription>((x) => descriptionSchema().safeParse(x).success, "a model's description")
      .optional(),
    dtype: z.enum(['f32', 'bf16', 'f16']).optional(),
    signal: is.signal.optional(),
  } satisfies Fields<SaveModelOptions>),
);

/** Describes a network for {@link saveModel} and for checkpoints. Throws OptionError for an option that is unknown or wrong. */
export function describeModel(model: DiffusionModel, options: DescribeOptions = {}): ModelDescription {
  const {
    preset,
    classNames,
    sampler = defaultSampler(model),
  } = parseOptions(describeSchema, options, 'describeModel');
  const kind = Object.entries(modelKinds).find(([, type]) => model instanceof type)?.[0] as string;
  return {
    kind,
    config: { ...model.config },
    ...(preset !== undefined && { preset }),
    ...(classNames && { classNames: [...classNames] }),
    sampler: parseSampler(sampler),
  };
}

/**
 * Writes a model file, whole or not at all.
 *
 * @throws {FileError} The file cannot be written.
 * @throws {OptionError} An option that is unknown or wrong.
 */
export async function saveModel(path: string, model: DiffusionModel, options: SaveModelOptions = {}): Promise<void> {
  const { description = describeModel(model), dtype, signal } = parseOptions(saveSchema, options, 'saveModel');
  const metadata = { format: modelFormat, formatVersion: '1', model: JSON.stringify(description) };
  await scope(() => saveSafetensors(path, model.stateDict(), metadata, { dtype, signal }));
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

const loadSchema = schema((z, is) =>
  z.strictObject({
    weights: z.enum(['f32', 'bf16']).default('f32'),
    onProgress: is.callback<NonNullable<LoadModelOptions['onProgress']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<LoadModelOptions>),
);

/** What {@link loadModel} gives: `using loaded = await train.loadModel(path)` disposes the network at the end of the block. */
export interface LoadedModel extends Disposable {
  /** The network, in inference mode. */
  model: DiffusionModel;
  /** What its file says of it. */
  description: ModelDescription;
}

/**
 * The network of a model file, or the averaged one of a training checkpoint, in inference mode.
 *
 * @throws {FileError} The file cannot be read.
 * @throws {FileFormatError} It is damaged, or holds no model.
 * @throws {OptionError} An option that is unknown or wrong; a configuration this version does not know.
 * @throws {StateDictError} Other weights than the configuration's.
 */
export async function loadModel(path: string, options: LoadModelOptions = {}): Promise<LoadedModel> {
  const { weights, onProgress, signal } = parseOptions(loadSchema, options, 'loadModel');
  const description = await readModelDescription(path);
  const { kind, config } = description;
  const model = forLoading(() => makeModel(kind, config, path), { weights }).eval();
  try {
    await loadWeights(model, path, { rename: withoutTraining, onProgress, signal });
  } catch (error) {
    model.dispose();
    throw error;
  }
  return withDispose({ model, description }, () => model.dispose());
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
