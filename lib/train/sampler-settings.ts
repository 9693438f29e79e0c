/** How a model is sampled, as presets, recipes and model files say it, and the sampler that does it. */
import {
  GaussianDiffusion,
  type SamplerStep,
  sampleDdim,
  sampleDdpm,
  sampleDpmSolver,
  sampleEdm,
} from '../diffusion/index.js';
import { OptionError, unknownName } from '../errors.js';
import { type DiffusionModel, ImageDiffiT, type LatentTransformer } from '../models/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import type { Tensor } from '../tensor.js';

/** EDM's Heun sampler ({@link sampleEdm}), for image-space models. */
export interface EdmSamplerOptions {
  /** Default 'edm'. */
  kind?: 'edm';
  /** Noise levels. Default 18. */
  steps?: number;
  /** Scale of classifier-free guidance. Default 1: none. */
  cfgScale?: number;
  /** Noise added back on the way, at least 0. Default 0: deterministic. */
  churn?: number;
}

/** Samplers of Gaussian diffusion ({@link sampleDdpm}, {@link sampleDdim}, {@link sampleDpmSolver}), for latent models. */
export interface GaussianSamplerSettings {
  /** Which of the three. */
  kind: 'ddpm' | 'ddim' | 'dpm';
  /** Timesteps of the 1000 that are visited. Default: 250, 50 and 25 for ddpm, ddim and dpm. */
  steps?: number;
  /** Scale of classifier-free guidance. Default 1: none. */
  cfgScale?: number;
  /** Exponent of the power-cosine guidance scale. Default: the scale is constant. */
  scalePow?: number;
  /** Guide all noise channels. Default false: the first three, as NVIDIA's sampler does. */
  cfgAllChannels?: boolean;
  /** Lowest and highest timestep at which guidance acts. Default: all. */
  cfgInterval?: [low: number, high: number];
  /** DDIM's noise, from 0, deterministic, to 1, like DDPM. Default 0. */
  eta?: number;
}

const edm = schema((z, is) =>
  z.strictObject({
    kind: z.literal('edm').default('edm'),
    steps: is.count.default(18),
    cfgScale: z.number().default(1),
    churn: is.atLeastZero.default(0),
  } satisfies Fields<EdmSamplerOptions>),
);

const gaussianKinds = ['ddpm', 'ddim', 'dpm'] as const;

const gaussian = schema((z, is) =>
  z.strictObject({
    kind: z.enum(gaussianKinds),
    steps: is.count,
    cfgScale: z.number().default(1),
    scalePow: z.number().positive().optional(),
    cfgAllChannels: z.boolean().default(false),
    cfgInterval: z.tuple([z.number(), z.number()]).optional(),
    eta: is.share.default(0),
  } satisfies Fields<GaussianSamplerSettings>),
);

const defaultSteps = { ddpm: 250, ddim: 50, dpm: 25 };

/** Settings of a sampler; everything but the kind of a Gaussian one has a default. */
export type SamplerOptions = EdmSamplerOptions | GaussianSamplerSettings;
/** Those of a sampler of Gaussian diffusion, with their defaults. */
export type ResolvedGaussianSampler = Required<Omit<GaussianSamplerSettings, 'scalePow' | 'cfgInterval'>> &
  Pick<GaussianSamplerSettings, 'scalePow' | 'cfgInterval'>;
/** The settings with their defaults. */
export type SamplerSettings = Required<EdmSamplerOptions> | ResolvedGaussianSampler;

const kinds = ['edm', ...gaussianKinds];

/** Fills in defaults. `what` starts messages. Throws OptionError naming a wrong setting. */
export function parseSampler(value: SamplerOptions | Record<string, unknown>, what = 'Sampler'): SamplerSettings {
  const { kind = 'edm' } = value;
  if (!kinds.includes(kind as string)) throw unknownName('sampler', String(kind), kinds);
  if (kind === 'edm') return parseOptions(edm, value, what);
  return parseOptions(gaussian, { steps: defaultSteps[kind as keyof typeof defaultSteps], ...value }, what);
}

/** EDM's sampler with 18 steps for image-space models, DDPM with 250 for latent ones; no guidance. */
export function defaultSampler(model: DiffusionModel): SamplerOptions {
  return { kind: model instanceof ImageDiffiT ? 'edm' : 'ddpm' };
}

/** What one batch needs besides the settings. */
export interface SamplerRun {
  /** i64 [B], for a class-conditional model. */
  labels?: Tensor;
  seed?: number;
  /** Index of the batch's first image. */
  firstSample?: number;
  signal?: AbortSignal;
}

/** Throws OptionError when these settings are not for this kind of model. */
export function checkSampler(model: DiffusionModel, { kind, cfgScale: scale }: SamplerSettings): void {
  const image = model instanceof ImageDiffiT;
  if (image !== (kind === 'edm')) {
    const fitting = image ? 'edm' : 'ddpm, ddim or dpm';
    throw new OptionError(
      `The sampler ${kind} is not for this ${image ? 'image-space' : 'latent'} model; use ${fitting}.`,
    );
  }
  if (scale !== 1 && model.nullClass === undefined) {
    throw new OptionError(
      'Guidance (a cfgScale other than 1) needs a model with a null class: one with classDropoutProb above 0.',
    );
  }
}

/** Samples from standard normal noise [B, C, S, S]; the iterable of diffusion.sampleX. */
export function startSampler(
  model: DiffusionModel,
  noise: Tensor,
  settings: SamplerSettings,
  { labels, ...run }: SamplerRun,
): AsyncGenerator<SamplerStep> {
  checkSampler(model, settings);
  if (settings.kind === 'edm') {
    const { kind: _, ...options } = settings;
    return sampleEdm(model as ImageDiffiT, noise, { ...options, ...run, labels });
  }
  return startGaussian(model as LatentTransformer, noise, settings, { labels, ...run });
}

function startGaussian(
  model: LatentTransformer,
  noise: Tensor,
  settings: ResolvedGaussianSampler,
  { labels, ...run }: SamplerRun,
): AsyncGenerator<SamplerStep> {
  const { kind, steps: count, cfgAllChannels, cfgInterval, eta, ...guidance } = settings;
  const ddpm = new GaussianDiffusion({ respacing: String(count), learnSigma: model.config.learnSigma });
  const options = {
    ddpm,
    y: labels,
    ...guidance,
    guidedChannels: cfgAllChannels ? ('all' as const) : undefined,
    guidanceInterval: cfgInterval,
    ...run,
  };
  if (kind === 'ddpm') return sampleDdpm(model, noise, options);
  if (kind === 'ddim') return sampleDdim(model, noise, { ...options, eta });
  return sampleDpmSolver(model, noise, options);
}
