/** Learning rates as plain functions of progress, counted in whatever unit the caller counts in: images or steps. */
import { OptionError } from '../errors.js';

/** Learning rate at `progress` (images or steps done so far, from 0). */
export type LrSchedule = (progress: number) => number;

/** `lr` throughout. */
export function constantLr(lr: number): LrSchedule {
  check('lr', lr);
  return () => lr;
}

/**
 * Rises linearly from 0 to `lr` over `length` (0: at once), then stays: EDM's ramp over images, or a warm-up. With
 * `decay` [from, to] it falls along a half cosine between these two, to `final` (default 0).
 */
export function rampLr(
  lr: number,
  length: number,
  { decay, final = 0 }: { decay?: readonly [number, number]; final?: number } = {},
): LrSchedule {
  check('lr', lr);
  check('length', length);
  const fall = decay && cosineLr(lr, decay[1] - decay[0], { final });
  return (progress) => (fall ? fall(progress - decay[0]) : lr) * warmUp(progress, length);
}

/** Falls from `lr` to `final` (default 0) along a half cosine over `length`, after an optional linear rise over `warmup`. */
export function cosineLr(lr: number, length: number, { warmup = 0, final = 0 } = {}): LrSchedule {
  check('lr', lr);
  check('length', length);
  check('warmup', warmup);
  check('final', final);
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
