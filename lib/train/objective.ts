/** What a training step minimises: a function from model, batch and random key to a scalar loss. */
import type { Batch, LatentBatch } from '../data/index.js';
import { type DeviceName, defaultDevice } from '../device.js';
import {
  Augmenter,
  type AugmentOptions,
  type EdmNetwork,
  edmLoss,
  type GaussianDiffusion,
  type GaussianNetwork,
} from '../diffusion/index.js';
import type { Module } from '../nn/index.js';
import { add, affine, cast, mul } from '../ops/elementwise.js';
import { permute } from '../ops/index.js';
import { type RandomKey, randn } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { HostRandom } from '../random.js';
import { scope } from '../scope.js';
import { Tensor, tensor } from '../tensor.js';

/** A batch on the device: images [B, C, H, W] in [-1, 1], or latents; and labels i64 [B] where the data has them. */
export interface TensorBatch {
  /** Of latents, the means, scaled. */
  images: Tensor;
  /** Of latents only: the standard deviations, scaled; {@link latentObjective} draws from them. */
  std?: Tensor;
  /** Classes, i64 [B]; absent for an unlabelled set. */
  labels?: Tensor;
}

/** Uploads a batch to `device`; an image's bytes 0..255 become x / 127.5 - 1, latents are multiplied by their scaling factor. */
export function uploadBatch(batch: Batch | LatentBatch, device: DeviceName = defaultDevice()): TensorBatch {
  return scope(() => {
    const labels = batch.labels && tensor(batch.labels, { device });
    if ('images' in batch) {
      const pixels = permute(cast(tensor(batch.images, { shape: batch.shape, device }), 'f32'), [0, 3, 1, 2]);
      return { images: affine(pixels, 1 / 127.5, -1), labels };
    }
    const { mean, std, dtype, shape, scalingFactor } = batch;
    const scaled = (bytes: Uint8Array): Tensor =>
      affine(cast(Tensor.fromBytes(bytes, { shape, dtype, device }), 'f32'), scalingFactor, 0);
    return { images: scaled(mean), std: scaled(std), labels };
  });
}

/** The random numbers of one step: streams `stream` to `stream + 15` of `seed`; image i of the step is sample i. */
export interface StepKey {
  /** Names the random numbers of the run. */
  seed: number;
  /** First random stream of the step. */
  stream: number;
  /** Position in the step of the batch's first image: not 0 in the later parts of an accumulated step. */
  firstSample: number;
}

/** The loss of a batch, mean over its images: a scalar to call backward() on. */
export type Objective<M> = (model: M, batch: TensorBatch, key: StepKey) => Tensor;

/** Stream of a step, from its first one, that latents are drawn with. */
const latentStream = 15;

/** `objective` on latents drawn anew: mean + std noise, scaled. Batches of images pass as they are. */
export function latentObjective<M>(objective: Objective<M>): Objective<M> {
  return (model, batch, key) => {
    const { images: mean, std, labels } = batch;
    if (!std) return objective(model, batch, key);
    const { seed, stream, firstSample } = key;
    const noise = randn(mean.shape, { seed, stream: stream + latentStream, firstSample, device: mean.device });
    return objective(model, { images: add(mean, mul(std, noise)), labels }, key);
  };
}

/** A network that EDM can train: labels are passed on when it has classes. */
export interface EdmModel extends Module, EdmNetwork {
  /** What the objective needs to know of the network. */
  readonly config: { readonly numClasses: number };
}

/** Options of {@link edmObjective}. */
export interface EdmObjectiveOptions {
  /** P_mean: mean of ln(sigma). Default -1.2. */
  pMean?: number;
  /** P_std: standard deviation of ln(sigma). Default 1.2. */
  pStd?: number;
  /** Standard deviation of the training data. Default 0.5. */
  sigmaData?: number;
  /** EDM's augmentation; the network has to take its labels (augmentDim 9). Default: none. */
  augment?: AugmentOptions;
}

const edmSchema = schema((z, is) =>
  z.strictObject({
    pMean: z.number().optional(),
    pStd: z.number().positive().optional(),
    sigmaData: z.number().positive().optional(),
    augment: is.value<AugmentOptions>((x) => typeof x === 'object' && x !== null, 'options of an Augmenter').optional(),
  } satisfies Fields<EdmObjectiveOptions>),
);

/** Streams of a step, from its first one: noise levels, noise, augmentation (the host's). */
const [sigmaStream, edmNoiseStream, augmentStream] = [0, 1, 2];

/** EDM's denoising loss (Karras et al. 2022, Table 1). Throws OptionError for an option that is unknown or out of range. */
export function edmObjective(options: EdmObjectiveOptions = {}): Objective<EdmModel> {
  const { augment, ...settings } = parseOptions(edmSchema, options, 'edmObjective');
  const augmenter = augment && new Augmenter(augment);
  return (model, { images: given, labels }, { seed, stream, firstSample }) =>
    scope(() => {
      const { device } = given;
      const augmented = augmenter?.augment(given, { seed, stream: stream + augmentStream, firstSample });
      const images = augmented?.images ?? given;
      return edmLoss(model, images, {
        ...settings,
        rndNormal: randn([images.shape[0]], { seed, stream: stream + sigmaStream, firstSample, device }),
        noise: randn(images.shape, { seed, stream: stream + edmNoiseStream, firstSample, device }),
        labels: model.config.numClasses > 0 ? labels : undefined,
        augment: augmented?.labels,
      }).loss;
    });
}

/** A network that Gaussian diffusion can train, with MDT's masked pass when it was made with a maskRatio. */
export interface GaussianModel extends Module, GaussianNetwork {
  /** What the objective needs to know of the network. */
  readonly config: { readonly numClasses: number; readonly learnSigma: boolean; readonly maskRatio: number };
  forwardMasked(x: Tensor, t: Tensor, y: Tensor | undefined, key: RandomKey): Tensor;
}

/** Streams of a step, from its first one: timesteps, noise, masks. */
const [timestepStream, noiseStream, maskStream] = [0, 1, 2];

/**
 * ADM's loss (SPEC section 5) at timesteps drawn uniformly, one per image. A model with a maskRatio adds the loss of the
 * masked pass, with the same noise and equal weight (MDT, Gao et al. 2023).
 */
export function gaussianObjective(ddpm: GaussianDiffusion): Objective<GaussianModel> {
  return (model, { images, labels }, { seed, stream, firstSample }) => {
    const random = new HostRandom(seed, stream + timestepStream);
    const last = firstSample + images.shape[0];
    const t = Array.from({ length: last }, () => random.integer(ddpm.numTimesteps)).slice(firstSample);
    const { device } = images;
    return scope(() => {
      const noise = randn(images.shape, { seed, stream: stream + noiseStream, firstSample, device });
      const y = model.config.numClasses > 0 ? labels : undefined;
      const lossOf = (network: GaussianNetwork): Tensor =>
        ddpm.trainingLosses(network, images, t, { noise, y }).loss.mean();
      const loss = lossOf(model);
      if (model.config.maskRatio === 0) return loss;
      const key = { seed, stream: stream + maskStream, firstSample };
      return add(loss, lossOf({ forward: (x, time, labelled) => model.forwardMasked(x, time, labelled, key) }));
    });
  };
}
