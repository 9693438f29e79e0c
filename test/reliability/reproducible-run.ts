/** Trains a few steps and samples, and prints what came of it, bit for bit: the device is the argument. */
import { createHash } from 'node:crypto';
import { setDefaultDevice } from '../../lib/device.js';
import { generate } from '../../lib/train/index.js';
import { bits, tinyTrainer } from '../train/fixtures.js';

setDefaultDevice(process.argv[2]);
const losses: number[] = [];
const precision = process.argv[3] as 'f32' | 'bf16';
const trainer = tinyTrainer({ precision });
await trainer.run(3, { onStep: ({ loss }) => void losses.push(loss) });
const samples: string[] = [];
for await (const pixels of generate(trainer.average, { count: 3, seed: 4, sampler: { steps: 2, churn: 1 } })) {
  samples.push(createHash('sha256').update(pixels).digest('hex'));
}
const [weights, average] = [await bits(trainer.model), await bits(trainer.average)];
console.log(JSON.stringify({ losses, weights, average, samples }));
