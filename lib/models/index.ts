/** models: the DiffiT networks and their presets. */
export { ImageDiffiT, type ImageDiffiTConfig } from './image-diffit.js';
export { create, type Preset, preset, presets, type TrainingSettings } from './presets.js';
