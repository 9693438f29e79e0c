/**
 * Fine-tuning on a folder of your own images, from the weights that come with the package or from a checkpoint of yours.
 *
 *     npx tsx fine-tune.ts --data photos --out runs/photos [--from model.safetensors] [--steps 2000] [--resume]
 *
 * Every folder in `photos` is a class, by its name (photos/cat/1.jpg, photos/dog/2.png); images directly in `photos` train a model without
 * classes. They are scaled and cropped to the model's size. In `runs/photos`: checkpoints to resume from, log.jsonl, report.html with the curves
 * and sample grids of the averaged weights; at the end model.safetensors (the average) and samples.png, a row per class.
 * Ctrl-C finishes the step and writes a checkpoint; --resume goes on from it, bit for bit as if nothing had happened.
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { data, io, type models, setDefaultDevice, train } from 'diffit';

const { values } = parseArgs({
  options: {
    data: { type: 'string' },
    out: { type: 'string' },
    from: { type: 'string', default: train.shippedWeights('mnist') },
    steps: { type: 'string', default: '2000' },
    batch: { type: 'string', default: '32' },
    lr: { type: 'string', default: '5e-4' },
    every: { type: 'string', default: '500' },
    device: { type: 'string', default: 'cpu' },
    resume: { type: 'boolean', default: false },
  },
});
const { from, resume, device } = values;
if (values.data === undefined || values.out === undefined) throw new Error('Give --data FOLDER and --out FOLDER.');
const [steps, batch, every] = [values.steps, values.batch, values.every].map(Number);
setDefaultDevice(device);

// ---- the same network, but for the classes ------------------------------------------------------------------------------------------------
const { kind, config, sampler } = await train.readModelDescription(from);
if (kind !== 'ImageDiffiT') throw new Error(`${from} is a ${kind}: this example trains image-space models.`);
const { imgResolution: size, inChannels } = config as models.ImageDiffiT['config'];
const dataset = await data.openDataset(values.data, { size, channels: inChannels as 1 | 3 });
const { numClasses, classNames } = dataset;
dataset.close?.();
console.log(`${dataset.length} images, ${classNames ? `classes ${classNames.join(', ')}` : 'no classes'}`);

const plan = train.planTraining(
  {
    model: { ...config, numClasses },
    data: values.data,
    training: {
      batch,
      lr: Number(values.lr),
      lrRampImages: 10 * batch, // the first steps are small: Adam knows nothing of these gradients yet
      emaHalfLifeImages: 20 * batch,
      emaRampUp: 0.05,
      flip: false, // true for photos; a mirrored letter is another letter
      pMean: -0.4,
    },
    sampler: numClasses > 0 ? sampler : { ...sampler, cfgScale: 1 },
  },
  { device },
);
const run = await train.TrainingRun.open({
  plan,
  out: values.out,
  resume,
  checkpointEvery: every,
  sampleEvery: every,
  report: true,
});

// ---- the weights to start from; resuming has loaded those of the checkpoint ---------------------------------------------------------------
if (!resume) {
  /** Names in the file to names in the network: of a checkpoint the averaged weights, and no class vectors, which belong to other classes. */
  const rename = (stored: string): string | undefined =>
    /^(model|optimizer)\.|label_embed\./.test(stored) ? undefined : stored.replace(/^ema\./, '');
  for (const network of [run.trainer.model, run.average]) {
    await train.loadWeights(network, from, { rename, strict: false, device });
  }
}

// ---- training -----------------------------------------------------------------------------------------------------------------------------
const stop = new AbortController();
process.once('SIGINT', () => stop.abort());
const finished = await run.train(steps, {
  signal: stop.signal,
  onStep: ({ step, loss, imagesPerSecond }) => {
    if (step === 1 || step % 50 === 0) {
      console.log(`step ${step}/${steps}  loss ${loss.toFixed(4)}  ${imagesPerSecond.toFixed(0)} images/s`);
    }
  },
  onFile: (path) => console.log(path),
});

// ---- what came out ------------------------------------------------------------------------------------------------------------------------
if (finished) {
  const files = await run.finish();
  const perClass = 8;
  const rows = Math.max(1, numClasses);
  const count = rows * perClass;
  const labels = numClasses > 0 ? Array.from({ length: count }, (_, i) => Math.floor(i / perClass)) : undefined;
  const { model, description } = await train.loadModel(files.model);
  const parts: Uint8Array[] = [];
  for await (const part of train.generate(model, { count, labels, sampler: description.sampler, seed: 1 })) {
    parts.push(part);
  }
  const grid = join(values.out, 'samples.png');
  const shape = [count, ...train.imageShape(model)];
  await io.saveImage(grid, io.imageGrid(Buffer.concat(parts), shape, { columns: perClass, scale: 2 }));
  model.dispose();
  console.log(`${Object.values(files).join(', ')}, ${grid}`);
} else {
  console.log(`Stopped after step ${run.trainer.step}; --resume goes on.`);
}
await run.close();
