/**
 * References: moments from files (guided-diffusion's and StyleGAN's .npz: mu, sigma, and mu_s, sigma_s of the spatial features), or computed from images and then
 * kept in a cache, under the SHA-256 of the images and the extractor's name.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { FileFormatError } from '../errors.js';
import { makeFolder, toFileError } from '../io/files.js';
import { type HostArray, hostArray, hostValues, NpzFile, writeNpz } from '../io/index.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { format } from '../shape.js';
import { collect, defaultBatch, type SetStatistics, type Wanted } from './collect.js';
import {
  allMetrics,
  checkReference,
  type EvaluateOptions,
  type Metric,
  referenceMetrics,
  wantedFor,
} from './evaluate.js';
import type { FeatureExtractor } from './extractor.js';
import { type ImageSource, openImages } from './image-source.js';
import type { Gaussian } from './statistics.js';

/** Options of {@link openReference}. */
export interface ReferenceOptions extends Pick<EvaluateOptions, 'extractor' | 'batch' | 'signal'> {
  /** The metrics that it is to serve. Default ['fid', 'sfid', 'pr']. */
  metrics?: readonly Metric[];
  /** Scale and crop images of folders and archives to squares of this side. */
  size?: number;
  /** Folder of computed statistics; false: keep none. Default: DIFFIT_CACHE, or ~/.cache/diffit. Without the extractor's cacheKey none are kept. */
  cache?: string | false;
  /** Called after each batch of images that has to be computed. */
  onImages?: (progress: { done: number; total: number }) => void;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    extractor: is.callback<FeatureExtractor>(),
    metrics: z.array(z.enum(allMetrics)).readonly().default(referenceMetrics),
    batch: is.count.default(defaultBatch),
    size: is.count.optional(),
    cache: z.union([is.name, z.literal(false)]).optional(),
    onImages: is.callback<NonNullable<ReferenceOptions['onImages']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<ReferenceOptions>),
);

/** What is kept in a cache is of this form; another number is computed anew. */
const formatVersion = 1;

/**
 * What a reference is known by: the moments in a .npz file (mu, sigma; mu_s, sigma_s), and what they lack from its images (arr_0), or from those of a
 * folder or archive. What is computed from images is kept in the cache, by their content and the extractor's {@link FeatureExtractor.cacheKey}.
 *
 * @throws {FileError} A file cannot be read, or the cache not written.
 * @throws {FileFormatError} A file is not what it claims to be; moments whose shapes do not fit each other.
 * @throws {DataError} There are no images, or neither moments nor images for a metric.
 * @throws {OptionError} An option that is unknown or out of range.
 */
export async function openReference(path: string, options: ReferenceOptions): Promise<SetStatistics> {
  const settings = parseOptions(optionsSchema, options, 'openReference');
  const wanted = wantedFor(settings.metrics);
  const stored = path.toLowerCase().endsWith('.npz') ? await readMoments(path) : { moments: {}, hasImages: true };
  const known: SetStatistics = stored.moments;
  const lacking: Wanted = {
    features: wanted.features && !known.features,
    spatial: wanted.spatial && !known.spatial,
    rows: wanted.rows,
  };
  if (!lacking.features && !lacking.spatial && !lacking.rows) return known;
  if (!stored.hasImages) checkReference(known, wanted);
  using images = await openImages(path, { size: settings.size });
  const { extractor, cache = defaultCache() } = settings;
  const compute = (): Promise<SetStatistics> => {
    const onImages = (done: number): void => settings.onImages?.({ done, total: images.count });
    const { batch, signal } = settings;
    return collect(images.batches(batch), extractor, lacking, { batch, signal, onImages });
  };
  const computed =
    cache === false || extractor.cacheKey === undefined
      ? await compute()
      : await cached(cache, path, images, extractor.cacheKey, settings, lacking, compute);
  const { count, rows } = computed;
  return { count, rows, features: known.features ?? computed.features, spatial: known.spatial ?? computed.spatial };
}

/** Where statistics are kept: DIFFIT_CACHE, or ~/.cache/diffit as XDG_CACHE_HOME has it. */
function defaultCache(): string {
  return process.env.DIFFIT_CACHE || join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'diffit');
}

async function cached(
  folder: string,
  path: string,
  images: ImageSource,
  extractor: string,
  { size, batch, signal }: { size?: number; batch: number; signal?: AbortSignal },
  wanted: Wanted,
  compute: () => Promise<SetStatistics>,
): Promise<SetStatistics> {
  const content = await contentHash(path, images, batch, signal);
  const what = `${formatVersion} ${content} ${size ?? ''} ${JSON.stringify(wanted)} ${extractor}`;
  const place = join(folder, 'references');
  const file = join(place, `${createHash('sha256').update(what).digest('hex')}.npz`);
  if (await stat(file).catch(() => undefined)) {
    const found = await readMoments(file);
    const complete = found.moments.features || found.moments.rows || found.moments.spatial;
    if (complete) return found.moments;
  }
  const computed = await compute();
  await makeFolder(place);
  await writeNpz(file, arraysOf(computed));
  return computed;
}

/** Of the file; of a folder the images themselves. */
async function contentHash(path: string, images: ImageSource, batch: number, signal?: AbortSignal): Promise<string> {
  const hash = createHash('sha256');
  const isFile = (await stat(path).catch(() => undefined))?.isFile() === true;
  if (!isFile) {
    for await (const { data, shape } of images.batches(batch)) {
      signal?.throwIfAborted();
      hash.update(format(shape.slice(1))).update(data);
    }
    return hash.digest('hex');
  }
  try {
    for await (const chunk of createReadStream(path, { signal })) hash.update(chunk as Buffer);
  } catch (error) {
    signal?.throwIfAborted();
    throw toFileError(error, path, 'read');
  }
  return hash.digest('hex');
}

function arraysOf({ count, features, spatial, rows }: SetStatistics): Record<string, HostArray> {
  const moments = (of: Gaussian, suffix: string): Record<string, HostArray> => ({
    [`mu${suffix}`]: hostArray(of.mean),
    [`sigma${suffix}`]: hostArray(of.covariance, [of.mean.length, of.mean.length]),
  });
  return {
    ...(features && moments(features, '')),
    ...(spatial && moments(spatial, '_s')),
    ...(rows && { features: hostArray(rows, [count as number, rows.length / (count as number)]) }),
    count: hostArray(Float64Array.of(count as number)),
  };
}

/**
 * The moments in a .npz file, as guided-diffusion's reference batches and EDM's have them: mu, sigma, and mu_s, sigma_s.
 * Throws FileFormatError for arrays that are no moments.
 */
async function readMoments(path: string): Promise<{ moments: SetStatistics; hasImages: boolean }> {
  using file = await NpzFile.open(path);
  const has = (name: string): boolean => file.names.includes(name);
  const moments = async (suffix: string): Promise<Gaussian | undefined> => {
    const names = [`mu${suffix}`, `sigma${suffix}`];
    if (!names.some(has)) return undefined;
    const [mean, covariance] = await Promise.all(names.map((name) => file.read(name)));
    const [width] = mean.shape;
    const fits = mean.shape.length === 1 && format(covariance.shape) === format([width, width]);
    if (!fits || ![mean, covariance].every(({ dtype }) => dtype === 'f32' || dtype === 'f64')) {
      const given = [mean, covariance].map(({ dtype, shape }, i) => `${names[i]} ${dtype} ${format(shape)}`);
      throw new FileFormatError(`${path} has ${given.join(' and ')}; expected floats [D] and [D, D].`, { path });
    }
    return { mean: Float64Array.from(numbers(mean)), covariance: Float64Array.from(numbers(covariance)) };
  };
  const [features, spatial] = [await moments(''), await moments('_s')];
  const rows = has('features') ? (hostValues(await file.read('features')) as Float32Array) : undefined;
  const count = has('count') ? Number(hostValues(await file.read('count'))[0]) : undefined;
  return { moments: { count, features, spatial, rows }, hasImages: has('arr_0') };
}

function numbers(array: HostArray): Float32Array | Float64Array {
  return hostValues(array) as Float32Array | Float64Array;
}
