/**
 * Data sets of latents, as `diffit data encode` writes them, and batches of them. What is stored is the encoder's
 * distribution; the latents themselves, mean + std noise, are drawn anew each time on the device.
 */
import { join } from 'node:path';
import { itemSize } from '../dtype.js';
import { DataError, OptionError } from '../errors.js';
import { readFully, withFile } from '../io/files.js';
import { numel } from '../shape.js';
import { BatchLoader, type Draw, type LoaderOptions } from './batch-loader.js';
import { checkIndex } from './dataset.js';
import { Gate } from './gate.js';
import { checkShard, type LatentSettings, type LatentShard, readLatentIndex } from './latent-index.js';

/** Shards read at the same time. */
const concurrency = 16;

interface OpenShard extends LatentShard {
  /** Index of its first image. */
  first: number;
  /** Where in the file each tensor starts. */
  starts: Map<string, number>;
}

/** Latents of images, read by index. Files are opened for each read, so there is nothing to close. */
export class LatentDataset {
  /** Number of images. */
  readonly length: number;
  private readonly gate = new Gate(concurrency);
  private readonly sampleBytes: number;

  private constructor(
    /** The folder. */
    readonly dir: string,
    /** What the latents were made from and how. */
    readonly settings: Readonly<LatentSettings>,
    private readonly shards: readonly OpenShard[],
    private readonly labels: BigInt64Array | undefined,
  ) {
    this.length = settings.images;
    this.sampleBytes = numel(settings.latentShape) * itemSize(settings.dtype);
  }

  /**
   * Opens a folder of latents; every shard's header is checked, and the labels are read.
   *
   * @throws {DataError} It holds none, or not all yet; a shard is missing or a label is wrong.
   * @throws {FileFormatError} A damaged file, naming it.
   * @throws {FileError} A file that cannot be read.
   */
  static async open(dir: string): Promise<LatentDataset> {
    const index = await readLatentIndex(dir);
    if (!index) throw new DataError(`${dir} holds no latents; make them with diffit data encode.`);
    const { settings, shards } = index;
    const found = shards.reduce((sum, { images }) => sum + images, 0);
    if (found !== settings.images) {
      throw new DataError(
        `${dir} holds latents of ${found} of ${settings.images} images; run diffit data encode again.`,
      );
    }
    const labels = settings.numClasses > 0 ? new BigInt64Array(settings.images) : undefined;
    const open: OpenShard[] = [];
    let first = 0;
    for (const shard of shards) {
      const starts = await checkShard(dir, shard, settings);
      const path = join(dir, shard.file);
      const part = labels?.subarray(first, first + shard.images);
      if (part) {
        const bytes = new Uint8Array(part.buffer, part.byteOffset, part.byteLength);
        await withFile(path, (handle) => readFully(handle, bytes, starts.get('labels') as number, path));
        const wrong = part.find((label) => label < 0n || label >= settings.numClasses);
        if (wrong !== undefined) {
          throw new DataError(`${path} has the label ${wrong}; expected 0 .. ${settings.numClasses - 1}.`);
        }
      }
      open.push({ ...shard, first, starts });
      first += shard.images;
    }
    return new LatentDataset(dir, settings, open, labels);
  }

  /** The label of an image; 0 in an unlabelled set. */
  label(index: number): bigint {
    checkIndex(index, this.length);
    return this.labels?.[index] ?? 0n;
  }

  /**
   * Means and standard deviations [indices.length, C, h, w] as the bytes of `settings.dtype`; of the mirrored image where
   * `flips` says so. Throws FileFormatError, FileError.
   */
  async readBatch(
    indices: ArrayLike<number>,
    flips: (i: number) => boolean = () => false,
    signal?: AbortSignal,
  ): Promise<{ mean: Uint8Array; std: Uint8Array }> {
    const { sampleBytes } = this;
    const [mean, std] = [0, 1].map(() => new Uint8Array(indices.length * sampleBytes));
    const byShard = new Map<OpenShard, number[]>();
    for (let i = 0; i < indices.length; i++) {
      checkIndex(indices[i], this.length);
      const shard = this.shardOf(indices[i]);
      byShard.set(shard, [...(byShard.get(shard) ?? []), i]);
    }
    const readShard = ([shard, positions]: [OpenShard, number[]]): Promise<void> => {
      const path = join(this.dir, shard.file);
      return withFile(path, async (handle) => {
        for (const i of positions) {
          const ending = flips(i) ? '_mirrored' : '';
          for (const [name, out] of Object.entries({ mean, std })) {
            const start = shard.starts.get(name + ending);
            if (start === undefined) throw new OptionError(`${this.dir} holds no latents of mirrored images.`);
            const at = start + (indices[i] - shard.first) * sampleBytes;
            await readFully(handle, out.subarray(i * sampleBytes, (i + 1) * sampleBytes), at, path, signal);
          }
        }
      });
    };
    await Promise.all(Array.from(byShard, (part) => this.gate.run(() => readShard(part))));
    return { mean, std };
  }

  private shardOf(index: number): OpenShard {
    let [low, high] = [0, this.shards.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if (this.shards[middle].first <= index) low = middle;
      else high = middle - 1;
    }
    return this.shards[low];
  }
}

/** Opens a folder that `diffit data encode` filled; see {@link LatentDataset.open}. */
export function openLatents(dir: string): Promise<LatentDataset> {
  return LatentDataset.open(dir);
}

/** What a {@link LatentLoader} delivers. */
export interface LatentBatch {
  /** Means: bytes of `dtype`, [batch, C, h, w], unscaled. */
  mean: Uint8Array;
  /** Standard deviations, likewise. */
  std: Uint8Array;
  /** Type of the elements of both. */
  dtype: LatentSettings['dtype'];
  /** [batch, C, h, w]. */
  shape: readonly [number, number, number, number];
  /** What a diffusion model multiplies the latents by. */
  scalingFactor: number;
  /** One per image; undefined for an unlabelled data set. */
  labels: BigInt64Array | undefined;
  /** Which images of the data set these are. */
  indices: Uint32Array;
  /** From 0. */
  epoch: number;
}

/** Batches of latents; see {@link BatchLoader}. A flip takes the mirrored image's latents, which must be there. */
export class LatentLoader extends BatchLoader<LatentBatch> {
  /**
   * As {@link BatchLoader}'s.
   *
   * @throws {OptionError} Also for a flip of latents whose mirrored images were not encoded.
   */
  constructor(
    /** Where the latents come from. */
    readonly dataset: LatentDataset,
    options: LoaderOptions,
  ) {
    super(dataset.length, options);
    if ((options.flip ?? 0) > 0 && !dataset.settings.mirrored) {
      throw new OptionError(
        `${dataset.dir} holds no latents of mirrored images; encode with --flip, or train without.`,
      );
    }
  }

  /** Reads one batch. */
  protected async read({ indices, epoch, flips }: Draw, stop: AbortSignal): Promise<LatentBatch> {
    const { dataset } = this;
    const { dtype, latentShape, scalingFactor, numClasses } = dataset.settings;
    const moments = await dataset.readBatch(indices, flips, stop);
    const labels = numClasses > 0 ? BigInt64Array.from(indices, (index) => dataset.label(index)) : undefined;
    return { ...moments, dtype, shape: [indices.length, ...latentShape], scalingFactor, labels, indices, epoch };
  }
}
