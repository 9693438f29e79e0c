/**
 * DiffiT-XL/2 at full size on this machine: loads a safetensors file with the released checkpoints' keys (random weights,
 * unless --checkpoint names the real one), runs one forward and a few guided DDPM steps; time, peak resident memory.
 * Prints a summary and adds to bench/results/latent-xl.json.
 *
 *     npx tsx bench/latent-xl.ts [--input-size 32|64] [--weights f32|bf16] [--steps 4] [--checkpoint FILE]
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  diffusion,
  full,
  io,
  memory,
  models,
  noGrad,
  randn,
  scope,
  synchronize,
  type Tensor,
  tensor,
  train,
} from '../lib/index.js';
import { writeResult } from './training.js';

const { values: options } = parseArgs({
  options: {
    'input-size': { type: 'string', default: '32' },
    weights: { type: 'string', default: 'f32' },
    steps: { type: 'string', default: '4' },
    checkpoint: { type: 'string' },
    make: { type: 'string' },
  },
});
const inputSize = Number(options['input-size']);

/** A file as the released ones are: every key, the index buffers too, no metadata. */
async function makeCheckpoint(path: string): Promise<void> {
  using model = new models.LatentDiffiT({ inputSize });
  await scope(async () => {
    const state = model.stateDict();
    const last = state['final_layer.linear.weight'];
    state['final_layer.linear.weight'] = randn(last.shape, { seed: 1 }).mul(0.02); // released models do not give 0
    const side = inputSize / 2;
    const index = BigInt64Array.from({ length: side ** 4 }, (_, k) => {
      const [i, j] = [Math.floor(k / side ** 2), k % side ** 2];
      const row = Math.floor(i / side) - Math.floor(j / side) + side - 1;
      return BigInt(row * (2 * side - 1) + (i % side) - (j % side) + side - 1);
    });
    const shared = tensor(index, { shape: [side ** 2, side ** 2] });
    for (let b = 0; b < model.config.depth; b++) state[`blocks.${b}.attn.relative_position_index`] = shared;
    await io.saveSafetensors(path, state);
  });
}

const seconds = async (work: () => Promise<unknown>): Promise<number> => {
  const start = performance.now();
  await work();
  return (performance.now() - start) / 1000;
};
/** Peak resident memory of this process so far, in bytes. */
const peak = (): number => process.resourceUsage().maxRSS * 1024;
const gib = (bytes: number): string => `${(bytes / 2 ** 30).toFixed(2)} GiB`;

async function measure(path: string): Promise<void> {
  const weights = options.weights as 'f32' | 'bf16';
  let model!: models.LatentDiffiT;
  const load = await seconds(async () => {
    model = (await train.loadModel(path, { weights })).model as models.LatentDiffiT;
    await synchronize();
  });
  const [loadPeak, weightBytes] = [peak(), memory().liveBytes];
  const { cfgScale, scalePow } =
    inputSize === 32 ? { cfgScale: 4.4, scalePow: 4 } : { cfgScale: 1.49, scalePow: undefined };
  await scope(async () => {
    const noise = randn([1, 4, inputSize, inputSize], { seed: 0 });
    const y = tensor(new BigInt64Array([207n]));
    const forward = await seconds(() => noGrad(() => model.forward(noise, full([1], 500), y)).data());
    const steps = Number(options.steps);
    const ddpm = new diffusion.GaussianDiffusion({ respacing: String(steps) });
    let last: Tensor | undefined;
    let first = 0;
    const start = performance.now();
    for await (const { step, sample } of diffusion.sampleDdpm(model, noise, { ddpm, y, cfgScale, scalePow, seed: 0 })) {
      if (step === 1) first = performance.now();
      last = sample;
    }
    const guidedStep = (performance.now() - first) / 1000 / (steps - 1);
    const finite = (await (last as Tensor).data()).every((v) => Number.isFinite(Number(v)));
    if (!finite) throw new Error('the sample is not finite');
    const key = `${inputSize * 8}px-${weights}`;
    const result = {
      parameters: model.parameterCount(),
      fileBytes: statSync(path).size,
      weightBytes,
      loadSeconds: load,
      loadPeakRss: loadPeak,
      loadPeakOverWeights: loadPeak / weightBytes,
      forwardSeconds: forward,
      firstGuidedStepSeconds: (first - start) / 1000,
      guidedStepSeconds: guidedStep,
      peakRss: peak(),
    };
    console.log(
      `${key}: loaded ${gib(weightBytes)} in ${load.toFixed(1)} s, peak ${gib(loadPeak)} (${result.loadPeakOverWeights.toFixed(3)}x); ` +
        `forward ${forward.toFixed(2)} s, guided step ${guidedStep.toFixed(2)} s, peak ${gib(result.peakRss)}`,
    );
    const file = fileURLToPath(new URL('results/latent-xl.json', import.meta.url));
    const before = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).runs : {};
    writeResult('latent-xl', { runs: { ...before, [key]: result } });
  });
}

if (options.make) await makeCheckpoint(options.make);
else if (options.checkpoint) await measure(options.checkpoint);
else {
  // Each part in a process of its own, so that the peak is that of loading alone.
  const path = join(tmpdir(), `diffit-xl-${inputSize}.safetensors`);
  mkdirSync(tmpdir(), { recursive: true });
  const script = fileURLToPath(import.meta.url);
  const run = (...more: string[]): void => {
    const args = ['--import', 'tsx', script, '--input-size', String(inputSize), ...more];
    const { status } = spawnSync(process.execPath, args, { stdio: 'inherit' });
    if (status !== 0) process.exit(status ?? 1);
  };
  if (!existsSync(path)) run('--make', path);
  run('--checkpoint', path, '--weights', options.weights, '--steps', options.steps);
}
