/** Where the package keeps the weights that come with it. */
import { existsSync } from 'node:fs';
import { join, relative } from 'node:path';
import { FileError } from '../errors.js';
import { preset as presetNamed } from '../models/index.js';
import { packageRoot } from '../package.js';

/**
 * Path of the model file that the package ships for a preset, for {@link loadModel}: there is one for 'mnist'. Throws OptionError for an
 * unknown preset, FileError for one without weights.
 */
export function shippedWeights(preset: string): string {
  const { name } = presetNamed(preset);
  const path = join(packageRoot, 'weights', `${name}.safetensors`);
  if (existsSync(path)) return path;
  const shown = relative(packageRoot, path);
  throw new FileError(
    `The package ships no weights for preset "${name}" (${shown}); train it with diffit train, then give --checkpoint FILE.`,
    { path },
  );
}
