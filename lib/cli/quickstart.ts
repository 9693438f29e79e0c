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
/** All of it takes this long. */
const totalSeconds = 215;
const perDigit = 8;

const started = performance.now();
const seconds = (): number => (performance.now() - started) / 1000;
const terminal = new Terminal(process, false);

await rm(folder, { recursive: true, force: true });
// The mnist preset at the digits' own 28 pixels and half as wide where the map is large: twice as many images a second,
// and small batches, because three minutes are short of steps and not of images.
const plan = planTraining({
  preset: 'mnist',
  model: { imgResolution: 28, windowSize: [4, 7, 7], baseChannels: 16, channelMult: [1, 2, 4] },
  training: { batch: 16, lr: 1.5e-3 },
  sampler: { cfgScale: 3.5 }, // a young model needs firm guidance
});
const labels = Array.from({ length: 10 * perDigit }, (_, i) => Math.floor(i / perDigit));
/** Sampling runs the network this often; a step of training costs about three runs per image. */
const evaluations = labels.length * (2 * plan.sampler.steps - 1) * (plan.sampler.cfgScale === 1 ? 1 : 2);
/** When training has to end for sampling to end in time, at the speed seen so far. */
const trainingEnd = (): number => {
  const imagesPerSecond = trainer.images / (seconds() - trainingStart);
  const sampling = trainer.images > 0 ? evaluations / 3 / imagesPerSecond : 0;
  return Math.max(totalSeconds - 5 - sampling, totalSeconds / 2);
};
// The learning rate goes by the clock: it has fallen to nearly nothing when the time is up.
const { lr: peak } = plan.training;
const schedule = cosineLr(peak, 1, { warmup: 0.05, final: peak / 100 });
const run = await TrainingRun.open({ plan, out: folder, lr: () => schedule(seconds() / trainingEnd()) });
const { trainer, average } = run;
terminal.print(
  `Training a DiffiT of ${(trainer.model.parameterCount() / 1e6).toFixed(2)}M parameters on ${run.dataset.length} ` +
    `handwritten digits for about three minutes.`,
);

const trainingStart = seconds();
const progress = await terminal.progress('Training, seconds', totalSeconds);
const stop = new AbortController();
const onStep = ({ step, loss, imagesPerSecond }: StepReport): void => {
  progress.update(
    Math.floor(seconds()),
    `step ${step}  loss ${loss.toFixed(4)}  ${imagesPerSecond.toFixed(0)} images/s`,
  );
  if (seconds() >= trainingEnd()) stop.abort();
};
await run.train(Number.MAX_SAFE_INTEGER, { onStep, signal: stop.signal });
progress.stop();
const files = await run.finish();

const [height, width, channels] = imageShape(average);
const sampling = await terminal.progress('Sampling', plan.sampler.steps);
const images: Uint8Array[] = [];
for await (const pixels of generate(average, {
  count: labels.length,
  labels,
  batch: labels.length,
  sampler: plan.sampler,
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
