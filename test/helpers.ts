/**
 * What the tests share: a reader for fixtures that does not use the package under test, error measures, layout permutes
 * between PyTorch's NCHW and the package's NHWC, and the devices everything runs on.
 */
import { readFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import type { Test } from 'tap';
import { cpuVariants, type DeviceName, defaultDevice, memory, setDefaultDevice, synchronize } from '../lib/device.js';
import { DiffitError } from '../lib/errors.js';
import { scope } from '../lib/scope.js';
import { type Tensor, tensor } from '../lib/tensor.js';

export type FixtureData = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint8Array;

export interface FixtureTensor {
  shape: number[];
  data: FixtureData;
}

export interface Fixture {
  /** The parsed metadata key `json` (or `meta`): config, seed, per-case parameters. */
  // biome-ignore lint/suspicious/noExplicitAny: every fixture has its own form
  json: any;
  /** Tensor names in the file's order; with a prefix, only those that start with it. */
  names(prefix?: string): string[];
  has(name: string): boolean;
  /** One tensor as stored; throws when the file has no such name. */
  tensor(name: string): FixtureTensor;
  /** The values of one float32 tensor; throws when it has another dtype. */
  f32(name: string): Float32Array;
  /** All tensors whose name starts with `prefix`, keyed by the rest of the name. */
  group(prefix: string): Record<string, FixtureTensor>;
}

const readers: Record<string, (bytes: ArrayBuffer) => FixtureData> = {
  F32: (bytes) => new Float32Array(bytes),
  F64: (bytes) => new Float64Array(bytes),
  I32: (bytes) => new Int32Array(bytes),
  I64: (bytes) => new BigInt64Array(bytes),
  U8: (bytes) => new Uint8Array(bytes),
};

interface HeaderEntry {
  dtype: string;
  shape: number[];
  data_offsets: [number, number];
}

/** Reads a .safetensors file; a relative path is relative to test/fixtures. */
export function loadFixture(path: string): Fixture {
  const file = readFileSync(fileURLToPath(new URL(path, new URL('./fixtures/', import.meta.url))));
  const bytes = new Uint8Array(file).buffer;
  const length = Number(new DataView(bytes).getBigUint64(0, true));
  const { __metadata__: metadata = {}, ...entries } = JSON.parse(
    new TextDecoder().decode(new Uint8Array(bytes, 8, length)),
  );
  const tensors = new Map<string, FixtureTensor>();
  for (const [name, entry] of Object.entries<HeaderEntry>(entries)) {
    const { dtype, shape } = entry;
    const [begin, end] = entry.data_offsets;
    const reader = readers[dtype];
    if (!reader) throw new Error(`${path}: no reader for dtype ${dtype} of ${name}`);
    tensors.set(name, { shape, data: reader(bytes.slice(8 + length + begin, 8 + length + end)) });
  }
  const names = (prefix = '') => [...tensors.keys()].filter((name) => name.startsWith(prefix));
  const tensor = (name: string) => {
    const found = tensors.get(name);
    if (!found) throw new Error(`${path} has no tensor ${name}`);
    return found;
  };
  return {
    json: JSON.parse(metadata.json ?? metadata.meta ?? '{}'),
    names,
    has: (name) => tensors.has(name),
    tensor,
    f32: (name) => {
      const { data } = tensor(name);
      if (!(data instanceof Float32Array)) throw new Error(`${path}: ${name} is not float32`);
      return data;
    },
    group: (prefix) => Object.fromEntries(names(prefix).map((name) => [name.slice(prefix.length), tensor(name)])),
  };
}

type Values = ArrayLike<number | bigint>;

/** |a - b|; 0 where both are the same infinity or both NaN, infinite where only one is NaN. */
function distance(a: number, b: number): number {
  if (Object.is(a, b) || a === b) return 0;
  const difference = Math.abs(a - b);
  return Number.isNaN(difference) ? Number.POSITIVE_INFINITY : difference;
}

function largest(actual: Values, expected: Values, error: (a: number, b: number) => number): number {
  if (actual.length !== expected.length) throw new Error(`${actual.length} values, expected ${expected.length}`);
  let result = 0;
  for (let i = 0; i < actual.length; i++) result = Math.max(result, error(Number(actual[i]), Number(expected[i])));
  return result;
}

/** max |a - b| / max(max |expected|, 1e-20): the error on the scale of the whole tensor. */
export function maxRelativeError(actual: Values, expected: Values): number {
  let scale = 1e-20;
  for (let i = 0; i < expected.length; i++) {
    const size = Math.abs(Number(expected[i]));
    if (Number.isFinite(size)) scale = Math.max(scale, size);
  }
  return largest(actual, expected, distance) / scale;
}

/** max of |a - b| / max(|b|, floor) over the elements: for values of many magnitudes. */
export function maxElementError(actual: Values, expected: Values, floor = 1e-30): number {
  return largest(actual, expected, (a, b) => distance(a, b) / (Number.isFinite(b) ? Math.max(Math.abs(b), floor) : 1));
}

/** Asserts that maxRelativeError(actual, expected) <= tolerance; the message carries the measured error. */
export function assertClose(t: Test, actual: Values, expected: Values, tolerance: number, name: string): void {
  if (actual.length !== expected.length) {
    t.fail(`${name}: ${actual.length} values, expected ${expected.length}`);
    return;
  }
  const error = maxRelativeError(actual, expected);
  t.ok(error <= tolerance, `${name}: relative error ${error.toExponential(2)} <= ${tolerance}`);
}

function permuted<T extends FixtureData>(data: T, shape: readonly number[], axes: readonly number[]) {
  if (shape.length !== 4) throw new Error(`a permute of 4 axes got shape [${shape.join(', ')}]`);
  const size = axes.map((axis) => shape[axis] as number);
  const stride = axes.map((axis) => shape.slice(axis + 1).reduce((a, b) => a * b, 1));
  const [n0, n1, n2, n3] = size as [number, number, number, number];
  const [s0, s1, s2, s3] = stride as [number, number, number, number];
  const result = data.slice() as T;
  let to = 0;
  for (let a = 0; a < n0; a++)
    for (let b = 0; b < n1; b++)
      for (let c = 0; c < n2; c++)
        for (let d = 0; d < n3; d++) result[to++] = data[a * s0 + b * s1 + c * s2 + d * s3] as never;
  return { shape: size, data: result };
}

/** [B, C, H, W] -> [B, H, W, C], and conv weights [O, I, kh, kw] -> [O, kh, kw, I]. `shape` is the shape of `data`. */
export function nhwc<T extends FixtureData>(data: T, shape: readonly number[]): { shape: number[]; data: T } {
  return permuted(data, shape, [0, 2, 3, 1]);
}

/** [B, H, W, C] -> [B, C, H, W], and conv weights [O, kh, kw, I] -> [O, I, kh, kw]. `shape` is the shape of `data`. */
export function nchw<T extends FixtureData>(data: T, shape: readonly number[]): { shape: number[]; data: T } {
  return permuted(data, shape, [0, 3, 1, 2]);
}

/**
 * The environment of a process that is to know no setting of its parent's: where programs are, and in a run under a sanitizer
 * (reliability/instrument.ts) which addon to load and how.
 */
export function bareEnvironment(more: Record<string, string> = {}): Record<string, string> {
  const kept = [
    'PATH',
    'LD_PRELOAD',
    'DIFFIT_PREBUILD',
    'ASAN_OPTIONS',
    'LSAN_OPTIONS',
    'UBSAN_OPTIONS',
    'TSAN_OPTIONS',
  ];
  return {
    ...Object.fromEntries(kept.map((name) => [name, process.env[name] ?? '']).filter(([, value]) => value)),
    ...more,
  };
}

/** Every code path of the CPU, and the CUDA kernels on the emulator; DIFFIT_TEST_DEVICES (a comma-separated list) says otherwise. */
export function testDevices(): DeviceName[] {
  return process.env.DIFFIT_TEST_DEVICES?.split(',') ?? [...cpuVariants(), 'cuda-emulated'];
}

/** Runs `fn` as a subtest for every device of this machine, in order. The default device is put back afterwards. */
export async function forEachDevice(t: Test, fn: (t: Test, device: DeviceName) => Promise<void>): Promise<void> {
  const before = defaultDevice();
  for (const device of testDevices()) {
    await t.test(device, async (t) => {
      try {
        await fn(t, device);
      } finally {
        setDefaultDevice(before);
      }
    });
  }
}

/**
 * How much a device holds once the garbage collector has come by for what earlier tests left: what a test that awaits
 * compares with, or the collector could come by in its middle. (What the test itself has to free is checked with
 * `memory` alone: the collector must not do it.)
 */
export async function settledMemory(device: DeviceName = defaultDevice()): Promise<ReturnType<typeof memory>> {
  setFlagsFromString('--expose-gc');
  const collectGarbage: () => void = runInNewContext('gc');
  // Finalizers run in turns of their own, some time after the collection: the count has to stand still for several.
  for (let last = -1, still = 0; still < 4; ) {
    const { liveBuffers } = memory(device);
    still = liveBuffers === last ? still + 1 : 0;
    last = liveBuffers;
    collectGarbage();
    await setTimeout(5);
    await synchronize(device);
  }
  return memory(device);
}

/**
 * Runs `fn` in a scope and asserts that afterwards the device holds no more buffers than before. (It may hold fewer: the
 * garbage collector can come by for what an earlier test left.)
 */
export async function withoutLeaks(t: Test, device: DeviceName, fn: () => Promise<void>): Promise<void> {
  const before = memory(device).liveBuffers;
  await scope(fn);
  const left = memory(device).liveBuffers - before;
  t.ok(left <= 0, `${Math.max(left, 0)} buffers left`);
}

/** Asserts that `fn` throws, or rejects with, one of the package's errors: its class by name, and its message. */
export async function assertFails(t: Test, fn: () => unknown, name: string, message: RegExp): Promise<void> {
  try {
    await fn();
    t.fail(`${name} expected, nothing was thrown`, { message: String(message) });
  } catch (error) {
    const actual = error as Error;
    t.ok(actual instanceof DiffitError && actual.name === name && message.test(actual.message), `${name} ${message}`, {
      found: actual.name,
      message: actual.message,
    });
  }
}

/** `count` numbers spread evenly over [-scale, scale), the same for the same seed (a 32-bit LCG's high bits). */
export function numbers(seed: number, count: number, scale = 1): Float32Array {
  let state = (seed * 2654435761 + 12345) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return ((state >>> 8) * 2 ** -23 - 1) * scale;
  });
}

/** A fixture tensor on a device (default: the default one); i32 becomes i64, as ids and labels are here. */
export function toTensor(
  { data, shape }: FixtureTensor,
  { device, requiresGrad }: { device?: DeviceName; requiresGrad?: boolean } = {},
): Tensor {
  if (data instanceof Float64Array) throw new Error('there is no f64 tensor');
  const values = data instanceof Int32Array ? BigInt64Array.from(data, BigInt) : data;
  return tensor(values, { shape, device, requiresGrad });
}

/** A group of fixture tensors on the default device: a state dict. */
export function toTensors(group: Record<string, FixtureTensor>): Record<string, Tensor> {
  return Object.fromEntries(Object.entries(group).map(([name, value]) => [name, toTensor(value)]));
}
