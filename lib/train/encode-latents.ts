/**
 * Images to latents: a data set through an autoencoder's encoder into the shards of data.LatentDataset. A shard is
 * written whole, then named in the index, so whatever ends a run, the next one goes on behind the last named shard.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import {
  type Batch,
  checkShard,
  DataLoader,
  type Dataset,
  type LatentIndex,
  type LatentSettings,
  mirror,
  momentNames,
  readLatentIndex,
  writeLatentIndex,
} from '../data/index.js';
import { type DType, itemSize } from '../dtype.js';
import { DataError, OptionError } from '../errors.js';
import { makeFolder } from '../io/files.js';
import { saveSafetensors } from '../io/index.js';
import { AutoencoderKL } from '../models/index.js';
import { unary } from '../ops/elementwise.js';
import { mean as meanOf } from '../ops/reduce.js';
import { type Fields, type Output, parseOptions, schema } from '../options.js';
import { noGrad, scope } from '../scope.js';
import { numel } from '../shape.js';
import { Tensor, tensor } from '../tensor.js';
import { differences } from './checkpoint.js';
import { uploadBatch } from './objective.js';

/** Options of {@link encodeLatents}. */
export interface EncodeLatentsOptions {
  /** The images to encode. */
  dataset: Dataset;
  /** The autoencoder; its encoder is what is used. */
  vae: AutoencoderKL;
  /** Folder of the shards; made if there is none. One that holds some is continued. */
  out: string;
  /** Images at a time. Default 8. */
  batch?: number;
  /** Images per shard. Default 4096. */
  shardSize?: number;
  /** How latents are stored. Default 'f16'. */
  dtype?: LatentSettings['dtype'];
  /** Encode the mirrored images too. Default false. */
  flip?: boolean;
  /** Stops after the batch being encoded; what there is becomes a shorter shard. */
  signal?: AbortSignal;
  /** Called at the start and after every batch. */
  onProgress?: (progress: { done: number; total: number }) => void;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    dataset: is.having<Dataset>(['get'], 'a data set'),
    vae: is.value<AutoencoderKL>((x) => x instanceof AutoencoderKL, 'an AutoencoderKL'),
    out: is.name,
    batch: is.count.default(8),
    shardSize: is.count.default(4096),
    dtype: z.enum(['f32', 'f16', 'bf16']).default('f16'),
    flip: z.boolean().default(false),
    signal: is.signal.optional(),
    onProgress: is.callback<NonNullable<EncodeLatentsOptions['onProgress']>>().optional(),
  } satisfies Fields<EncodeLatentsOptions>),
);
type Settings = Output<typeof optionsSchema>;

/**
 * Encodes what is not encoded yet, and returns how many images the folder then holds: all of them unless the signal
 * stopped it. Throws OptionError for images the autoencoder does not take, DataError when the folder holds latents made
 * with other settings, a listed shard is missing, or the encoder's numbers are not finite; FileError, FileFormatError.
 */
export async function encodeLatents(options: EncodeLatentsOptions): Promise<number> {
  const given = parseOptions(optionsSchema, options, 'encodeLatents');
  const { dataset, vae, out, batch, shardSize, signal, onProgress } = given;
  const settings = await settingsOf(given);
  await makeFolder(out);
  const index = await openIndex(out, settings);
  const total = dataset.length;
  let done = index.shards.reduce((sum, { images }) => sum + images, 0);
  onProgress?.({ done, total });
  if (done === total || signal?.aborted) return done;
  const loader = new DataLoader(dataset, { batchSize: batch, shuffle: false, dropLast: false, epochs: 1 });
  loader.restore({ epoch: 0, cursor: done });
  const shard = new ShardBuffer(Math.min(shardSize, total - done), settings);
  const write = async (): Promise<void> => {
    const file = `shard-${String(index.shards.length).padStart(5, '0')}.safetensors`;
    await shard.save(join(out, file));
    index.shards.push({ file, images: shard.images });
    await writeLatentIndex(out, index);
    shard.clear();
  };
  for await (const images of loader) {
    const moments = await encodeBatch(vae, images, settings);
    for (let from = 0; from < images.indices.length; ) {
      from += shard.add(moments, images.labels, from);
      if (shard.isFull) await write();
    }
    done += images.indices.length;
    onProgress?.({ done, total });
    if (signal?.aborted) break;
  }
  if (shard.images > 0) await write();
  return done;
}

/** The folder's index, a new one where there is none. Refuses one of other settings, and checks its shards. */
async function openIndex(out: string, settings: LatentSettings): Promise<LatentIndex> {
  const index = await readLatentIndex(out);
  if (!index) {
    const fresh = { settings, shards: [] };
    await writeLatentIndex(out, fresh);
    return fresh;
  }
  const changes = differences(index.settings, settings, 'the folder');
  if (changes.length > 0) {
    throw new DataError(`${out} holds latents made with other settings: ${changes.join('; ')}.`);
  }
  for (const shard of index.shards) await checkShard(out, shard, settings);
  return index;
}

async function settingsOf({ dataset, vae, dtype, flip }: Settings): Promise<LatentSettings> {
  const { imageShape, length, numClasses, classNames } = dataset;
  const { inChannels, latentChannels, scalingFactor } = vae.config;
  const [height, width, channels] = imageShape;
  if (channels !== inChannels) {
    throw new OptionError(`The images have ${channels} channels, the VAE takes ${inChannels}.`);
  }
  if (height % vae.factor !== 0 || width % vae.factor !== 0) {
    throw new OptionError(
      `The VAE takes images whose sides ${vae.factor} divides; these are ${width} x ${height}. Choose another size.`,
    );
  }
  return {
    images: length,
    imageShape: [height, width, channels],
    latentShape: [latentChannels, height / vae.factor, width / vae.factor],
    scalingFactor,
    numClasses,
    ...(classNames && { classNames: [...classNames] }),
    mirrored: flip,
    dtype,
    vae: await weightsDigest(vae),
  };
}

/** SHA-256 of all weights, by name and value. */
async function weightsDigest(vae: AutoencoderKL): Promise<string> {
  const hash = createHash('sha256');
  await scope(async () => {
    for (const [name, weight] of Object.entries(vae.stateDict())) {
      hash.update(`${name}\n`).update(await weight.bytes());
      weight.dispose();
    }
  });
  return hash.digest('hex');
}

/** The bytes of momentNames(settings), [batch, C, h, w] each. */
async function encodeBatch(vae: AutoencoderKL, batch: Batch, settings: LatentSettings): Promise<Uint8Array[]> {
  const moments = await encodeImages(vae, batch, settings.dtype);
  if (!settings.mirrored) return moments;
  const images = batch.images.slice();
  const [, , width, channels] = batch.shape;
  mirror(images, width, channels);
  return [...moments, ...(await encodeImages(vae, { ...batch, images }, settings.dtype))];
}

function encodeImages(vae: AutoencoderKL, batch: Batch, dtype: DType): Promise<Uint8Array[]> {
  return scope(async () => {
    const [mean, std, finite] = noGrad(() => {
      const posterior = vae.encode(uploadBatch(batch).images);
      const stored = [posterior.mean, posterior.std()].map((values) => values.to(dtype));
      const flags = stored.map((values) => meanOf(unary('isFinite', values.to('f32'))));
      return [...stored, flags[0].add(flags[1])];
    });
    if ((await finite.item()) !== 2) {
      const [first, last] = [batch.indices[0], batch.indices[batch.indices.length - 1]];
      throw new DataError(`Latents of images ${first} to ${last} are NaN or too large for ${dtype}.`);
    }
    return Promise.all([mean.bytes(), std.bytes()]);
  });
}

/** The images of one shard as they come. */
class ShardBuffer {
  images = 0;
  private readonly moments: Uint8Array[];
  private readonly labels?: BigInt64Array;
  private readonly sampleBytes: number;

  constructor(
    private readonly capacity: number,
    private readonly settings: LatentSettings,
  ) {
    this.sampleBytes = numel(settings.latentShape) * itemSize(settings.dtype);
    this.moments = momentNames(settings).map(() => new Uint8Array(capacity * this.sampleBytes));
    if (settings.numClasses > 0) this.labels = new BigInt64Array(capacity);
  }

  get isFull(): boolean {
    return this.images === this.capacity;
  }

  clear(): void {
    this.images = 0;
  }

  /** Takes images of a batch from `from` on while there is room; returns how many. */
  add(moments: readonly Uint8Array[], labels: BigInt64Array | undefined, from: number): number {
    const { sampleBytes, images } = this;
    const count = Math.min(this.capacity - images, moments[0].length / sampleBytes - from);
    for (const [i, bytes] of moments.entries()) {
      this.moments[i].set(bytes.subarray(from * sampleBytes, (from + count) * sampleBytes), images * sampleBytes);
    }
    if (labels) this.labels?.set(labels.subarray(from, from + count), images);
    this.images += count;
    return count;
  }

  async save(path: string): Promise<void> {
    const { settings, images } = this;
    const shape = [images, ...settings.latentShape];
    await scope(async () => {
      const tensors = Object.fromEntries(
        momentNames(settings).map((name, i) => {
          const bytes = this.moments[i].subarray(0, images * this.sampleBytes);
          return [name, Tensor.fromBytes(bytes, { shape, dtype: settings.dtype })];
        }),
      );
      await saveSafetensors(path, {
        ...tensors,
        ...(this.labels && { labels: tensor(this.labels.subarray(0, images)) }),
      });
    });
  }
}
