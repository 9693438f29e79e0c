/** The workload of the training benches: steps of the `mnist` preset on the real data, with Adam and an average. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { dirname } from 'node:path';
import { data, devices, diffusion, models, optim, randn, scope, tensor } from '../lib/index.js';

/** Trains forever; yields after each step, when its loss has been read. */
export async function* trainMnist(batch: number): AsyncGenerator<{ step: number; loss: number }> {
  const model = models.create('mnist');
  const average = models.create('mnist');
  const optimizer = new optim.Adam(model.namedParameters(), { lr: 1e-3 });
  const ema = new optim.Ema(model.namedParameters(), average.namedParameters());
  const loader = new data.DataLoader(await data.openMnist({ split: 'train', size: 32 }), { batchSize: batch, seed: 0 });
  let step = 0;
  for await (const { images, labels } of loader) {
    const loss = await scope(() => {
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
      return loss.item();
    });
    yield { step: ++step, loss };
  }
}

/** Writes bench/results/NAME.json, or another file: the date, the machine, and what was measured. */
export function writeResult(name: string, result: object, file = `bench/results/${name}.json`): void {
  const { variant, threads } = devices()[0];
  const machine = { cpu: cpus()[0].model, cores: cpus().length, node: process.version, variant, threads };
  mkdirSync(dirname(file), { recursive: true });
  const date = new Date().toISOString().slice(0, 10);
  writeFileSync(file, `${JSON.stringify({ date, machine, ...result }, null, 2)}\n`);
}
