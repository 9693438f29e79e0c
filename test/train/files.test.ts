/** Logs, model files, loss curves and recipes. */
import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { FileError, FileFormatError, OptionError } from '../../lib/errors.js';
import { readSafetensorsHeader, saveSafetensors } from '../../lib/io/index.js';
import { full, tensor } from '../../lib/tensor.js';
import { saveCheckpoint } from '../../lib/train/checkpoint.js';
import {
  describeModel,
  loadModel,
  lossCurveSvg,
  planTraining,
  readLog,
  readModelDescription,
  readRecipe,
  saveModel,
} from '../../lib/train/index.js';
import { TrainLog } from '../../lib/train/log.js';
import { assertClose } from '../helpers.js';
import { bits, temporaryFolder, tinyConfig, tinyModel, tinyTrainer } from './fixtures.js';

const report = (step: number) => ({ step, loss: 1 / 3, lr: 1e-3, images: 4 * step, imagesPerSecond: 10 });

t.test('a log has one object per step and goes on where a checkpoint was', async (t) => {
  const path = join(temporaryFolder(t), 'log.jsonl');
  t.same(await readLog(path), []);
  const log = await TrainLog.open(path, 0);
  for (const step of [1, 2, 3, 4]) await log.write(report(step));
  await log.close();
  appendFileSync(path, '{"step":5,"lo'); // the process was killed here
  t.same(await readLog(path), [1, 2, 3, 4].map(report));
  const resumed = await TrainLog.open(path, 2);
  await resumed.write(report(3));
  await resumed.close();
  t.same(await readLog(path), [1, 2, 3].map(report));
  t.equal(readFileSync(path, 'utf8').split('\n')[0], JSON.stringify(report(1)));
  const fresh = await TrainLog.open(path, 0);
  await fresh.close();
  t.same(await readLog(path), []);
  writeFileSync(path, '{}\nnonsense\n');
  await t.rejects(readLog(path), { name: 'FileFormatError', message: /line 2/ });
  await t.rejects(TrainLog.open(join(path, 'x'), 0), FileError);
});

t.test('a model file holds what is needed to make the model again', async (t) => {
  const folder = temporaryFolder(t);
  const model = tinyModel(3);
  const path = join(folder, 'model.safetensors');
  await saveModel(path, model, {
    description: describeModel(model, { preset: 'mnist', sampler: { kind: 'edm', steps: 7 } }),
  });
  const { model: loaded, description } = await loadModel(path);
  t.match(description, {
    kind: 'ImageDiffiT',
    preset: 'mnist',
    sampler: { kind: 'edm', steps: 7, cfgScale: 1, churn: 0 },
    config: tinyConfig,
  });
  t.same(loaded.config, model.config);
  t.equal(loaded.training, false);
  t.same(await bits(loaded), await bits(model));

  const half = join(folder, 'half.safetensors');
  await saveModel(half, model, { dtype: 'bf16' });
  const { entries } = await readSafetensorsHeader(half);
  t.ok(entries.every(({ dtype }) => dtype === 'BF16'));
  const { model: rounded } = await loadModel(half);
  const [exact, close] = [model.stateDict(), rounded.stateDict()];
  for (const name of Object.keys(exact)) {
    assertClose(
      t,
      (await close[name].data()) as Float32Array,
      (await exact[name].data()) as Float32Array,
      2 ** -8,
      name,
    );
  }
});

t.test('a checkpoint is a model file of its averaged weights', async (t) => {
  const path = join(temporaryFolder(t), 'c.safetensors');
  const trainer = tinyTrainer();
  await trainer.run(2);
  await saveCheckpoint(path, trainer, { model: describeModel(trainer.model) });
  const { model } = await loadModel(path);
  t.same(await bits(model), await bits(trainer.average));
});

t.test('files that hold no model', async (t) => {
  const folder = temporaryFolder(t);
  const path = join(folder, 'x.safetensors');
  const write = (metadata: Record<string, string>) => saveSafetensors(path, { a: tensor([1]) }, metadata);
  const format = 'diffit-model';
  await write({});
  await t.rejects(loadModel(path), { name: 'FileFormatError', message: /no diffit model/ });
  await write({ format, model: '{"kind":1}' });
  await t.rejects(loadModel(path), { name: 'FileFormatError', message: /damaged model description/ });
  await write({ format, model: 'x' });
  await t.rejects(loadModel(path), FileFormatError);
  await write({ format, model: '{"kind":"ImageDifit","config":{}}' });
  await t.rejects(loadModel(path), { name: 'OptionError', message: /did you mean "ImageDiffiT"/ });
  await write({ format, model: JSON.stringify({ kind: 'ImageDiffiT', config: { ...tinyConfig, windowSize: 3 } }) });
  await t.rejects(loadModel(path), OptionError);
  await write({ format, model: JSON.stringify({ kind: 'ImageDiffiT', config: tinyConfig }) });
  await t.rejects(loadModel(path), { name: 'StateDictError', message: /missing.*unexpected/ });
  await t.rejects(readModelDescription(join(folder, 'none')), FileError);
});

t.test('a loss curve is an SVG with both curves inside its frame', async (t) => {
  const points = Array.from({ length: 2000 }, (_, i) => ({ step: i + 1, loss: 2 / (1 + i) ** 0.3 }));
  const svg = lossCurveSvg(points, { title: 'a < b & c' });
  const lines = [...svg.matchAll(/<polyline [^>]*points="([^"]+)"/g)].map(([, list]) =>
    list.split(' ').map((point) => point.split(',').map(Number)),
  );
  t.equal(lines.length, 2);
  for (const line of lines) {
    t.ok(line.length > 100 && line.length <= 600);
    t.ok(line.every(([x, y]) => x >= 0 && x <= 720 && y >= 0 && y <= 400));
    t.ok(line[0][1] < line[line.length - 1][1], 'a falling loss goes down');
  }
  t.match(svg, '<text x="360" y="24" text-anchor="middle" font-size="15">a &lt; b &amp; c</text>');
  t.match(svg, />0\.5</, 'a tick of the loss axis');
  t.match(svg, />1,000</, 'a tick of the step axis');
  for (const few of [[], [{ step: 1, loss: 0.5 }], [{ step: 1, loss: Number.NaN }]]) {
    t.notMatch(lossCurveSvg(few), /NaN|Infinity/);
  }
});

t.test('a recipe fills its gaps from the preset', async (t) => {
  const plan = planTraining({ preset: 'mnist', model: { dropout: 0.2 }, training: { batch: 8, gradClip: 1 } });
  t.match(plan, {
    preset: 'mnist',
    data: 'mnist',
    model: { imgResolution: 32, dropout: 0.2 },
    training: { batch: 8, gradClip: 1 },
    sampler: { kind: 'edm', steps: 18 },
  });
  t.match(planTraining({ model: { ...tinyConfig }, data: 'x', training: { batch: 2, lr: 1 } }), {
    data: 'x',
    training: { batch: 2, lr: 1, lrRampImages: 0, emaHalfLifeImages: 500_000, flip: false },
  });
  const path = join(temporaryFolder(t), 'recipe.json');
  writeFileSync(path, JSON.stringify({ preset: 'mnist', sampler: { steps: 5 } }));
  t.equal(planTraining(await readRecipe(path)).sampler.steps, 5);
});

t.test('a bad recipe', async (t) => {
  for (const [preset, device, precision] of [
    ['imagenet256', 'cuda', 'bf16'],
    ['imagenet512', 'cuda:1', 'bf16'],
    ['imagenet256', 'cpu', 'f32'],
    ['mnist', 'cuda', 'f32'],
  ] as const) {
    t.equal(planTraining({ preset }, { device }).training.precision, precision, `${preset} on ${device}`);
  }
  const chosen = { preset: 'imagenet256', training: { precision: 'f32' } };
  t.equal(planTraining(chosen, { device: 'cuda' }).training.precision, 'f32', 'what the recipe says goes');
  t.throws(() => planTraining({ preset: 'mnist', training: { precision: 'f16' } }), {
    message: /precision is "f16", expected "f32" or "bf16" \(f16 would need loss scaling/,
  });
  t.throws(() => planTraining({ preset: 'mnits' }), { name: 'OptionError', message: /did you mean "mnist"/ });
  t.throws(() => planTraining({}), { message: /preset or a "model" is needed/ });
  t.throws(() => planTraining({ preset: 'mnist', trainng: {} } as never), { message: /did you mean "training"/ });
  t.throws(() => planTraining({ preset: 'mnist', training: { bacth: 1 } }), { message: /did you mean "batch"/ });
  t.throws(() => planTraining({ preset: 'mnist', training: { batch: 0 } }), { message: /batch/ });
  t.throws(() => planTraining({ model: {} }), { message: /batch.*lr/ });
  const path = join(temporaryFolder(t), 'recipe.json');
  await t.rejects(readRecipe(path), FileError);
  writeFileSync(path, '{');
  await t.rejects(readRecipe(path), FileFormatError);
  writeFileSync(path, '[]');
  await t.rejects(readRecipe(path), OptionError);
});

t.test('weights survive f32 values at the ends of the range', async (t) => {
  const model = tinyModel();
  const [weight] = model.parameters();
  weight.copyFrom(full(weight.shape, 2 ** -149));
  const path = join(temporaryFolder(t), 'm.safetensors');
  await saveModel(path, model);
  t.same(await bits((await loadModel(path)).model), await bits(model));
});
