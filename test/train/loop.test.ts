/** The training loop and its checkpoints: exact resumption, accumulation, bad losses, stopping, flat memory. */
import { join } from 'node:path';
import t from 'tap';
import { memory, synchronize } from '../../lib/device.js';
import { NonFiniteError, OptionError } from '../../lib/errors.js';
import { unary } from '../../lib/ops/elementwise.js';
import { defaultGenerator } from '../../lib/ops/random.js';
import { full } from '../../lib/tensor.js';
import { restoreCheckpoint, saveCheckpoint } from '../../lib/train/checkpoint.js';
import { edmObjective, type StepReport } from '../../lib/train/index.js';
import { assertClose, settledMemory } from '../helpers.js';
import { bits, CountingSource, temporaryFolder, tinyTrainer } from './fixtures.js';

const collect = () => {
  const reports: StepReport[] = [];
  return { reports, onStep: (report: StepReport) => void reports.push(report) };
};
const losses = (reports: StepReport[]): number[] => reports.map(({ loss }) => loss);

t.test('3 steps, a checkpoint, a new trainer and 3 steps equal 6 steps, bit for bit', async (t) => {
  const path = join(temporaryFolder(t), 'checkpoint.safetensors');
  const options = { gradClip: 0.5, microBatch: 3 };
  const whole = tinyTrainer(options);
  const log = collect();
  await whole.run(6, { onStep: log.onStep });
  t.same(
    log.reports.map(({ step, images }) => [step, images]),
    [1, 2, 3, 4, 5, 6].map((step) => [step, 4 * step]),
  );
  t.ok(log.reports.every(({ gradNorm, imagesPerSecond }) => (gradNorm as number) > 0 && imagesPerSecond > 0));

  const first = tinyTrainer(options);
  const half = collect();
  await first.run(3, { onStep: half.onStep });
  await saveCheckpoint(path, first, { some: 'config' });
  const second = tinyTrainer({ ...options, modelSeed: 9 });
  const state = await restoreCheckpoint(path, second, { some: 'config' });
  t.match(state, { step: 3, images: 12, seed: 5, loader: { epoch: 0, cursor: 3 } });
  await second.run(6, { onStep: half.onStep });
  t.same(losses(half.reports), losses(log.reports));
  t.same(await bits(second.model), await bits(whole.model));
  t.same(await bits(second.average), await bits(whole.average));
  t.notSame(await bits(second.average), await bits(second.model));
});

t.test('accumulating over parts of a batch gives the loss and the step of the whole batch', async (t) => {
  const run = async (microBatch?: number) => {
    const { reports, onStep } = collect();
    const trainer = tinyTrainer({ microBatch, gradClip: 1 });
    trainer.model.eval(); // without dropout, whose numbers go by the position in the forward pass
    await trainer.run(3, { onStep });
    return reports;
  };
  const [whole, parts] = [await run(), await run(3)];
  assertClose(t, losses(parts), losses(whole), 1e-5, 'losses');
  const norms = (reports: StepReport[]): number[] => reports.map(({ gradNorm }) => gradNorm as number);
  assertClose(t, norms(parts), norms(whole), 1e-4, 'gradient norms');
});

t.test('the schedule and the average go by images seen before the step', async (t) => {
  const seen: number[] = [];
  const { reports, onStep } = collect();
  const trainer = tinyTrainer({
    lr: (images) => images / 1000,
    emaDecay: (images, batch) => {
      seen.push(images, batch);
      return 0;
    },
  });
  await trainer.run(3, { onStep });
  t.same(
    reports.map(({ lr }) => lr),
    [0, 0.004, 0.008],
  );
  t.same(seen, [0, 4, 4, 4, 8, 4]);
  t.same(await bits(trainer.average), await bits(trainer.model), 'a decay of 0 copies the weights');
});

/** A trainer whose steps numbered in `bad` have a loss, or one gradient, that is not finite. */
function spoilt(bad: number[], what: 'loss' | 'gradient', options: Parameters<typeof tinyTrainer>[0] = {}) {
  const edm = edmObjective();
  const objective: typeof edm = (model, batch, key) => {
    const loss = edm(model, batch, key);
    if (!bad.includes(trainer.step + 1)) return loss;
    if (what === 'loss') return loss.mul(Number.NaN);
    // sqrt has an infinite slope at 0: the loss stays as it is, that one gradient does not.
    return loss.add(unary('sqrt', model.parameters()[0].mul(0)).sum());
  };
  const trainer = tinyTrainer({ objective, ...options });
  return trainer;
}

t.test('a loss that is not finite stops the run, names the step, and changes no weight', async (t) => {
  const trainer = spoilt([3], 'loss');
  const { reports, onStep } = collect();
  const error = await trainer.run(6, { onStep }).catch((error) => error);
  t.type(error, NonFiniteError);
  t.match(error, { message: 'The loss is NaN at step 3 (learning rate 0.00100).', step: 3, tensors: ['loss'] });
  t.same(
    reports.map(({ step, nonFinite }) => [step, nonFinite]),
    [
      [1, undefined],
      [2, undefined],
      [3, ['loss']],
      [4, undefined], // was on its way
    ],
  );
  await trainer.checkWeights();
});

t.test('a gradient that is not finite is named by its parameter', async (t) => {
  for (const gradClip of [undefined, 1]) {
    const trainer = spoilt([2], 'gradient', { gradClip });
    const [[name]] = trainer.model.namedParameters();
    const error = await trainer.run(3).catch((error) => error);
    t.type(error, NonFiniteError);
    t.same(error.tensors, [name]);
    t.match(error.message, `The gradient of ${name} is not finite at step 2 (loss `);
    await trainer.checkWeights();
  }
});

t.test('a step that is left out is as if it had not been taken', async (t) => {
  // With a learning rate of 0 in its place, weights stay too; but its moments would have moved.
  const skipped = spoilt([2], 'loss', { nonFinite: 'skip' });
  const { reports, onStep } = collect();
  await skipped.run(2, { onStep });
  const one = tinyTrainer();
  await one.run(1);
  t.same(await bits(skipped.model), await bits(one.model));
  t.same(await bits(skipped.average), await bits(one.average));
  const moments = async (trainer: typeof one) =>
    Promise.all(Object.values(trainer.optimizer.stateDict().tensors).map(async (x) => [...(await x.bytes())]));
  t.same(await moments(skipped), await moments(one));
  await skipped.run(4, { onStep });
  t.same(
    reports.map(({ step, nonFinite }) => [step, nonFinite?.length ?? 0]),
    [
      [1, 0],
      [2, 1],
      [3, 0],
      [4, 0],
    ],
  );
  t.ok(reports.slice(2).every(({ loss }) => Number.isFinite(loss)));
});

t.test('rewinding is asked for at rest, and after ten such steps in a row every run ends', async (t) => {
  const rewound: number[] = [];
  const trainer = spoilt([2, 5], 'loss', { nonFinite: 'rewind' });
  await trainer.run(7, { rewind: async () => void rewound.push(trainer.step) });
  t.same(rewound, [3, 6], 'the step after was on its way');
  await t.rejects(trainer.run(8), { name: 'OptionError', message: /"rewind" needs the option rewind/ });

  for (const nonFinite of ['skip', 'rewind'] as const) {
    const lost = spoilt([...Array(40).keys()], 'gradient', { nonFinite });
    await t.rejects(lost.run(40, { rewind: async () => undefined }), {
      name: 'NonFiniteError',
      message: /^1[01] steps in a row were not finite: The gradient of /,
    });
    t.ok(lost.step <= 12, `${lost.step}`);
  }
});

t.test('weights that are not finite are not saved', async (t) => {
  const path = join(temporaryFolder(t), 'checkpoint.safetensors');
  const trainer = tinyTrainer();
  const [weight] = trainer.model.parameters();
  weight.copyFrom(full(weight.shape, Number.POSITIVE_INFINITY));
  await t.rejects(saveCheckpoint(path, trainer, {}), { name: 'TrainError', message: /no longer finite after step 0/ });
});

t.test('the loss of a step is awaited while the next one is enqueued, and no later', async (t) => {
  const events: string[] = [];
  class Watched extends CountingSource {
    override async *[Symbol.asyncIterator]() {
      for await (const batch of { [Symbol.asyncIterator]: () => super[Symbol.asyncIterator]() }) {
        events.push(`batch ${this.position}`);
        yield batch;
      }
    }
  }
  await tinyTrainer({ loader: new Watched() }).run(3, { onStep: ({ step }) => void events.push(`loss ${step}`) });
  t.same(events, ['batch 1', 'batch 2', 'loss 1', 'batch 3', 'loss 2', 'loss 3']);
});

t.test('atRest runs when all steps so far are reported', async (t) => {
  const events: string[] = [];
  await tinyTrainer().run(4, {
    onStep: ({ step }) => void events.push(`loss ${step}`),
    restsAfter: (step) => step === 2,
    atRest: async (step) => void events.push(`rest ${step}`),
  });
  t.same(events, ['loss 1', 'loss 2', 'rest 2', 'loss 3', 'loss 4']);
});

t.test('an aborted signal ends the run after the step being computed', async (t) => {
  const controller = new AbortController();
  const { reports, onStep } = collect();
  const trainer = tinyTrainer();
  await trainer.run(50, {
    signal: controller.signal,
    onStep: (report) => {
      onStep(report);
      if (report.step === 2) controller.abort();
    },
  });
  t.equal(trainer.step, 3);
  t.equal(reports.length, 3, 'every step is reported');
});

t.test('a data source that fails or ends fails the run', async (t) => {
  class Broken extends CountingSource {
    // biome-ignore lint/correctness/useYield: it fails before
    override async *[Symbol.asyncIterator](): ReturnType<CountingSource[typeof Symbol.asyncIterator]> {
      throw new Error('disk gone');
    }
  }
  await t.rejects(tinyTrainer({ loader: new Broken() }).run(6), { message: 'disk gone' });
  await t.rejects(tinyTrainer({ loader: new CountingSource(4, 2) }).run(6), {
    name: 'TrainError',
    message: 'The data ended after 2 of 6 steps.',
  });
});

t.test('memory stays flat and the default generator is left alone', async (t) => {
  const trainer = tinyTrainer({ microBatch: 2, gradClip: 1 });
  const before = defaultGenerator.state();
  await trainer.run(3);
  await synchronize();
  const { liveBuffers, liveBytes } = await settledMemory();
  await trainer.run(8);
  await synchronize();
  t.equal(memory().liveBuffers, liveBuffers);
  t.equal(memory().liveBytes, liveBytes);
  t.same(defaultGenerator.state(), before);
});

t.test('bad options', async (t) => {
  t.throws(() => tinyTrainer({ microBatch: 0 }), OptionError);
  t.throws(() => tinyTrainer({ gradClip: -1 }), OptionError);
  t.throws(() => tinyTrainer({ precision: 'f16' as never }), { message: /precision is "f16".*needs loss scaling/ });
});
