/** Gradient clipping by the norm of all gradients together (Pascanu et al., arXiv 1211.5063), without a wait. */
import { OptionError } from '../errors.js';
import { native } from '../native.js';
import { affine, clamp, unary, where } from '../ops/elementwise.js';
import { noGrad, scope } from '../scope.js';
import { Tensor, zeros } from '../tensor.js';
import { namedParameters, type Parameters } from './parameters.js';

/** What {@link clipGradNorm} returns; both [1], on the device. */
export interface ClippedNorm {
  /** The L2 norm of all gradients together, before clipping. */
  norm: Tensor;
  /** What an optimizer's step() takes as `scale`. */
  scale: Tensor;
}

/**
 * The L2 norm of all gradients (Pascanu et al., arXiv 1211.5063), and scale = min(1, maxNorm / (norm + 1e-6)) to pass to the optimizer's step(); both
 * [1], on the device. The gradients themselves are not touched: the step multiplies them as it reads them. A norm that
 * is not finite gives scale 0.
 *
 * @throws {OptionError} A maxNorm that is not above 0; no parameters.
 */
export function clipGradNorm(parameters: Parameters, maxNorm: number): ClippedNorm {
  if (!(maxNorm > 0)) throw new OptionError(`clipGradNorm: maxNorm is ${maxNorm}, expected a number above 0.`);
  const named = namedParameters(parameters, 'clipGradNorm');
  const grads = [...named.values()].flatMap(({ grad }) => grad ?? []);
  const [{ device }] = named.values();
  return noGrad(() =>
    scope(() => {
      if (grads.length === 0) return { norm: zeros([1], { device }), scale: zeros([1], { device }) };
      return clipScale(squareSum(grads), maxNorm);
    }),
  );
}

/** The same from the sum of all gradients' squares, [1]. @internal */
export function clipScale(squares: Tensor, maxNorm: number): { norm: Tensor; scale: Tensor } {
  const norm = unary('sqrt', squares);
  const ratio = affine(unary('reciprocal', affine(norm, 1, 1e-6)), maxNorm, 0);
  return { norm, scale: where(unary('isFinite', norm), clamp(ratio, 0, 1), zeros([1], { device: norm.device })) };
}

/** Sum of the squares of all elements of all tensors (f32), [1], in a fixed order. Not recorded. Throws OptionError for an empty list. */
export function squareSum(tensors: readonly Tensor[]): Tensor {
  return squaresInto(1, tensors);
}

/** The same, and behind it the sum of each tensor: [1 + tensors]. */
export function squareSums(tensors: readonly Tensor[]): Tensor {
  return squaresInto(1 + tensors.length, tensors);
}

function squaresInto(length: number, tensors: readonly Tensor[]): Tensor {
  if (tensors.length === 0) throw new OptionError('squareSum: expected at least one tensor.');
  const y = Tensor.empty([length], 'f32', tensors[0].device, 'squareSum');
  native.ops.square_sum(
    tensors.map(({ id }) => id),
    y.id,
  );
  return y;
}
