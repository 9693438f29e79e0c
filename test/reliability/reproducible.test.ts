/**
 * The same seed and settings, run in processes of their own: losses, weights and samples are the same bits at any number of threads, for every
 * instruction set, and run to run on the emulated GPU. (test/train/precision.test.ts and the operations' tests compare thread counts in one process.)
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { cpuVariants } from '../../lib/device.js';

const script = fileURLToPath(new URL('./reproducible-run.ts', import.meta.url));
function run(device: string, precision: string, env: Record<string, string>): unknown {
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--import=tsx', script, device, precision], {
    env: { PATH: process.env.PATH, ...env },
    encoding: 'utf8',
    timeout: 120_000,
  });
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

for (const variant of cpuVariants().map((name) => name.slice('cpu:'.length))) {
  t.test(`DIFFIT_CPU=${variant}: 1, 2, 3 and 5 threads, and again`, async (t) => {
    const at = (threads: number, precision = 'f32') =>
      run('cpu', precision, { DIFFIT_CPU: variant, DIFFIT_NUM_THREADS: String(threads) });
    const first = at(1);
    t.match(first, { losses: [Number, Number, Number], samples: [/^[0-9a-f]{64}$/] });
    for (const threads of [1, 2, 3, 5]) t.strictSame(at(threads), first, `${threads} threads`);
    const low = at(1, 'bf16');
    t.strictSame(at(3, 'bf16'), low, 'in bf16');
    t.not(JSON.stringify(low), JSON.stringify(first));
  });
}

t.test('the emulated GPU, run to run', async (t) => {
  t.strictSame(run('cuda-emulated', 'f32', {}), run('cuda-emulated', 'f32', { DIFFIT_NUM_THREADS: '1' }));
});
