/** Metrics of generated images: FID, sFID, Inception Score, precision and recall, and the network that they are of. */
export type { ImageBatch, ImageBatches, SetStatistics } from './collect.js';
export {
  type CollectOptions,
  collectStatistics,
  type EvaluateOptions,
  type EvaluateProgress,
  type Evaluation,
  evaluate,
  type Metric,
} from './evaluate.js';
export {
  type FeatureExtractor,
  type Features,
  type InceptionExtractorOptions,
  inceptionExtractor,
} from './extractor.js';
export { frechetDistance } from './frechet.js';
export { type ImageSource, type OpenImagesOptions, openImages } from './image-source.js';
export { type InceptionOutput, InceptionV3 } from './inception.js';
export {
  type InceptionExtractor,
  inceptionTensors,
  type LoadInceptionOptions,
  loadInception,
} from './inception-file.js';
export { InceptionScore, type InceptionScoreOptions, type InceptionScoreResult } from './inception-score.js';
export {
  type FeatureRows,
  manifoldRadii,
  type PrecisionRecall,
  type PrecisionRecallOptions,
  precisionRecall,
} from './precision-recall.js';
export { openReference, type ReferenceOptions } from './reference.js';
export type { ResizeMode } from './resize.js';
export { FeatureStatistics, type Gaussian } from './statistics.js';
