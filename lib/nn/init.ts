/** Initial values of parameters. All draw from the default generator (manualSeed). Shapes are memory layouts. */
import { affine } from '../ops/elementwise.js';
import { rand, randn } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { noGrad, scope } from '../scope.js';
import { numel, type Shape } from '../shape.js';
import { type Tensor, zeros } from '../tensor.js';

/** How modules make their parameters while `forLoading` runs. */
let mode: { values: boolean; weights: 'f32' | 'bf16' } = { values: true, weights: 'f32' };

/** Options of {@link forLoading}. */
export interface ForLoadingOptions {
  /** Dtype of the matrices of Linear layers. Default 'f32'. */
  weights?: 'f32' | 'bf16';
}

const loadingSchema = schema((z) =>
  z.strictObject({ weights: z.enum(['f32', 'bf16']).default('f32') } satisfies Fields<ForLoadingOptions>),
);

/**
 * Runs `make`, whose modules get zeros instead of random numbers: their weights will be loaded. With `weights: 'bf16'`
 * the matrices of Linear layers take half the memory; such a model is for inference. Returns what `make` returns.
 *
 * @throws {OptionError} An option that is unknown, or other weights.
 */
export function forLoading<T>(make: () => T, options: ForLoadingOptions = {}): T {
  const { weights } = parseOptions(loadingSchema, options, 'forLoading');
  const before = mode;
  mode = { values: false, weights };
  try {
    return make();
  } finally {
    mode = before;
  }
}

/** The matrix of a Linear layer [out, in], by `initial` unless {@link forLoading} is running. */
export function linearWeight(shape: Shape, initial: (shape: Shape) => Tensor): Tensor {
  return mode.values ? initial(shape) : zeros(shape, { dtype: mode.weights });
}

/** f32, N(0, std^2). */
export function normal(shape: Shape, std: number): Tensor {
  return mode.values ? noGrad(() => scope(() => affine(randn(shape), std, 0))) : zeros(shape);
}

/** f32, U(-bound, bound). */
export function uniform(shape: Shape, bound: number): Tensor {
  return mode.values ? noGrad(() => scope(() => affine(rand(shape), 2 * bound, -bound))) : zeros(shape);
}

/** Glorot's U(±sqrt(6 / (fan in + fan out))); shape [out, ..., in], everything between counts to both fans. */
export function xavierUniform(shape: Shape): Tensor {
  const window = numel(shape.slice(1, -1));
  return uniform(shape, Math.sqrt(6 / (window * (shape[0] + shape[shape.length - 1]))));
}

/** PyTorch's default for conv layers: U(±1 / sqrt(fan in)); shape [out, ..., in]. */
export function fanInUniform(shape: Shape): Tensor {
  return uniform(shape, 1 / Math.sqrt(numel(shape.slice(1))));
}

export { zeros };
