/**
 * NumPy's .npy format: magic, version, a Python dictionary with dtype, order and shape, then the elements.
 * Format: numpy.lib.format, versions 1.0 and 2.0. Read: little-endian f8, f4, f2, i8, i4, u1 in C order.
 */
import { ShapeError } from '../errors.js';
import { format, numel, type Shape } from '../shape.js';
import { type HostArray, type HostDType, hostItemSize } from './array.js';
import { ByteReader } from './byte-reader.js';
import { quote, withFile, writeAtomically } from './files.js';

/** What an array of a .npy or .npz file is, without its elements. */
export interface NpyHeader {
  /** Type of the elements. */
  dtype: HostDType;
  /** Sizes of the axes, outermost first. */
  shape: Shape;
  /** Bytes of the elements. */
  dataBytes: number;
}

const magic = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
/** A dictionary with three short entries; NumPy itself refuses more than 10,000 bytes by default. */
const maxHeaderBytes = 65536;
const maxRank = 64;

// biome-ignore format: a table
const dtypes: Record<string, HostDType> = {
  '<f8': 'f64', '<f4': 'f32', '<f2': 'f16', '<i8': 'i64', '<i4': 'i32', '|u1': 'u8', '<u1': 'u8',
};
const descriptors: Record<HostDType, string> = {
  f64: '<f8',
  f32: '<f4',
  f16: '<f2',
  i64: '<i8',
  i32: '<i4',
  u8: '|u1',
};

/**
 * Reads the header from the start of a stream of `size` bytes and checks it against that size, so `dataBytes` can be
 * trusted as far as `size` can. Throws FileFormatError.
 */
export async function readNpyHeader(reader: ByteReader, size: number): Promise<NpyHeader> {
  if (size < 12) throw reader.error(`is not a .npy file: it is ${size} bytes.`);
  const start = await reader.read(8);
  if (!magic.every((byte, i) => start[i] === byte))
    throw reader.error('is not a .npy file: its first bytes are not NumPy’s.');
  const version = start[6];
  if ((version !== 1 && version !== 2) || start[7] !== 0) {
    throw reader.error(`has .npy version ${version}.${start[7]}; expected 1.0 or 2.0.`);
  }
  const field = await reader.read(version === 1 ? 2 : 4);
  const view = new DataView(field.buffer);
  const length = version === 1 ? view.getUint16(0, true) : view.getUint32(0, true);
  if (length > Math.min(maxHeaderBytes, size - reader.position)) {
    throw reader.error(`has a .npy header of ${length} bytes; expected at most ${Math.min(maxHeaderBytes, size)}.`);
  }
  const text = new TextDecoder('latin1').decode(await reader.read(length));
  const { dtype, shape } = checkHeader(parseLiteral(text, reader), reader);
  const dataBytes = shape.includes(0) ? 0 : numel(shape) * hostItemSize(dtype);
  if (dataBytes !== size - reader.position) {
    const found = size - reader.position;
    throw reader.error(`should hold ${dataBytes} bytes for ${format(shape)} of ${dtype}, but holds ${found}.`);
  }
  return { dtype, shape, dataBytes };
}

type Literal = string | boolean | number | Literal[] | Map<string, Literal>;

/** The subset of Python's literals that NumPy writes: strings, integers, booleans, tuples, dictionaries. */
function parseLiteral(text: string, reader: ByteReader): Literal {
  const pattern = /\s*(?:'([^'\\]*)'|"([^"\\]*)"|(\d+)|(True|False)|([{}()[\],:]))/y;
  const fail = (): never => {
    throw reader.error(`has a .npy header that is not a Python dictionary: ${quote(text.trim())}.`);
  };
  const next = (): { mark?: string; value?: Literal } => {
    const match = pattern.exec(text) ?? fail();
    const [, single, double, digits, boolean, mark] = match;
    if (mark !== undefined) return { mark };
    if (digits !== undefined) return { value: Number(digits) };
    return { value: boolean !== undefined ? boolean === 'True' : (single ?? double) };
  };
  const expect = (mark: string): void => {
    if (next().mark !== mark) fail();
  };
  /** Reads items up to `close`, allowing a comma after the last. */
  const items = (close: string, item: (token: ReturnType<typeof next>) => void): void => {
    for (;;) {
      const token = next();
      if (token.mark === close) return;
      item(token);
      const after = next().mark;
      if (after === close) return;
      if (after !== ',') fail();
    }
  };
  const scalar = (token: ReturnType<typeof next>): Literal => token.value ?? fail();
  const value = (): Literal => {
    const token = next();
    if (token.mark !== '(') return scalar(token);
    const tuple: Literal[] = [];
    items(')', (member) => tuple.push(scalar(member)));
    return tuple;
  };
  const dictionary = new Map<string, Literal>();
  expect('{');
  items('}', ({ value: key }) => {
    if (typeof key !== 'string' || dictionary.has(key)) return fail();
    expect(':');
    dictionary.set(key, value());
  });
  if (text.slice(pattern.lastIndex).trim() !== '') fail();
  return dictionary;
}

function checkHeader(header: Literal, reader: ByteReader): { dtype: HostDType; shape: Shape } {
  const fields = header as Map<string, Literal>;
  if (fields.size !== 3 || !['descr', 'fortran_order', 'shape'].every((key) => fields.has(key))) {
    throw reader.error(
      `has .npy fields ${[...fields.keys()].map(quote).join(', ')}; expected descr, fortran_order, shape.`,
    );
  }
  const descr = fields.get('descr');
  const dtype = typeof descr === 'string' && Object.hasOwn(dtypes, descr) ? dtypes[descr] : undefined;
  if (!dtype) {
    const known = Object.values(descriptors).join(', ');
    throw reader.error(`has the .npy dtype ${quote(String(descr))}; expected little-endian ${known}.`);
  }
  const shape = fields.get('shape');
  const isShape = Array.isArray(shape) && shape.length <= maxRank && shape.every((n) => Number.isSafeInteger(n));
  if (!isShape) throw reader.error(`has a .npy shape that is not a tuple of at most ${maxRank} integers.`);
  if (fields.get('fortran_order') !== false && shape.length > 1) {
    throw reader.error('is stored in Fortran order; save it with numpy.ascontiguousarray first.');
  }
  return { dtype, shape: shape as number[] };
}

/** The header of an array; throws ShapeError when `dataBytes` is not what the shape needs. */
export function encodeNpyHeader({ dtype, shape, dataBytes }: NpyHeader): Uint8Array {
  if (numel(shape) * hostItemSize(dtype) !== dataBytes) {
    const needed = numel(shape) * hostItemSize(dtype);
    throw new ShapeError(`An array ${format(shape)} of ${dtype} is ${needed} bytes, got ${dataBytes}.`);
  }
  const tuple = shape.length === 1 ? `(${shape[0]},)` : `(${shape.join(', ')})`;
  const text = `{'descr': '${descriptors[dtype]}', 'fortran_order': False, 'shape': ${tuple}, }`;
  const total = Math.ceil((10 + text.length + 1) / 64) * 64;
  const bytes = new Uint8Array(total).fill(0x20);
  bytes.set([...magic, 1, 0]);
  new DataView(bytes.buffer).setUint16(8, total - 10, true);
  bytes.set(new TextEncoder().encode(text), 10);
  bytes[total - 1] = 0x0a;
  return bytes;
}

/**
 * Reads a .npy file (versions 1.0 and 2.0; little-endian f8, f4, f2, i8, i4, u1 in C order).
 *
 * @throws {FileError} The file cannot be read.
 * @throws {FileFormatError} It is no such file, truncated, or of another dtype or order.
 */
export async function readNpy(path: string): Promise<HostArray> {
  return withFile(path, async (handle, size) => {
    const reader = new ByteReader(handle.createReadStream({ autoClose: false }), path);
    try {
      const { dtype, shape, dataBytes } = await readNpyHeader(reader, size);
      const bytes = await reader.read(dataBytes);
      await reader.end();
      return { dtype, shape, bytes };
    } finally {
      await reader.close();
    }
  });
}

/**
 * Writes a .npy file (version 1.0), whole or not at all.
 *
 * @throws {FileError} The file cannot be written.
 * @throws {ShapeError} Bytes that do not fill the shape.
 */
export async function writeNpy(path: string, { dtype, shape, bytes }: HostArray): Promise<void> {
  const header = encodeNpyHeader({ dtype, shape, dataBytes: bytes.byteLength });
  await writeAtomically(path, async (handle) => {
    await handle.writeFile(header);
    await handle.writeFile(bytes);
  });
}
