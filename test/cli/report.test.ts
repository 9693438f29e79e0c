/** `diffit report`: what it writes, says and opens, and `diffit train --report`. */
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { delimiter, join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import t from 'tap';
import { openFile } from '../../lib/cli/open-file.js';
import { run } from '../../lib/cli/program.js';
import { saveImage } from '../../lib/io/index.js';
import { temporaryFolder, tinyConfig } from '../train/fixtures.js';
import { makeRun, record, step } from '../train/report-fixtures.js';

async function diffit(argv: string[], isTTY = false): Promise<{ code: number; out: string; err: string }> {
  const [out, err]: string[][] = [[], []];
  const code = await run(argv, {
    stdout: { write: (text) => out.push(text), isTTY },
    stderr: { write: (text) => err.push(text) },
  });
  return { code, out: out.join(''), err: err.join('') };
}

const log = [step(1), step(2), step(3)];

t.test('one run, several runs, and machine-readable', async (t) => {
  const folder = temporaryFolder(t);
  const [a, b] = [join(folder, 'a'), join(folder, 'b')];
  await makeRun(a, { record: record(), log });
  await makeRun(b, { record: record(), log, rest: '{"step":4,"lo' });
  t.same(await diffit(['report', a]), { code: 0, out: `${join(a, 'report.html')}\n`, err: '' });
  const out = join(folder, 'new', 'both.html');
  const both = await diffit(['report', a, b, '--out', out, '--json']);
  t.match(JSON.parse(both.out), {
    path: out,
    bytes: Number,
    runs: [
      { folder: a, status: 'finished', step: 3, steps: 200 },
      { folder: b, status: 'finished', step: 3 },
    ],
  });
  t.match(readFileSync(out, 'utf8'), /<h1>2 runs compared<\/h1>/);
});

t.test('what it refuses: one sentence, and its exit code', async (t) => {
  const folder = temporaryFolder(t);
  const none = join(folder, 'none');
  t.match(await diffit(['report', none]), {
    code: 1,
    err: `error: ${none} cannot be read: there is no such file or folder.\n`,
  });
  t.match(await diffit(['report', folder]), {
    code: 1,
    err: `error: ${folder} is not the folder of a training run: there is no log.jsonl in it.\n`,
  });
  t.match(await diffit(['report', folder, '--out', 'x.png']), { code: 2, err: /--out x\.png must end in \.html/ });
  t.match(await diffit(['report', folder, '--out', `${folder}/`]), { code: 2, err: /must end in \.html/ });
  t.match(await diffit(['report']), { code: 2, err: /missing required argument 'dirs'/ });
  t.match(await diffit(['report', none, '--json']), { code: 1, err: /"code":"DIFFIT_FILE"/ });
});

t.test('it opens the page where someone is looking', { skip: process.platform !== 'linux' }, async (t) => {
  const folder = temporaryFolder(t);
  const [run, bin, opened] = [join(folder, 'run'), join(folder, 'bin'), join(folder, 'opened')];
  await makeRun(run, { record: record(), log });
  mkdirSync(bin);
  const opener = join(bin, 'xdg-open');
  writeFileSync(opener, `#!/bin/sh\nprintf %s "$1" > '${opened}'\n`);
  chmodSync(opener, 0o755);
  const { PATH } = process.env;
  t.teardown(() => {
    process.env.PATH = PATH;
  });
  process.env.PATH = `${bin}${delimiter}${PATH}`;
  await diffit(['report', run]);
  await diffit(['report', run, '--no-open'], true);
  await diffit(['report', run, '--json'], true);
  await setTimeout(200);
  t.notOk(existsSync(opened), 'not into a pipe, nor with --no-open or --json');
  t.match(await diffit(['report', run], true), { code: 0, err: '' });
  t.equal(readFileSync(opened, 'utf8'), join(run, 'report.html'));

  writeFileSync(opener, '#!/bin/sh\nexit 3\n');
  t.match(await diffit(['report', run], true), {
    code: 0,
    out: /report\.html\n/,
    err: /no program here to open it with/,
  });
  process.env.PATH = folder;
  t.equal(await openFile(join(run, 'report.html')), false, 'no opener at all');
});

t.test('train --report keeps the page and names it', async (t) => {
  const folder = temporaryFolder(t);
  const data = join(folder, 'images');
  mkdirSync(data);
  for (let i = 0; i < 4; i++) {
    await saveImage(join(data, `${i}.png`), {
      data: new Uint8Array(64).fill(60 * i),
      width: 8,
      height: 8,
      channels: 1,
    });
  }
  const recipe = join(folder, 'recipe.json');
  const model = { ...tinyConfig, numClasses: 0 };
  writeFileSync(recipe, JSON.stringify({ model, data, training: { batch: 2, lr: 1e-3 }, sampler: { steps: 1 } }));
  const argv = ['train', '--recipe', recipe, '--steps', '2', '--sample-every', '1'];
  const out = join(folder, 'run');
  t.match(await diffit([...argv, '--out', out, '--report']), {
    code: 0,
    out: `loss.svg, ${join(out, 'report.html')}\n`,
  });
  const page = readFileSync(join(out, 'report.html'), 'utf8');
  t.match(page, />Finished<.*data-step="1".*data-step="2"/s);
  const plain = join(folder, 'plain');
  t.match(await diffit([...argv, '--out', plain]), { code: 0 });
  t.notOk(existsSync(join(plain, 'report.html')), 'not without the option');
  t.match(await diffit(['report', plain]), { code: 0, out: `${join(plain, 'report.html')}\n` });
});
