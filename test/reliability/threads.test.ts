/** The number of threads: it is what was asked for, as the system counts them, and what is no number of threads is one clear error. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { setNumThreads } from '../../lib/device.js';

const script = `
  import { readdirSync } from 'node:fs';
  import { devices, setNumThreads, synchronize, zeros } from ${JSON.stringify(new URL('../../lib/index.ts', import.meta.url).href)};
  const count = () => readdirSync('/proc/self/task').length;
  if (process.argv[1]) setNumThreads(Number(process.argv[1]));
  const before = count();
  try {
    const x = zeros([1 << 20]).add(1);
    await synchronize();
    console.log(devices()[0].threads, count() - before);
  } catch (error) {
    console.log(error.name + ': ' + error.message);
  }
`;
const run = (text: string | undefined, argument = ''): string => {
  const { stdout, stderr } = spawnSync(
    process.execPath,
    ['--import=tsx', '--input-type=module', '-e', script, argument],
    {
      cwd: fileURLToPath(new URL('../..', import.meta.url)),
      env: { PATH: process.env.PATH, ...(text !== undefined && { DIFFIT_NUM_THREADS: text }) },
      encoding: 'utf8',
      timeout: 60_000,
    },
  );
  return (stdout + stderr).trim();
};

t.test('as many as were asked for, one of which is the queue’s', { skip: process.platform !== 'linux' }, async (t) => {
  for (const threads of ['1', '2', '3', '7', '1024']) t.equal(run(threads), `${threads} ${threads}`, threads);
  t.equal(run('3', '2'), '2 2', 'setNumThreads() goes before the environment');
  t.match(run(''), /^(\d+) \1$/, 'empty is unset');
});

t.test('what is no number of threads', async (t) => {
  for (const text of ['0', '-1', '1.5', '1e9', '1025', 'abc', '2x', '99999999999999999999']) {
    const message = `DeviceError: DIFFIT_NUM_THREADS is "${text}"; expected a whole number from 1 to 1024.`;
    t.equal(run(text), message);
  }
  for (const count of [-1, 1.5, 1e9, 1025, Number.NaN, 'abc', undefined, null]) {
    t.throws(() => setNumThreads(count as number), {
      name: 'OptionError',
      message: `setNumThreads: expected an integer from 0 to 1024, got ${count}.`,
    });
  }
});
