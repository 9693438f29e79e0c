/**
 * Gaussian diffusion in discrete time (Ho et al. 2020; Nichol & Dhariwal 2021), as guided-diffusion and DiT train it:
 * the network predicts the noise eps and, in its second half of channels, where the variance lies between the
 * posterior's and beta, in log space. Images or latents are [B, C, H, W].
 *
 * A timestep t of a method is an index 0 .. numTimesteps - 1 of the (respaced) process; the network sees timesteps[t],
 * its place among the steps of training. t is one number for the whole batch, or one per sample.
 */
import { OptionError } from '../errors.js';
import { checkShapeOf } from '../ops/check.js';
import { add, affine, clamp, linearCombination, mul, sub, where } from '../ops/elementwise.js';
import { slice } from '../ops/index.js';
import { mean } from '../ops/reduce.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { noGrad, scope } from '../scope.js';
import { type Tensor, tensor, zeros } from '../tensor.js';
import { discretizedGaussianNll, normalKl } from './likelihood.js';
import { cosineBetas, linearBetas, minSnrWeights, respace } from './schedule.js';

/**
 * A network for Gaussian diffusion: x [B, C, H, W], t f32 [B] (timesteps of training, perhaps fractional), labels y
 * -> [B, 2C, H, W], noise then variance (C channels for learnSigma false). With twice as many labels, y i64 [2B], it
 * repeats the images itself and returns [2B, ...]: first all images with the first B labels, then with the others.
 */
export interface GaussianNetwork {
  /** The label that stands for "no class"; missing when the network was not trained with one. */
  readonly nullClass?: number;
  /** x [B, C, H, W], t f32 [B], y i64 [B] or [2B] -> the output described above. */
  forward(x: Tensor, t: Tensor, y?: Tensor): Tensor;
  /** The network at these timesteps and labels, with what does not depend on x computed once; samplers use it. */
  conditionOn?(timesteps: readonly number[], y?: Tensor): SteppedNetwork;
}

/** A network at given timesteps and labels; see {@link GaussianNetwork.conditionOn}. */
export interface SteppedNetwork {
  /** The network on x [B, C, H, W] at timesteps[i]. */
  forward(x: Tensor, i: number): Tensor;
  /** Called after the last step. */
  dispose(): void;
}

/** One timestep for the whole batch, or one per sample. */
export type Timestep = number | ArrayLike<number>;

/** Weights of the noise-prediction loss by timestep: all 1, or min(SNR, gamma) / SNR ('min-snr-5' has gamma 5; Hang et al. 2023). */
export type Weighting = 'uniform' | `min-snr-${number}`;

/** Options of {@link GaussianDiffusion}; plain JSON. */
export interface GaussianDiffusionOptions {
  /** T, timesteps of training, at least 2. Default 1000. */
  steps?: number;
  /** Betas: {@link linearBetas} or {@link cosineBetas}. Default 'linear'. */
  schedule?: 'linear' | 'cosine';
  /** Which timesteps are kept, see {@link respace}: '250', '10,15,20', 'ddim50'. Default '': all. */
  respacing?: string;
  /** The network's second C channels choose the variance; otherwise it is beta (the posterior's at t = 0). Default true. */
  learnSigma?: boolean;
  /** Multiply the variational term of the training loss by numTimesteps / 1000. Default false. */
  rescaledVlb?: boolean;
  /** Weights of the noise-prediction loss by timestep. Default 'uniform'. */
  weighting?: Weighting;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    steps: z.int().min(2).default(1000),
    schedule: z.enum(['linear', 'cosine']).default('linear'),
    respacing: z.string().default(''),
    learnSigma: z.boolean().default(true),
    rescaledVlb: z.boolean().default(false),
    weighting: is
      .value<Weighting>(
        (value) => value === 'uniform' || (typeof value === 'string' && /^min-snr-(?=.*[1-9])\d+(\.\d+)?$/.test(value)),
        '"uniform", or "min-snr-" and a number above 0 ("min-snr-5")',
      )
      .default('uniform'),
  } satisfies Fields<GaussianDiffusionOptions>),
);

/** p(x_(t-1) | x_t) as the network sees it, and the clean image it implies; each [B, C, H, W]. */
export interface ModelDistribution {
  /** Mean of x_(t-1). */
  mean: Tensor;
  /** Variance of x_(t-1). */
  variance: Tensor;
  /** Its natural logarithm. */
  logVariance: Tensor;
  /** The clean image, clamped to [-1, 1] with clipDenoised. */
  xStart: Tensor;
}

/** q(x_(t-1) | x_t, x_0), from {@link GaussianDiffusion.qPosterior}. */
export interface Posterior {
  /** [B, C, H, W]. */
  mean: Tensor;
  /** [B, 1, 1, 1], or [1, 1, 1, 1] for one timestep. */
  variance: Tensor;
  /** Its natural logarithm, of the shape of the variance; at t = 0 that of t = 1. */
  logVariance: Tensor;
}

/** Options of {@link GaussianDiffusion.predictXStart}, pMeanVariance and variationalBound. */
export interface ClipOptions {
  /** Clamp the predicted clean image to [-1, 1]: for pixels, not for latents. Default false. */
  clipDenoised?: boolean;
}

const clipSchema = schema((z) =>
  z.strictObject({ clipDenoised: z.boolean().default(false) } satisfies Fields<ClipOptions>),
);

/** Options of {@link GaussianDiffusion.trainingLosses}. */
export interface TrainingLossOptions {
  /** Standard normal noise, shape of the images. */
  noise: Tensor;
  /** i64 [B], for a class-conditional network. */
  y?: Tensor;
}

const lossSchema = schema((z, is) =>
  z.strictObject({
    noise: is.tensor<Tensor>(),
    y: is.tensor<Tensor>().optional(),
  } satisfies Fields<TrainingLossOptions>),
);

/** Losses from {@link GaussianDiffusion.trainingLosses}: one value per sample, each [B]. */
export interface TrainingLosses {
  /** weight mse + vb: differentiable. */
  loss: Tensor;
  /** Mean squared error of the noise, before weighting; detached. */
  mse: Tensor;
  /** Variational term in bits per dimension (times numTimesteps / 1000 with rescaledVlb), which trains the variance alone; detached. Only with learnSigma. */
  vb?: Tensor;
}

/**
 * Gaussian diffusion in discrete time (Ho et al. 2020; Nichol & Dhariwal 2021), as guided-diffusion and DiT train it: the network predicts the noise
 * and, with learnSigma, where the variance lies between the posterior's and beta, in log space. Images or latents are [B, C, H, W].
 *
 * A timestep t of a method is an index 0 .. numTimesteps - 1 of the (respaced) process, one for the whole batch or one per sample; methods throw
 * {@link OptionError} for another. Tables are float64, by that index.
 */
export class GaussianDiffusion {
  /** The validated options with their defaults. */
  readonly options: Readonly<Required<GaussianDiffusionOptions>>;
  /** The timesteps of training that the process keeps, ascending. */
  readonly timesteps: readonly number[];
  /** How many those are: the steps of a sampler. */
  readonly numTimesteps: number;
  /** Variances of q(x_t | x_(t-1)). */
  readonly betas: readonly number[];
  /** Products of 1 - beta up to and including t; x_t = sqrt(alphasCumprod) x_0 + sqrt(1 - alphasCumprod) noise. */
  readonly alphasCumprod: readonly number[];
  /** alphasCumprod of the timestep before; 1 for t = 0. */
  readonly alphasCumprodPrev: readonly number[];
  /** Variance of q(x_(t-1) | x_t, x_0); 0 for t = 0. */
  readonly posteriorVariance: readonly number[];
  /** Its logarithm, with that of t = 1 for t = 0. */
  readonly posteriorLogVarianceClipped: readonly number[];
  /** Mean of q(x_(t-1) | x_t, x_0) = posteriorMeanCoef1 x_0 + posteriorMeanCoef2 x_t. */
  readonly posteriorMeanCoef1: readonly number[];
  /** See {@link GaussianDiffusion.posteriorMeanCoef1}. */
  readonly posteriorMeanCoef2: readonly number[];
  private readonly lossWeights?: readonly number[];

  /** @throws {OptionError} An option that is unknown or out of range, or a respacing that does not fit. */
  constructor(options: GaussianDiffusionOptions = {}) {
    this.options = parseOptions(optionsSchema, options, 'GaussianDiffusion');
    const { steps, schedule, respacing, weighting } = this.options;
    const trained = cumulativeProducts(schedule === 'linear' ? linearBetas(steps) : cosineBetas(steps));
    this.timesteps = respace(steps, respacing);
    this.numTimesteps = this.timesteps.length;
    if (this.numTimesteps < 2) {
      throw new OptionError(
        `GaussianDiffusion: respacing "${respacing}" keeps ${this.numTimesteps} timesteps, expected at least 2.`,
      );
    }
    this.betas = this.timesteps.map((t, i) => 1 - trained[t] / (i > 0 ? trained[this.timesteps[i - 1]] : 1));
    this.alphasCumprod = cumulativeProducts(this.betas);
    this.alphasCumprodPrev = [1, ...this.alphasCumprod.slice(0, -1)];
    const table = (f: (beta: number, a: number, aPrev: number) => number): number[] =>
      this.betas.map((beta, i) => f(beta, this.alphasCumprod[i], this.alphasCumprodPrev[i]));
    this.posteriorVariance = table((beta, a, aPrev) => (beta * (1 - aPrev)) / (1 - a));
    this.posteriorLogVarianceClipped = this.posteriorVariance.map((_, i, all) => Math.log(all[Math.max(i, 1)]));
    this.posteriorMeanCoef1 = table((beta, a, aPrev) => (beta * Math.sqrt(aPrev)) / (1 - a));
    this.posteriorMeanCoef2 = table((beta, a, aPrev) => ((1 - aPrev) * Math.sqrt(1 - beta)) / (1 - a));
    if (weighting !== 'uniform') {
      this.lossWeights = minSnrWeights(this.alphasCumprod, Number(weighting.slice('min-snr-'.length)));
    }
  }

  /** q(x_t | x_0): x0 noised to timestep t, sqrt(alphasCumprod) x0 + sqrt(1 - alphasCumprod) noise. Throws ShapeError for noise of another shape. */
  qSample(x0: Tensor, t: Timestep, noise: Tensor): Tensor {
    checkShapeOf('GaussianDiffusion', 'noise', noise, x0.shape);
    const a = this.at(t, x0, this.alphasCumprod);
    return weightedSum([a.map(Math.sqrt), x0], [a.map((v) => Math.sqrt(1 - v)), noise]);
  }

  /** q(x_(t-1) | x_t, x_0) (Ho et al. 2020, Eq. 6-7). */
  qPosterior(x0: Tensor, xt: Tensor, t: Timestep): Posterior {
    return {
      mean: this.posteriorMean(x0, xt, t),
      variance: column(this.at(t, xt, this.posteriorVariance), xt),
      logVariance: column(this.at(t, xt, this.posteriorLogVarianceClipped), xt),
    };
  }

  /** The clean image that predicted noise eps [B, C, H, W] implies, on request clamped to [-1, 1]. */
  predictXStart(eps: Tensor, xt: Tensor, t: Timestep, options: ClipOptions = {}): Tensor {
    const { clipDenoised } = parseOptions(clipSchema, options, 'GaussianDiffusion.predictXStart');
    return scope(() => {
      const a = this.at(t, xt, this.alphasCumprod);
      const xStart = weightedSum([a.map((v) => Math.sqrt(1 / v)), xt], [a.map((v) => -Math.sqrt(1 / v - 1)), eps]);
      return clipDenoised ? clamp(xStart, -1, 1) : xStart;
    });
  }

  /** p(x_(t-1) | x_t) from the network's output at timestep t. Throws ShapeError for an output of another shape. */
  pMeanVariance(output: Tensor, xt: Tensor, t: Timestep, options: ClipOptions = {}): ModelDistribution {
    return scope(() => {
      const { eps, spread } = this.split(output, xt);
      const xStart = this.predictXStart(eps, xt, t, options);
      const logVariance = this.logVariance(spread, xt, t);
      return { mean: this.posteriorMean(xStart, xt, t), variance: logVariance.exp(), logVariance, xStart };
    });
  }

  /** The noise half of an output and, with learnSigma, the half that spreads the variance. Throws ShapeError. */
  split(output: Tensor, xt: Tensor): { eps: Tensor; spread?: Tensor } {
    this.checkOutput(output, xt);
    const c = xt.shape[1];
    const { learnSigma } = this.options;
    return learnSigma ? { eps: slice(output, 1, 0, c), spread: slice(output, 1, c, 2 * c) } : { eps: output };
  }

  /** The shape of the network's output for x, or for `copies` of it. Throws ShapeError. */
  checkOutput(output: Tensor, xt: Tensor, copies = 1): void {
    const [b, c, h, w] = xt.shape;
    const { learnSigma } = this.options;
    const name = `the network's output (learnSigma ${learnSigma})`;
    checkShapeOf('GaussianDiffusion', name, output, [copies * b, learnSigma ? 2 * c : c, h, w]);
  }

  /** The coefficients of the clean image at timestep t: xStart = c[0] x + c[1] eps. */
  xStartCoefficients(t: number): [x: number, eps: number] {
    const a = this.alphasCumprod[t];
    return [Math.sqrt(1 / a), -Math.sqrt(1 / a - 1)];
  }

  /** The standard deviation of p at timestep t: sigma exp(spread S), S the output's second half. */
  deviation(t: number): { sigma: number; spread: number } {
    if (!this.options.learnSigma) {
      return { sigma: Math.sqrt(t === 0 ? this.posteriorVariance[1] : this.betas[t]), spread: 0 };
    }
    const [low, high] = [this.posteriorLogVarianceClipped[t], Math.log(this.betas[t])];
    return { sigma: Math.exp((low + high) / 4), spread: (high - low) / 4 };
  }

  /**
   * The variational term of each sample, [B], in bits per dimension: KL(q(x_(t-1) | x_t, x_0) || p), for t = 0 the
   * negative log-likelihood of x0 as an 8-bit image. Differentiable in both halves of the output.
   *
   * @throws {ShapeError} An output of another shape.
   */
  variationalBound(output: Tensor, x0: Tensor, xt: Tensor, t: Timestep, options: ClipOptions = {}): Tensor {
    return scope(() => {
      const { eps, spread } = this.split(output, xt);
      return this.bound(eps, spread, x0, xt, t, options);
    });
  }

  /**
   * Losses of the network on x0 [B, C, H, W] in [-1, 1] (or latents of that size), noised to t: one timestep per
   * sample. Call backward() on loss.mean(), or on its mean with an importance sampler's weights. (Nichol & Dhariwal 2021, Eq. 16: L_hybrid with
   * weight 1 for the variational term.)
   *
   * @throws {OptionError} An option that is missing or unknown; a timestep that is none, or not one per sample.
   * @throws {ShapeError} An output of the network of another shape.
   */
  trainingLosses(
    network: GaussianNetwork,
    x0: Tensor,
    t: ArrayLike<number>,
    options: TrainingLossOptions,
  ): TrainingLosses {
    const { noise, y } = parseOptions(lossSchema, options, 'GaussianDiffusion.trainingLosses');
    const { rescaledVlb } = this.options;
    return scope(() => {
      const { xt, time } = noGrad(() => ({
        xt: this.qSample(x0, t, noise),
        time: tensor(
          Float32Array.from(t, (i) => this.timesteps[i]),
          { device: x0.device },
        ),
      }));
      const { eps, spread } = this.split(network.forward(xt, time, y), xt);
      const mse = perSample(sub(noise, eps).square());
      const weights = this.lossWeights && this.at(t, x0, this.lossWeights);
      const weighted = weights ? mul(mse, tensor(Float32Array.from(weights), { device: x0.device })) : mse;
      if (!spread) return { loss: weighted, mse: mse.detach() };
      const bits = this.bound(eps.detach(), spread, x0, xt, t);
      const vb = rescaledVlb ? affine(bits, this.numTimesteps / 1000, 0) : bits;
      return { loss: add(weighted, vb), mse: mse.detach(), vb: vb.detach() };
    });
  }

  private bound(
    eps: Tensor,
    spread: Tensor | undefined,
    x0: Tensor,
    xt: Tensor,
    t: Timestep,
    options: ClipOptions = {},
  ): Tensor {
    const truth = this.qPosterior(x0, xt, t);
    const mean = this.posteriorMean(this.predictXStart(eps, xt, t, options), xt, t);
    const logVariance = this.logVariance(spread, xt, t);
    const first = this.indices(t, xt).map((i) => (i === 0 ? 1 : 0));
    const kl = (): Tensor => normalKl(truth.mean, truth.logVariance, mean, logVariance);
    const nll = (): Tensor => discretizedGaussianNll(x0, mean, logVariance);
    let nats: Tensor;
    if (!first.includes(1)) nats = kl();
    else if (!first.includes(0)) nats = nll();
    else nats = where(column(first, xt), nll(), kl());
    return affine(perSample(nats), 1 / Math.LN2, 0);
  }

  private posteriorMean(x0: Tensor, xt: Tensor, t: Timestep): Tensor {
    return weightedSum([this.at(t, xt, this.posteriorMeanCoef1), x0], [this.at(t, xt, this.posteriorMeanCoef2), xt]);
  }

  /** Log-variance of p [B, C, H, W]: between the posterior's (spread -1) and log beta (spread 1). */
  private logVariance(spread: Tensor | undefined, xt: Tensor, t: Timestep): Tensor {
    if (!spread) {
      const fixed = this.at(t, xt, [this.posteriorVariance[1], ...this.betas.slice(1)]).map(Math.log);
      return add(zeros(xt.shape, { device: xt.device }), column(fixed, xt));
    }
    const low = this.at(t, xt, this.posteriorLogVarianceClipped);
    const high = this.at(t, xt, this.betas).map(Math.log);
    const middle = low.map((v, i) => (v + high[i]) / 2);
    const half = low.map((v, i) => (high[i] - v) / 2);
    return add(mul(spread, column(half, xt)), column(middle, xt));
  }

  /** Entries of a table for each sample's timestep, or for the one of all. */
  private at(t: Timestep, x: Tensor, table: readonly number[]): number[] {
    return this.indices(t, x).map((i) => table[i]);
  }

  /** t as a list, of length 1 when it is one number for all. Throws OptionError on what is no timestep. */
  private indices(t: Timestep, x: Tensor): number[] {
    const indices = typeof t === 'number' ? [t] : Array.from(t);
    if (typeof t !== 'number' && indices.length !== x.shape[0]) {
      throw new OptionError(`GaussianDiffusion: ${indices.length} timesteps for a batch of ${x.shape[0]}.`);
    }
    for (const i of indices) {
      if (!(Number.isInteger(i) && i >= 0 && i < this.numTimesteps)) {
        throw new OptionError(
          `GaussianDiffusion: timestep ${i}, expected an integer from 0 to ${this.numTimesteps - 1}.`,
        );
      }
    }
    return indices;
  }
}

function cumulativeProducts(betas: readonly number[]): number[] {
  let product = 1;
  return betas.map((beta) => {
    product *= 1 - beta;
    return product;
  });
}

/** Numbers, one per sample or one for all, as a tensor that broadcasts over x [B, C, H, W]. */
function column(values: readonly number[], x: Tensor): Tensor {
  return tensor(Float32Array.from(values), { shape: [values.length, 1, 1, 1], device: x.device });
}

/** a x + b y with coefficients per sample, or one for all. */
function weightedSum([a, x]: readonly [number[], Tensor], [b, y]: readonly [number[], Tensor]): Tensor {
  if (a.length === 1) {
    return linearCombination([
      [a[0], x],
      [b[0], y],
    ]);
  }
  return scope(() => add(mul(x, column(a, x)), mul(y, column(b, y))));
}

/** Mean over all but the first axis. */
function perSample(x: Tensor): Tensor {
  return mean(x, [1, 2, 3]);
}
