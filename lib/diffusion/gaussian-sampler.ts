/**
 * What the samplers of Gaussian diffusion share: options, the walk over the process's timesteps from the noisiest to 0,
 * the network with classifier-free guidance, and the random numbers of a step.
 */
import { OptionError } from '../errors.js';
import { replayed } from '../graph.js';
import { guidanceScaleAt } from '../nn/guidance.js';
import { checkShapeOf, checkTensors } from '../ops/check.js';
import { concat } from '../ops/index.js';
import type { RandomKey } from '../ops/random.js';
import { type Guidance, type SamplerStepOptions, samplerStep } from '../ops/sampler.js';
import { type Fields, type Output, schema } from '../options.js';
import { keep } from '../scope.js';
import { full, type Tensor } from '../tensor.js';
import { GaussianDiffusion, type GaussianNetwork, type SteppedNetwork } from './gaussian.js';
import { type Advance, runSampler, type SamplerStep } from './sampler.js';

/** Options of {@link sampleDdpm}, {@link sampleDdim} and {@link sampleDpmSolver}. */
export interface GaussianSamplerOptions {
  /** The process; its respacing sets the number of steps. */
  ddpm: GaussianDiffusion;
  /** i64 [B], for a class-conditional network. */
  y?: Tensor;
  /** Scale of classifier-free guidance. Default 1: off. Another value needs `y` and a network with a null class. */
  cfgScale?: number;
  /** Exponent of DiffiT's power-cosine scale (4 at 256 pixels). Default: the scale is constant. */
  scalePow?: number;
  /** How many noise channels are guided, from the first; at most the noise's. Default 3, as in DiT and DiffiT. */
  guidedChannels?: number | 'all';
  /** Lowest and highest timestep of training at which guidance acts; elsewhere only the conditional half is computed. */
  guidanceInterval?: readonly [low: number, high: number];
  /** Clamp the predicted clean image to [-1, 1]: for pixels, not for latents. Default false. */
  clipDenoised?: boolean;
  /** Seed of the noise added on the way; step i draws stream i + 1 (the initial noise is stream 0). Default 0. */
  seed?: number;
  /** Index of the batch's first image, so that its noise does not depend on the batch. Default 0. */
  firstSample?: number;
  /** Draws the noise of a step; default Philox from `seed`. */
  stepNoise?: (step: number) => Tensor;
  /** Stops within a step; the iteration then rejects with the signal's reason. */
  signal?: AbortSignal;
}

/** The schema's entries of {@link GaussianSamplerOptions}. */
const fields = (...[z, is]: Parameters<Parameters<typeof schema>[0]>) =>
  ({
    ddpm: is.value<GaussianDiffusion>((value) => value instanceof GaussianDiffusion, 'a GaussianDiffusion'),
    y: is.tensor<Tensor>().optional(),
    cfgScale: z.number().default(1),
    scalePow: z.number().positive().optional(),
    guidedChannels: z.union([is.count, z.literal('all')]).default(3),
    guidanceInterval: z
      .tuple([z.number(), z.union([z.number(), z.literal(Number.POSITIVE_INFINITY)])])
      .refine(([low, high]) => low <= high, 'expected [low, high] timesteps')
      .optional(),
    clipDenoised: z.boolean().default(false),
    seed: is.natural.default(0),
    firstSample: is.natural.default(0),
    stepNoise: is.callback<NonNullable<GaussianSamplerOptions['stepNoise']>>().optional(),
    signal: is.signal.optional(),
  }) satisfies Fields<GaussianSamplerOptions>;

/** Of samplers without options of their own. */
export const gaussianSchema = schema((z, is) => z.strictObject(fields(z, is)));
/** Of DDIM. */
export const ddimSchema = schema((z, is) => z.strictObject({ ...fields(z, is), eta: is.share.default(0) }));
/** The options with their defaults. */
export type GaussianSettings = Output<typeof gaussianSchema>;

/** One step of a sampler, at timestep index t of `ddpm`. */
export interface GaussianState {
  ddpm: GaussianDiffusion;
  /** The network's output [B, 2C, H, W] (or C without learnSigma); with guidance [2B, ...], conditional first. */
  output: Tensor;
  guidance?: Guidance;
  x: Tensor;
  t: number;
  clipDenoised: boolean;
  /** `denoised` of the step before; none at the first. */
  previous?: Tensor;
  /** Standard normal numbers of this step, shape of x, or the key of those to draw. */
  noise: () => Tensor | Required<RandomKey>;
}

/** The step from a state to the next, `next`, `plus` and `noise` as in samplerStep(); D is the predicted clean image. */
export function gaussianStep(
  state: GaussianState,
  options: Pick<SamplerStepOptions, 'next' | 'plus' | 'noise'>,
): Advance {
  const { ddpm, output, guidance, x, t, clipDenoised } = state;
  ddpm.checkOutput(output, x, guidance ? 2 : 1);
  const denoised = ddpm.xStartCoefficients(t);
  return samplerStep(x, output, { guidance, denoised, clip: clipDenoised, ...options }) as Advance;
}

/** Walks from standard normal noise [B, C, H, W] through every timestep of the process, by `step`. */
export async function* sampleGaussian(
  name: string,
  network: GaussianNetwork,
  noise: Tensor,
  options: GaussianSettings,
  step: (state: GaussianState) => Advance,
): AsyncGenerator<SamplerStep> {
  check(name, network, noise, options);
  const { ddpm, clipDenoised, seed, firstSample, stepNoise, signal } = options;
  const evaluator = new Evaluator(network, noise.shape[0], options);
  const advance = (x: Tensor, i: number, before?: Advance): Advance => {
    const t = ddpm.numTimesteps - 1 - i;
    const noiseOf = (): Tensor | Required<RandomKey> => stepNoise?.(i) ?? { seed, stream: i + 1, firstSample };
    return step({ ddpm, ...evaluator.at(x, t), x, t, clipDenoised, previous: before?.denoised, noise: noiseOf });
  };
  try {
    yield* runSampler(() => noise.detach(), ddpm.numTimesteps, advance, signal);
  } finally {
    evaluator.dispose();
  }
}

/** The network along the process's timesteps, guided where guidance acts; conditioned once where the network can be. */
class Evaluator {
  private readonly networks: { conditional?: SteppedNetwork; both?: SteppedNetwork } = {};

  constructor(
    private readonly network: GaussianNetwork,
    private readonly batch: number,
    private readonly options: GaussianSettings,
  ) {}

  /** The output for x at timestep index t, and how to guide it. */
  at(x: Tensor, t: number): { output: Tensor; guidance?: Guidance } {
    const { ddpm, cfgScale, scalePow, guidedChannels, guidanceInterval } = this.options;
    const timestep = ddpm.timesteps[t];
    const [low, high] = guidanceInterval ?? [0, Number.POSITIVE_INFINITY];
    if (cfgScale === 1 || timestep < low || timestep > high) {
      this.networks.conditional ??= this.stepped(this.options.y);
      return { output: this.networks.conditional.forward(x, t) };
    }
    this.networks.both ??= this.stepped(this.bothLabels());
    const { batch } = this;
    const channels = x.shape[1];
    const output = this.networks.both.forward(x, t);
    checkShapeOf('guidance', "the network's output for 2B labels", output, [2 * batch, -1, -1, -1]);
    const scale = guidanceScaleAt(timestep, { cfgScale, scalePow, diffusionSteps: ddpm.options.steps });
    return {
      output,
      guidance: { scale, channels: guidedChannels === 'all' ? channels : Math.min(guidedChannels, channels) },
    };
  }

  dispose(): void {
    for (const network of Object.values(this.networks)) network.dispose();
  }

  /** [y | null class]; check() made sure that there are both. */
  private bothLabels(): Tensor {
    const y = this.options.y as Tensor;
    const nobody = full([this.batch], this.network.nullClass as number, { dtype: 'i64', device: y.device });
    return concat([y, nobody], 0);
  }

  /** Its tensors live as long as the loop, not the step that asked first. */
  private stepped(y: Tensor | undefined): SteppedNetwork {
    const { network, batch } = this;
    const { timesteps } = this.options.ddpm;
    const labels = y?.detach();
    const conditioned = network.conditionOn?.(timesteps, labels);
    keep([labels, conditioned]); // not before both are there: what throws leaves nothing
    return {
      forward: (x, t) => {
        if (conditioned) return conditioned.forward(x, t);
        const time = full([batch], timesteps[t], { device: x.device });
        return replayed(network, x.device, () => network.forward(x, time, labels));
      },
      dispose: () => {
        conditioned?.dispose();
        labels?.dispose();
      },
    };
  }
}

function check(name: string, network: GaussianNetwork, noise: Tensor, options: GaussianSettings): void {
  const { y, cfgScale } = options;
  checkTensors(name, { noise });
  checkShapeOf(name, 'noise', noise, [-1, -1, -1, -1]);
  checkTensors(name, { y }, 'i64', noise.device);
  checkShapeOf(name, 'y', y, [noise.shape[0]]);
  if (cfgScale !== 1 && network.nullClass === undefined) {
    throw new OptionError(
      `${name}: cfgScale is ${cfgScale}, but the model has no null class to guide away from (train with classDropoutProb > 0).`,
    );
  }
  if (cfgScale !== 1 && y === undefined)
    throw new OptionError(`${name}: cfgScale is ${cfgScale}, but there are no labels y.`);
}
