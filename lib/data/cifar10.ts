/**
 * CIFAR-10 (Krizhevsky 2009) in its binary form: files of records of one label byte and 32 x 32 pixels, first all reds,
 * then all greens, then all blues (https://www.cs.toronto.edu/~kriz/cifar.html, "binary version").
 */
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError, FileFormatError } from '../errors.js';
import { readFully, toFileError, withFile } from '../io/files.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { MemoryDataset, type OpenDataset } from './dataset.js';
import type { Split } from './mnist.js';

const pixels = 32 * 32;
const recordBytes = 1 + 3 * pixels;
const classNames = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'];

/** Options of {@link openCifar10}. */
export interface Cifar10Options {
  /** Holds data_batch_1.bin … data_batch_5.bin and test_batch.bin, or a folder cifar-10-batches-bin with them. */
  dir: string;
  /** Which part: 50,000 images, or 10,000. Default 'train'. */
  split?: Split;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    dir: is.name,
    split: z.enum(['train', 'test']).default('train'),
  } satisfies Fields<Cifar10Options>),
);

/**
 * Opens CIFAR-10 (Krizhevsky 2009) in its binary form; all images are read into memory as RGB [32, 32, 3].
 *
 * @throws {DataError} Files are missing.
 * @throws {FileFormatError} A file is corrupt.
 * @throws {FileError} The folder or a file cannot be read.
 * @throws {OptionError} An option that is missing, unknown, or no split.
 */
export async function openCifar10(options: Cifar10Options): Promise<OpenDataset> {
  const { dir, split } = parseOptions(optionsSchema, options, 'openCifar10');
  const files = await cifarFiles(dir, split);
  const batches: { images: Uint8Array; labels: Uint8Array }[] = [];
  for (const path of files) batches.push(await readBatch(path));
  const images = Buffer.concat(batches.map((batch) => batch.images));
  const labels = Buffer.concat(batches.map((batch) => batch.labels));
  return new MemoryDataset(images, [32, 32, 3], labels, classNames);
}

/** True when the folder holds a file of CIFAR-10. */
export function isCifar10(names: readonly string[]): boolean {
  return names.some((name) => /^(data_batch_\d+|test_batch)\.bin$/.test(name) || name === 'cifar-10-batches-bin');
}

async function cifarFiles(dir: string, split: Split): Promise<string[]> {
  let folder = dir;
  let names = await list(folder);
  if (names.includes('cifar-10-batches-bin')) {
    folder = join(dir, 'cifar-10-batches-bin');
    names = await list(folder);
  }
  if (split === 'test') {
    if (names.includes('test_batch.bin')) return [join(folder, 'test_batch.bin')];
    throw new DataError(`${folder} holds no CIFAR-10 test set: test_batch.bin is missing.`);
  }
  const numbers = names.flatMap((name) => /^data_batch_(\d+)\.bin$/.exec(name)?.[1] ?? []).map(Number);
  const count = Math.max(1, ...numbers);
  const wanted = Array.from({ length: count }, (_, i) => `data_batch_${i + 1}.bin`);
  const missing = wanted.find((name) => !names.includes(name));
  if (missing) throw new DataError(`${folder} holds no whole CIFAR-10 training set: ${missing} is missing.`);
  return wanted.map((name) => join(folder, name));
}

async function list(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    throw toFileError(error, folder, 'read');
  }
}

async function readBatch(path: string): Promise<{ images: Uint8Array; labels: Uint8Array }> {
  const raw = await withFile(path, async (handle, size) => {
    if (size === 0 || size % recordBytes !== 0) {
      throw new FileFormatError(
        `${path} is ${size} bytes; expected a multiple of ${recordBytes}, the size of a CIFAR-10 record.`,
        {
          path,
        },
      );
    }
    const bytes = new Uint8Array(size);
    await readFully(handle, bytes, 0, path);
    return bytes;
  });
  const count = raw.length / recordBytes;
  const images = new Uint8Array(count * 3 * pixels);
  const labels = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    const record = i * recordBytes;
    labels[i] = raw[record];
    if (labels[i] >= classNames.length) {
      throw new FileFormatError(`${path}: record ${i} has the label ${labels[i]}; expected 0 .. 9.`, { path });
    }
    for (let p = 0, to = i * 3 * pixels; p < pixels; p++) {
      images[to++] = raw[record + 1 + p];
      images[to++] = raw[record + 1 + pixels + p];
      images[to++] = raw[record + 1 + 2 * pixels + p];
    }
  }
  return { images, labels };
}
