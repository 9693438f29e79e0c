/**
 * The IDX format of MNIST: two zero bytes, an element type, the number of dimensions, each dimension as a big-endian
 * 32-bit number, then the elements (http://yann.lecun.com/exdb/mnist/). Plain or compressed with gzip.
 */
import { createGunzip } from 'node:zlib';
import { FileFormatError } from '../errors.js';
import { ByteReader } from '../io/byte-reader.js';
import { messageOf, withFile } from '../io/files.js';

/** Deflate cannot expand more than this. */
const maxGzipRatio = 1032;
const unsignedByte = 8;

/** Bytes with their dimensions. */
export interface IdxArray {
  shape: number[];
  data: Uint8Array;
}

/**
 * Reads an IDX file of unsigned bytes with `rank` dimensions. Its dimensions are checked against the size of the file
 * before anything is allocated. Throws FileError or FileFormatError.
 */
export async function readIdx(path: string, rank: number): Promise<IdxArray> {
  return withFile(path, async (handle, size) => {
    const file = handle.createReadStream({ autoClose: false });
    const zipped = path.endsWith('.gz');
    const reader = new ByteReader(zipped ? gunzip(file, path) : file, path);
    try {
      const magic = await reader.read(4);
      if (magic[0] !== 0 || magic[1] !== 0 || magic[2] !== unsignedByte || magic[3] !== rank) {
        const found = Buffer.from(magic).toString('hex');
        throw reader.error(
          `starts with ${found}; an IDX file of bytes with ${rank} dimensions starts with 000008${hex(rank)}.`,
        );
      }
      const header = new DataView((await reader.read(4 * rank)).buffer);
      const shape = Array.from({ length: rank }, (_, i) => header.getUint32(4 * i));
      const bytes = shape.reduce((product, n) => product * n, 1);
      const available = zipped ? size * maxGzipRatio : size - reader.position;
      if (zipped ? bytes > available : bytes !== available) {
        const held = zipped ? `its ${size} compressed bytes cannot hold them` : `holds ${available}`;
        throw reader.error(`should hold ${bytes} bytes for ${shape.join(' x ')}, but ${held}.`);
      }
      const data = await reader.read(bytes);
      await reader.end();
      return { shape, data };
    } finally {
      await reader.close();
    }
  });
}

async function* gunzip(file: NodeJS.ReadableStream, path: string): AsyncGenerator<Uint8Array> {
  const unzip = createGunzip();
  file.on('error', (error) => unzip.destroy(error));
  try {
    yield* file.pipe(unzip);
  } catch (cause) {
    throw new FileFormatError(`${path} is not intact gzip: ${messageOf(cause)}.`, { path, cause });
  }
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}
