/** Learning rates as plain functions of progress, counted in whatever unit the caller counts in: images or steps. */
import { OptionError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';

/** Learning rate at `progress` (images or steps done so far, from 0). */
export type LrSchedule = (progress: number) => number;

/** `lr` throughout. Throws OptionError for one below 0. */
export function constantLr(lr: number): LrSchedule {
  check('lr', lr);
  return () => lr;
}

/** Options of {@link rampLr}. */
export interface RampLrOptions {
  /** `[from, to]`: progress between which the rate falls along a half cosine. Default: it stays. */
  decay?: readonly [from: number, to: number];
  /** What it falls to. Default 0. */
  final?: number;
}

/** Options of {@link cosineLr}. */
export interface CosineLrOptions {
  /** Progress over which the rate first rises linearly from 0. Default 0: it starts at the top. */
  warmup?: number;
  /** What it falls to. Default 0. */
  final?: number;
}

const rampSchema = schema((z, is) =>
  z.strictObject({
    decay: z
      .tuple([is.atLeastZero, is.atLeastZero])
      .refine(([from, to]) => from < to, 'expected [from, to] with from below to')
      .optional(),
    final: is.atLeastZero.default(0),
  } satisfies Fields<RampLrOptions>),
);
const cosineSchema = schema((z, is) =>
  z.strictObject({
    warmup: is.atLeastZero.default(0),
    final: is.atLeastZero.default(0),
  } satisfies Fields<CosineLrOptions>),
);

/**
 * Rises linearly from 0 to `lr` over `length` (0: at once), then stays: EDM's ramp over images, or a warm-up. With
 * `decay` [from, to] it falls along a half cosine between these two, to `final` (default 0).
 *
 * @throws {OptionError} A rate or length below 0; an option that is unknown or out of range.
 */
export function rampLr(lr: number, length: number, options: RampLrOptions = {}): LrSchedule {
  const { decay, final } = parseOptions(rampSchema, options, 'rampLr');
  check('lr', lr);
  check('length', length);
  const fall = decay && cosineLr(lr, decay[1] - decay[0], { final });
  return (progress) => (fall ? fall(progress - decay[0]) : lr) * warmUp(progress, length);
}

/**
 * Falls from `lr` to `final` (default 0) along a half cosine over `length`; over the first `warmup` of it, times a linear rise from 0 (Loshchilov &
 * Hutter, arXiv 1608.03983, without restarts).
 *
 * @throws {OptionError} A rate or length below 0; an option that is unknown or out of range.
 */
export function cosineLr(lr: number, length: number, options: CosineLrOptions = {}): LrSchedule {
  const { warmup, final } = parseOptions(cosineSchema, options, 'cosineLr');
  check('lr', lr);
  check('length', length);
  return (progress) => {
    const done = length > 0 ? Math.min(Math.max(progress / length, 0), 1) : 1;
    return (final + ((lr - final) * (1 + Math.cos(Math.PI * done))) / 2) * warmUp(progress, warmup);
  };
}

function warmUp(progress: number, length: number): number {
  return length > 0 ? Math.min(progress / length, 1) : 1;
}

function check(name: string, value: number): void {
  if (!(value >= 0 && value < Number.POSITIVE_INFINITY)) {
    throw new OptionError(`Learning rate schedule: ${name} is ${value}, expected a number of at least 0.`);
  }
}
