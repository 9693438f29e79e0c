/** Safetensors files, read and written one tensor at a time: memory beyond the tensors is that of the largest one. */
import type { FileHandle } from 'node:fs/promises';
import { crc32 } from 'node:zlib';
import { type DeviceName, synchronize } from '../device.js';
import { type DType, isFloat, itemSize } from '../dtype.js';
import { FileFormatError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { noGrad, withDispose } from '../scope.js';
import type { Shape } from '../shape.js';
import { Tensor } from '../tensor.js';
import { quote, readFully, withFile, writeAtomically, writeFully } from './files.js';
import {
  checksumsKey,
  encodeChecksums,
  encodeHeader,
  headerLength,
  parseHeader,
  type SafetensorsEntry,
  type SafetensorsHeader,
  tensorDType,
} from './safetensors-format.js';

/** Bytes that may wait for the device at a time: it keeps a copy of each until it gets there. */
const aheadBytes = 16 << 20;

/** Options of {@link loadSafetensors} and {@link forEachTensor}. */
export interface LoadSafetensorsOptions {
  /** Where the tensors go. Default: defaultDevice(). */
  device?: DeviceName;
  /** Converts floating-point tensors; integers stay as they are. Default: as stored, F64 as f32. */
  dtype?: DType;
  /** Which tensors to read. Default: all. The bytes of the others are not touched. */
  filter?: (name: string, entry: { dtype: string; shape: Shape }) => boolean;
  /** Called after each tensor. Bytes count the selected tensors' bytes in the file. */
  onProgress?: (progress: { name: string; loadedBytes: number; totalBytes: number }) => void;
  /** Cancels the load; what was loaded is disposed. */
  signal?: AbortSignal;
}

const dtypes = ['f32', 'bf16', 'f16', 'i32', 'i64', 'u8'] as const;

const loadSchema = schema((z, is) =>
  z.strictObject({
    device: is.name.optional(),
    dtype: z.enum(dtypes).optional(),
    filter: is.callback<NonNullable<LoadSafetensorsOptions['filter']>>().optional(),
    onProgress: is.callback<NonNullable<LoadSafetensorsOptions['onProgress']>>().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<LoadSafetensorsOptions>),
);

/** What {@link loadSafetensors} gives: `using file = await io.loadSafetensors(path)` disposes every tensor at the end of the block. */
export interface LoadedTensors extends Disposable {
  /** The tensors by name. */
  tensors: Record<string, Tensor>;
  /** Strings beside them; empty where there are none. */
  metadata: Record<string, string>;
}

/**
 * Loads a safetensors file. Its header is checked against the size of the file before anything is allocated.
 *
 * @throws {FileError} The file cannot be read.
 * @throws {FileFormatError} It is truncated or corrupt (where it has checksums, in any bit of a selected tensor), or a selected
 * tensor has a dtype without a tensor here (BOOL, I8, F8, …).
 * @throws {OptionError} An option that is unknown or of the wrong type.
 * @throws {OutOfMemoryError} The device has no memory for the tensors; what was loaded is disposed.
 */
export async function loadSafetensors(path: string, options: LoadSafetensorsOptions = {}): Promise<LoadedTensors> {
  const loaded: [string, Tensor][] = [];
  try {
    const metadata = await forEachTensor(path, (name, tensor) => loaded.push([name, tensor]), options);
    return withDispose({ tensors: Object.fromEntries(loaded), metadata }, () => {
      for (const [, tensor] of loaded) tensor.dispose();
    });
  } catch (error) {
    for (const [, tensor] of loaded) tensor.dispose();
    throw error;
  }
}

/**
 * Loads a safetensors file one tensor at a time: `use` owns each tensor, so that memory need not hold them all. Returns
 * the metadata. Options and errors as {@link loadSafetensors}.
 */
export async function forEachTensor(
  path: string,
  use: (name: string, tensor: Tensor) => void,
  options: LoadSafetensorsOptions = {},
): Promise<Record<string, string>> {
  const settings = parseOptions(loadSchema, options, 'loadSafetensors');
  const { filter = () => true, onProgress, signal } = settings;
  return withFile(path, async (handle, size) => {
    const { entries, metadata, dataStart } = await readHeader(handle, size, path);
    const selected = entries
      .filter((entry) => filter(entry.name, entry))
      .map((entry) => ({ ...entry, stored: tensorDType(entry, path), bytes: entry.end - entry.begin }));
    const totalBytes = selected.reduce((sum, { bytes }) => sum + bytes, 0);
    const staging = new Uint8Array(selected.reduce((most, { bytes }) => Math.max(most, bytes), 0));
    let loadedBytes = 0;
    let waitingBytes = 0;
    for (const entry of selected) {
      signal?.throwIfAborted();
      const raw = staging.subarray(0, entry.bytes);
      await readFully(handle, raw, dataStart + entry.begin, path, signal);
      if (entry.crc32 !== undefined && crc32(raw) !== entry.crc32) {
        throw new FileFormatError(
          `${path}: tensor ${quote(entry.name)} does not match its checksum; the file is damaged.`,
          { path },
        );
      }
      use(entry.name, makeTensor(raw, entry, settings));
      loadedBytes += entry.bytes;
      waitingBytes += entry.bytes;
      if (waitingBytes >= aheadBytes) {
        await synchronize(settings.device);
        waitingBytes = 0;
      }
      onProgress?.({ name: entry.name, loadedBytes, totalBytes });
    }
    return metadata;
  });
}

/** What a safetensors file holds, without its data. Same checks and errors as {@link loadSafetensors}. */
export async function readSafetensorsHeader(path: string): Promise<SafetensorsHeader> {
  return withFile(path, (handle, size) => readHeader(handle, size, path));
}

/** Options of {@link saveSafetensors}. */
export interface SaveSafetensorsOptions {
  /** Converts floating-point tensors on the way; integers stay as they are. Default: as they are. */
  dtype?: DType;
  /** Keep a CRC-32 of each tensor in the metadata, which loading compares. Default false. */
  checksums?: boolean;
  /** Stops between tensors, and within large ones; what was at the path stays. */
  signal?: AbortSignal;
}

const saveSchema = schema((z, is) =>
  z.strictObject({
    dtype: z.enum(dtypes).optional(),
    checksums: z.boolean().optional(),
    signal: is.signal.optional(),
  } satisfies Fields<SaveSafetensorsOptions>),
);

/**
 * Saves tensors. The file appears whole or not at all (temporary file, sync, rename). Tensors are written largest item
 * size first, then by name, so each is aligned to its items and equal contents give equal files.
 *
 * @throws {FileError} The file cannot be written.
 * @throws {OptionError} Metadata that are not strings; an option that is unknown, or no dtype.
 * @throws {DisposedError} A tensor that was given back.
 */
export async function saveSafetensors(
  path: string,
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>> = {},
  options: SaveSafetensorsOptions = {},
): Promise<void> {
  const { dtype: wanted, signal } = parseOptions(saveSchema, options, 'saveSafetensors');
  signal?.throwIfAborted();
  const items = Object.entries(tensors).map(([name, tensor]) => {
    const dtype = wanted && isFloat(tensor.dtype) ? wanted : tensor.dtype;
    return { name, tensor, dtype, shape: tensor.shape };
  });
  items.sort((a, b) => itemSize(b.dtype) - itemSize(a.dtype) || (a.name < b.name ? -1 : 1));
  const sums = items.map(() => 0);
  const withSums = (): Uint8Array =>
    encodeHeader(items, options.checksums ? { ...metadata, [checksumsKey]: encodeChecksums(sums) } : metadata);
  await writeAtomically(path, async (handle) => {
    await handle.writeFile(withSums());
    for (const [i, { tensor, dtype }] of items.entries()) {
      const converted = noGrad(() => tensor.to(dtype));
      try {
        const bytes = await converted.bytes();
        if (options.checksums) sums[i] = crc32(bytes);
        await writeFully(handle, bytes, signal);
      } finally {
        if (converted !== tensor) converted.dispose();
      }
    }
    signal?.throwIfAborted();
    if (!options.checksums) return;
    const header = withSums(); // as long as before
    await handle.write(header, 0, header.byteLength, 0);
  });
}

async function readHeader(handle: FileHandle, size: number, path: string): Promise<SafetensorsHeader> {
  const prefix = new Uint8Array(Math.min(8, size));
  await readFully(handle, prefix, 0, path);
  const json = new Uint8Array(headerLength(prefix, size, path));
  await readFully(handle, json, 8, path);
  return parseHeader(json, size - 8 - json.byteLength, path);
}

/** `raw` starts at the start of its buffer, so it is aligned for any item. */
function makeTensor(
  raw: Uint8Array,
  entry: SafetensorsEntry & { stored: DType },
  { device, dtype }: LoadSafetensorsOptions,
): Tensor {
  const { stored, shape } = entry;
  let bytes = raw;
  if (entry.dtype === 'F64') {
    const wide = new Float64Array(raw.buffer, raw.byteOffset, raw.byteLength / 8);
    bytes = new Uint8Array(Float32Array.from(wide).buffer);
  }
  const tensor = Tensor.fromBytes(bytes, { shape, dtype: stored, device });
  if (!dtype || dtype === stored || !isFloat(stored)) return tensor;
  const converted = noGrad(() => tensor.to(dtype));
  tensor.dispose();
  return converted;
}
