/**
 * The gradient of every operation, one rule each.
 *
 * A rule gets g (the gradient of the output) and what the operation recorded, and returns one entry per input: a
 * tensor, a function making it (called only when that input needs it), or undefined. Entry i has the shape of input i; where its dtype is
 * another one, it is converted (autograd.ts). Rules run without recording.
 */
import type { DType } from './dtype.js';
import { native } from './native.js';
import {
  affine,
  castRaw,
  equal,
  less,
  linearCombination,
  mul,
  pow,
  type UnaryKind,
  unary,
  unaryBackward,
  unaryKinds,
  where,
} from './ops/elementwise.js';
import { broadcastTo, crop, permute, place, reshapeRaw, slice } from './ops/index.js';
import { type Activation, type Gate, gemm, matmulRaw } from './ops/linear.js';
import { dropoutRaw } from './ops/random.js';
import { argmax, reduceAxes } from './ops/reduce.js';
import { numel, type Shape, sameShape } from './shape.js';
import { arange, Tensor, zeros } from './tensor.js';

type Gradient = Tensor | (() => Tensor) | undefined;

/** What an operation recorded, as its rule sees it. */
export interface Recorded {
  saved: readonly (Tensor | undefined)[];
  shapes: readonly Shape[];
  /** Of the inputs. */
  dtypes: readonly (DType | undefined)[];
  // biome-ignore lint/suspicious/noExplicitAny: each rule knows what its operation recorded
  attributes: any;
  /** Does input i want a gradient? */
  needs: readonly boolean[];
  /** Hands over what has gathered for input i so far, if anything: the rule's entry i is then the sum of this and its own part. */
  take(i: number): Tensor | undefined;
}

type Rule = (g: Tensor, recorded: Recorded & { saved: readonly Tensor[] }) => readonly Gradient[];

/** g summed over the axes that broadcasting to g's shape repeated. */
function sumTo(g: Tensor, shape: Shape): Tensor {
  if (sameShape(g.shape, shape)) return g;
  const lead = g.ndim - shape.length;
  const axes = g.shape.flatMap((n, i) => (i < lead || (shape[i - lead] === 1 && n !== 1) ? [i] : []));
  return reshapeRaw(reduceAxes('sum', g, axes), shape);
}

/** 1 where y > x, a half where they are equal, else 0. */
const wins = (x: Tensor, y: Tensor): Tensor =>
  linearCombination([
    [1, less(x, y)],
    [0.5, equal(x, y)],
  ]);
/** g split between a and b by a's share. */
const shares = (g: Tensor, a: Tensor, b: Tensor, share: Tensor): Gradient[] => [
  () => sumTo(mul(g, share), a.shape),
  () => sumTo(mul(g, affine(share, -1, 1)), b.shape),
];

const like = (x: Tensor, dtype: DType = x.dtype, shape: Shape = x.shape): Tensor =>
  Tensor.empty(shape, dtype, x.device, 'backward');
const toDType = (x: Tensor, dtype: DType = 'f32'): Tensor => (x.dtype === dtype ? x : castRaw(x, dtype));
/** What several gradients share, made when the first of them is asked for. */
const once = (make: () => Tensor): (() => Tensor) => {
  let made: Tensor | undefined;
  return () => {
    made ??= make();
    return made;
  };
};
const emptyIf = (wanted: boolean, shape: Shape, g: Tensor): Tensor | undefined =>
  wanted ? Tensor.empty(shape, 'f32', g.device, 'backward') : undefined;
const rows = (x: Tensor): Tensor => reshapeRaw(x, [numel(x.shape.slice(0, -1)), x.shape[x.ndim - 1]]);
const idOf = (x: Tensor | undefined): number => x?.id ?? 0;

/** Of y = x W^T: dx = dy W, written to `dx`, and dW = dy^T x. */
const inputGradient = (dy: Tensor, weight: Tensor, dx: Tensor, gate?: Gate): Tensor => {
  const [n, k] = weight.shape;
  return gemm({ a: dy, b: weight, y: dx, m: numel(dy.shape.slice(0, -1)), n: k, k: n, gate });
};
const weightGradient = (dy: Tensor, x: Tensor): Tensor => {
  const [n, k] = [dy.shape[dy.ndim - 1], x.shape[x.ndim - 1]];
  return gemm({ a: dy, b: x, y: like(x, 'f32', [n, k]), m: n, n: k, k: numel(x.shape.slice(0, -1)), transA: true });
};

export const gradients: Readonly<Record<string, Rule>> = {
  // elementwise
  unary: (g, { saved: [x], attributes: { kind } }) => [unaryBackward(kind as UnaryKind, x, g)],
  affine: (g, { attributes: { scale } }) => [scale === 1 ? g : affine(g, scale, 0)],
  clamp: (g, { saved: [x, y] }) => [mul(g, equal(x, y))],
  add: (g, { shapes: [a, b] }) => [() => sumTo(g, a), () => sumTo(g, b)],
  sub: (g, { shapes: [a, b] }) => [() => sumTo(g, a), () => sumTo(affine(g, -1, 0), b)],
  mul: (g, { saved: [a, b] }) => [() => sumTo(mul(g, b), a.shape), () => sumTo(mul(g, a), b.shape)],
  div: (g, { saved: [a, b] }) => [
    () => sumTo(g.div(b), a.shape),
    () => sumTo(affine(mul(g, a).div(unary('square', b)), -1, 0), b.shape),
  ],
  maximum: (g, { saved: [a, b] }) => shares(g, a, b, wins(b, a)),
  minimum: (g, { saved: [a, b] }) => shares(g, a, b, wins(a, b)),
  pow: (g, { saved: [a, b] }) => [
    () => sumTo(mul(g, mul(b, pow(a, affine(b, 1, -1)))), a.shape),
    () => sumTo(mul(g, mul(pow(a, b), unary('log', a))), b.shape),
  ],
  where: (g, { saved: [condition], shapes: [, a, b] }) => [
    undefined,
    () => sumTo(where(condition, g, zeros([], { dtype: g.dtype, device: g.device })), a),
    () => sumTo(where(condition, zeros([], { dtype: g.dtype, device: g.device }), g), b),
  ],
  linearCombination: (g, { attributes: { coefficients } }) => coefficients.map((c: number) => () => affine(g, c, 0)),
  cast: (g, { attributes: { from } }) => [castRaw(g, from as DType)],

  // reductions
  sum: (g, { shapes: [x], dtypes: [dtype], attributes: { kept } }) => [
    broadcastTo(reshapeRaw(toDType(g, dtype), kept), x),
  ],
  mean: (g, { shapes: [x], dtypes: [dtype], attributes: { kept } }) => [
    broadcastTo(reshapeRaw(toDType(affine(g, numel(g.shape) / numel(x), 0), dtype), kept), x),
  ],
  max: (g, { saved: [x], attributes: { axis, kept } }) => {
    const n = x.shape[axis];
    const along = arange(0, n, 1, { dtype: 'i64', device: x.device }).reshape(
      x.shape.map((_, i) => (i === axis ? n : 1)),
    );
    return [mul(reshapeRaw(g, kept), equal(along, reshapeRaw(argmax(x, axis), kept)))];
  },
  softmax: (g, { saved: [y] }) => [fused(like(y), (dx) => native.ops.softmax_backward(y.id, g.id, dx.id))],
  crossEntropy: (g, { saved: [logits, labels] }) => [
    fused(like(logits), (dx) => native.ops.cross_entropy_backward(logits.id, labels.id, g.id, dx.id)),
    undefined,
  ],

  // index
  reshape: (g, { shapes: [x] }) => [reshapeRaw(g, x)],
  permute: (g, { attributes: { order } }) => [
    permute(
      g,
      (order as number[]).map((_, i) => order.indexOf(i)),
    ),
  ],
  slice: (g, { shapes: [x], attributes: { axis, start } }) => [place(g, x, axis, start)],
  concat: (g, { attributes: { axis, sizes } }) =>
    (sizes as number[]).map((size, i) => () => {
      const start = sizes.slice(0, i).reduce((a: number, b: number) => a + b, 0);
      return slice(g, axis, start, start + size);
    }),
  pad: (g, { shapes: [x], attributes: { offset } }) => [crop(g, x, offset)],
  embedding: (g, { saved: [ids], shapes: [table] }) => [
    fused(Tensor.empty(table, 'f32', g.device, 'backward'), (dtable) =>
      native.ops.scatter_add_rows(toDType(g, 'f32').id, ids.id, dtable.id),
    ),
    undefined,
  ],
  upsample2x: (g, { shapes: [x] }) => [
    fused(Tensor.empty(x, g.dtype, g.device, 'backward'), (dx) => native.ops.upsample2x_backward(g.id, dx.id)),
  ],

  // linear algebra
  matmul: (g, { saved: [a, b], attributes: { transA, transB } }) => [
    () =>
      sumTo(transA ? matmulRaw(b, g, { transA: transB, transB: true }) : matmulRaw(g, b, { transB: !transB }), a.shape),
    () =>
      sumTo(transB ? matmulRaw(g, a, { transA: true, transB: transA }) : matmulRaw(a, g, { transA: !transA }), b.shape),
  ],
  linear: (g, { saved: [x, weight, pre], attributes: { activation } }) => {
    const dpre = activation ? unaryBackward(activation as Activation, pre, g) : g;
    const operand = once(() => toDType(dpre, x.dtype));
    return [
      () => inputGradient(operand(), weight, like(x)),
      () => weightGradient(operand(), x),
      () => reduceAxes('sum', rows(dpre), [0]),
      g,
    ];
  },
  mlp: (g, { saved: [x, weight1, pre, kept, weight2], attributes: { activation: kind } }) => {
    const operand = once(() => toDType(g, weight2.dtype));
    const dpre = once(() => inputGradient(operand(), weight2, like(pre), { kind, input: pre }));
    // Asked for after all that reads pre, whose memory it takes.
    const hidden = (): Tensor =>
      kept ?? fused(pre, (y) => native.ops.unary(pre.id, y.id, unaryKinds[kind as UnaryKind]));
    return [
      () => inputGradient(dpre(), weight1, like(x)),
      () => weightGradient(dpre(), x),
      () => reduceAxes('sum', rows(dpre()), [0]),
      () => weightGradient(operand(), hidden()),
      () => reduceAxes('sum', rows(g), [0]),
      g,
    ];
  },
  conv2d: (g, { saved: [x, weight], attributes: { stride, top, left } }) => {
    const operand = once(() => toDType(g, x.dtype));
    return [
      () => fused(like(x), (dx) => native.ops.conv2d_dgrad(operand().id, weight.id, dx.id, stride, top, left)),
      () => fused(like(weight, 'f32'), (dw) => native.ops.conv2d_wgrad(x.id, operand().id, dw.id, stride, top, left)),
      () => reduceAxes('sum', rows(g), [0]),
      g,
    ];
  },

  // norm and attention: one kernel gives all gradients
  layerNorm: (g, recorded) => {
    const {
      saved: [x, weight, , mean, rstd],
      shapes,
      needs,
    } = recorded;
    const around = recorded.take(0); // the gradient of a residual connection around the block, for one
    const dx = around && !around.isShared ? around : like(x);
    const dw = emptyIf(needs[1], shapes[1], g);
    const db = emptyIf(needs[2], shapes[2], g);
    const sums = [dx.id, idOf(dw), idOf(db)] as const;
    native.ops.layer_norm_backward(x.id, idOf(weight), mean.id, rstd.id, g.id, idOf(around), ...sums);
    return [dx, dw, db];
  },
  groupNorm: (g, { saved: [x, weight, bias, mean, rstd], shapes, needs, attributes: { groups, silu } }) => {
    const dx = like(x);
    const dw = emptyIf(needs[1], shapes[1], g);
    const db = emptyIf(needs[2], shapes[2], g);
    native.ops.group_norm_backward(
      x.id,
      idOf(weight),
      idOf(bias),
      mean.id,
      rstd.id,
      g.id,
      dx.id,
      idOf(dw),
      idOf(db),
      groups,
      silu ? 1 : 0,
    );
    return [dx, dw, db];
  },
  attention: (g, { saved: [qkv, time, table, y, lse], shapes, needs, attributes: { heads, wh, ww, scale } }) => {
    const dy = g.dtype === y.dtype ? g : castRaw(g, y.dtype);
    const dqkv = like(qkv);
    const dtime = emptyIf(needs[1], shapes[1], g);
    const dtable = emptyIf(needs[2], shapes[2], g);
    native.ops.attention_backward(
      qkv.id,
      idOf(time),
      idOf(table),
      y.id,
      lse.id,
      dy.id,
      dqkv.id,
      idOf(dtime),
      idOf(dtable),
      heads,
      wh,
      ww,
      scale,
    );
    return [dqkv, dtime, dtable];
  },

  // recomputation (autograd.ts)
  checkpoint: (g, { saved, needs, attributes: { rerun } }) => rerun(g, saved, needs),

  // random
  dropout: (g, { attributes: { p, seed, stream, firstSample } }) => [dropoutRaw(g, p, seed, stream, firstSample)],
};

/** How the results that the tape does not keep are made again (tape.ts), from what their operation saved. */
export const remakers: Readonly<
  Record<string, (saved: readonly Tensor[], attributes: Recorded['attributes']) => Tensor>
> = {
  layerNorm: ([x, weight, bias], { eps, dtype }) =>
    fused(like(x, dtype), (y) => native.ops.layer_norm(x.id, idOf(weight), idOf(bias), y.id, 0, 0, eps)),
  groupNorm: ([x, weight, bias], { groups, eps, silu, dtype }) =>
    fused(like(x, dtype), (y) =>
      native.ops.group_norm(x.id, idOf(weight), idOf(bias), y.id, 0, 0, groups, eps, silu ? 1 : 0),
    ),
};

function fused(out: Tensor, run: (out: Tensor) => void): Tensor {
  run(out);
  return out;
}
