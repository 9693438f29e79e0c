/** models: the DiffiT networks and their presets. */
export { ImageDiffiT, type ImageDiffiTConfig } from './image-diffit.js';
export { type InferredModel, inferLatentModel } from './infer-latent.js';
export { type CfgOptions, DiT, type LatentConfig, LatentDiffiT, LatentTransformer } from './latent-transformer.js';
export { create, type Preset, preset, presets, type TrainingSettings } from './presets.js';
