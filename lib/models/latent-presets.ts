/**
 * Named latent models with the settings that go with them: NVIDIA's released XL/2 for ImageNet, and smaller ones (DiT's
 * sizes S and B) for own data. Any of them is also a DiT: new DiT(latentPresets.imagenet256.model).
 */
import type { LatentTransformerConfig } from './latent-transformer.js';
import type { Preset } from './presets.js';

const xl = { patchSize: 2, inChannels: 4, hiddenSize: 1152, depth: 28, numHeads: 16 };
const base = { ...xl, hiddenSize: 768, depth: 12, numHeads: 12 };
const small = { ...base, hiddenSize: 384, numHeads: 6 };
const imagenet = { numClasses: 1000, classDropoutProb: 0.1, learnSigma: true };

/** AdamW without weight decay, bf16 autocast with f32 master weights (NVlabs/DiffiT). */
const training = {
  batch: 256,
  lr: 3e-4,
  lrRampImages: 0,
  emaDecay: 0.9999,
  flip: true,
  precision: 'bf16' as const,
};
/** NVIDIA's guidance: power-cosine at 256 px, constant at 512. */
const sampler256 = { kind: 'ddpm', steps: 250, cfgScale: 4.4, scalePow: 4 } as const;
const sampler512 = { kind: 'ddpm', steps: 250, cfgScale: 1.49 } as const;

const latent = (
  name: string,
  model: LatentTransformerConfig,
  settings: Pick<Preset, 'training' | 'sampler'> = { training, sampler: sampler256 },
) => ({ name, kind: 'LatentDiffiT' as const, model, ...settings });

/** Presets of {@link LatentDiffiT}. */
export type LatentPreset = 'imagenet256' | 'imagenet512' | 'latent-base' | 'latent-small';

/** They by name. */
export const latentPresets = {
  imagenet256: latent('imagenet256', { inputSize: 32, ...xl, ...imagenet }),
  imagenet512: latent(
    'imagenet512',
    { inputSize: 64, ...xl, ...imagenet },
    {
      training: { ...training, batch: 512, lr: 1e-4 },
      sampler: sampler512,
    },
  ),
  'latent-base': latent('latent-base', { inputSize: 32, ...base, ...imagenet }),
  'latent-small': latent('latent-small', { inputSize: 32, ...small, ...imagenet }),
} satisfies Record<LatentPreset, Preset>;
