/** models: the DiffiT networks, their presets, and the autoencoder of the latent ones. */
import { DiT } from './dit.js';
import { ImageDiffiT } from './image-diffit.js';
import { LatentDiffiT } from './latent-diffit.js';

export { type AutoencoderConfig, AutoencoderKL, type AutoencoderOutput, autoencoderName } from './autoencoder-kl.js';
export { forwardFlops } from './cost.js';
export { DiagonalGaussian } from './diagonal-gaussian.js';
export type { ImageDiffiTConfig, ResolvedImageDiffiTConfig } from './image-diffit.js';
export { type InferredModel, inferLatentModel } from './infer-latent.js';
export type { LatentPreset } from './latent-presets.js';
export {
  type CfgOptions,
  type LatentConditioning,
  LatentTransformer,
  type LatentTransformerConfig,
  type MaskOptions,
} from './latent-transformer.js';
export {
  create,
  type ImagePreset,
  type Preset,
  type PresetConfig,
  type PresetModel,
  preset,
  presets,
  type TrainingSettings,
} from './presets.js';
export { type ConditionParts, StepNetwork } from './step-network.js';
export type { DecodeTiledOptions } from './tiled-decode.js';
export { DiT, ImageDiffiT, LatentDiffiT };

/** Classes of diffusion models, by the name that model files and presets use. */
export const modelKinds = { ImageDiffiT, LatentDiffiT, DiT };
/** Name of a class of diffusion models. */
export type ModelKind = keyof typeof modelKinds;
/** A network that can be trained, saved and sampled by `train`. */
export type DiffusionModel = InstanceType<(typeof modelKinds)[ModelKind]>;
