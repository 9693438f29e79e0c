/**
 * EDM (Karras et al. 2022, arXiv 2206.00364): preconditioning (Table 1, right column), the training loss, the noise
 * schedule (Eq. 5) and the 2nd-order Heun sampler with churn (Algorithm 2). Images are NCHW; sigma is per sample.
 */
import { OptionError } from '../errors.js';
import { replayed } from '../graph.js';
import { guidanceScaleAt } from '../nn/guidance.js';
import { affine, mul, sub, unary } from '../ops/elementwise.js';
import { concat, reshape } from '../ops/index.js';
import { mean } from '../ops/reduce.js';
import { type Guidance, samplerStep } from '../ops/sampler.js';
import { type Fields, type Output, parseOptions, schema } from '../options.js';
import { keep, noGrad, scope } from '../scope.js';
import { full, type Tensor } from '../tensor.js';
import { type Advance, runSampler, type SamplerStep } from './sampler.js';

/** A raw network F(c_in x; c_noise, labels): [B, C, H, W], [B], [B] -> [B, C, H, W]. */
export interface EdmNetwork {
  /** The label that stands for no class, if the network knows one: what guidance needs. */
  readonly nullClass?: number;
  /**
   * x [B, C, H, W] scaled by c_in, cNoise = ln(sigma) / 4 [B], labels i64 [B] -> [B, C, H, W]. augment [B, 9]: how the images were augmented, in
   * training with `diffusion.Augmenter`; it is never given otherwise.
   */
  forward(x: Tensor, cNoise: Tensor, labels?: Tensor, augment?: Tensor): Tensor;
}

/** Standard deviation of the training data; 0.5 for images in [-1, 1]. */
const defaultSigmaData = 0.5;

/** Options of {@link denoise}. */
export interface DenoiseOptions {
  /** i64 [B], for a class-conditional network. */
  labels?: Tensor;
  /** [B, 9] of {@link Augmenter}, for a network that takes them. */
  augment?: Tensor;
  /** Standard deviation of the training data. Default 0.5. */
  sigmaData?: number;
}

const denoiseSchema = schema((z, is) =>
  z.strictObject({
    labels: is.tensor<Tensor>().optional(),
    augment: is.tensor<Tensor>().optional(),
    sigmaData: z.number().positive().default(defaultSigmaData),
  } satisfies Fields<DenoiseOptions>),
);

/**
 * The denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (Karras et al. 2022, Eq. 7 and Table 1). x [B, C, H, W], sigma [B] -> [B, C, H, W].
 *
 * @throws {OptionError} An option that is unknown or out of range.
 */
export function denoise(network: EdmNetwork, x: Tensor, sigma: Tensor, options: DenoiseOptions = {}): Tensor {
  const { labels, augment, sigmaData } = parseOptions(denoiseSchema, options, 'denoise');
  return scope(() => {
    const { cSkip, cOut, cIn, cNoise } = noGrad(() => precondition(sigma, sigmaData));
    const f = network.forward(mul(x, perSample(cIn)), cNoise, labels, augment);
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

/** The same for one level. */
function scalings(sigma: number, sd: number): Record<'cSkip' | 'cOut' | 'cIn' | 'cNoise', number> {
  const total = sigma * sigma + sd * sd;
  const cIn = 1 / Math.sqrt(total);
  return { cSkip: (sd * sd) / total, cOut: sigma * sd * cIn, cIn, cNoise: Math.log(sigma) / 4 };
}

/** Options of {@link edmLoss}. */
export interface EdmLossOptions {
  /** Standard normal numbers [B] that choose sigma: ln(sigma) = pMean + pStd rndNormal. */
  rndNormal: Tensor;
  /** Standard normal noise, shape of the images. */
  noise: Tensor;
  /** i64 [B], for a class-conditional network. */
  labels?: Tensor;
  /** [B, 9] of {@link Augmenter}, where it made the images. */
  augment?: Tensor;
  /** P_mean: mean of ln(sigma). Default -1.2. */
  pMean?: number;
  /** P_std: standard deviation of ln(sigma). Default 1.2. */
  pStd?: number;
  /** Standard deviation of the training data. Default 0.5. */
  sigmaData?: number;
}

const lossSchema = schema((z, is) =>
  z.strictObject({
    rndNormal: is.tensor<Tensor>(),
    noise: is.tensor<Tensor>(),
    labels: is.tensor<Tensor>().optional(),
    augment: is.tensor<Tensor>().optional(),
    pMean: z.number().default(-1.2),
    pStd: z.number().positive().default(1.2),
    sigmaData: z.number().positive().default(defaultSigmaData),
  } satisfies Fields<EdmLossOptions>),
);

/** What {@link edmLoss} returns. */
export interface EdmLoss {
  /** The mean over all elements, a scalar to call backward() on. */
  loss: Tensor;
  /** The loss of each sample [B], detached. */
  perSample: Tensor;
}

/**
 * Weighted denoising loss (s^2 + sd^2) / (s sd)^2 |D(y + s n; s) - y|^2 of images y [B, C, H, W] in [-1, 1] (Karras et al. 2022, Eq. 8 and
 * Table 1).
 *
 * @throws {OptionError} An option that is missing, unknown or out of range.
 */
export function edmLoss(network: EdmNetwork, images: Tensor, options: EdmLossOptions): EdmLoss {
  const { rndNormal, noise, labels, augment, pMean, pStd, sigmaData } = parseOptions(lossSchema, options, 'edmLoss');
  return scope(() => {
    const { sigma, noisy, weight } = noGrad(() => {
      const s = affine(rndNormal, pStd, pMean).exp();
      const w = affine(unary('reciprocal', s.square()), 1, 1 / sigmaData ** 2); // = (s^2 + sd^2) / (s sd)^2
      return { sigma: s, noisy: images.add(mul(noise, perSample(s))), weight: w };
    });
    const error = sub(denoise(network, noisy, sigma, { labels, augment, sigmaData }), images);
    const perImage = mul(mean(error.square(), [1, 2, 3]), weight);
    return { loss: perImage.mean(), perSample: perImage.detach() };
  });
}

/**
 * sigma_0 = sigmaMax, ..., sigma_(steps-1) = sigmaMin, and a final 0: steps + 1 noise levels (Karras et al. 2022, Eq. 5).
 *
 * @throws {OptionError} Steps that are no integer of at least 1; unless sigmaMin is above 0 and below sigmaMax, and rho above 0.
 */
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
  /** Lowest noise level above 0. Default 0.002. */
  sigmaMin?: number;
  /** Highest noise level. Default 80. */
  sigmaMax?: number;
  /** Exponent of the schedule: how much denser the levels are at low noise. Default 7. */
  rho?: number;
  /** Standard deviation of the training data. Default 0.5. */
  sigmaData?: number;
  /** S_churn: noise added back on the way, over all steps. Default 0: deterministic. */
  churn?: number;
  /** S_min: lowest noise level at which churn acts. Default 0. */
  sMin?: number;
  /** S_max: highest noise level at which churn acts. Default Infinity. */
  sMax?: number;
  /** S_noise: standard deviation of the added noise. Default 1. */
  sNoise?: number;
  /** Seed of the churn noise; step i draws stream i + 1 (the initial noise is stream 0). Default 0. */
  seed?: number;
  /** Index of the batch's first image, so that its churn noise does not depend on the batch. Default 0. */
  firstSample?: number;
  /** Draws the churn noise of a step; default Philox from `seed`. */
  churnNoise?: (step: number) => Tensor;
  /** Stops within a step; the iteration then rejects with the signal's reason. */
  signal?: AbortSignal;
}

const sampleSchema = schema((z, is) =>
  z.strictObject({
    steps: is.count.default(18),
    labels: is.tensor<Tensor>().optional(),
    cfgScale: z.number().default(1),
    sigmaMin: z.number().positive().default(0.002),
    sigmaMax: z.number().positive().default(80),
    rho: z.number().positive().default(7),
    sigmaData: z.number().positive().default(defaultSigmaData),
    churn: is.atLeastZero.default(0),
    sMin: is.atLeastZero.default(0),
    sMax: z.union([is.atLeastZero, z.literal(Number.POSITIVE_INFINITY)]).default(Number.POSITIVE_INFINITY),
    sNoise: is.atLeastZero.default(1),
    seed: is.natural.default(0),
    firstSample: is.natural.default(0),
    churnNoise: is.callback<NonNullable<SampleEdmOptions['churnNoise']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<SampleEdmOptions>),
);
type Settings = Output<typeof sampleSchema>;

/**
 * Algorithm 2 of Karras et al. 2022: from standard normal noise [B, C, H, W] to images in [-1, 1]. Yields after every step; the yielded
 * tensors live until the next iteration (detach() them to keep); the last `sample` belongs to the caller.
 * Rejects with the signal's reason when aborted; nothing stays allocated. Errors come with the first iteration.
 *
 * @throws {OptionError} An option that is unknown or out of range; guidance without labels or of a network without a null class.
 */
export async function* sampleEdm(
  network: EdmNetwork,
  noise: Tensor,
  options: SampleEdmOptions = {},
): AsyncGenerator<SamplerStep> {
  const settings = parseOptions(sampleSchema, options, 'sampleEdm');
  const { steps, sigmaMin, sigmaMax, rho, churn, sMin, sMax, signal } = settings;
  const sigmas = edmSigmas(steps, sigmaMin, sigmaMax, rho);
  const gammas = sigmas.map((s) => (s >= sMin && s <= sMax ? Math.min(churn / steps, Math.SQRT2 - 1) : 0));
  const evaluator = new Evaluator(network, noise, settings);
  const advance = (x: Tensor, i: number, before?: Advance): Advance =>
    heunStep(evaluator, { x, input: before?.input, i, sigmas, gammas }, settings);
  try {
    yield* runSampler(() => affine(noise, sigmas[0], 0), steps, advance, signal);
  } finally {
    evaluator.dispose();
  }
}

/** Where a step starts: the state, its scaled form where there is one, and the levels of all steps. */
interface HeunState {
  x: Tensor;
  input?: Tensor;
  i: number;
  sigmas: readonly number[];
  gammas: readonly number[];
}

/** One step from sigma to the next level; the last one (to 0) is Euler's. */
function heunStep(evaluator: Evaluator, state: HeunState, settings: Settings): Advance {
  const { x, input, i, sigmas, gammas } = state;
  const { sigmaData, sNoise, seed, firstSample, churnNoise } = settings;
  const [sigma, next] = [sigmas[i], sigmas[i + 1]];
  const { guidance } = evaluator;
  const hat = sigma + gammas[i] * sigma;
  const here = scalings(hat, sigmaData);
  const start = (): { sample: Tensor; scaled?: Tensor } => {
    if (gammas[i] === 0) return { sample: x, scaled: input ?? affine(x, here.cIn, 0) };
    const raised = Math.sqrt(hat * hat - sigma * sigma) * sNoise;
    const from = churnNoise?.(i) ?? { seed, stream: i + 1, firstSample };
    return samplerStep(x, x, { next: [1, 0], noise: { sigma: raised, from }, scaledBy: here.cIn });
  };
  const { sample: xHat, scaled: xIn } = start();
  // x + (next - hat) d with d = (x - D) / hat
  const ratio = (next - hat) / hat;
  const euler = samplerStep(xHat, evaluator.at(xIn as Tensor, here.cNoise), {
    guidance,
    denoised: [here.cSkip, here.cOut],
    next: [1 + ratio, -ratio],
    scaledBy: next === 0 ? undefined : scalings(next, sigmaData).cIn,
  });
  const denoised = euler.denoised as Tensor;
  if (next === 0) return { sample: euler.sample, denoised };
  // x + (next - hat) (d / 2 + d' / 2) with d' = (euler - D') / next
  const there = scalings(next, sigmaData);
  const [half, halfNext] = [ratio / 2, (next - hat) / (2 * next)];
  const { sample, scaled } = samplerStep(euler.sample, evaluator.at(euler.scaled as Tensor, there.cNoise), {
    guidance,
    denoised: [there.cSkip, there.cOut],
    next: [halfNext, -halfNext],
    plus: [
      [1 + half, xHat],
      [-half, denoised],
    ],
    scaledBy: gammas[i + 1] > 0 ? undefined : there.cIn,
  });
  return { sample, denoised, input: scaled };
}

/**
 * The raw network for scaled inputs. D is linear in F with coefficients of the noise level alone, so guiding F guides D: both
 * halves run as one batch, conditional first. Throws OptionError unless a network to be guided has a null class and gets labels.
 */
class Evaluator {
  readonly guidance?: Guidance;
  private readonly labels?: Tensor;

  constructor(
    private readonly network: EdmNetwork,
    noise: Tensor,
    { cfgScale, labels }: Settings,
  ) {
    this.labels = labels;
    if (cfgScale === 1) return;
    const { nullClass } = network;
    if (nullClass === undefined) {
      throw new OptionError('cfgScale needs a model with a null class: train it with classDropoutProb above 0.');
    }
    if (!labels) throw new OptionError('cfgScale needs labels.');
    this.guidance = { scale: guidanceScaleAt(0, { cfgScale }), channels: noise.shape[1] };
    this.labels = noGrad(() =>
      scope(() => concat([labels, full(labels.shape, nullClass, { dtype: 'i64', device: labels.device })], 0)),
    );
    keep(this.labels); // it lives as long as the loop
  }

  at(input: Tensor, cNoise: number): Tensor {
    const { network, guidance, labels } = this;
    const level = full([(guidance ? 2 : 1) * input.shape[0]], cNoise, { device: input.device });
    return replayed(network, input.device, () =>
      network.forward(guidance ? concat([input, input], 0) : input, level, labels),
    );
  }

  dispose(): void {
    if (this.guidance) this.labels?.dispose();
  }
}

/** [B] -> [B, 1, 1, 1]. */
function perSample(x: Tensor): Tensor {
  return reshape(x, [x.size, 1, 1, 1]);
}
