/**
 * NumPy's .npz format: a zip archive of .npy files. Large arrays are read and written in pieces, so 50,000 images of
 * 256 px (9.8 GB) pass through in bounded memory. Image batches follow guided-diffusion: arr_0 is uint8 [N, H, W, C],
 * arr_1 holds the labels of a class-conditional model.
 */
import { FileFormatError, OptionError, ShapeError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { format, numel, type Shape } from '../shape.js';
import { type HostArray, type HostDType, hostArray, hostItemSize, hostValues } from './array.js';
import type { ByteReader } from './byte-reader.js';
import { encodeNpyHeader, type NpyHeader, readNpyHeader } from './npy.js';
import { writeZip, ZipArchive } from './zip.js';

/** The most that read() puts into one buffer; rows() has no such limit. */
const maxArrayBytes = 2 ** 32;

/** An open .npz file, read array by array, also several at a time. Close it, or open it with `using`. */
export class NpzFile implements Disposable {
  private constructor(private readonly archive: ZipArchive) {}

  /** Opens a file. Throws FileError when it cannot be read, FileFormatError when it is no sound archive. */
  static async open(path: string): Promise<NpzFile> {
    return new NpzFile(await ZipArchive.open(path));
  }

  /** The file. */
  get path(): string {
    return this.archive.path;
  }

  /** Names of the arrays (entries that end in .npy). */
  get names(): string[] {
    return this.archive.names.filter((name) => name.endsWith('.npy')).map((name) => name.slice(0, -4));
  }

  /** Dtype and shape of one array. Throws FileFormatError when there is none of that name, or a damaged one. */
  async header(name: string): Promise<NpyHeader> {
    return this.withArray(name, async (_, header) => header);
  }

  /** One whole array of at most 4 GiB. Throws FileFormatError when it is larger, damaged, or not there. */
  async read(name: string): Promise<HostArray> {
    return this.withArray(name, async (reader, { dtype, shape, dataBytes }) => {
      if (dataBytes > maxArrayBytes)
        throw reader.error(`is ${dataBytes} bytes, too large for one read; read it by rows.`);
      const bytes = await reader.read(dataBytes);
      await reader.end();
      return { dtype, shape, bytes };
    });
  }

  /** An array in pieces of at most `count` rows (slices of its first axis). Throws OptionError for a count below 1; FileFormatError as read(). */
  async *rows(name: string, count: number): AsyncGenerator<HostArray> {
    if (!Number.isInteger(count) || count < 1) throw new OptionError(`rows: count must be at least 1, got ${count}.`);
    const { reader, header } = await this.openArray(name);
    try {
      const { dtype, shape } = header;
      if (shape.length === 0) throw reader.error('is a scalar and has no rows.');
      const rowBytes = numel(shape.slice(1)) * hostItemSize(dtype);
      for (let row = 0; row < shape[0]; row += count) {
        const rows = Math.min(count, shape[0] - row);
        yield { dtype, shape: [rows, ...shape.slice(1)], bytes: await reader.read(rows * rowBytes) };
      }
      await reader.end();
    } finally {
      await reader.close();
    }
  }

  /** Gives the file back once the arrays being read are done. */
  close(): void {
    this.archive.close();
  }

  /** Called at the end of the block by `using file = …`: {@link NpzFile.close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  private async openArray(name: string): Promise<{ reader: ByteReader; header: NpyHeader }> {
    const reader = await this.archive.reader(`${name}.npy`);
    try {
      return { reader, header: await readNpyHeader(reader, this.archive.size(`${name}.npy`)) };
    } catch (error) {
      await reader.close();
      throw error;
    }
  }

  private async withArray<T>(name: string, use: (reader: ByteReader, header: NpyHeader) => Promise<T>): Promise<T> {
    const { reader, header } = await this.openArray(name);
    try {
      return await use(reader, header);
    } finally {
      await reader.close();
    }
  }
}

/** All arrays of a .npz file, by name. Throws FileError when it cannot be read, FileFormatError when it is no sound .npz file. */
export async function readNpz(path: string): Promise<Record<string, HostArray>> {
  const file = await NpzFile.open(path);
  try {
    const arrays: [string, HostArray][] = [];
    for (const name of file.names) arrays.push([name, await file.read(name)]);
    return Object.fromEntries(arrays);
  } finally {
    file.close();
  }
}

/** An array that comes in pieces, whose bytes together fill its shape. */
export interface StreamedArray {
  /** Type of the elements. */
  dtype: HostDType;
  /** Sizes of the axes, outermost first. */
  shape: Shape;
  /** The elements, in pieces of any size. */
  chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

/** Options of {@link writeNpz}. */
export interface WriteNpzOptions {
  /** Deflate, like numpy.savez_compressed. Default false. */
  compress?: boolean;
  /** Stops the writing; what was at the path stays. */
  signal?: AbortSignal;
}

/** Options of {@link writeImageNpz}. */
export interface WriteImageNpzOptions extends WriteNpzOptions {
  /** One per image; written as arr_1. */
  labels?: BigInt64Array;
}

const writeSchema = schema((z, is) =>
  z.strictObject({
    compress: z.boolean().default(false),
    signal: is.signal.optional(),
  } satisfies Fields<WriteNpzOptions>),
);
const writeImageSchema = schema((z, is) =>
  z.strictObject({
    compress: z.boolean().default(false),
    signal: is.signal.optional(),
    labels: is.value<BigInt64Array>((value) => value instanceof BigInt64Array, 'a BigInt64Array').optional(),
  } satisfies Fields<WriteImageNpzOptions>),
);

/**
 * Writes a .npz file, whole or not at all.
 *
 * @throws {FileError} The file cannot be written.
 * @throws {ShapeError} An array whose bytes do not fill its shape.
 * @throws {OptionError} An option that is unknown or of the wrong type.
 */
export async function writeNpz(
  path: string,
  arrays: Readonly<Record<string, HostArray | StreamedArray>>,
  options: WriteNpzOptions = {},
): Promise<void> {
  const { compress, signal } = parseOptions(writeSchema, options, 'writeNpz');
  const sources = Object.entries(arrays).map(([name, array]) => {
    const streamed = 'chunks' in array;
    const dataBytes = streamed ? numel(array.shape) * hostItemSize(array.dtype) : array.bytes.byteLength;
    const header = encodeNpyHeader({ dtype: array.dtype, shape: array.shape, dataBytes });
    const chunks = withHeader(name, header, streamed ? array.chunks : [array.bytes], dataBytes);
    return { name: `${name}.npy`, size: header.byteLength + dataBytes, chunks };
  });
  await writeZip(path, sources, compress, signal);
}

async function* withHeader(
  name: string,
  header: Uint8Array,
  chunks: StreamedArray['chunks'],
  expected: number,
): AsyncGenerator<Uint8Array> {
  yield header;
  let written = 0;
  for await (const chunk of chunks) {
    written += chunk.byteLength;
    if (chunk.byteLength > 0) yield chunk;
  }
  if (written !== expected) throw new ShapeError(`Array ${name} needs ${expected} bytes, its chunks have ${written}.`);
}

/** Images in guided-diffusion's layout, read batch by batch. Close it, or open it with `using`. */
export interface ImageNpz extends Disposable {
  /** [N, H, W, C]. */
  shape: readonly [number, number, number, number];
  /** One per image, where the file has arr_1. */
  labels?: BigInt64Array;
  /** The images in order, at most `count` at a time, each batch [n, H, W, C] in one array. */
  batches(count: number): AsyncGenerator<Uint8Array>;
  /** Gives the file back. */
  close(): void;
}

/**
 * Opens an image batch in guided-diffusion's layout: arr_0 is uint8 [N, H, W, C], arr_1 the labels.
 *
 * @throws {FileError} The file cannot be read.
 * @throws {FileFormatError} It is no such file.
 */
export async function openImageNpz(path: string): Promise<ImageNpz> {
  const file = await NpzFile.open(path);
  try {
    const { dtype, shape } = await file.header('arr_0');
    if (dtype !== 'u8' || shape.length !== 4) {
      throw imageError(path, `arr_0 is ${dtype} ${format(shape)}; expected u8 [N, H, W, C]`);
    }
    let labels: BigInt64Array | undefined;
    if (file.names.includes('arr_1')) {
      const array = await file.read('arr_1');
      if (!['i64', 'i32', 'u8'].includes(array.dtype) || array.shape.length !== 1 || array.shape[0] !== shape[0]) {
        throw imageError(path, `arr_1 is ${array.dtype} ${format(array.shape)}; expected ${shape[0]} integer labels`);
      }
      labels = BigInt64Array.from(hostValues(array) as BigInt64Array, (label) => BigInt(label));
    }
    async function* batches(count: number): AsyncGenerator<Uint8Array> {
      for await (const { bytes } of file.rows('arr_0', count)) yield bytes;
    }
    const close = (): void => file.close();
    return { shape: shape as unknown as ImageNpz['shape'], labels, batches, close, [Symbol.dispose]: close };
  } catch (error) {
    file.close();
    throw error;
  }
}

function imageError(path: string, message: string): FileFormatError {
  return new FileFormatError(`${path} is not an image batch: ${message}.`, { path });
}

/**
 * Writes an image batch in guided-diffusion's layout: `images` are the bytes of [N, H, W, C], in one array or in pieces as they are sampled.
 *
 * @throws {FileError} The file cannot be written.
 * @throws {ShapeError} Bytes that do not fill the shape, or another number of labels.
 * @throws {OptionError} An option that is unknown or of the wrong type.
 */
export async function writeImageNpz(
  path: string,
  images: Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  shape: readonly [number, number, number, number],
  options: WriteImageNpzOptions = {},
): Promise<void> {
  const { labels, compress, signal } = parseOptions(writeImageSchema, options, 'writeImageNpz');
  if (labels && labels.length !== shape[0]) {
    throw new ShapeError(`writeImageNpz: ${shape[0]} images need as many labels, got ${labels.length}.`);
  }
  const chunks = images instanceof Uint8Array ? [images] : images;
  const arrays: Record<string, HostArray | StreamedArray> = { arr_0: { dtype: 'u8', shape, chunks } };
  if (labels) arrays.arr_1 = hostArray(labels);
  await writeNpz(path, arrays, { compress, signal });
}
