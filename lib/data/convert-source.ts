/** What a conversion reads: pictures of any size from folders and archives, or the images of a data set that has its own format. */
import { createHash } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError, OptionError } from '../errors.js';
import { decodeImage, type Image } from '../io/image.js';
import type { LabelledSource } from './encoded.js';
import { imagenetSource } from './ilsvrc.js';
import { folderSource } from './image-folder.js';
import type { Split } from './mnist.js';
import { openDataset } from './open.js';
import { zipSource } from './zip.js';

/** {@link SourceKind} as a list. */
export const sourceKinds = ['images', 'imagenet', 'ffhq', 'cifar10', 'mnist'] as const;
/** What a conversion reads; 'images' are any folder or zip. */
export type SourceKind = (typeof sourceKinds)[number];

/** Pictures in order. */
export interface Source {
  length: number;
  numClasses: number;
  classNames?: readonly string[];
  channels: 1 | 3;
  name(index: number): string;
  label(index: number): number;
  image(index: number): Promise<Image>;
  /** Tells this list of pictures from another. */
  digest(): string;
  close(): void;
}

interface Opening {
  kind: SourceKind;
  split?: Split;
  devkit?: string;
  labels: boolean;
}

export async function openSource(path: string, { kind, split, devkit, labels }: Opening): Promise<Source> {
  if (kind === 'cifar10' || kind === 'mnist') return datasetSource(path, split);
  if (split !== undefined && kind !== 'imagenet')
    throw new OptionError(`${path} has no ${split} split; name the folder or archive to use.`);
  const { source, classes } = kind === 'imagenet' ? await imagenetSource(path, split, devkit) : await picturesOf(path);
  const labelled = labels && classes.count > 0;
  return {
    length: source.length,
    numClasses: labelled ? classes.count : 0,
    classNames: labelled ? classes.names : undefined,
    channels: 3,
    name: source.name,
    label: labelled ? source.label : () => 0,
    image: async (index) => decodeImage(await source.read(index), source.name(index), { asStored: true }),
    digest: () => {
      const hash = createHash('sha256');
      for (let i = 0; i < source.length; i++)
        hash.update(`${source.name(i).slice(path.length)}\n${labelled ? source.label(i) : ''}\n`);
      return hash.digest('hex');
    },
    close: () => source.close?.(),
  };
}

async function picturesOf(path: string): Promise<LabelledSource> {
  const info = await stat(path).catch(() => {
    throw new DataError(`There is no file or folder ${path}.`);
  });
  return info.isDirectory() ? folderSource(path) : zipSource(path);
}

/** A set of few bytes, all in memory. */
async function datasetSource(path: string, split: Split | undefined): Promise<Source> {
  const dataset = await openDataset(path, { split });
  const { length, numClasses, classNames, imageShape } = dataset;
  const [height, width, channels] = imageShape;
  const labels = new BigInt64Array(length);
  const pixels = new Uint8Array(length * height * width * channels);
  const all = Array.from({ length }, (_, i) => i);
  if (!dataset.readBatch) throw new DataError(`${path} is a set of pictures, not one of CIFAR-10's or MNIST's.`);
  await dataset.readBatch(all, pixels, labels);
  const bytes = height * width * channels;
  return {
    length,
    numClasses,
    classNames,
    channels: channels as 1 | 3,
    name: (index) => `${path}: image ${index}`,
    label: (index) => Number(labels[index]),
    image: async (index) => ({ data: pixels.slice(index * bytes, (index + 1) * bytes), width, height, channels }),
    digest: () => createHash('sha256').update(pixels).update(new Uint8Array(labels.buffer)).digest('hex'),
    close: () => dataset.close(),
  };
}

/** What kind of source this is, by its name and what is in it. */
export async function guessKind(path: string): Promise<SourceKind> {
  if (path === 'mnist') return 'mnist';
  if (/\.(tar|tar\.gz|tgz)$/i.test(path)) return 'cifar10';
  for (const [inner, kind] of [
    ['cifar-10-batches-py', 'cifar10'],
    ['cifar-10-batches-bin', 'cifar10'],
    ['data_batch_1.bin', 'cifar10'],
    ['data_batch_1', 'cifar10'],
    ['train-images-idx3-ubyte', 'mnist'],
    ['train-images-idx3-ubyte.gz', 'mnist'],
    ['ILSVRC', 'imagenet'],
    [join('Data', 'CLS-LOC'), 'imagenet'],
  ] as const) {
    if (await stat(join(path, inner)).catch(() => undefined)) return kind;
  }
  return 'images';
}
