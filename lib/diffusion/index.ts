/** diffusion: formulations, losses, samplers. Models come in as functions. */
export {
  denoise,
  type EdmLossOptions,
  type EdmNetwork,
  edmLoss,
  edmSigmas,
  type SampleEdmOptions,
  sampleEdm,
} from './edm.js';
export type { SamplerStep } from './sampler.js';
