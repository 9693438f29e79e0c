/** The metrics of generated images against a reference, in one pass over each: FID, sFID, Inception Score, precision and recall. */
import { DataError, OptionError, ShapeError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import {
  type Collected,
  collect,
  defaultBatch,
  type ImageBatches,
  type SetStatistics,
  type Wanted,
} from './collect.js';
import type { FeatureExtractor } from './extractor.js';
import { frechetDistance } from './frechet.js';
import { precisionRecall } from './precision-recall.js';
import type { Gaussian } from './statistics.js';

/** Names of the metrics: FID, sFID, the Inception Score, precision and recall. */
export type Metric = 'fid' | 'sfid' | 'is' | 'pr';

/** All metrics, and those that say something of a reference. */
export const allMetrics = ['fid', 'sfid', 'is', 'pr'] as const satisfies readonly Metric[];
export const referenceMetrics = ['fid', 'sfid', 'pr'] as const satisfies readonly Metric[];

/** Where {@link evaluate} is. */
export interface EvaluateProgress {
  /** The set whose features are computed, or the comparison of the two. */
  phase: 'reference' | 'samples' | 'precision and recall';
  /** Images, or pairs of blocks. */
  done: number;
  /** Where it is known. */
  total?: number;
}

/** Options of {@link evaluate}. */
export interface EvaluateOptions {
  /** The images to be judged, batch by batch. */
  samples: ImageBatches;
  /** What they are compared with: images, or what is known of them ({@link collectStatistics}, {@link openReference}). The Inception Score needs none. */
  reference?: ImageBatches | SetStatistics;
  /** What the metrics are of; {@link loadInception} gives the one of published figures. */
  extractor: FeatureExtractor;
  /** Default ['fid', 'sfid', 'is', 'pr']. */
  metrics?: readonly Metric[];
  /** Images that go through the extractor at a time. Default 32. */
  batch?: number;
  /** Which neighbour's distance is a radius of precision and recall. Default 3. */
  k?: number;
  /** Images of a split of the Inception Score. Default 5000. */
  splitSize?: number;
  /** Called as it goes on. */
  onProgress?: (progress: EvaluateProgress) => void;
  /** Ends it after the batch being computed. */
  signal?: AbortSignal;
}

/** What {@link evaluate} gives; a metric that was not asked for is missing. */
export interface Evaluation {
  /** Images that were judged. */
  samples: number;
  /** Images of the reference, where that is known. */
  reference?: number;
  /** Fréchet's distance of the features, at least 0; lower is better. */
  fid?: number;
  /** The same of the spatial features. */
  sfid?: number;
  /** Higher is better, 1 to the number of classes. */
  inceptionScore?: number;
  /** Standard deviation of the splits' scores. */
  inceptionScoreDeviation?: number;
  /** Share of the samples in the reference's manifold. */
  precision?: number;
  /** Share of the reference in the samples' manifold. */
  recall?: number;
}

const isObject = (value: unknown): boolean => typeof value === 'object' && value !== null;

const optionsSchema = schema((z, is) =>
  z.strictObject({
    samples: is.value<EvaluateOptions['samples']>(isImages, 'batches of images'),
    reference: is
      .value<NonNullable<EvaluateOptions['reference']>>(isObject, 'batches of images or statistics')
      .optional(),
    extractor: is.callback<FeatureExtractor>(),
    metrics: z.array(z.enum(allMetrics)).min(1).readonly().default(allMetrics),
    batch: is.count.default(defaultBatch),
    k: is.count.default(3),
    splitSize: is.count.default(5000),
    onProgress: is.callback<NonNullable<EvaluateOptions['onProgress']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<EvaluateOptions>),
);

/**
 * Judges images as guided-diffusion's evaluator does: FID and sFID (Heusel et al. 2017; Nash et al. 2021), the Inception Score (Salimans et al. 2016),
 * improved precision and recall (Kynkäänniemi et al. 2019). Images and features pass through; moments (D^2 numbers) are kept, and for precision and recall
 * the features, 4 D bytes an image. With 50,000 samples and the published reference these are the figures of papers.
 *
 * @throws {OptionError} An option that is unknown or out of range; a metric that needs a reference, without one.
 * @throws {DataError} Too few images; features that are not finite; a reference without what a metric needs.
 * @throws {ShapeError} Images that do not fill their shape; features of another number than the reference's.
 */
export async function evaluate(options: EvaluateOptions): Promise<Evaluation> {
  const settings = parseOptions(optionsSchema, options, 'evaluate');
  const { samples, reference, extractor, metrics, batch, k, splitSize, onProgress, signal } = settings;
  const compared = metrics.filter((metric) => metric !== 'is');
  if (!reference && compared.length > 0) throw new OptionError(`evaluate: ${compared.join(', ')} need a reference.`);
  const wanted = wantedFor(metrics);
  let known: SetStatistics | undefined;
  if (reference && compared.length > 0) {
    known = isImages(reference)
      ? await collect(reference as ImageBatches, extractor, wanted, {
          batch,
          signal,
          onImages: (done) => onProgress?.({ phase: 'reference', done }),
        })
      : (reference as SetStatistics);
    checkReference(known, wanted);
  }
  const found = await collect(
    samples,
    extractor,
    { ...wanted, splitSize: metrics.includes('is') ? splitSize : undefined },
    { batch, signal, onImages: (done) => onProgress?.({ phase: 'samples', done }) },
  );
  const result: Evaluation = { samples: found.count, reference: known?.count };
  if (metrics.includes('fid')) result.fid = await distance('features', known, found);
  signal?.throwIfAborted();
  if (metrics.includes('sfid')) result.sfid = await distance('spatial', known, found);
  if (found.inceptionScore) {
    result.inceptionScore = found.inceptionScore.score;
    result.inceptionScoreDeviation = found.inceptionScore.deviation;
  }
  if (metrics.includes('pr')) {
    const [a, b] = [known?.rows as Float32Array, found.rows as Float32Array];
    const width = b.length / found.count;
    const progress = (step: { done: number; total: number }): void =>
      onProgress?.({ phase: 'precision and recall', ...step });
    Object.assign(result, await precisionRecall(a, b, width, { k, signal, onProgress: progress }));
  }
  return result;
}

/** Options of {@link collectStatistics}. */
export interface CollectOptions extends Pick<EvaluateOptions, 'extractor' | 'batch' | 'signal'> {
  /** The metrics that it is to serve. Default ['fid', 'sfid', 'pr']. */
  metrics?: readonly Metric[];
  /** Called after each batch, with the images so far. */
  onImages?: (count: number) => void;
}

const collectSchema = schema((z, is) =>
  z.strictObject({
    extractor: is.callback<FeatureExtractor>(),
    metrics: z.array(z.enum(allMetrics)).readonly().default(referenceMetrics),
    batch: is.count.default(defaultBatch),
    onImages: is.callback<NonNullable<CollectOptions['onImages']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<CollectOptions>),
);

/** What {@link evaluate} needs to know of a reference, computed once for many evaluations. Errors as evaluate()'s. */
export async function collectStatistics(images: ImageBatches, options: CollectOptions): Promise<SetStatistics> {
  const { extractor, metrics, ...pass } = parseOptions(collectSchema, options, 'collectStatistics');
  const { inceptionScore: _, ...known }: Collected = await collect(images, extractor, wantedFor(metrics), pass);
  return known;
}

/** What metrics need to know of a set, besides the predictions. @internal */
export function wantedFor(metrics: readonly Metric[]): Wanted {
  return { features: metrics.includes('fid'), spatial: metrics.includes('sfid'), rows: metrics.includes('pr') };
}

function isImages(value: unknown): boolean {
  return isObject(value) && (Symbol.iterator in (value as object) || Symbol.asyncIterator in (value as object));
}

/** Throws DataError where the reference lacks what is wanted. @internal */
export function checkReference(known: SetStatistics, wanted: Wanted): void {
  const lacks = [
    wanted.features && !known.features && 'mean and covariance of the features (fid)',
    wanted.spatial && !known.spatial && 'mean and covariance of the spatial features (sfid)',
    wanted.rows && !known.rows && 'images or features (pr)',
  ].filter((what) => what !== false);
  if (lacks.length > 0) throw new DataError(`The reference has no ${lacks.join(', no ')}; leave those metrics out.`);
}

async function distance(
  of: 'features' | 'spatial',
  known: SetStatistics | undefined,
  found: Collected,
): Promise<number> {
  const [a, b] = [known?.[of] as Gaussian, found[of] as Gaussian];
  if (a.mean.length !== b.mean.length) {
    throw new ShapeError(
      `The reference is of ${a.mean.length} ${of === 'spatial' ? 'spatial features' : 'features'}, the extractor gives ${b.mean.length}: it is another extractor's.`,
    );
  }
  return frechetDistance(a, b);
}
