/**
 * A zip archive of images in the form of EDM's dataset_tool: images in any folders, and a file dataset.json with
 * {"labels": [["00000/img00000000.png", 6], …]} or {"labels": null}. Without labels the set is unlabelled: folders
 * have no meaning here.
 */
import { DataError } from '../errors.js';
import { quote } from '../io/files.js';
import { ZipArchive } from '../io/zip.js';
import { parseOptions } from '../options.js';
import { EncodedDataset, type EncodedOptions, encodedSchema, isImageName, type LabelledSource } from './encoded.js';
import { labelledBy, labelsFile, maxLabelsBytes, parseLabels } from './label-list.js';

/** More than any image needs, so that a zip bomb stays small. */
const maxImageBytes = 64 << 20;

/**
 * Opens a zip archive of images in the form of EDM's dataset_tool: images in any folders, and dataset.json with
 * `{"labels": [["00000/img00000000.png", 6], …]}` or null, and `"classNames"` where {@link convertDataset} wrote it.
 *
 * @throws {FileError} It cannot be read.
 * @throws {FileFormatError} It is no sound archive, or dataset.json is malformed.
 * @throws {DataError} There are no images, or an image has no label.
 * @throws {OptionError} An option that is unknown or out of range.
 */
export async function openImageZip(path: string, options: EncodedOptions = {}): Promise<EncodedDataset> {
  const settings = parseOptions(encodedSchema, options, 'openImageZip');
  const { source, classes } = await zipSource(path);
  try {
    return await EncodedDataset.open(source, classes, settings);
  } catch (error) {
    source.close?.();
    throw error;
  }
}

/** The images of an archive, not decoded, and their classes; close the source. */
export async function zipSource(path: string): Promise<LabelledSource> {
  const archive = await ZipArchive.open(path);
  try {
    const names = archive.names.filter(isImageName).sort();
    if (names.length === 0) throw new DataError(`${path} holds no images (png, jpg, webp, gif, tiff, avif).`);
    const where = `${path}: ${labelsFile}`;
    const labels = archive.names.includes(labelsFile)
      ? parseLabels(await archive.read(labelsFile, maxLabelsBytes), where, path)
      : {};
    const source = {
      length: names.length,
      name: (index: number) => `${path}: ${quote(names[index])}`,
      read: (index: number) => archive.read(names[index], maxImageBytes),
      close: () => archive.close(),
    };
    return labelledBy(labels, names, source, where);
  } catch (error) {
    archive.close();
    throw error;
  }
}
