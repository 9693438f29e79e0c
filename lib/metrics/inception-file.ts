/**
 * The published weights of FID's InceptionV3: the tensors of pt_inception-2015-12-05-6726825d.pth under their names, as safetensors. Batch norm is folded
 * into the convolutions: w' = w gamma / sqrt(variance + 0.001), b' = beta - mean gamma / sqrt(variance + 0.001).
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { StateDictError } from '../errors.js';
import { toFileError } from '../io/files.js';
import { loadSafetensors, readSafetensorsHeader, type SafetensorsEntry } from '../io/index.js';
import { forLoading } from '../nn/init.js';
import type { StateDict } from '../nn/module.js';
import { affine, mul, sub, unary } from '../ops/elementwise.js';
import { reshape } from '../ops/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { noGrad, scope } from '../scope.js';
import { format, type Shape, sameShape } from '../shape.js';
import type { Tensor } from '../tensor.js';
import { type FeatureExtractor, inceptionExtractor } from './extractor.js';
import { InceptionV3 } from './inception.js';
import type { ResizeMode } from './resize.js';

/** Of the batch norms. */
const epsilon = 0.001;
const normNames = ['weight', 'bias', 'running_mean', 'running_var'] as const;

/** Names and shapes [O, I, kh, kw], [O], [1008, 2048] of the tensors that a file of the weights holds; num_batches_tracked may be beside them. */
export function inceptionTensors(): Map<string, Shape> {
  using network = forLoading(() => new InceptionV3());
  return tensorsOf(network);
}

function tensorsOf(network: InceptionV3): Map<string, Shape> {
  const tensors = new Map<string, Shape>();
  for (const [name, { shape }] of network.namedParameters()) {
    if (name.startsWith('fc.')) tensors.set(name, shape);
    else if (name.endsWith('.conv.weight')) tensors.set(name, [shape[0], shape[3], shape[1], shape[2]]);
    else for (const of of normNames) tensors.set(name.replace(/conv\.bias$/, `bn.${of}`), shape);
  }
  return tensors;
}

/** Options of {@link loadInception}. */
export interface LoadInceptionOptions {
  /** How images are resized to 299 pixels. Default 'tensorflow'. */
  resize?: ResizeMode;
  /** Called after each tensor that was read. */
  onProgress?: (progress: { loadedBytes: number; totalBytes: number }) => void;
  /** Cancels the load. */
  signal?: AbortSignal;
}

const loadSchema = schema((z, is) =>
  z.strictObject({
    resize: z.enum(['tensorflow', 'pytorch']).default('tensorflow'),
    onProgress: is.callback<NonNullable<LoadInceptionOptions['onProgress']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<LoadInceptionOptions>),
);

/** InceptionV3 with its weights, as an extractor that owns them: dispose it, or make it with `using`. */
export type InceptionExtractor = FeatureExtractor & Disposable & { dispose(): void };

/**
 * InceptionV3 on the default device, from a safetensors file of the published weights, as an extractor. docs/evaluation.md says how to make the file.
 *
 * @throws {FileError} The file cannot be read.
 * @throws {FileFormatError} It is no sound safetensors file.
 * @throws {StateDictError} Other tensors than the network's; lists all that are missing, too many or of another shape.
 * @throws {OptionError} An option that is unknown or out of range.
 */
export async function loadInception(path: string, options: LoadInceptionOptions = {}): Promise<InceptionExtractor> {
  const { resize, onProgress, signal } = parseOptions(loadSchema, options, 'loadInception');
  const { entries } = await readSafetensorsHeader(path);
  const network = forLoading(() => new InceptionV3(), {}).eval();
  try {
    const expected = tensorsOf(network);
    check(path, entries, expected);
    const filter = (name: string): boolean => expected.has(name);
    using file = await loadSafetensors(path, { dtype: 'f32', filter, onProgress, signal });
    noGrad(() => scope(() => network.loadStateDict(foldBatchNorm(file.tensors))));
    const extract = inceptionExtractor(network, { resize, weightsKey: await digest(path) });
    const dispose = (): void => network.dispose();
    return Object.assign(extract, { dispose, [Symbol.dispose]: dispose });
  } catch (error) {
    network.dispose();
    throw error;
  }
}

/** Tensors under the published names to those of {@link InceptionV3}. */
export function foldBatchNorm(state: StateDict): StateDict {
  const folded: StateDict = {};
  for (const [name, tensor] of Object.entries(state)) {
    if (name.startsWith('fc.')) folded[name] = tensor;
    if (!name.endsWith('.conv.weight')) continue;
    const base = name.slice(0, -'conv.weight'.length);
    const [gamma, beta, mean, variance] = normNames.map((of): Tensor => state[`${base}bn.${of}`]);
    const factor = mul(gamma, unary('rsqrt', affine(variance, 1, epsilon)));
    folded[name] = mul(tensor, reshape(factor, [-1, 1, 1, 1]));
    folded[`${base}conv.bias`] = sub(beta, mul(mean, factor));
  }
  return folded;
}

function check(path: string, entries: readonly SafetensorsEntry[], expected: ReadonlyMap<string, Shape>): void {
  const found = new Map(entries.map(({ name, shape }) => [name, shape]));
  const missing = [...expected.keys()].filter((name) => !found.has(name));
  const unexpected = [...found.keys()].filter((name) => !expected.has(name) && !name.endsWith('.num_batches_tracked'));
  const misshapen = [...expected].flatMap(([name, shape]) => {
    const given = found.get(name);
    return given && !sameShape(given, shape) ? [`${name}: ${format(given)}, expected ${format(shape)}`] : [];
  });
  const wrong = { missing, unexpected, misshapen };
  const lists = Object.entries(wrong).filter(([, names]) => names.length > 0);
  if (lists.length === 0) return;
  const some = lists.map(([what, names]) => `${what}: ${names.slice(0, 3).join(', ')}${names.length > 3 ? ', …' : ''}`);
  throw new StateDictError(
    `${path} does not hold the weights of FID's InceptionV3 (pt_inception-2015-12-05-6726825d.pth): ${some.join('; ')}.`,
    wrong,
  );
}

async function digest(path: string): Promise<string> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  } catch (error) {
    throw toFileError(error, path, 'read');
  }
  return hash.digest('hex');
}
