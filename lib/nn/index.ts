/** nn: modules with PyTorch-named state dicts, and the functions they are made of. */
export { type AttentionConditioning, TMSA, type TMSAOptions } from './attention.js';
export { type Conditioning, TransformerBlock, type TransformerBlockOptions } from './block.js';
export { LabelEmbed, type LabelEmbedOptions, TimeEmbed, type TimeEmbedding, type TimeEmbedOptions } from './embed.js';
export * as functional from './functional.js';
export { type GuidanceSchedule, guidanceScale, guide } from './guidance.js';
export * as init from './init.js';
export { Conv2d, type Conv2dLayerOptions, Embedding, GroupNorm, Linear } from './layers.js';
export { Module, ModuleList, type StateDict } from './module.js';
