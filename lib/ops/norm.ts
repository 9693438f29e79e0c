/**
 * LayerNorm over the last axis, and GroupNorm on token-major activations with an optional SiLU in the same pass. x and the result are float:
 * under autocast the result is in its dtype, for a matrix product follows, else in x's. Scale, shift and statistics are f32.
 */
import { OptionError } from '../errors.js';
import { native } from '../native.js';
import { autocastDType } from '../scope.js';
import { numel } from '../shape.js';
import { needsGrad, record } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkInteger, checkShapeOf, checkTensors } from './check.js';

/** Scale and shift per channel [C]; absent: none. */
export interface Affine {
  /** Factor per channel, f32 [C]. */
  weight?: Tensor;
  /** Added after it, f32 [C]. */
  bias?: Tensor;
}

/** (x - mean) / sqrt(variance + eps) over the last axis of x [..., C], biased variance. eps default 1e-6 (DiffiT, DiT). */
export function layerNorm(x: Tensor, { weight, bias, eps = 1e-6 }: Affine & { eps?: number } = {}): Tensor {
  checkFloats('layerNorm', { x });
  checkTensors('layerNorm', { weight, bias }, 'f32', x.device);
  if (x.ndim < 1) throw new OptionError('layerNorm: x is a scalar.');
  const c = x.shape[x.ndim - 1];
  checkShapeOf('layerNorm', 'weight', weight, [c]);
  checkShapeOf('layerNorm', 'bias', bias, [c]);
  const inputs = [x, weight, bias];
  const y = Tensor.empty(x.shape, autocastDType() ?? x.dtype, x.device, 'layerNorm');
  const [mean, rstd] = needsGrad(inputs) ? statistics('layerNorm', x, [numel(x.shape.slice(0, -1))]) : [];
  native.ops.layer_norm(x.id, weight?.id ?? 0, bias?.id ?? 0, y.id, mean?.id ?? 0, rstd?.id ?? 0, eps);
  record('layerNorm', inputs, y, [x, weight, bias, mean, rstd], { eps, dtype: y.dtype });
  mean?.dispose();
  rstd?.dispose();
  return y;
}

/** Options of {@link groupNorm}. */
export interface GroupNormOptions extends Affine {
  /** Groups of consecutive channels; must divide C. */
  groups: number;
  /** Added to the variance. Default 1e-5. */
  eps?: number;
  /** Apply SiLU to the result. Default false. */
  silu?: boolean;
}

/** GroupNorm (Wu & He 2018) of x [B, ..., C] over (..., C / groups), biased variance. Throws OptionError when `groups` does not divide C. */
export function groupNorm(x: Tensor, { groups, weight, bias, eps = 1e-5, silu = false }: GroupNormOptions): Tensor {
  checkFloats('groupNorm', { x });
  checkTensors('groupNorm', { weight, bias }, 'f32', x.device);
  checkInteger('groupNorm', 'groups', groups, 1);
  if (x.ndim < 2) throw new OptionError('groupNorm: x needs a batch and a channel axis.');
  const c = x.shape[x.ndim - 1];
  if (c % groups !== 0) throw new OptionError(`groupNorm: ${groups} groups do not divide ${c} channels.`);
  checkShapeOf('groupNorm', 'weight', weight, [c]);
  checkShapeOf('groupNorm', 'bias', bias, [c]);
  const inputs = [x, weight, bias];
  const y = Tensor.empty(x.shape, autocastDType() ?? x.dtype, x.device, 'groupNorm');
  const [mean, rstd] = needsGrad(inputs) ? statistics('groupNorm', x, [x.shape[0], groups]) : [];
  native.ops.group_norm(
    x.id,
    weight?.id ?? 0,
    bias?.id ?? 0,
    y.id,
    mean?.id ?? 0,
    rstd?.id ?? 0,
    groups,
    eps,
    silu ? 1 : 0,
  );
  record('groupNorm', inputs, y, [x, weight, bias, mean, rstd], { groups, eps, silu, dtype: y.dtype });
  mean?.dispose();
  rstd?.dispose();
  return y;
}

function statistics(op: string, x: Tensor, shape: number[]): [Tensor, Tensor] {
  return [Tensor.empty(shape, 'f32', x.device, op), Tensor.empty(shape, 'f32', x.device, op)];
}
