/**
 * CIFAR-10 (Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html) as it is published, packed or unpacked. The binary version: files of
 * records of one label byte and 32 x 32 pixels, first all reds, then all greens, then all blues. The Python version: pickled dictionaries with
 * "labels" and "data", rows of the same pixels; see io/pickle.ts.
 */
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError, FileFormatError } from '../errors.js';
import { readFully, toFileError, withFile } from '../io/files.js';
import { isPickledArray, readPickle } from '../io/pickle.js';
import { readTar } from '../io/tar.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { MemoryDataset, type OpenDataset } from './dataset.js';
import type { Split } from './mnist.js';

const pixels = 32 * 32;
const recordBytes = 1 + 3 * pixels;
const classNames = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck'];
/** A file of the set; the Python version's has no ending. */
const batchName = /^(data_batch_(\d+)|test_batch)(\.bin)?$/;
const folders = ['cifar-10-batches-bin', 'cifar-10-batches-py'];
/** Larger than any file of the set. */
const maxBatchBytes = 64 << 20;

/** Options of {@link openCifar10}. */
export interface Cifar10Options {
  /**
   * cifar-10-binary.tar.gz or cifar-10-python.tar.gz, or a folder that holds what is in them: data_batch_1.bin … test_batch.bin, the same
   * without .bin, or a folder cifar-10-batches-bin or cifar-10-batches-py with them.
   */
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

interface Pixels {
  images: Uint8Array;
  labels: Uint8Array;
}

/**
 * Opens CIFAR-10 (Krizhevsky 2009) as it is published; all images are read into memory as RGB [32, 32, 3].
 *
 * @throws {DataError} Files are missing.
 * @throws {FileFormatError} A file is corrupt, or a pickle that would run something.
 * @throws {FileError} The folder or a file cannot be read.
 * @throws {OptionError} An option that is missing, unknown, or no split.
 */
export async function openCifar10(options: Cifar10Options): Promise<OpenDataset> {
  const { dir, split } = parseOptions(optionsSchema, options, 'openCifar10');
  const info = await stat(dir).catch((error) => {
    throw toFileError(error, dir, 'read');
  });
  const batches = info.isFile() ? await readArchive(dir, split) : await readFolder(dir, split);
  const images = Buffer.concat(batches.map((batch) => batch.images));
  const labels = Buffer.concat(batches.map((batch) => batch.labels));
  return new MemoryDataset(images, [32, 32, 3], labels, classNames);
}

/** True when the folder holds a file of CIFAR-10. */
export function isCifar10(names: readonly string[]): boolean {
  return names.some((name) => batchName.test(name) || folders.includes(name));
}

async function readArchive(path: string, split: Split): Promise<Pixels[]> {
  const base = (name: string): string => name.slice(name.lastIndexOf('/') + 1);
  const isWanted = (name: string): boolean =>
    batchName.test(base(name)) && (base(name)[0] === 't') === (split === 'test');
  const batches = new Map<string, Pixels>();
  for await (const { name, bytes } of readTar(path, isWanted, maxBatchBytes)) {
    batches.set(base(name), parseBatch(bytes, `${path}: ${name}`));
  }
  return wholeSet([...batches.keys()], split, path).map((name) => batches.get(name) as Pixels);
}

async function readFolder(dir: string, split: Split): Promise<Pixels[]> {
  let folder = dir;
  let names = await list(folder);
  const inner = folders.find((name) => names.includes(name));
  if (inner && !names.some((name) => batchName.test(name))) {
    folder = join(dir, inner);
    names = await list(folder);
  }
  const batches: Pixels[] = [];
  for (const name of wholeSet(names, split, folder)) {
    const path = join(folder, name);
    const bytes = await withFile(path, async (handle, size) => {
      if (size > maxBatchBytes) throw new FileFormatError(`${path} is too large for a file of CIFAR-10.`, { path });
      const whole = new Uint8Array(size);
      await readFully(handle, whole, 0, path);
      return whole;
    });
    batches.push(parseBatch(bytes, path));
  }
  return batches;
}

/** Names of the files of a split, in order. Throws DataError when one is missing. */
function wholeSet(names: readonly string[], split: Split, where: string): string[] {
  const endings = names.flatMap((name) => batchName.exec(name)?.slice(3) ?? []);
  const ending = endings.length === 0 || endings.includes('.bin') ? '.bin' : '';
  if (split === 'test') {
    if (names.includes(`test_batch${ending}`)) return [`test_batch${ending}`];
    throw new DataError(`${where} holds no CIFAR-10 test set: test_batch${ending} is missing.`);
  }
  const numbers = names.map((name) => Number(batchName.exec(name)?.[2] ?? 0));
  const count = Math.max(1, ...numbers);
  const wanted = Array.from({ length: count }, (_, i) => `data_batch_${i + 1}${ending}`);
  const missing = wanted.find((name) => !names.includes(name));
  if (missing) throw new DataError(`${where} holds no whole CIFAR-10 training set: ${missing} is missing.`);
  return wanted;
}

async function list(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    throw toFileError(error, folder, 'read');
  }
}

/** A file of either version, by its name. */
function parseBatch(bytes: Uint8Array, path: string): Pixels {
  return path.endsWith('.bin') ? parseRecords(bytes, path) : parsePickle(bytes, path);
}

function parseRecords(raw: Uint8Array, path: string): Pixels {
  if (raw.length === 0 || raw.length % recordBytes !== 0) {
    throw new FileFormatError(
      `${path} is ${raw.length} bytes; expected a multiple of ${recordBytes}, the size of a CIFAR-10 record.`,
      { path },
    );
  }
  const count = raw.length / recordBytes;
  const labels = Uint8Array.from({ length: count }, (_, i) => raw[i * recordBytes]);
  const images = new Uint8Array(count * 3 * pixels);
  for (let i = 0; i < count; i++) interleave(raw, i * recordBytes + 1, images, i * 3 * pixels);
  return checked({ images, labels }, path);
}

function parsePickle(bytes: Uint8Array, path: string): Pixels {
  const fail = (message: string): never => {
    throw new FileFormatError(`${path} is no file of CIFAR-10: ${message}.`, { path });
  };
  const root = readPickle(bytes, path);
  if (!(root instanceof Map)) return fail('it is no dictionary');
  // Repickled by Python 3 with encoding="bytes" the names are bytes.
  const entries = new Map(
    [...root].map(([key, value]) => [key instanceof Uint8Array ? Buffer.from(key).toString('latin1') : key, value]),
  );
  const [data, given] = [entries.get('data'), entries.get('labels')];
  if (!isPickledArray(data) || data.dtype !== 'u1' || data.shape.length !== 2 || data.shape[1] !== 3 * pixels)
    return fail(`"data" is no array of bytes [images, ${3 * pixels}]`);
  const count = data.shape[0];
  if (data.bytes.length !== count * 3 * pixels) return fail('"data" has another size than it says');
  if (!Array.isArray(given) || given.length !== count || !given.every(Number.isInteger))
    return fail('"labels" is no list of as many numbers');
  const images = new Uint8Array(count * 3 * pixels);
  for (let i = 0; i < count; i++) interleave(data.bytes, i * 3 * pixels, images, i * 3 * pixels);
  return checked({ images, labels: given as number[] }, path);
}

function checked({ images, labels }: { images: Uint8Array; labels: ArrayLike<number> }, path: string): Pixels {
  const wrong = Array.from(labels).findIndex((label) => label < 0 || label >= classNames.length);
  if (wrong < 0) return { images, labels: Uint8Array.from(labels) };
  throw new FileFormatError(`${path}: record ${wrong} has the label ${labels[wrong]}; expected 0 .. 9.`, {
    path,
  });
}

/** Three planes from `at` on to pixels. */
function interleave(planes: Uint8Array, at: number, images: Uint8Array, to: number): void {
  for (let p = 0; p < pixels; p++) {
    images[to + 3 * p] = planes[at + p];
    images[to + 3 * p + 1] = planes[at + pixels + p];
    images[to + 3 * p + 2] = planes[at + 2 * pixels + p];
  }
}
