/**
 * Data sets as they are handed out, to the form that training reads: squares of one size in a zip as EDM's dataset_tool writes it, or in an .npz
 * as guided-diffusion does. Pictures are decoded and encoded in sharp's threads and cropped in workers, many at a time, and written in order.
 */
import { stat } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { dirname } from 'node:path';
import { DataError, FileError, FileFormatError, OptionError } from '../errors.js';
import { makeFolder, toFileError } from '../io/files.js';
import type { Image } from '../io/image.js';
import type { Resampling } from '../io/resample.js';
import { type Fields, type Output as Parsed, parseOptions, schema } from '../options.js';
import {
  type ConvertState,
  type Output,
  openOutput,
  partialPath,
  progressPath,
  readProgress,
  removeProgress,
  type Skipped,
  writeProgress,
} from './convert-output.js';
import { guessKind, openSource, type Source, type SourceKind, sourceKinds } from './convert-source.js';
import { type Crop, crops } from './crop.js';
import { CropPool } from './crop-pool.js';
import type { Split } from './mnist.js';

/** Options of {@link convertDataset}. */
export interface ConvertOptions {
  /** What is read: a folder or zip of pictures, ImageNet's folder, CIFAR-10's .tar.gz or folder, a folder of IDX files, or "mnist". */
  source: string;
  /** What is written: a name that ends in .zip or .npz. The file must not be there yet. */
  out: string;
  /**
   * What the source is: 'imagenet' (256 px, crop 'adm'), 'ffhq' (64 px, crop 'scale', no labels), 'cifar10', 'mnist', or 'images': any
   * folder or zip. Default: by its name and what is in it; FFHQ cannot be told from other folders.
   */
  kind?: SourceKind;
  /** Side of the squares. Default: the kind's; 'images' without one must all be of the first one's size. */
  size?: number;
  /** How pictures become squares. Default: the kind's, 'center' of 'images'. */
  crop?: Crop;
  /** Filter of the crops 'scale' and 'center'. Default 'lanczos', as EDM's dataset_tool. */
  resampling?: Resampling;
  /** Which part of CIFAR-10, MNIST or ImageNet; ImageNet's 'test' is its validation set. Default 'train'. */
  split?: Split;
  /** Folder of ILSVRC2012_devkit_t12, which has the classes of ImageNet's validation set. Default: LOC_val_solution.csv has them. */
  devkit?: string;
  /** Keep the labels. Default true; false of 'ffhq', whose folders are no classes. */
  labels?: boolean;
  /** A picture that does not decode: 'error' names it, 'skip' leaves it out. Default 'error'. */
  onCorrupt?: 'error' | 'skip';
  /** Compression of PNG files, 0 to 9. Default 0: the fastest to read, as EDM's dataset_tool. */
  compression?: number;
  /** Worker threads that crop. Default: one per processor. */
  threads?: number;
  /** Stops in good order; the same call goes on later. */
  signal?: AbortSignal;
  /** Called at the start and after every image. */
  onProgress?: (progress: { done: number; total: number; skipped: number }) => void;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    source: is.name,
    out: is.name.refine((name) => /\.(zip|npz)$/i.test(name), 'expected a name that ends in .zip or .npz'),
    kind: z.enum(sourceKinds).optional(),
    size: is.count.optional(),
    crop: z.enum(crops).optional(),
    resampling: z.enum(['box', 'bicubic', 'lanczos']).default('lanczos'),
    split: z.enum(['train', 'test']).optional(),
    devkit: is.name.optional(),
    labels: z.boolean().optional(),
    onCorrupt: z.enum(['error', 'skip']).default('error'),
    compression: z.int().min(0).max(9).default(0),
    threads: is.count.optional(),
    signal: is.signal.optional(),
    onProgress: is.callback<NonNullable<ConvertOptions['onProgress']>>().optional(),
  } satisfies Fields<ConvertOptions>),
);
type Settings = Parsed<typeof optionsSchema>;

/** What {@link convertDataset} found and did. */
export interface ConvertReport {
  /** Whether all pictures were dealt with; else the signal stopped it, and the same call goes on. */
  finished: boolean;
  /** Images written so far, by this call and those before. */
  images: number;
  /** Pictures of the source. */
  total: number;
  /** [height, width, channels]. */
  imageShape: readonly [number, number, number];
  /** What was left out, with `onCorrupt: 'skip'`. */
  skipped: readonly Skipped[];
  /** Images of each class; empty for an unlabelled set. */
  classes: readonly { label: number; name: string; count: number }[];
  /** Of all pixels, by channel, 0 to 255. */
  mean: readonly number[];
  /** Standard deviation, likewise. */
  std: readonly number[];
}

/** What a kind means where an option is not given. */
const defaults: Record<SourceKind, { size?: number; crop: Crop; labels: boolean }> = {
  images: { crop: 'center', labels: true },
  imagenet: { size: 256, crop: 'adm', labels: true },
  ffhq: { size: 64, crop: 'scale', labels: false },
  cifar10: { crop: 'scale', labels: true },
  mnist: { crop: 'scale', labels: true },
};

/** Milliseconds between two records of how far it is. */
const recordEvery = 500;

/**
 * Converts a data set. A call that was stopped, by its signal or with its process, is gone on with by the same call; it keeps what it
 * has in OUT.partial and OUT.progress.json until the file is whole.
 *
 * @throws {OptionError} An option that is missing, unknown or out of range.
 * @throws {DataError} The source is no such data set, or what is there is of another conversion.
 * @throws {FileFormatError} A picture that does not decode, by name, unless it is to be skipped.
 * @throws {FileError} Something cannot be read or written, because the disk is full perhaps, or `out` is there already.
 */
export async function convertDataset(options: ConvertOptions): Promise<ConvertReport> {
  const settings = parseOptions(optionsSchema, options, 'convertDataset');
  const { source: path, out, split, devkit } = settings;
  if (await stat(out).catch(() => undefined))
    throw new FileError(`${out} is there already: delete it, or choose another name.`, { path: out });
  const kind = settings.kind ?? (await guessKind(path));
  if (devkit !== undefined && kind !== 'imagenet') throw new OptionError('convertDataset: devkit is for ImageNet.');
  const labels = settings.labels ?? defaults[kind].labels;
  const source = await openSource(path, { kind, split, devkit, labels });
  try {
    await makeFolder(dirname(out));
    return await new Conversion(source, { ...defaults[kind], ...definedOf(settings), labels }).run();
  } finally {
    source.close();
  }
}

function definedOf(settings: Settings): Settings {
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined)) as Settings;
}

interface Ready {
  bytes: Uint8Array;
  sums: number[];
  squares: number[];
}

class Conversion {
  private state: ConvertState = { position: 0, images: 0, bytes: 0, sums: [], squares: [], skipped: [] };
  private recordedAt = performance.now();
  private readonly pool: CropPool;
  private readonly threads: number;
  private shape: [number, number, number] = [0, 0, 0];

  constructor(
    private readonly source: Source,
    private readonly settings: Settings & { crop: Crop },
  ) {
    this.threads = settings.threads ?? availableParallelism();
    this.pool = new CropPool(this.threads);
  }

  async run(): Promise<ConvertReport> {
    const { out, size, compression } = this.settings;
    this.shape = size === undefined ? await this.firstShape() : [size, size, this.source.channels];
    const channels = this.shape[2];
    this.state.sums = new Array<number>(channels).fill(0);
    this.state.squares = new Array<number>(channels).fill(0);
    const kept = this.keptSettings();
    const before = await readProgress(out);
    if (before) {
      const changed = Object.keys(kept).filter(
        (key) => JSON.stringify(before.settings[key]) !== JSON.stringify(kept[key]),
      );
      if (changed.length > 0)
        throw new DataError(
          `${partialPath(out)} is of a conversion with another ${changed.join(', ')}: delete it and ${progressPath(out)}, or choose another name.`,
        );
      this.state = before.state;
    }
    const output = await openOutput(out, this.shape, compression);
    let finished = false;
    try {
      await output.restore(this.state);
      await this.record(output, kept);
      finished = await this.work(output, kept);
      if (finished) await this.finish(output);
    } catch (error) {
      throw toFileError(error, output.partial, 'written');
    } finally {
      await this.pool.close();
      await output.close().catch(() => undefined); // the first error is the one to tell
    }
    return this.report(finished);
  }

  /** What must be the same for a conversion to be gone on with. */
  private keptSettings(): Record<string, unknown> {
    const { crop, resampling, size, compression, out } = this.settings;
    const isZip = out.toLowerCase().endsWith('.zip');
    return {
      source: this.source.digest(),
      size: size ?? null,
      ...(size !== undefined && { crop, ...(crop !== 'adm' && { resampling }) }),
      ...(isZip && { compression }),
    };
  }

  private async firstShape(): Promise<[number, number, number]> {
    const { onCorrupt } = this.settings;
    for (let i = 0; i < this.source.length; i++) {
      try {
        const { height, width, channels } = await this.source.image(i);
        return [height, width, channels];
      } catch (error) {
        if (onCorrupt === 'error' || !(error instanceof FileFormatError)) throw error;
      }
    }
    throw new DataError(`All ${this.source.length} pictures are corrupt, from ${this.source.name(0)} on.`);
  }

  /** Images in order, read ahead; false when the signal came first. */
  private async work(output: Output, kept: Record<string, unknown>): Promise<boolean> {
    const { source, settings, state } = this;
    const { signal, onProgress, onCorrupt } = settings;
    const total = source.length;
    const tell = (): void => onProgress?.({ done: state.position, total, skipped: state.skipped.length });
    const queue: Promise<Ready>[] = [];
    tell();
    try {
      while (state.position < total) {
        if (signal?.aborted) return false;
        while (queue.length < 2 * this.threads + 2 && state.position + queue.length < total) {
          const ready = this.prepare(state.position + queue.length, output);
          ready.catch(() => undefined); // told when its turn comes
          queue.push(ready);
        }
        try {
          const { bytes, sums, squares } = await (queue.shift() as Promise<Ready>);
          await output.add(state.images, bytes);
          state.images++;
          for (const c of sums.keys()) {
            state.sums[c] += sums[c];
            state.squares[c] += squares[c];
          }
        } catch (error) {
          if (onCorrupt === 'error' || !(error instanceof FileFormatError)) throw error;
          state.skipped.push({ index: state.position, name: source.name(state.position), reason: error.message });
        }
        state.position++;
        if (performance.now() - this.recordedAt > recordEvery) await this.record(output, kept);
        tell();
      }
      return true;
    } finally {
      await Promise.allSettled(queue);
      await this.record(output, kept).catch(() => undefined); // a full disk is told by what it stopped
    }
  }

  private async prepare(index: number, output: Output): Promise<Ready> {
    const { size, crop, resampling } = this.settings;
    const [height, width] = this.shape;
    let image = await this.source.image(index);
    if (size !== undefined && (image.width !== size || image.height !== size))
      image = await this.pool.square(image, size, crop, resampling);
    if (image.width !== width || image.height !== height)
      throw new DataError(
        `${this.source.name(index)} is ${image.width} x ${image.height}, the first one ${width} x ${height}; set a size.`,
      );
    return { bytes: await output.encode(image), ...momentsOf(image) };
  }

  private async record(output: Output, kept: Record<string, unknown>): Promise<void> {
    this.state.bytes = await output.sync();
    await writeProgress(this.settings.out, kept, this.state);
    this.recordedAt = performance.now();
  }

  private async finish(output: Output): Promise<void> {
    const { source, settings, state } = this;
    if (state.images === 0)
      throw new DataError(`All ${source.length} pictures are corrupt, from ${source.name(0)} on.`);
    await output.finish(source.numClasses > 0 ? this.labels() : undefined, source.classNames);
    await removeProgress(settings.out);
  }

  /** Of what was written, in order. */
  private labels(): number[] {
    const left = new Set(this.state.skipped.map(({ index }) => index));
    const labels: number[] = [];
    for (let i = 0; i < this.state.position; i++) if (!left.has(i)) labels.push(this.source.label(i));
    return labels;
  }

  private report(finished: boolean): ConvertReport {
    const { state, source, shape } = this;
    const { images, skipped } = state;
    const pixels = Math.max(1, images * shape[0] * shape[1]);
    const mean = state.sums.map((sum) => sum / pixels);
    const counts = new Array<number>(source.numClasses).fill(0);
    if (source.numClasses > 0) for (const label of this.labels()) counts[label]++;
    return {
      finished,
      images,
      total: source.length,
      imageShape: shape,
      skipped,
      classes: counts.map((count, label) => ({ label, name: source.classNames?.[label] ?? String(label), count })),
      mean,
      std: state.squares.map((sum, c) => Math.sqrt(Math.max(0, sum / pixels - mean[c] ** 2))),
    };
  }
}

/** Sums of the pixels and of their squares, by channel. */
function momentsOf({ data, channels }: Image): { sums: number[]; squares: number[] } {
  const sums = new Array<number>(channels).fill(0);
  const squares = new Array<number>(channels).fill(0);
  for (let c = 0; c < channels; c++) {
    let [sum, square] = [0, 0];
    for (let i = c; i < data.length; i += channels) {
      sum += data[i];
      square += data[i] * data[i];
    }
    sums[c] = sum;
    squares[c] = square;
  }
  return { sums, squares };
}
