/** docs/reliability.md has the figures that the long runs wrote, and names a test that exists behind every promise. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { docs, figuresTable, withFigures } from './figures.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

t.test('the figures are those of the reports', async (t) => {
  const text = readFileSync(docs, 'utf8');
  t.equal(text, withFigures(text), 'renew them with npx tsx test/reliability/figures.ts');
  t.match(figuresTable(), /kill -9 at \d+ random moments.*\| \d+ of \d+ \| `npm run test:faults`/);
  t.throws(() => withFigures('no region'), /has no <!-- figures -->/);
});

t.test('the tests and scripts that the page names exist', async (t) => {
  const text = readFileSync(docs, 'utf8');
  const files = [...text.matchAll(/\(\.\.\/(test\/[\w./-]+)\)/g)].map(([, path]) => path);
  t.ok(files.length > 10);
  for (const file of files) t.ok(existsSync(join(root, file)), file);
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  const named = [...text.matchAll(/npm run ([\w:]+)/g)].map(([, name]) => name);
  t.ok(named.length > 3);
  for (const name of named) t.ok(scripts[name], `npm run ${name}`);
});
