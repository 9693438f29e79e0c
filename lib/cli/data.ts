/** `diffit data`: what a data set holds, and a grid of its images. */
import { DataLoader, type Dataset, openDataset } from '../data/index.js';
import { OptionError } from '../errors.js';
import { imageGrid, saveImage } from '../io/index.js';
import { numel } from '../shape.js';
import { ensureWritableFile } from './output.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface DataOptions {
  size?: number;
  num: number;
  out?: string;
}

/** Most classes that are listed one by one. */
const listedClasses = 20;
/** Images read at a time. */
const batchSize = 256;

export async function data(path: string, { size, num, out }: DataOptions, terminal: Terminal): Promise<number> {
  if (out) {
    if (!out.toLowerCase().endsWith('.png')) throw new OptionError(`--out ${out} must end in .png.`);
    await ensureWritableFile(out);
  }
  const dataset = await openDataset(path, { size });
  try {
    const { length, imageShape, numClasses, classNames } = dataset;
    const { counts, first } = await readAll(dataset, out ? Math.min(num, length) : 0, terminal);
    const classes = counts.map((count, i) => ({ label: i, name: classNames?.[i] ?? String(i), count }));
    if (out) await saveImage(out, imageGrid(first, [first.length / numel(imageShape), ...imageShape]));
    terminal.data({ path, images: length, imageShape, numClasses, classes, ...(out && { grid: out }) });
    const labels = numClasses > 0 ? `${numClasses} classes` : 'no labels';
    terminal.print(`${path}: ${length} images of ${imageShape.join(' x ')}, ${labels}`);
    for (const { label, name, count } of classes.slice(0, listedClasses)) {
      terminal.print(`  ${label}${name === String(label) ? '' : ` ${name}`}: ${count}`);
    }
    if (classes.length > listedClasses) terminal.print(`  and ${classes.length - listedClasses} more`);
    if (out) terminal.print(out);
    return 0;
  } finally {
    dataset.close?.();
  }
}

/** Reads every image once, so that a corrupt one is found now. Images per class, and the pixels of the first `keep`. */
async function readAll(
  dataset: Dataset,
  keep: number,
  terminal: Terminal,
): Promise<{ counts: number[]; first: Uint8Array }> {
  const counts = new Array<number>(dataset.numClasses).fill(0);
  const first = new Uint8Array(keep * numel(dataset.imageShape));
  const loader = new DataLoader(dataset, { batchSize, shuffle: false, dropLast: false, epochs: 1 });
  const progress = await terminal.progress('Reading', dataset.length);
  let [done, filled] = [0, 0];
  try {
    for await (const { images, labels, indices } of loader) {
      for (const label of labels ?? []) counts[Number(label)]++;
      const part = images.subarray(0, first.length - filled);
      first.set(part, filled);
      filled += part.length;
      done += indices.length;
      progress.update(done);
    }
  } finally {
    progress.stop();
  }
  return { counts, first };
}
