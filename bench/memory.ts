/**
 * Is memory flat while training? Trains the `mnist` preset on the real data and compares live buffers, the pool and the
 * process's resident memory after step 100 with those at the end; prints both and writes bench/results/memory.json.
 *
 *     node --expose-gc --import tsx bench/memory.ts [--steps 600] [--batch 16]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { data, diffusion, memory, models, optim, randn, scope, tensor } from '../lib/index.js';

const { values } = parseArgs({
  options: { steps: { type: 'string', default: '600' }, batch: { type: 'string', default: '16' } },
});
const [steps, batch] = [Number(values.steps), Number(values.batch)];

const model = models.create('mnist');
const average = models.create('mnist');
const optimizer = new optim.Adam(model.namedParameters(), { lr: 1e-3 });
const ema = new optim.Ema(model.namedParameters(), average.namedParameters());
const loader = new data.DataLoader(await data.openMnist({ split: 'train', size: 32 }), { batchSize: batch, seed: 0 });

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
let step = 0;
for await (const { images, labels } of loader) {
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
    ema.update(0.999);
    await loss.item();
  });
  step++;
  if (step % 100 === 0) {
    points.push(usage(step));
    console.log(points[points.length - 1]);
  }
  if (step === steps) break;
}

const [first, last] = [points[0], points[points.length - 1]];
const growth = {
  liveBuffers: last.liveBuffers - first.liveBuffers,
  poolPercent: Number(((100 * (last.poolMB - first.poolMB)) / first.poolMB).toFixed(2)),
  rssPercent: Number(((100 * (last.rssMB - first.rssMB)) / first.rssMB).toFixed(2)),
};
console.log(`growth from step ${first.step} to ${last.step}: ${JSON.stringify(growth)}`);
mkdirSync('bench/results', { recursive: true });
writeFileSync(
  'bench/results/memory.json',
  `${JSON.stringify(
    {
      date: new Date().toISOString().slice(0, 10),
      machine: { cpu: cpus()[0].model, cores: cpus().length, node: process.version },
      workload: { preset: 'mnist', batch, steps },
      points,
      growth,
    },
    null,
    2,
  )}\n`,
);
