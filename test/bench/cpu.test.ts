/** bench/cpu for real, tiny: ours alone, and beside PyTorch where there is one; the peak that it measures. */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { type CpuReport, ours } from '../../bench/cpu/report.js';
import { cpuTables } from '../../bench/tables.js';
import { cpuVariants, deviceId } from '../../lib/device.js';
import { native } from '../../lib/native.js';
import { temporaryFolder } from '../train/fixtures.js';

t.setTimeout(280_000); // workers start one after the other
const script = fileURLToPath(new URL('../../bench/cpu/main.ts', import.meta.url));
const run = (...argv: string[]) =>
  spawnSync(process.execPath, ['--import=tsx', script, '--quick', '--threads', '1', ...argv], { encoding: 'utf8' });

function check(t: Test, file: string, implementations: string[]): CpuReport {
  const report: CpuReport = JSON.parse(readFileSync(file, 'utf8'));
  t.match(report, { schema: 1, kind: 'cpu', quick: true, machine: { threads: Number, variant: String } });
  t.ok(report.ceilings.fma > 1e9 && report.ceilings.copy > 1e7);
  t.ok(report.rows.every(({ ceilings }) => ceilings.fma > 1e9 && ceilings.fma <= report.ceilings.fma));
  for (const { id, outcomes } of report.rows) {
    t.same(
      Object.keys(outcomes),
      implementations.filter((name) => name in outcomes),
      id,
    );
    for (const [name, { rounds, failure, error }] of Object.entries(outcomes)) {
      t.equal(failure, undefined, `${id}, ${name}`);
      t.ok(rounds.length === 2 && rounds.every((ms) => ms > 0), `${id}, ${name}: ${rounds}`);
      t.ok(error === undefined || error < 2e-2);
    }
  }
  t.match(cpuTables(report), '| diffit, ms |');
  return report;
}

t.test('ours alone', async (t) => {
  const file = join(temporaryFolder(t), 'a.json');
  const { status, stderr } = run('--without-peers', '--out', file);
  t.equal(status, 0, stderr);
  const { rows } = check(t, file, [ours]);
  t.same([...new Set(rows.map(({ group }) => group))], ['startup', 'gemm', 'attention', 'forward', 'train']);
  t.ok(rows.every(({ group, outcomes }) => group !== 'train' || Number(outcomes[ours].peakRss) > 1e7));
});

const python = ['bench/peers/.venv/bin/python', 'python3'].find(
  (program) => spawnSync(program, ['-c', "import torch; assert torch.__version__ >= '2.13'"]).status === 0,
);
const there = existsSync('bench/peers/.venv/bin/python') && python;
t.test(
  'beside PyTorch',
  { skip: !there && 'bench/peers/.venv is not there: npm run bench -- --peers makes it' },
  async (t) => {
    const file = join(temporaryFolder(t), 'b.json');
    const { status, stderr } = run('--only', 'tiny/b', '--against', 'torch eager,torch SDPA', '--out', file);
    t.equal(status, 0, stderr);
    const { rows } = check(t, file, [ours, 'torch eager', 'torch SDPA']);
    for (const { id, dtype, outcomes } of rows) {
      t.ok(outcomes['torch eager'] ?? outcomes['torch SDPA'], `${id}: PyTorch ran`);
      // Compared with PyTorch's straightforward module, not with itself.
      t.ok(Number(outcomes[ours].error) >= 0 && Number(outcomes[ours].error) < (dtype === 'f32' ? 1e-4 : 2e-2), id);
    }
  },
);

t.test('bad usage and an interrupt', async (t) => {
  t.match(run('--only', 'nothing like it'), {
    status: 1,
    stderr: /^error: --only nothing like it: no work has this in its name\.\n$/,
  });
  t.match(run('--rounds', '0'), { status: 1, stderr: /whole numbers above 0/ });
  const child = spawn(process.execPath, ['--import=tsx', script, '--quick', '--without-peers'], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  await new Promise((resolve) => child.stdout.on('data', (text) => String(text).includes('[2/') && resolve(undefined)));
  const workers = (): string => spawnSync('pgrep', ['-P', String(child.pid)], { encoding: 'utf8' }).stdout.trim();
  const pids = workers().split('\n').filter(Boolean);
  t.ok(pids.length > 0, 'a worker is running');
  const ended = new Promise<number | null>((resolve) => child.once('exit', (code) => resolve(code)));
  child.kill('SIGINT');
  t.equal(await ended, 130);
  await sleep(200);
  for (const pid of pids)
    t.notOk(existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('ours.ts'));
});

t.test('the peak', async (t) => {
  for (const variant of cpuVariants()) {
    const id = deviceId(variant);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 5);
    const [all, one, dot] = [
      await native.peakFlops(id, 0, 0),
      await native.peakFlops(id, 0, 1),
      await native.peakFlops(id, 1, 0),
    ];
    clearInterval(timer);
    t.ok(ticks > 3, 'the event loop goes on meanwhile');
    t.ok(one > 1e9 && all > 0.3 * one && Number.isFinite(all), `${variant}: ${all} on all threads, ${one} on one`);
    t.ok(dot === 0 || dot > 1e9, `${variant}: ${dot}`);
    // Twice the lanes, twice the rate; without fused multiply-adds half of that again.
    if (variant === 'cpu:avx2' && cpuVariants().includes('cpu:baseline'))
      t.ok(one > 2 * (await native.peakFlops(deviceId('cpu:baseline'), 0, 1)));
  }
  t.throws(() => native.peakFlops(deviceId('cpu'), 2, 0), { code: 'DIFFIT_BAD_ARGUMENT' });
  t.throws(() => native.peakFlops(99, 0, 0));
});
