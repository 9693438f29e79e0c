/**
 * Does training leave the event loop free? Trains the `mnist` preset for some steps on the real data while
 * perf_hooks' monitorEventLoopDelay (1 ms resolution) measures how late timers fire; prints percentiles and writes
 * bench/results/event-loop.json.
 *
 *     npx tsx bench/event-loop.ts [--steps 40] [--batch 64]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { parseArgs } from 'node:util';
import { data, devices, diffusion, models, optim, randn, scope, tensor } from '../lib/index.js';

const { values } = parseArgs({
  options: { steps: { type: 'string', default: '40' }, batch: { type: 'string', default: '64' } },
});
const [steps, batch] = [Number(values.steps), Number(values.batch)];

const model = models.create('mnist');
const optimizer = new optim.Adam(model.namedParameters(), { lr: 1e-3 });
const loader = new data.DataLoader(await data.openMnist({ split: 'train', size: 32 }), { batchSize: batch, seed: 0 });
const delay = monitorEventLoopDelay({ resolution: 1 });

let step = 0;
let start = 0;
for await (const { images, labels } of loader) {
  if (step === 5) {
    delay.enable(); // the first steps compile JavaScript and grow the pool
    start = performance.now();
  }
  await scope(async () => {
    const x = tensor(images, { shape: [batch, 1, 32, 32] })
      .to('f32')
      .mul(2 / 255)
      .sub(1);
    const { loss } = diffusion.edmLoss(model, x, {
      rndNormal: randn([batch], { seed: 0, stream: 2 * step }),
      noise: randn(x.shape, { seed: 0, stream: 2 * step + 1 }),
      labels: tensor(labels as BigInt64Array),
    });
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    await loss.item();
  });
  if (++step === steps + 5) break;
}
delay.disable();
const seconds = (performance.now() - start) / 1000;

// monitorEventLoopDelay counts the whole interval: the timer's own 1 ms is taken off.
const ms = (nanoseconds: number): number => Math.max(0, Number((nanoseconds / 1e6 - 1).toFixed(2)));
const result = {
  date: new Date().toISOString().slice(0, 10),
  machine: { cpu: cpus()[0].model, cores: cpus().length, node: process.version, variant: devices()[0].variant },
  workload: { preset: 'mnist', batch, steps, imagesPerSecond: Number(((batch * steps) / seconds).toFixed(1)) },
  eventLoopDelayMs: { p50: ms(delay.percentile(50)), p99: ms(delay.percentile(99)), max: ms(delay.max) },
};
console.log(
  `event loop while training: p50 ${result.eventLoopDelayMs.p50} ms, p99 ${result.eventLoopDelayMs.p99} ms, ` +
    `max ${result.eventLoopDelayMs.max} ms (${result.workload.imagesPerSecond} images/s)`,
);
mkdirSync('bench/results', { recursive: true });
writeFileSync('bench/results/event-loop.json', `${JSON.stringify(result, null, 2)}\n`);
