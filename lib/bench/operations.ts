/**
 * Single operations: copies, matrix products, convolutions, attention. The native operation is called on tensors made
 * beforehand, so what is timed is the kernel and its launch, without allocation and tape.
 */
import type { DeviceName } from '../device.js';
import { native } from '../native.js';
import { randn } from '../ops/random.js';
import { numel, type Shape } from '../shape.js';
import { Tensor } from '../tensor.js';
import type { Precision, Spec } from './report.js';

/** Something to time, ready. */
export interface Prepared {
  /** Enqueues one run and returns. */
  run(): void;
  /** Computes again what the run reads besides its inputs: when other values were copied into these. */
  refresh?(): void;
  /** Inputs and results by name. */
  tensors: Readonly<Record<string, Tensor>>;
  /** Frees what outlives the scope it was made in: modules and optimizers. */
  dispose?(): void;
}

/** Makes the inputs of one set; `seed` differs between sets. The tensors belong to the scope around the call. */
export type Preparation = (spec: Spec, options: { device: DeviceName; dtype: Precision; seed: number }) => Prepared;

/** Random inputs and poisoned outputs on the device. */
function maker(device: DeviceName, seed: number) {
  let stream = 0;
  return {
    /** Normal numbers of this size. */
    random: (shape: Shape, dtype: Precision, size = 1): Tensor =>
      randn(shape, { device, seed, stream: stream++ }).mul(size).to(dtype),
    /** An output, full of NaN: what is not written shows. */
    result: (shape: Shape, dtype: Precision): Tensor => {
      const y = Tensor.empty(shape, dtype, device);
      native.ops.fill(y.id, Number.NaN);
      return y;
    },
  };
}

const copy: Preparation = ({ sizes }, { device, dtype, seed }): Prepared => {
  const { random, result } = maker(device, seed);
  if (sizes.kind === 'product') {
    const n = Number(sizes.n);
    const [a, b, y] = [random([n, n], dtype), random([n, n], dtype), result([n, n], dtype)];
    return { tensors: { a, b, y }, run: () => product(a, b, y, { m: n, n, k: n, layout: 'nt' }) };
  }
  const count = Number(sizes.bytes) / 4;
  const [x, y] = [random([count], 'f32'), result([count], 'f32')];
  return { tensors: { x, y }, run: () => native.ops.strided_copy(x.id, y.id, [count], [1], [1], 0, 0) };
};

interface ProductOptions {
  m: number;
  n: number;
  k: number;
  layout: string;
  bias?: Tensor;
  residual?: Tensor;
  gelu?: boolean;
}

/** diffit.h's number of the tanh form of GELU. */
const geluTanh = 12;

function product(a: Tensor, b: Tensor, y: Tensor, options: ProductOptions): void {
  const { m, n, k, layout, bias, residual, gelu } = options;
  const [transA, transB] = [layout[0] === 't', layout[1] === 't'].map(Number);
  const [biasId, residualId] = [bias, residual].map((tensor) => tensor?.id ?? 0);
  native.ops.gemm(a.id, b.id, biasId, 0, residualId, y.id, 0, 1, m, n, k, transA, transB, gelu ? geluTanh : -1, -1, 0);
}

const gemm: Preparation = ({ sizes }, { device, dtype, seed }): Prepared => {
  const { random, result } = maker(device, seed);
  const [m, n, k] = [sizes.m, sizes.n, sizes.k].map(Number);
  const [layout, epilogue] = [String(sizes.layout), String(sizes.epilogue)];
  const a = random(layout[0] === 't' ? [k, m] : [m, k], dtype);
  const b = random(layout[1] === 't' ? [n, k] : [k, n], dtype, 1 / Math.sqrt(k));
  const bias = epilogue.includes('bias') ? random([n], 'f32') : undefined;
  const residual = epilogue.includes('residual') ? random([m, n], dtype) : undefined;
  // The gradient of a weight is f32, whatever its factors are.
  const y = result([m, n], layout === 'tn' ? 'f32' : dtype);
  const options = { m, n, k, layout, bias, residual, gelu: epilogue.includes('gelu') };
  return {
    tensors: { a, b, ...(bias && { bias }), ...(residual && { residual }), y },
    run: () => product(a, b, y, options),
  };
};

const conv: Preparation = ({ sizes }, { device, dtype, seed }): Prepared => {
  const { random, result } = maker(device, seed);
  const [batch, side, inputs, outputs, kernel, stride] = ['batch', 'side', 'in', 'out', 'kernel', 'stride'].map(
    (name) => Number(sizes[name]),
  );
  const [out, pad] = [Math.ceil(side / stride), (kernel - 1) / 2];
  const image: Shape = [batch, side, side, inputs];
  const map: Shape = [batch, out, out, outputs];
  const filter: Shape = [outputs, kernel, kernel, inputs];
  const weight = (): Tensor => random(filter, dtype, 1 / Math.sqrt(kernel * kernel * inputs));
  if (sizes.pass === 'forward') {
    const [x, w, bias, y] = [random(image, dtype), weight(), random([outputs], 'f32'), result(map, dtype)];
    const run = (): void => native.ops.conv2d(x.id, w.id, bias.id, 0, y.id, stride, pad, pad);
    return { tensors: { x, w, bias, y }, run };
  }
  const dy = random(map, dtype);
  if (sizes.pass === 'dgrad') {
    const [w, dx] = [weight(), result(image, dtype)];
    return { tensors: { dy, w, dx }, run: () => native.ops.conv2d_dgrad(dy.id, w.id, dx.id, stride, pad, pad) };
  }
  const [x, dw] = [random(image, dtype), result(filter, 'f32')];
  return { tensors: { x, dy, dw }, run: () => native.ops.conv2d_wgrad(x.id, dy.id, dw.id, stride, pad, pad) };
};

const attention: Preparation = ({ sizes }, { device, dtype, seed }): Prepared => {
  const { random, result } = maker(device, seed);
  const [side, window, batch, heads, dim] = ['side', 'window', 'batch', 'heads', 'dim'].map((name) =>
    Number(sizes[name]),
  );
  const channels = heads * dim;
  const map: Shape = [batch, side, side, channels];
  const qkv = random([batch, side, side, 3 * channels], dtype);
  const time = random([batch, 3 * channels], 'f32', 0.5);
  const table = random([(2 * window - 1) ** 2, heads], 'f32', 0.5);
  const y = result(map, dtype);
  const scale = 1 / Math.sqrt(dim);
  const forward = (lse: number): void =>
    native.ops.attention(qkv.id, time.id, table.id, y.id, lse, heads, window, window, scale);
  if (sizes.pass === 'forward') return { tensors: { qkv, time, table, y }, run: () => forward(0) };
  const lse = result([batch, heads, side, side], 'f32');
  forward(lse.id);
  const dy = random(map, dtype);
  const [dqkv, dtime, dtable] = [result(qkv.shape, dtype), result(time.shape, 'f32'), result(table.shape, 'f32')];
  const ids = [qkv, time, table, y, lse, dy, dqkv, dtime, dtable].map(({ id }) => id);
  const [a, b, c, d, e, f, g, h, i] = ids;
  return {
    tensors: { qkv, time, table, y, lse, dy, dqkv, dtime, dtable },
    refresh: () => forward(lse.id),
    run: () => native.ops.attention_backward(a, b, c, d, e, f, g, h, i, heads, window, window, scale),
  };
};

export const operations = { copy, gemm, conv, attention } satisfies Record<string, Preparation>;

/** Bytes of a set of tensors. */
export function bytesOf(tensors: Readonly<Record<string, Tensor>>): number {
  const size = ({ shape, dtype }: Tensor): number => numel(shape) * (dtype === 'f32' ? 4 : 2);
  return Object.values(tensors).reduce((sum, tensor) => sum + size(tensor), 0);
}
