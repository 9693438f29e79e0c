/** DDIM (Song et al. 2021, arXiv 2010.02502, Eq. 12): deterministic for eta 0, ancestral sampling's variance for eta 1. */
import { OptionError } from '../errors.js';
import type { Tensor } from '../tensor.js';
import type { GaussianNetwork } from './gaussian.js';
import { type GaussianSamplerOptions, type GaussianState, gaussianStep, sampleGaussian } from './gaussian-sampler.js';
import type { Advance, SamplerStep } from './sampler.js';

/** Options of {@link sampleDdim}. */
export interface SampleDdimOptions extends GaussianSamplerOptions {
  /** From 0, no noise on the way, to 1. Default 0. */
  eta?: number;
}

/**
 * From standard normal noise [B, C, H, W] to images or latents, through every timestep of `ddpm` ("ddim50" is the usual
 * respacing). Yields after every step; the yielded tensors live until the next iteration (detach() them to keep); the
 * last `sample` belongs to the caller. Rejects with the signal's reason when aborted; nothing stays allocated.
 */
export async function* sampleDdim(
  network: GaussianNetwork,
  noise: Tensor,
  options: SampleDdimOptions,
): AsyncGenerator<SamplerStep> {
  const { eta = 0 } = options;
  if (!(eta >= 0 && eta <= 1)) throw new OptionError(`sampleDdim: eta is ${eta}, expected a number from 0 to 1.`);
  yield* sampleGaussian('sampleDdim', network, noise, options, (state) => ddimStep(state, eta));
}

/** One step; eps is computed again from the predicted clean image, so that clamping that one acts on both. */
export function ddimStep(state: GaussianState, eta: number): Advance {
  const { ddpm, t, noise } = state;
  const [a, aPrev] = [ddpm.alphasCumprod[t], ddpm.alphasCumprodPrev[t]];
  const sigma = eta * Math.sqrt(((1 - aPrev) / (1 - a)) * (1 - a / aPrev));
  // x_(t-1) = sqrt(aPrev) x0 + direction eps + sigma noise, with eps = (x - sqrt(a) x0) / sqrt(1 - a)
  const direction = Math.sqrt(Math.max(1 - aPrev - sigma * sigma, 0) / (1 - a));
  return gaussianStep(state, {
    next: [direction, Math.sqrt(aPrev) - direction * Math.sqrt(a)],
    noise: sigma > 0 ? { sigma, from: noise() } : undefined,
  });
}
