/** Images from a model: pixels, labels, and that an image depends on its seed and number alone. */
import t from 'tap';
import { memory, synchronize } from '../../lib/device.js';
import { OptionError } from '../../lib/errors.js';
import { manualSeed, randn } from '../../lib/ops/random.js';
import { tensor } from '../../lib/tensor.js';
import { checkLabels, type GenerateOptions, generate, toPixels } from '../../lib/train/index.js';
import { settledMemory } from '../helpers.js';
import { tinyModel } from './fixtures.js';

/** A model whose head is not zero, so that its images depend on the network. */
function model(numClasses = 3) {
  const made = tinyModel(1, { numClasses }).eval();
  manualSeed(2);
  for (const [name, parameter] of made.namedParameters()) {
    if (name.startsWith('head')) parameter.copyFrom(randn(parameter.shape));
  }
  return made;
}

async function all(options: GenerateOptions, from = model()): Promise<Uint8Array> {
  const parts: Uint8Array[] = [];
  for await (const part of generate(from, options)) parts.push(part);
  return new Uint8Array(Buffer.concat(parts));
}

t.test('pixels are x 127.5 + 128, clamped and truncated, channels last', async (t) => {
  const values = [-1, -0.999, -1.5, 0, 1, 2, 0.5, -0.5, 0.003, 0.0035, Number.NaN, 0.99];
  const pixels = await toPixels(tensor(values, { shape: [2, 3, 1, 2] }));
  const expected: number[] = [];
  for (let b = 0; b < 2; b++) {
    for (let x = 0; x < 2; x++) {
      for (let c = 0; c < 3; c++) {
        const value = Math.fround(values[b * 6 + c * 2 + x]);
        expected.push(Number.isNaN(value) ? 0 : Math.floor(Math.min(Math.max(value * 127.5 + 128, 0), 255)));
      }
    }
  }
  t.same([...pixels], expected);
});

t.test('image i of a seed is the same at any batch size and count, with churn too', async (t) => {
  const labels = [0, 1, 2, 0, 1];
  for (const churn of [0, 20]) {
    const options = { seed: 4, sampler: { steps: 4, churn } };
    const whole = await all({ ...options, count: 5, labels });
    t.equal(whole.length, 5 * 64);
    const parts = await all({ ...options, count: 5, labels, batch: 2 });
    const difference = whole.reduce((most, value, i) => Math.max(most, Math.abs(value - parts[i])), 0);
    t.ok(difference <= 1, `differs by ${difference}`);
    const fewer = await all({ ...options, count: 3, labels: labels.slice(0, 3), batch: 2 });
    t.ok(Buffer.compare(fewer, parts.subarray(0, 3 * 64)) === 0, 'fewer images are the first ones');
    t.not(Buffer.compare(await all({ ...options, seed: 5, count: 5, labels }), whole), 0, 'another seed');
  }
});

t.test('a label changes its image; without labels the classes take turns', async (t) => {
  const of = (label: number) => all({ count: 1, labels: [label], sampler: { steps: 3 } });
  t.not(Buffer.compare(await of(0), await of(1)), 0);
  const turns = await all({ count: 4, sampler: { steps: 3 } });
  t.equal(Buffer.compare(turns, await all({ count: 4, labels: [0, 1, 2, 0], sampler: { steps: 3 } })), 0);
});

t.test('an unconditional model', async (t) => {
  t.equal((await all({ count: 2, sampler: { steps: 2 } }, model(0))).length, 128);
  await t.rejects(all({ count: 2, labels: [0, 0] }, model(0)), { message: /this model is unconditional/ });
});

t.test('labels that do not fit', async (t) => {
  t.throws(() => checkLabels(model(), 2, [0]), new OptionError('1 labels were given for 2 images.'));
  t.throws(
    () => checkLabels(model(), 2, [0, 3]),
    new OptionError("Label 3 is not one of this model's classes, 0 to 2."),
  );
  t.throws(() => checkLabels(model(), 1, [0.5]), OptionError);
});

t.test('progress counts sampler steps; an abort ends it and leaves nothing behind', async (t) => {
  const controller = new AbortController();
  const seen: unknown[] = [];
  const from = model();
  const { liveBuffers } = await settledMemory();
  const onStep = (progress: { done: number; total: number }): void => {
    seen.push([progress.done, progress.total]);
    if (progress.done === 3) controller.abort();
  };
  await t.rejects(all({ count: 4, batch: 2, sampler: { steps: 2 }, onStep, signal: controller.signal }, from), {
    name: 'AbortError',
  });
  t.same(seen, [
    [1, 4],
    [2, 4],
    [3, 4],
  ]);
  await synchronize();
  const left = memory().liveBuffers - liveBuffers; // fewer when the collector came by for what earlier tests left
  t.ok(left <= 0, `${left} buffers left`);
});
