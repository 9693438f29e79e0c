/** models: the DiffiT networks and their presets. */
import { ImageDiffiT } from './image-diffit.js';
import { DiT, LatentDiffiT } from './latent-transformer.js';

export { ImageDiffiT, type ImageDiffiTConfig } from './image-diffit.js';
export { type InferredModel, inferLatentModel } from './infer-latent.js';
export { type CfgOptions, DiT, type LatentConfig, LatentDiffiT, LatentTransformer } from './latent-transformer.js';
export { create, type Preset, preset, presets, type TrainingSettings } from './presets.js';

/** Classes of diffusion models, by the name that model files and presets use. */
export const modelKinds = { ImageDiffiT, LatentDiffiT, DiT };
export type ModelKind = keyof typeof modelKinds;
export type DiffusionModel = InstanceType<(typeof modelKinds)[ModelKind]>;
