/** nn: modules with PyTorch-named state dicts, and the functions they are made of. */
export { type AttendOptions, type AttentionConditioning, TMSA, type TMSAOptions } from './attention.js';
export { type BlockOptions, type Conditioning, TransformerBlock, type TransformerBlockOptions } from './block.js';
export { LabelEmbed, type LabelEmbedOptions, TimeEmbed, type TimeEmbedding, type TimeEmbedOptions } from './embed.js';
export * as functional from './functional.js';
export { type GuidanceSchedule, guidanceScale, guide, guideHalves } from './guidance.js';
export * as init from './init.js';
export { Conv2d, type Conv2dLayerOptions, Embedding, GroupNorm, Linear } from './layers.js';
export { Module, ModuleList, type StateDict } from './module.js';
export { PatchEmbed, sinCosPositions, unpatchify } from './patch.js';
export { TokenSubset } from './token-subset.js';
