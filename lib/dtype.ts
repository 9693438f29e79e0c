/** Element types: their sizes, native numbers, and the TypedArrays that hold them in JavaScript. */
import { DTypeError, unknownName } from './errors.js';

/** Types of a tensor's elements. f32, bf16, f16: real numbers; i32, i64: labels and indices; u8: images. */
export type DType = 'f32' | 'bf16' | 'f16' | 'i32' | 'i64' | 'u8';

/** What data() resolves with: bf16 and f16 arrive as Float32Array, i64 as BigInt64Array. */
export type TensorData = Float32Array | Int32Array | BigInt64Array | Uint8Array;

/** Names in the order of diffit.h's dtype numbers. */
export const dtypes: readonly DType[] = ['f32', 'bf16', 'f16', 'i32', 'i64', 'u8'];

const sizes: Record<DType, number> = { f32: 4, bf16: 2, f16: 2, i32: 4, i64: 8, u8: 1 };
const numbers = Object.fromEntries(dtypes.map((dtype, i) => [dtype, i])) as Record<DType, number>;

/** Bytes of one element. */
export function itemSize(dtype: DType): number {
  return sizes[dtype];
}

/** The number diffit.h gives the dtype; throws OptionError for an unknown name. */
export function dtypeNumber(dtype: DType): number {
  const number = numbers[dtype];
  if (number === undefined) throw unknownName('dtype', String(dtype), dtypes);
  return number;
}

/** True for f32, bf16 and f16. */
export function isFloat(dtype: DType): boolean {
  return dtype === 'f32' || dtype === 'bf16' || dtype === 'f16';
}

/** The dtype whose elements a TypedArray holds, or undefined when there is none (Float64Array, Int8Array, …). */
export function dtypeOf(data: ArrayBufferView): DType | undefined {
  if (data instanceof Float32Array) return 'f32';
  if (data instanceof Int32Array) return 'i32';
  if (data instanceof BigInt64Array) return 'i64';
  if (data instanceof Uint8Array || data instanceof Uint8ClampedArray) return 'u8';
  return undefined;
}

/** Limits of the numbers an integer dtype takes; i64: those a number holds exactly. */
const ranges: Partial<Record<DType, readonly [number, number]>> = {
  i32: [-(2 ** 31), 2 ** 31 - 1],
  i64: [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
  u8: [0, 255],
};

/**
 * `values` as a TypedArray of the dtype (f32 for bf16 and f16, which are converted on the device). Throws DTypeError on
 * a value an integer dtype cannot hold.
 */
export function toTyped(values: readonly number[], dtype: DType): TensorData {
  const range = ranges[dtype];
  const bad = range && values.find((value) => !(Number.isInteger(value) && value >= range[0] && value <= range[1]));
  if (bad !== undefined) throw new DTypeError(`tensor: ${bad} is not a value of ${dtype}.`);
  switch (dtype) {
    case 'i32':
      return Int32Array.from(values);
    case 'u8':
      return Uint8Array.from(values);
    case 'i64':
      return BigInt64Array.from(values, BigInt);
    default:
      return Float32Array.from(values);
  }
}

/** A TypedArray over an ArrayBuffer of elements of the dtype; not for bf16 and f16. */
export function typedView(buffer: ArrayBuffer, dtype: DType): TensorData {
  switch (dtype) {
    case 'i32':
      return new Int32Array(buffer);
    case 'i64':
      return new BigInt64Array(buffer);
    case 'u8':
      return new Uint8Array(buffer);
    default:
      return new Float32Array(buffer);
  }
}
