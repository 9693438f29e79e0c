/**
 * Zip archives: random access for reading (yauzl), streaming for writing (yazl, zip64 where the size needs it).
 * Reading trusts no declared size: it is checked against what deflate can reach and what the stream delivers, and the
 * checksum against the bytes. Entry names that leave the archive ("..", absolute paths) are refused.
 */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { crc32 } from 'node:zlib';
import type { Entry, ZipFile } from 'yauzl';
import { DiffitError, FileFormatError } from '../errors.js';
import { ByteReader } from './byte-reader.js';
import { messageOf, quote, toFileError, writeAtomically, writeFully } from './files.js';

/** Deflate cannot expand more than this (RFC 1951: 258 bytes from two bits). */
const maxDeflateRatio = 1032;

/** An open archive. Several entries can be read at the same time. */
export class ZipArchive {
  private constructor(
    readonly path: string,
    private readonly file: ZipFile,
    private readonly byName: ReadonlyMap<string, Entry>,
  ) {}

  /** Throws FileError when the file cannot be read, FileFormatError when it is not a sound archive. */
  static async open(path: string): Promise<ZipArchive> {
    const { openPromise } = await import('yauzl');
    let file: ZipFile | undefined;
    try {
      file = await openPromise(path, { autoClose: false });
      const byName = new Map<string, Entry>();
      for await (const entry of file.eachEntry()) {
        if (entry.fileName.endsWith('/')) continue;
        if (byName.has(entry.fileName)) throw new Error(`it has the entry ${quote(entry.fileName)} twice`);
        byName.set(entry.fileName, entry);
      }
      return new ZipArchive(path, file, byName);
    } catch (error) {
      file?.close();
      throw toZipError(error, path, path);
    }
  }

  /** All entries but folders, in the order of the archive's directory. */
  get names(): string[] {
    return [...this.byName.keys()];
  }

  /** Bytes of an entry when unpacked, as declared; its reader delivers exactly these or fails. 0 when there is none. */
  size(name: string): number {
    return this.byName.get(name)?.uncompressedSize ?? 0;
  }

  /** A reader of one entry's unpacked bytes; its end() also verifies the checksum. */
  async reader(name: string): Promise<ByteReader> {
    const label = `${this.path}: ${quote(name)}`;
    const entry = this.byName.get(name);
    if (!entry) throw this.error(name, 'is not in the archive.');
    if (!entry.canDecodeFileData()) throw this.error(name, 'is encrypted or packed with another method than deflate.');
    if (entry.uncompressedSize > maxDeflateRatio * entry.compressedSize + 64) {
      throw this.error(
        name,
        `declares ${entry.uncompressedSize} bytes, more than its ${entry.compressedSize} packed bytes can hold.`,
      );
    }
    try {
      return new ByteReader(
        verified(await this.file.openReadStreamPromise(entry), entry, label, this.path),
        this.path,
        label,
      );
    } catch (error) {
      throw toZipError(error, this.path, label);
    }
  }

  /** One whole entry of at most `limit` bytes. */
  async read(name: string, limit: number): Promise<Uint8Array> {
    const size = this.size(name);
    if (size > limit) throw this.error(name, `is ${size} bytes; at most ${limit} are accepted.`);
    const reader = await this.reader(name);
    try {
      const bytes = await reader.read(size);
      await reader.end();
      return bytes;
    } finally {
      await reader.close();
    }
  }

  /** Closes the file once the readers in use are done. */
  close(): void {
    this.file.close();
  }

  private error(name: string, message: string): FileFormatError {
    return new FileFormatError(`${this.path}: ${quote(name)} ${message}`, { path: this.path });
  }
}

/** The chunks of a stream; at its end the checksum must be the entry's. */
async function* verified(stream: Readable, entry: Entry, label: string, path: string): AsyncGenerator<Uint8Array> {
  let checksum = 0;
  try {
    for await (const chunk of stream) {
      checksum = crc32(chunk, checksum);
      yield chunk;
    }
  } catch (error) {
    throw toZipError(error, path, label);
  }
  if (checksum !== entry.crc32) {
    throw new FileFormatError(`${label} is corrupt: its checksum does not match its bytes.`, { path });
  }
}

function toZipError(error: unknown, path: string, label: string): unknown {
  const known = toFileError(error, path, 'read');
  if (known instanceof DiffitError || !(known instanceof Error)) return known;
  return new FileFormatError(`${label} is not a sound zip archive: ${messageOf(known)}.`, { path, cause: known });
}

/** An entry to be written: `chunks` must add up to `size` bytes. */
export interface ZipSource {
  name: string;
  size: number;
  chunks: Iterable<Uint8Array> | AsyncIterable<Uint8Array>;
}

/** All entries carry this time, so that equal contents give equal files. */
const timestamp = new Date(1980, 0, 1);

/**
 * Writes an archive, whole or not at all, taking each entry's chunks as they come. `compress` deflates, else entries
 * are stored. Throws FileError, or what an entry's chunks throw; rejects with the signal's reason.
 */
export async function writeZip(
  path: string,
  sources: readonly ZipSource[],
  compress: boolean,
  signal?: AbortSignal,
): Promise<void> {
  signal?.throwIfAborted();
  const { ZipFile: ZipWriter } = await import('yazl');
  await writeAtomically(path, async (handle) => {
    const zip = new ZipWriter();
    const output = zip.outputStream as Readable;
    const inputs = sources.map(({ name, size, chunks }) => {
      const input = Readable.from(chunks, { objectMode: false });
      input.on('error', (error) => output.destroy(error)); // yazl leaves its inputs' errors to the caller
      zip.addReadStream(input, name, { size, compress, mtime: timestamp, forceDosTimestamp: true });
      return input;
    });
    zip.on('error', (error) => output.destroy(error));
    zip.end();
    const stop = (): void => void output.destroy(signal?.reason);
    try {
      signal?.addEventListener('abort', stop, { once: true }); // the sources may be what keeps us waiting
      await pipeline(output, async (written: AsyncIterable<Uint8Array>) => {
        for await (const chunk of written) await writeFully(handle, chunk, signal);
      });
      signal?.throwIfAborted();
    } finally {
      signal?.removeEventListener('abort', stop);
      for (const input of inputs) input.destroy();
    }
  });
}
