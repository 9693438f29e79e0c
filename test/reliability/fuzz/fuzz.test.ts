/** Some thousand executions of every target that `npm run test:fuzz` runs by the million, and the fuzzer itself. */
import t from 'tap';
import { OptionError } from '../../../lib/errors.js';
import { fuzz } from './fuzz.js';
import { makeTargets, type Target } from './targets.js';

const target = (run: Target['run']): Target => ({
  name: 'x',
  seeds: [Uint8Array.of(1, 2, 3, 4)],
  words: ['ab'],
  run,
  weight: 1,
});

t.test('the fuzzer finds errors that are not ours, slow and greedy inputs, and shrinks them', async (t) => {
  const thrown = await fuzz(
    target((bytes) => {
      if (bytes.includes(97)) throw new RangeError('an a');
    }),
    2000,
    1,
  );
  t.match(thrown.finding, { target: 'x', message: 'RangeError: an a' });
  t.ok(Buffer.from(thrown.finding?.input ?? '', 'base64').includes(97));
  const lines = await fuzz(
    target(() => {
      throw new OptionError('two\nlines');
    }),
    10,
    1,
  );
  t.match(lines.finding, { message: /not one line/ });
  const kept: unknown[] = [];
  const greedy = await fuzz(
    target(() => kept.push(new Uint8Array(100 << 20).fill(1))),
    1,
    1,
  );
  t.match(greedy.finding, { message: /took \d+ bytes for \d+/ });
  const refused = await fuzz(
    target(() => {
      throw new OptionError('no');
    }),
    50,
    1,
  );
  t.match(refused, { executions: 50, accepted: 0, finding: undefined });
});

t.test('what was found once', async (t) => {
  const { targets, close } = await makeTargets();
  t.teardown(close);
  // Node repeats the text around an error of JSON, line breaks and all.
  const target = targets.find(({ name }) => name === 'latents index') as Target;
  await t.rejects(Promise.resolve(target.run(new TextEncoder().encode('\n"images": 2,\n'))), {
    name: 'FileFormatError',
    message: /^[^\n]+$/,
  });
});

t.test('every target', async (t) => {
  const { targets, close } = await makeTargets();
  t.teardown(close);
  for (const target of targets) {
    for (const seed of target.seeds.slice(0, target.name.includes('calls') ? 0 : 1)) {
      if (target.name !== 'command line' && target.name !== 'npy header' && target.name !== 'safetensors header')
        await t.resolves(Promise.resolve(target.run(seed)), `${target.name}: a sound input is taken`);
    }
    const { executions, finding } = await fuzz(target, 20 * target.weight + 100, Date.now() % 1e9);
    t.equal(finding, undefined, `${target.name}, ${executions} executions`);
  }
});
