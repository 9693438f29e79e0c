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
  let [c0, c1, c2, c3] = [counter[0] >>> 0, counter[1] >>> 0, counter[2] >>> 0, counter[3] >>> 0];
  let [k0, k1] = [key[0] >>> 0, key[1] >>> 0];
  for (let round = 0; round < 10; round++) {
    const high0 = mulHigh(M0, c0);
    const low0 = Math.imul(M0, c0);
    const high1 = mulHigh(M1, c2);
    const low1 = Math.imul(M1, c2);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1 >>> 0;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0 >>> 0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  return Uint32Array.of(c0, c1, c2, c3);
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
  private words: Uint32Array = new Uint32Array(4);

  /** @param stream Number of an independent sequence under the same seed. Default 0. */
  constructor(seed: number, stream = 0) {
    this.key = splitWords(seed, 'seed');
    this.stream = splitWords(stream, 'stream');
  }

  /** Uniform in 0 .. 2^32 - 1. */
  uint32(): number {
    const block = Math.floor(this.position / 4);
    if (block !== this.block) {
      this.words = philox4x32([block, HOST_LANE, ...this.stream], this.key);
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

  /** Uniform in 0 .. n - 1, exactly (by rejection); 1 <= n <= 2^32. */
  integer(n: number): number {
    if (!Number.isInteger(n) || n < 1 || n > 2 ** 32) {
      throw new OptionError(`integer(n) needs an integer n in 1 .. 2^32, got ${n}.`);
    }
    const limit = 2 ** 32 - (2 ** 32 % n);
    for (;;) {
      const word = this.uint32();
      if (word < limit) return word % n;
    }
  }

  /** The numbers 0 .. n - 1 in random order (Fisher-Yates). */
  permutation(n: number): Uint32Array {
    if (!Number.isInteger(n) || n < 0 || n >= 2 ** 32) {
      throw new OptionError(`permutation(n) needs an integer n in 0 .. 2^32 - 1, got ${n}.`);
    }
    const order = Uint32Array.from({ length: n }, (_, i) => i);
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
