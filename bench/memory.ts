/**
 * Is memory flat while training? Trains the `mnist` preset on the real data and compares live buffers, the pool and the
 * process's resident memory after step 100 with those at the end; prints both and writes bench/results/memory.json.
 *
 *     node --expose-gc --import tsx bench/memory.ts [--steps 600] [--batch 16]
 */
import { parseArgs } from 'node:util';
import { memory } from '../lib/index.js';
import { trainMnist, writeResult } from './training.js';

const { values } = parseArgs({
  options: { steps: { type: 'string', default: '600' }, batch: { type: 'string', default: '16' } },
});
const [steps, batch] = [Number(values.steps), Number(values.batch)];

interface Usage {
  step: number;
  liveBuffers: number;
  liveMB: number;
  poolMB: number;
  rssMB: number;
}

function usage(step: number): Usage {
  (globalThis as { gc?: () => void }).gc?.();
  const { liveBuffers, liveBytes, reservedBytes } = memory();
  const mb = (bytes: number): number => Number((bytes / 1e6).toFixed(1));
  return { step, liveBuffers, liveMB: mb(liveBytes), poolMB: mb(reservedBytes), rssMB: mb(process.memoryUsage.rss()) };
}

const points: Usage[] = [];
for await (const { step } of trainMnist(batch)) {
  if (step % 100 === 0) {
    points.push(usage(step));
    console.log(points[points.length - 1]);
  }
  if (step === steps) break;
}

const [first, last] = [points[0], points[points.length - 1]];
const percent = (from: number, to: number): number => Number(((100 * (to - from)) / from).toFixed(2));
const growth = {
  liveBuffers: last.liveBuffers - first.liveBuffers,
  poolPercent: percent(first.poolMB, last.poolMB),
  rssPercent: percent(first.rssMB, last.rssMB),
};
console.log(`growth from step ${first.step} to ${last.step}: ${JSON.stringify(growth)}`);
writeResult('memory', { workload: { preset: 'mnist', batch, steps }, points, growth });
