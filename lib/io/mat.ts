/**
 * Reads MATLAB's files of version 5, as far as lists of structs with numbers and texts go: ImageNet's devkit keeps its classes in one
 * (MAT-File Format, The MathWorks, chapter 1).
 */
import { inflateSync } from 'node:zlib';
import { FileFormatError } from '../errors.js';

/** A struct of a list: its fields that are a number or a text. */
export type MatStruct = Record<string, number | string>;

const [typeMatrix, typeCompressed] = [14, 15];
const [classStruct, classChar] = [2, 4];
/** Bytes of a number by its type: int8 … double, int64, utf8, utf16. */
const sizes: Record<number, number> = { 1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8, 16: 1, 17: 2 };
const headerBytes = 128;
/** Unpacked parts of a file may be this large. */
const mostUnpacked = 64 << 20;

interface Element {
  type: number;
  data: Buffer;
  /** Where the next one begins. */
  next: number;
}

/** The structs of the list `name` in a file. Throws FileFormatError when there is none, or the file is damaged. */
export function readMatStructs(bytes: Uint8Array, name: string, path: string): MatStruct[] {
  const file = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const fail = (message: string, cause?: unknown): FileFormatError =>
    new FileFormatError(`${path} ${message}`, { path, cause });
  if (file.length < headerBytes || file.toString('latin1', 126, 128) !== 'IM')
    throw fail("is no MATLAB file of version 5 with an Intel processor's byte order.");
  try {
    for (let at = headerBytes; at < file.length; ) {
      const outer = elementAt(file, at);
      at = outer.next;
      const matrix =
        outer.type === typeCompressed
          ? elementAt(inflateSync(outer.data, { maxOutputLength: mostUnpacked }), 0)
          : outer;
      if (matrix.type !== typeMatrix) continue;
      const parts = elementsOf(matrix.data);
      if (parts[2]?.data.toString('latin1') === name && parts[0].data[0] === classStruct) return structsOf(parts);
    }
  } catch (cause) {
    throw fail('is damaged.', cause);
  }
  throw fail(`has no list of structs "${name}".`);
}

function elementAt(data: Buffer, at: number): Element {
  const first = data.readUInt32LE(at);
  // A small element has its size in the type's upper half, and its data in place of a size.
  if (first >>> 16 !== 0) {
    const size = first >>> 16;
    return { type: first & 0xffff, data: data.subarray(at + 4, at + 4 + size), next: at + 8 };
  }
  const size = data.readUInt32LE(at + 4);
  if (at + 8 + size > data.length) throw new RangeError('an element ends beyond the file');
  const padded = first === typeCompressed ? size : Math.ceil(size / 8) * 8;
  return { type: first, data: data.subarray(at + 8, at + 8 + size), next: at + 8 + padded };
}

function elementsOf(data: Buffer): Element[] {
  const parts: Element[] = [];
  for (let at = 0; at < data.length; at = (parts.at(-1) as Element).next) parts.push(elementAt(data, at));
  return parts;
}

/** Parts: flags, dimensions, name, length of field names, field names, then the fields of each struct in turn. */
function structsOf(parts: readonly Element[]): MatStruct[] {
  const [, , , length, names, ...values] = parts;
  const step = length.data.readInt32LE(0);
  const fields = Array.from({ length: names.data.length / step }, (_, i) =>
    names.data.toString('latin1', i * step, (i + 1) * step).replace(/\0.*$/s, ''),
  );
  return Array.from({ length: values.length / fields.length }, (_, i) => {
    const struct: MatStruct = {};
    for (const [k, field] of fields.entries()) {
      const value = contentOf(values[i * fields.length + k].data);
      if (value !== undefined) struct[field] = value;
    }
    return struct;
  });
}

/** A text, or a single number; undefined for anything else. */
function contentOf(matrix: Buffer): number | string | undefined {
  const [flags, , , content] = elementsOf(matrix);
  if (!content) return undefined;
  const { type, data } = content;
  const size = sizes[type];
  if (flags.data[0] === classChar) return data.toString(size === 2 ? 'utf16le' : 'utf8');
  if (data.length !== size) return undefined;
  if (type === 9) return data.readDoubleLE(0);
  if (type === 7) return data.readFloatLE(0);
  if (type === 12 || type === 13) return Number(type === 12 ? data.readBigInt64LE(0) : data.readBigUInt64LE(0));
  return type % 2 === 1 ? data.readIntLE(0, size) : data.readUIntLE(0, size);
}
