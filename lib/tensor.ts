/**
 * Tensor: a contiguous, row-major array on a device, its gradient, and the methods people expect.
 *
 * Every operation checks its arguments at once, allocates its result and enqueues the work; nothing here computes or
 * waits. `await t.data()` is where the caller meets the device. Operations live in ops/, one file per topic, and are
 * also reachable as methods of Tensor for the common ones. They take f32, bf16 and f16 and compute in f32; the result has the operands'
 * dtype, f32 when those differ, and sums are f32.
 */

import { canonicalName, type DeviceName, defaultDevice, deviceId, outOfMemory } from './device.js';
import { type DType, dtypeNumber, dtypeOf, isFloat, itemSize, type TensorData, toTyped, typedView } from './dtype.js';
import { DeviceError, DisposedError, DTypeError, fromNative, OptionError, ShapeError } from './errors.js';
import { native, type TensorId } from './native.js';
import { checkKeys } from './ops/check.js';
import * as elementwise from './ops/elementwise.js';
import * as index from './ops/index.js';
import * as reduce from './ops/reduce.js';
import { adopt, type Owned } from './scope.js';
import { checkShape, format, numel, type Shape } from './shape.js';
import { type Node, runBackward } from './tape.js';

/** Options of the functions that make tensors. */
export interface TensorOptions {
  /** Type of the elements. Default: f32, or the TypedArray's own type. */
  dtype?: DType;
  /** Where the tensor is made. Default: {@link defaultDevice}. */
  device?: DeviceName;
  /** Collect a gradient in `grad` when backward() passes. Default false. */
  requiresGrad?: boolean;
}

/** Options of {@link Tensor.fromBytes}. */
export interface FromBytesOptions {
  /** Sizes of the axes. */
  shape: Shape;
  /** Type of the elements. */
  dtype: DType;
  /** Where the tensor is made. Default: {@link defaultDevice}. */
  device?: DeviceName;
}

/** A number, or arrays of numbers in arrays, all of one length at each depth. */
export type NestedNumbers = number | readonly NestedNumbers[];

/**
 * A native id shared by the tensors that alias it; the last one out releases it, the collector if nobody did. Handles are used again:
 * to watch each tensor's own would be most of the collector's work.
 */
class Handle {
  /** What the collector needs of it. */
  private readonly watched: Watched;
  private references = 0;
  /** The handle of the whole buffer, which counts for all its views, too: the tensors over it, and what was written to it. */
  buffer: Handle = this;
  users = 0;
  writes = 0;

  private constructor() {
    this.watched = { id: 0, slot: native.watch(this) };
    watching[this.watched.slot] = this.watched;
    collected.register(this, this.watched);
  }

  /** Of a new id, with one tensor; of a view, with the handle of what it looks into. */
  static of(id: TensorId, base?: Handle): Handle {
    const handle = idle.pop() ?? new Handle();
    handle.watched.id = id;
    handle.writes = 0;
    if (base) handle.buffer = base.buffer;
    return handle.retain();
  }

  get id(): TensorId {
    return this.watched.id;
  }

  retain(): this {
    this.references++;
    this.buffer.users++;
    return this;
  }

  release(): void {
    const { buffer } = this;
    if (--this.references === 0) {
      native.release(this.watched.id);
      this.watched.id = 0;
      if (buffer !== this) this.rest();
    }
    if (--buffer.users === 0) buffer.rest();
  }

  private rest(): void {
    this.buffer = this;
    if (idle.length < maxIdle) idle.push(this);
  }
}
const idle: Handle[] = [];
const maxIdle = 4096;

/** A handle's id, and its slot in the addon's table of weak references: -1 when it was found to be garbage. */
interface Watched {
  id: TensorId;
  slot: number;
}
const watching: (Watched | undefined)[] = [];

function forget(watched: Watched): void {
  if (watched.slot < 0) return;
  watching[watched.slot] = undefined;
  watched.slot = -1;
  native.release(watched.id);
}
// Its callbacks come in turns of the event loop of their own; where memory runs out before, collectGarbage() looks for itself.
const collected = new FinalizationRegistry<Watched>((watched) => {
  if (watched.slot >= 0) native.unwatch(watched.slot);
  forget(watched);
});

/** Releases what nobody holds any more. Takes some hundredths of a second. */
function collectGarbage(): void {
  for (const slot of native.collectGarbage()) forget(watching[slot] as Watched);
}

/** A new id, when the first attempt has failed: garbage makes room for it where it was memory that lacked. */
function allocateAgain(error: unknown, shape: Shape, dtype: DType, device: DeviceName, op: string): TensorId {
  if (!isOutOfMemory(error)) throw fromNative(error);
  collectGarbage();
  const [a, b, c, d, e, f] = shape;
  try {
    return native.alloc(deviceId(device), dtypeNumber(dtype), shape.length, a, b, c, d, e, f);
  } catch (again) {
    throw isOutOfMemory(again) ? outOfMemory(again, op, shape, dtype, device) : fromNative(again);
  }
}

function isOutOfMemory(error: unknown): error is Error {
  return error instanceof Error && (error as { code?: unknown }).code === 'DIFFIT_OUT_OF_MEMORY';
}

/**
 * A contiguous, row-major array on a device, and its gradient. Make one with {@link tensor}, {@link zeros}, {@link ones}, {@link full},
 * {@link arange}, {@link rand} or {@link randn}.
 *
 * An operation checks its arguments at once and enqueues the work: nothing computes or waits before {@link Tensor.data},
 * {@link Tensor.bytes}, {@link Tensor.item} or {@link Tensor.toArray} is awaited, which also rejects with what went wrong meanwhile. Operations
 * take f32, bf16 and f16 and compute in f32; the result has the operands' dtype, f32 when those differ, and sums are f32. They throw
 * {@link ShapeError}, {@link DTypeError}, {@link DeviceError} and {@link OptionError} for arguments that do not fit, {@link DisposedError} for a
 * tensor that was given back, and {@link OutOfMemoryError}.
 *
 * Memory is given back by {@link Tensor.dispose}, `using`, or the end of the {@link scope} around; garbage collection is the safety net.
 */
export class Tensor implements Disposable {
  /** The gradient, after backward(), of a leaf made with requiresGrad. */
  grad?: Tensor;
  /** The operation that made this tensor, while gradients are recorded. @internal */
  node?: Node;
  /** Does backward() compute the gradient of this tensor? Set it on leaves; results follow from what they are made of. */
  requiresGrad = false;
  /** A weight's values in low precision, made when `writes` was this (ops/precision.ts). Goes with the weight. @internal */
  lowered?: { readonly copy: Tensor; writes: number };
  /** See scope.ts. @internal */
  owner?: Owned[] = undefined;
  private disposed = false;

  private constructor(
    private readonly handle: Handle,
    /** Sizes of the axes, outermost first. */
    readonly shape: Shape,
    /** Type of the elements. */
    readonly dtype: DType,
    /** Where the elements are. */
    readonly device: DeviceName,
    owned = true,
  ) {
    if (owned) adopt(this);
  }

  /** A tensor with undefined contents, which keeps `shape`; `op` wants it. @internal */
  static empty(shape: Shape, dtype: DType = 'f32', device: DeviceName = defaultDevice(), op = 'tensor'): Tensor {
    const [a, b, c, d, e, f] = shape;
    let id: TensorId;
    try {
      id = native.alloc(deviceId(device), dtypeNumber(dtype), shape.length, a, b, c, d, e, f);
    } catch (error) {
      id = allocateAgain(error, shape, dtype, device, op);
    }
    return new Tensor(Handle.of(id), shape, dtype, canonicalName(device));
  }

  /**
   * A tensor from the raw little-endian bytes of its dtype (as files hold them). The bytes are copied.
   *
   * @throws {ShapeError} Not as many bytes as the shape needs.
   * @throws {OptionError} An unknown option, dtype or device name.
   */
  static fromBytes(bytes: Uint8Array, options: FromBytesOptions): Tensor {
    checkKeys('fromBytes', options, fromBytesOptions);
    const { shape, dtype, device } = options;
    checkShape(shape, 'fromBytes');
    dtypeNumber(dtype);
    if (bytes.byteLength !== numel(shape) * itemSize(dtype)) {
      throw new ShapeError(
        `fromBytes: ${format(shape)} of ${dtype} is ${numel(shape) * itemSize(dtype)} bytes, got ${bytes.byteLength}.`,
      );
    }
    const result = Tensor.empty([...shape], dtype, device, 'tensor');
    if (bytes.byteLength > 0) native.write(result.id, bytes, 0);
    return result;
  }

  /** The native id; throws DisposedError after dispose(). @internal */
  get id(): TensorId {
    if (this.disposed) {
      throw new DisposedError(
        `This tensor ${format(this.shape)} was disposed, by dispose(), \`using\`, or the end of the scope() that made it.`,
      );
    }
    return this.handle.id;
  }

  /** Another tensor over the same buffer, outside the tape and of no scope. @internal */
  alias(): Tensor {
    void this.id;
    return new Tensor(this.handle.retain(), this.shape, this.dtype, this.device, false);
  }

  /** Another view of the same bytes, outside the tape. @internal */
  view(shape: Shape, offset = 0): Tensor {
    const [a, b, c, d, e, f] = shape;
    const id = native.view(
      this.id,
      offset * itemSize(this.dtype),
      dtypeNumber(this.dtype),
      shape.length,
      a,
      b,
      c,
      d,
      e,
      f,
    );
    return new Tensor(Handle.of(id, this.handle), shape, this.dtype, this.device);
  }

  /** Does another tensor or the tape use the same buffer, as an alias or a view? @internal */
  get isShared(): boolean {
    return this.handle.buffer.users > 1;
  }

  /** How often the buffer was written to after it was filled, through whatever tensor. @internal */
  get writes(): number {
    return this.handle.buffer.writes;
  }

  /** To be called by whatever writes into an existing tensor. Returns this. @internal */
  written(): this {
    this.handle.buffer.writes++;
    return this;
  }

  /** Number of axes. */
  get ndim(): number {
    return this.shape.length;
  }

  /** Number of elements. */
  get size(): number {
    return numel(this.shape);
  }

  /** Was the tensor given back? Using it then throws {@link DisposedError}. */
  get isDisposed(): boolean {
    return this.disposed;
  }

  /** Gives the memory back (once no other tensor and no recorded operation needs it). Calling it again does nothing. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.handle.release();
    this.node = undefined;
    this.lowered?.copy.dispose();
    this.lowered = undefined;
  }

  /** Called at the end of the block by `using x = …`: {@link Tensor.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /**
   * The contents in row-major order, once the device gets there: Float32Array (f32, bf16, f16), Int32Array,
   * BigInt64Array or Uint8Array.
   *
   * @throws {DiffitError} The failure of an earlier operation, if there was one.
   */
  async data(): Promise<TensorData> {
    if (this.dtype === 'bf16' || this.dtype === 'f16') {
      const wide = elementwise.castRaw(this, 'f32');
      try {
        return await wide.data();
      } finally {
        wide.dispose();
      }
    }
    return typedView((await this.bytes()).buffer as ArrayBuffer, this.dtype);
  }

  /** The raw bytes of the contents, as files hold them: row-major, little-endian. Rejects as {@link Tensor.data}. */
  async bytes(): Promise<Uint8Array> {
    try {
      return new Uint8Array(await native.read(this.id));
    } catch (error) {
      throw fromNative(error);
    }
  }

  /**
   * The one element of a tensor of size 1. Rejects as {@link Tensor.data}.
   *
   * @throws {ShapeError} The tensor has another size.
   */
  async item(): Promise<number> {
    if (this.size !== 1) throw new ShapeError(`item(): expected one element, this tensor is ${format(this.shape)}.`);
    return Number((await this.data())[0]);
  }

  /** Nested arrays of numbers in the shape of the tensor; a plain number for a scalar. For looking at; {@link Tensor.data} is quicker. */
  async toArray(): Promise<unknown> {
    const data = await this.data();
    let position = 0;
    const build = (axis: number): unknown =>
      axis === this.ndim ? Number(data[position++]) : Array.from({ length: this.shape[axis] }, () => build(axis + 1));
    return build(0);
  }

  /**
   * Computes the gradient of this tensor with respect to every leaf that requires one and adds it to their `grad`.
   * `gradient` (same shape) is the gradient of whatever follows; a scalar needs none. The graph is used up: what it kept is freed on the way.
   *
   * @throws {AutogradError} Nothing was recorded, or the graph was already used.
   * @throws {ShapeError} A `gradient` of another shape, or none for a tensor of more than one element.
   */
  backward(gradient?: Tensor): void {
    runBackward(this, gradient);
  }

  /** The same values, cut off from the tape: gradients stop here. Shares the buffer. */
  detach(): Tensor {
    void this.id;
    return new Tensor(this.handle.retain(), this.shape, this.dtype, this.device);
  }

  /**
   * Copies `source` (as many elements, same device; converted to this dtype) into this tensor, in place. Not recorded. Returns this.
   *
   * @throws {DeviceError} `source` is on another device.
   * @throws {ShapeError} `source` has another number of elements.
   */
  copyFrom(source: Tensor): this {
    if (source.device !== this.device) {
      throw new DeviceError(`copyFrom: the source is on ${source.device}, this tensor on ${this.device}.`);
    }
    if (source.size !== this.size) {
      throw new ShapeError(`copyFrom: cannot copy ${format(source.shape)} into ${format(this.shape)}.`);
    }
    native.ops.cast(source.id, this.id);
    return this.written();
  }

  /** Converts to another dtype; to integers it truncates and saturates. The gradient is converted back. */
  to(dtype: DType): Tensor {
    return elementwise.cast(this, dtype);
  }

  /** this + other, broadcast. */
  add(other: Tensor | number): Tensor {
    return elementwise.add(this, other);
  }
  /** this - other, broadcast. */
  sub(other: Tensor | number): Tensor {
    return elementwise.sub(this, other);
  }
  /** Elementwise this · other, broadcast. Matrix products: nn.functional.matmul. */
  mul(other: Tensor | number): Tensor {
    return elementwise.mul(this, other);
  }
  /** Elementwise this / other, broadcast. */
  div(other: Tensor | number): Tensor {
    return elementwise.div(this, other);
  }
  /** -this. */
  neg(): Tensor {
    return elementwise.affine(this, -1, 0);
  }
  /** Absolute values; the gradient at 0 is 0. */
  abs(): Tensor {
    return elementwise.unary('abs', this);
  }
  /** Squares of the elements. */
  square(): Tensor {
    return elementwise.unary('square', this);
  }
  /** Square roots; NaN below 0. */
  sqrt(): Tensor {
    return elementwise.unary('sqrt', this);
  }
  /** e to the power of the elements. */
  exp(): Tensor {
    return elementwise.unary('exp', this);
  }
  /** Natural logarithms; NaN below 0. */
  log(): Tensor {
    return elementwise.unary('log', this);
  }
  /** min(max(this, low), high); the gradient is 0 where an element was outside. Throws OptionError when low is above high. */
  clamp(low: number, high: number): Tensor {
    return elementwise.clamp(this, low, high);
  }
  /** Sum over `axes` (all by default; negative ones count from the back), f32. `keepDims` leaves them in the shape, with size 1. */
  sum(axes?: number | readonly number[], keepDims = false): Tensor {
    return reduce.sum(this, axes, keepDims);
  }
  /** Mean over `axes` (all by default; negative ones count from the back), f32. `keepDims` leaves them in the shape, with size 1. */
  mean(axes?: number | readonly number[], keepDims = false): Tensor {
    return reduce.mean(this, axes, keepDims);
  }
  /** Largest value over one axis, f32. Its gradient goes to the first element that has it. */
  max(axis: number, keepDims = false): Tensor {
    return reduce.max(this, axis, keepDims);
  }
  /** Index (i64) of the first largest value over one axis. */
  argmax(axis: number): Tensor {
    return reduce.argmax(this, axis);
  }
  /** Same elements in another shape; one entry may be -1. Shares the buffer. */
  reshape(shape: Shape): Tensor {
    return index.reshape(this, shape);
  }
  /** Axes in another order (a copy): y.shape[i] = shape[axes[i]]. */
  permute(axes: readonly number[]): Tensor {
    return index.permute(this, axes);
  }
  /** Elements [start, end) of one axis; negative positions count from the end. A slice of axis 0 shares the buffer. */
  slice(axis: number, start: number, end?: number): Tensor {
    return index.slice(this, axis, start, end);
  }
}

const optionNames = ['dtype', 'device', 'requiresGrad'];
const fromDataOptions = [...optionNames, 'shape'];
const fromBytesOptions = ['shape', 'dtype', 'device'];

/**
 * A tensor from a TypedArray or (nested) numbers. Shape: given, or that of the nesting, or [length]. The data is copied.
 *
 * @throws {ShapeError} Ragged nesting, or data that do not fill the shape.
 * @throws {DTypeError} A TypedArray without a dtype (Float64Array, …), a number an integer dtype cannot hold, requiresGrad for integers.
 * @throws {OptionError} An unknown option, dtype or device name.
 * @throws {OutOfMemoryError} The device has no memory for it.
 */
export function tensor(
  data: TensorData | Uint8ClampedArray | NestedNumbers,
  options: TensorOptions & { shape?: Shape } = {},
): Tensor {
  checkKeys('tensor', options, fromDataOptions);
  const typed = ArrayBuffer.isView(data) ? data : undefined;
  const nested = typed ? undefined : (data as NestedNumbers);
  if (!typed && typeof nested !== 'number' && !Array.isArray(nested)) {
    throw new OptionError('tensor: expected a number, an array of numbers, or a TypedArray.');
  }
  if (typed && !dtypeOf(typed)) {
    throw new DTypeError(
      `tensor: ${typed.constructor.name} has no matching dtype; use Float32Array, Int32Array, BigInt64Array or Uint8Array.`,
    );
  }
  const dtype = options.dtype ?? (typed ? (dtypeOf(typed) as DType) : 'f32');
  dtypeNumber(dtype);
  const flat = typed ?? flatten(nested as NestedNumbers);
  const shape = options.shape ?? (typed ? [typed.length] : nestedShape(nested as NestedNumbers));
  checkShape(shape, 'tensor');
  if (numel(shape) !== flat.length) {
    throw new ShapeError(`tensor: shape ${format(shape)} has ${numel(shape)} elements, the data has ${flat.length}.`);
  }
  // What has no TypedArray of its own, and data of another type, is converted on the device.
  const stored: DType = typed ? (dtypeOf(typed) as DType) : isFloat(dtype) ? 'f32' : dtype;
  const own = typed ?? toTyped(flat as number[], dtype);
  const bytes = new Uint8Array(own.buffer, own.byteOffset, own.byteLength);
  let result = Tensor.fromBytes(bytes, { shape, dtype: stored, device: options.device });
  if (stored !== dtype) {
    const wide = result;
    result = elementwise.castRaw(wide, dtype);
    wide.dispose();
  }
  return withGradient(result, options);
}

/**
 * A tensor filled with one value.
 *
 * @throws {ShapeError} What is no shape.
 * @throws {DTypeError} requiresGrad for an integer dtype.
 * @throws {OptionError} An unknown option, dtype or device name.
 * @throws {OutOfMemoryError} The device has no memory for it.
 */
export function full(shape: Shape, value: number, options: TensorOptions = {}): Tensor {
  return filled('full', shape, value, options);
}

function filled(op: string, shape: Shape, value: number, options: TensorOptions): Tensor {
  checkKeys(op, options, optionNames);
  checkShape(shape, op);
  const result = Tensor.empty([...shape], options.dtype, options.device, op);
  native.ops.fill(result.id, value);
  return withGradient(result, options);
}

/** A tensor of zeros; throws as {@link full}. */
export function zeros(shape: Shape, options: TensorOptions = {}): Tensor {
  return filled('zeros', shape, 0, options);
}

/** A tensor of ones; throws as {@link full}. */
export function ones(shape: Shape, options: TensorOptions = {}): Tensor {
  return filled('ones', shape, 1, options);
}

/**
 * start, start + step, … below `end`, of shape [n]; one argument counts from 0. Default step 1.
 *
 * @throws {OptionError} A step of 0 or NaN, ends that are not finite; an unknown option, dtype or device name.
 */
export function arange(start: number, end?: number, step = 1, options: TensorOptions = {}): Tensor {
  const [first, last] = end === undefined ? [0, start] : [start, end];
  const length = Math.max(0, Math.ceil((last - first) / step));
  if (!Number.isFinite(length)) throw new OptionError(`arange: ${first} to ${last} by ${step} never ends.`);
  return tensor(
    Array.from({ length }, (_, i) => first + i * step),
    options,
  );
}

function withGradient(result: Tensor, options: TensorOptions): Tensor {
  const { requiresGrad } = options;
  if (requiresGrad !== undefined && typeof requiresGrad !== 'boolean') {
    throw new OptionError(`requiresGrad is ${String(requiresGrad)}, expected true or false.`);
  }
  if (requiresGrad) {
    if (!isFloat(result.dtype))
      throw new DTypeError(`requiresGrad: ${result.dtype} has no gradient; use f32, bf16 or f16.`);
    result.requiresGrad = true;
  }
  return result;
}

function nestedShape(values: NestedNumbers): number[] {
  const shape: number[] = [];
  for (let level: NestedNumbers = values; Array.isArray(level); level = level[0]) {
    shape.push(level.length);
    if (level.length === 0) break;
  }
  return shape;
}

function flatten(values: NestedNumbers): number[] {
  const shape = nestedShape(values);
  const flat: number[] = [];
  const walk = (level: NestedNumbers, axis: number): void => {
    if (axis === shape.length) {
      if (typeof level !== 'number')
        throw new ShapeError('tensor: nested arrays are ragged or hold something that is not a number.');
      flat.push(level);
      return;
    }
    if (!Array.isArray(level) || level.length !== shape[axis]) {
      throw new ShapeError(`tensor: nested arrays are ragged: expected ${shape[axis]} entries at depth ${axis}.`);
    }
    for (const item of level) walk(item, axis + 1);
  };
  walk(values, 0);
  return flat;
}
