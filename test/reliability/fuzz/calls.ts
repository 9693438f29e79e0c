/**
 * The addon's own interface as a target: the bytes choose tensors, methods and operations, and their arguments, right and wrong. Every call returns, or
 * throws an error with a code of ours or a TypeError; the device then still works, and no buffer stays behind.
 */
import { OptionError } from '../../../lib/errors.js';
import { type NativeOps, native } from '../../../lib/native.js';
import { isList, isTensor, operations } from '../../native/ops-def.js';
import type { Target } from './targets.js';

/** Numbers out of bytes; all zero once they are used up. */
class Choices {
  private at = 0;
  constructor(private readonly bytes: Uint8Array) {}
  /** 0 to n - 1. */
  of(n: number): number {
    return (this.bytes[this.at++] ?? 0) % n;
  }
  pick<T>(list: readonly T[]): T {
    return list[this.of(list.length)];
  }
}

// biome-ignore format: a list
const numbers = [0, 1, 2, 3, 4, 8, 16, 0.5, -1, -0, 1e-3, 64, 255, 65536, 2 ** 31 - 1, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 63, -(2 ** 31), 1e300, NaN, Infinity, -Infinity];
const small = [0, 1, 2, 3, 4, 5, 8, 16, 31];
const values = [...numbers, undefined, null, 'text', {}, [], [1, 2], true, 10n, Symbol('s'), () => 0];

const device = native.openDevice('cpu', '', 2);
const other = native.openDevice('cpu:baseline', '', 1);
native.setMemoryLimit(device, 64 << 20);
native.setMemoryLimit(other, 64 << 20);
const methods = [
  'alloc',
  'view',
  'release',
  'write',
  'read',
  'deviceInfo',
  'memory',
  'trim',
  'mark',
  'elapsed',
  'beginSpan',
  'endSpan',
  'forgetSpans',
  'graphStats',
  'resetPeak',
] as const;

async function run(bytes: Uint8Array): Promise<void> {
  const choices = new Choices(bytes);
  const live = native.memory(device).liveBytes;
  const made: number[] = [];
  const errors: unknown[] = [];
  const pending: Promise<unknown>[] = [];
  const attempt = (call: () => unknown): unknown => {
    try {
      const result = call();
      if (result instanceof Promise) pending.push(result.catch((error) => void errors.push(error)));
      return result;
    } catch (error) {
      errors.push(error);
      return undefined;
    }
  };
  const shapeOf = (): number[] => Array.from({ length: choices.of(5) }, () => choices.pick(small));
  const common = shapeOf();
  // Most agree in shape and dtype, so that operations get past their first checks.
  const make = (): void => {
    const shape = choices.of(4) === 0 ? shapeOf() : common;
    const dtype = choices.of(4) === 0 ? choices.of(6) : 0;
    const where = choices.of(8) === 0 ? other : device;
    const id = attempt(() => native.alloc(where, dtype, shape.length, ...(shape as [number, number, number, number])));
    if (typeof id !== 'number') return;
    made.push(id);
    attempt(() => native.ops.fill(id, choices.pick([0, 1, -1, 3])));
  };
  for (let i = 0; i < 6; i++) make();
  /** Mostly a tensor. */
  const id = (): unknown => (choices.of(16) === 0 ? choices.pick(values) : (made[choices.of(made.length || 1)] ?? 0));
  const scalar = (): unknown =>
    choices.of(16) === 0 ? choices.pick(values) : choices.pick(choices.of(2) ? small : numbers);
  for (let i = 0; i < 6; i++) {
    if (choices.of(4) === 0) {
      callMethod(choices, attempt, id, scalar, made);
      continue;
    }
    const { name, parameters } = operations[choices.of(256) % operations.length];
    const args = parameters.map((parameter) => {
      if (isTensor(parameter)) return parameter.kind.startsWith('OPT') && choices.of(2) === 0 ? 0 : id();
      if (isList(parameter)) return Array.from({ length: choices.of(4) }, id);
      return parameter.kind === 'INTS' ? Array.from({ length: choices.of(7) }, scalar) : scalar();
    });
    attempt(() => (native.ops[name as keyof NativeOps] as (...args: unknown[]) => void)(...args));
  }
  for (const where of [device, other]) attempt(() => native.endSpan(where)); // one that was begun
  await Promise.all(pending);
  for (const where of [device, other]) await native.synchronize(where).catch((error) => errors.push(error));
  for (const tensor of made) native.release(tensor);
  for (const error of errors) {
    const code = (error as { code?: unknown }).code;
    if (!(error instanceof TypeError) && !(typeof code === 'string' && code.startsWith('DIFFIT_'))) throw error;
  }
  await native.synchronize(device); // works, whatever came before
  if (native.memory(device).liveBytes !== live)
    throw new Error(`${native.memory(device).liveBytes - live} bytes stay behind`);
  if (errors.length > 0) throw new OptionError('refused');
}

function callMethod(
  choices: Choices,
  attempt: (call: () => unknown) => unknown,
  id: () => unknown,
  scalar: () => unknown,
  made: number[],
): void {
  const name = choices.pick(methods);
  const method = native[name] as (...args: unknown[]) => unknown;
  const detached = new Uint8Array(8);
  structuredClone(detached, { transfer: [detached.buffer] });
  const data = choices.pick<unknown>([
    new Uint8Array(8),
    new Float32Array(3),
    detached,
    new DataView(new ArrayBuffer(4)),
    new ArrayBuffer(4),
    'x',
    null,
  ]);
  const place = choices.of(8) === 0 ? scalar() : device;
  if (name === 'write') attempt(() => method(id(), data, scalar()));
  else if (name === 'alloc' || name === 'view') {
    const shape = Array.from({ length: choices.of(8) }, scalar);
    const first = name === 'alloc' ? [place] : [id(), scalar()];
    const result = attempt(() =>
      method(...first, choices.of(8), choices.of(16) === 0 ? scalar() : shape.length, ...shape),
    );
    if (typeof result === 'number') made.push(result);
  } else if (name === 'release' || name === 'read') attempt(() => method(id()));
  else attempt(() => method(place, scalar(), scalar()));
}

export const calls: Target = {
  name: 'calls of the addon',
  seeds: Array.from({ length: 8 }, (_, i) =>
    Uint8Array.from({ length: 200 }, (_, k) => (k * k * 31 + i * 97 + k * 7) & 255),
  ),
  words: [],
  run,
  weight: 10,
};
