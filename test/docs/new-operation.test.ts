/**
 * docs/adding-an-op.md, followed to the letter: its diffs are applied to a copy of the tree, the copy is built (without optimization, which
 * is quicker), type-checked where it was changed, and the new operation's own test runs there, on every instruction set and on the emulator.
 */
import { execFile } from 'node:child_process';
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import t from 'tap';
import { blocksOf, root } from './markdown.js';

const page = 'docs/adding-an-op.md';
const diffs = blocksOf(page).filter(({ language }) => language === 'diff');

t.test('the operation of the page', { timeout: 280_000 }, async (t) => {
  const copy = mkdtempSync(join(tmpdir(), 'diffit-op-'));
  t.teardown(() => rmSync(copy, { recursive: true, force: true }));
  for (const path of [
    'lib',
    'native',
    'scripts',
    'binding.gyp',
    'package.json',
    'tsconfig.json',
    'tsconfig.build.json',
  ])
    cpSync(join(root, path), join(copy, path), { recursive: true });
  for (const path of ['test/helpers.ts', 'test/ops/check.ts']) cpSync(join(root, path), join(copy, path));
  symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
  const run = async (command: string, ...args: string[]): Promise<string> => {
    const env = { ...process.env, JOBS: '2', TAP_TIMEOUT: '120' };
    const { stdout } = await promisify(execFile)(command, args, { cwd: copy, env, maxBuffer: 2 ** 26 });
    return stdout;
  };

  t.equal(diffs.length, 7);
  for (const { line, code } of diffs) {
    const file = join(copy, 'change.diff');
    writeFileSync(file, `${code}\n`);
    await t.resolves(run('git', 'apply', file), `${page}:${line} applies`);
  }

  const sources = join(copy, 'native/sources.json');
  writeFileSync(sources, readFileSync(sources, 'utf8').replace('"-O3"', '"-O0"'));
  const makefile = join(copy, 'native/cuda/Makefile');
  writeFileSync(makefile, readFileSync(makefile, 'utf8').replace(' -O2 ', ' -O0 '));
  await run('npm', 'run', '--silent', 'build:addon');
  await run('npm', 'run', '--silent', 'build:emulator');
  const tsc = join(root, 'node_modules/.bin/tsc');
  await t.resolves(run(tsc, '-p', 'tsconfig.build.json', '--noEmit'), 'it has the right types');

  const test = (): Promise<string> => run(process.execPath, '--import', 'tsx', 'test/ops/huber.test.ts');
  const output = await test();
  t.match(output, /ok 1 - cpu:/);
  t.match(output, /ok \d - cuda-emulated/);
  t.notMatch(output, /not ok/);

  // The proof of the page can fail.
  const grads = join(copy, 'lib/grads.ts');
  writeFileSync(grads, readFileSync(grads, 'utf8').replace('clamp(x, -delta, delta)', 'clamp(x, 0, delta)'));
  const failure = await test().then(
    () => '',
    ({ stdout }) => stdout,
  );
  t.match(failure, /not ok .*gradient of x: error/, 'with a wrong gradient');
});
