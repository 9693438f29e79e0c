/** The model of a command that makes images, with its decoder and how it is sampled. */
import { stat } from 'node:fs/promises';
import { OptionError } from '../errors.js';
import { type AutoencoderKL, type DiffusionModel, LatentTransformer } from '../models/index.js';
import { withDispose } from '../scope.js';
import { checkSampler, loadModel, parseSampler, type SamplerSettings, shippedWeights } from '../train/index.js';
import { localFile, openVae } from './download.js';
import type { Terminal } from './terminal.js';

/** Options about the model and its sampler, as commander gives them. */
export interface ModelOptions {
  preset?: string;
  checkpoint?: string;
  vae?: string;
  weights: 'f32' | 'bf16';
  sampler?: string;
  steps?: number;
  cfgScale?: number;
  churn?: number;
  eta?: number;
}

/** What is sampled, and how; with `using` the networks are disposed at the end of the block. */
export interface OpenedModel extends Disposable {
  model: DiffusionModel;
  classNames?: readonly string[];
  sampler: SamplerSettings;
  file: string;
  vae?: AutoencoderKL;
}

/** Files above this many bytes show their loading. */
const largeFile = 2 ** 27;
const mebibyte = 2 ** 20;

/** Loads the model at `address` (see {@link weightsFile}), and the decoder where it makes latents. */
export async function openModel(
  address: string,
  options: ModelOptions,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<OpenedModel> {
  const file = await localFile(address, terminal, signal);
  const { model, description } = await load(file, options.weights, terminal, signal);
  try {
    const sampler = samplerOf(options, description.sampler);
    checkSampler(model, sampler);
    if (model instanceof LatentTransformer && options.vae === undefined) {
      throw new OptionError(
        'This model makes latents; give --vae PATH, a diffusers folder, or --vae hf://stabilityai/sd-vae-ft-ema.',
      );
    }
    const vae = await openVae(options.vae, terminal, signal);
    return withDispose({ model, classNames: description.classNames, sampler, file, vae }, () => {
      model.dispose();
      vae?.dispose();
    });
  } catch (error) {
    model.dispose();
    throw error;
  }
}

/** The model file's sampler with what the command line says otherwise. */
function samplerOf(options: ModelOptions, described: SamplerSettings): SamplerSettings {
  const { sampler: kind = described.kind, steps, cfgScale, churn, eta } = options;
  const given = Object.entries({ steps, cfgScale, churn, eta }).filter(([, value]) => value !== undefined);
  return parseSampler({ ...inherited(kind, described), kind, ...Object.fromEntries(given) }, 'Options of the sampler');
}

/** What a sampler of this kind takes over: another latent one keeps the guidance, which belongs to the model. */
function inherited(kind: string, described: SamplerSettings): Partial<SamplerSettings> {
  if (kind === described.kind) return described;
  if (kind === 'edm' || described.kind === 'edm') return {};
  const { cfgScale, scalePow, cfgAllChannels, cfgInterval } = described;
  return { cfgScale, scalePow, cfgAllChannels, cfgInterval };
}

/** Loads a model; a large one shows how far it is. */
async function load(
  file: string,
  weights: 'f32' | 'bf16',
  terminal: Terminal,
  signal: AbortSignal,
): ReturnType<typeof loadModel> {
  const size = await stat(file).then(
    (found) => found.size,
    () => 0, // loadModel says what is wrong
  );
  if (size < largeFile) return loadModel(file, { weights, signal });
  const progress = await terminal.progress('Loading, MiB', Math.ceil(size / mebibyte));
  try {
    return await loadModel(file, {
      weights,
      signal,
      onProgress: ({ loadedBytes }) => progress.update(Math.floor(loadedBytes / mebibyte)),
    });
  } finally {
    progress.stop();
  }
}

/** The file with the weights: --checkpoint, or the one the package ships for --preset. */
export function weightsFile({ preset, checkpoint }: ModelOptions): string {
  if (preset !== undefined && checkpoint !== undefined)
    throw new OptionError('Give --preset or --checkpoint, not both.');
  if (checkpoint !== undefined) return checkpoint;
  if (preset === undefined) throw new OptionError('Give --preset NAME for shipped weights, or --checkpoint FILE.');
  return shippedWeights(preset);
}
