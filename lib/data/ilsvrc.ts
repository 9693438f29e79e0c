/**
 * ImageNet as it is handed out (ILSVRC 2012): training images in folders of their class, validation images in one folder with their classes
 * in a file beside it. A label is the place of the class's WordNet number among all 1000, in order, which is that of imagenetClasses.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DataError, FileFormatError } from '../errors.js';
import { quote, toFileError } from '../io/files.js';
import { readMatStructs } from '../io/mat.js';
import type { LabelledSource } from './encoded.js';
import { folderSource } from './image-folder.js';
import { imagenetClasses } from './imagenet.js';
import type { Split } from './mnist.js';

const wordnet = /^n\d{8}$/;

/**
 * The images of a folder: one of ILSVRC's layouts (Data/CLS-LOC/train and val, or train and val, below `dir`), or a folder of class folders.
 * `devkit`: where ILSVRC2012_devkit_t12 was unpacked, for validation images without LOC_val_solution.csv. Throws DataError when something is
 * missing, and as folderSource().
 */
export async function imagenetSource(dir: string, split: Split | undefined, devkit?: string): Promise<LabelledSource> {
  const bases = [dir, join(dir, 'ILSVRC')].flatMap((base) => [join(base, 'Data', 'CLS-LOC'), base]);
  const part = split === 'test' ? 'val' : 'train';
  const found = await firstFolder(bases.map((base) => join(base, part)));
  if (!found && split === 'test')
    throw new DataError(`${dir} holds no validation images: there is no folder val or Data/CLS-LOC/val.`);
  const folder = found ?? dir;
  const opened = await folderSource(folder);
  if (opened.classes.count > 0) return named(opened);
  if (part === 'train')
    throw new DataError(`${folder} holds images without classes; expected a folder for each class.`);
  const { labels, where } = await validationLabels(dir, devkit);
  const { source } = opened;
  const label = (index: number): number => {
    const name = source
      .name(index)
      .replace(/^.*[\\/]/s, '')
      .replace(/\.[^.]*$/, '');
    const known = labels.get(name);
    if (known === undefined) throw new DataError(`${where} has no class for ${quote(name)}.`);
    return known;
  };
  for (let i = 0; i < source.length; i++) label(i); // says now what is missing
  return { source: { ...source, label }, classes: { count: imagenetClasses.length, names: imagenetClasses } };
}

async function firstFolder(paths: readonly string[]): Promise<string | undefined> {
  for (const path of paths) {
    const info = await stat(path).catch(() => undefined);
    if (info?.isDirectory()) return path;
  }
  return undefined;
}

/** All 1000 classes by their usual names instead of their WordNet numbers. */
function named({ source, classes }: LabelledSource): LabelledSource {
  const all = classes.names?.length === imagenetClasses.length && classes.names.every((name) => wordnet.test(name));
  return { source, classes: all ? { count: classes.count, names: imagenetClasses } : classes };
}

interface Validation {
  /** By the image's name without ending. */
  labels: Map<string, number>;
  /** The file it is from. */
  where: string;
}

async function validationLabels(dir: string, devkit: string | undefined): Promise<Validation> {
  const solution = join(dir, 'LOC_val_solution.csv');
  if (devkit === undefined) {
    const text = await readFile(solution, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT') throw toFileError(error, solution, 'read');
      throw new DataError(
        `The classes of the validation images are in neither ${solution} nor a devkit: name the folder of ILSVRC2012_devkit_t12.`,
      );
    });
    return fromSolution(text, solution);
  }
  return fromDevkit(devkit);
}

/** Lines "ILSVRC2012_val_00048981,n03995372 85 1 499 272", as Kaggle hands them out. */
function fromSolution(text: string, where: string): Validation {
  const rows = text
    .split(/\r?\n/)
    .slice(1)
    .filter((line) => line !== '')
    .map((line) => /^([^,]+),(n\d{8})\b/.exec(line) ?? damaged(where, line));
  const order = [...new Set(rows.map(([, , id]) => id))].sort();
  if (order.length !== imagenetClasses.length)
    throw new DataError(`${where} has ${order.length} classes; expected ${imagenetClasses.length}.`);
  const labels = new Map(order.map((id, label) => [id, label]));
  return { labels: new Map(rows.map(([, name, id]) => [name, labels.get(id) as number])), where };
}

function damaged(where: string, line: string): never {
  throw new FileFormatError(`${where} has the line ${quote(line)}; expected a name and a WordNet number.`, {
    path: where,
  });
}

/** The devkit numbers its classes otherwise: meta.mat says which WordNet number each has, and a text file has a number per image. */
async function fromDevkit(folder: string): Promise<Validation> {
  const names = await readdir(folder).catch((error) => {
    throw toFileError(error, folder, 'read');
  });
  const data = names.includes('data') ? join(folder, 'data') : folder;
  const read = (path: string): Promise<Buffer> =>
    readFile(path).catch((error) => {
      throw toFileError(error, path, 'read');
    });
  const meta = join(data, 'meta.mat');
  const ids = new Map<number, string>();
  for (const { ILSVRC2012_ID: id, WNID: word } of readMatStructs(await read(meta), 'synsets', meta)) {
    if (typeof id === 'number' && typeof word === 'string' && id >= 1 && id <= imagenetClasses.length)
      ids.set(id, word);
  }
  if (ids.size !== imagenetClasses.length)
    throw new FileFormatError(`${meta} has ${ids.size} classes; expected ${imagenetClasses.length}.`, { path: meta });
  const order = new Map([...ids.values()].sort().map((word, label) => [word, label]));
  const where = join(data, 'ILSVRC2012_validation_ground_truth.txt');
  const lines = (await read(where)).toString('latin1').trim().split(/\r?\n/);
  const labels = lines.map((line, i): [string, number] => {
    const word = ids.get(Number(line));
    if (word === undefined)
      throw new FileFormatError(`${where} has ${quote(line)} in line ${i + 1}; expected a number of 1 .. 1000.`, {
        path: where,
      });
    return [`ILSVRC2012_val_${String(i + 1).padStart(8, '0')}`, order.get(word) as number];
  });
  return { labels: new Map(labels), where };
}
