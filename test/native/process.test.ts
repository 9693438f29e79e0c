/** The addon in workers and at the end of processes: state per environment, no hang, no crash. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { native } from '../../lib/native.js';
import { bareEnvironment } from '../helpers.js';
import { prelude } from './prelude.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

const run = (script: string, env: Record<string, string> = {}) => {
  const { status, signal, stdout, stderr } = spawnSync(process.execPath, ['-e', prelude + script], {
    cwd: root,
    env: bareEnvironment(env),
    encoding: 'utf8',
    timeout: 60_000,
  });
  return { status, signal, stdout: stdout.trim(), stderr: stderr.trim() };
};
const clean = { status: 0, signal: null, stderr: '' };

t.test('a process ends by itself with an idle device, and only after its pending reads', async (t) => {
  t.match(run(''), clean);
  t.match(run(`native.read(x).then((b) => console.log(b.byteLength));`), { ...clean, stdout: '1440000' });
  t.match(run(`work(5); native.synchronize(cpu).then(() => console.log('done'));`), { ...clean, stdout: 'done' });
});

t.test('a process may end with work in the queue', async (t) => {
  for (const end of [
    '',
    'process.exit(0);',
    'setTimeout(() => process.exit(0), 20);',
    'native.read(x); process.exit(0);',
    'native.write(x, new Float32Array(360000), 0); native.trim(cpu);',
    'for (let i = 0; i < 100; i++) native.release(native.alloc(cpu, 0, 1, 1e6)); native.trim(cpu); process.exit(0);',
  ]) {
    const started = Date.now();
    t.match(run(`work(20000); ${end}`), clean, end || 'by itself');
    t.ok(Date.now() - started < 20_000, 'without doing it all');
  }
  t.match(run(`work(2000); native.read(x); throw new Error('on purpose');`), {
    status: 1,
    signal: null,
    stderr: /on purpose/,
  });
});

t.test('what the environment variables say', async (t) => {
  t.match(run('', { DIFFIT_CPU: 'sse9' }), { status: 1, stderr: /no CPU variant "sse9"; it offers .*baseline/ });
  const info = 'console.log(JSON.stringify(native.deviceInfo(cpu)));';
  t.match(JSON.parse(run(info, { DIFFIT_CPU: 'baseline' }).stdout), { variant: 'baseline' });
  const limit = 'console.log(native.memory(cpu).limitBytes);';
  t.match(run(limit, { DIFFIT_MEMORY_LIMIT: '4G' }), { ...clean, stdout: String(4 * 2 ** 30) });
  t.match(run(limit, { DIFFIT_MEMORY_LIMIT: '512M' }), { ...clean, stdout: String(512 * 2 ** 20) });
  t.match(run(limit, { DIFFIT_MEMORY_LIMIT: '123456789' }), { ...clean, stdout: '123456789' });
  t.match(run(limit, { DIFFIT_MEMORY_LIMIT: '' }), { ...clean, stdout: '0' });
  t.match(run(limit, { DIFFIT_MEMORY_LIMIT: '1M' }), { status: 1, stderr: /DIFFIT_OUT_OF_MEMORY/ });
  for (const text of ['x', '-1', '4GB', '1e99', 'nan']) {
    t.match(run(limit, { DIFFIT_MEMORY_LIMIT: text }), {
      status: 1,
      stderr: /expected bytes, or a number with K, M, G or T/,
    });
  }
});

/** A worker that runs the script and posts what it says. */
const start = (script: string) =>
  new Worker(`const { parentPort: port } = require('node:worker_threads'); ${prelude} ${script}`, {
    eval: true,
    execArgv: [],
    env: bareEnvironment(),
  });

t.test('workers have devices, ids and memory of their own', async (t) => {
  const mine = native.alloc(native.openDevice('cpu', '', 0), 0, 1, 1);
  const workers = Array.from({ length: 3 }, () =>
    start(`
      port.on('message', async (id) => {
        let code = 'none';
        try { native.ops.fill(id, 1); } catch (error) { code = error.code; }
        work(3);
        const value = new Float32Array(await native.read(x))[0];
        port.postMessage({ code, value, live: native.memory(cpu).liveBuffers, x });
        port.close();
      });
    `),
  );
  const replies = await Promise.all(
    workers.map(async (worker) => {
      const reply = once(worker, 'message');
      const exit = once(worker, 'exit');
      worker.postMessage(mine);
      const [answer] = await reply;
      t.same(await exit, [0]);
      return answer;
    }),
  );
  for (const { code, value, live, x } of replies) {
    t.equal(code, 'DIFFIT_STALE_ID', 'an id of the main thread is nothing in a worker');
    t.ok(Number.isFinite(value));
    t.equal(live, 1);
    t.throws(() => native.read(x), { code: 'DIFFIT_STALE_ID' }, 'nor the other way round');
  }
  t.equal(new Set(replies.map(({ x }) => x)).size, 3);
  native.release(mine);
});

t.test('a worker may be terminated with work in the queue and reads pending', async (t) => {
  for (let i = 0; i < 8; i++) {
    const worker = start(
      `work(5000); native.read(x); native.synchronize(cpu); native.trim(cpu); port.postMessage('ready');`,
    );
    await once(worker, 'message');
    if (i % 2) await new Promise((resolve) => setTimeout(resolve, 10 * i));
    await worker.terminate();
  }
  for (let i = 0; i < 4; i++) {
    const worker = start(`work(5000); native.read(x).catch(() => {}); process.exit(0);`);
    t.same(await once(worker, 'exit'), [0]);
  }
  const x = native.alloc(native.openDevice('cpu', '', 0), 0, 1, 1);
  native.ops.fill(x, 2);
  t.same([...new Float32Array(await native.read(x))], [2], 'the main thread goes on');
  native.release(x);
});
