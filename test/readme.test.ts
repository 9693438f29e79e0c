/** The README's API example runs as it stands, against the sources, and does what its text says. */
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';

const root = fileURLToPath(new URL('..', import.meta.url));

t.test('the API example trains a step and samples', async (t) => {
  const readme = readFileSync(join(root, 'README.md'), 'utf8');
  const block = /```ts\n([\s\S]*?)```/.exec(readme)?.[1];
  if (!block) throw new Error('README.md has no ts block');
  t.ok(block.split('\n').filter((line) => line.trim()).length <= 25, 'it is short');

  const folder = mkdtempSync(join(root, 'build', 'readme-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const script = join(folder, 'example.mts');
  writeFileSync(script, block.replace("from 'diffit'", `from '${pathToFileURL(join(root, 'lib/index.ts'))}'`));
  const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', script], { cwd: root });
  const lines = stdout.trim().split('\n');
  t.equal(lines.length, 5);
  t.ok(Number(lines[0]) > 0, `a loss: ${lines[0]}`);
  t.same(
    lines.slice(1),
    [1, 2, 3, 4].map((step) => `step ${step}/4 4096`),
  );
});
