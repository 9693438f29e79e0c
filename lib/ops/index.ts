/** Moving elements: reshape, permute, slice, concatenate, pad, row lookup, nearest-neighbour upsampling. */
import { isFloat } from '../dtype.js';
import { OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { scope } from '../scope.js';
import { format, inferShape, normalizeAxis, numel, type Shape, strides } from '../shape.js';
import { record } from '../tape.js';
import { Tensor, zeros } from '../tensor.js';
import { checkFloats, checkShapeOf, checkTensor, checkTensors } from './check.js';
import { cast } from './elementwise.js';

/** A view in another shape; not recorded. @internal */
export function reshapeRaw(x: Tensor, shape: Shape): Tensor {
  return x.view(shape);
}

/** Same elements in another shape (one entry may be -1). Shares the buffer. Throws ShapeError when they do not fit. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  return record('reshape', [x], x.view(inferShape(shape, x.size, x.shape)));
}

/** Axes in another order (a copy): y.shape[i] = x.shape[axes[i]]. Throws OptionError on what is no order of the axes. */
export function permute(x: Tensor, axes: readonly number[]): Tensor {
  checkTensors('permute', { x }, x.dtype);
  const order = axes.map((axis) => normalizeAxis(axis, x.ndim, 'permute'));
  if (order.length !== x.ndim || new Set(order).size !== x.ndim) {
    throw new OptionError(`permute: ${format(axes)} is not an order of ${x.ndim} axes.`);
  }
  const shape = order.map((axis) => x.shape[axis]);
  const y = Tensor.empty(shape, x.dtype, x.device, 'permute');
  const from = strides(x.shape);
  native.ops.strided_copy(
    x.id,
    y.id,
    shape,
    order.map((axis) => from[axis]),
    strides(shape),
    0,
    0,
  );
  return record('permute', [x], y, [], { order });
}

/** Elements [start, end) of one axis; negative positions count from the end. A slice of axis 0 shares the buffer. Throws OptionError for a range outside. */
export function slice(
  x: Tensor,
  axis: number,
  start: number,
  end: number = x.shape[axis < 0 ? axis + x.ndim : axis],
): Tensor {
  checkTensors('slice', { x }, x.dtype);
  const at = normalizeAxis(axis, x.ndim, 'slice');
  const length = x.shape[at];
  const first = start < 0 ? start + length : start;
  const last = end < 0 ? end + length : end;
  if (!Number.isInteger(first) || !Number.isInteger(last) || first < 0 || last > length || first > last) {
    throw new OptionError(`slice: [${start}, ${end}) is not inside axis ${at} of ${format(x.shape)}.`);
  }
  const shape = x.shape.map((n, i) => (i === at ? last - first : n));
  const step = strides(x.shape);
  const offset = first * step[at];
  let y: Tensor;
  if (at === 0) {
    y = x.view(shape, offset);
  } else {
    y = Tensor.empty(shape, x.dtype, x.device, 'slice');
    native.ops.strided_copy(x.id, y.id, shape, step, strides(shape), offset, 0);
  }
  return record('slice', [x], y, [], { axis: at, start: first });
}

/** A tensor of zeros in `shape` with x placed at `start` of `axis`: the gradient of slice; not recorded. @internal */
export function place(x: Tensor, shape: Shape, axis: number, start: number): Tensor {
  const y = zeros(shape, { dtype: x.dtype, device: x.device });
  const step = strides(shape);
  native.ops.strided_copy(x.id, y.id, x.shape, strides(x.shape), step, 0, start * step[axis]);
  return y;
}

/** Tensors joined along one axis; all other dimensions must agree. Of different float dtypes: f32. Throws ShapeError when they do not join. */
export function concat(tensors: readonly Tensor[], axis: number): Tensor {
  if (tensors.length === 0) throw new OptionError('concat: expected at least one tensor.');
  const [first] = tensors;
  if (tensors.every(({ dtype }) => isFloat(dtype)) && tensors.some(({ dtype }) => dtype !== first.dtype)) {
    return scope(() =>
      concat(
        tensors.map((x) => cast(x, 'f32')),
        axis,
      ),
    );
  }
  const at = normalizeAxis(axis, first.ndim, 'concat');
  for (let i = 0; i < tensors.length; i++) {
    const tensor = tensors[i];
    checkTensor('concat', `tensors[${i}]`, tensor, first.dtype, first.device);
    if (tensor.ndim !== first.ndim || tensor.shape.some((n, d) => d !== at && n !== first.shape[d])) {
      throw new ShapeError(
        `concat: tensors[${i}] is ${format(tensor.shape)}, which does not join ${format(first.shape)} along axis ${at}.`,
      );
    }
  }
  const sizes = tensors.map((tensor) => tensor.shape[at]);
  const shape = first.shape.map((n, i) => (i === at ? sizes.reduce((a, b) => a + b, 0) : n));
  const y = Tensor.empty(shape, first.dtype, first.device, 'concat');
  const step = strides(shape);
  let start = 0;
  for (const tensor of tensors) {
    native.ops.strided_copy(tensor.id, y.id, tensor.shape, strides(tensor.shape), step, 0, start * step[at]);
    start += tensor.shape[at];
  }
  return record('concat', tensors, y, [], { axis: at, sizes });
}

/** x surrounded by zeros: padding[i] = [before, after] of axis i. Throws OptionError on what is no padding of all axes. */
export function pad(x: Tensor, padding: readonly (readonly [number, number])[]): Tensor {
  checkTensors('pad', { x }, x.dtype);
  if (padding.length !== x.ndim || padding.some((p) => p.some((n) => !Number.isInteger(n) || n < 0))) {
    throw new OptionError(`pad: expected [before, after] for each of ${x.ndim} axes.`);
  }
  const shape = x.shape.map((n, i) => n + padding[i][0] + padding[i][1]);
  const y = zeros(shape, { dtype: x.dtype, device: x.device });
  const step = strides(shape);
  const offset = padding.reduce((sum, [before], i) => sum + before * step[i], 0);
  native.ops.strided_copy(x.id, y.id, x.shape, strides(x.shape), step, 0, offset);
  return record('pad', [x], y, [], { offset });
}

/** The block of `shape` at element `offset` of x: the gradient of pad; not recorded. @internal */
export function crop(x: Tensor, shape: Shape, offset: number): Tensor {
  const y = Tensor.empty(shape, x.dtype, x.device, 'slice');
  native.ops.strided_copy(x.id, y.id, shape, strides(x.shape), strides(shape), offset, 0);
  return y;
}

/** x repeated to `shape` by NumPy broadcasting (a copy); not recorded. @internal */
export function broadcastTo(x: Tensor, shape: Shape): Tensor {
  const own = strides(x.shape);
  const lead = shape.length - x.ndim;
  const from = shape.map((_, i) => (i < lead || x.shape[i - lead] === 1 ? 0 : own[i - lead]));
  const y = Tensor.empty(shape, x.dtype, x.device, 'broadcast');
  if (numel(shape) > 0) native.ops.strided_copy(x.id, y.id, shape, from, strides(shape), 0, 0);
  return y;
}

/** Rows of table [V, D] at ids (i64, any shape) -> [...ids, D], in the table's dtype. An id outside 0..V-1 rejects the next awaited read. */
export function embedding(table: Tensor, ids: Tensor): Tensor {
  checkFloats('embedding', { table });
  checkTensors('embedding', { ids }, 'i64', table.device);
  checkShapeOf('embedding', 'table', table, [-1, -1]);
  const y = Tensor.empty([...ids.shape, table.shape[1]], table.dtype, table.device, 'embedding');
  native.ops.gather_rows(table.id, ids.id, y.id);
  return record('embedding', [table, undefined], y, [ids]);
}

/** Nearest-neighbour x2 of [B, H, W, C] -> [B, 2H, 2W, C], any float dtype. */
export function upsample2x(x: Tensor): Tensor {
  checkFloats('upsample2x', { x });
  checkShapeOf('upsample2x', 'x', x, [-1, -1, -1, -1]);
  const [b, h, w, c] = x.shape;
  const y = Tensor.empty([b, 2 * h, 2 * w, c], x.dtype, x.device, 'upsample2x');
  native.ops.upsample2x(x.id, y.id);
  return record('upsample2x', [x], y);
}
