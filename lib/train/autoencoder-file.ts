/**
 * Autoencoders on disk: a folder in diffusers' layout (config.json and diffusion_pytorch_model.safetensors), which
 * Python reads too, or one .safetensors file with the configuration in its metadata.
 */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { FileError, FileFormatError, OptionError } from '../errors.js';
import { makeFolder, quote, toFileError, writeAtomically } from '../io/files.js';
import { readSafetensorsHeader, saveSafetensors } from '../io/index.js';
import { type AutoencoderConfig, AutoencoderKL, autoencoderName } from '../models/index.js';
import { forLoading } from '../nn/init.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { scope } from '../scope.js';
import { type LoadWeightsOptions, loadWeights } from './load-weights.js';
import { modelFormat } from './model-file.js';

/** Files of a folder in diffusers' layout. */
export const autoencoderFiles = ['config.json', 'diffusion_pytorch_model.safetensors'] as const;
const [configName, weightsName] = autoencoderFiles;
const kind = 'AutoencoderKL';
const expected = `a folder with ${configName} and ${weightsName}, or a .safetensors file`;

/** diffusers' names of our options. */
const configNames: Readonly<Record<string, keyof AutoencoderConfig>> = {
  in_channels: 'inChannels',
  out_channels: 'outChannels',
  latent_channels: 'latentChannels',
  block_out_channels: 'blockOutChannels',
  layers_per_block: 'layersPerBlock',
  norm_num_groups: 'normNumGroups',
  scaling_factor: 'scalingFactor',
};

/** Settings of diffusers that exist here in one form only: their value must be this. */
const fixedSettings: Readonly<Record<string, (value: unknown) => boolean>> = {
  _class_name: (value) => value === kind,
  act_fn: (value) => value === 'silu',
  down_block_types: (value) => Array.isArray(value) && value.every((type) => type === 'DownEncoderBlock2D'),
  up_block_types: (value) => Array.isArray(value) && value.every((type) => type === 'UpDecoderBlock2D'),
  mid_block_add_attention: (value) => value === true,
  use_quant_conv: (value) => value === true,
  use_post_quant_conv: (value) => value === true,
  sample_size: () => true, // the size it was trained at
  force_upcast: () => true, // for half precision
};

/**
 * The options in diffusers' config.json. Throws OptionError naming a setting this package does not have, such as another
 * activation; `what` starts its message.
 */
export function autoencoderConfig(
  json: Readonly<Record<string, unknown>>,
  what: string = configName,
): AutoencoderConfig {
  const config: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(json)) {
    if (Object.hasOwn(configNames, name)) config[configNames[name]] = value;
    else if (Object.hasOwn(fixedSettings, name) ? !fixedSettings[name](value) : value !== null && !name.startsWith('_'))
      throw new OptionError(`${what}: ${name} is ${JSON.stringify(value)}, which this AutoencoderKL does not have.`);
  }
  return config as AutoencoderConfig;
}

/** Where an autoencoder's weights lie: `path` itself, or the file in it. Throws FileError saying what was expected. */
export async function autoencoderWeights(path: string): Promise<string> {
  const missing = (found: string, cause?: unknown): FileError =>
    new FileError(`${path} is no VAE: ${found}; expected ${expected}.`, { path, cause });
  const info = await stat(path).catch((cause) => {
    throw cause.code === 'ENOENT'
      ? missing('there is no such file or folder', cause)
      : toFileError(cause, path, 'read');
  });
  if (!info.isDirectory()) {
    if (!path.endsWith('.safetensors')) throw missing('it is another kind of file');
    return path;
  }
  for (const name of autoencoderFiles) {
    await stat(join(path, name)).catch((cause) => {
      throw missing(`it has no ${name}`, cause);
    });
  }
  return join(path, weightsName);
}

/** Options of {@link loadAutoencoder}. */
export type LoadAutoencoderOptions = Pick<LoadWeightsOptions, 'onProgress' | 'signal'>;

/** Options of {@link saveAutoencoder}. */
export interface SaveAutoencoderOptions {
  /** Converts the weights. Default: as they are. */
  dtype?: 'f32' | 'bf16' | 'f16';
  /** Stops the writing; the weights that were at the path stay. */
  signal?: AbortSignal;
}

const loadSchema = schema((z, is) =>
  z.strictObject({
    onProgress: is.callback<NonNullable<LoadAutoencoderOptions['onProgress']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<LoadAutoencoderOptions>),
);
const saveSchema = schema((z, is) =>
  z.strictObject({
    dtype: z.enum(['f32', 'bf16', 'f16']).optional(),
    signal: is.signal.optional(),
  } satisfies Fields<SaveAutoencoderOptions>),
);

/**
 * Loads an autoencoder, in inference mode. A .safetensors file without a configuration is taken for Stable Diffusion's.
 *
 * Throws FileError when there is none (saying what was expected), FileFormatError for damaged files and for weights that
 * are not finite, OptionError for a configuration this package does not have, StateDictError listing all keys for
 * weights of another configuration.
 */
export async function loadAutoencoder(path: string, options: LoadAutoencoderOptions = {}): Promise<AutoencoderKL> {
  const { onProgress, signal } = parseOptions(loadSchema, options, 'loadAutoencoder');
  const weights = await autoencoderWeights(path);
  const config = weights === path ? await configOfFile(path) : await configOfFolder(path);
  const vae = forLoading(() => new AutoencoderKL(config)).eval();
  try {
    await loadWeights(vae, weights, { rename: autoencoderName, onProgress, signal });
  } catch (error) {
    vae.dispose();
    throw error;
  }
  return vae;
}

async function configOfFolder(folder: string): Promise<AutoencoderConfig> {
  const path = join(folder, configName);
  const text = await readFile(path, 'utf8').catch((error) => {
    throw toFileError(error, path, 'read');
  });
  return autoencoderConfig(parseObject(text, path, 'is not'), path);
}

async function configOfFile(path: string): Promise<AutoencoderConfig> {
  const { metadata } = await readSafetensorsHeader(path);
  if (metadata.format !== modelFormat) return {};
  const model = parseObject(metadata.model, path, 'has a model description that is not');
  if (model.kind !== kind || typeof model.config !== 'object') {
    throw new FileFormatError(`${path} holds a model of kind ${quote(String(model.kind))}, expected ${kind}.`, {
      path,
    });
  }
  return model.config as AutoencoderConfig;
}

function parseObject(text: string, path: string, problem: string): Record<string, unknown> {
  let value: unknown;
  let cause: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    cause = error;
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new FileFormatError(`${path} ${problem} a JSON object.`, { path, cause });
  }
  return value as Record<string, unknown>;
}

/**
 * Saves an autoencoder: to one file when `path` ends in .safetensors, else to a folder in diffusers' layout, made if
 * there is none. Throws FileError; OptionError for an option that is unknown or wrong.
 */
export async function saveAutoencoder(
  path: string,
  vae: AutoencoderKL,
  options: SaveAutoencoderOptions = {},
): Promise<void> {
  const { dtype, signal } = parseOptions(saveSchema, options, 'saveAutoencoder');
  if (path.endsWith('.safetensors')) {
    const metadata = { format: modelFormat, formatVersion: '1', model: JSON.stringify({ kind, config: vae.config }) };
    return scope(() => saveSafetensors(path, vae.stateDict(), metadata, { dtype, signal }));
  }
  signal?.throwIfAborted();
  await makeFolder(path);
  const json = `${JSON.stringify(diffusersConfig(vae), undefined, 2)}\n`;
  await writeAtomically(join(path, configName), (handle) => handle.writeFile(json));
  await scope(() => saveSafetensors(join(path, weightsName), vae.stateDict(), { format: 'pt' }, { dtype, signal }));
}

function diffusersConfig({ config }: AutoencoderKL): Record<string, unknown> {
  const stages = config.blockOutChannels.length;
  return {
    _class_name: kind,
    act_fn: 'silu',
    ...Object.fromEntries(Object.entries(configNames).map(([theirs, ours]) => [theirs, config[ours]])),
    down_block_types: new Array(stages).fill('DownEncoderBlock2D'),
    up_block_types: new Array(stages).fill('UpDecoderBlock2D'),
  };
}
