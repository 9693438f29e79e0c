/**
 * Weights from a safetensors file into a model, one tensor at a time: memory beyond the model's own is the largest tensor
 * and what the device has not taken yet. Every number is checked to be finite on the way.
 */
import { type DeviceName, defaultDevice } from '../device.js';
import { FileFormatError } from '../errors.js';
import { forEachTensor, type LoadSafetensorsOptions, readSafetensorsHeader } from '../io/index.js';
import type { Module } from '../nn/index.js';
import { concat } from '../ops/index.js';
import { squareSum } from '../optim/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { noGrad, scope } from '../scope.js';
import type { Shape } from '../shape.js';
import type { Tensor } from '../tensor.js';

/** Options of {@link loadWeights}. */
export interface LoadWeightsOptions extends Pick<LoadSafetensorsOptions, 'onProgress' | 'signal'> {
  /** Every key of the model must be there, and no other. Default true. */
  strict?: boolean;
  /** The model's name of a stored tensor; undefined skips it. Default: the same. */
  rename?: (stored: string) => string | undefined;
  /** Where the model is. Default: defaultDevice(). */
  device?: DeviceName;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    strict: z.boolean().default(true),
    rename: is.callback<NonNullable<LoadWeightsOptions['rename']>>().optional(),
    device: is.name.optional(),
    onProgress: is.callback<NonNullable<LoadWeightsOptions['onProgress']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<LoadWeightsOptions>),
);

/** Most names an error lists. */
const maxNames = 5;

/**
 * Fills a model from a file; keys and shapes are checked before anything changes. Returns the file's metadata.
 *
 * @throws {FileError} The file cannot be read.
 * @throws {StateDictError} Another model's weights.
 * @throws {FileFormatError} A damaged file, or weights that are NaN or infinite, naming them.
 * @throws {OptionError} An option that is unknown or wrong.
 */
export async function loadWeights(
  model: Module,
  path: string,
  options: LoadWeightsOptions = {},
): Promise<Record<string, string>> {
  const {
    strict,
    rename = (name: string) => name,
    device = defaultDevice(),
    ...rest
  } = parseOptions(optionsSchema, options, 'loadWeights');
  const { entries } = await readSafetensorsHeader(path);
  const shapes: Record<string, { shape: Shape }> = {};
  for (const { name, shape } of entries) {
    const target = rename(name);
    if (target !== undefined) shapes[target] = { shape };
  }
  model.checkStateDict(shapes, { strict });
  const wanted = new Set(model.stateNames());
  const target = (stored: string): string | undefined => {
    const name = rename(stored);
    return name !== undefined && wanted.has(name) ? name : undefined;
  };
  return scope(async () => {
    const checks: { name: string; sum: Tensor }[] = [];
    const metadata = await forEachTensor(
      path,
      (stored, tensor) => {
        const name = target(stored) as string;
        model.loadStateDict({ [name]: tensor }, { strict: false });
        if (tensor.size > 0) checks.push({ name, sum: finiteness(tensor) });
        tensor.dispose();
      },
      { ...rest, device, filter: (stored) => target(stored) !== undefined },
    );
    if (checks.length === 0) return metadata;
    const sums = await concat(
      checks.map(({ sum }) => sum),
      0,
    ).data();
    const broken = checks.filter((_, i) => !Number.isFinite(Number(sums[i]))).map(({ name }) => name);
    if (broken.length > 0) {
      const more = broken.length > maxNames ? `, and ${broken.length - maxNames} more` : '';
      const names = `${broken.slice(0, maxNames).join(', ')}${more}`;
      throw new FileFormatError(`${path} holds weights that are NaN or infinite: ${names}.`, { path });
    }
    return metadata;
  });
}

/** [1]: not finite when a number of x is not (or when they are so large that their squares overflow: as useless). */
function finiteness(x: Tensor): Tensor {
  return noGrad(() => scope(() => squareSum([x.to('f32')])));
}
