/** models: the DiffiT networks, their presets, and the autoencoder of the latent ones. */
import { ImageDiffiT } from './image-diffit.js';
import { DiT, LatentDiffiT } from './latent-transformer.js';

export { type AutoencoderConfig, AutoencoderKL, autoencoderName } from './autoencoder-kl.js';
export { DiagonalGaussian } from './diagonal-gaussian.js';
export { ImageDiffiT, type ImageDiffiTConfig } from './image-diffit.js';
export { type InferredModel, inferLatentModel } from './infer-latent.js';
export { type CfgOptions, DiT, type LatentConfig, LatentDiffiT, LatentTransformer } from './latent-transformer.js';
export { create, type Preset, preset, presets, type TrainingSettings } from './presets.js';
export type { DecodeTiledOptions } from './tiled-decode.js';

/** Classes of diffusion models, by the name that model files and presets use. */
export const modelKinds = { ImageDiffiT, LatentDiffiT, DiT };
export type ModelKind = keyof typeof modelKinds;
export type DiffusionModel = InstanceType<(typeof modelKinds)[ModelKind]>;
