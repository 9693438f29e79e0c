/** A run in a folder: what it writes, resuming it, stopping it, and what it refuses. */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { loadImage, saveImage } from '../../lib/io/index.js';
import { HostRandom } from '../../lib/random.js';
import { loadModel, planTraining, type Recipe, readLog, TrainingRun } from '../../lib/train/index.js';
import { bits, temporaryFolder, tinyConfig } from './fixtures.js';

/** 12 images of 8 x 8 in three classes. */
async function makeData(t: Test): Promise<string> {
  const folder = temporaryFolder(t);
  const random = new HostRandom(1);
  for (const name of ['a', 'b', 'c']) {
    mkdirSync(join(folder, name));
    for (let i = 0; i < 4; i++) {
      const data = Uint8Array.from({ length: 64 }, () => random.integer(256));
      await saveImage(join(folder, name, `${i}.png`), { data, width: 8, height: 8, channels: 1 });
    }
  }
  return folder;
}

const recipe = (data: string, changes: Partial<Recipe> = {}): Recipe => ({
  model: { ...tinyConfig },
  data,
  training: { batch: 5, lr: 1e-3, lrRampImages: 20, emaHalfLifeImages: 50, flip: true, gradClip: 1 },
  sampler: { steps: 2 },
  ...changes,
});

const names = (folder: string): string[] => readdirSync(folder).sort();
const losses = async (folder: string): Promise<unknown[]> =>
  (await readLog(join(folder, 'log.jsonl'))).map(({ step, loss, lr }) => [step, loss, lr]);

t.test('a run, and the same one killed after five steps and resumed from its checkpoint of step four', async (t) => {
  const data = await makeData(t);
  const [whole, parts] = [join(temporaryFolder(t), 'whole'), join(temporaryFolder(t), 'parts')];
  const options = { plan: planTraining(recipe(data)), seed: 3, checkpointEvery: 2, sampleEvery: 3 };

  const run = await TrainingRun.open({ ...options, out: whole });
  const written: string[] = [];
  t.equal(await run.train(6, { onFile: (path) => written.push(path.slice(whole.length + 1)) }), true);
  await run.finish();
  await run.close();
  t.same(written, [
    'checkpoint-0000002.safetensors',
    'samples/0000003.png',
    'checkpoint-0000004.safetensors',
    'checkpoint-0000006.safetensors',
    'samples/0000006.png',
  ]);
  t.same(names(whole), [
    'checkpoint-0000004.safetensors',
    'checkpoint-0000006.safetensors',
    'log.jsonl',
    'loss.svg',
    'model.safetensors',
    'run.json',
    'samples',
  ]);
  const grid = await loadImage(join(whole, 'samples', '0000006.png'), { channels: 1 });
  t.same([grid.width, grid.height], [4 * 10 - 2, 3 * 10 - 2], 'four images of each of three classes');
  t.match(readFileSync(join(whole, 'loss.svg'), 'utf8'), /^<svg .*<\/svg>\n$/s);
  t.same(
    await losses(whole).then((list) => list.map((entry) => (entry as number[])[2])),
    [0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3],
  );

  const killed = await TrainingRun.open({ ...options, out: parts });
  await killed.train(5);
  await killed.close();
  rmSync(join(parts, 'checkpoint-0000005.safetensors')); // as if killed before it was written
  const resumed = await TrainingRun.open({ ...options, out: parts, resume: true });
  t.equal(resumed.trainer.step, 4);
  await resumed.train(6);
  const { model } = await resumed.finish();
  await resumed.close();
  t.same(await losses(parts), await losses(whole));
  t.same(
    await bits((await loadModel(model)).model),
    await bits((await loadModel(join(whole, 'model.safetensors'))).model),
  );
});

t.test('augmentation: a run and the same one resumed give the same bits, in parts too', async (t) => {
  const data = await makeData(t);
  const settings = { batch: 5, lr: 1e-3, augment: { p: 0.8 } };
  const trained = async (training: object, stops: readonly number[]): Promise<string> => {
    const options = {
      plan: planTraining(recipe(data, { training: { ...training } })),
      out: temporaryFolder(t),
      seed: 3,
    };
    for (const [i, stop] of stops.entries()) {
      const run = await TrainingRun.open({ ...options, resume: i > 0 });
      await run.train(stop);
      if (stop === stops.at(-1)) await run.finish();
      await run.close();
    }
    return options.out;
  };
  const whole = await trained(settings, [5]);
  const parts = await trained(settings, [2, 4, 5]);
  t.same(await losses(parts), await losses(whole));
  const loaded = await loadModel(join(whole, 'model.safetensors'));
  const weights = await bits(loaded.model);
  t.same(await bits((await loadModel(join(parts, 'model.safetensors'))).model), weights);
  t.match(loaded.model.config, { augmentDim: 9 });
  const plain = await trained({ ...settings, augment: { p: 0 } }, [1]);
  t.match((await loadModel(join(plain, 'model.safetensors'))).model.config, { augmentDim: undefined });
  // The loss of a step's parts is that of the whole: an image's augmentation does not depend on its batch.
  const [[, loss]] = (await losses(whole)) as number[][];
  const [[, micro]] = (await losses(await trained({ ...settings, microBatch: 2 }, [1]))) as number[][];
  t.ok(Math.abs(micro - loss) < 2e-6 * loss, `${micro} is ${loss}`);
  const [[, none]] = (await losses(plain)) as number[][];
  t.not(none, loss);
});

t.test('damaged checkpoints are put aside and the run goes on from the last whole one', async (t) => {
  const data = await makeData(t);
  const out = temporaryFolder(t);
  const notes: string[] = [];
  const options = {
    plan: planTraining(recipe(data)),
    out,
    checkpointEvery: 1,
    onNote: (text: string) => notes.push(text),
  };
  const first = await TrainingRun.open({ ...options, keepCheckpoints: 4 });
  await first.train(4);
  await first.close();
  const path = (step: number): string => join(out, `checkpoint-000000${step}.safetensors`);
  truncateSync(path(4), statSync(path(4)).size - 1);
  const bytes = readFileSync(path(3));
  bytes[bytes.length - 1000] ^= 1; // one bit
  writeFileSync(path(3), bytes);
  const resumed = await TrainingRun.open({ ...options, resume: true });
  t.equal(resumed.trainer.step, 2);
  t.match(notes, [
    /checkpoint-0000004.* is truncated or has extra bytes\. Going on from .*checkpoint-0000003/,
    /checkpoint-0000003.* does not match its checksum; the file is damaged\. Going on from .*checkpoint-0000002/,
  ]);
  await resumed.train(4);
  await resumed.close();
  t.same(
    names(out).filter((name) => name.startsWith('checkpoint')),
    [3, 4].flatMap((step) => [`checkpoint-000000${step}.safetensors`, `checkpoint-000000${step}.safetensors.damaged`]),
  );

  for (const step of [3, 4]) writeFileSync(path(step), 'nothing');
  await t.rejects(TrainingRun.open({ ...options, resume: true }), { name: 'FileFormatError', path: path(3) });
  t.ok(existsSync(path(4)), 'nothing is put aside when nothing is whole');
  await t.rejects(TrainingRun.open({ ...options, keepCheckpoints: 0 }), {
    name: 'OptionError',
    message: /keepCheckpoints is 0/,
  });
});

t.test(
  'what a killed process leaves is swept away; a run killed before its first checkpoint starts again',
  async (t) => {
    const data = await makeData(t);
    const out = temporaryFolder(t);
    const open = (resume: boolean) => TrainingRun.open({ plan: planTraining(recipe(data)), out, resume });
    const run = await open(false);
    await run.close();
    writeFileSync(join(out, '.diffit-0123456789ab.tmp'), 'half');
    writeFileSync(join(out, '.diffit-mine.tmp'), "somebody else's");
    const again = await open(true);
    t.equal(again.trainer.step, 0);
    await again.close();
    t.same(names(out), ['.diffit-mine.tmp', 'log.jsonl', 'run.json']);
    const record = JSON.parse(readFileSync(join(out, 'run.json'), 'utf8'));
    for (const process of [
      { ...record.process, pid: 1 },
      { pid: 2 ** 22 + 1, host: 'elsewhere' },
    ]) {
      writeFileSync(join(out, 'run.json'), JSON.stringify({ ...record, process }));
      writeFileSync(join(out, '.diffit-0123456789ab.tmp'), 'half');
      await (await open(true)).close();
      t.ok(
        existsSync(join(out, '.diffit-0123456789ab.tmp')),
        `perhaps still written by ${process.pid} on ${process.host}`,
      );
    }
  },
);

t.test('steps that are not finite: a checkpoint before stopping, and rewinding to one', async (t) => {
  const data = await makeData(t);
  // A learning rate at which the weights overflow within some steps.
  const wild = recipe(data, { training: { ...recipe(data).training, lr: 1e16, lrRampImages: 0, gradClip: undefined } });
  const out = join(temporaryFolder(t), 'stop');
  const run = await TrainingRun.open({ plan: planTraining(wild), out });
  const error = await run.train(50).catch((error) => error);
  await run.close();
  t.equal(error.name, 'NonFiniteError');
  t.match(JSON.parse(readFileSync(join(out, 'run.json'), 'utf8')), { status: 'failed', error: error.message });
  const kept = names(out).filter((name) => name.startsWith('checkpoint'));
  t.equal(kept.length, 1);
  const log = await readLog(join(out, 'log.jsonl'));
  t.match(log[error.step - 1], { step: error.step, nonFinite: error.tensors });

  const notes: string[] = [];
  const back = join(temporaryFolder(t), 'rewind');
  const options = {
    plan: planTraining(wild),
    nonFinite: 'rewind',
    onNote: (text: string) => notes.push(text),
  } as const;
  const rewinding = await TrainingRun.open({ ...options, out: back });
  await t.rejects(
    rewinding.train(200).then((finished) => {
      if (finished) throw new Error('finished');
    }),
    /finished|steps in a row/,
  );
  await rewinding.close();
  t.ok(notes.some((note) => /^Step \d+ was not finite \(.*\) and is left out\.$/.test(note)));
  t.ok(notes.some((note) => /^Back to the weights of .*checkpoint-0000000\.safetensors\.$/.test(note)));
});

t.test('a signal ends a run with a checkpoint of the last step', async (t) => {
  const out = temporaryFolder(t);
  const run = await TrainingRun.open({ plan: planTraining(recipe(await makeData(t))), out });
  const controller = new AbortController();
  t.equal(
    await run.train(100, { signal: controller.signal, onStep: ({ step }) => step === 2 && controller.abort() }),
    false,
  );
  await run.close();
  t.equal((await readLog(join(out, 'log.jsonl'))).length, run.trainer.step);
  t.same(names(out), [`checkpoint-000000${run.trainer.step}.safetensors`, 'log.jsonl', 'run.json']);
});

t.test('what a run refuses', async (t) => {
  const data = await makeData(t);
  const out = temporaryFolder(t);
  const open = (changes: Partial<Recipe> = {}, more = {}) =>
    TrainingRun.open({ plan: planTraining(recipe(data, changes)), out, ...more });
  await t.rejects(open({}, { resume: true }), { name: 'TrainError', message: /holds no checkpoint to resume from/ });
  await t.rejects(open({ data: undefined }), { name: 'OptionError', message: /no data/ });
  await t.rejects(open({ data: join(data, 'none') }), { name: 'DataError', message: /no data set/ });
  await t.rejects(open({ data: join(data, 'a') }), {
    name: 'DataError',
    message: /no labels, and this model has 3 classes/,
  });
  await t.rejects(open({ model: { ...tinyConfig, numClasses: 2 } }), {
    name: 'DataError',
    message: /has 3 classes, this model 2/,
  });
  await t.rejects(open({ model: { ...tinyConfig, numClasses: 4 } }), {
    name: 'DataError',
    message: /has 3 classes, this model 4: set "numClasses" to 3 in the recipe's "model"\./,
  });
  await t.rejects(open({ training: { batch: 13, lr: 1 } }), {
    name: 'OptionError',
    message: /batch.* is larger than the data set of 12 images/,
  });
  await t.rejects(open({ model: { ...tinyConfig, inChannels: 3, imgResolution: 32 }, data: 'mnist' }), {
    name: 'DataError',
    message: 'mnist has samples of 32 x 32 x 1, this model makes 32 x 32 x 3.',
  });
  await t.rejects(open({ model: { ...tinyConfig, windowSize: 3 } }), { name: 'OptionError', message: /windowSize 3/ });
  t.notOk(existsSync(join(out, 'log.jsonl')));

  const run = await open();
  await run.train(1);
  await run.close();
  await t.rejects(open(), { name: 'TrainError', message: /already holds a run/ });
  await t.rejects(open({ training: { ...recipe(data).training, lr: 0.5 } }, { resume: true }), {
    name: 'TrainError',
    message: /belongs to another run: training\.lr: 0\.001 in the checkpoint, 0\.5 now\./,
  });
  await t.rejects(open({ model: { ...tinyConfig, baseChannels: 16 } }, { resume: true }), {
    name: 'TrainError',
    message: /model\.config\.baseChannels: 8 in the checkpoint, 16 now/,
  });
});
