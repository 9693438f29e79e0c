/**
 * Random numbers on the host: Philox 4x32-10, the counter-based generator the devices use too (Salmon et al., "Parallel
 * random numbers: as easy as 1, 2, 3", SC 2011), and a sequential generator over it for shuffles and other small draws.
 * Nothing here is global; a generator's whole state is its seed, its stream and a position.
 */
import { OptionError } from './errors.js';

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

/** High 32 bits of the 64-bit product of two unsigned 32-bit integers. */
function mulHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const mid = aHigh * bLow + ((aLow * bLow) >>> 16);
  const cross = aLow * bHigh + (mid & 0xffff);
  return (aHigh * bHigh + (mid >>> 16) + (cross >>> 16)) >>> 0;
}

/** Philox 4x32-10: four 32-bit words that depend on the counter (4 words) and the key (2 words) alone. */
export function philox4x32(counter: ArrayLike<number>, key: ArrayLike<number>): Uint32Array {
  const words = new Uint32Array(4);
  philoxInto(words, counter[0], counter[1], counter[2], counter[3], key[0], key[1]);
  return words;
}

function philoxInto(out: Uint32Array, c0: number, c1: number, c2: number, c3: number, k0: number, k1: number): void {
  let [a, b, c, d, x, y] = [c0 | 0, c1 | 0, c2 | 0, c3 | 0, k0 | 0, k1 | 0];
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(M0, a);
    const high1 = mulHigh(M1, c);
    const low0 = Math.imul(M0, a);
    const low1 = Math.imul(M1, c);
    a = high1 ^ b ^ x;
    b = low1;
    c = high0 ^ d ^ y;
    d = low0;
    x = (x + W0) | 0;
    y = (y + W1) | 0;
  }
  out[0] = a;
  out[1] = b;
  out[2] = c;
  out[3] = d;
}

/** Low and high 32-bit words of a safe integer, two's complement; throws OptionError on anything else. */
export function splitWords(value: number, name: string): [low: number, high: number] {
  if (!Number.isSafeInteger(value)) throw new OptionError(`${name} must be an integer below 2^53, got ${value}.`);
  return [value >>> 0, Math.floor(value / 2 ** 32) >>> 0];
}

/**
 * Second counter word of all host draws. The devices put the sample's number there, so a host stream never repeats
 * the numbers of a device stream of the same seed.
 */
export const HOST_LANE = 0xffffffff;

/** Everything a HostRandom needs to go on exactly where it was; plain JSON. */
export interface HostRandomState {
  /** 32-bit words drawn so far. */
  position: number;
  /** The second of the last pair of normal numbers, when it was not used yet. */
  spare?: number;
}

/** A sequence of random numbers: word i is word i % 4 of Philox counter (i / 4, HOST_LANE, stream) under key `seed`. */
export class HostRandom {
  private readonly key: [number, number];
  private readonly stream: [number, number];
  private position = 0;
  private spare?: number;
  private block = -1;
  private readonly words = new Uint32Array(4);

  /** @param stream Number of an independent sequence under the same seed. Default 0. */
  constructor(seed: number, stream = 0) {
    this.key = splitWords(seed, 'seed');
    this.stream = splitWords(stream, 'stream');
  }

  /** Uniform in 0 .. 2^32 - 1. */
  uint32(): number {
    const block = Math.floor(this.position / 4);
    if (block !== this.block) {
      philoxInto(this.words, block, HOST_LANE, this.stream[0], this.stream[1], this.key[0], this.key[1]);
      this.block = block;
    }
    return this.words[this.position++ % 4];
  }

  /** Uniform in [0, 1), a multiple of 2^-24 (as on the devices). */
  uniform(): number {
    return (this.uint32() >>> 8) * 2 ** -24;
  }

  /** Standard normal, by Box-Muller: two words give two numbers. */
  normal(): number {
    if (this.spare !== undefined) {
      const value = this.spare;
      this.spare = undefined;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(((this.uint32() >>> 8) + 1) * 2 ** -24));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** Uniform in 0 .. n - 1, exactly; 1 <= n < 2^32. (Lemire, "Fast random integer generation in an interval", 2019.) */
  integer(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n >= 2 ** 32) {
      throw new OptionError(`integer(n) needs an integer n in 1 .. 2^32 - 1, got ${n}.`);
    }
    for (;;) {
      const word = this.uint32();
      const low = Math.imul(word, n) >>> 0;
      if (low >= n || low >= (2 ** 32 - n) % n) return mulHigh(word, n);
    }
  }

  /** The numbers 0 .. n - 1 in random order (Fisher-Yates). */
  permutation(n: number): Uint32Array {
    if (!Number.isInteger(n) || n < 0 || n >= 2 ** 32) {
      throw new OptionError(`permutation(n) needs an integer n in 0 .. 2^32 - 1, got ${n}.`);
    }
    const order = new Uint32Array(n);
    for (let i = 0; i < n; i++) order[i] = i;
    for (let i = n - 1; i > 0; i--) {
      const j = this.integer(i + 1);
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  state(): HostRandomState {
    return this.spare === undefined ? { position: this.position } : { position: this.position, spare: this.spare };
  }

  restore(state: HostRandomState): void {
    if (!Number.isSafeInteger(state.position) || state.position < 0) {
      throw new OptionError(`A random state needs a position that is an integer of at least 0, got ${state.position}.`);
    }
    this.position = state.position;
    this.spare = state.spare;
  }
}
