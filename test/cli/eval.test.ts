/** `diffit eval` end to end with a tiny extractor: files, folders, a checkpoint; what it prints and writes; bad usage; Ctrl-C. */
import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { run } from '../../lib/cli/program.js';
import { saveImage, writeImageNpz } from '../../lib/io/index.js';
import { openImages } from '../../lib/metrics/index.js';
import { HostRandom } from '../../lib/random.js';
import { saveModel } from '../../lib/train/index.js';
import { temporaryFolder, tinyModel } from '../train/fixtures.js';

const folder = temporaryFolder(t);
process.env.DIFFIT_CACHE = join(folder, 'cache');

async function diffit(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const [out, err]: string[][] = [[], []];
  const code = await run(argv, {
    stdout: { write: (text) => out.push(text) },
    stderr: { write: (text) => err.push(text) },
  });
  return { code, out: out.join(''), err: err.join('') };
}

const side = 8;
const random = new HostRandom(1);
const noise = (count: number, high: number): Uint8Array =>
  Uint8Array.from({ length: count * side * side }, () => random.integer(high));
const [reference, samples] = [join(folder, 'reference'), join(folder, 'samples.npz')];
mkdirSync(reference);
for (let i = 0; i < 12; i++) {
  const image = { data: noise(1, 256), width: side, height: side, channels: 1 };
  await saveImage(join(reference, `${i}.png`), image);
}
const grey = noise(10, 200);
await writeImageNpz(
  samples,
  [Uint8Array.from({ length: grey.length * 3 }, (_, i) => grey[Math.floor(i / 3)])],
  [10, side, side, 3],
);
const model = join(folder, 'model.safetensors');
await saveModel(model, tinyModel(1));
const extractor = join(folder, 'features.mjs');
// Means of the rows, of all channels: as many for grey images as for others.
writeFileSync(
  extractor,
  `export default Object.assign((images) => {
    const rows = images.to('f32').mean([2, 3]);
    return { features: rows, spatial: rows.slice(1, 0, 2), logits: rows.div(32) };
  }, { cacheKey: 'rows' });`,
);

t.test('an .npz against a folder', async (t) => {
  const argv = ['eval', '--samples', samples, '--reference', reference, '--extractor', extractor];
  const plain = await diffit(...argv, '--metrics', 'fid,sfid,is,pr');
  t.equal(plain.code, 0, plain.err);
  t.match(
    plain.out,
    /^FID +\d+\.\d{4}\nsFID +\d.*\nInception Score +\d.* ± 0\.0000\nPrecision .*\nRecall .*\n10 images against 12 in /,
  );
  const out = join(folder, 'metrics.json');
  const json = await diffit(...argv, '--json', '--out', out);
  const report = JSON.parse(json.out);
  t.match(report, { samples: 10, reference: 12, metrics: ['fid', 'pr'], of: samples, against: reference, extractor });
  t.equal(report.fid.toFixed(4), /^FID +(.*)$/m.exec(plain.out)?.[1], 'the same from the cache');
  t.same(JSON.parse(readFileSync(out, 'utf8')), report);
  const first = await diffit(...argv, '--num', '4', '--json', '--no-cache');
  t.equal(JSON.parse(first.out).samples, 4);
});

t.test('a folder against itself', async (t) => {
  const argv = ['--samples', reference, '--reference', reference, '--extractor', extractor, '--json'];
  const report = JSON.parse((await diffit('eval', ...argv)).out);
  t.ok(report.fid < 1e-9);
  t.same([report.precision, report.recall], [1, 1]);
});

t.test('straight from a checkpoint: as those images, written first', async (t) => {
  const making = ['--checkpoint', model, '--num', '7', '--steps', '2', '--seed', '3'];
  const images = join(folder, 'made.npz');
  t.equal((await diffit('sample', ...making, '--npz', images)).code, 0);
  using made = await openImages(images);
  t.equal(made.count, 7);
  const judged = ['eval', '--reference', images, '--extractor', extractor, '--json', '--metrics', 'fid,is,pr'];
  const direct = await diffit(...judged, ...making, '--sample-batch', '3', '--batch', '2');
  const report = JSON.parse(direct.out);
  t.match(report, { samples: 7, reference: 7, precision: 1, recall: 1, of: model });
  t.ok(report.fid < 1e-9, `FID ${report.fid}`);
  const file = JSON.parse((await diffit(...judged, '--samples', images)).out);
  t.equal(file.inceptionScore, report.inceptionScore);
});

t.test('bad usage', async (t) => {
  const says = async (message: RegExp, code: number, ...argv: string[]): Promise<void> => {
    const { code: found, err, out } = await diffit('eval', ...argv);
    t.match(err, message);
    t.same([found, out], [code, '']);
  };
  const of = ['--samples', samples, '--extractor', extractor];
  await says(/Give --samples PATH, or --checkpoint FILE/, 2);
  await says(/Give --samples PATH, or --checkpoint FILE/, 2, ...of, '--checkpoint', model);
  await says(/fid need --reference/, 2, ...of, '--metrics', 'is,fid');
  await says(/Unknown metric "fidd"; did you mean "fid"/, 2, ...of, '--metrics', 'fidd');
  await says(/Give --extractor FILE: Inception's weights/, 2, '--samples', samples);
  await says(
    /logits are missing/,
    1,
    '--samples',
    samples,
    '--extractor',
    await module('({ features: x.to("f32").mean([1, 2]) })'),
  );
  await says(
    /no default export that is a function/,
    1,
    '--samples',
    samples,
    '--extractor',
    await module('', 'export const a = 1;'),
  );
  await says(/cannot be loaded: /, 1, '--samples', samples, '--extractor', join(folder, 'none.mjs'));
  await says(/does not hold the weights of FID's InceptionV3/, 1, '--samples', samples, '--extractor', model);
  await says(/no data set/, 1, ...of, '--reference', join(folder, 'none'));
  await says(/it is a folder/, 1, ...of, '--out', folder);
});

let modules = 0;
async function module(result: string, source = `export default (x) => ${result};`): Promise<string> {
  const path = join(folder, `module-${++modules}.mjs`);
  writeFileSync(path, source);
  return path;
}

t.test('Ctrl-C', { timeout: 60_000 }, async (t) => {
  const main = fileURLToPath(new URL('../../lib/cli/main.ts', import.meta.url));
  const slow = await module(
    '',
    'export default async (x) => { await new Promise((r) => setTimeout(r, 100)); const rows = x.to("f32").mean([2, 3]); return { features: rows, logits: rows }; };',
  );
  const argv = [
    '--import',
    'tsx',
    main,
    'eval',
    '--preset',
    'mnist',
    '--num',
    '50000',
    '--steps',
    '1',
    '--extractor',
    slow,
  ];
  const child = spawn(process.execPath, argv, { cwd: fileURLToPath(new URL('../..', import.meta.url)) });
  let text = '';
  const code = await new Promise((done) => {
    child.stderr.on('data', (part) => {
      if (text === '') child.kill('SIGINT'); // it is at work: that was progress
      text += part;
    });
    child.on('exit', done);
  });
  t.equal(code, 130, text);
  t.match(text, /Stopping\./);
});
