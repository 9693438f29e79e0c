/**
 * The fuzzer: damages sound inputs (bits, bytes, words of the format, cuts, repeats, splices of two) and runs a target on what comes out. A finding
 * is anything but a result or a DiffitError; an execution of more than two seconds of the processor; or memory out of proportion to the input.
 *
 * fast-check makes the edits, so that a finding comes with the seed that repeats it and is shrunk to few edits.
 */
import { getHeapStatistics } from 'node:v8';
import fc from 'fast-check';
import { DiffitError } from '../../../lib/errors.js';
import type { Target } from './targets.js';

export interface Finding {
  target: string;
  message: string;
  /** The input, base64. */
  input: string;
}

export interface FuzzResult {
  executions: number;
  /** Of these, how many the target took; the others it refused with an error of ours. */
  accepted: number;
  slowestMs: number;
  finding?: Finding;
}

/** One edit; positions are shares of the length, so that an edit means something at any length. */
interface Edit {
  kind: 'bit' | 'byte' | 'word' | 'cut' | 'drop' | 'repeat' | 'splice' | 'number' | 'json';
  at: number;
  value: number;
}

const edit: fc.Arbitrary<Edit> = fc.record({
  kind: fc.constantFrom('bit', 'byte', 'word', 'cut', 'drop', 'repeat', 'splice', 'number', 'json'),
  at: fc.double({ min: 0, max: 1, noNaN: true }),
  value: fc.nat(),
});

const slow = 2000;
/** Bytes outside V8's heap that any input may cost, and per byte of input: an image is decoded, deflate expands by 1032. */
const memoryBase = 96 << 20;
const memoryPerByte = 1100;

/** Runs a target so many times. Ends at the first finding. */
export async function fuzz(target: Target, executions: number, seed: number): Promise<FuzzResult> {
  const result: FuzzResult = { executions: 0, accepted: 0, slowestMs: 0 };
  const words = target.words.map((word) => Uint8Array.from(word, (c) => c.charCodeAt(0)));
  const input = fc.record({
    of: fc.nat(target.seeds.length - 1),
    edits: fc.array(edit, { minLength: 1, maxLength: 6 }),
  });
  const property = fc.asyncProperty(input, async ({ of, edits }) => {
    const bytes = edits.reduce((bytes, edit) => apply(edit, bytes, words, target.seeds), target.seeds[of]);
    await execute(target, bytes, result);
  });
  const details = await fc.check(property, { numRuns: executions, seed, endOnFailure: false });
  if (!details.failed) return result;
  const [{ of, edits }] = details.counterexample as [{ of: number; edits: Edit[] }];
  const bytes = edits.reduce((bytes, edit) => apply(edit, bytes, words, target.seeds), target.seeds[of]);
  const error = details.errorInstance;
  const message = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return { ...result, finding: { target: target.name, message, input: Buffer.from(bytes).toString('base64') } };
}

async function execute(target: Target, bytes: Uint8Array, result: FuzzResult): Promise<void> {
  const before = getHeapStatistics().external_memory;
  const started = process.cpuUsage();
  result.executions++;
  try {
    const running = target.run(bytes);
    if (running instanceof Promise) await running;
    result.accepted++;
  } catch (error) {
    if (!(error instanceof DiffitError)) throw error;
    if (!/^[^\n]{1,2000}$/.test(error.message)) throw new Error(`its message is not one line: ${error.message}`);
  }
  const { user, system } = process.cpuUsage(started); // not the clock: the machine may be busy
  const took = (user + system) / 1000;
  if (took > result.slowestMs) result.slowestMs = took;
  if (took > slow) throw new Error(`took ${took.toFixed(0)} ms`);
  const more = getHeapStatistics().external_memory - before;
  if (more > memoryBase + memoryPerByte * bytes.length) throw new Error(`took ${more} bytes for ${bytes.length}`);
}

/** The bytes with one edit; the input stays as it is. */
export function apply(
  { kind, at, value }: Edit,
  bytes: Uint8Array,
  words: Uint8Array[],
  seeds: Uint8Array[],
): Uint8Array {
  const place = Math.min(bytes.length, Math.floor(at * (bytes.length + 1)));
  const joined = (...parts: Uint8Array[]): Uint8Array => Uint8Array.from(Buffer.concat(parts));
  const [head, tail] = [bytes.subarray(0, place), bytes.subarray(place)];
  switch (kind) {
    case 'bit':
    case 'byte': {
      if (tail.length === 0) return bytes;
      const out = bytes.slice();
      out[place] = kind === 'bit' ? out[place] ^ (1 << (value & 7)) : value & 255;
      return out;
    }
    case 'word': {
      if (words.length === 0) return bytes;
      const word = words[value % words.length];
      return joined(head, word, value & 1024 ? tail : tail.subarray(word.length)); // put in, or over what is there
    }
    case 'number': {
      const out = bytes.slice();
      const extremes = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];
      const number = new DataView(new ArrayBuffer(4));
      number.setUint32(0, extremes[value % extremes.length], (value & 512) !== 0);
      out.set(new Uint8Array(number.buffer).subarray(0, out.length - place), place);
      return out;
    }
    case 'json':
      return withOtherValue(bytes, at, value);
    case 'cut':
      return head.slice();
    case 'drop':
      return joined(head, tail.subarray(value % 64));
    case 'repeat':
      return bytes.length > 1 << 16 ? bytes : joined(bytes.subarray(0, place + (value % 64)), tail);
    case 'splice': {
      const other = seeds[value % seeds.length];
      return joined(head, other.subarray(Math.floor(at * other.length)));
    }
  }
}

// biome-ignore format: a list
const jsonValues = [null, true, 0, -1, 1, 1.5, 2 ** 31, 2 ** 53, -1e308, '', 'x', '../x', [], {}, [1], { a: 1 }, '__proto__', [[[]]], '\0', 1e-320];

/** Of a text of JSON, with one value or key replaced or left out. */
function withOtherValue(bytes: Uint8Array, at: number, value: number): Uint8Array {
  let root: unknown;
  try {
    root = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return bytes;
  }
  const places: { parent: Record<string, unknown>; key: string }[] = [];
  const walk = (parent: unknown): void => {
    if (typeof parent !== 'object' || parent === null) return;
    for (const key of Object.keys(parent)) {
      places.push({ parent: parent as Record<string, unknown>, key });
      walk((parent as Record<string, unknown>)[key]);
    }
  };
  walk(root);
  if (places.length === 0) return bytes;
  const { parent, key } = places[Math.min(places.length - 1, Math.floor(at * places.length))];
  const other = jsonValues[(value >> 4) % jsonValues.length];
  if (value % 16 === 0) delete parent[key];
  else if (value % 16 === 1) parent[`${key}x`] = other;
  else parent[key] = other;
  return new TextEncoder().encode(JSON.stringify(root));
}
