/** lib/train/ablate.ts: equal budgets, one table and plot, runs shared and resumed. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { models, OptionError } from '../../lib/index.js';
import { saveImage } from '../../lib/io/index.js';
import { HostRandom } from '../../lib/random.js';
import {
  type AblateOptions,
  ablate,
  ablationTable,
  type Recipe,
  readLog,
  studies,
  type TrainedVariant,
} from '../../lib/train/index.js';
import { temporaryFolder, tinyConfig } from './fixtures.js';

async function workplace(t: Test): Promise<{ out: string; recipe: Recipe }> {
  const folder = temporaryFolder(t);
  const data = join(folder, 'images');
  const random = new HostRandom(1);
  for (const name of ['cat', 'dog', 'eel']) {
    mkdirSync(join(data, name), { recursive: true });
    for (let k = 0; k < 3; k++) {
      const pixels = Uint8Array.from({ length: 64 }, () => random.integer(256));
      await saveImage(join(data, name, `${k}.png`), { data: pixels, width: 8, height: 8, channels: 1 });
    }
  }
  const model = { ...tinyConfig, classDropoutProb: 0.1 };
  return {
    out: join(folder, 'study'),
    recipe: { model, data, training: { batch: 4, lr: 1e-3 }, sampler: { steps: 2 } },
  };
}

t.test('variants are what the study says, trained on the same data for the same steps', async (t) => {
  const { out, recipe } = await workplace(t);
  const seen: TrainedVariant[] = [];
  const counts: Record<string, number> = {};
  const result = await ablate({
    study: 'conditioning',
    recipe,
    out,
    steps: 3,
    seed: 5,
    evaluate: async (trained) => {
      seen.push(trained);
      return { score: seen.length, ...(seen.length === 2 && { other: 0.5 }) };
    },
    onStep: (variant) => {
      counts[variant] = (counts[variant] ?? 0) + 1;
    },
  });
  const names = ['tmsa', 'adaln', 'bias-only', 'mlp-only'];
  t.same(counts, Object.fromEntries(names.map((name) => [name, 3])));
  t.same(
    seen.map(({ variant, plan }) => [variant, plan.model.conditioning]),
    names.map((name) => [name, name]),
  );
  t.same(
    result.results.map(({ variant, steps, metrics }) => [variant, steps, metrics.score]),
    names.map((name, i) => [name, 3, i + 1]),
  );
  for (const { variant, parameters, loss, folder } of result.results) {
    using network = new models.ImageDiffiT({ ...tinyConfig, classDropoutProb: 0.1, conditioning: variant as 'tmsa' });
    t.equal(parameters, network.parameterCount(), variant);
    t.equal(loss, (await readLog(join(folder, 'log.jsonl'))).at(-1)?.loss, 'the last tenth of three steps is one');
    t.ok(existsSync(join(folder, 'model.safetensors')));
  }
  const table = readFileSync(result.files.table, 'utf8');
  t.equal(table, ablationTable(result));
  t.match(table, 'Where the time token enters (Tables 5 and 6, Fig. 7b');
  t.match(table, '| variant | parameters | GFLOP | loss | s / step | score | other |');
  t.match(table, /\| adaln \|.*\| 2\.000 \| 0\.5000 \|/);
  const plot = readFileSync(result.files.plot, 'utf8');
  for (const name of names) t.match(plot, `>${name}</text>`);
  t.same(JSON.parse(readFileSync(join(out, 'ablation.json'), 'utf8')), JSON.parse(JSON.stringify(result)));
});

t.test('a stopped study goes on where it was, and variants that only sample differently share a run', async (t) => {
  const { out, recipe } = await workplace(t);
  const controller = new AbortController();
  const options: AblateOptions = { study: 'window', recipe, out, steps: 4, variants: ['window-2', 'window-4'] };
  let steps = 0;
  const stopped = ablate({ ...options, signal: controller.signal, onStep: () => ++steps === 6 && controller.abort() });
  await t.rejects(stopped, { name: 'AbortError' });
  t.ok(steps >= 6 && steps < 8, 'the step being computed was finished');
  const before = steps;
  const again = await ablate({ ...options, onStep: () => void steps++ });
  t.equal(steps, 8, `${8 - before} were left`);
  const { out: elsewhere } = await workplace(t);
  const whole = await ablate({ ...options, out: elsewhere });
  t.same(
    again.results.map(({ loss }) => loss),
    whole.results.map(({ loss }) => loss),
    'to the same bits as an undisturbed one',
  );
  const { out: guided } = await workplace(t);
  const trained: string[] = [];
  const scales: number[] = [];
  const { results } = await ablate({
    study: 'guidance',
    recipe,
    out: guided,
    steps: 2,
    evaluate: async ({ plan }) => ({ scale: scales.push((plan.sampler as { cfgScale: number }).cfgScale) }),
    onStep: (variant) => void trained.push(variant),
  });
  t.same(trained, ['scale-1', 'scale-1']);
  t.same(scales, [1, 1.25, 1.5, 2, 3]);
  t.equal(new Set(results.map(({ folder }) => folder)).size, 1);
});

t.test('what is wrong is said before anything is trained', async (t) => {
  const { out, recipe } = await workplace(t);
  const options = { study: 'window', recipe, out, steps: 1 };
  await t.rejects(ablate({ ...options, study: 'windw' }), { name: 'OptionError', message: /did you mean "window"/ });
  await t.rejects(ablate({ ...options, variants: ['window-3'] }), { message: /Unknown variant "window-3".*window-2/ });
  await t.rejects(ablate({ ...options, steps: 0 }), { message: /steps/ });
  await t.rejects(ablate({ ...options, recipe: { ...recipe, training: { batch: 4 } } }), OptionError);
  const latent = { preset: 'latent-small', data: 'latents' };
  await t.rejects(ablate({ ...options, recipe: latent }), { message: /for image-space models.*LatentDiffiT/ });
  t.notOk(existsSync(out));
  writeFileSync(out, 'a file');
  await t.rejects(ablate(options), { name: 'FileError' });
  t.same(Object.keys(studies), ['conditioning', 'window', 'embedding', 'guidance']);
});
