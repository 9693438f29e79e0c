/**
 * `npm run quickstart`: trains the mnist preset for about three minutes, whatever this machine's speed, and writes
 * out/quickstart/{samples.png,loss.svg,model.safetensors}.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import '../autograd.js';
import { imageGrid, saveImage } from '../io/index.js';
import { constantLr, cosineLr, type LrSchedule } from '../optim/index.js';
import { generate, imageShape, planTraining, type StepReport, TrainingRun } from '../train/index.js';
import { Terminal } from './terminal.js';

const folder = join('out', 'quickstart');
/** Training time, and when training ends even if the machine has become slower meanwhile. */
const trainingSeconds = 190;
const lastSeconds = 215;
/** Steps by which the speed is measured. */
const measuredSteps = 10;
const perDigit = 8;

const started = performance.now();
const seconds = (): number => (performance.now() - started) / 1000;
const terminal = new Terminal(process, false);

await rm(folder, { recursive: true, force: true });
const plan = planTraining({ preset: 'mnist' });
const { batch, lr: peak, lrRampImages: warmup } = plan.training;
let schedule: LrSchedule = constantLr(peak);
const run = await TrainingRun.open({ plan, out: folder, lr: (images) => schedule(images) });
const { trainer, average } = run;
terminal.print(
  `Training a DiffiT of ${(trainer.model.parameterCount() / 1e6).toFixed(2)}M parameters on ${run.dataset.length} ` +
    `handwritten digits for about ${Math.round(trainingSeconds / 60)} minutes.`,
);

const speeds: number[] = [];
await run.train(measuredSteps, { onStep: ({ imagesPerSecond }) => speeds.push(imagesPerSecond) });
const speed = speeds.sort((a, b) => a - b)[Math.floor(speeds.length / 2)];
const steps = measuredSteps + Math.max(1, Math.floor(((trainingSeconds - seconds()) * speed) / batch));
schedule = cosineLr(peak, steps * batch, { warmup: Math.min(warmup, 0.05 * steps * batch), final: peak / 50 });

const progress = await terminal.progress('Training', steps, measuredSteps);
const onStep = ({ step, loss, imagesPerSecond }: StepReport): void =>
  progress.update(step, `loss ${loss.toFixed(4)}  ${imagesPerSecond.toFixed(0)} images/s`);
await run.train(steps, { onStep, signal: AbortSignal.timeout(1000 * (lastSeconds - seconds())) });
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
