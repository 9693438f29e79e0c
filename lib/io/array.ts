/** Arrays in host memory, as .npy and .npz files hold them. Unlike tensors they may be f64, and are never bf16. */
import { DTypeError } from '../errors.js';
import type { Shape } from '../shape.js';

/** Element types of arrays in host memory. */
export type HostDType = 'u8' | 'i32' | 'i64' | 'f16' | 'f32' | 'f64';

/** An array in host memory, as .npy and .npz files hold them: row-major, little-endian. */
export interface HostArray {
  /** Type of the elements. */
  dtype: HostDType;
  /** Sizes of the axes, outermost first. */
  shape: Shape;
  /** The elements. */
  bytes: Uint8Array;
}

/** TypedArrays that hold the elements of a {@link HostArray}. */
export type HostValues = Uint8Array | Int32Array | BigInt64Array | Float32Array | Float64Array;

const sizes: Record<HostDType, number> = { u8: 1, i32: 4, i64: 8, f16: 2, f32: 4, f64: 8 };

/** Bytes of one element. */
export function hostItemSize(dtype: HostDType): number {
  return sizes[dtype];
}

/** The elements: a view of the bytes where they are aligned, else a copy; f16 is widened to Float32Array. */
export function hostValues({ dtype, bytes }: HostArray): HostValues {
  const aligned = bytes.byteOffset % sizes[dtype] === 0 ? bytes : new Uint8Array(bytes);
  const of = [aligned.buffer, aligned.byteOffset, aligned.byteLength / sizes[dtype]] as const;
  switch (dtype) {
    case 'u8':
      return bytes;
    case 'i32':
      return new Int32Array(...of);
    case 'i64':
      return new BigInt64Array(...of);
    case 'f16':
      return Float32Array.from(new Uint16Array(...of), widen);
    case 'f32':
      return new Float32Array(...of);
    case 'f64':
      return new Float64Array(...of);
  }
}

/** IEEE 754 binary16 bits to a number. */
function widen(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** An array over a TypedArray, without a copy; shape by default [length]. Throws DTypeError on a type not listed in {@link HostValues}. */
export function hostArray(values: HostValues, shape: Shape = [values.length]): HostArray {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return { dtype: dtypeOfValues(values), shape, bytes };
}

function dtypeOfValues(values: HostValues): HostDType {
  if (values instanceof Float32Array) return 'f32';
  if (values instanceof Float64Array) return 'f64';
  if (values instanceof Int32Array) return 'i32';
  if (values instanceof BigInt64Array) return 'i64';
  if (values instanceof Uint8Array) return 'u8';
  throw new DTypeError('An array needs a Float32Array, Float64Array, Int32Array, BigInt64Array or Uint8Array.');
}
