/**
 * A folder of images. Images in sub-folders are labelled by the first level, in the order of the names (as ImageNet is
 * laid out); images at the top, if there are no others, make an unlabelled set. A file dataset.json, as EDM's dataset_tool writes one beside
 * numbered folders, goes before the folders.
 */
import { readdir, readFile, realpath, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError } from '../errors.js';
import { toFileError, withFile } from '../io/files.js';
import { parseOptions } from '../options.js';
import { EncodedDataset, type EncodedOptions, encodedSchema, isImageName, type LabelledSource } from './encoded.js';
import { labelledBy, labelsFile, parseLabels } from './label-list.js';

/**
 * Opens a folder of images: PNG, JPEG, WebP, GIF, TIFF or AVIF. Sub-folders and links are followed; other files are
 * ignored. Images in sub-folders are labelled by the first level, in the order of the names (as ImageNet is laid out); images at the top make an
 * unlabelled set. Where there is a dataset.json, as in {@link openImageZip}, it has the labels.
 *
 * @throws {DataError} There are no images, or both at the top and in sub-folders.
 * @throws {FileError} Something cannot be read.
 * @throws {FileFormatError} Without a size: the first image is corrupt.
 * @throws {OptionError} An option that is unknown or out of range.
 */
export async function openImageFolder(dir: string, options: EncodedOptions = {}): Promise<EncodedDataset> {
  const settings = parseOptions(encodedSchema, options, 'openImageFolder');
  const { source, classes } = await folderSource(dir, settings.signal);
  return EncodedDataset.open(source, classes, settings);
}

/** The images of a folder, not decoded, and their classes. */
export async function folderSource(dir: string, signal?: AbortSignal): Promise<LabelledSource> {
  const paths: string[] = [];
  try {
    await collect(dir, '', [], paths, signal);
  } catch (error) {
    throw toFileError(error, dir, 'read');
  }
  if (paths.length === 0) throw new DataError(`${dir} holds no images (png, jpg, webp, gif, tiff, avif).`);
  const source = {
    length: paths.length,
    name: (index: number) => join(dir, paths[index]),
    read: (index: number) => withFile(join(dir, paths[index]), (handle) => handle.readFile()),
  };
  const list = join(dir, labelsFile);
  const text = await readFile(list).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw toFileError(error, list, 'read');
    return undefined;
  });
  if (text) return labelledBy(parseLabels(text, list), paths, source, list);
  const top = paths.find((path) => !path.includes('/'));
  const nested = paths.find((path) => path.includes('/'));
  if (top && nested) {
    throw new DataError(
      `${dir} holds images both at the top (${top}) and in folders (${nested}); labels come from folders.`,
    );
  }
  const names = nested ? [...new Set(paths.map(className))] : undefined;
  const labels = new Map(names?.map((name, label) => [name, label]));
  const label = (index: number): number => labels.get(className(paths[index])) ?? 0;
  return { source: { ...source, label }, classes: { count: names?.length ?? 0, names } };
}

function className(path: string): string {
  return path.slice(0, path.indexOf('/'));
}

/** Appends the images below `dir`/`prefix`, each folder's in the order of their names. `above`: folders being visited. */
async function collect(
  dir: string,
  prefix: string,
  above: readonly string[],
  paths: string[],
  signal?: AbortSignal,
): Promise<void> {
  signal?.throwIfAborted();
  const folder = join(dir, prefix);
  const real = await realpath(folder);
  if (above.includes(real)) throw new DataError(`${folder} is a link to a folder above it.`);
  const entries = await readdir(folder, { withFileTypes: true });
  entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const entry of entries) {
    const path = prefix === '' ? entry.name : `${prefix}/${entry.name}`;
    const kind = entry.isSymbolicLink() ? await stat(join(dir, path)) : entry;
    if (kind.isDirectory()) await collect(dir, path, [...above, real], paths, signal);
    else if (kind.isFile() && isImageName(entry.name)) paths.push(path);
  }
}
