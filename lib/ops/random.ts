/**
 * Random tensors from Philox 4x32-10, a counter-based generator: a number depends only on (seed, stream, sample,
 * element), so the same seed gives the same noise on every device, at any batch size and any thread count.
 */
import { OptionError } from '../errors.js';
import { native } from '../native.js';
import { checkShape, type Shape } from '../shape.js';
import { record } from '../tape.js';
import { Tensor, type TensorOptions } from '../tensor.js';
import { checkFloats, checkInteger, checkKeys } from './check.js';
import { reshape } from './index.js';

/** Names one sequence of random numbers. */
export interface RandomKey {
  /** Integer from 0 to 2^53 - 1. */
  seed: number;
  /** Which of the seed's independent streams; one per draw. Default 0. */
  stream?: number;
  /** Index of the first sample (axis 0), so that image i gets its noise whatever batch it is in. Default 0. */
  firstSample?: number;
}

/** Deals out streams of one seed, one per draw. Its whole state is those two numbers. */
export class Generator {
  private stream = 0;
  /**
   * @param seed - Integer from 0 to 2^53 - 1. Default 0.
   * @throws {OptionError} Another number.
   */
  constructor(private seed = 0) {
    checkInteger('Generator', 'seed', seed, 0);
  }
  /** The next unused stream; what `seed` and `stream` of {@link randn} take. */
  next(): { seed: number; stream: number } {
    return { seed: this.seed, stream: this.stream++ };
  }
  /** For checkpoints: restore(state()) continues exactly here. */
  state(): { seed: number; stream: number } {
    return { seed: this.seed, stream: this.stream };
  }
  /** Goes where `state` was taken. Throws OptionError on what is no state. */
  restore({ seed, stream }: { seed: number; stream: number }): void {
    checkInteger('Generator.restore', 'seed', seed, 0);
    checkInteger('Generator.restore', 'stream', stream, 0);
    this.seed = seed;
    this.stream = stream;
  }
}

/** The generator that draws without a seed of their own use; one per environment. @internal */
export const defaultGenerator = new Generator();

/**
 * Restarts the default generator, from which weights are initialised and draws without a `seed` are made, at `seed`: an integer from 0 to
 * 2^53 - 1.
 *
 * @throws {OptionError} Another number.
 */
export function manualSeed(seed: number): void {
  defaultGenerator.restore({ seed, stream: 0 });
}

/** Options of {@link rand} and {@link randn}; dtype is f32. */
export type RandomOptions = TensorOptions & Partial<RandomKey>;

const keyNames = ['seed', 'stream', 'firstSample'];
const optionNames = ['dtype', 'device', 'requiresGrad', ...keyNames];

/**
 * Standard normal numbers, f32, from Philox 4x32-10 (Salmon et al., SC 2011): number (i, j) depends on seed, stream, firstSample + i and j alone, on
 * every device. Without `seed` the default generator ({@link manualSeed}) gives the next stream.
 *
 * @throws {ShapeError} What is no shape.
 * @throws {OptionError} An unknown option, a dtype other than f32, a seed, stream or firstSample that is not an integer of at least 0.
 */
export function randn(shape: Shape, options: RandomOptions = {}): Tensor {
  return philox('randn', 1, shape, options);
}

/** Uniform numbers in [0, 1), multiples of 2^-24, f32; otherwise as {@link randn}. */
export function rand(shape: Shape, options: RandomOptions = {}): Tensor {
  return philox('rand', 0, shape, options);
}

function philox(op: string, kind: number, shape: Shape, options: RandomOptions): Tensor {
  checkShape(shape, op);
  checkKeys(op, options, optionNames);
  if (options.dtype !== undefined && options.dtype !== 'f32')
    throw new OptionError(`${op}: makes f32; convert with .to().`);
  const { seed, stream, firstSample } = keyOf(op, options);
  const y = Tensor.empty([...shape], 'f32', options.device, op);
  native.ops.philox(y.id, kind, seed, stream, firstSample);
  if (options.requiresGrad) y.requiresGrad = true;
  return y;
}

/**
 * x with each element dropped with probability p and the others divided by 1 - p, in x's dtype. Draws as {@link randn}.
 *
 * @throws {OptionError} p outside 0 <= p < 1; a key that is none.
 */
export function dropout(x: Tensor, p: number, key: Partial<RandomKey> = {}): Tensor {
  checkFloats('dropout', { x });
  if (!(p >= 0 && p < 1)) throw new OptionError(`dropout: p is ${p}, expected 0 <= p < 1.`);
  if (p === 0) return reshape(x, x.shape);
  const { seed, stream, firstSample } = keyOf('dropout', key);
  return record('dropout', [x], dropoutRaw(x, p, seed, stream, firstSample), [], { p, seed, stream, firstSample });
}

/** Not recorded; also its own gradient. @internal */
export function dropoutRaw(x: Tensor, p: number, seed: number, stream: number, firstSample: number): Tensor {
  const y = Tensor.empty(x.shape, x.dtype, x.device, 'dropout');
  native.ops.dropout(x.id, y.id, p, seed, stream, firstSample);
  return y;
}

function keyOf(op: string, key: Partial<RandomKey>): Required<RandomKey> {
  const { seed, stream, firstSample } = {
    firstSample: 0,
    ...(key.seed === undefined ? defaultGenerator.next() : { seed: key.seed, stream: key.stream ?? 0 }),
    ...(key.firstSample === undefined ? {} : { firstSample: key.firstSample }),
  };
  checkInteger(op, 'seed', seed, 0);
  checkInteger(op, 'stream', stream, 0);
  checkInteger(op, 'firstSample', firstSample, 0);
  return { seed, stream, firstSample };
}
