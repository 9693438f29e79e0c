/**
 * How much of sampling on a CPU is JavaScript: per evaluation of a network, enqueued ahead of the device, the wall time and the main thread's
 * own time on a processor. What a recorded and replayed list of operations could save is at most the latter.
 *
 *     npx tsx bench/js-share.ts          (Linux)
 */
import { diffusion, models, noGrad, randn, scope, synchronize, tensor } from '../lib/index.js';
import { ranMs } from './own-time.js';

async function measure(name: string, sample: () => Promise<number>): Promise<void> {
  await sample();
  const rows: { wall: number; js: number }[] = [];
  for (let i = 0; i < 5; i++) {
    const [wall, js] = [performance.now(), ranMs()];
    const evaluations = await sample();
    rows.push({ wall: (performance.now() - wall) / evaluations, js: (ranMs() - js) / evaluations });
  }
  const [{ wall, js }] = rows.sort((a, b) => a.wall - b.wall).slice(2);
  console.log(
    `${name}: ${wall.toFixed(2)} ms an evaluation, of it ${js.toFixed(2)} ms JavaScript (${((100 * js) / wall).toFixed(1)}%)`,
  );
}

async function edm(name: string): Promise<void> {
  const model = models.create(name as 'mnist', { dropout: 0 } as object).eval();
  const { imgResolution: side, inChannels, numClasses } = model.config;
  const labels = numClasses > 0 ? tensor(new BigInt64Array(1)) : undefined;
  const steps = name === 'mnist' ? 18 : 6;
  await measure(`${name}, one image, ${steps} steps of EDM`, () =>
    scope(async () => {
      for await (const _ of diffusion.sampleEdm(model, randn([1, inChannels, side, side]), {
        steps,
        labels,
        cfgScale: 1,
      }));
      await synchronize();
      return 2 * steps - 1;
    }),
  );
  model.dispose();
}

async function latent(): Promise<void> {
  const model = models.create('latent-small').eval();
  const x = randn([1, 4, 32, 32]);
  const [t, y] = [tensor(Float32Array.of(500)), tensor(new BigInt64Array(1))];
  await measure('latent-small, one image, 8 evaluations in a row', () =>
    noGrad(() =>
      scope(async () => {
        for (let i = 0; i < 8; i++) scope(() => void model.forward(x, t, y));
        await synchronize();
        return 8;
      }),
    ),
  );
}

await edm('mnist');
await latent();
await edm('cifar10');
