/**
 * The header of a safetensors file: 8 bytes of little-endian length N, N bytes of JSON (space-padded), then the data.
 * Format: https://github.com/huggingface/safetensors#format. Parsing trusts nothing: whatever the bytes are, the result
 * is a header whose every range lies in the file and fits its shape, or a FileFormatError that names the tensor.
 */
import type { DType } from '../dtype.js';
import { FileFormatError, OptionError } from '../errors.js';
import { numel, type Shape } from '../shape.js';
import { quote } from './files.js';

/** One tensor of a file; its bytes are [begin, end) counted from `dataStart` of the header. */
export interface SafetensorsEntry {
  /** Its key. */
  name: string;
  /** As the file writes it: F32, BF16, I64, … */
  dtype: string;
  /** Sizes of the axes, outermost first. */
  shape: Shape;
  /** Offset of its first byte. */
  begin: number;
  /** Offset behind its last byte. */
  end: number;
  /** CRC-32 of the bytes, where the writer left it in the metadata. */
  crc32?: number;
}

/** What a safetensors file holds, without its data. */
export interface SafetensorsHeader {
  /** In the order of their bytes in the file. */
  entries: SafetensorsEntry[];
  /** Strings beside the tensors; empty where there are none. */
  metadata: Record<string, string>;
  /** Offset of the data in the file. */
  dataStart: number;
}

/** The limit of the reference implementation, in bytes. */
const maxHeaderBytes = 100_000_000;
/** The metadata with the checksum of each tensor, in the order of their bytes: eight hexadecimal digits each, with spaces between. */
export const checksumsKey = 'diffit.crc32';
/** NumPy's limit; a longer shape is nonsense. */
const maxRank = 64;

// biome-ignore format: a table
const itemBytes: Record<string, number> = {
  BOOL: 1, U8: 1, I8: 1, F8_E5M2: 1, F8_E4M3: 1, F8_E8M0: 1, I16: 2, U16: 2, F16: 2, BF16: 2,
  I32: 4, U32: 4, F32: 4, I64: 8, U64: 8, F64: 8, C64: 8,
};

/** Dtypes of files that become tensors. F64 is rounded to f32. */
const readable: Record<string, DType> = {
  F32: 'f32',
  F64: 'f32',
  BF16: 'bf16',
  F16: 'f16',
  I32: 'i32',
  I64: 'i64',
  U8: 'u8',
};

const fileNames: Record<DType, string> = { f32: 'F32', bf16: 'BF16', f16: 'F16', i32: 'I32', i64: 'I64', u8: 'U8' };

/** The dtype a stored tensor gets on reading; throws FileFormatError for those this package has no tensors of. */
export function tensorDType(entry: SafetensorsEntry, path: string): DType {
  const dtype = readable[entry.dtype];
  if (dtype) return dtype;
  const known = Object.keys(readable).join(', ');
  throw new FileFormatError(
    `${path}: tensor ${quote(entry.name)} has dtype ${entry.dtype}, which has no tensor here; expected one of ${known}.`,
    { path },
  );
}

/** Length of the JSON, from the first 8 bytes and the size of the file. */
export function headerLength(prefix: Uint8Array, fileSize: number, path: string): number {
  if (prefix.byteLength < 8 || fileSize < 8) {
    throw new FileFormatError(
      `${path} is ${fileSize} bytes; a safetensors file starts with 8 bytes of header length.`,
      {
        path,
      },
    );
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset, 8).getBigUint64(0, true);
  const limit = Math.min(maxHeaderBytes, fileSize - 8);
  if (length > BigInt(limit)) {
    throw new FileFormatError(
      `${path} is not a safetensors file: its header would be ${length} bytes; at most ${limit} are possible.`,
      { path },
    );
  }
  return Number(length);
}

/** Parses and checks the JSON of a header. `dataBytes` is what the file holds after it. */
export function parseHeader(json: Uint8Array, dataBytes: number, path: string): SafetensorsHeader {
  const fail = (message: string, cause?: unknown): never => {
    throw new FileFormatError(`${path}: ${message}`, { path, cause });
  };
  const root = parseJson(json, fail);
  const entries: SafetensorsEntry[] = [];
  let metadata: Record<string, string> = {};
  for (const [name, value] of Object.entries(root)) {
    if (name === '__metadata__') metadata = checkMetadata(value, fail);
    else entries.push(checkEntry(name, value, fail));
  }
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let position = 0;
  for (const { name, begin, end } of entries) {
    if (begin !== position) {
      const what = begin < position ? 'overlaps the tensor before it' : 'leaves a gap before it';
      fail(`tensor ${quote(name)} at data_offsets [${begin}, ${end}] ${what}; expected it to begin at ${position}.`);
    }
    position = end;
  }
  if (position !== dataBytes) {
    fail(
      `the tensors take ${position} bytes, but ${dataBytes} follow the header; the file is truncated or has extra bytes.`,
    );
  }
  const { [checksumsKey]: checksums, ...others } = metadata;
  if (checksums !== undefined) takeChecksums(checksums, entries, fail);
  return { entries, metadata: others, dataStart: 8 + json.byteLength };
}

function takeChecksums(text: string, entries: SafetensorsEntry[], fail: Fail): void {
  const sums = text.split(' ');
  if (sums.length !== entries.length || !sums.every((sum) => /^[0-9a-f]{8}$/.test(sum))) {
    fail(`its metadata ${checksumsKey} must hold ${entries.length} checksums of eight hexadecimal digits.`);
  }
  for (const [i, entry] of entries.entries()) entry.crc32 = Number.parseInt(sums[i], 16);
}

/** The checksums as metadata. */
export function encodeChecksums(sums: readonly number[]): string {
  return sums.map((sum) => sum.toString(16).padStart(8, '0')).join(' ');
}

type Fail = (message: string, cause?: unknown) => never;

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** A whole number that JSON wrote as one: -0 and 2^53 are not. */
function isCount(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0 && !Object.is(value, -0);
}

function parseJson(json: Uint8Array, fail: Fail): Record<string, unknown> {
  if (json[0] !== 0x7b) fail('the safetensors header does not start with "{".');
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json);
    checkKeys(text, fail);
    return JSON.parse(text) as Record<string, unknown>;
  } catch (cause) {
    if (cause instanceof FileFormatError) throw cause;
    return fail('the safetensors header is not valid JSON in UTF-8.', cause);
  }
}

/** Deepest nesting of a header: {tensor: {shape: […]}} is 3. */
const maxDepth = 8;

/** Fails on a key that occurs twice in one object (JSON.parse would keep the last) and on absurd nesting. */
function checkKeys(text: string, fail: Fail): void {
  const objects: Set<string>[] = [];
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    const c = text[i];
    if (c === '{' || c === '[') {
      if (++depth > maxDepth) fail(`the safetensors header is nested more than ${maxDepth} deep.`);
      if (c === '{') objects.push(new Set());
    } else if (c === '}' || c === ']') {
      depth--;
      if (c === '}') objects.pop();
    } else if (c === '"') {
      const start = i++;
      while (i < text.length && text[i] !== '"') i += text[i] === '\\' ? 2 : 1;
      let next = i + 1;
      while (next < text.length && ' \t\r\n'.includes(text[next])) next++;
      if (text[next] !== ':') continue;
      const key = JSON.parse(text.slice(start, i + 1)) as string;
      const keys = objects[objects.length - 1];
      if (keys?.has(key)) fail(`the safetensors header has the key ${quote(key)} twice.`);
      keys?.add(key);
    }
  }
}

function checkMetadata(value: unknown, fail: Fail): Record<string, string> {
  if (!isObject(value)) return fail('"__metadata__" must be an object of strings.');
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string')
      fail(`"__metadata__" must hold strings only; ${quote(key)} is of type ${typeof text}.`);
  }
  return value as Record<string, string>;
}

function checkEntry(name: string, value: unknown, fail: Fail): SafetensorsEntry {
  const who = `tensor ${quote(name)}`;
  if (!isObject(value)) return fail(`${who} must be an object with dtype, shape and data_offsets.`);
  const { dtype, shape, data_offsets: offsets, ...others } = value;
  for (const key of Object.keys(others)) fail(`${who} has the unknown field ${quote(key)}.`);
  if (typeof dtype !== 'string' || !Object.hasOwn(itemBytes, dtype)) {
    const found = typeof dtype === 'string' ? quote(dtype) : typeof dtype;
    return fail(`${who} has the unknown dtype ${found}; expected one of ${Object.keys(itemBytes).join(', ')}.`);
  }
  if (!Array.isArray(shape) || shape.length > maxRank || !shape.every(isCount)) {
    return fail(`${who} needs a shape of at most ${maxRank} non-negative integers.`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount) || offsets[0] > offsets[1]) {
    return fail(`${who} needs data_offsets [begin, end] with 0 <= begin <= end.`);
  }
  const [begin, end] = offsets as [number, number];
  const bytes = shape.includes(0) ? 0 : numel(shape) * itemBytes[dtype];
  if (bytes !== end - begin) {
    return fail(
      `${who} of ${dtype} [${shape.join(', ')}] needs ${bytes} bytes, but its data_offsets [${begin}, ${end}] hold ${end - begin}.`,
    );
  }
  return { name, dtype, shape, begin, end };
}

/** A tensor to be written. */
export interface SafetensorsItem {
  name: string;
  dtype: DType;
  shape: Shape;
}

/**
 * The first bytes of a file that holds `items` in the given order: length and JSON, padded so that the data starts at a
 * multiple of 8. Metadata keys are sorted, so equal contents give equal bytes.
 */
export function encodeHeader(
  items: readonly SafetensorsItem[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const root = new Map<string, unknown>();
  const keys = Object.keys(metadata).sort();
  for (const key of keys) {
    if (typeof metadata[key] !== 'string') {
      throw new OptionError(`Metadata must be strings; ${quote(key)} is of type ${typeof metadata[key]}.`);
    }
  }
  if (keys.length > 0) root.set('__metadata__', Object.fromEntries(keys.map((key) => [key, metadata[key]])));
  let position = 0;
  for (const { name, dtype, shape } of items) {
    if (name === '__metadata__')
      throw new OptionError('A tensor cannot be named "__metadata__" in a safetensors file.');
    const begin = position;
    position += numel(shape) * itemBytes[fileNames[dtype]];
    root.set(name, { dtype: fileNames[dtype], shape, data_offsets: [begin, position] });
  }
  const body = [...root].map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`).join(',');
  const json = new TextEncoder().encode(`{${body}}`);
  const length = Math.ceil(json.byteLength / 8) * 8;
  if (length > maxHeaderBytes) {
    throw new OptionError(`The safetensors header would be ${length} bytes; the format allows ${maxHeaderBytes}.`);
  }
  const bytes = new Uint8Array(8 + length).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(json, 8);
  return bytes;
}
