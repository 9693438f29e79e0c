/** Training runs: the loop, checkpoints, logs, recipes; model files; autoencoders; images from a trained model. */
export {
  type AblateOptions,
  type AblationResult,
  ablate,
  ablationTable,
  type Study,
  studies,
  type TrainedVariant,
  type Variant,
  type VariantResult,
} from './ablate.js';
export {
  autoencoderConfig,
  autoencoderFiles,
  autoencoderWeights,
  type LoadAutoencoderOptions,
  loadAutoencoder,
  type SaveAutoencoderOptions,
  saveAutoencoder,
} from './autoencoder-file.js';
export {
  type CheckpointState,
  checkpointPath,
  listCheckpoints,
  type RunConfig,
  readCheckpointState,
} from './checkpoint.js';
export { type Cost, type CostOptions, estimateCost, type Processor, processors } from './cost.js';
export { type EncodeLatentsOptions, encodeLatents } from './encode-latents.js';
export { checkLabels, type GenerateOptions, generate, imageShape, type LatentDecoder, toPixels } from './generate.js';
export { type LoadWeightsOptions, loadWeights } from './load-weights.js';
export { readLog } from './log.js';
export {
  type BatchSource,
  type NonFinitePolicy,
  type RunOptions,
  type StepReport,
  Trainer,
  type TrainerOptions,
  type TrainingPrecision,
} from './loop.js';
export { type LossCurveOptions, type LossPoint, lossCurveSvg } from './loss-curve.js';
export {
  type DescribeOptions,
  describeModel,
  type LoadedModel,
  type LoadModelOptions,
  loadModel,
  type ModelDescription,
  readModelDescription,
  type SaveModelOptions,
  saveModel,
} from './model-file.js';
export {
  type EdmModel,
  type EdmObjectiveOptions,
  edmObjective,
  latentObjective,
  type Objective,
  type StepKey,
  type TensorBatch,
  uploadBatch,
} from './objective.js';
export {
  type PlannedTraining,
  type PlanOptions,
  planTraining,
  type Recipe,
  type RecipeEvaluation,
  readRecipe,
  shippedRecipes,
  type TrainingPlan,
} from './recipe.js';
export { type RunRecord, type RunSession, readRecord } from './record.js';
export type { RunStatus } from './report/run-facts.js';
export { type ReportOptions, type WrittenReport, writeReport } from './report/write.js';
export { type TrainCallbacks, TrainingRun, type TrainingRunOptions } from './run.js';
export {
  checkSampler,
  type EdmSamplerOptions,
  type GaussianSamplerSettings,
  parseSampler,
  type ResolvedGaussianSampler,
  type SamplerOptions,
  type SamplerSettings,
} from './sampler-settings.js';
export { shippedWeights } from './shipped-weights.js';
