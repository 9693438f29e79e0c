/**
 * DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Algorithm 2): the probability-flow ODE of the predicted clean image,
 * solved over lambda = ln(alpha / sigma), second order from the predictions of two neighbouring steps.
 */
import { parseOptions } from '../options.js';
import type { Tensor } from '../tensor.js';
import type { GaussianDiffusion, GaussianNetwork } from './gaussian.js';
import {
  type GaussianSamplerOptions,
  type GaussianState,
  gaussianSchema,
  gaussianStep,
  sampleGaussian,
} from './gaussian-sampler.js';
import type { Advance, SamplerStep } from './sampler.js';

/**
 * DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): from standard normal noise [B, C, H, W] to images or latents; deterministic. The network is evaluated once at every
 * timestep of `ddpm`, so its respacing is the choice of timesteps: "20" spreads 20 of them evenly in time over all of
 * 0 .. steps - 1, both ends included, which suits latents. Of first order are the first step, which has no earlier
 * prediction, the last one, from timestep 0 to the clean image (lambda is infinite there: the step returns the
 * prediction), and the one before, into timestep 0: lambda leaps there, and extrapolating over the leap costs more than it
 * gains. Draws no noise: seed, firstSample and stepNoise have no effect.
 *
 * Yields after every step; the yielded tensors live until the next iteration (detach() them to keep); the last `sample`
 * belongs to the caller. Rejects with the signal's reason when aborted; nothing stays allocated. Errors come with the first
 * iteration.
 *
 * @throws {OptionError} An option that is missing, unknown or out of range; guidance without labels or of a network without a null class.
 * @throws {ShapeError} Noise, labels or an output of the network of another shape.
 */
export async function* sampleDpmSolver(
  network: GaussianNetwork,
  noise: Tensor,
  options: GaussianSamplerOptions,
): AsyncGenerator<SamplerStep> {
  const settings = parseOptions(gaussianSchema, options, 'sampleDpmSolver');
  yield* sampleGaussian('sampleDpmSolver', network, noise, settings, dpmSolverStep);
}

/** x_(t-1) = sigma_(t-1) / sigma_t x - alpha_(t-1) (e^-h - 1) D, D the prediction, extrapolated where there are two. */
export function dpmSolverStep(state: GaussianState): Advance {
  const { ddpm, t, previous } = state;
  const [a, aPrev] = [ddpm.alphasCumprod[t], ddpm.alphasCumprodPrev[t]];
  const h = lambda(ddpm, t - 1) - lambda(ddpm, t);
  const gain = -Math.sqrt(aPrev) * Math.expm1(-h);
  const fromX = Math.sqrt((1 - aPrev) / (1 - a));
  if (!previous || t <= 1) return gaussianStep(state, { next: [fromX, gain] });
  const extrapolation = h / (2 * (lambda(ddpm, t) - lambda(ddpm, t + 1))); // 1 / (2 r)
  return gaussianStep(state, {
    next: [fromX, gain * (1 + extrapolation)],
    plus: [[-gain * extrapolation, previous]],
  });
}

/** ln(alpha / sigma) at timestep index t; infinite for the clean image, t = -1. */
function lambda({ alphasCumprod }: GaussianDiffusion, t: number): number {
  return t < 0 ? Number.POSITIVE_INFINITY : Math.log(alphasCumprod[t] / (1 - alphasCumprod[t])) / 2;
}
