/** Optimizers, gradient clipping, moving averages of weights, learning-rate schedules. */
export { Adam, type AdamOptions, type AdamState, AdamW, type StepOptions } from './adam.js';
export { type ClippedNorm, clipGradNorm, squareSum } from './clip.js';
export { type EdmEmaOptions, Ema, edmEmaDecay } from './ema.js';
export type { Parameters } from './parameters.js';
export {
  type CosineLrOptions,
  constantLr,
  cosineLr,
  type LrSchedule,
  type RampLrOptions,
  rampLr,
} from './schedules.js';
