/** What the file formats share: opening, exact reads, whole-or-nothing writes, and errors that say what went wrong. */
import { randomBytes } from 'node:crypto';
import { type FileHandle, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { FileError, FileFormatError } from '../errors.js';

/** Largest single read or write, so that a long one can be cancelled. */
const chunkBytes = 8 << 20;

const reasons: Record<string, string> = {
  ENOENT: 'there is no such file or folder',
  ENOTDIR: 'a part of the path is not a folder',
  EISDIR: 'it is a folder',
  EACCES: 'permission denied',
  EPERM: 'operation not permitted',
  EROFS: 'the file system is read-only',
  ENOSPC: 'the disk is full',
  ENAMETOOLONG: 'the name is too long',
  EMFILE: 'too many open files',
};

function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).syscall === 'string';
}

/** A failed system call as a FileError that names the file; anything else is returned as it is. */
export function toFileError(error: unknown, path: string, action: 'read' | 'written'): unknown {
  if (!isSystemError(error)) return error;
  const reason = reasons[error.code ?? ''] ?? error.message;
  return new FileError(`${path} cannot be ${action}: ${reason}.`, { path, cause: error });
}

/** Text from a file for use in a message: quoted, escaped, and cut at 80 characters. */
export function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text);
}

/** The message of another library's error as a part of a sentence: on one line, whatever text of a file it repeats. */
export function messageOf(error: unknown): string {
  const { message } = error instanceof Error ? error : new Error(String(error));
  return message.replace(/\p{Cc}/gu, (character) => JSON.stringify(character).slice(1, -1));
}

/**
 * Makes a folder and those above it, unless they exist. Throws FileError. (Not mkdir's `recursive`, which never returns
 * below a folder that answers "no such file" to every new name, as /proc does.)
 */
export async function makeFolder(path: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory()) return;
  if (found) throw new FileError(`${path} cannot be written: there is a file of that name.`, { path });
  const parent = dirname(resolve(path));
  if (parent !== resolve(path)) await makeFolder(parent);
  await mkdir(path).catch((error) => {
    if (error.code !== 'EEXIST') throw toFileError(error, path, 'written');
  });
}

/** Opens a regular file, runs `use` with its handle and size in bytes, and closes it. Throws FileError. */
export async function withFile<T>(path: string, use: (handle: FileHandle, size: number) => Promise<T>): Promise<T> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'r');
    const info = await handle.stat();
    if (!info.isFile()) throw new FileError(`${path} cannot be read: it is not a regular file.`, { path });
    return await use(handle, info.size);
  } catch (error) {
    throw toFileError(error, path, 'read');
  } finally {
    await handle?.close();
  }
}

/** Fills `out` from byte `position` on. Throws FileFormatError when the file ends before. */
export async function readFully(
  handle: FileHandle,
  out: Uint8Array,
  position: number,
  path: string,
  signal?: AbortSignal,
): Promise<void> {
  let done = 0;
  while (done < out.byteLength) {
    signal?.throwIfAborted();
    const length = Math.min(chunkBytes, out.byteLength - done);
    const { bytesRead } = await handle.read(out, done, length, position + done);
    if (bytesRead === 0) {
      const expected = position + out.byteLength;
      throw new FileFormatError(`${path} ends after ${position + done} bytes; expected at least ${expected}.`, {
        path,
      });
    }
    done += bytesRead;
  }
}

/** Appends bytes to a file being written; rejects with the signal's reason in between. */
export async function writeFully(handle: FileHandle, bytes: Uint8Array, signal?: AbortSignal): Promise<void> {
  for (let done = 0; done < bytes.byteLength; done += chunkBytes) {
    signal?.throwIfAborted();
    await handle.writeFile(bytes.subarray(done, done + chunkBytes));
  }
}

/**
 * Writes a file whole or not at all: `write` fills a temporary file in the same folder, which is synced to disk and
 * renamed to `path`. On failure the temporary file is removed and what was at `path` stays. Throws FileError.
 */
export async function writeAtomically(path: string, write: (handle: FileHandle) => Promise<void>): Promise<void> {
  const folder = dirname(path);
  const temporary = join(folder, `.diffit-${randomBytes(6).toString('hex')}.tmp`);
  try {
    const handle = await open(temporary, 'wx');
    try {
      await write(handle);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
    await syncFolder(folder);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined); // the first error is the one to tell
    throw toFileError(error, path, 'written');
  }
}

/** Deletes what writeAtomically() left in a folder when its process was killed. */
export async function removeTemporaries(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  const left = names.filter((name) => /^\.diffit-[0-9a-f]{12}\.tmp$/.test(name));
  for (const name of left) await rm(join(folder, name), { force: true });
}

/** Makes a rename durable. Windows has no such call on folders. */
export async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return;
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}
