/** Mixed precision: operands of matrix products in the dtype of the autocast around the call (scope.ts). */
import type { LowPrecision } from '../scope.js';
import type { Tensor } from '../tensor.js';
import { cast, castRaw } from './elementwise.js';

/** An activation in `dtype`, recorded; itself when it is already, or when there is no autocast. */
export function lowered(x: Tensor, dtype: LowPrecision | undefined): Tensor {
  return dtype === undefined || x.dtype === dtype ? x : cast(x, dtype);
}

/** A weight's values in `dtype`, not recorded: its gradient is that of the f32 weight. Itself as in {@link lowered}. */
export function loweredWeight(weight: Tensor, dtype: LowPrecision | undefined): Tensor {
  return dtype === undefined || weight.dtype === dtype ? weight : castRaw(weight, dtype);
}
