/** Checks, before any work starts, that its results can be written. */
import { open, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { FileError } from '../errors.js';
import { makeFolder, toFileError } from '../io/files.js';

/** Makes a folder if there is none and tries writing in it. Throws FileError. */
export async function ensureWritableFolder(path: string): Promise<void> {
  const probe = join(path, `.diffit-probe-${process.pid}`);
  await makeFolder(path);
  try {
    await (await open(probe, 'wx')).close();
    await rm(probe, { force: true });
  } catch (error) {
    throw toFileError(error, path, 'written');
  }
}

/** The same for a file that is going to be written at `path`, which must not be a folder. */
export async function ensureWritableFile(path: string): Promise<void> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isDirectory()) throw new FileError(`${path} cannot be written: it is a folder.`, { path });
  await ensureWritableFolder(dirname(resolve(path)));
}
