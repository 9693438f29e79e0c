/** examples/custom-sampler.ts: run as a script, and its sampler on a network whose samples can be computed by hand. */
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { type AncestralOptions, sampleAncestral } from '../../examples/custom-sampler.js';
import { type EdmNetwork, edmSigmas } from '../../lib/diffusion/index.js';
import { loadImage } from '../../lib/io/index.js';
import { randn } from '../../lib/ops/random.js';
import { scope } from '../../lib/scope.js';
import type { Tensor } from '../../lib/tensor.js';
import { assertClose, settledMemory, withoutLeaks } from '../helpers.js';
import { temporaryFolder } from '../train/fixtures.js';
import { runExample } from './run-example.js';

/** F = 0: the denoiser of data N(0, 0.25), D(x; sigma) = x / (1 + 4 sigma^2). */
const gaussian: EdmNetwork = { forward: (x) => x.mul(0) };
const shape = [64, 1, 8, 8];

/** The sampler on that network by hand: each element is its noise times `factor`, plus fresh noise of this variance. */
function byHand(steps: number, order: 1 | 2, eta: number): { factor: number; variance: number } {
  const sigmas = edmSigmas(steps);
  const slope = (sigma: number): number => (1 - 0.25 / (sigma ** 2 + 0.25)) / sigma;
  let [factor, variance] = [sigmas[0], 0];
  for (let i = 0; i < steps; i++) {
    const [sigma, next] = [sigmas[i], sigmas[i + 1]];
    const up = eta * next * Math.sqrt(1 - (next / sigma) ** 2);
    const down = Math.sqrt(next ** 2 - up ** 2);
    let gain = 1 + (down - sigma) * slope(sigma);
    if (order === 2 && down > 0) gain = 1 + ((down - sigma) / 2) * (slope(sigma) + gain * slope(down));
    factor *= gain;
    variance = variance * gain ** 2 + up ** 2;
  }
  return { factor, variance };
}

async function sampled(noise: Tensor, options: AncestralOptions): Promise<Float32Array> {
  let last: Tensor | undefined;
  for await (const { sample } of sampleAncestral(gaussian, noise, options)) last = sample;
  const values = (await last?.data()) as Float32Array;
  last?.dispose();
  return values;
}

async function check(t: Test, steps: number, order: 1 | 2, eta: number): Promise<void> {
  await scope(async () => {
    const noise = randn(shape, { seed: 3, stream: 0 });
    const values = await sampled(noise, { steps, order, eta, seed: 3 });
    const { factor, variance } = byHand(steps, order, eta);
    const initial = (await noise.data()) as Float32Array;
    const name = `${steps} steps, order ${order}, eta ${eta}`;
    if (eta === 0) {
      assertClose(
        t,
        values,
        initial.map((value) => value * factor),
        1e-5,
        name,
      );
      return;
    }
    const expected = Math.sqrt(factor ** 2 + variance);
    const actual = Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);
    t.ok(Math.abs(actual / expected - 1) < 0.04, `${name}: deviation ${actual}, by hand ${expected}`); // 4096 numbers: 1.1% is one sigma
  });
}

t.test('Euler and Heun, deterministic and ancestral, as computed by hand', async (t) => {
  for (const order of [1, 2] as const) for (const eta of [0, 0.5, 1]) await check(t, 10, order, eta);
});

t.test('many ancestral steps end at the deviation of the data', async (t) => {
  const { factor, variance } = byHand(400, 1, 1);
  t.ok(Math.abs(Math.sqrt(factor ** 2 + variance) - 0.5) < 0.01);
  await check(t, 100, 1, 1);
});

t.test('it can be stopped, and leaves nothing behind', async (t) => {
  const { liveBuffers } = await settledMemory();
  const controller = new AbortController();
  const noise = randn(shape, { seed: 1 });
  const seen: number[] = [];
  const work = async (): Promise<void> => {
    for await (const { step } of sampleAncestral(gaussian, noise, { steps: 9, order: 2, signal: controller.signal })) {
      seen.push(step);
      if (step === 3) controller.abort(new Error('enough'));
    }
  };
  await t.rejects(work(), { message: 'enough' });
  t.same(seen, [1, 2, 3]);
  for await (const { step } of sampleAncestral(gaussian, noise, { steps: 9 })) if (step === 2) break;
  noise.dispose();
  t.equal((await settledMemory()).liveBuffers, liveBuffers);
  await withoutLeaks(t, 'cpu', async () => {
    await sampled(randn(shape, { seed: 1 }), { steps: 5 });
  });
});

t.test('the script compares it with the built-in sampler', async (t) => {
  const out = join(temporaryFolder(t), 'samplers.png');
  const { code, out: said, err } = await runExample('custom-sampler.ts', '--out', out, '--steps', '4');
  t.equal(code, 0, err);
  const differences = [...said.matchAll(/^(.*): (\d+) evaluations, .* differs by (\S+) at most$/gm)];
  t.same(
    differences.map(([, name, evaluations]) => [name, Number(evaluations)]),
    [
      ['built-in Heun', 7],
      ['own Heun', 7],
      ['own Euler', 4],
      ['own Euler, ancestral', 4],
      ['own Heun, ancestral', 7],
    ],
  );
  const [, heun, ...others] = differences.map(([, , , difference]) => Number(difference));
  t.ok(heun < 1e-3, `the same algorithm differs by ${heun}`);
  for (const other of others) t.ok(other > 0.05, `another algorithm differs by ${other}`);
  t.match(await loadImage(out), { width: 10 * 66 - 2, height: 5 * 66 - 2 });
});
