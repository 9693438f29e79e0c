/** The devices' runtime: how many there are, their memory, marks, and copies through pinned memory. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { devices, memory, setMemoryLimit, synchronize, timeDevice } from '../../lib/device.js';
import { OptionError } from '../../lib/errors.js';
import { backendLibrary, native } from '../../lib/native.js';
import { tensor, zeros } from '../../lib/tensor.js';
import { forEachDevice, numbers } from '../helpers.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const library = backendLibrary('cuda_emulated');

/** Runs a script with `diffit` imported and the emulator set up by `env`. */
const run = (script: string, env: Record<string, string> = {}) => {
  const prelude = `import * as diffit from ${JSON.stringify(new URL('../../lib/index.ts', import.meta.url).href)};`;
  const { status, signal, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import=tsx', '--input-type=module', '-e', prelude + script],
    { cwd: root, env: { PATH: process.env.PATH, ...env }, encoding: 'utf8', timeout: 60_000 },
  );
  return { status, signal, stdout: stdout.trim(), stderr: stderr.trim() };
};
const sameBytes = (a: Uint8Array, b: Float32Array) => Buffer.compare(a, new Uint8Array(b.buffer)) === 0;
const clean = { status: 0, signal: null, stderr: '' };

t.test('devices are counted before any is opened', async (t) => {
  t.equal(native.countDevices('cpu', ''), 1);
  t.equal(native.countDevices('cuda-emulated', library), 1);
  t.equal(native.countDevices('cuda', '/nowhere/libdiffit_cuda.so'), 0);
  t.throws(() => native.countDevices('gpu', library), { code: 'DIFFIT_NO_DEVICE' });
  t.ok(devices().length >= 2, 'the CPU, and each GPU or why there is none');
});

t.test('several devices: each has its memory and its stream, and takes no tensors of another', async (t) => {
  const script = `
    const [a, b] = ['cuda-emulated', 'cuda-emulated:1'].map((device) => diffit.tensor([1, 2, 3], { device }));
    const sums = [a, b].map((x, i) => x.add(i + 1));
    console.log(JSON.stringify([...(await sums[0].data()), ...(await sums[1].data())]));
    for (const device of ['cuda-emulated:2', 'cuda-emulated:x']) {
      try { diffit.zeros([1], { device }); } catch (error) { console.log(error.name + ': ' + error.message); }
    }
    try { a.add(b); } catch (error) { console.log(error.name); }
    console.log(a.add(diffit.ones([3], { device: 'cuda-emulated:0' })).device);
    console.log(await diffit.timeDevice(() => b.add(1), 'cuda-emulated:1') >= 0);
  `;
  const { stdout, ...end } = run(script, { DIFFIT_EMULATOR_DEVICES: '2' });
  t.match(end, clean);
  const [sums, third, unknown, mixed, name, timed] = stdout.split('\n');
  t.same(JSON.parse(sums), [2, 3, 4, 3, 4, 5]);
  t.equal(third, 'DeviceError: There is no device cuda-emulated:2; this machine has 2.');
  t.match(unknown, /^OptionError: Unknown device "cuda-emulated:x"/);
  t.same([mixed, name, timed], ['DeviceError', 'cuda-emulated', 'true'], ':0 is the same device, without a number');
});

t.test('memory of the whole device, where it tells', async (t) => {
  const before = memory('cuda-emulated');
  const x = zeros([1024, 1024], { device: 'cuda-emulated' });
  const after = memory('cuda-emulated');
  t.equal(after.deviceTotalBytes, 16 * 2 ** 30);
  t.equal((before.deviceFreeBytes ?? 0) - (after.deviceFreeBytes ?? 0), after.reservedBytes - before.reservedBytes);
  t.equal(memory('cpu').deviceFreeBytes, undefined);
  x.dispose();
});

t.test('marks measure what is between them', async (t) => {
  const id = native.openDevice('cuda-emulated', library, 0);
  for (const slot of [-1, 1024, 0.5]) t.throws(() => native.mark(id, slot), { code: 'DIFFIT_BAD_ARGUMENT' });
  await t.rejects(native.elapsed(id, 0, 1), { code: 'DIFFIT_INVALID' }, 'marks that were never set');
  await forEachDevice(t, async (t, device) => {
    const x = zeros([256, 256], { device });
    const work = (n: number) => () => {
      for (let i = 0; i < n; i++) native.ops.affine(x.id, x.id, 1, 1);
    };
    await timeDevice(work(1), device); // what is made at first use
    const little = await timeDevice(work(1), device);
    const much = await timeDevice(work(200), device);
    t.ok(little >= 0 && much > little, `${little} ms for 1, ${much} ms for 200`);
    const result = timeDevice(async () => (await x.data())[0], device);
    t.ok((await result) > 0, 'an asynchronous function is timed to its end');
    const table = zeros([3, 2], { device });
    const ids = tensor([99], { dtype: 'i64', device });
    const bad = timeDevice(() => native.ops.softmax(ids.id, table.id), device);
    await t.rejects(bad, { code: 'DIFFIT_INVALID', message: /^softmax: / });
    await t.rejects(
      timeDevice(() => {
        throw new RangeError('mine');
      }, device),
      new RangeError('mine'),
    );
    const many = Array.from({ length: 511 }, () => timeDevice(work(0), device));
    await t.rejects(timeDevice(work(0), device), OptionError);
    t.ok((await Promise.all(many)).every((ms) => ms >= 0));
    await synchronize(device);
    for (const tensor of [x, table, ids]) tensor.dispose();
  });
});

t.test('uploads and downloads through pinned memory', async (t) => {
  const device = 'cuda-emulated';
  await t.test('larger than the ring of pieces, which are filled again', async (t) => {
    const data = numbers(1, 6 * 2 ** 20 + 3); // 24 MiB and a bit
    const x = tensor(data, { device });
    const y = x.add(0);
    for (const z of [x, y]) t.ok(sameBytes(await z.bytes(), data));
    x.dispose();
    y.dispose();
  });
  await t.test('many small ones before anything asks for them', async (t) => {
    const parts = Array.from({ length: 3000 }, (_, i) => tensor([i, i + 0.5], { device }));
    const big = Array.from({ length: 7 }, (_, i) => tensor(numbers(i, 2 ** 20 - i), { device }));
    for (const [i, x] of big.entries()) t.ok(sameBytes(await x.bytes(), numbers(i, 2 ** 20 - i)));
    const read = await Promise.all(parts.map((x) => x.data()));
    t.ok(read.every(([a, b], i) => a === i && b === i + 0.5));
    for (const x of [...parts, ...big]) x.dispose();
  });
  await t.test('the source may change as soon as the call has returned', async (t) => {
    const data = new Float32Array(5 * 2 ** 20).fill(1);
    const x = tensor(data, { device });
    data.fill(2);
    t.ok((await x.data()).every((v) => v === 1));
    x.dispose();
  });
});

t.teardown(() => setMemoryLimit(0, 'cuda-emulated'));
