/** A worker of the soak: trains and samples a little, then ends as it is told to. */
import { parentPort, workerData } from 'node:worker_threads';
import { generate } from '../../lib/train/index.js';
import { tinyTrainer } from '../train/fixtures.js';

const { seed, way } = workerData as { seed: number; way: 'done' | 'exit' | 'throw' | 'terminate' };
const trainer = tinyTrainer({ modelSeed: seed });
await trainer.run(way === 'done' ? 2 : 1);
parentPort?.postMessage('trained');
if (way === 'throw') throw new Error('on purpose');
// Both end with work under way and in the queue: by themselves, and from outside.
if (way === 'exit') setTimeout(() => process.exit(0), seed % 20);
if (way === 'exit' || way === 'terminate') await trainer.run(1e6);
for await (const _ of generate(trainer.model.eval(), { count: 2, seed, sampler: { steps: 2 } })) void _;
trainer.dispose();
