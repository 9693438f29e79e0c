/**
 * Named models with the training and sampling settings that go with them. cifar10 and ffhq64 are the paper's
 * (section 4 and appendix; where it is silent, EDM's); mnist is a small one that trains in minutes on a laptop.
 */
import { unknownName } from '../errors.js';
import { DiT } from './dit.js';
import { ImageDiffiT, type ImageDiffiTConfig } from './image-diffit.js';
import { LatentDiffiT } from './latent-diffit.js';
import { type LatentPreset, latentPresets } from './latent-presets.js';
import type { LatentTransformerConfig } from './latent-transformer.js';

/** How a preset is trained. */
export interface TrainingSettings {
  /** Images per step. */
  batch: number;
  /** Peak learning rate of Adam. */
  lr: number;
  /** Images over which the learning rate rises from 0. */
  lrRampImages: number;
  /** `[from, to]`: images between which the rate falls to 1% along a half cosine; undefined: it stays. */
  lrDecayImages?: [number, number];
  /** EMA half-life in images (EDM); or emaDecay. */
  emaHalfLifeImages?: number;
  /** EMA decay per step. */
  emaDecay?: number;
  /** The half-life is at most this share of the images seen so far; undefined: no ramp-up. */
  emaRampUp?: number;
  /** Random horizontal flips; of latents, where the mirrored images were encoded too. */
  flip: boolean;
  /** EDM's augmentation: probability of each transformation; see diffusion.Augmenter. Default: none. */
  augment?: { p: number };
  /** Mean of ln(sigma) in training (EDM's P_mean). Default -1.2. */
  pMean?: number;
  /** Standard deviation of ln(sigma) in training (EDM's P_std). Default 1.2. */
  pStd?: number;
  /** Of matrix products on a GPU; default f32. */
  precision?: 'f32' | 'bf16';
}

/** A model by name. */
export interface Preset {
  /** What {@link create} and recipes call it. */
  name: string;
  /** Class of the network. */
  kind: 'ImageDiffiT' | 'LatentDiffiT' | 'DiT';
  /** Its constructor's options. */
  model: ImageDiffiTConfig | LatentTransformerConfig;
  /** What `diffit train` takes when --data is not given. */
  dataset?: string;
  /** How it is trained. */
  training: TrainingSettings;
  /** How it is sampled; see train.SamplerOptions. */
  sampler: { kind: 'edm' | 'ddpm'; steps: number; cfgScale?: number; scalePow?: number };
}

/** Presets of {@link ImageDiffiT}. */
export type ImagePreset = 'mnist' | 'cifar10' | 'ffhq64';

const imagePresets = {
  mnist: {
    name: 'mnist',
    kind: 'ImageDiffiT',
    model: {
      imgResolution: 32,
      inChannels: 1,
      baseChannels: 32,
      channelMult: [1, 1, 2],
      numBlocks: [1, 2, 4],
      windowSize: [4, 8, 8],
      timeDim: 128,
      numClasses: 10,
      classDropoutProb: 0.1,
      channelsPerHead: 32,
    },
    dataset: 'mnist',
    training: {
      batch: 32,
      lr: 1e-3,
      lrRampImages: 3_200,
      lrDecayImages: [256_000, 384_000],
      emaHalfLifeImages: 20_000,
      emaRampUp: 0.05,
      flip: false,
      pMean: -0.4, // a digit's shape is decided at higher noise than a photo's
    },
    sampler: { kind: 'edm', steps: 18, cfgScale: 1.5 },
  },
  cifar10: {
    name: 'cifar10',
    kind: 'ImageDiffiT',
    model: {
      imgResolution: 32,
      inChannels: 3,
      baseChannels: 128,
      channelMult: [2, 2, 2],
      numBlocks: 4,
      windowSize: 4,
      timeDim: 512,
      dropout: 0.13,
    },
    training: {
      batch: 512,
      lr: 1e-3,
      lrRampImages: 10_000_000,
      emaHalfLifeImages: 500_000,
      emaRampUp: 0.05,
      flip: false, // the augmentation does, and tells the network
      augment: { p: 0.12 },
    },
    sampler: { kind: 'edm', steps: 18 },
  },
  ffhq64: {
    name: 'ffhq64',
    kind: 'ImageDiffiT',
    model: {
      imgResolution: 64,
      inChannels: 3,
      baseChannels: 128,
      channelMult: [1, 2, 2, 2],
      numBlocks: 4,
      windowSize: 8,
      timeDim: 512,
      dropout: 0.05,
    },
    training: {
      batch: 256,
      lr: 2e-4,
      lrRampImages: 10_000_000,
      emaHalfLifeImages: 500_000,
      emaRampUp: 0.05,
      flip: false,
      augment: { p: 0.15 },
    },
    sampler: { kind: 'edm', steps: 40 },
  },
} satisfies Record<ImagePreset, Preset>;

/** All presets by name: mnist, cifar10, ffhq64 (image space); imagenet256, imagenet512, latent-base, latent-small (latent). */
export const presets: Readonly<Record<string, Preset>> = { ...imagePresets, ...latentPresets };

/** The network of a preset: typed where its name is a literal. */
export type PresetModel<N extends string> = N extends ImagePreset
  ? ImageDiffiT
  : N extends LatentPreset
    ? LatentDiffiT
    : ImageDiffiT | LatentDiffiT | DiT;
/** The options of a preset's network. */
export type PresetConfig<N extends string> = N extends ImagePreset ? ImageDiffiTConfig : LatentTransformerConfig;

/**
 * A preset by name.
 *
 * @throws {OptionError} An unknown name; the message has the known ones and the closest.
 */
export function preset(name: string): Preset {
  if (!Object.hasOwn(presets, name)) throw unknownName('preset', name, Object.keys(presets));
  return presets[name];
}

/**
 * A new model of a preset, with some of its options replaced; its class follows from the name. Weights are drawn from the default
 * generator (manualSeed).
 *
 * @throws {OptionError} An unknown name, or an option that is unknown or out of range.
 */
export function create<N extends string>(name: N, overrides: Partial<PresetConfig<N>> = {}): PresetModel<N> {
  const { kind, model } = preset(name);
  const type = { ImageDiffiT, LatentDiffiT, DiT }[kind] as new (options: object) => PresetModel<N>;
  return new type({ ...model, ...overrides });
}
