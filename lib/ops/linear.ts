/**
 * Matrix products: matmul, the linear layer with its fused epilogue (bias, activation, residual), and two of them with an activation
 * between. Operands have one dtype; under autocast() that is the low one, and sums are f32 everywhere.
 */
import { DTypeError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { autocastDType, scope } from '../scope.js';
import { format, numel, sameShape } from '../shape.js';
import { needsGrad, record } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkShapeOf, checkTensors } from './check.js';
import { type UnaryKind, unaryKinds } from './elementwise.js';
import { lowered, loweredWeight } from './precision.js';

/** Activations that a matrix product applies to its result in the same memory pass. */
export type Activation = Extract<UnaryKind, 'geluTanh' | 'geluErf' | 'silu' | 'relu' | 'tanh' | 'sigmoid'>;

/** A product is multiplied by the derivative of `kind` at `input`, which has the result's shape. @internal */
export interface Gate {
  kind: Activation;
  input: Tensor;
}

/** Arguments of one native gemm; see native/abi/ops.def. */
interface Gemm {
  a: Tensor;
  b: Tensor;
  y: Tensor;
  m: number;
  n: number;
  k: number;
  batch?: number;
  transA?: boolean;
  transB?: boolean;
  bias?: Tensor;
  gate?: Gate;
  residual?: Tensor;
  pre?: Tensor;
  activation?: Activation;
}

/** y = epilogue(op(a) op(b)); not recorded. @internal */
export function gemm(call: Gemm): Tensor {
  const { a, b, y, m, n, k, batch = 1, transA, transB, bias, gate, residual, pre, activation } = call;
  native.ops.gemm(
    a.id,
    b.id,
    bias?.id ?? 0,
    gate?.input.id ?? 0,
    residual?.id ?? 0,
    y.id,
    pre?.id ?? 0,
    batch,
    m,
    n,
    k,
    transA ? 1 : 0,
    transB ? 1 : 0,
    activation ? unaryKinds[activation] : -1,
    gate ? unaryKinds[gate.kind] : -1,
    0,
  );
  return y;
}

/** How a matmul reads its operands; transposes are free. */
export interface MatmulOptions {
  /** a is stored [..., K, M]. Default false. */
  transA?: boolean;
  /** b is stored [..., N, K]. Default false. */
  transB?: boolean;
}

/** a [..., M, K] b [..., K, N] -> [..., M, N], of one dtype. Leading dimensions agree, or one operand is a plain matrix shared by all. Throws ShapeError when they do not multiply. */
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  checkFloats('matmul', { a, b });
  const dtype = autocastDType();
  const [left, right] = [lowered(a, dtype), lowered(b, dtype)];
  checkOperands('matmul', 'a', left, 'b', right);
  const y = matmulRaw(left, right, options);
  const { transA = false, transB = false } = options;
  record('matmul', [left, right], y, [left, right], { transA, transB });
  if (left !== a) left.dispose();
  if (right !== b) right.dispose();
  return y;
}

/** {@link matmul} of two tensors of one dtype, which the result has too; not recorded, and blind to autocast. @internal */
export function matmulRaw(a: Tensor, b: Tensor, { transA = false, transB = false }: MatmulOptions = {}): Tensor {
  if (a.ndim < 2 || b.ndim < 2) {
    throw new ShapeError(`matmul: expected at least 2 dimensions, got ${format(a.shape)} and ${format(b.shape)}.`);
  }
  const [ka, m] = transA ? a.shape.slice(-2) : a.shape.slice(-2).reverse();
  const [n, kb] = transB ? b.shape.slice(-2) : b.shape.slice(-2).reverse();
  const leadA = a.shape.slice(0, -2);
  const leadB = b.shape.slice(0, -2);
  if (ka !== kb || (leadA.length && leadB.length && !sameShape(leadA, leadB))) {
    throw new ShapeError(
      `matmul: ${format(a.shape)}${transA ? ' (transposed)' : ''} and ${format(b.shape)}${transB ? ' (transposed)' : ''} do not multiply.`,
    );
  }
  const lead = leadA.length ? leadA : leadB;
  const y = Tensor.empty([...lead, m, n], a.dtype, a.device, 'matmul');
  return gemm({ a, b, y, batch: numel(lead), m, n, k: ka, transA, transB });
}

/** The second operand of a matrix product has the dtype of the first. @internal */
export function checkOperands(op: string, first: string, a: Tensor, second: string, b: Tensor): void {
  if (a.dtype === b.dtype) return;
  throw new DTypeError(
    `${op}: ${second} is ${b.dtype}, expected ${a.dtype} as ${first} is (convert with .to('${a.dtype}')).`,
  );
}

/** Options of {@link linear}. */
export interface LinearOptions {
  /** Applied after the bias. Default none. */
  activation?: Activation;
  /** Added last, shape of the result: the block's skip connection, in the same memory pass. The result has its dtype. */
  residual?: Tensor;
}

/**
 * x [..., K] W^T + b -> [..., N]; weight [N, K] as PyTorch stores it. One kernel with activation and residual. x and weight have
 * one dtype (or autocast gives them one), the bias is f32. A bf16 weight may also stand beside an f32 x, for inference; nothing is
 * recorded then, and an input that needs a gradient is an error.
 *
 * @throws {ShapeError} Sizes that do not fit each other.
 * @throws {DTypeError} Dtypes that differ, or a gradient asked of a bf16 weight.
 */
export function linear(x: Tensor, weight: Tensor, bias?: Tensor, options: LinearOptions = {}): Tensor {
  const { activation, residual } = options;
  const trains = needsGrad([x, weight, bias, residual]);
  const { y, input, matrix, pre } = layer('linear', x, { weight, bias }, options, trains);
  record('linear', [input, weight, bias, residual], y, [input, matrix, pre], { activation });
  pre?.dispose();
  if (input !== x) input.dispose();
  if (matrix !== weight) matrix.dispose();
  return y;
}

/** What a linear layer holds: weight [N, K], bias [N]. */
export interface LinearWeights {
  /** [N, K], as PyTorch stores it. */
  readonly weight: Tensor;
  /** [N], f32. */
  readonly bias?: Tensor;
}

/** Options of {@link mlp}. */
export interface MLPOptions {
  /** Applied between the layers. */
  activation: Activation;
  /** Added last, shape of the result, as in {@link LinearOptions}. */
  residual?: Tensor;
}

/**
 * fc2(activation(fc1(x))) + residual, as two calls of {@link linear} give it, recorded as one operation: on the way back the gradient of
 * the hidden layer passes the activation inside the product that makes it. Of the hidden layer its pre-activation alone is kept, and it is
 * computed again in that one's place: a memory pass, for a quarter of what a transformer's block would keep.
 */
export function mlp(x: Tensor, fc1: LinearWeights, fc2: LinearWeights, { activation, residual }: MLPOptions): Tensor {
  return scope(() => {
    const trains = needsGrad([x, fc1.weight, fc1.bias]);
    const hidden = layer('mlp fc1', x, fc1, { activation }, trains);
    const second = [fc2.weight, fc2.bias, residual];
    const out = layer('mlp fc2', hidden.y, fc2, { residual }, trains || needsGrad(second));
    const saved = [hidden.input, hidden.matrix, hidden.pre, hidden.pre ? undefined : out.input, out.matrix];
    return record('mlp', [hidden.input, fc1.weight, fc1.bias, ...second], out.y, saved, { activation });
  });
}

/**
 * A checked linear layer, not recorded. `trains`: will a gradient be asked for? `input` and `matrix` are the converted operands, which the
 * tape keeps so that backward() does not convert them again (the gradient goes to the weight itself).
 */
function layer(
  op: string,
  x: Tensor,
  { weight, bias }: LinearWeights,
  { activation, residual }: LinearOptions,
  trains: boolean,
): { y: Tensor; input: Tensor; matrix: Tensor; pre?: Tensor } {
  checkFloats(op, { x, weight, residual });
  checkTensors(op, { bias }, 'f32', x.device);
  if (x.ndim < 1) throw new ShapeError(`${op}: x is a scalar, expected at least 1 dimension.`);
  checkShapeOf(op, 'weight', weight, [-1, x.shape[x.ndim - 1]]);
  const [n, k] = weight.shape;
  checkShapeOf(op, 'bias', bias, [n]);
  const shape = [...x.shape.slice(0, -1), n];
  checkShapeOf(op, 'residual', residual, shape);
  const dtype = autocastDType();
  const mixed = dtype === undefined && x.dtype === 'f32' && weight.dtype === 'bf16';
  if (mixed && trains) {
    throw new DTypeError(`${op}: a bf16 weight has no gradient; run it in noGrad(), or load the weights as f32.`);
  }
  if (dtype === undefined && !mixed) checkOperands(op, 'x', x, 'weight', weight);
  const [input, matrix] = [lowered(x, dtype), loweredWeight(weight, dtype)];
  const y = Tensor.empty(shape, residual?.dtype ?? input.dtype, x.device, op);
  // The activation's gradient wants its input, which only exists inside the kernel: keep a copy when it will be asked for.
  const pre = activation && trains ? Tensor.empty(shape, input.dtype, x.device, op) : undefined;
  const m = numel(shape.slice(0, -1));
  gemm({ a: input, b: matrix, y, m, n, k, transB: true, bias, residual, pre, activation });
  return { y, input, matrix, pre };
}
