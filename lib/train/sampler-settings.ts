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
import { type Input, type Output, parseOptions, schema } from '../options.js';
import type { Tensor } from '../tensor.js';

/** EDM's Heun sampler, for image-space models. */
const edm = schema((z) =>
  z.strictObject({
    kind: z.literal('edm').default('edm'),
    /** Noise levels. */
    steps: z.int().min(1).default(18),
    /** Classifier-free guidance; 1: none. */
    cfgScale: z.number().default(1),
    /** Noise added back on the way; 0 is deterministic. */
    churn: z.number().min(0).default(0),
  }),
);

const gaussianKinds = ['ddpm', 'ddim', 'dpm'] as const;

/** Samplers of Gaussian diffusion, for latent models. */
const gaussian = schema((z) =>
  z.strictObject({
    kind: z.enum(gaussianKinds),
    /** Timesteps of the 1000 that are visited. Default: 250, 50 and 25 for ddpm, ddim and dpm. */
    steps: z.int().min(1),
    cfgScale: z.number().default(1),
    /** Exponent of the power-cosine guidance scale; absent: constant. */
    scalePow: z.number().positive().optional(),
    /** Guides all noise channels; default: the first three, as NVIDIA's sampler does. */
    cfgAllChannels: z.boolean().default(false),
    /** Timesteps between which guidance acts. */
    cfgInterval: z.tuple([z.number(), z.number()]).optional(),
    /** DDIM's noise: 0 is deterministic, 1 like DDPM. */
    eta: z.number().min(0).default(0),
  }),
);

const defaultSteps = { ddpm: 250, ddim: 50, dpm: 25 };

/** Settings of a sampler; everything but the kind of a Gaussian one has a default. */
export type SamplerOptions = Input<typeof edm> | (Omit<Input<typeof gaussian>, 'steps'> & { steps?: number });
/** The settings with their defaults. */
export type SamplerSettings = Output<typeof edm> | Output<typeof gaussian>;

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
  settings: Output<typeof gaussian>,
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
