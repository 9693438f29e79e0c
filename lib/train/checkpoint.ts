/**
 * Checkpoints: everything a run needs to go on exactly where it was, in one safetensors file.
 *
 *     model.NAME       weights, as the model's state dict has them
 *     ema.NAME         their moving average, likewise
 *     optimizer.m.NAME, optimizer.v.NAME   Adam's running means, in the parameters' memory layout
 *     metadata         format, formatVersion, `run`: step, images, seed, loader position, update counts, config; and a
 *                      checksum of every tensor
 */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { LoaderState } from '../data/index.js';
import { FileFormatError, TrainError } from '../errors.js';
import { loadSafetensors, readSafetensorsHeader, saveSafetensors } from '../io/index.js';
import type { Module } from '../nn/index.js';
import { type Fields, schema } from '../options.js';
import { scope } from '../scope.js';
import type { Tensor } from '../tensor.js';
import type { Trainer } from './loop.js';

export const checkpointFormat = 'diffit-checkpoint';
const formatVersion = '1';

/** What a checkpoint's metadata hold besides the tensors. */
export interface CheckpointState {
  /** Steps done. */
  step: number;
  /** Images seen. */
  images: number;
  /** Of the run. */
  seed: number;
  /** Position in the data. */
  loader: LoaderState;
  /** Updates each parameter has had, by name. */
  optimizerSteps: Record<string, number>;
  /** Settings of the run. */
  config: RunConfig;
}

const stateSchema = schema((z, { natural }) =>
  z.strictObject({
    step: natural,
    images: natural,
    seed: natural,
    loader: z.strictObject({ epoch: natural, cursor: natural }),
    optimizerSteps: z.record(z.string(), natural),
    config: z.record(z.string(), z.unknown()),
  } satisfies Fields<CheckpointState>),
);

/** Settings of a run, kept with it and compared when it is resumed; plain JSON. */
export type RunConfig = Record<string, unknown>;

/** Writes a checkpoint of a trainer at rest, whole or not at all. Throws TrainError when weights are not finite, FileError. */
export async function saveCheckpoint<M extends Module>(
  path: string,
  trainer: Trainer<M>,
  config: RunConfig,
): Promise<void> {
  await trainer.checkWeights();
  const { step, images, seed, optimizer, loader } = trainer;
  const { steps: optimizerSteps, tensors: moments } = optimizer.stateDict();
  const state: CheckpointState = { step, images, seed, loader: loader.state(), optimizerSteps, config };
  await scope(async () => {
    const tensors = {
      ...prefixed('model.', trainer.model.stateDict()),
      ...prefixed('ema.', trainer.average.stateDict()),
      ...prefixed('optimizer.', moments),
    };
    const metadata = { format: checkpointFormat, formatVersion, run: JSON.stringify(state) };
    await saveSafetensors(path, tensors, metadata, { checksums: true });
  });
}

/** The state in a checkpoint's header. Throws FileFormatError when the file is no checkpoint, or of another version. */
export async function readCheckpointState(path: string): Promise<CheckpointState> {
  const { metadata } = await readSafetensorsHeader(path);
  if (metadata.format !== checkpointFormat) {
    throw new FileFormatError(`${path} is not a training checkpoint of diffit.`, { path });
  }
  if (metadata.formatVersion !== formatVersion) {
    throw new FileFormatError(
      `${path} is a checkpoint of format version ${metadata.formatVersion}; this diffit reads version ${formatVersion}.`,
      { path },
    );
  }
  let value: unknown;
  try {
    value = JSON.parse(metadata.run);
  } catch (cause) {
    throw new FileFormatError(`${path} has no readable run state in its metadata.`, { path, cause });
  }
  const result = stateSchema().safeParse(value);
  if (result.success) return result.data;
  const [{ path: at, message }] = result.error.issues;
  throw new FileFormatError(`${path} has a damaged run state: ${at.join('.')}: ${message}.`, { path });
}

/**
 * Puts a trainer where a checkpoint was. Throws TrainError listing every setting of `config` that differs, StateDictError
 * when the weights are another model's; FileError, FileFormatError. Returns the state.
 */
export async function restoreCheckpoint<M extends Module>(
  path: string,
  trainer: Trainer<M>,
  config: RunConfig,
): Promise<CheckpointState> {
  const state = await readCheckpointState(path);
  const different = differences(
    { ...withPrecision(state.config, config), seed: state.seed },
    { ...config, seed: trainer.seed },
  );
  if (different.length > 0) {
    throw new TrainError(`${path} belongs to another run: ${different.join('; ')}.`);
  }
  await restoreWeights(path, trainer, state);
  trainer.loader.restore(state.loader);
  trainer.step = state.step;
  trainer.images = state.images;
  return state;
}

/** Puts the weights, averages and moments alone back to a checkpoint of this trainer's run. Throws FileError, FileFormatError. */
export async function restoreWeights<M extends Module>(
  path: string,
  trainer: Trainer<M>,
  state?: CheckpointState,
): Promise<void> {
  const { optimizerSteps } = state ?? (await readCheckpointState(path));
  await scope(async () => {
    const [{ device }] = trainer.model.parameters();
    const { tensors } = await loadSafetensors(path, { device });
    const group = (prefix: string): Record<string, Tensor> =>
      Object.fromEntries(
        Object.entries(tensors).flatMap(([name, tensor]) =>
          name.startsWith(prefix) ? [[name.slice(prefix.length), tensor] as const] : [],
        ),
      );
    trainer.model.loadStateDict(group('model.'));
    trainer.average.loadStateDict(group('ema.'));
    trainer.optimizer.loadStateDict({ steps: optimizerSteps, tensors: group('optimizer.') });
  });
}

/** Saved settings; runs from before there was a choice of precision were in f32. */
function withPrecision(saved: RunConfig, now: RunConfig): RunConfig {
  const old = isObject(saved.training) && isObject(now.training) && 'precision' in now.training;
  return old ? { ...saved, training: { precision: 'f32', ...(saved.training as object) } } : saved;
}

/** Leaves of two JSON values that differ: `training.lr: 0.001 in the checkpoint, 0.0002 now`. */
export function differences(saved: unknown, now: unknown, place = 'the checkpoint', path = ''): string[] {
  if (isObject(saved) && isObject(now)) {
    const keys = [...new Set([...Object.keys(saved), ...Object.keys(now)])].sort();
    return keys.flatMap((key) => differences(saved[key], now[key], place, path ? `${path}.${key}` : key));
  }
  const [a, b] = [JSON.stringify(saved), JSON.stringify(now)];
  return a === b ? [] : [`${path}: ${a ?? 'absent'} in ${place}, ${b ?? 'absent'} now`];
}

/** Where the checkpoint of a step lies in a run's folder. */
export function checkpointPath(folder: string, step: number): string {
  return join(folder, `checkpoint-${String(step).padStart(7, '0')}.safetensors`);
}

/** Checkpoints in a folder, oldest step first; none when there is no such folder. */
export async function listCheckpoints(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch(() => []);
  return names
    .flatMap((name) => {
      const step = /^checkpoint-(\d+)\.safetensors$/.exec(name)?.[1];
      return step === undefined ? [] : [{ name, step: Number(step) }];
    })
    .sort((a, b) => a.step - b.step)
    .map(({ name }) => join(folder, name));
}

/** Deletes all but the newest `keep` checkpoints of a folder. */
export async function pruneCheckpoints(folder: string, keep: number): Promise<void> {
  const paths = await listCheckpoints(folder);
  for (const path of paths.slice(0, Math.max(0, paths.length - keep))) await rm(path, { force: true });
}

function prefixed(prefix: string, tensors: Record<string, Tensor>): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [prefix + name, tensor]));
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
