/** `diffit sample`: images from a trained network, as a PNG grid, single PNGs, and an .npz batch. */
import { join } from 'node:path';
import '../autograd.js';
import { classLabel, imagenetClasses, imagenetLabel } from '../data/index.js';
import { setDefaultDevice } from '../device.js';
import { OptionError } from '../errors.js';
import { imageGrid, saveImage, writeImageNpz } from '../io/index.js';
import { autocast } from '../scope.js';
import { checkLabels, generate, imageShape } from '../train/index.js';
import { interruptible } from './interrupt.js';
import { type ModelOptions, type OpenedModel, openModel, weightsFile } from './open-model.js';
import { ensureWritableFile, ensureWritableFolder } from './output.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface SampleOptions extends ModelOptions {
  precision: 'f32' | 'bf16' | 'f16';
  labels?: (number | string)[];
  class?: (number | string)[];
  num?: number;
  seed: number;
  batch?: number;
  device: string;
  out?: string;
  outDir?: string;
  npz?: string;
}

/** Images per label, and images of an unconditional model, when --num is not given. */
const defaultColumns = 8;
const defaultCount = 16;
/** Images at a time, when --batch is not given: latent models are large. */
const [imageBatch, latentBatch] = [64, 4];
/** Most images in one grid. */
const maxGrid = 10_000;

export async function sample(options: SampleOptions, terminal: Terminal): Promise<number> {
  const { outDir, npz } = options;
  const out = options.out ?? (outDir || npz ? undefined : 'samples.png');
  const address = weightsFile(options);
  setDefaultDevice(options.device);
  if (out) {
    if (!out.toLowerCase().endsWith('.png')) throw new OptionError(`--out ${out} must end in .png.`);
    await ensureWritableFile(out);
  }
  if (npz) await ensureWritableFile(npz);
  if (outDir) await ensureWritableFolder(outDir);
  return interruptible(terminal, 'Stopping.', async (signal) => {
    using loaded = await openModel(address, options, terminal, signal);
    await autocast(options.precision, () => draw({ ...options, out }, loaded, terminal, signal));
    return 0;
  });
}

/** Draws the images and writes them, batch by batch as they come. */
async function draw(
  { seed, out, outDir, npz, ...options }: SampleOptions,
  { model, classNames, sampler, file, vae }: OpenedModel,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<void> {
  const batch = options.batch ?? (vae ? latentBatch : imageBatch);
  const plan = layout(options, model.config.numClasses, classNames);
  const labels = checkLabels(model, plan.count, plan.labels);
  if (out && plan.count > maxGrid) {
    throw new OptionError(`A grid takes at most ${maxGrid} images; write ${plan.count} with --npz or --out-dir.`);
  }
  const [height, width, channels] = imageShape(model, vae);
  const shape = [plan.count, height, width, channels] as const;
  const size = height * width * channels;
  const started = performance.now();
  const progress = await terminal.progress('Sampling', Math.ceil(plan.count / batch) * sampler.steps);
  const onStep = ({ done }: { done: number }): void => progress.update(done);
  const grid = out ? new Uint8Array(plan.count * size) : undefined;
  async function* batches(): AsyncGenerator<Uint8Array> {
    let done = 0;
    const { count } = plan;
    for await (const pixels of generate(model, { count, labels, seed, batch, sampler, vae, signal, onStep })) {
      grid?.set(pixels, done * size);
      for (let i = 0; i < pixels.length / size; i++, done++) {
        if (!outDir) continue;
        const name = `${String(done).padStart(6, '0')}${labels ? `_class${labels[done]}` : ''}.png`;
        const data = pixels.subarray(i * size, (i + 1) * size);
        await saveImage(join(outDir, name), { data, width, height, channels });
      }
      yield pixels;
    }
  }
  try {
    if (npz) await writeImageNpz(npz, batches(), shape, { labels: labels && BigInt64Array.from(labels, BigInt) });
    else for await (const _ of batches());
  } finally {
    progress.stop();
  }
  if (out && grid) await saveImage(out, imageGrid(grid, shape, { columns: plan.columns }));
  const seconds = Number(((performance.now() - started) / 1000).toFixed(2));
  const files = { ...(out && { grid: out }), ...(outDir && { folder: outDir }), ...(npz && { npz }) };
  const { steps, cfgScale } = sampler;
  terminal.data({ images: plan.count, seconds, steps, cfgScale, seed, checkpoint: file, ...files });
  terminal.print(`${plan.count} images in ${seconds} s: ${Object.values(files).join(', ')}`);
}

/**
 * How many images, of which classes, in how many columns. When the images divide evenly, each label has a row of its
 * own; otherwise the labels take turns.
 */
function layout(
  { num, labels, class: classes }: Pick<SampleOptions, 'num' | 'labels' | 'class'>,
  numClasses: number,
  classNames?: readonly string[],
): { count: number; labels?: number[]; columns?: number } {
  if (labels && classes) throw new OptionError('--labels and --class mean the same; give one of them.');
  const asked = (labels ?? classes)?.map((label) => labelOf(label, numClasses, classNames));
  const rows = asked ?? (numClasses > 0 && num === undefined ? range(Math.min(numClasses, 10)) : undefined);
  if (!rows) return { count: num ?? defaultCount };
  const count = num ?? rows.length * defaultColumns;
  if (count % rows.length !== 0) return { count, labels: range(count).map((i) => rows[i % rows.length]) };
  const columns = count / rows.length;
  return { count, columns, labels: rows.flatMap((label) => new Array<number>(columns).fill(label)) };
}

/** A class by number, or by name where the model file has names or the classes are ImageNet's. */
function labelOf(label: number | string, numClasses: number, classNames?: readonly string[]): number {
  if (typeof label === 'number') return label;
  if (classNames) return classLabel(label, classNames);
  if (numClasses === imagenetClasses.length) return imagenetLabel(label);
  throw new OptionError(`Class "${label}": this model's classes have no names; give numbers, 0 to ${numClasses - 1}.`);
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}
