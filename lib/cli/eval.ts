/** `diffit eval`: FID, sFID, Inception Score, precision and recall of images in files, or of those that a model makes for it. */
import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import '../autograd.js';
import { setDefaultDevice } from '../device.js';
import { FileFormatError, OptionError, unknownName } from '../errors.js';
import { toFileError } from '../io/files.js';
import {
  type Evaluation,
  evaluate,
  type FeatureExtractor,
  type ImageBatch,
  type ImageBatches,
  loadInception,
  type Metric,
  openImages,
  openReference,
  type ResizeMode,
} from '../metrics/index.js';
import { autocast } from '../scope.js';
import { generate, imageShape } from '../train/index.js';
import { localFile } from './download.js';
import { interruptible } from './interrupt.js';
import { type ModelOptions, openModel, weightsFile } from './open-model.js';
import { ensureWritableFile } from './output.js';
import type { Progress, Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface EvalOptions extends ModelOptions {
  samples?: string;
  reference?: string;
  extractor?: string;
  resize: ResizeMode;
  metrics?: string;
  num?: number;
  size?: number;
  k: number;
  precision: 'f32' | 'bf16' | 'f16';
  seed: number;
  batch: number;
  sampleBatch?: number;
  device: string;
  /** False with --no-cache. */
  cache: boolean;
  out?: string;
}

const metricNames: readonly Metric[] = ['fid', 'sfid', 'is', 'pr'];
/** Images that a model makes, when --num is not given: what published figures are of. */
const publishedCount = 50_000;
/** Images at a time, when --sample-batch is not given: latent models are large. */
const [imageBatch, latentBatch] = [64, 4];

/** Images to be judged. */
interface Samples extends Disposable {
  count: number;
  batches: (signal: AbortSignal) => ImageBatches;
}

export async function evaluateImages(options: EvalOptions, terminal: Terminal): Promise<number> {
  const { reference, out, precision } = options;
  const makes = options.checkpoint !== undefined || options.preset !== undefined;
  if (makes === (options.samples !== undefined)) {
    throw new OptionError('Give --samples PATH, or --checkpoint FILE (or --preset NAME) to make the images.');
  }
  const metrics = metricsOf(options);
  setDefaultDevice(options.device);
  if (out) await ensureWritableFile(out);
  return interruptible(terminal, 'Stopping.', async (signal) => {
    const started = performance.now();
    using extractor = await openExtractor(options, terminal, signal);
    const shown = new Phases(terminal);
    try {
      using samples = makes ? await fromModel(options, terminal, signal) : await fromFile(options);
      const extract = extractor.extract;
      const { batch, k } = options;
      const known =
        reference === undefined || metrics.every((metric) => metric === 'is')
          ? undefined
          : await openReference(reference, {
              extractor: extract,
              metrics,
              batch,
              size: options.size,
              cache: options.cache ? undefined : false,
              signal,
              onImages: ({ done, total }) => shown.update('Reference', done, total),
            });
      const found = await autocast(precision, () =>
        evaluate({
          samples: samples.batches(signal),
          reference: known,
          extractor: extract,
          metrics,
          batch,
          k,
          signal,
          onProgress: ({ phase, done, total }) =>
            shown.update(phase === 'samples' ? 'Samples' : 'Precision and recall', done, total ?? samples.count),
        }),
      );
      shown.stop();
      const seconds = Number(((performance.now() - started) / 1000).toFixed(2));
      const report = { ...found, metrics, seconds, extractor: options.extractor, of: of(options), against: reference };
      if (out) {
        await writeFile(out, `${JSON.stringify(report, null, 2)}\n`).catch((error: unknown) => {
          throw toFileError(error, out, 'written');
        });
      }
      terminal.data(report);
      for (const line of table(found)) terminal.print(line);
      const against = found.reference === undefined ? '' : ` against ${found.reference}`;
      terminal.print(`${found.samples} images${against} in ${seconds} s${out ? `: ${out}` : ''}`);
      return 0;
    } finally {
      shown.stop();
    }
  });
}

/** What is judged, in the report. */
function of({ samples, checkpoint, preset }: EvalOptions): string | undefined {
  return samples ?? checkpoint ?? preset;
}

/** --metrics, or those that can be had. */
function metricsOf({ metrics, reference, extractor = '' }: EvalOptions): readonly Metric[] {
  if (metrics === undefined) {
    if (reference === undefined) return ['is'];
    return isModule(extractor) ? ['fid', 'pr'] : metricNames;
  }
  const names = metrics.split(',').map((name) => name.trim().toLowerCase());
  for (const name of names) {
    if (!metricNames.includes(name as Metric)) throw unknownName('metric', name, metricNames);
  }
  if (reference === undefined && names.some((name) => name !== 'is')) {
    throw new OptionError(`${names.filter((name) => name !== 'is').join(', ')} need --reference PATH.`);
  }
  return names as Metric[];
}

async function fromFile({ samples, size, num }: EvalOptions): Promise<Samples> {
  const images = await openImages(samples as string, { size, limit: num });
  return {
    count: images.count,
    batches: () => images.batches(64),
    [Symbol.dispose]: () => images.close(),
  };
}

async function fromModel(options: EvalOptions, terminal: Terminal, signal: AbortSignal): Promise<Samples> {
  const opened = await openModel(weightsFile(options), options, terminal, signal);
  const { model, vae, sampler } = opened;
  const { num: count = publishedCount, seed, sampleBatch: batch = vae ? latentBatch : imageBatch } = options;
  const [height, width, channels] = imageShape(model, vae);
  async function* batches(signal: AbortSignal): AsyncGenerator<ImageBatch> {
    for await (const data of generate(model, { count, seed, batch, sampler, vae, signal })) {
      yield { data, shape: [data.length / (height * width * channels), height, width, channels] };
    }
  }
  return { count, batches, [Symbol.dispose]: () => opened[Symbol.dispose]() };
}

function isModule(name: string): boolean {
  return /\.[cm]?[jt]s$/i.test(name);
}

/** Inception's weights, or the function that a module exports. */
async function openExtractor(
  { extractor, resize }: EvalOptions,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<Disposable & { extract: FeatureExtractor }> {
  if (extractor === undefined) {
    throw new OptionError(
      "Give --extractor FILE: Inception's weights as safetensors (docs/evaluation.md says how to make the file), or a module that exports a function.",
    );
  }
  if (!isModule(extractor)) {
    const inception = await loadInception(await localFile(extractor, terminal, signal), { resize, signal });
    return { extract: inception, [Symbol.dispose]: () => inception.dispose() };
  }
  const path = resolve(extractor);
  let loaded: { default?: unknown };
  try {
    loaded = await import(pathToFileURL(path).href);
  } catch (cause) {
    throw new FileFormatError(`${extractor} cannot be loaded: ${(cause as Error).message.split('\n')[0]}.`, {
      path,
      cause,
    });
  }
  if (typeof loaded.default !== 'function') {
    throw new FileFormatError(`${extractor} has no default export that is a function of images.`, { path });
  }
  return { extract: loaded.default as FeatureExtractor, [Symbol.dispose]: () => {} };
}

function table({ fid, sfid, inceptionScore, inceptionScoreDeviation, precision, recall }: Evaluation): string[] {
  const rows: [string, number | undefined, string?][] = [
    ['FID', fid],
    ['sFID', sfid],
    ['Inception Score', inceptionScore, ` ± ${inceptionScoreDeviation?.toFixed(4)}`],
    ['Precision', precision],
    ['Recall', recall],
  ];
  return rows.flatMap(([name, value, more = '']) =>
    value === undefined ? [] : [`${name.padEnd(16)}${value.toFixed(4)}${more}`],
  );
}

/** One bar after the other. A bar that is being made misses nothing: the next step tells it where things are. */
class Phases {
  private title = '';
  private bar: Progress | undefined;

  constructor(private readonly terminal: Terminal) {}

  update(title: string, done: number, total: number): void {
    if (title !== this.title) {
      this.stop();
      this.title = title;
      void this.terminal.progress(title, total).then((bar) => {
        if (this.title === title) this.bar = bar;
        else bar.stop();
      });
    }
    this.bar?.update(done);
  }

  stop(): void {
    this.bar?.stop();
    this.bar = undefined;
    this.title = '';
  }
}
