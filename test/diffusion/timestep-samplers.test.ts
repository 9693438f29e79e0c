/** Timestep samplers: frequencies, weights by hand, exact continuation from a saved state, bad input. */
import t from 'tap';
import { LossSecondMomentTimesteps, UniformTimesteps } from '../../lib/diffusion/timestep-samplers.js';
import { assertFails, maxElementError } from '../helpers.js';

/** How often each timestep comes in `draws` draws. */
function frequencies(sampler: UniformTimesteps | LossSecondMomentTimesteps, n: number, draws: number): number[] {
  const counts = new Array<number>(n).fill(0);
  for (const i of sampler.sample(draws).t) counts[i]++;
  return counts.map((count) => count / draws);
}

t.test('uniform', async (t) => {
  const sampler = new UniformTimesteps({ numTimesteps: 5, seed: 1 });
  t.ok(frequencies(sampler, 5, 20000).every((f) => Math.abs(f - 0.2) < 0.015));
  const { t: drawn, weights } = sampler.sample(3);
  t.ok(drawn.every((i) => Number.isInteger(i) && i >= 0 && i < 5));
  t.strictSame(weights, [1, 1, 1]);
});

t.test('the loss’s second moment decides, once every timestep has its history', async (t) => {
  const sampler = new LossSecondMomentTimesteps({ numTimesteps: 3, seed: 2, historyPerTerm: 2, uniformProb: 0.1 });
  const third = [1 / 3, 1 / 3, 1 / 3];
  sampler.update([0, 0, 1, 1, 2], [9, 3, 1, 1, 5]);
  t.strictSame(sampler.probabilities(), third, 'timestep 2 has one loss of two');
  sampler.update([2, 2], [5, Number.NaN]);
  sampler.update([0], [4]); // 9 is forgotten
  const moments = [Math.sqrt((3 ** 2 + 4 ** 2) / 2), 1, 5];
  const total = moments.reduce((a, b) => a + b, 0);
  const expected = moments.map((m) => (0.9 * m) / total + 0.1 / 3);
  t.ok(maxElementError(sampler.probabilities(), expected) < 1e-14);
  const found = frequencies(sampler, 3, 20000);
  t.ok(
    found.every((f, i) => Math.abs(f - expected[i]) < 0.015),
    `drawn ${found}, expected ${expected}`,
  );
  const { t: drawn, weights } = sampler.sample(100);
  t.ok(
    maxElementError(
      weights,
      drawn.map((i) => 1 / (3 * expected[i])),
    ) < 1e-14,
    'the loss stays unbiased',
  );
  t.ok(Math.abs(expected.reduce((sum, p, i) => sum + p * (1 / (3 * expected[i])), 0) - 1) < 1e-12);

  const fresh = new LossSecondMomentTimesteps({ numTimesteps: 1000, seed: 2 });
  for (let i = 0; i < 10; i++)
    fresh.update(
      Array.from({ length: 1000 }, (_, j) => j),
      new Float32Array(1000).fill(i === 9 ? 2 : 1),
    );
  t.ok(
    fresh.probabilities().every((p) => Math.abs(p - 0.001) < 1e-12),
    'defaults: ten losses each',
  );
  for (let i = 0; i < 10; i++) fresh.update([7], [0]);
  t.ok(Math.abs(fresh.probabilities()[7] - 1e-6) < 1e-12, 'a thousandth stays uniform');
  const silent = new LossSecondMomentTimesteps({ numTimesteps: 2, seed: 2, historyPerTerm: 1 });
  silent.update([0, 1], [0, 0]);
  t.strictSame(silent.probabilities(), [0.5, 0.5], 'no loss at all: uniform');
});

t.test('a seed and a stream name the draws; a saved state continues them exactly', async (t) => {
  const options = { numTimesteps: 50, seed: 5 };
  for (const make of [
    (stream?: number) => new UniformTimesteps({ ...options, stream }),
    (stream?: number) => new LossSecondMomentTimesteps({ ...options, historyPerTerm: 1, stream }),
  ]) {
    const [first, second, other] = [make(), make(0), make(1)];
    const draws = first.sample(40).t;
    t.strictSame(second.sample(15).t.concat(second.sample(25).t), draws, 'in however many batches');
    t.notSame(other.sample(40).t, draws);
    if (first instanceof LossSecondMomentTimesteps) {
      first.update(
        Array.from({ length: 50 }, (_, i) => i),
        Array.from({ length: 50 }, (_, i) => i % 7),
      );
    }
    const state = first.state();
    const text = JSON.stringify(state);
    const expected = first.sample(30);
    const resumed = make();
    resumed.restore(JSON.parse(text));
    t.strictSame(resumed.sample(30), expected);
    if (first instanceof LossSecondMomentTimesteps) first.update([3], [100]);
    t.equal(JSON.stringify(state), text, 'a state is a copy');
  }
});

t.test('bad input is one typed error', async (t) => {
  const sampler = new LossSecondMomentTimesteps({ numTimesteps: 4, seed: 0, historyPerTerm: 2 });
  const other = new LossSecondMomentTimesteps({ numTimesteps: 3, seed: 0 });
  const long = new LossSecondMomentTimesteps({ numTimesteps: 4, seed: 0 });
  long.update([1, 1, 1], [1, 2, 3]);
  for (const [run, message] of [
    [() => new UniformTimesteps({ numTimesteps: 0, seed: 0 }), /UniformTimesteps: numTimesteps is 0/],
    [() => new UniformTimesteps({ numTimesteps: 4, seed: 0.5 }), /seed is 0.5, expected/],
    [() => new LossSecondMomentTimesteps({ numTimesteps: 4, seed: 0, historyPerTerm: 0 }), /historyPerTerm is 0/],
    [
      () => new LossSecondMomentTimesteps({ numTimesteps: 4, seed: 0, uniformProb: 2 }),
      /uniformProb is 2.*from 0 to 1/,
    ],
    [() => sampler.update([1, 2], [1]), /1 losses for 2 timesteps/],
    [() => sampler.update([4], [1]), /timestep 4, expected an integer from 0 to 3/],
    [() => sampler.restore(other.state()), /a history of 3 timesteps, expected 4/],
    [() => sampler.restore(long.state()), /at most 2 losses each/],
  ] as const) {
    await assertFails(t, run, 'OptionError', message);
  }
});
