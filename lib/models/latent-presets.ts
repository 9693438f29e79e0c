/**
 * Named latent models with the settings that go with them: NVIDIA's released XL/2 for ImageNet, and smaller ones (DiT's
 * sizes S and B) for own data. Any of them is also a DiT: new DiT(latentPresets.imagenet256.model).
 */
import type { LatentTransformerConfig } from './latent-transformer.js';

/** A latent model by name. */
export interface LatentPreset {
  name: string;
  model: LatentTransformerConfig;
  /** AdamW without weight decay: latents per step, learning rate, and the EMA's decay per step. */
  training: { batch: number; lr: number; emaDecay: number };
  /** Guidance as LatentTransformer.forwardWithCfg() takes it; the scale's form follows from inputSize. */
  sampler: { kind: 'ddpm'; steps: number; cfgScale: number };
}

const xl = { patchSize: 2, inChannels: 4, hiddenSize: 1152, depth: 28, numHeads: 16 };
const imagenet = { numClasses: 1000, classDropoutProb: 0.1, learnSigma: true };
const base = { ...xl, hiddenSize: 768, depth: 12, numHeads: 12 };
const small = { ...base, hiddenSize: 384, numHeads: 6 };

export const latentPresets: Readonly<Record<string, LatentPreset>> = {
  imagenet256: {
    name: 'imagenet256',
    model: { inputSize: 32, ...xl, ...imagenet },
    training: { batch: 256, lr: 3e-4, emaDecay: 0.9999 },
    sampler: { kind: 'ddpm', steps: 250, cfgScale: 4.4 },
  },
  imagenet512: {
    name: 'imagenet512',
    model: { inputSize: 64, ...xl, ...imagenet },
    training: { batch: 512, lr: 1e-4, emaDecay: 0.9999 },
    sampler: { kind: 'ddpm', steps: 250, cfgScale: 1.49 },
  },
  'latent-base': {
    name: 'latent-base',
    model: { inputSize: 32, ...base, ...imagenet },
    training: { batch: 256, lr: 3e-4, emaDecay: 0.9999 },
    sampler: { kind: 'ddpm', steps: 250, cfgScale: 4.4 },
  },
  'latent-small': {
    name: 'latent-small',
    model: { inputSize: 32, ...small, ...imagenet },
    training: { batch: 256, lr: 3e-4, emaDecay: 0.9999 },
    sampler: { kind: 'ddpm', steps: 250, cfgScale: 4.4 },
  },
};
