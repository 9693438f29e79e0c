/** Elementwise operations: unary functions, arithmetic with NumPy broadcasting, casts. One memory pass each. */
import { type DType, dtypeNumber, isFloat } from '../dtype.js';
import { OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { broadcast, format, sameShape } from '../shape.js';
import { record } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkTensors } from './check.js';
import { reshape } from './index.js';

/** Unary functions and their numbers in diffit.h. */
export const unaryKinds = {
  neg: 0,
  exp: 1,
  log: 2,
  sqrt: 3,
  rsqrt: 4,
  reciprocal: 5,
  sin: 6,
  cos: 7,
  tanh: 8,
  sigmoid: 9,
  relu: 10,
  silu: 11,
  geluTanh: 12,
  geluErf: 13,
  abs: 14,
  square: 15,
  isFinite: 16,
} as const;
export type UnaryKind = keyof typeof unaryKinds;

const binaryKinds = { add: 0, sub: 1, mul: 2, div: 3, maximum: 4, minimum: 5, pow: 6, equal: 7, less: 8 } as const;
type BinaryKind = keyof typeof binaryKinds;

/** y = kind(x), f32. */
export function unary(kind: UnaryKind, x: Tensor): Tensor {
  checkTensors(kind, { x });
  const y = Tensor.empty(x.shape, 'f32', x.device);
  native.ops.unary(x.id, y.id, unaryKinds[kind]);
  return kind === 'isFinite' ? y : record('unary', [x], y, [x], { kind });
}

/** dx = kind'(x) dy. Not recorded. */
export function unaryBackward(kind: UnaryKind, x: Tensor, dy: Tensor): Tensor {
  if (kind === 'neg') return affine(dy, -1, 0);
  const dx = Tensor.empty(x.shape, 'f32', x.device);
  native.ops.unary_backward(x.id, dy.id, dx.id, unaryKinds[kind]);
  return dx;
}

/** SiLU: x sigmoid(x). */
export const silu = (x: Tensor): Tensor => unary('silu', x);
/** GELU; 'tanh' is the approximation DiffiT and DiT use, 'none' the exact erf form. */
export const gelu = (x: Tensor, { approximate = 'tanh' }: { approximate?: 'tanh' | 'none' } = {}): Tensor =>
  unary(approximate === 'tanh' ? 'geluTanh' : 'geluErf', x);
export const relu = (x: Tensor): Tensor => unary('relu', x);
export const sigmoid = (x: Tensor): Tensor => unary('sigmoid', x);
export const tanh = (x: Tensor): Tensor => unary('tanh', x);
export const sin = (x: Tensor): Tensor => unary('sin', x);
export const cos = (x: Tensor): Tensor => unary('cos', x);

/** y = scale x + shift with plain numbers. */
export function affine(x: Tensor, scale: number, shift: number): Tensor {
  checkTensors('affine', { x });
  const y = Tensor.empty(x.shape, 'f32', x.device);
  native.ops.affine(x.id, y.id, scale, shift);
  return record('affine', [x], y, [], { scale });
}

/** y = min(max(x, low), high); the gradient is 0 where x was outside. */
export function clamp(x: Tensor, low: number, high: number): Tensor {
  checkTensors('clamp', { x });
  if (!(low <= high)) throw new OptionError(`clamp: low ${low} is above high ${high}.`);
  const y = Tensor.empty(x.shape, 'f32', x.device);
  native.ops.clamp(x.id, y.id, low, high);
  return record('clamp', [x], y, [x, y]);
}

function binary(kind: BinaryKind, a: Tensor, b: Tensor): Tensor {
  const integers = a.dtype === 'i64' && (kind === 'equal' || kind === 'less');
  checkTensors(kind, { a, b }, integers ? 'i64' : 'f32');
  const y = Tensor.empty(broadcast(a.shape, b.shape, kind), 'f32', a.device);
  native.ops.binary(a.id, b.id, y.id, binaryKinds[kind]);
  return y;
}

/** A binary operation whose gradient needs both inputs. */
function recorded(kind: 'mul' | 'div' | 'pow' | 'maximum' | 'minimum', a: Tensor, b: Tensor): Tensor {
  return record(kind, [a, b], binary(kind, a, b), [a, b]);
}

/** a + b. */
export function add(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, 1, b);
  return record('add', [a, b], binary('add', a, b));
}
/** a - b. */
export function sub(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, 1, -b);
  return record('sub', [a, b], binary('sub', a, b));
}
/** a b, elementwise. */
export function mul(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, b, 0);
  return recorded('mul', a, b);
}
/** a / b, elementwise. */
export function div(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, 1 / b, 0);
  return recorded('div', a, b);
}
/** a to the power b, elementwise. b's gradient needs a > 0. */
export const pow = (a: Tensor, b: Tensor): Tensor => recorded('pow', a, b);
/** Elementwise maximum. Where a = b each gets half the gradient. */
export const maximum = (a: Tensor, b: Tensor): Tensor => recorded('maximum', a, b);
/** Elementwise minimum. Where a = b each gets half the gradient. */
export const minimum = (a: Tensor, b: Tensor): Tensor => recorded('minimum', a, b);
/** 1 where a = b, else 0 (f32; f32 or i64 inputs). */
export const equal = (a: Tensor, b: Tensor): Tensor => binary('equal', a, b);
/** 1 where a < b, else 0 (f32; f32 or i64 inputs). */
export const less = (a: Tensor, b: Tensor): Tensor => binary('less', a, b);

/** condition != 0 ? a : b, broadcast. */
export function where(condition: Tensor, a: Tensor, b: Tensor): Tensor {
  checkTensors('where', { condition, a, b });
  const shape = broadcast(broadcast(condition.shape, a.shape, 'where'), b.shape, 'where');
  const y = Tensor.empty(shape, 'f32', a.device);
  native.ops.where(condition.id, a.id, b.id, y.id);
  return record('where', [undefined, a, b], y, [condition]);
}

/** ca a + cb b + cc c in one pass; same shapes. The update of every sampler is this. Optionally into an existing tensor. */
export function linearCombination(terms: readonly (readonly [number, Tensor])[], out?: Tensor): Tensor {
  if (terms.length < 1 || terms.length > 3)
    throw new OptionError(`linearCombination: expected 1 to 3 terms, got ${terms.length}.`);
  const [[ca, a], [cb, b] = [0, undefined], [cc, c] = [0, undefined]] = terms;
  checkTensors('linearCombination', { a, b, c, out });
  for (const other of [b, c, out]) {
    if (other && !sameShape(other.shape, a.shape)) {
      throw new ShapeError(`linearCombination: shapes ${format(a.shape)} and ${format(other.shape)} differ.`);
    }
  }
  const y = out ?? Tensor.empty(a.shape, 'f32', a.device);
  native.ops.linear_combination(a.id, b?.id ?? 0, c?.id ?? 0, y.id, ca, cb, cc);
  return out ?? record('linearCombination', [a, b, c], y, [], { coefficients: [ca, cb, cc] });
}

/** x converted to another dtype; not recorded. @internal */
export function castRaw(x: Tensor, dtype: DType): Tensor {
  const y = Tensor.empty(x.shape, dtype, x.device);
  native.ops.cast(x.id, y.id);
  return y;
}

/** x converted to another dtype (the same one: another tensor on its buffer). To integers: truncates toward zero, saturates, NaN becomes 0. */
export function cast(x: Tensor, dtype: DType): Tensor {
  dtypeNumber(dtype);
  checkTensors('cast', { x }, x.dtype);
  if (x.dtype === dtype) return reshape(x, x.shape);
  const y = castRaw(x, dtype);
  return isFloat(dtype) && isFloat(x.dtype) ? record('cast', [x], y, [], { from: x.dtype }) : y;
}
