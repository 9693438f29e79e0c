/** The CUDA backend (on the emulator) when things go wrong: no memory left, a kernel that faults, processes and workers that end. */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { backendLibrary } from '../../lib/native.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Runs a script with `diffit` imported and the emulator set up by `env`; what it printed, as lines. */
const run = (script: string, env: Record<string, string> = {}) => {
  const prelude = `
    import * as diffit from ${JSON.stringify(new URL('../../lib/index.ts', import.meta.url).href)};
    const device = 'cuda-emulated';
    const attempt = async (fn) => {
      try { console.log(await fn()); } catch (error) { console.log(error.name + ': ' + error.message); }
    };
    const first = async (x) => {
      const [value] = await x.data();
      x.dispose();
      return value;
    };
  `;
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import=tsx', '--input-type=module', '-e', prelude + script],
    { cwd: root, env: { PATH: process.env.PATH, ...env }, encoding: 'utf8', timeout: 60_000 },
  );
  return { status, signal, stderr: stderr.trim(), lines: stdout.trim().split('\n') };
};
const clean = { status: 0, signal: null, stderr: '' };

t.test('a GPU whose memory is full: one typed error with the figures, then it works on', async (t) => {
  const script = `
    const MiB = 2 ** 20;
    const a = diffit.full([10 * MiB], 1, { device }); // 40 MiB of 64
    await attempt(() => diffit.full([8 * MiB], 1, { device }));
    await attempt(() => diffit.scope(() => first(a.add(0.5).sub(0.5))));
    const { deviceFreeBytes, deviceTotalBytes, liveBuffers } = diffit.memory(device);
    console.log(deviceTotalBytes / MiB, deviceFreeBytes / MiB, liveBuffers);
    const small = diffit.ones([2 * MiB], { device });
    await attempt(() => first(small.add(1)));
    small.dispose();
    a.dispose();
    const b = diffit.full([12 * MiB], 3, { device }); // fits once the free blocks have gone back
    await attempt(async () => (await b.data())[0]);
    for (let i = 0; i < 3; i++) await attempt(() => diffit.zeros([13 * MiB, 2], { device }));
    b.dispose();
    await attempt(() => first(diffit.full([15 * MiB], 4, { device })));
  `;
  const { lines, ...end } = run(script, { DIFFIT_EMULATOR_MEMORY: '64M' });
  t.match(end, clean);
  const full = (what: string, more: string, held: number, free: string) =>
    `OutOfMemoryError: ${what} f32: There is no memory for ${more} more on cuda-emulated:0: ${held} MiB are live, of the device's 64 MiB, ` +
    `${free} are free. Most is held by 1 x [${held * 2 ** 18}] f32 of fill (${held}.0 MiB).`;
  t.equal(lines[0], full('full [8388608]', '32 MiB', 40, '24 MiB'));
  t.equal(lines[1], full('affine [10485760]', '40 MiB', 40, '24 MiB'));
  t.equal(lines[2], '64 24 1');
  t.equal(lines[3], '2');
  t.equal(lines[4], '3');
  for (const line of lines.slice(5, 8)) t.equal(line, full('zeros [13631488, 2]', '104 MiB', 48, '16 MiB'));
  t.equal(lines[8], '4');
});

t.test('no scratch memory: the operation fails, not the device', async (t) => {
  const script = `
    const x = diffit.ones([16384, 64], { device });
    const rest = [];
    for (let free = Infinity; free > 4096; free = diffit.memory(device).deviceFreeBytes) {
      const bytes = Math.min(free, diffit.memory(device).deviceFreeBytes) / 2;
      rest.push(diffit.zeros([Math.floor(bytes / 4)], { device }));
    }
    await attempt(() => first(x.sum(0))); // its partial sums do not fit
    for (const y of rest) y.dispose();
    await attempt(() => first(x.sum(0)));
    diffit.trimMemory(device);
    await attempt(() => first(x.sum(0)));
  `;
  const { lines, ...end } = run(script, { DIFFIT_EMULATOR_MEMORY: '8M' });
  t.match(end, clean);
  t.match(lines[0], /^OutOfMemoryError: reduce: Scratch memory failed: out of memory\./);
  t.match(lines[1], /^OutOfMemoryError|^16384$/, 'the pool may still hold the free blocks');
  t.equal(lines[2], '16384');
});

t.test('a kernel that faults ends the device for the process, and every error says so', async (t) => {
  const script = `
    const x = diffit.ones([64], { device });
    const other = diffit.ones([4]);
    diffit.ones([2 ** 20], { device }); // keeps the device busy while what follows is enqueued
    for (let i = 0; i < 4; i++) x.add(1);
    for (let i = 0; i < 2; i++) await attempt(() => first(x.add(1)));
    await attempt(() => diffit.synchronize(device));
    await attempt(() => diffit.timeDevice(() => {}, device));
    await attempt(() => first(diffit.zeros([10000], { device })));
    await attempt(() => first(diffit.tensor([1, 2], { device })));
    await attempt(() => first(other.add(1)));
    console.log(diffit.memory(device).deviceFreeBytes);
  `;
  const { lines, ...end } = run(script, { DIFFIT_EMULATOR_FAULT: '5' });
  t.match(end, clean);
  t.match(lines[0], /^DeviceError: affine: A kernel failed: an illegal memory access/, 'the first that met it');
  for (const line of lines.slice(0, 6)) {
    t.match(line, /^DeviceError: .* this process cannot use it again: start a new one\.$/);
  }
  t.equal(lines[6], '2', 'the CPU works on');
  t.equal(lines[7], 'undefined');
});

/** Attention of bf16 numbers in 8 x 8 windows of heads of 128, and of f32 numbers in heads of 256, on both devices. */
const attentionScript = `
  const run = (dim, dtype, on) => diffit.scope(() => {
    const numbers = Float32Array.from({ length: 64 * 3 * dim }, (_, i) => Math.fround(Math.sin(i * 0.7)));
    const qkv = diffit.tensor(numbers, { shape: [1, 8, 8, 3 * dim], device: on }).to(dtype);
    return diffit.nn.functional.attention(on === 'cpu' ? qkv.to('f32') : qkv, { heads: 1 }).to('f32');
  });
  for (const [dim, dtype] of [[128, 'bf16'], [256, 'f32']]) {
    const expected = await run(dim, dtype, 'cpu').data();
    await attempt(async () => {
      const y = await run(dim, dtype, device).data();
      return Math.max(...y.map((v, i) => Math.abs(v - expected[i])));
    });
  }
`;

t.test('a device with little shared memory takes smaller kernels, or says what it lacks', async (t) => {
  for (const [shared, fits] of [
    ['227K', true],
    ['163K', true],
    ['99K', false],
  ] as const) {
    const { lines, ...end } = run(attentionScript, { DIFFIT_EMULATOR_SHARED: shared });
    t.match(end, clean, shared);
    t.ok(Number(lines[0]) < 8e-3, `${shared}: off by ${lines[0]}`);
    if (fits) t.ok(Number(lines[1]) < 1e-5, `${shared}: off by ${lines[1]}`);
    else t.match(lines[1], /: attention: A kernel needs 104448 bytes of shared memory; this device has 101376/);
  }
});

/** The addon alone with the emulated device, two tensors and `work(n)`, n spans of a product. */
const prelude = `
  const native = require('node-gyp-build')(${JSON.stringify(root)});
  const id = native.openDevice('cuda-emulated', ${JSON.stringify(backendLibrary('cuda_emulated'))}, 0);
  const x = native.alloc(id, 0, 2, 48, 48), y = native.alloc(id, 0, 2, 48, 48);
  native.ops.fill(x, 0.5);
  const span = () => {
    native.beginSpan(id, 1);
    native.ops.gemm(x, x, 0, 0, 0, y, 0, 1, 48, 48, 48, 0, 0, -1, -1, 0);
    native.ops.affine(y, y, 2, 1);
    native.endSpan(id);
  };
  const work = (n) => { for (let i = 0; i < n; i++) span(); };
`;

t.test('a process may end with work in the queue, held back for a graph or not', async (t) => {
  for (const end of [
    '',
    'process.exit(0);',
    'setTimeout(() => process.exit(0), 20);',
    'native.read(x); process.exit(0);',
    'native.write(x, new Float32Array(48 * 48), 0); native.trim(id);',
    'native.beginSpan(id, 1); native.ops.affine(x, x, 1, 1); process.exit(0);',
    'native.synchronize(id).then(() => { native.beginSpan(id, 1); span(); process.exit(0); });',
    'native.mark(id, 1); native.elapsed(id, 1, 1); process.exit(0);',
  ]) {
    const { status, signal, stderr } = spawnSync(process.execPath, ['-e', `${prelude} work(300); ${end}`], {
      env: { PATH: process.env.PATH },
      encoding: 'utf8',
      timeout: 60_000,
    });
    t.match({ status, signal, stderr }, clean, end || 'by itself');
  }
});

/** A worker with that. */
const start = (script: string) =>
  new Worker(`const { parentPort: port } = require('node:worker_threads'); ${prelude} ${script}`, {
    eval: true,
    execArgv: [],
    env: { PATH: process.env.PATH },
  });

t.test('two environments use the device at the same time', async (t) => {
  const workers = [1, 2].map((factor) =>
    start(`
      port.on('message', async () => {
        native.ops.fill(x, ${factor});
        work(20);
        const value = new Float32Array(await native.read(y))[100];
        port.postMessage({ value, stats: native.graphStats(id), live: native.memory(id).liveBuffers });
        port.close();
      });
    `),
  );
  const replies = workers.map(async (worker) => {
    const [reply, exit] = [once(worker, 'message'), once(worker, 'exit')];
    worker.postMessage('go');
    const [answer] = await reply;
    t.same(await exit, [0]);
    return answer;
  });
  const stats = { captured: 1, replayed: 19, plain: 1 };
  t.same(await Promise.all(replies), [
    { value: 97, stats, live: 2 },
    { value: 385, stats, live: 2 },
  ]);
});

t.test('a worker may be terminated with work in the queue', async (t) => {
  for (let i = 0; i < 4; i++) {
    const worker = start(`work(300); native.read(y); native.beginSpan(id, 1); port.postMessage('ready');`);
    await once(worker, 'message');
    if (i % 2) await new Promise((resolve) => setTimeout(resolve, 15 * i));
    await worker.terminate();
  }
  t.pass('no crash');
});
