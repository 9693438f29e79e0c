/** What a benchmark says: the form of its JSON, which bench/peers/*.py write too and bench/compare.ts reads. */
import type { DeviceDescription, DeviceName } from '../device.js';

/** Groups of benchmarks, in the order they build on each other. */
export const groups = ['copy', 'attention', 'gemm', 'conv', 'block', 'model', 'sampler', 'train'] as const;
export type Group = (typeof groups)[number];

/** Float formats that can be timed. */
export const precisions = ['f32', 'bf16', 'f16'] as const;
export type Precision = (typeof precisions)[number];

/** One thing to time. Two implementations that time the same `id` can be compared. */
export interface Spec {
  /** Names group, sizes and pass: attention/16x16/b32/forward. */
  id: string;
  group: Group;
  /** What the implementations build from; see specs.ts. */
  sizes: Readonly<Record<string, number | string>>;
  /** Constructor options, where a whole model is timed. */
  config?: Readonly<Record<string, unknown>>;
  /** The least arithmetic: multiply-adds count as two. Undefined where nobody counted. */
  flops?: number;
  /** The fewest bytes through memory: inputs read once, results written once. */
  bytes?: number;
  /** What one run makes, and its name. */
  items: number;
  unit: 'tokens' | 'images' | 'bytes';
}

/** Milliseconds of one run. */
export interface Timing {
  median: number;
  /** 10th and 90th percentile of the samples. */
  low: number;
  high: number;
  samples: number;
  /** Runs per sample. */
  repeats: number;
  /** By marks in the device's own queue, or by the host's clock around a wait for the device. */
  clock: 'device' | 'host';
}

/** The rates that this device reached in this run: what the others are measured against. */
export interface Ceilings {
  /** Bytes read plus written per second by a large copy. */
  copy: number;
  /** Operations per second: of multiply-adds in registers on a CPU, of a large matrix product elsewhere. */
  arithmetic: number;
}

export interface Result extends Spec {
  /** What ran: diffit, or a peer's way of doing it. */
  implementation: string;
  dtype: Precision;
  ms?: Timing;
  /** Why there is no time. */
  error?: string;
}

export interface Report {
  schema: 1;
  group: Group;
  date: string;
  /** Commit of the sources, where they are a git clone. */
  git?: string;
  versions: Readonly<Record<string, string>>;
  device: DeviceDescription & { name: DeviceName };
  quick: boolean;
  dtype: Precision;
  ceilings: Ceilings;
  results: Result[];
}

/** A result's place under the ceilings. */
export interface Roofline {
  gigabytesPerSecond?: number;
  gigaflops?: number;
  ofCopy?: number;
  ofArithmetic?: number;
  /** No version runs much faster: the longer of moving the bytes and doing the arithmetic, in milliseconds. */
  floor?: number;
  /** floor / median. */
  ofFloor?: number;
  perSecond: number;
}

export function roofline({ flops, bytes, items }: Spec, milliseconds: number, ceilings: Ceilings): Roofline {
  const seconds = milliseconds / 1000;
  const times = [bytes && bytes / ceilings.copy, flops && flops / ceilings.arithmetic].filter((v) => v !== undefined);
  const floor = times.length > 0 ? 1000 * Math.max(...times) : undefined;
  return {
    gigabytesPerSecond: bytes && bytes / seconds / 1e9,
    gigaflops: flops && flops / seconds / 1e9,
    ofCopy: bytes && bytes / seconds / ceilings.copy,
    ofArithmetic: flops && flops / seconds / ceilings.arithmetic,
    floor,
    ofFloor: floor && floor / milliseconds,
    perSecond: items / seconds,
  };
}
