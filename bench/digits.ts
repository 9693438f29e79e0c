/**
 * Do the shipped MNIST weights draw digits? Trains a small convolutional classifier with this library on the real
 * training set, measures it on the 10,000 test images, then lets it read class-conditional samples of the `mnist`
 * preset. Prints a summary and writes bench/results/digits.json.
 *
 *     npx tsx bench/digits.ts [--epochs 3] [--samples 1000] [--weights weights/mnist.safetensors] [--steps N] [--cfg-scale X]
 */
import { parseArgs } from 'node:util';
import {
  data,
  diffusion,
  manualSeed,
  nn,
  noGrad,
  optim,
  randn,
  scope,
  type Tensor,
  tensor,
  train,
} from '../lib/index.js';
import { writeResult } from './training.js';

const { values: options } = parseArgs({
  options: {
    epochs: { type: 'string', default: '3' },
    samples: { type: 'string', default: '1000' },
    steps: { type: 'string' },
    'cfg-scale': { type: 'string' },
    seed: { type: 'string', default: '0' },
    weights: { type: 'string', default: 'weights/mnist.safetensors' },
  },
});

const { relu, reshape, crossEntropy } = nn.functional;

/** Four 3x3 convolutions and two linears on [B, 32, 32, 1] in [-1, 1] -> logits [B, 10]. */
class Classifier extends nn.Module {
  readonly convs = this.child(
    'convs',
    new nn.ModuleList([
      new nn.Conv2d(1, 32),
      new nn.Conv2d(32, 32, { stride: 2 }),
      new nn.Conv2d(32, 64),
      new nn.Conv2d(64, 64, { stride: 2 }),
    ]),
  );
  readonly fc1 = this.child('fc1', new nn.Linear(8 * 8 * 64, 128));
  readonly fc2 = this.child('fc2', new nn.Linear(128, 10));
  forward(x: Tensor): Tensor {
    return scope(() => {
      let h = x;
      for (const conv of this.convs) h = relu(conv.forward(h));
      h = this.fc1.forward(reshape(h, [x.shape[0], 8 * 8 * 64]), { activation: 'relu' });
      if (this.training) h = nn.functional.dropout(h, 0.3);
      return this.fc2.forward(h);
    });
  }
}

/** u8 images [B, 32, 32, 1] -> f32 in [-1, 1]. */
function scaled(images: Uint8Array, batch: number): Tensor {
  return scope(() =>
    tensor(images, { shape: [batch, 32, 32, 1] })
      .to('f32')
      .mul(2 / 255)
      .sub(1),
  );
}

async function correct(model: Classifier, images: Tensor, labels: ArrayLike<bigint | number>): Promise<number> {
  return scope(async () => {
    const guesses = await noGrad(() => model.forward(images).argmax(1)).data();
    let hits = 0;
    for (let i = 0; i < labels.length; i++) if (Number(guesses[i]) === Number(labels[i])) hits++;
    return hits;
  });
}

async function trainClassifier(epochs: number): Promise<{ model: Classifier; accuracy: number; seconds: number }> {
  manualSeed(1);
  const start = performance.now();
  const model = new Classifier();
  const batch = 128;
  const dataset = await data.openMnist({ split: 'train', size: 32 });
  const loader = new data.DataLoader(dataset, { batchSize: batch, seed: 1 });
  const optimizer = new optim.AdamW(model.namedParameters(), { lr: 1e-3, weightDecay: 1e-2 });
  const steps = Math.floor(dataset.length / batch) * epochs;
  let step = 0;
  for await (const { images, labels } of loader) {
    optimizer.lr = 1e-3 * 0.5 * (1 + Math.cos((Math.PI * step) / steps));
    const loss = await scope(async () => {
      const mean = crossEntropy(model.forward(scaled(images, batch)), tensor(labels as BigInt64Array)).mean();
      mean.backward();
      optimizer.step();
      optimizer.zeroGrad();
      return step % 50 === 0 ? mean.item() : undefined;
    });
    if (loss !== undefined) process.stderr.write(`classifier step ${step}/${steps} loss ${loss.toFixed(4)}\n`);
    if (++step === steps) break;
  }
  optimizer.dispose();
  model.eval();
  const test = await data.openMnist({ split: 'test', size: 32 });
  let hits = 0;
  for await (const { images, labels } of new data.DataLoader(test, { batchSize: 500, shuffle: false, epochs: 1 })) {
    hits += await scope(async () => correct(model, scaled(images, 500), labels as BigInt64Array));
  }
  return { model, accuracy: hits / test.length, seconds: (performance.now() - start) / 1000 };
}

async function readSamples(
  classifier: Classifier,
  count: number,
): Promise<{ accuracy: number; seconds: number; perClass: number[]; steps: number; cfgScale: number }> {
  const start = performance.now();
  const { model: unet, description } = await train.loadModel(options.weights);
  const steps = Number(options.steps ?? description.sampler.steps);
  const cfgScale = Number(options['cfg-scale'] ?? description.sampler.cfgScale);
  const batch = 100;
  const hits = new Array<number>(10).fill(0);
  for (let first = 0; first < count; first += batch) {
    await scope(async () => {
      const labels = BigInt64Array.from({ length: batch }, (_, i) => BigInt((first + i) % 10));
      const noise = randn([batch, 1, 32, 32], { seed: Number(options.seed), firstSample: first });
      let images: Tensor | undefined;
      const samples = diffusion.sampleEdm(unet, noise, {
        steps,
        cfgScale,
        labels: tensor(labels),
        seed: Number(options.seed),
        firstSample: first,
      });
      for await (const { sample } of samples) images = sample;
      const pixels = (images as Tensor).clamp(-1, 1).reshape([batch, 32, 32, 1]);
      const guesses = await noGrad(() => classifier.forward(pixels).argmax(1)).data();
      for (let i = 0; i < batch; i++) if (Number(guesses[i]) === Number(labels[i])) hits[Number(labels[i])]++;
    });
    process.stderr.write(`read ${first + batch}/${count} samples\n`);
  }
  const total = hits.reduce((a, b) => a + b, 0);
  return {
    accuracy: total / count,
    seconds: (performance.now() - start) / 1000,
    perClass: hits.map((n) => n / (count / 10)),
    steps,
    cfgScale,
  };
}

const classifier = await trainClassifier(Number(options.epochs));
console.log(
  `classifier: ${(100 * classifier.accuracy).toFixed(2)}% of the 10,000 MNIST test images (${classifier.seconds.toFixed(0)} s)`,
);
const samples = await readSamples(classifier.model, Number(options.samples));
console.log(
  `samples: ${(100 * samples.accuracy).toFixed(2)}% of ${options.samples} read as their label (${samples.seconds.toFixed(0)} s, ${samples.steps} steps, cfg ${samples.cfgScale})`,
);
writeResult('digits', {
  classifier: { testAccuracy: classifier.accuracy, epochs: Number(options.epochs) },
  samples: { ...samples, count: Number(options.samples), weights: options.weights },
});
