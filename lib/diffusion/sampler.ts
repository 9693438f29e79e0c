/** What every sampler yields: sampleX(model, noise, options) is an async iterable of these. */
import type { Tensor } from '../tensor.js';

export interface SamplerStep {
  /** 1 after the first step, `steps` after the last. */
  step: number;
  steps: number;
  /** The state after this step, shape of the noise; after the last step the image. */
  sample: Tensor;
  /** The model's current idea of the clean image: a preview. */
  denoised: Tensor;
}
