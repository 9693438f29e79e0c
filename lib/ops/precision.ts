/**
 * Mixed precision: operands of matrix products in the dtype of the autocast around the call (scope.ts).
 *
 * A weight keeps its low-precision copy, so a value is converted once however often it is used, and the optimizer writes the copy in
 * the pass that writes the weight. Whatever else writes a tensor counts that (Tensor.written), and the copy is made anew at its next use.
 */
import { keep, type LowPrecision } from '../scope.js';
import type { Tensor } from '../tensor.js';
import { cast, castRaw } from './elementwise.js';

/** An activation in `dtype`, recorded; itself when it is already, or when there is no autocast. */
export function lowered(x: Tensor, dtype: LowPrecision | undefined): Tensor {
  return dtype === undefined || x.dtype === dtype ? x : cast(x, dtype);
}

/** x in f32, recorded; itself when it is already. What a model returns, and what a kernel wants in f32, goes through here. */
export function widened(x: Tensor): Tensor {
  return x.dtype === 'f32' ? x : cast(x, 'f32');
}

/**
 * A weight's values in `dtype`, not recorded: its gradient is that of the f32 weight. Itself as in {@link lowered}; else a tensor of the
 * caller's over the buffer of the weight's copy, which is disposed with the weight.
 */
export function loweredWeight(weight: Tensor, dtype: LowPrecision | undefined): Tensor {
  if (dtype === undefined || weight.dtype === dtype) return weight;
  const { lowered, writes } = weight;
  if (lowered?.copy.dtype !== dtype) {
    lowered?.copy.dispose();
    weight.lowered = { copy: keep(castRaw(weight, dtype)), writes };
  } else if (lowered.writes !== writes) {
    lowered.copy.copyFrom(weight);
    lowered.writes = writes;
  }
  return (weight.lowered as { copy: Tensor }).copy.detach();
}
