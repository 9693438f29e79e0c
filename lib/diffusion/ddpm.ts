/** Ancestral sampling (Ho et al. 2020, Algorithm 2) with the learned variance (Nichol & Dhariwal 2021). */
import { parseOptions } from '../options.js';
import type { Tensor } from '../tensor.js';
import type { GaussianNetwork } from './gaussian.js';
import {
  type GaussianSamplerOptions,
  type GaussianState,
  gaussianSchema,
  gaussianStep,
  sampleGaussian,
} from './gaussian-sampler.js';
import type { Advance, SamplerStep } from './sampler.js';

/**
 * Ancestral sampling (Ho et al. 2020, Algorithm 2): from standard normal noise [B, C, H, W] to images or latents, through every timestep of `ddpm` ("250" is the usual
 * respacing). Yields after every step; the yielded tensors live until the next iteration (detach() them to keep); the
 * last `sample` belongs to the caller. Rejects with the signal's reason when aborted; nothing stays allocated. Errors come with the first
 * iteration.
 *
 * @throws {OptionError} An option that is missing, unknown or out of range; guidance without labels or of a network without a null class.
 * @throws {ShapeError} Noise, labels or an output of the network of another shape.
 */
export async function* sampleDdpm(
  network: GaussianNetwork,
  noise: Tensor,
  options: GaussianSamplerOptions,
): AsyncGenerator<SamplerStep> {
  yield* sampleGaussian('sampleDdpm', network, noise, parseOptions(gaussianSchema, options, 'sampleDdpm'), ddpmStep);
}

/** x_(t-1) ~ p(x_(t-1) | x_t); its mean at t = 0. */
export function ddpmStep(state: GaussianState): Advance {
  const { ddpm, t, noise } = state;
  return gaussianStep(state, {
    next: [ddpm.posteriorMeanCoef2[t], ddpm.posteriorMeanCoef1[t]],
    noise: t === 0 ? undefined : { ...ddpm.deviation(t), from: noise() },
  });
}
