/** nn: modules with PyTorch-named state dicts, and the functions they are made of. */
export { type AttendOptions, type AttentionConditioning, TMSA, type TMSAOptions } from './attention.js';
export {
  type BlockOptions,
  type Conditioning,
  MLP,
  Modulation,
  TransformerBlock,
  type TransformerBlockOptions,
} from './block.js';
export { LabelEmbed, type LabelEmbedOptions, TimeEmbed, type TimeEmbedding, type TimeEmbedOptions } from './embed.js';
export * as functional from './functional.js';
export { type GuidanceSchedule, guidanceScale, guide, guideHalves } from './guidance.js';
export * as init from './init.js';
export {
  Conv2d,
  type Conv2dLayerOptions,
  Embedding,
  type EmbeddingOptions,
  GroupNorm,
  Linear,
  type LinearLayerOptions,
} from './layers.js';
export { type Layout, Module, ModuleList, type StateDict, type StateDictOptions } from './module.js';
export { PatchEmbed, sinCosPositions, unpatchify } from './patch.js';
export { type RandomSubsetOptions, TokenSubset, type TokenSubsetOptions } from './token-subset.js';
