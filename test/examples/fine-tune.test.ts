/** examples/fine-tune.ts: from weights to weights, in one go and resumed, on images of several sizes in folders. */
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { openMnist } from '../../lib/data/index.js';
import { models } from '../../lib/index.js';
import { loadImage, saveImage } from '../../lib/io/index.js';
import { HostRandom } from '../../lib/random.js';
import { readLog, readModelDescription, saveModel, shippedWeights } from '../../lib/train/index.js';
import { temporaryFolder, tinyModel } from '../train/fixtures.js';
import { runExample } from './run-example.js';

/** Coloured images of several sizes, in a folder per class. */
async function photos(folder: string, classes: readonly string[]): Promise<string> {
  const data = join(folder, 'photos');
  const random = new HostRandom(2);
  for (const name of classes) {
    mkdirSync(join(data, name), { recursive: true });
    for (let i = 0; i < 6; i++) {
      const [width, height] = [12 + i, 20 - i];
      const pixels = Uint8Array.from({ length: width * height * 3 }, () => random.integer(256));
      await saveImage(join(data, name, `${i}.png`), { data: pixels, width, height, channels: 3 });
    }
  }
  return data;
}

async function fineTune(t: Test, ...args: string[]): Promise<string> {
  const { code, out, err } = await runExample('fine-tune.ts', ...args);
  t.equal(code, 0, err);
  return out;
}

t.test('own classes, checkpoints, and resuming that changes nothing', async (t) => {
  const folder = temporaryFolder(t);
  const data = await photos(folder, ['oak', 'ash']);
  const from = join(folder, 'trained.safetensors');
  const trained = tinyModel(1, { classDropoutProb: 0.1 });
  await saveModel(from, trained);
  const [whole, parts] = [join(folder, 'whole'), join(folder, 'parts')];
  const common = ['--data', data, '--from', from, '--batch', '4', '--every', '3'];

  const out = await fineTune(t, ...common, '--out', whole, '--steps', '6');
  t.match(out, /^12 images, classes ash, oak\nstep 1\/6 {2}loss \d/);
  for (const file of ['checkpoint-0000003.safetensors', 'samples/0000006.png', 'model.safetensors', 'report.html']) {
    t.ok(existsSync(join(whole, file)), file);
  }
  t.match(await readModelDescription(join(whole, 'model.safetensors')), {
    classNames: ['ash', 'oak'],
    config: { numClasses: 2, imgResolution: 8 },
  });
  t.match(await loadImage(join(whole, 'samples.png')), { width: 8 * 18 - 2, height: 2 * 18 - 2 });

  await fineTune(t, ...common, '--out', parts, '--steps', '3');
  await fineTune(t, ...common, '--out', parts, '--steps', '6', '--resume');
  const bytes = (run: string) => readFileSync(join(run, 'model.safetensors'));
  t.ok(bytes(whole).equals(bytes(parts)), 'the same bits with and without an interruption');
});

t.test('images without folders train a model without classes', async (t) => {
  const folder = temporaryFolder(t);
  const data = join(await photos(folder, ['all']), 'all');
  const from = join(folder, 'trained.safetensors');
  await saveModel(from, tinyModel(1));
  const out = join(folder, 'run');
  const said = await fineTune(t, '--data', data, '--from', from, '--out', out, '--steps', '2', '--batch', '4');
  t.match(said, /6 images, no classes/);
  t.match(await readModelDescription(join(out, 'model.safetensors')), { config: { numClasses: 0 } });
});

t.test('it starts from the weights it is given', async (t) => {
  const folder = temporaryFolder(t);
  const mnist = await openMnist({ split: 'test', size: 32 });
  const data = join(folder, 'digits');
  for (let i = 0; i < 32; i++) {
    const { image, label } = await mnist.get(i);
    mkdirSync(join(data, String(label)), { recursive: true });
    await saveImage(join(data, String(label), `${i}.png`), { data: image, width: 32, height: 32, channels: 1 });
  }
  const untrained = join(folder, 'untrained.safetensors');
  await saveModel(untrained, models.create('mnist', { numClasses: 3 }));
  const lossFrom = async (from: string, run: string): Promise<number> => {
    const out = join(folder, run);
    await fineTune(t, '--data', data, '--from', from, '--out', out, '--steps', '1', '--batch', '16');
    const [{ loss }] = await readLog(join(out, 'log.jsonl'));
    return loss;
  };
  const [shipped, fresh] = [await lossFrom(shippedWeights('mnist'), 'a'), await lossFrom(untrained, 'b')];
  t.ok(shipped < fresh / 2, `the first loss: ${shipped} with the shipped weights, ${fresh} without`);
});

t.test('what is missing is said', async (t) => {
  const folder = temporaryFolder(t);
  t.match(await runExample('fine-tune.ts', '--out', folder), { code: 1, err: /Give --data FOLDER and --out FOLDER\./ });
  const none = join(folder, 'none');
  const said = await runExample('fine-tune.ts', '--data', none, '--out', join(folder, 'run'));
  t.match(said, { code: 1, err: new RegExp(`There is no data set "${none}"`) });
  t.same(readdirSync(folder), []);
});
