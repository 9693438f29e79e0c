/** `diffit sample`: images from a trained network, as a PNG grid, single PNGs, and an .npz batch. */
import { existsSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import '../autograd.js';
import { setDefaultDevice } from '../device.js';
import { FileError, OptionError } from '../errors.js';
import { imageGrid, saveImage, writeImageNpz } from '../io/index.js';
import { preset as presetNamed } from '../models/index.js';
import { checkLabels, generate, imageShape, loadModel } from '../train/index.js';
import { interruptible } from './interrupt.js';
import { ensureWritableFile, ensureWritableFolder } from './output.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface SampleOptions {
  preset?: string;
  checkpoint?: string;
  labels?: number[];
  class?: number[];
  num?: number;
  steps?: number;
  cfgScale?: number;
  churn: number;
  seed: number;
  batch: number;
  device: string;
  out?: string;
  outDir?: string;
  npz?: string;
}

/** Images per label, and images of an unconditional model, when --num is not given. */
const defaultColumns = 8;
const defaultCount = 16;
/** Most images in one grid. */
const maxGrid = 10_000;

const packageRoot = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

export async function sample(options: SampleOptions, terminal: Terminal): Promise<number> {
  const { seed, churn, batch, outDir, npz } = options;
  const out = options.out ?? (outDir || npz ? undefined : 'samples.png');
  const file = weightsFile(options);
  setDefaultDevice(options.device);
  if (out) {
    if (!out.toLowerCase().endsWith('.png')) throw new OptionError(`--out ${out} must end in .png.`);
    await ensureWritableFile(out);
  }
  if (npz) await ensureWritableFile(npz);
  if (outDir) await ensureWritableFolder(outDir);
  const { model, description } = await loadModel(file);
  const plan = layout(options, model.config.numClasses);
  const labels = checkLabels(model, plan.count, plan.labels);
  if (out && plan.count > maxGrid) {
    throw new OptionError(`A grid takes at most ${maxGrid} images; write ${plan.count} with --npz or --out-dir.`);
  }
  const steps = options.steps ?? description.sampler.steps;
  const cfgScale = options.cfgScale ?? description.sampler.cfgScale;
  const [height, width, channels] = imageShape(model);
  const shape = [plan.count, height, width, channels] as const;
  const started = performance.now();

  return interruptible(terminal, 'Stopping.', async (signal) => {
    const progress = await terminal.progress('Sampling', Math.ceil(plan.count / batch) * steps);
    const onStep = ({ done }: { done: number }): void => progress.update(done);
    const grid = out ? new Uint8Array(plan.count * height * width * channels) : undefined;
    /** The batches, kept and written as they come. */
    async function* batches(): AsyncGenerator<Uint8Array> {
      let done = 0;
      const size = height * width * channels;
      for await (const pixels of generate(model, {
        count: plan.count,
        labels,
        seed,
        batch,
        steps,
        cfgScale,
        churn,
        signal,
        onStep,
      })) {
        grid?.set(pixels, done * size);
        for (let i = 0; i < pixels.length / size; i++, done++) {
          if (!outDir) continue;
          const name = `${String(done).padStart(6, '0')}${labels ? `_class${labels[done]}` : ''}.png`;
          await saveImage(join(outDir, name), {
            data: pixels.subarray(i * size, (i + 1) * size),
            width,
            height,
            channels,
          });
        }
        yield pixels;
      }
    }
    try {
      if (npz) await writeImageNpz(npz, batches(), shape, { labels: labels && BigInt64Array.from(labels, BigInt) });
      else for await (const _ of batches());
    } finally {
      progress.stop();
      model.dispose();
    }
    if (out && grid) await saveImage(out, imageGrid(grid, shape, { columns: plan.columns }));
    const seconds = Number(((performance.now() - started) / 1000).toFixed(2));
    const files = { ...(out && { grid: out }), ...(outDir && { folder: outDir }), ...(npz && { npz }) };
    terminal.data({ images: plan.count, seconds, steps, cfgScale, seed, checkpoint: file, ...files });
    terminal.print(`${plan.count} images in ${seconds} s: ${Object.values(files).join(', ')}`);
    return 0;
  });
}

/** The file with the weights: --checkpoint, or the one the package ships for --preset. */
function weightsFile({ preset, checkpoint }: SampleOptions): string {
  if (preset !== undefined && checkpoint !== undefined)
    throw new OptionError('Give --preset or --checkpoint, not both.');
  if (checkpoint !== undefined) return checkpoint;
  if (preset === undefined) throw new OptionError('Give --preset NAME for shipped weights, or --checkpoint FILE.');
  const { name } = presetNamed(preset);
  const path = join(packageRoot, 'weights', `${name}.safetensors`);
  if (existsSync(path)) return path;
  const shown = relative(packageRoot, path);
  throw new FileError(
    `The package ships no weights for preset "${name}" (${shown}); train it with diffit train, then give --checkpoint FILE.`,
    { path },
  );
}

/**
 * How many images, of which classes, in how many columns. When the images divide evenly, each label has a row of its
 * own; otherwise the labels take turns.
 */
function layout(
  { num, labels, class: classes }: SampleOptions,
  numClasses: number,
): { count: number; labels?: number[]; columns?: number } {
  if (labels && classes) throw new OptionError('--labels and --class mean the same; give one of them.');
  const rows = labels ?? classes ?? (numClasses > 0 && num === undefined ? range(Math.min(numClasses, 10)) : undefined);
  if (!rows) return { count: num ?? defaultCount };
  const count = num ?? rows.length * defaultColumns;
  if (count % rows.length !== 0) return { count, labels: range(count).map((i) => rows[i % rows.length]) };
  const columns = count / rows.length;
  return { count, columns, labels: rows.flatMap((label) => new Array<number>(columns).fill(label)) };
}

function range(n: number): number[] {
  return Array.from({ length: n }, (_, i) => i);
}
