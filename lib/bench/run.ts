/** Runs a group of benchmarks on a device: the ceilings first, then one spec after another. A failing one is reported and the rest goes on. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import '../autograd.js';
import {
  type DeviceName,
  defaultDevice,
  deviceId,
  devices,
  setDefaultDevice,
  synchronize,
  trimMemory,
} from '../device.js';
import { OptionError, OutOfMemoryError } from '../errors.js';
import { saveSafetensors } from '../io/index.js';
import { native } from '../native.js';
import { packageRoot } from '../package.js';
import { scope } from '../scope.js';
import type { Tensor } from '../tensor.js';
import { deviceTimer, type Effort, efforts, measure } from './measure.js';
import { networks, timeSteps } from './networks.js';
import { bytesOf, operations, type Preparation, type Prepared } from './operations.js';
import type { Ceilings, Group, Precision, Report, Result, Spec, Timing } from './report.js';
import { type Scale, specsOf } from './specs.js';

export interface BenchOptions {
  group: Group;
  device: DeviceName;
  dtype: Precision;
  /** As small as the code allows: does everything run? */
  quick?: boolean;
  /** Only specs whose id contains this. */
  only?: string;
  /** Seconds after which no further spec is started. */
  limit?: number;
  /** Stops between two specs. */
  signal?: AbortSignal;
  /** Called after each, with the report so far: what is lost when a later one takes the process down is only that one. */
  onResult?: (report: Report, total: number) => void;
}

const preparations: Partial<Record<Group, Preparation>> = { ...operations, ...networks };
/** Input sets together are at least this large where they may be, so that no cache holds them, and at most so many. */
const [rotation, maxSets] = [2 ** 28, 8];

/** The specs of a run; touches no device. */
export function listSpecs({ group, device, dtype, quick, only }: BenchOptions): Spec[] {
  return specsOf(group, scaleOf(device, quick), dtype).filter(named(only));
}

export async function runGroup(options: BenchOptions): Promise<Report> {
  const { group, device, dtype, quick = false, limit = Number.POSITIVE_INFINITY, signal, onResult } = options;
  const before = defaultDevice();
  setDefaultDevice(device); // modules make their parameters there
  try {
    const effort = efforts[quick || device === 'cuda-emulated' ? 'quick' : device.startsWith('cpu') ? 'cpu' : 'gpu'];
    const started = performance.now();
    const context = { effort, device, dtype };
    const ceilings = await measureCeilings(context, quick);
    const specs = listSpecs(options);
    const results: Result[] = [];
    const head = {
      schema: 1,
      group,
      ...environment(device),
      quick: scaleOf(device, quick) === 'quick',
      dtype,
    } as const;
    const report: Report = { ...head, ceilings, results };
    for (const spec of specs) {
      signal?.throwIfAborted();
      const late = performance.now() - started > 1000 * limit;
      const outcome = late ? { error: `Not measured: the limit of ${limit} s had passed.` } : await time(spec, context);
      results.push({ ...spec, implementation: 'diffit', dtype, ...outcome });
      onResult?.(report, specs.length);
    }
    return report;
  } finally {
    setDefaultDevice(before);
  }
}

/**
 * Runs each spec of a group of operations once on random inputs (two images, at full size otherwise) and writes inputs
 * and results as ID/NAME to a safetensors file, for an independent check of the arithmetic.
 */
export async function saveOutputs(options: BenchOptions, path: string): Promise<Spec[]> {
  const { group, device, dtype, quick, only } = options;
  const specs = specsOf(group, quick ? 'quick' : 'check', dtype).filter(named(only));
  if (!(group in operations) || specs.length === 0) {
    throw new OptionError(
      `"${group}"${only === undefined ? '' : ` with --only ${only}`} has no single operations to save.`,
    );
  }
  await scope(async () => {
    const saved: Record<string, Tensor> = {};
    for (const spec of specs) {
      const { run, tensors } = (preparations[group] as Preparation)(spec, { device, dtype, seed: 1 });
      options.signal?.throwIfAborted();
      run();
      await synchronize(device);
      for (const [name, tensor] of Object.entries(tensors)) saved[`${spec.id}/${name}`] = tensor;
    }
    await saveSafetensors(path, saved, { dtype, specs: JSON.stringify(specs) }, { signal: options.signal });
  });
  return specs;
}

const named =
  (only: string | undefined) =>
  ({ id }: Spec): boolean =>
    only === undefined || id.includes(only);

function scaleOf(device: DeviceName, quick = false): Scale {
  if (quick || device === 'cuda-emulated') return 'quick';
  return device.startsWith('cpu') ? 'cpu' : 'full';
}

export interface Context {
  effort: Effort;
  device: DeviceName;
  dtype: Precision;
}

/** One spec's time, or the sentence that says why there is none. */
async function time(spec: Spec, context: Context): Promise<{ ms: Timing } | { error: string }> {
  const { effort, device, dtype } = context;
  const sets: Prepared[] = [];
  try {
    if (spec.group === 'sampler') return { ms: await timeSteps(spec, device, dtype, effort) };
    return await scope(async () => {
      const prepare = (seed: number): Prepared =>
        (preparations[spec.group] as Preparation)(spec, { device, dtype, seed });
      sets.push(prepare(1));
      // A whole network's own weights and activations are what turns the cache over.
      const wanted = spec.group in operations ? Math.ceil(rotation / bytesOf(sets[0].tensors)) : 1;
      while (sets.length < Math.min(wanted, effort === efforts.quick ? 2 : maxSets))
        sets.push(prepare(sets.length + 1));
      await synchronize(device);
      const timer = deviceTimer(device, spec.group in operations ? spec : undefined);
      return { ms: await measure(timer, (set) => sets[set].run(), sets.length, effort) };
    });
  } catch (error) {
    await synchronize(device).catch(() => undefined); // the failure may be reported once more
    return { error: sentence(error) };
  } finally {
    for (const { dispose } of sets) dispose?.();
    trimMemory(device);
  }
}

function sentence(error: unknown): string {
  const message = error instanceof Error ? error.message.replaceAll('\n', ' ') : String(error);
  return error instanceof OutOfMemoryError ? `Out of memory: ${message}` : message;
}

/** What the device can do at most. */
export async function measureCeilings(context: Context, quick = false): Promise<Ceilings> {
  const specs = specsOf('copy', scaleOf(context.device, quick), context.dtype);
  const rate = async (kind: string, amount: (spec: Spec) => number | undefined): Promise<number> => {
    const spec = specs.find(({ sizes }) => sizes.kind === kind) as Spec;
    const outcome = await time(spec, context);
    return 'ms' in outcome ? (1000 * (amount(spec) as number)) / outcome.ms.median : Number.NaN;
  };
  const copy = await rate('copy', ({ bytes }) => bytes);
  if (context.device.startsWith('cpu')) {
    const fma = await peakFlops(context.device, 'fma');
    const dot = context.dtype === 'bf16' ? await peakFlops(context.device, 'bf16Dot') : 0;
    return { copy, arithmetic: Math.max(fma, dot) };
  }
  return { copy, arithmetic: await rate('product', ({ flops }) => flops) };
}

/** Operations per second of a processor's multiply-adds in registers, or of its bf16 dot products; 0 where it has none. */
export function peakFlops(device: DeviceName, of: 'fma' | 'bf16Dot', threads: 'all' | 'one' = 'all'): Promise<number> {
  return native.peakFlops(deviceId(device), of === 'bf16Dot' ? 1 : 0, threads === 'one' ? 1 : 0);
}

/** What the numbers belong to. */
function environment(device: DeviceName): Pick<Report, 'date' | 'git' | 'versions' | 'device'> {
  const { version } = JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8'));
  const described = devices().find(({ name }) => name === device.split(':')[0]);
  const emulated = { name: device, available: true, model: `${cpus()[0]?.model}, emulating`, variant: 'emulated' };
  return {
    date: new Date().toISOString(),
    // An installed package lies in its user's clone, if in any.
    git: existsSync(join(packageRoot, '.git'))
      ? said('git', ['-C', packageRoot, 'rev-parse', '--short', 'HEAD'])
      : undefined,
    versions: {
      diffit: version,
      node: process.versions.node,
      ...(device.startsWith('cuda:') || device === 'cuda' ? driver() : {}),
    },
    device: { ...(described ?? emulated), name: device },
  };
}

function driver(): Record<string, string> {
  const found = said('nvidia-smi', ['--query-gpu=driver_version', '--format=csv,noheader']);
  return found === undefined ? {} : { driver: found.split('\n')[0] };
}

/** What a program prints; undefined where there is no such program or it fails. */
function said(program: string, args: string[]): string | undefined {
  try {
    return execFileSync(program, args, {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
      timeout: 10_000,
    }).trim();
  } catch {
    return undefined;
  }
}
