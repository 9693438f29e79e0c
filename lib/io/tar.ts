/** Tar archives, packed with gzip or not, read from front to end (POSIX ustar; long names of GNU tar and pax are passed over). */
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { createGunzip } from 'node:zlib';
import { DiffitError, FileFormatError } from '../errors.js';
import { ByteReader } from './byte-reader.js';
import { messageOf, quote, toFileError } from './files.js';

const block = 512;

/** A file in an archive. */
export interface TarEntry {
  name: string;
  bytes: Uint8Array;
}

/**
 * The regular files that `wanted` says yes to, in the archive's order; the others are passed over. Throws FileError, FileFormatError for a
 * damaged archive or a wanted file of more than `limit` bytes.
 */
export async function* readTar(
  path: string,
  wanted: (name: string) => boolean,
  limit: number,
): AsyncGenerator<TarEntry> {
  let reader: ByteReader | undefined;
  try {
    reader = new ByteReader(await unpacked(path), path);
    for (;;) {
      const header = Buffer.from(await reader.read(block));
      if (header.every((byte) => byte === 0)) return;
      const { name, size, type } = parseHeader(header, reader);
      const padded = Math.ceil(size / block) * block;
      if ((type === '0' || type === '\0') && wanted(name)) {
        if (size > limit) throw reader.error(`has ${quote(name)} with ${size} bytes; at most ${limit} are accepted.`);
        const bytes = await reader.read(size);
        await skip(reader, padded - size);
        yield { name, bytes };
      } else await skip(reader, padded);
    }
  } catch (error) {
    const known = toFileError(error, path, 'read');
    if (known instanceof DiffitError) throw known;
    throw new FileFormatError(`${path} is no sound tar archive: ${messageOf(known)}.`, { path, cause: known });
  } finally {
    await reader?.close();
  }
}

async function unpacked(path: string): Promise<AsyncIterable<Uint8Array>> {
  const handle = await open(path, 'r');
  const { buffer } = await handle.read(Buffer.alloc(2), 0, 2, 0).finally(() => handle.close());
  const stream = createReadStream(path);
  if (buffer[0] !== 0x1f || buffer[1] !== 0x8b) return stream;
  const gunzip = createGunzip();
  stream.on('error', (error) => gunzip.destroy(error));
  gunzip.on('close', () => stream.destroy());
  return stream.pipe(gunzip);
}

function parseHeader(header: Buffer, reader: ByteReader): { name: string; size: number; type: string } {
  const text = (start: number, length: number): string => {
    const field = header.toString('utf8', start, start + length);
    const end = field.indexOf('\0');
    return end < 0 ? field : field.slice(0, end);
  };
  const octal = (start: number, length: number): number => Number.parseInt(text(start, length).trim() || '0', 8);
  // The checksum counts its own field as spaces.
  const sum = header.reduce((total, byte, i) => total + (i >= 148 && i < 156 ? 32 : byte), 0);
  const size = octal(124, 12);
  if (octal(148, 8) !== sum || !Number.isSafeInteger(size) || size < 0) {
    throw reader.error(`is no sound tar archive: the header at byte ${reader.position - block} is damaged.`);
  }
  const prefix = text(257, 5) === 'ustar' ? text(345, 155) : '';
  return { name: prefix ? `${prefix}/${text(0, 100)}` : text(0, 100), size, type: String.fromCharCode(header[156]) };
}

async function skip(reader: ByteReader, bytes: number): Promise<void> {
  const most = 1 << 20;
  for (let left = bytes; left > 0; left -= most) await reader.read(Math.min(left, most));
}
