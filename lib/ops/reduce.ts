/** Reductions over axes, softmax, cross entropy. x is float; sums, and so all results, are f32 (argmax: i64). */
import { OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { scope } from '../scope.js';
import { format, normalizeAxis, numel } from '../shape.js';
import { record } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkShapeOf, checkTensors } from './check.js';
import { cast, castRaw } from './elementwise.js';
import { reshapeRaw } from './index.js';

const kinds = { sum: 0, mean: 1, max: 2, argmax: 3 } as const;

/** One axis (or a run of neighbouring axes, [from, to)) of x reduced away; not recorded. */
function reduceRun(kind: keyof typeof kinds, x: Tensor, from: number, to: number): Tensor {
  const shape = [...x.shape.slice(0, from), ...x.shape.slice(to)];
  const y = Tensor.empty(shape, kind === 'argmax' ? 'i64' : 'f32', x.device, kind);
  const n = numel(x.shape.slice(from, to));
  if (n === 0 && kind !== 'sum') throw new ShapeError(`${kind}: cannot reduce an empty axis of ${format(x.shape)}.`);
  native.ops.reduce(x.id, y.id, kinds[kind], numel(x.shape.slice(0, from)), n, numel(x.shape.slice(to)));
  return y;
}

/** Reduces a set of axes by runs of neighbours, last run first, to f32; not recorded. @internal */
export function reduceAxes(kind: 'sum' | 'mean', x: Tensor, axes: readonly number[]): Tensor {
  let result = x;
  for (let end = axes.length; end > 0; ) {
    let begin = end - 1;
    while (begin > 0 && axes[begin - 1] === axes[begin] - 1) begin--;
    const next = reduceRun(kind, result, axes[begin], axes[end - 1] + 1);
    if (result !== x) result.dispose();
    result = next;
    end = begin;
  }
  if (result !== x) return result;
  return x.dtype === 'f32' ? x.detach() : castRaw(x, 'f32');
}

function axesOf(op: string, x: Tensor, axes: number | readonly number[] | undefined): number[] {
  if (axes === undefined) return x.shape.map((_, i) => i);
  const list = (typeof axes === 'number' ? [axes] : axes)
    .map((axis) => normalizeAxis(axis, x.ndim, op))
    .sort((a, b) => a - b);
  if (new Set(list).size !== list.length) throw new OptionError(`${op}: an axis is named twice in ${format(list)}.`);
  return list;
}

function reduceRecorded(
  kind: 'sum' | 'mean',
  x: Tensor,
  axes: number | readonly number[] | undefined,
  keepDims: boolean,
): Tensor {
  checkFloats(kind, { x });
  const list = axesOf(kind, x, axes);
  const kept = x.shape.map((n, i) => (list.includes(i) ? 1 : n));
  const flat = reduceAxes(kind, x, list);
  const y = keepDims ? reshapeRaw(flat, kept) : flat;
  if (y !== flat) flat.dispose();
  return record(kind, [x], y, [], { kept });
}

/** Sum over `axes` (all by default), f32. */
export function sum(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  return reduceRecorded('sum', x, axes, keepDims);
}

/** Mean over `axes` (all by default), f32. */
export function mean(x: Tensor, axes?: number | readonly number[], keepDims = false): Tensor {
  return reduceRecorded('mean', x, axes, keepDims);
}

/** Maximum over one axis, f32. Its gradient goes to the first element that has it. */
export function max(x: Tensor, axis: number, keepDims = false): Tensor {
  checkFloats('max', { x });
  const at = normalizeAxis(axis, x.ndim, 'max');
  const flat = reduceRun('max', x, at, at + 1);
  const kept = x.shape.map((n, i) => (i === at ? 1 : n));
  const y = keepDims ? reshapeRaw(flat, kept) : flat;
  if (y !== flat) flat.dispose();
  return record('max', [x], y, [x], { axis: at, kept });
}

/** Index (i64) of the first maximum over one axis. */
export function argmax(x: Tensor, axis: number): Tensor {
  checkFloats('argmax', { x });
  const at = normalizeAxis(axis, x.ndim, 'argmax');
  return reduceRun('argmax', x, at, at + 1);
}

/** Softmax over the last axis, f32. */
export function softmax(x: Tensor): Tensor {
  checkFloats('softmax', { x });
  if (x.dtype !== 'f32') return scope(() => softmax(cast(x, 'f32')));
  const y = Tensor.empty(x.shape, 'f32', x.device, 'softmax');
  native.ops.softmax(x.id, y.id);
  return record('softmax', [x], y, [y]);
}

/** Per-sample cross entropy [N], f32, of logits [N, C] against labels i64 [N] in 0..C-1. */
export function crossEntropy(logits: Tensor, labels: Tensor): Tensor {
  checkFloats('crossEntropy', { logits });
  checkTensors('crossEntropy', { labels }, 'i64', logits.device);
  checkShapeOf('crossEntropy', 'logits', logits, [-1, -1]);
  checkShapeOf('crossEntropy', 'labels', labels, [logits.shape[0]]);
  if (logits.dtype !== 'f32') return scope(() => crossEntropy(cast(logits, 'f32'), labels));
  const loss = Tensor.empty([logits.shape[0]], 'f32', logits.device, 'crossEntropy');
  native.ops.cross_entropy(logits.id, labels.id, loss.id);
  return record('crossEntropy', [logits, undefined], loss, [logits, labels]);
}
