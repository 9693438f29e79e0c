/** What the tests of bf16 and f16 share: values as those dtypes hold them, and the error of a whole tensor. */
import type { Test } from 'tap';
import type { DType } from '../../lib/dtype.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { numbers, testDevices } from '../helpers.js';

/** The device whose tensor cores are tested: a GPU where DIFFIT_TEST_DEVICES names one, else the emulator. */
export const device = testDevices().find((name) => name.startsWith('cuda')) ?? 'cuda-emulated';

/**
 * Errors of a result of each dtype in the Euclidean norm: its rounding with a margin of two, and for f32 that of sums. Tensor
 * cores keep fewer bits than f32 while they add, which shows in f32 results; the emulator adds in f32.
 */
export const rounding: Record<string, number> = {
  f32: device === 'cuda-emulated' ? 2e-6 : 1e-4,
  bf16: 2.5e-3,
  f16: 3.5e-4,
};

/** The nearest number with `bits` bits of mantissa (ties to even) and exponents from `least` on. */
function nearest(v: number, bits: number, least: number): number {
  if (v === 0 || !Number.isFinite(v)) return v;
  const unit = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(v))), least) - bits);
  const [whole, rest] = [Math.floor(v / unit), v / unit - Math.floor(v / unit)];
  return (rest > 0.5 || (rest === 0.5 && whole % 2 !== 0) ? whole + 1 : whole) * unit;
}

/** `values` rounded as the dtype holds them. */
export function rounded(values: ArrayLike<number>, dtype: DType): Float64Array {
  return Float64Array.from(values, (v) =>
    dtype === 'bf16' ? nearest(v, 7, -126) : dtype === 'f16' ? nearest(v, 10, -14) : Math.fround(v),
  );
}

/** A tensor of pseudorandom numbers in `dtype` on the default device, and the values it holds. */
export function random(seed: number, shape: readonly number[], dtype: DType): { t: Tensor; values: Float64Array } {
  const data = numbers(
    seed,
    shape.reduce((n, d) => n * d, 1),
  );
  return { t: tensor(data, { shape: [...shape], dtype }), values: rounded(data, dtype) };
}

/** |actual - expected| / |expected| over all elements, in the Euclidean norm; NaN counts as infinite. */
export function normError(actual: ArrayLike<number | bigint>, expected: ArrayLike<number>): number {
  if (actual.length !== expected.length) throw new Error(`${actual.length} values, expected ${expected.length}`);
  let [difference, size] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    difference += (Number(actual[i]) - expected[i]) ** 2;
    size += expected[i] ** 2;
  }
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : Math.sqrt(difference / Math.max(size, 1e-40));
}

/** Asserts normError(actual, expected) <= tolerance; the message carries the measured error. */
export async function assertNear(
  t: Test,
  actual: Tensor | undefined,
  expected: ArrayLike<number>,
  tolerance: number,
  name: string,
): Promise<void> {
  const error = actual ? normError(await actual.data(), expected) : Number.POSITIVE_INFINITY;
  t.ok(error <= tolerance, `${name}: error ${error.toExponential(1)} <= ${tolerance}`);
}
