/**
 * Elementwise operations: unary functions, arithmetic with NumPy broadcasting, casts. One memory pass each. They compute in f32; the
 * result has the dtype of the operands, f32 when those differ (bf16 + f32 is f32).
 */
import { type DType, dtypeNumber, isFloat } from '../dtype.js';
import { OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { broadcast, format, sameShape } from '../shape.js';
import { record } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkTensors, promote } from './check.js';
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
/** Functions that {@link unary} knows. geluTanh is GELU's tanh form, geluErf the exact one; isFinite is 1 or 0. */
export type UnaryKind = keyof typeof unaryKinds;

const binaryKinds = { add: 0, sub: 1, mul: 2, div: 3, maximum: 4, minimum: 5, pow: 6, equal: 7, less: 8 } as const;
type BinaryKind = keyof typeof binaryKinds;

/** y = kind(x), elementwise, in x's dtype; isFinite is f32 and has no gradient. */
export function unary(kind: UnaryKind, x: Tensor): Tensor {
  checkFloats(kind, { x });
  const y = Tensor.empty(x.shape, kind === 'isFinite' ? 'f32' : x.dtype, x.device, kind);
  native.ops.unary(x.id, y.id, unaryKinds[kind]);
  return kind === 'isFinite' ? y : record('unary', [x], y, [x], { kind });
}

/** dx = kind'(x) dy, in x's dtype. Not recorded. @internal */
export function unaryBackward(kind: UnaryKind, x: Tensor, dy: Tensor): Tensor {
  if (kind === 'neg') return affine(dy, -1, 0);
  const dx = Tensor.empty(x.shape, x.dtype, x.device, 'backward');
  native.ops.unary_backward(x.id, dy.id, dx.id, unaryKinds[kind]);
  return dx;
}

/** SiLU: x sigmoid(x). */
export const silu = (x: Tensor): Tensor => unary('silu', x);
/** GELU; 'tanh' is the approximation DiffiT and DiT use, 'none' the exact erf form. */
export const gelu = (x: Tensor, { approximate = 'tanh' }: { approximate?: 'tanh' | 'none' } = {}): Tensor =>
  unary(approximate === 'tanh' ? 'geluTanh' : 'geluErf', x);
/** max(x, 0), elementwise. */
export const relu = (x: Tensor): Tensor => unary('relu', x);
/** 1 / (1 + exp(-x)), elementwise. */
export const sigmoid = (x: Tensor): Tensor => unary('sigmoid', x);
/** Hyperbolic tangent, elementwise. */
export const tanh = (x: Tensor): Tensor => unary('tanh', x);
/** Sine of x in radians, elementwise. */
export const sin = (x: Tensor): Tensor => unary('sin', x);
/** Cosine of x in radians, elementwise. */
export const cos = (x: Tensor): Tensor => unary('cos', x);

/** y = scale x + shift with plain numbers. */
export function affine(x: Tensor, scale: number, shift: number): Tensor {
  checkFloats('affine', { x });
  const y = Tensor.empty(x.shape, x.dtype, x.device, 'affine');
  native.ops.affine(x.id, y.id, scale, shift);
  return record('affine', [x], y, [], { scale });
}

/** y = min(max(x, low), high); the gradient is 0 where x was outside. Throws OptionError when low is above high. */
export function clamp(x: Tensor, low: number, high: number): Tensor {
  checkFloats('clamp', { x });
  if (!(low <= high)) throw new OptionError(`clamp: low ${low} is above high ${high}.`);
  const y = Tensor.empty(x.shape, x.dtype, x.device, 'clamp');
  native.ops.clamp(x.id, y.id, low, high);
  return record('clamp', [x], y, [x, y]);
}

function binary(kind: BinaryKind, a: Tensor, b: Tensor): Tensor {
  const compares = kind === 'equal' || kind === 'less';
  if (compares && a.dtype === 'i64') checkTensors(kind, { a, b }, 'i64');
  else checkFloats(kind, { a, b });
  const y = Tensor.empty(broadcast(a.shape, b.shape, kind), compares ? 'f32' : promote(a, b), a.device, kind);
  native.ops.binary(a.id, b.id, y.id, binaryKinds[kind]);
  return y;
}

/** A binary operation whose gradient needs both inputs. */
function recorded(kind: 'mul' | 'div' | 'pow' | 'maximum' | 'minimum', a: Tensor, b: Tensor): Tensor {
  return record(kind, [a, b], binary(kind, a, b), [a, b]);
}

/** a + b, elementwise with NumPy broadcasting. Throws ShapeError when the shapes do not broadcast. */
export function add(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, 1, b);
  return record('add', [a, b], binary('add', a, b));
}
/** a - b, elementwise with NumPy broadcasting. Throws ShapeError when the shapes do not broadcast. */
export function sub(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, 1, -b);
  return record('sub', [a, b], binary('sub', a, b));
}
/** a b, elementwise with NumPy broadcasting. Throws ShapeError when the shapes do not broadcast. */
export function mul(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, b, 0);
  return recorded('mul', a, b);
}
/** a / b, elementwise with NumPy broadcasting. Throws ShapeError when the shapes do not broadcast. */
export function div(a: Tensor, b: Tensor | number): Tensor {
  if (typeof b === 'number') return affine(a, 1 / b, 0);
  return recorded('div', a, b);
}
/** a to the power b, elementwise with NumPy broadcasting. b's gradient needs a > 0. */
export const pow = (a: Tensor, b: Tensor): Tensor => recorded('pow', a, b);
/** Elementwise maximum, with NumPy broadcasting. Where a = b each gets half the gradient. */
export const maximum = (a: Tensor, b: Tensor): Tensor => recorded('maximum', a, b);
/** Elementwise minimum, with NumPy broadcasting. Where a = b each gets half the gradient. */
export const minimum = (a: Tensor, b: Tensor): Tensor => recorded('minimum', a, b);
/** 1 where a = b, else 0 (f32; float or i64 inputs), broadcast. No gradient. */
export const equal = (a: Tensor, b: Tensor): Tensor => binary('equal', a, b);
/** 1 where a is less than b, else 0 (f32; float or i64 inputs), broadcast. No gradient. */
export const less = (a: Tensor, b: Tensor): Tensor => binary('less', a, b);

/** a where `condition` (f32) is not 0, else b; all three broadcast. Gradients reach a and b. */
export function where(condition: Tensor, a: Tensor, b: Tensor): Tensor {
  checkTensors('where', { condition });
  checkFloats('where', { a, b }, condition.device);
  const shape = broadcast(broadcast(condition.shape, a.shape, 'where'), b.shape, 'where');
  const y = Tensor.empty(shape, promote(a, b), a.device, 'where');
  native.ops.where(condition.id, a.id, b.id, y.id);
  return record('where', [undefined, a, b], y, [condition]);
}

/**
 * ca a + cb b + cc c in one pass, rounded once, of one to three [coefficient, tensor]; same shapes. The update of every sampler is this.
 * Optionally into an existing tensor `out`, of any float dtype, which is then returned and not recorded.
 *
 * @throws {OptionError} No term, or more than three.
 * @throws {ShapeError} Shapes that differ.
 */
export function linearCombination(terms: readonly (readonly [number, Tensor])[], out?: Tensor): Tensor {
  if (terms.length < 1 || terms.length > 3)
    throw new OptionError(`linearCombination: expected 1 to 3 terms, got ${terms.length}.`);
  const [[ca, a], [cb, b] = [0, undefined], [cc, c] = [0, undefined]] = terms;
  checkFloats('linearCombination', { a, b, c, out });
  for (const other of [b, c, out]) {
    if (other && !sameShape(other.shape, a.shape)) {
      throw new ShapeError(`linearCombination: shapes ${format(a.shape)} and ${format(other.shape)} differ.`);
    }
  }
  const y = out ?? Tensor.empty(a.shape, promote(a, b, c), a.device, 'linearCombination');
  native.ops.linear_combination(a.id, b?.id ?? 0, c?.id ?? 0, y.id, ca, cb, cc);
  return out?.written() ?? record('linearCombination', [a, b, c], y, [], { coefficients: [ca, cb, cc] });
}

/** x converted to another dtype; not recorded. @internal */
export function castRaw(x: Tensor, dtype: DType): Tensor {
  const y = Tensor.empty(x.shape, dtype, x.device, 'to');
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
