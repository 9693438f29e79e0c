/** diffusion: formulations, losses, samplers. Models come in as functions. */
export { type Augmented, Augmenter } from './augment.js';
export type { AugmentDraw, AugmentOptions } from './augment-draw.js';
export { type SampleDdimOptions, sampleDdim } from './ddim.js';
export { sampleDdpm } from './ddpm.js';
export { sampleDpmSolver } from './dpm-solver.js';
export {
  type DenoiseOptions,
  denoise,
  type EdmLoss,
  type EdmLossOptions,
  type EdmNetwork,
  edmLoss,
  edmSigmas,
  type SampleEdmOptions,
  sampleEdm,
} from './edm.js';
export {
  type ClipOptions,
  GaussianDiffusion,
  type GaussianDiffusionOptions,
  type GaussianNetwork,
  type ModelDistribution,
  type Posterior,
  type SteppedNetwork,
  type Timestep,
  type TrainingLosses,
  type TrainingLossOptions,
  type Weighting,
} from './gaussian.js';
export type { GaussianSamplerOptions } from './gaussian-sampler.js';
export type { SamplerStep } from './sampler.js';
export { cosineBetas, linearBetas, minSnrWeights, respace } from './schedule.js';
export {
  type LossSecondMomentOptions,
  type LossSecondMomentState,
  LossSecondMomentTimesteps,
  type TimestepDraw,
  type TimestepSamplerOptions,
  UniformTimesteps,
} from './timestep-samplers.js';
