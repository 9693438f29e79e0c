/** models: the DiffiT networks and their presets. */
export { DiT } from './dit.js';
export { ImageDiffiT, type ImageDiffiTConfig } from './image-diffit.js';
export { LatentDiffiT } from './latent-diffit.js';
export { type LatentPreset, latentPresets } from './latent-presets.js';
export { type CfgOptions, LatentTransformer, type LatentTransformerConfig } from './latent-transformer.js';
export { create, type Preset, preset, presets, type TrainingSettings } from './presets.js';
export { StepNetwork } from './step-network.js';
