/**
 * What a training run costs before it starts: operations, memory and days, from the plan alone. The times are an estimate: peak rates of
 * the processors' datasheets, of which a share is assumed to be reached.
 */
import { unknownName } from '../errors.js';
import { forwardFlops, keptNumbers } from '../models/cost.js';
import { type DiffusionModel, modelKinds } from '../models/index.js';
import { forLoading } from '../nn/init.js';
import { type Fields, parseOptions, schema } from '../options.js';
import type { TrainingPlan } from './recipe.js';
import type { SamplerSettings } from './sampler-settings.js';

/** A processor to train on. */
export interface Processor {
  /** Operations per second at most in products of f32 and of bf16 (dense, with f32 sums). */
  flops: { f32: number; bf16: number };
  /** Bytes of memory. */
  memory: number;
}

const gpu = (f32: number, bf16: number, gibibytes: number): Processor => ({
  flops: { f32: f32 * 1e12, bf16: bf16 * 1e12 },
  memory: gibibytes * 2 ** 30,
});

/** GPUs that {@link estimateCost} knows, with the datasheets' figures (without sparsity). */
export const processors: Readonly<Record<string, Processor>> = {
  a100: gpu(19.5, 312, 80),
  h100: gpu(67, 989, 80),
  h200: gpu(67, 989, 141),
  b200: gpu(80, 2250, 180),
  l40s: gpu(91.6, 362, 48),
  rtx4090: gpu(82.6, 165, 24),
};

/** Options of {@link estimateCost}. */
export interface CostOptions {
  /** Images to train on in all. Default: the plan's `training.images`. */
  images?: number;
  /** Images that are drawn for the evaluation. Default: the plan's `evaluation.samples`, else 50,000. */
  samples?: number;
  /** One by its name in {@link processors}, or its figures. Default 'h100'. */
  processor?: string | Processor;
  /** How many share the batch, nothing lost between them. diffit itself trains on one. Default 1. */
  count?: number;
  /** Share of the peak that is reached, above 0. Default 0.35. */
  utilization?: number;
}

const costSchema = schema((z, is) =>
  z.strictObject({
    images: is.count.optional(),
    samples: is.natural.optional(),
    processor: z
      .union([
        is.name,
        z.strictObject({
          flops: z.strictObject({ f32: z.number().positive(), bf16: z.number().positive() }),
          memory: z.number().positive(),
        }),
      ])
      .default('h100'),
    count: is.count.default(1),
    utilization: z.number().positive().max(1).default(0.35),
  } satisfies Fields<CostOptions>),
);

/** What a run costs; see {@link estimateCost}. */
export interface Cost {
  /** Numbers that are learnt. */
  parameters: number;
  /** Operations of one forward pass of one image; a multiply-add counts as two. */
  forwardFlops: number;
  /** Optimizer steps of the training; undefined when its length is not known. */
  steps?: number;
  /** Images of the training. */
  images?: number;
  /** Operations of the training: three forward passes an image, four with gradient checkpointing. */
  trainingFlops?: number;
  /** Images of the evaluation. */
  samples: number;
  /** Forward passes for each of them. */
  evaluations: number;
  /** Operations of the evaluation. */
  samplingFlops: number;
  /** Bytes: of weights, gradients, AdamW's two averages and the moving average; of what a step keeps of one image; of a whole step. */
  memory: { parameters: number; perImage: number; step: number };
  /** Images of the largest part of a batch that fits, and of one that was planned. */
  microBatch: { fits: number; planned: number };
  /** The processor. */
  processor: Processor;
  /** How many share the batch. */
  count: number;
  /** Share of their peak that is assumed. */
  utilization: number;
  /** Seconds of the training on them. */
  trainingSeconds?: number;
  /** Seconds of the evaluation's sampling on them. */
  samplingSeconds: number;
}

/**
 * What a training run and its evaluation cost, from the plan alone; nothing is computed but sizes.
 *
 * @throws {OptionError} A wrong option, a GPU that is not known, or a model whose options are wrong.
 */
export function estimateCost(plan: TrainingPlan, options: CostOptions = {}): Cost {
  const { processor: asked, count, utilization, ...given } = parseOptions(costSchema, options, 'estimateCost');
  const processor = typeof asked === 'string' ? processorOf(asked) : asked;
  const { training, kind, sampler } = plan;
  const images = given.images ?? training.images;
  const samples = given.samples ?? plan.evaluation?.samples ?? 50_000;
  const { parameters, config } = sizesOf(plan);
  const flops = forwardFlops(kind, config);
  const bf16 = training.precision === 'bf16';
  const checkpointing = training.gradientCheckpointing;
  // f32: weights, gradients, AdamW's two averages, the moving average; in bf16 the matrices have copies of half the size.
  const ofParameters = parameters * (20 + (bf16 ? 2 : 0));
  const kept = keptNumbers(kind, config) * (bf16 ? 2 : 4);
  const perImage = Math.round(checkpointing ? kept / Number(config.depth ?? 1) : kept);
  const planned = Math.min(training.microBatch ?? training.batch, Math.ceil(training.batch / count));
  const fits = Math.max(0, Math.floor((processor.memory - ofParameters) / perImage));
  const evaluations = evaluationsOf(sampler);
  const rate = processor.flops[training.precision] * count * utilization;
  const trainingFlops = images && (checkpointing ? 4 : 3) * flops * images;
  const samplingFlops = samples * evaluations * flops;
  return {
    parameters,
    forwardFlops: flops,
    steps: images && Math.ceil(images / training.batch),
    images,
    trainingFlops,
    samples,
    evaluations,
    samplingFlops,
    memory: { parameters: ofParameters, perImage, step: ofParameters + planned * perImage },
    microBatch: { fits: Math.min(fits, training.batch), planned },
    processor,
    count,
    utilization,
    trainingSeconds: trainingFlops && trainingFlops / rate,
    samplingSeconds: samplingFlops / rate,
  };
}

function processorOf(name: string): Processor {
  if (!Object.hasOwn(processors, name)) throw unknownName('processor', name, Object.keys(processors));
  return processors[name];
}

/** Numbers to learn and options of the plan's network, of which one without values is made for a moment. */
function sizesOf({ kind, model }: TrainingPlan): { parameters: number; config: Readonly<Record<string, unknown>> } {
  const make = modelKinds[kind] as new (options: object) => DiffusionModel;
  const network = forLoading(() => new make(model));
  const found = { parameters: network.parameterCount(), config: { ...network.config } };
  network.dispose();
  return found;
}

/** Forward passes for one image: Heun takes two a step but the last, guidance doubles them. */
function evaluationsOf({ kind, steps, cfgScale }: SamplerSettings): number {
  return (kind === 'edm' ? 2 * steps - 1 : steps) * (cfgScale === 1 ? 1 : 2);
}
