/**
 * The sh blocks of every page, run by bash in a folder of stand-ins, page by page, each block after the ones before it. command.ts says
 * what the commands become. And the json blocks: every one is a recipe that can be planned.
 */
import { execFile } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { planTraining } from '../../lib/train/index.js';
import { blocksOf, languages, pages, root } from './markdown.js';
import { workplace } from './stand-ins.js';

const names = ['npx', 'npm', 'node', 'diffit'];
const scripts = ['bench/gpu.sh', 'scripts/dry-run-bundle.sh'];

/** Puts the stand-ins of commands where the shell finds them. */
function commands(t: Test, work: string): { path: string; record: string } {
  const bin = mkdtempSync(join(tmpdir(), 'diffit-bin-'));
  t.teardown(() => rmSync(bin, { recursive: true }));
  const install = (file: string, name: string): void => {
    mkdirSync(dirname(file), { recursive: true });
    const program = join(root, 'test/docs/command.ts');
    writeFileSync(
      file,
      `#!/bin/sh\nexec '${process.execPath}' --import '${import.meta.resolve('tsx')}' '${program}' ${name} "$@"\n`,
    );
    chmodSync(file, 0o755);
  };
  for (const name of names) install(join(bin, name), name);
  for (const name of scripts) install(join(work, name), name);
  return { path: `${bin}:/usr/bin:/bin`, record: join(bin, 'record') };
}

async function bash(
  code: string,
  cwd: string,
  path: string,
  record: string,
): Promise<{ code: number; output: string }> {
  const env = { ...process.env, PATH: path, DIFFIT_DOCS_RECORD: record, NO_COLOR: '1' };
  return promisify(execFile)('/bin/bash', ['-euo', 'pipefail', '-c', code], { cwd, env, timeout: 200_000 }).then(
    ({ stdout, stderr }) => ({ code: 0, output: stdout + stderr }),
    ({ code, stdout, stderr }) => ({ code, output: `${stdout}${stderr}` }),
  );
}

const blocks = pages.flatMap(blocksOf);

t.test('every block has a language that a test takes', async (t) => {
  for (const { page, line, language } of blocks) {
    t.ok((languages as readonly string[]).includes(language), `${page}:${line}: ${language || 'no language'}`);
  }
});

const shell = blocks.filter(({ language }) => language === 'sh');
t.test('blocks that are not run say why', async (t) => {
  for (const { page, line, notRun } of shell.filter(({ notRun }) => notRun)) t.comment(`${page}:${line}: ${notRun}`);
  t.ok(shell.length >= 10, `${shell.length} blocks`);
});

for (const page of pages) {
  const own = shell.filter((block) => block.page === page && !block.notRun);
  if (own.length === 0) continue;
  t.test(`the commands of ${page}`, { timeout: 280_000 }, async (t) => {
    const work = await workplace(t);
    const { path, record } = commands(t, work);
    for (const { line, code } of own) {
      const result = await bash(code, work, path, record);
      t.equal(result.code, 0, `${page}:${line}: ${result.output}`);
    }
    // A line of the page that names one of ours has gone through it.
    const ran = existsSync(record) ? readFileSync(record, 'utf8').split('\n').length - 1 : 0;
    const written = own.flatMap(({ code }) => code.split('\n')).filter((line) => /^(npx|npm|node|diffit) /.test(line));
    t.ok(ran >= written.length, `${ran} commands ran, ${written.length} lines begin with one`);
  });
}

t.test('json blocks are recipes', async (t) => {
  const recipes = blocks.filter(({ language }) => language === 'json');
  t.ok(recipes.length > 0);
  for (const { page, line, code } of recipes) {
    t.doesNotThrow(() => planTraining(JSON.parse(code)), `${page}:${line}`);
  }
  t.throws(() => planTraining(JSON.parse('{ "preset": "latent-small", "training": { "bacth": 1 } }')), /bacth/);
});

t.test('the test can fail', async (t) => {
  const work = await workplace(t);
  const { path, record } = commands(t, work);
  for (const [code, message] of [
    ['npx diffit smaple', /unknown command/],
    ['npx diffit sample --preset mnist --lables 0-9', /unknown option/],
    ['npx diffit sample --preset mnist --labels 0-99', /error/],
    ['npx diffit train --preset mnits --steps 5', /Unknown preset/],
    ['npx diffit report runs/none', /no such file/],
    ['npm run quikstart', /no script "quikstart"/],
    ['npm run bench -- --pears', /knows no --pears/],
    ['npm run check -- --fast', /takes no arguments/],
    ['npm install difft', /npm install difft/],
    ['npx tsx examples/none.ts', /there is no examples/],
    ['node scripts/bundle-gpu.mjs --nothing', /knows no --nothing/],
    ['bench/gpu.sh --nothing', /knows no --nothing/],
    ['no-such-command', /not found/],
  ] as const) {
    const result = await bash(code, work, path, record);
    t.not(result.code, 0, code);
    t.match(result.output, message);
  }
});
