/**
 * A zip archive that grows: entries are stored as they are, one behind the other, and the directory is written at the end. Until then the file is a
 * row of local headers and contents that a later process can read again and go on with. (APPNOTE.TXT 6.3.10; zip64 where counts or offsets
 * need it.) Every entry carries the same time, so that equal contents give equal files.
 */
import type { FileHandle } from 'node:fs/promises';
import { crc32 } from 'node:zlib';
import { FileFormatError } from '../errors.js';
import { readFully } from './files.js';

/** An entry that is in the file. */
interface Stored {
  name: string;
  size: number;
  crc: number;
  offset: number;
}

const signatures = {
  local: 0x04034b50,
  central: 0x02014b50,
  end64: 0x06064b50,
  locator64: 0x07064b50,
  end: 0x06054b50,
};
const localBytes = 30;
/** 1 January 1980, as a zip counts. */
const date = 0x21;
/** The largest that fields of 16 and 32 bits hold; it means "see zip64". */
const [most16, most32] = [0xffff, 0xffffffff];
/** Names are UTF-8. */
const utf8Names = 0x0800;

/** Appends entries to a file that is open for reading and writing. */
export class ZipStore {
  private readonly entries: Stored[] = [];
  /** Bytes so far. */
  length = 0;

  constructor(
    private readonly handle: FileHandle,
    private readonly path: string,
  ) {}

  /** Entries so far. */
  get count(): number {
    return this.entries.length;
  }

  /** Reads the headers of the first `bytes` bytes again, cuts what follows, and goes on there. Throws FileFormatError when they are not as written. */
  async restore(bytes: number): Promise<void> {
    const header = Buffer.alloc(localBytes + most16);
    while (this.length < bytes) {
      const length = Math.min(localBytes + 64, bytes - this.length);
      await readFully(this.handle, header.subarray(0, length), this.length, this.path);
      const [size, nameBytes] = [header.readUInt32LE(18), header.readUInt16LE(26)];
      const end = this.length + localBytes + nameBytes + size;
      if (header.readUInt32LE(0) !== signatures.local || nameBytes > length - localBytes || end > bytes) {
        throw new FileFormatError(`${this.path} is damaged at byte ${this.length}; delete it to start again.`, {
          path: this.path,
        });
      }
      const name = header.toString('utf8', localBytes, localBytes + nameBytes);
      this.entries.push({ name, size, crc: header.readUInt32LE(14), offset: this.length });
      this.length = end;
    }
    await this.handle.truncate(bytes);
  }

  /** Appends one entry; names are at most 64 bytes, contents below 4 GiB. */
  async add(name: string, content: Uint8Array): Promise<void> {
    const entry = { name, size: content.byteLength, crc: crc32(content), offset: this.length };
    const header = localHeader(entry);
    await writeAll(this.handle, [header, content], this.length);
    this.entries.push(entry);
    this.length += header.byteLength + content.byteLength;
  }

  /** Appends the directory. */
  async finish(): Promise<void> {
    const directory = directoryOf(this.entries, this.length);
    await writeAll(this.handle, [directory], this.length);
    await this.handle.truncate(this.length + directory.byteLength);
  }
}

async function writeAll(handle: FileHandle, parts: Uint8Array[], position: number): Promise<void> {
  const bytes = parts.length === 1 ? parts[0] : Buffer.concat(parts);
  for (let done = 0; done < bytes.byteLength; ) {
    done += (await handle.write(bytes, done, bytes.byteLength - done, position + done)).bytesWritten;
  }
}

function localHeader({ name, size, crc }: Stored): Buffer {
  const text = Buffer.from(name);
  const header = Buffer.alloc(localBytes);
  header.writeUInt32LE(signatures.local, 0);
  header.writeUInt16LE(20, 4);
  header.writeUInt16LE(utf8Names, 6);
  header.writeUInt16LE(date, 12);
  header.writeUInt32LE(crc, 14);
  header.writeUInt32LE(size, 18);
  header.writeUInt32LE(size, 22);
  header.writeUInt16LE(text.byteLength, 26);
  return Buffer.concat([header, text]);
}

function centralHeader({ name, size, crc, offset }: Stored): Buffer {
  const text = Buffer.from(name);
  const far = offset >= most32;
  const header = Buffer.alloc(46);
  header.writeUInt32LE(signatures.central, 0);
  header.writeUInt16LE(45, 4);
  header.writeUInt16LE(far ? 45 : 20, 6);
  header.writeUInt16LE(utf8Names, 8);
  header.writeUInt16LE(date, 14);
  header.writeUInt32LE(crc, 16);
  header.writeUInt32LE(size, 20);
  header.writeUInt32LE(size, 24);
  header.writeUInt16LE(text.byteLength, 28);
  header.writeUInt16LE(far ? 12 : 0, 30);
  header.writeUInt32LE(far ? most32 : offset, 42);
  const extra = Buffer.alloc(far ? 12 : 0);
  if (far) {
    extra.writeUInt16LE(1, 0);
    extra.writeUInt16LE(8, 2);
    extra.writeBigUInt64LE(BigInt(offset), 4);
  }
  return Buffer.concat([header, text, extra]);
}

function directoryOf(entries: readonly Stored[], offset: number): Buffer {
  const headers = Buffer.concat(entries.map(centralHeader));
  const { length: count } = entries;
  const size = headers.byteLength;
  const end = Buffer.alloc(22);
  end.writeUInt32LE(signatures.end, 0);
  end.writeUInt16LE(Math.min(count, most16), 8);
  end.writeUInt16LE(Math.min(count, most16), 10);
  end.writeUInt32LE(Math.min(size, most32), 12);
  end.writeUInt32LE(Math.min(offset, most32), 16);
  if (count < most16 && size < most32 && offset < most32) return Buffer.concat([headers, end]);
  const end64 = Buffer.alloc(56);
  end64.writeUInt32LE(signatures.end64, 0);
  end64.writeBigUInt64LE(44n, 4);
  end64.writeUInt16LE(45, 12);
  end64.writeUInt16LE(45, 14);
  for (const [at, value] of [
    [24, count],
    [32, count],
    [40, size],
    [48, offset],
  ])
    end64.writeBigUInt64LE(BigInt(value), at);
  const locator = Buffer.alloc(20);
  locator.writeUInt32LE(signatures.locator64, 0);
  locator.writeBigUInt64LE(BigInt(offset + size), 8);
  locator.writeUInt32LE(1, 16);
  return Buffer.concat([headers, end64, locator, end]);
}
