/**
 * Random tensors from Philox 4x32-10, a counter-based generator: a number depends only on (seed, stream, sample,
 * element), so the same seed gives the same noise on every device, at any batch size and any thread count.
 */
import { OptionError } from '../errors.js';
import { native } from '../native.js';
import { checkShape, type Shape } from '../shape.js';
import { record } from '../tape.js';
import { Tensor, type TensorOptions } from '../tensor.js';
import { checkFloats, checkInteger } from './check.js';
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

/** Deals out streams of one seed, one per draw. */
export class Generator {
  private stream = 0;
  constructor(private seed = 0) {
    checkInteger('Generator', 'seed', seed, 0);
  }
  /** The next unused stream. */
  next(): { seed: number; stream: number } {
    return { seed: this.seed, stream: this.stream++ };
  }
  /** For checkpoints: restore(state()) continues exactly here. */
  state(): { seed: number; stream: number } {
    return { seed: this.seed, stream: this.stream };
  }
  restore({ seed, stream }: { seed: number; stream: number }): void {
    checkInteger('Generator.restore', 'seed', seed, 0);
    checkInteger('Generator.restore', 'stream', stream, 0);
    this.seed = seed;
    this.stream = stream;
  }
}

/** The generator that draws without a seed of their own use; one per environment. */
export const defaultGenerator = new Generator();

/** Restarts the default generator at `seed`. */
export function manualSeed(seed: number): void {
  defaultGenerator.restore({ seed, stream: 0 });
}

export type RandomOptions = TensorOptions & Partial<RandomKey>;

/** Standard normal numbers, f32. Without `seed` the default generator gives the next stream. */
export function randn(shape: Shape, options: RandomOptions = {}): Tensor {
  return philox('randn', 1, shape, options);
}

/** Uniform numbers in [0, 1), f32. */
export function rand(shape: Shape, options: RandomOptions = {}): Tensor {
  return philox('rand', 0, shape, options);
}

function philox(op: string, kind: number, shape: Shape, options: RandomOptions): Tensor {
  checkShape(shape, op);
  if (options.dtype !== undefined && options.dtype !== 'f32')
    throw new OptionError(`${op}: makes f32; convert with .to().`);
  const { seed, stream, firstSample } = keyOf(op, options);
  const y = Tensor.empty([...shape], 'f32', options.device);
  native.ops.philox(y.id, kind, seed, stream, firstSample);
  if (options.requiresGrad) y.requiresGrad = true;
  return y;
}

/** x with each element dropped with probability p and the others divided by 1 - p, in x's dtype. */
export function dropout(x: Tensor, p: number, key: Partial<RandomKey> = {}): Tensor {
  checkFloats('dropout', { x });
  if (!(p >= 0 && p < 1)) throw new OptionError(`dropout: p is ${p}, expected 0 <= p < 1.`);
  if (p === 0) return reshape(x, x.shape);
  const { seed, stream, firstSample } = keyOf('dropout', key);
  return record('dropout', [x], dropoutRaw(x, p, seed, stream, firstSample), [], { p, seed, stream, firstSample });
}

/** Not recorded; also its own gradient. @internal */
export function dropoutRaw(x: Tensor, p: number, seed: number, stream: number, firstSample: number): Tensor {
  const y = Tensor.empty(x.shape, x.dtype, x.device);
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
