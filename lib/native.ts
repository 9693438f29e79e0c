/**
 * The sole loader of the native addon, and its typed face.
 *
 * Tensors cross as numbers ("ids": slot and generation in one integer below 2^53), so a call costs no object and a
 * stale id is an error, never a crash. Every operation of native/abi/ops.def is a function `(…args) => void` that
 * enqueues work on the device of its tensors and returns at once; absent optional tensors are passed as 0.
 */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { packageRoot } from './package.js';

/** Id of a device opened by {@link NativeAddon.openDevice}. */
export type DeviceId = number;
/** Id of a tensor: a view of a reference-counted buffer on one device. 0 is no tensor. */
export type TensorId = number;

export interface NativeDeviceInfo {
  backend: string;
  name: string;
  variant: string;
  threads: number;
  memory: number;
}

/** What {@link memory} tells of a device. */
export interface MemoryStats {
  /** Buffers not yet released. */
  liveBuffers: number;
  /** Their bytes. */
  liveBytes: number;
  /** Bytes held from the device: live ones and the pool's free blocks. */
  reservedBytes: number;
  /** Highest liveBytes since the start or the last resetPeak. */
  peakBytes: number;
  /** Cap on reservedBytes, 0 for none. */
  limitBytes: number;
  /** Operations enqueued and not yet finished. */
  queued: number;
  /** Free bytes of the whole device, all processes together, now; missing where it does not tell. */
  deviceFreeBytes?: number;
  /** Bytes of the whole device; missing where it does not tell. */
  deviceTotalBytes?: number;
}

/** What {@link graphStats} tells: spans of operations so far. */
export interface GraphStats {
  /** Captured as graphs. */
  captured: number;
  /** Replayed in one launch. */
  replayed: number;
  /** Run operation by operation. */
  plain: number;
}

type Scalar = number;
type Ids = readonly TensorId[];

export interface NativeOps {
  fill(y: TensorId, value: Scalar): void;
  cast(x: TensorId, y: TensorId): void;
  unary(x: TensorId, y: TensorId, kind: Scalar): void;
  unary_backward(x: TensorId, dy: TensorId, dx: TensorId, kind: Scalar): void;
  affine(x: TensorId, y: TensorId, scale: Scalar, shift: Scalar): void;
  clamp(x: TensorId, y: TensorId, low: Scalar, high: Scalar): void;
  binary(a: TensorId, b: TensorId, y: TensorId, kind: Scalar): void;
  where(condition: TensorId, a: TensorId, b: TensorId, y: TensorId): void;
  linear_combination(a: TensorId, b: TensorId, c: TensorId, y: TensorId, ca: Scalar, cb: Scalar, cc: Scalar): void;
  reduce(x: TensorId, y: TensorId, kind: Scalar, outer: Scalar, n: Scalar, inner: Scalar): void;
  softmax(x: TensorId, y: TensorId): void;
  softmax_backward(y: TensorId, dy: TensorId, dx: TensorId): void;
  cross_entropy(logits: TensorId, labels: TensorId, loss: TensorId): void;
  cross_entropy_backward(logits: TensorId, labels: TensorId, dloss: TensorId, dlogits: TensorId): void;
  strided_copy(
    x: TensorId,
    y: TensorId,
    shape: readonly number[],
    xStrides: readonly number[],
    yStrides: readonly number[],
    xOffset: Scalar,
    yOffset: Scalar,
  ): void;
  gather_rows(table: TensorId, ids: TensorId, y: TensorId): void;
  scatter_add_rows(dy: TensorId, ids: TensorId, dtable: TensorId): void;
  upsample2x(x: TensorId, y: TensorId): void;
  upsample2x_backward(dy: TensorId, dx: TensorId): void;
  pool2d(x: TensorId, y: TensorId, kind: Scalar, size: Scalar, stride: Scalar, pad: Scalar): void;
  gemm(
    a: TensorId,
    b: TensorId,
    bias: TensorId,
    gateInput: TensorId,
    residual: TensorId,
    y: TensorId,
    pre: TensorId,
    batch: Scalar,
    m: Scalar,
    n: Scalar,
    k: Scalar,
    transA: Scalar,
    transB: Scalar,
    activation: Scalar,
    gateKind: Scalar,
    accumulate: Scalar,
  ): void;
  conv2d(
    x: TensorId,
    w: TensorId,
    bias: TensorId,
    residual: TensorId,
    y: TensorId,
    stride: Scalar,
    padTop: Scalar,
    padLeft: Scalar,
  ): void;
  conv2d_dgrad(dy: TensorId, w: TensorId, dx: TensorId, stride: Scalar, padTop: Scalar, padLeft: Scalar): void;
  conv2d_wgrad(x: TensorId, dy: TensorId, dw: TensorId, stride: Scalar, padTop: Scalar, padLeft: Scalar): void;
  layer_norm(x: TensorId, w: TensorId, b: TensorId, y: TensorId, mean: TensorId, rstd: TensorId, eps: Scalar): void;
  layer_norm_backward(
    x: TensorId,
    w: TensorId,
    mean: TensorId,
    rstd: TensorId,
    dy: TensorId,
    dresidual: TensorId,
    dx: TensorId,
    dw: TensorId,
    db: TensorId,
  ): void;
  group_norm(
    x: TensorId,
    w: TensorId,
    b: TensorId,
    y: TensorId,
    mean: TensorId,
    rstd: TensorId,
    groups: Scalar,
    eps: Scalar,
    silu: Scalar,
  ): void;
  group_norm_backward(
    x: TensorId,
    w: TensorId,
    b: TensorId,
    mean: TensorId,
    rstd: TensorId,
    dy: TensorId,
    dx: TensorId,
    dw: TensorId,
    db: TensorId,
    groups: Scalar,
    silu: Scalar,
  ): void;
  attention(
    qkv: TensorId,
    time: TensorId,
    table: TensorId,
    y: TensorId,
    lse: TensorId,
    heads: Scalar,
    windowH: Scalar,
    windowW: Scalar,
    scale: Scalar,
  ): void;
  attention_backward(
    qkv: TensorId,
    time: TensorId,
    table: TensorId,
    y: TensorId,
    lse: TensorId,
    dy: TensorId,
    dqkv: TensorId,
    dtime: TensorId,
    dtable: TensorId,
    heads: Scalar,
    windowH: Scalar,
    windowW: Scalar,
    scale: Scalar,
  ): void;
  philox(y: TensorId, kind: Scalar, seed: Scalar, stream: Scalar, firstSample: Scalar): void;
  dropout(x: TensorId, y: TensorId, p: Scalar, seed: Scalar, stream: Scalar, firstSample: Scalar): void;
  sampler_step(
    x: TensorId,
    output: TensorId,
    a: TensorId,
    b: TensorId,
    noise: TensorId,
    y: TensorId,
    denoised: TensorId,
    scaled: TensorId,
    guided: Scalar,
    scale: Scalar,
    denoisedX: Scalar,
    denoisedF: Scalar,
    clip: Scalar,
    yX: Scalar,
    yD: Scalar,
    yA: Scalar,
    yB: Scalar,
    sigma: Scalar,
    spread: Scalar,
    scaledBy: Scalar,
    seed: Scalar,
    stream: Scalar,
    firstSample: Scalar,
  ): void;
  adam(
    params: Ids,
    grads: Ids,
    m: Ids,
    v: Ids,
    averages: Ids,
    copies: Ids,
    scale: TensorId,
    step: Scalar,
    lr: Scalar,
    beta1: Scalar,
    beta2: Scalar,
    eps: Scalar,
    weightDecay: Scalar,
    decoupled: Scalar,
    finiteOnly: Scalar,
    emaDecay: Scalar,
  ): void;
  ema(averages: Ids, params: Ids, decay: Scalar): void;
  square_sum(xs: Ids, y: TensorId): void;
}

/** Live buffers of one dtype and shape that one operation wrote first; '' where none has yet. */
export interface NativeOwner {
  op: string;
  dtype: number;
  shape: number[];
  count: number;
  bytes: number;
}

/** Rows of features in host memory, row after row. */
export type NativeRows = Float32Array | Float64Array;

/** Statistics in f64 on a CPU device's queue; native/abi/statistics.h says what each computes. The arrays are not to be touched until it settles. */
export interface NativeStatistics {
  mergeRows(
    device: DeviceId,
    rows: NativeRows,
    width: number,
    before: number,
    mean: Float64Array,
    scatter: Float64Array,
  ): Promise<unknown>;
  nearest(
    device: DeviceId,
    a: NativeRows,
    b: NativeRows,
    width: number,
    k: number,
    nearestA: Float64Array,
    nearestB?: Float64Array,
  ): Promise<unknown>;
  within(
    device: DeviceId,
    a: NativeRows,
    b: NativeRows,
    width: number,
    radiiA: Float64Array,
    radiiB: Float64Array,
    aInB: Uint8Array,
    bInA: Uint8Array,
  ): Promise<unknown>;
  traceSqrt(device: DeviceId, a: Float64Array, b: Float64Array, width: number, out: Float64Array): Promise<unknown>;
}

/**
 * The addon. Every failure is an Error with `code`: DIFFIT_INVALID, DIFFIT_OUT_OF_MEMORY, DIFFIT_UNSUPPORTED,
 * DIFFIT_DEVICE_FAULT, DIFFIT_STALE_ID, DIFFIT_NO_DEVICE, DIFFIT_BAD_ARGUMENT; lib/errors.ts gives them their classes.
 */
export interface NativeAddon {
  abiVersion: number;
  /** Names of the operations, in the order of ops.def. */
  opNames: string[];
  /**
   * Opens (or returns the already opened) device: 'cpu', 'cpu:avx2' (a forced variant), 'cuda:0', 'cuda-emulated'.
   * Throws DIFFIT_NO_DEVICE with one plain sentence saying why it cannot be had.
   */
  openDevice(spec: string, libraryPath: string, threads: number): DeviceId;
  /** How many devices of a kind ('cuda') there are; 0 also where there is no library or driver. */
  countDevices(spec: string, libraryPath: string): number;
  deviceInfo(device: DeviceId): NativeDeviceInfo;
  /** CPU variants this machine can run, best first. */
  cpuVariants(): string[];
  /** A new tensor with undefined contents. Dimensions beyond ndim are ignored. Throws DIFFIT_OUT_OF_MEMORY. */
  alloc(
    device: DeviceId,
    dtype: number,
    ndim: number,
    d0?: number,
    d1?: number,
    d2?: number,
    d3?: number,
    d4?: number,
    d5?: number,
  ): TensorId;
  /** Another tensor over the same buffer, `byteOffset` into `id`'s data; must fit into it. */
  view(
    id: TensorId,
    byteOffset: number,
    dtype: number,
    ndim: number,
    d0?: number,
    d1?: number,
    d2?: number,
    d3?: number,
    d4?: number,
    d5?: number,
  ): TensorId;
  /** Gives the id back; the buffer returns to the pool with its last view, in stream order. Stale ids are ignored. */
  release(id: TensorId): void;
  /** Enqueues a copy of all bytes of `data` (at call time) to the tensor, from its byte `byteOffset` on. */
  write(id: TensorId, data: ArrayBufferView, byteOffset: number): void;
  /** Resolves with the tensor's bytes when the queue has reached this point; rejects with an earlier failure. */
  read(id: TensorId): Promise<ArrayBuffer>;
  /** Resolves when everything enqueued so far is done; rejects with an earlier failure. */
  synchronize(device: DeviceId): Promise<void>;
  /** Puts mark `slot` (0 to 1023) behind everything enqueued so far. */
  mark(device: DeviceId, slot: number): void;
  /** Resolves with the device's milliseconds between two marks once both have passed; rejects with an earlier failure. */
  elapsed(device: DeviceId, from: number, to: number): Promise<number>;
  /**
   * Operations per second of multiply-adds in registers on a CPU's threads, or with `oneThread` = 1 on one of them; `bf16` = 1: of the
   * bf16 dot product, 0 where there is none. Takes some tenths of a second, on the queue's thread; for the benchmarks.
   */
  peakFlops(device: DeviceId, bf16: number, oneThread: number): Promise<number>;
  /** What is enqueued up to endSpan() is replayed as one when it is the same as before under this key; see native/binding/replay.h. */
  beginSpan(device: DeviceId, key: number): void;
  endSpan(device: DeviceId): void;
  /** Drops the graphs of a key. */
  forgetSpans(device: DeviceId, key: number): void;
  graphStats(device: DeviceId): GraphStats;
  memory(device: DeviceId): MemoryStats;
  /** The `most` largest groups of live buffers, largest first. Looks at every buffer. */
  memoryOwners(device: DeviceId, most: number): NativeOwner[];
  /** Watches an object for collectGarbage(); returns its slot. */
  watch(object: object): number;
  unwatch(slot: number): void;
  /** Collects all garbage now, and returns the slots of the watched objects that were some, which are free again. */
  collectGarbage(): number[];
  resetPeak(device: DeviceId): void;
  setMemoryLimit(device: DeviceId, bytes: number): void;
  /** Returns the pool's free blocks to the device, in stream order. */
  trim(device: DeviceId): void;
  statistics: NativeStatistics;
  ops: NativeOps;
}

/** DIFFIT_ABI_VERSION of native/abi/diffit.h that these types describe. */
const expectedAbiVersion = 5;

const require = createRequire(import.meta.url);

function load(): NativeAddon {
  let addon: NativeAddon;
  try {
    addon = (require('node-gyp-build') as (directory: string) => NativeAddon)(packageRoot);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.split('\n')[0] : String(cause);
    throw Object.assign(
      new Error(
        `The native addon of diffit could not be loaded: looked for build/Release/diffit.node and ` +
          `prebuilds/${process.platform}-${process.arch}/*.node in ${packageRoot} (${reason}). ` +
          'Run "npm rebuild diffit" (in a clone: "npm rebuild"); it needs a C++17 compiler, make and Python 3.',
        { cause },
      ),
      { code: 'DIFFIT_NO_ADDON' },
    );
  }
  if (addon.abiVersion !== expectedAbiVersion) {
    throw Object.assign(
      new Error(
        `The native addon of diffit has ABI version ${addon.abiVersion}, expected ${expectedAbiVersion}: ` +
          'it was built from other sources. Run "npm rebuild diffit" (in a clone: "npm rebuild").',
      ),
      { code: 'DIFFIT_NO_ADDON' },
    );
  }
  return addon;
}

/** Where the library of a backend other than the CPU's lies, beside the addon; there need not be one. */
export function backendLibrary(name: 'cuda' | 'cuda_emulated'): string {
  return join(dirname(require('node-gyp-build').resolve(packageRoot)), `libdiffit_${name}.so`);
}

/** The addon, loaded when this module is. */
export const native: NativeAddon = load();
