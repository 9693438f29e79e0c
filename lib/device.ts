/** Devices: opening them by name, the default one, their memory. State is per environment (main thread or worker). */
import { existsSync } from 'node:fs';
import { type DType, dtypes, itemSize } from './dtype.js';
import { DeviceError, fromNative, type MemoryRequest, OptionError, OutOfMemoryError, unknownName } from './errors.js';
import { backendLibrary, type DeviceId, type MemoryStats, native } from './native.js';
import { format, numel, type Shape } from './shape.js';

/** 'cpu', 'cpu:avx2' (one code path), 'cuda' (the first GPU, as 'cuda:0'), 'cuda:1', 'cuda-emulated'. */
export type DeviceName = string;

/** What {@link devices} tells, and `diffit info` prints, of a device. */
export interface DeviceDescription {
  /** What `device` options take. */
  name: DeviceName;
  /** Can tensors be made there? */
  available: boolean;
  /** Processor or GPU, when available. */
  model?: string;
  /** Code path: avx512, avx2, neon, baseline, sm_90a, … */
  variant?: string;
  /** Worker threads, of a CPU. */
  threads?: number;
  /** Bytes of device memory; 0 where unknown. */
  memory?: number;
  /** Bytes of it that no process uses; missing where unknown. */
  deviceFreeBytes?: number;
  /** One sentence saying why not, when unavailable. */
  reason?: string;
}

const opened = new Map<DeviceName, DeviceId>();
const namePattern = /^(cpu(:[a-z0-9]+)?|cuda(-emulated)?(:\d+)?)$/;
let threads = 0;
let defaultName: DeviceName = 'cpu';

/** The native id of a device, opened on first use. Throws OptionError for an unknown name, DeviceError when it cannot be had. @internal */
export function deviceId(name: DeviceName): DeviceId {
  const known = opened.get(name);
  if (known !== undefined) return known;
  if (typeof name !== 'string' || !namePattern.test(name)) {
    throw unknownName('device', String(name), ['cpu', 'cuda', 'cuda:0', 'cuda-emulated']);
  }
  try {
    const id = native.openDevice(name, libraryOf(name), threads);
    opened.set(name, id);
    return id;
  } catch (error) {
    throw fromNative(error);
  }
}

/** The one name of a device: the first of its kind goes without a number. @internal */
export function canonicalName(name: DeviceName): DeviceName {
  return typeof name === 'string' && name.startsWith('cuda') && /:0+$/.test(name)
    ? name.slice(0, name.indexOf(':'))
    : name;
}

/** The shared library of a device's backend; '' for the CPU's, which is in the addon. Throws DeviceError when there is none. */
function libraryOf(name: DeviceName): string {
  if (!name.startsWith('cuda')) return '';
  const emulated = name.startsWith('cuda-emulated');
  const path = backendLibrary(emulated ? 'cuda_emulated' : 'cuda');
  if (existsSync(path)) return path;
  const advice = emulated ? 'npm run build:emulator' : 'npm run build:cuda';
  throw new DeviceError(
    `Device "${name}" is not available: this build of diffit has no ${path}. In a clone, "${advice}" makes it.`,
  );
}

/** Devices of this machine: the CPU and every GPU, or why there is none ('cuda'). Opens each. */
export function devices(): DeviceDescription[] {
  const library = backendLibrary('cuda');
  const gpus = existsSync(library) ? native.countDevices('cuda', library) : 0;
  const names = gpus === 0 ? ['cuda'] : Array.from({ length: gpus }, (_, i) => `cuda:${i}`);
  return ['cpu', ...names].map((name) => {
    try {
      const id = deviceId(name);
      const { name: model, variant, threads, memory } = native.deviceInfo(id);
      const { deviceFreeBytes } = native.memory(id);
      return { name, available: true, model, variant, threads, memory, deviceFreeBytes };
    } catch (error) {
      if (!(error instanceof DeviceError)) throw error;
      return { name, available: false, reason: error.message };
    }
  });
}

/** Names of the CPU code paths this machine can run ('cpu:avx512', …), best first. */
export function cpuVariants(): DeviceName[] {
  return native.cpuVariants().map((variant) => `cpu:${variant}`);
}

/**
 * Sets where tensors are made when no device is given; 'cpu' until then. Opens the device, so a missing one is an error here.
 *
 * @throws {OptionError} An unknown device name.
 * @throws {DeviceError} A device that cannot be had; the message says why.
 */
export function setDefaultDevice(name: DeviceName): void {
  deviceId(name);
  defaultName = canonicalName(name);
}

/** Where tensors are made when no device is given; see {@link setDefaultDevice}. */
export function defaultDevice(): DeviceName {
  return defaultName;
}

/**
 * Worker threads of CPU devices opened from now on, 0 to 1024; 0, the default, means DIFFIT_NUM_THREADS or the physical cores. Results do not
 * depend on it.
 *
 * @throws {OptionError} Another number.
 */
export function setNumThreads(count: number): void {
  if (!Number.isInteger(count) || count < 0 || count > 1024) {
    throw new OptionError(`setNumThreads: expected an integer from 0 to 1024, got ${count}.`);
  }
  threads = count;
}

/**
 * Live buffers and bytes, the pool's size, the peak; and what the whole device has free, where it tells.
 *
 * @throws {OptionError} An unknown device name.
 * @throws {DeviceError} A device that cannot be had.
 */
export function memory(name: DeviceName = defaultName): MemoryStats {
  return native.memory(deviceId(name));
}

/** Live buffers of one dtype and shape that one operation made; see {@link memoryOwners}. */
export interface MemoryOwner {
  /** The kernel that wrote them first (`gemm`, `fill`, …; `write`: data from JavaScript), '' where none has yet. */
  op: string;
  /** Sizes of the axes of the tensors they were made for. */
  shape: Shape;
  /** Type of the elements. */
  dtype: DType;
  /** How many buffers. */
  count: number;
  /** Bytes of all of them. */
  bytes: number;
}

/**
 * What holds a device's memory, largest first: live buffers by what made them. An {@link OutOfMemoryError} brings the same. Looks at every
 * live buffer, so it is not for loops.
 *
 * @param most - How many groups at most. Default 5.
 * @throws {OptionError} An unknown device name, or a number that is no count.
 * @throws {DeviceError} A device that cannot be had.
 */
export function memoryOwners(name: DeviceName = defaultName, most = 5): MemoryOwner[] {
  if (!Number.isInteger(most) || most < 0 || most >= 2 ** 31) {
    throw new OptionError(`memoryOwners: expected how many groups at most, got ${most}.`);
  }
  return native.memoryOwners(deviceId(name), most).map(({ dtype, ...owner }) => ({ ...owner, dtype: dtypes[dtype] }));
}

/** The addon's error for a tensor that there was no memory for, with what was asked for and what holds the memory. @internal */
export function outOfMemory(
  cause: Error,
  op: string,
  shape: Shape,
  dtype: DType,
  device: DeviceName,
): OutOfMemoryError {
  const request: MemoryRequest = { op, shape, dtype, bytes: numel(shape) * itemSize(dtype), device };
  const owners = memoryOwners(device);
  const most = owners.map((owner) => {
    const amount = `${(owner.bytes / 2 ** 20).toFixed(1)} MiB`;
    return `${owner.count} x ${format(owner.shape)} ${owner.dtype} of ${owner.op || 'none yet'} (${amount})`;
  });
  const held = most.length > 0 ? ` Most is held by ${most.join(', ')}.` : '';
  const message = `${op} ${format(shape)} ${dtype}: ${cause.message}${held}`;
  return new OutOfMemoryError(message, { cause, request, memory: memory(device), owners });
}

/**
 * Caps the memory the pool may hold, in bytes (0, the default: no cap); beyond it, making a tensor throws {@link OutOfMemoryError}.
 *
 * @throws {OptionError} A cap that is not an integer of at least 0; an unknown device name.
 * @throws {DeviceError} A device that cannot be had.
 */
export function setMemoryLimit(bytes: number, name: DeviceName = defaultName): void {
  if (!Number.isSafeInteger(bytes) || bytes < 0) {
    throw new OptionError(`setMemoryLimit: expected a number of bytes, got ${bytes}.`);
  }
  native.setMemoryLimit(deviceId(name), bytes);
}

/**
 * Gives the pool's free blocks back to the system.
 *
 * @throws {OptionError} An unknown device name.
 * @throws {DeviceError} A device that cannot be had.
 */
export function trimMemory(name: DeviceName = defaultName): void {
  native.trim(deviceId(name));
}

/**
 * Resolves when the device has done everything asked so far.
 *
 * @throws {DiffitError} The failure of an operation since the last read, naming the operation.
 */
export async function synchronize(name: DeviceName = defaultName): Promise<void> {
  try {
    await native.synchronize(deviceId(name));
  } catch (error) {
    throw fromNative(error);
  }
}

/** Of the backend's 1024 marks, which each device has; the last one is synchronize()'s own. */
const freeMarks = Array.from({ length: 1023 }, (_, slot) => slot);

/**
 * Milliseconds that the device takes for what `fn` enqueues, measured by the device: from when it comes to the first of it to when the
 * last is done. What other tasks enqueue meanwhile counts too, so keep `fn` synchronous where there are any.
 *
 * @throws {OptionError} More than 511 measurements at a time.
 */
export async function timeDevice(fn: () => unknown, name: DeviceName = defaultName): Promise<number> {
  const id = deviceId(name);
  const marks = freeMarks.splice(-2);
  if (marks.length < 2) {
    freeMarks.push(...marks);
    throw new OptionError('timeDevice: too many measurements are under way; wait for some of them.');
  }
  try {
    const [from, to] = marks;
    native.mark(id, from);
    const result = fn();
    if (result instanceof Promise) await result;
    native.mark(id, to);
    return await native.elapsed(id, from, to);
  } catch (error) {
    throw fromNative(error);
  } finally {
    freeMarks.push(...marks);
  }
}

/** Keeps a loop at most one turn ahead of its device. @internal */
export class Pace {
  private readonly id: DeviceId;
  private readonly marks = freeMarks.splice(-2);
  private turns = 0;

  constructor(name: DeviceName) {
    this.id = deviceId(name);
  }

  /** Resolves when all that was enqueued before the previous call is done; rejects with an earlier failure. */
  async turn(): Promise<void> {
    const now = this.turns++ % 2;
    const before = this.turns > 1 ? 1 - now : now;
    if (this.marks.length < 2) return this.catchUp(); // hundreds of loops at once
    native.mark(this.id, this.marks[now]);
    try {
      await native.elapsed(this.id, this.marks[before], this.marks[before]);
    } catch (error) {
      throw fromNative(error);
    }
  }

  /** Resolves when everything is done. */
  async catchUp(): Promise<void> {
    try {
      await native.synchronize(this.id);
    } catch (error) {
      throw fromNative(error);
    }
  }

  dispose(): void {
    freeMarks.push(...this.marks.splice(0));
  }
}
