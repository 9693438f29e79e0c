/** Ancestral sampling (Ho et al. 2020, Algorithm 2) with the learned variance (Nichol & Dhariwal 2021). */
import type { Tensor } from '../tensor.js';
import type { GaussianNetwork } from './gaussian.js';
import { type GaussianSamplerOptions, type GaussianState, gaussianStep, sampleGaussian } from './gaussian-sampler.js';
import type { Advance, SamplerStep } from './sampler.js';

/**
 * From standard normal noise [B, C, H, W] to images or latents, through every timestep of `ddpm` ("250" is the usual
 * respacing). Yields after every step; the yielded tensors live until the next iteration (detach() them to keep); the
 * last `sample` belongs to the caller. Rejects with the signal's reason when aborted; nothing stays allocated.
 */
export async function* sampleDdpm(
  network: GaussianNetwork,
  noise: Tensor,
  options: GaussianSamplerOptions,
): AsyncGenerator<SamplerStep> {
  yield* sampleGaussian('sampleDdpm', network, noise, options, ddpmStep);
}

/** x_(t-1) ~ p(x_(t-1) | x_t); its mean at t = 0. */
export function ddpmStep(state: GaussianState): Advance {
  const { ddpm, t, noise } = state;
  return gaussianStep(state, {
    next: [ddpm.posteriorMeanCoef2[t], ddpm.posteriorMeanCoef1[t]],
    noise: t === 0 ? undefined : { ...ddpm.deviation(t), from: noise() },
  });
}
