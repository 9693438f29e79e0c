/**
 * Does training leave the event loop free? Trains the `mnist` preset for some steps on the real data while
 * perf_hooks' monitorEventLoopDelay (1 ms resolution) measures how late timers fire; prints percentiles and writes
 * bench/results/event-loop.json.
 *
 *     npx tsx bench/event-loop.ts [--steps 100] [--batch 64]
 */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { trainMnist, writeResult } from './training.js';

const { values } = parseArgs({
  options: { steps: { type: 'string', default: '100' }, batch: { type: 'string', default: '64' } },
});
const [steps, batch] = [Number(values.steps), Number(values.batch)];
const warmUp = 5; // the first steps compile JavaScript and grow the pool

const delay = monitorEventLoopDelay({ resolution: 1 });
let start = 0;
for await (const { step } of trainMnist(batch)) {
  if (step === warmUp) {
    delay.enable();
    start = performance.now();
  }
  if (step === warmUp + steps) break;
}
delay.disable();
const imagesPerSecond = Number(((1000 * batch * steps) / (performance.now() - start)).toFixed(1));

// monitorEventLoopDelay counts the whole interval: the timer's own 1 ms is taken off.
const ms = (nanoseconds: number): number => Math.max(0, Number((nanoseconds / 1e6 - 1).toFixed(2)));
const eventLoopDelayMs = { p50: ms(delay.percentile(50)), p99: ms(delay.percentile(99)), max: ms(delay.max) };
const { p50, p99, max } = eventLoopDelayMs;
console.log(`event loop while training: p50 ${p50} ms, p99 ${p99} ms, max ${max} ms (${imagesPerSecond} images/s)`);
writeResult('event-loop', { workload: { preset: 'mnist', batch, steps, imagesPerSecond }, eventLoopDelayMs });
