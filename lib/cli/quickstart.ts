/**
 * `npm run quickstart`: trains the mnist preset for about three minutes, whatever this machine's speed, and writes
 * out/quickstart/{samples.png,loss.svg,model.safetensors}.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import '../autograd.js';
import { imageGrid, saveImage } from '../io/index.js';
import { cosineLr } from '../optim/index.js';
import { generate, imageShape, planTraining, type StepReport, TrainingRun } from '../train/index.js';
import { Terminal } from './terminal.js';

const folder = join('out', 'quickstart');
/** How long the training lasts; sampling and the rest take a quarter of a minute more. */
const trainingSeconds = 195;
const perDigit = 8;

const started = performance.now();
const seconds = (): number => (performance.now() - started) / 1000;
const terminal = new Terminal(process, false);

await rm(folder, { recursive: true, force: true });
const plan = planTraining({ preset: 'mnist' });
// The learning rate goes by the clock: it has fallen to nearly nothing when the time is up.
const { lr: peak } = plan.training;
const schedule = cosineLr(peak, trainingSeconds, { warmup: 0.05 * trainingSeconds, final: peak / 100 });
const run = await TrainingRun.open({ plan, out: folder, lr: () => schedule(seconds()) });
const { trainer, average } = run;
terminal.print(
  `Training a DiffiT of ${(trainer.model.parameterCount() / 1e6).toFixed(2)}M parameters on ${run.dataset.length} ` +
    `handwritten digits for ${trainingSeconds} seconds.`,
);

const progress = await terminal.progress('Training, seconds', trainingSeconds);
const onStep = ({ step, loss, imagesPerSecond }: StepReport): void =>
  progress.update(
    Math.min(Math.floor(seconds()), trainingSeconds),
    `step ${step}  loss ${loss.toFixed(4)}  ${imagesPerSecond.toFixed(0)} images/s`,
  );
const timeout = AbortSignal.timeout(Math.ceil(1000 * (trainingSeconds - seconds())));
await run.train(Number.MAX_SAFE_INTEGER, { onStep, signal: timeout });
progress.stop();
const files = await run.finish();

const [height, width, channels] = imageShape(average);
const labels = Array.from({ length: 10 * perDigit }, (_, i) => Math.floor(i / perDigit));
const sampling = await terminal.progress('Sampling', plan.sampler.steps);
const images: Uint8Array[] = [];
for await (const pixels of generate(average, {
  count: labels.length,
  labels,
  batch: labels.length,
  steps: plan.sampler.steps,
  onStep: ({ done }) => sampling.update(done),
})) {
  images.push(pixels);
}
sampling.stop();
const samples = join(folder, 'samples.png');
const shape = [labels.length, height, width, channels];
await saveImage(samples, imageGrid(Buffer.concat(images), shape, { columns: perDigit, scale: 2 }));
await run.close();

terminal.print(`Done in ${seconds().toFixed(0)} s, ${trainer.images} images seen. Look at:`);
terminal.print(`  ${samples}   digits 0 to 9, one row each, drawn by the network`);
terminal.print(`  ${files.lossCurve}      the loss over the steps`);
terminal.print(`  ${files.model}   the weights: npx diffit sample --checkpoint ${files.model} --labels 0-9`);
