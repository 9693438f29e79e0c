/**
 * NumPy's .npz format: a zip archive of .npy files. Large arrays are read and written in pieces, so 50,000 images of
 * 256 px (9.8 GB) pass through in bounded memory. Image batches follow guided-diffusion: arr_0 is uint8 [N, H, W, C],
 * arr_1 holds the labels of a class-conditional model.
 */
import { FileFormatError, OptionError, ShapeError } from '../errors.js';
import { format, numel, type Shape } from '../shape.js';
import { type HostArray, type HostDType, hostArray, hostItemSize, hostValues } from './array.js';
import type { ByteReader } from './byte-reader.js';
import { encodeNpyHeader, type NpyHeader, readNpyHeader } from './npy.js';
import { writeZip, ZipArchive } from './zip.js';

/** The most that read() puts into one buffer; rows() has no such limit. */
const maxArrayBytes = 2 ** 32;

/** An open .npz file. */
export class NpzFile {
  private constructor(private readonly archive: ZipArchive) {}

  /** Throws FileError or FileFormatError. */
  static async open(path: string): Promise<NpzFile> {
    return new NpzFile(await ZipArchive.open(path));
  }

  get path(): string {
    return this.archive.path;
  }

  /** Names of the arrays (entries that end in .npy). */
  get names(): string[] {
    return this.archive.names.filter((name) => name.endsWith('.npy')).map((name) => name.slice(0, -4));
  }

  /** Dtype and shape of one array. */
  async header(name: string): Promise<NpyHeader> {
    return this.withArray(name, async (_, header) => header);
  }

  /** One whole array of at most 4 GiB. */
  async read(name: string): Promise<HostArray> {
    return this.withArray(name, async (reader, { dtype, shape, dataBytes }) => {
      if (dataBytes > maxArrayBytes)
        throw reader.error(`is ${dataBytes} bytes, too large for one read; read it by rows.`);
      const bytes = await reader.read(dataBytes);
      await reader.end();
      return { dtype, shape, bytes };
    });
  }

  /** An array in pieces of at most `count` rows (slices of its first axis). */
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

  close(): void {
    this.archive.close();
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

/** All arrays of a .npz file. Throws FileError or FileFormatError. */
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
  dtype: HostDType;
  shape: Shape;
  chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

/**
 * Writes a .npz file, whole or not at all; `compress` (default false) deflates like numpy.savez_compressed.
 * Throws FileError, or ShapeError when an array's bytes do not fill its shape.
 */
export async function writeNpz(
  path: string,
  arrays: Readonly<Record<string, HostArray | StreamedArray>>,
  options: { compress?: boolean } = {},
): Promise<void> {
  const sources = Object.entries(arrays).map(([name, array]) => {
    const streamed = 'chunks' in array;
    const dataBytes = streamed ? numel(array.shape) * hostItemSize(array.dtype) : array.bytes.byteLength;
    const header = encodeNpyHeader({ dtype: array.dtype, shape: array.shape, dataBytes });
    const chunks = withHeader(name, header, streamed ? array.chunks : [array.bytes], dataBytes);
    return { name: `${name}.npy`, size: header.byteLength + dataBytes, chunks };
  });
  await writeZip(path, sources, options.compress ?? false);
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

/** Images in guided-diffusion's layout, read batch by batch. */
export interface ImageNpz {
  /** [N, H, W, C] */
  shape: readonly [number, number, number, number];
  labels?: BigInt64Array;
  /** The images in order, at most `count` at a time, each batch [n, H, W, C] in one array. */
  batches(count: number): AsyncGenerator<Uint8Array>;
  close(): void;
}

/** Opens an image batch. Throws FileFormatError when arr_0 is not uint8 [N, H, W, C], or arr_1 not N integers. */
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
    return { shape: shape as unknown as ImageNpz['shape'], labels, batches, close: () => file.close() };
  } catch (error) {
    file.close();
    throw error;
  }
}

function imageError(path: string, message: string): FileFormatError {
  return new FileFormatError(`${path} is not an image batch: ${message}.`, { path });
}

/** Writes an image batch: `images` are the bytes of [N, H, W, C], in one array or in pieces as they are sampled. */
export async function writeImageNpz(
  path: string,
  images: Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
  shape: readonly [number, number, number, number],
  options: { labels?: BigInt64Array; compress?: boolean } = {},
): Promise<void> {
  const { labels, compress } = options;
  if (labels && labels.length !== shape[0]) {
    throw new ShapeError(`writeImageNpz: ${shape[0]} images need as many labels, got ${labels.length}.`);
  }
  const chunks = images instanceof Uint8Array ? [images] : images;
  const arrays: Record<string, HostArray | StreamedArray> = { arr_0: { dtype: 'u8', shape, chunks } };
  if (labels) arrays.arr_1 = hostArray(labels);
  await writeNpz(path, arrays, { compress });
}
