/** DDIM (Song et al. 2021, arXiv 2010.02502, Eq. 12): deterministic for eta 0, ancestral sampling's variance for eta 1. */
import { parseOptions } from '../options.js';
import type { Tensor } from '../tensor.js';
import type { GaussianNetwork } from './gaussian.js';
import {
  ddimSchema,
  type GaussianSamplerOptions,
  type GaussianState,
  gaussianStep,
  sampleGaussian,
} from './gaussian-sampler.js';
import type { Advance, SamplerStep } from './sampler.js';

/** Options of {@link sampleDdim}. */
export interface SampleDdimOptions extends GaussianSamplerOptions {
  /** Noise on the way, from 0, none and deterministic, to 1, as much as ancestral sampling. Default 0. */
  eta?: number;
}

/**
 * DDIM (Song et al. 2021, Eq. 12): from standard normal noise [B, C, H, W] to images or latents, through every timestep of `ddpm` ("ddim50" is the usual
 * respacing). Yields after every step; the yielded tensors live until the next iteration (detach() them to keep); the
 * last `sample` belongs to the caller. Rejects with the signal's reason when aborted; nothing stays allocated. Errors come with the first
 * iteration.
 *
 * @throws {OptionError} An option that is missing, unknown or out of range; guidance without labels or of a network without a null class.
 * @throws {ShapeError} Noise, labels or an output of the network of another shape.
 */
export async function* sampleDdim(
  network: GaussianNetwork,
  noise: Tensor,
  options: SampleDdimOptions,
): AsyncGenerator<SamplerStep> {
  const { eta, ...settings } = parseOptions(ddimSchema, options, 'sampleDdim');
  yield* sampleGaussian('sampleDdim', network, noise, settings, (state) => ddimStep(state, eta));
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
