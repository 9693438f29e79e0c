/**
 * A zip archive of images in the form of EDM's dataset_tool: images in any folders, and a file dataset.json with
 * {"labels": [["00000/img00000000.png", 6], …]} or {"labels": null}. Without labels the set is unlabelled: folders
 * have no meaning here.
 */
import { DataError, FileFormatError } from '../errors.js';
import { quote } from '../io/files.js';
import { ZipArchive } from '../io/zip.js';
import { parseOptions } from '../options.js';
import { EncodedDataset, type EncodedOptions, encodedSchema, isImageName } from './encoded.js';

/** More than any image or label list needs, so that a zip bomb stays small. */
const maxImageBytes = 64 << 20;
const maxJsonBytes = 512 << 20;
/** A label list of integers up to this; the number of classes sizes a table in the model. */
const maxLabel = 1_000_000;

/**
 * Opens a zip archive of images in the form of EDM's dataset_tool: images in any folders, and dataset.json with
 * `{"labels": [["00000/img00000000.png", 6], …]}` or null.
 *
 * @throws {FileError} It cannot be read.
 * @throws {FileFormatError} It is no sound archive, or dataset.json is malformed.
 * @throws {DataError} There are no images, or an image has no label.
 * @throws {OptionError} An option that is unknown or out of range.
 */
export async function openImageZip(path: string, options: EncodedOptions = {}): Promise<EncodedDataset> {
  const settings = parseOptions(encodedSchema, options, 'openImageZip');
  const archive = await ZipArchive.open(path);
  try {
    const names = archive.names.filter(isImageName).sort();
    if (names.length === 0) throw new DataError(`${path} holds no images (png, jpg, webp, gif, tiff, avif).`);
    const byName = await readLabels(archive);
    const labels = byName && names.map((name) => byName.get(name) ?? noLabel(path, name));
    const source = {
      length: names.length,
      name: (index: number) => `${path}: ${quote(names[index])}`,
      label: (index: number) => labels?.[index] ?? 0,
      read: (index: number) => archive.read(names[index], maxImageBytes),
      close: () => archive.close(),
    };
    const count = labels ? labels.reduce((most, label) => Math.max(most, label), 0) + 1 : 0;
    return await EncodedDataset.open(source, { count }, settings);
  } catch (error) {
    archive.close();
    throw error;
  }
}

function noLabel(path: string, name: string): never {
  throw new DataError(`${path}: dataset.json has no label for ${quote(name)}.`);
}

async function readLabels(archive: ZipArchive): Promise<Map<string, number> | undefined> {
  if (!archive.names.includes('dataset.json')) return undefined;
  const fail = (message: string, cause?: unknown): never => {
    throw new FileFormatError(`${archive.path}: dataset.json ${message}`, { path: archive.path, cause });
  };
  const text = new TextDecoder().decode(await archive.read('dataset.json', maxJsonBytes));
  let root: unknown;
  try {
    root = JSON.parse(text);
  } catch (cause) {
    fail('is not valid JSON.', cause);
  }
  const labels = (root as { labels?: unknown } | null)?.labels ?? null;
  if (labels === null) return undefined;
  if (!Array.isArray(labels)) return fail('needs "labels": a list of [name, label], or null.');
  const byName = new Map<string, number>();
  for (const [i, entry] of labels.entries()) {
    const [name, label] = Array.isArray(entry) ? entry : [];
    if (typeof name !== 'string' || !Number.isInteger(label) || label < 0 || label > maxLabel) {
      fail(`has the label entry ${i} ${quote(JSON.stringify(entry))}; expected [name, integer of 0 .. ${maxLabel}].`);
    }
    byName.set(name.replaceAll('\\', '/'), label);
  }
  return byName;
}
