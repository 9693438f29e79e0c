/**
 * examples/export-to-pytorch.ts: what it writes beside files that PyTorch wrote, and, where there is PyTorch, examples/load_in_pytorch.py on it.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { models } from '../../lib/index.js';
import { saveModel } from '../../lib/train/index.js';
import { loadFixture, toTensors } from '../helpers.js';
import { temporaryFolder } from '../train/fixtures.js';
import { runExample, runProgram } from './run-example.js';

const variants = ['tmsa', 'labels'] as const;
const script = 'examples/load_in_pytorch.py';
const torch = await runProgram('python3', '-c', 'import torch').then(
  ({ code }) => (code === 0 ? false : 'python3 has no torch'),
  () => 'there is no python3',
);

/** A model with weights that PyTorch made, exported; the folder. */
async function exported(t: Test, variant: (typeof variants)[number]): Promise<string> {
  const folder = temporaryFolder(t);
  const fixture = loadFixture(`image_diffit_${variant}.safetensors`);
  const model = new models.ImageDiffiT(fixture.json.config);
  model.loadStateDict(toTensors(fixture.group('sd.')));
  const checkpoint = join(folder, 'trained.safetensors');
  await saveModel(checkpoint, model);
  model.dispose();
  const { code, err } = await runExample('export-to-pytorch.ts', '--checkpoint', checkpoint, '--out', folder);
  t.equal(code, 0, err);
  return folder;
}

for (const variant of variants) {
  t.test(`${variant}: names, shapes and layouts are PyTorch's`, async (t) => {
    const folder = await exported(t, variant);
    const expected = loadFixture(`image_diffit_${variant}.safetensors`);
    const written = loadFixture(join(folder, 'model.safetensors'));
    t.same(
      written.names().sort(),
      expected
        .names('sd.')
        .map((name) => name.slice(3))
        .sort(),
    );
    for (const name of written.names()) {
      const { shape, data } = expected.tensor(`sd.${name}`);
      t.same(written.tensor(name).shape, shape, name);
      t.ok(
        Buffer.from(written.f32(name).buffer).equals(Buffer.from((data as Float32Array).buffer)),
        `${name}: the same bits`,
      );
    }
    const check = loadFixture(join(folder, 'check.safetensors'));
    t.same(check.tensor('output').shape, check.tensor('x').shape);
    t.equal(check.has('labels'), variant === 'labels');
  });

  t.test(`${variant}: PyTorch computes the same`, { skip: torch }, async (t) => {
    const folder = await exported(t, variant);
    const { code, out, err } = await runProgram('python3', script, folder);
    t.equal(code, 0, err);
    const [, relative] = /relative (\S+)/.exec(out) ?? [];
    t.ok(Number(relative) < 5e-6, out);
  });
}

t.test('the shipped weights in PyTorch', { skip: torch }, async (t) => {
  const folder = temporaryFolder(t);
  t.match(await runExample('export-to-pytorch.ts', '--out', folder), {
    code: 0,
    out: /^175 tensors, 758767 parameters/,
  });
  t.match(await runProgram('python3', script, folder), { code: 0, out: /PyTorch and diffit agree\.\n$/ });

  // The comparison can fail: one wrong weight is seen.
  const path = join(folder, 'model.safetensors');
  const bytes = readFileSync(path);
  bytes.writeFloatLE(bytes.readFloatLE(bytes.length - 4) + 0.01, bytes.length - 4);
  writeFileSync(path, bytes);
  t.match(await runProgram('python3', script, folder), { code: 1, err: /The outputs differ\./ });
});
