/** Arithmetic on shapes: sizes, strides, broadcasting, axes. Shapes are row-major; [] is a scalar. */
import { OptionError, ShapeError } from './errors.js';

/** Sizes of the axes, outermost first; at most 6. [] is a scalar. */
export type Shape = readonly number[];

/** Most dimensions a tensor may have (DIFFIT_MAX_DIMS). */
export const maxDims = 6;

/** Number of elements. */
export function numel(shape: Shape): number {
  let n = 1;
  for (let i = 0; i < shape.length; i++) n *= shape[i];
  return n;
}

/** `[2, 3]`, for messages. */
export function format(shape: Shape): string {
  return `[${shape.join(', ')}]`;
}

export function sameShape(a: Shape, b: Shape): boolean {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}

/** Throws ShapeError unless `shape` is a list of at most 6 non-negative integers with a sane product. */
export function checkShape(shape: Shape, what: string): void {
  if (!Array.isArray(shape) || shape.length > maxDims || !shape.every((n) => Number.isSafeInteger(n) && n >= 0)) {
    throw new ShapeError(
      `${what}: a shape is a list of at most ${maxDims} non-negative integers, got ${JSON.stringify(shape)}.`,
    );
  }
  if (numel(shape) > 2 ** 40)
    throw new ShapeError(`${what}: ${format(shape)} has more elements than any device holds.`);
}

/** Row-major element strides. */
export function strides(shape: Shape): number[] {
  const result = new Array<number>(shape.length);
  let step = 1;
  for (let i = shape.length - 1; i >= 0; i--) {
    result[i] = step;
    step *= shape[i];
  }
  return result;
}

/** NumPy broadcasting of two shapes; throws ShapeError naming the operation. */
export function broadcast(a: Shape, b: Shape, op: string): Shape {
  if (sameShape(a, b)) return a;
  const n = Math.max(a.length, b.length);
  const result = new Array<number>(n);
  for (let i = 0; i < n; i++) {
    const x = a[a.length - n + i] ?? 1;
    const y = b[b.length - n + i] ?? 1;
    if (x !== y && x !== 1 && y !== 1) {
      throw new ShapeError(`${op}: shapes ${format(a)} and ${format(b)} do not broadcast (${x} against ${y}).`);
    }
    result[i] = x === 1 ? y : x;
  }
  return result;
}

/** An axis counted from the front; negative ones count from the back. */
export function normalizeAxis(axis: number, ndim: number, op: string): number {
  if (!Number.isInteger(axis) || axis < -ndim || axis >= ndim) {
    throw new OptionError(`${op}: axis ${axis} is outside a tensor of ${ndim} dimensions.`);
  }
  return axis < 0 ? axis + ndim : axis;
}

/** Is it a shape of `total` elements? */
function fits(shape: Shape, total: number): boolean {
  if (shape.length > maxDims || numel(shape) !== total) return false;
  for (let i = 0; i < shape.length; i++) if (!Number.isSafeInteger(shape[i]) || shape[i] < 0) return false;
  return true;
}

/** `shape` with one -1 replaced by what is left of `total` elements. */
export function inferShape(shape: Shape, total: number, from: Shape): number[] {
  if (fits(shape, total)) return [...shape];
  const unknown = shape.indexOf(-1);
  const result = [...shape];
  if (unknown >= 0) {
    const rest = shape.reduce((product, n, i) => (i === unknown ? product : product * n), 1);
    result[unknown] = rest > 0 ? total / rest : 0;
  }
  checkShape(
    result.map((n) => (Number.isInteger(n) ? n : Number.NaN)) as number[],
    `reshape ${format(from)} to ${format(shape)}`,
  );
  if (numel(result) !== total) {
    throw new ShapeError(`reshape: ${format(from)} has ${total} elements and cannot become ${format(shape)}.`);
  }
  return result;
}
