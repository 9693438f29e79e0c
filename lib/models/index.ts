/** models: the DiffiT networks, their presets, and the autoencoder of the latent ones. */
import { DiT } from './dit.js';
import { ImageDiffiT } from './image-diffit.js';
import { LatentDiffiT } from './latent-diffit.js';

export { type AutoencoderConfig, AutoencoderKL, autoencoderName } from './autoencoder-kl.js';
export { DiagonalGaussian } from './diagonal-gaussian.js';
export type { ImageDiffiTConfig } from './image-diffit.js';
export { type InferredModel, inferLatentModel } from './infer-latent.js';
export { type CfgOptions, LatentTransformer, type LatentTransformerConfig } from './latent-transformer.js';
export { create, type Preset, preset, presets, type TrainingSettings } from './presets.js';
export { StepNetwork } from './step-network.js';
export type { DecodeTiledOptions } from './tiled-decode.js';
export { DiT, ImageDiffiT, LatentDiffiT };

/** Classes of diffusion models, by the name that model files and presets use. */
export const modelKinds = { ImageDiffiT, LatentDiffiT, DiT };
export type ModelKind = keyof typeof modelKinds;
export type DiffusionModel = InstanceType<(typeof modelKinds)[ModelKind]>;
