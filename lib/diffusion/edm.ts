/**
 * EDM (Karras et al. 2022, arXiv 2206.00364): preconditioning (Table 1, right column), the training loss, the noise
 * schedule (Eq. 5) and the 2nd-order Heun sampler with churn (Algorithm 2). Images are NCHW; sigma is per sample.
 */
import { OptionError } from '../errors.js';
import { guidanceScale, guide } from '../nn/guidance.js';
import { affine, linearCombination, mul, sub, unary } from '../ops/elementwise.js';
import { concat, reshape, slice } from '../ops/index.js';
import { randn } from '../ops/random.js';
import { mean } from '../ops/reduce.js';
import { noGrad, scope } from '../scope.js';
import { full, type Tensor } from '../tensor.js';
import { type Advance, runSampler, type SamplerStep } from './sampler.js';

/** A raw network F(c_in x; c_noise, labels): [B, C, H, W], [B], [B] -> [B, C, H, W]. */
export interface EdmNetwork {
  /** The label that stands for no class, if the network knows one: what guidance needs. */
  readonly nullClass?: number;
  forward(x: Tensor, cNoise: Tensor, labels?: Tensor): Tensor;
}

/** Standard deviation of the training data; 0.5 for images in [-1, 1]. */
const defaultSigmaData = 0.5;

/** The denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise). x [B, C, H, W], sigma [B]. */
export function denoise(
  network: EdmNetwork,
  x: Tensor,
  sigma: Tensor,
  { labels, sigmaData = defaultSigmaData }: { labels?: Tensor; sigmaData?: number } = {},
): Tensor {
  return scope(() => {
    const { cSkip, cOut, cIn, cNoise } = noGrad(() => precondition(sigma, sigmaData));
    const f = network.forward(mul(x, perSample(cIn)), cNoise, labels);
    return mul(x, perSample(cSkip)).add(mul(f, perSample(cOut)));
  });
}

/** The scalings of Table 1, each [B]. */
function precondition(sigma: Tensor, sd: number): Record<'cSkip' | 'cOut' | 'cIn' | 'cNoise', Tensor> {
  const total = affine(sigma.square(), 1, sd * sd);
  const norm = unary('rsqrt', total);
  return {
    // Not norm^2: at low noise D - y is a small difference, and shows every rounding of c_skip.
    cSkip: affine(unary('reciprocal', total), sd * sd, 0),
    cOut: affine(mul(sigma, norm), sd, 0),
    cIn: norm,
    cNoise: affine(sigma.log(), 0.25, 0),
  };
}

/** Options of {@link edmLoss}. */
export interface EdmLossOptions {
  /** Standard normal numbers [B] that choose sigma: ln(sigma) = pMean + pStd rndNormal. */
  rndNormal: Tensor;
  /** Standard normal noise, shape of the images. */
  noise: Tensor;
  /** i64 [B], for a class-conditional network. */
  labels?: Tensor;
  /** Default -1.2. */
  pMean?: number;
  /** Default 1.2. */
  pStd?: number;
  /** Default 0.5. */
  sigmaData?: number;
}

/**
 * Weighted denoising loss (s^2 + sd^2) / (s sd)^2 |D(y + s n; s) - y|^2 of images y [B, C, H, W] in [-1, 1].
 * Returns the mean over all elements (a scalar to call backward() on) and per sample [B].
 */
export function edmLoss(
  network: EdmNetwork,
  images: Tensor,
  options: EdmLossOptions,
): { loss: Tensor; perSample: Tensor } {
  const { rndNormal, noise, labels, pMean = -1.2, pStd = 1.2, sigmaData = defaultSigmaData } = options;
  return scope(() => {
    const { sigma, noisy, weight } = noGrad(() => {
      const s = affine(rndNormal, pStd, pMean).exp();
      const w = affine(unary('reciprocal', s.square()), 1, 1 / sigmaData ** 2); // = (s^2 + sd^2) / (s sd)^2
      return { sigma: s, noisy: images.add(mul(noise, perSample(s))), weight: w };
    });
    const error = sub(denoise(network, noisy, sigma, { labels, sigmaData }), images);
    const perImage = mul(mean(error.square(), [1, 2, 3]), weight);
    return { loss: perImage.mean(), perSample: perImage.detach() };
  });
}

/** sigma_0 = sigmaMax, ..., sigma_(steps-1) = sigmaMin, and a final 0 (Eq. 5). */
export function edmSigmas(steps: number, sigmaMin = 0.002, sigmaMax = 80, rho = 7): number[] {
  if (!Number.isInteger(steps) || steps < 1)
    throw new OptionError(`edmSigmas: steps is ${steps}, expected an integer of at least 1.`);
  if (!(sigmaMin > 0 && sigmaMax > sigmaMin)) {
    throw new OptionError(`edmSigmas: expected 0 < sigmaMin < sigmaMax, got ${sigmaMin} and ${sigmaMax}.`);
  }
  if (!(rho > 0)) throw new OptionError(`edmSigmas: rho is ${rho}, expected a number above 0.`);
  const [high, low] = [sigmaMax ** (1 / rho), sigmaMin ** (1 / rho)];
  return [...Array.from({ length: steps }, (_, i) => (high + (i / Math.max(steps - 1, 1)) * (low - high)) ** rho), 0];
}

/** Options of {@link sampleEdm}. */
export interface SampleEdmOptions {
  /** Noise levels; each costs two network evaluations but the last. Default 18. */
  steps?: number;
  /** i64 [B], for a class-conditional network. */
  labels?: Tensor;
  /** Classifier-free guidance: D = D_null + cfgScale (D_label - D_null). Default 1: none, at half the cost. */
  cfgScale?: number;
  sigmaMin?: number;
  sigmaMax?: number;
  rho?: number;
  sigmaData?: number;
  /** S_churn: noise added back on the way, over all steps. Default 0: deterministic. */
  churn?: number;
  /** S_min, S_max: noise levels between which churn acts. Defaults 0 and infinity. */
  sMin?: number;
  sMax?: number;
  /** S_noise: standard deviation of the added noise. Default 1. */
  sNoise?: number;
  /** Seed of the churn noise; step i draws stream i + 1 (the initial noise is stream 0). Default 0. */
  seed?: number;
  /** Index of the batch's first image, so that its churn noise does not depend on the batch. Default 0. */
  firstSample?: number;
  /** Draws the churn noise of a step; default Philox from `seed`. */
  churnNoise?: (step: number) => Tensor;
  signal?: AbortSignal;
}

/**
 * Algorithm 2: from standard normal noise [B, C, H, W] to images in [-1, 1]. Yields after every step; the yielded
 * tensors live until the next iteration (detach() them to keep); the last `sample` belongs to the caller.
 * Rejects with the signal's reason when aborted; nothing stays allocated.
 */
export async function* sampleEdm(
  network: EdmNetwork,
  noise: Tensor,
  options: SampleEdmOptions = {},
): AsyncGenerator<SamplerStep> {
  const { steps = 18, sigmaMin, sigmaMax, rho, churn = 0, sMin = 0, sMax = Number.POSITIVE_INFINITY, signal } = options;
  const { cfgScale = 1 } = options;
  const denoiser = cfgScale === 1 ? network : guided(network, cfgScale);
  const sigmas = edmSigmas(steps, sigmaMin, sigmaMax, rho);
  const step = (x: Tensor, i: number): Advance => {
    const gamma = sigmas[i] >= sMin && sigmas[i] <= sMax ? Math.min(churn / steps, Math.SQRT2 - 1) : 0;
    return heunStep(denoiser, x, sigmas[i], sigmas[i + 1], gamma, i, options);
  };
  yield* runSampler(() => affine(noise, sigmas[0], 0), steps, step, signal);
}

/** One step from sigma to the next level; the last one (to 0) is Euler's. */
function heunStep(
  network: EdmNetwork,
  x: Tensor,
  sigma: number,
  next: number,
  gamma: number,
  step: number,
  options: SampleEdmOptions,
): Advance {
  const { labels, sigmaData, sNoise = 1, seed = 0, firstSample = 0 } = options;
  const { churnNoise = (i) => randn(x.shape, { seed, stream: i + 1, firstSample, device: x.device }) } = options;
  const level = (s: number): Tensor => full([x.shape[0]], s, { device: x.device });
  const hat = sigma + gamma * sigma;
  const raised = Math.sqrt(hat * hat - sigma * sigma) * sNoise;
  const xHat =
    gamma > 0
      ? linearCombination([
          [1, x],
          [raised, churnNoise(step)],
        ])
      : x;
  const denoised = denoise(network, xHat, level(hat), { labels, sigmaData });
  // x + (next - hat) d with d = (x - D) / hat
  const ratio = (next - hat) / hat;
  const euler = linearCombination([
    [1 + ratio, xHat],
    [-ratio, denoised],
  ]);
  if (next === 0) return { sample: euler, denoised };
  const corrected = denoise(network, euler, level(next), { labels, sigmaData });
  // x + (next - hat) (d / 2 + d' / 2) with d' = (euler - D') / next
  const [half, halfNext] = [ratio / 2, (next - hat) / (2 * next)];
  const first = linearCombination([
    [1 + half, xHat],
    [-half, denoised],
  ]);
  return {
    sample: linearCombination([
      [1, first],
      [halfNext, euler],
      [-halfNext, corrected],
    ]),
    denoised,
  };
}

/**
 * The network under guidance. D is linear in F with coefficients of the noise level alone, so guiding F guides D.
 * Both halves run as one batch. Throws OptionError unless the network has a null class and gets labels.
 */
function guided(network: EdmNetwork, cfgScale: number): EdmNetwork {
  const { nullClass } = network;
  if (nullClass === undefined) {
    throw new OptionError('cfgScale needs a model with a null class: train it with classDropoutProb above 0.');
  }
  return {
    forward(x, cNoise, labels) {
      if (!labels) throw new OptionError('cfgScale needs labels.');
      const batch = x.shape[0];
      const nullLabels = full(labels.shape, nullClass, { dtype: 'i64', device: x.device });
      const f = network.forward(concat([x, x], 0), concat([cNoise, cNoise], 0), concat([labels, nullLabels], 0));
      const scale = guidanceScale(cNoise, { cfgScale });
      return guide(slice(f, 0, 0, batch), slice(f, 0, batch, 2 * batch), scale, f.shape[1]);
    },
  };
}

/** [B] -> [B, 1, 1, 1]. */
function perSample(x: Tensor): Tensor {
  return reshape(x, [x.size, 1, 1, 1]);
}
