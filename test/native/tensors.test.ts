/** Ids, views and bytes: what lib/tensor.ts is built on, through the addon itself. */
import t from 'tap';
import { native, type TensorId } from '../../lib/native.js';

const cpu = native.openDevice('cpu', '', 0);
const f32 = 0;
const bytesOf = [4, 2, 2, 4, 8, 1];

const floats = async (id: TensorId) => [...new Float32Array(await native.read(id))];

t.test('the device', async (t) => {
  t.equal(native.openDevice('cpu', '', 0), cpu, 'opening again gives the same id');
  const info = native.deviceInfo(cpu);
  t.equal(info.backend, 'cpu');
  t.ok(native.cpuVariants().includes(info.variant));
  t.ok(info.threads >= 1);
  t.ok(info.memory > 0);
  for (const variant of native.cpuVariants()) {
    const device = native.openDevice(`cpu:${variant}`, '', 1);
    t.equal(native.deviceInfo(device).variant, variant);
    t.equal(native.deviceInfo(device).threads, 1);
  }
});

t.test('a device that cannot be had is one plain sentence', async (t) => {
  const open = (spec: string, library = '') => {
    return () => native.openDevice(spec, library, 0);
  };
  const code = 'DIFFIT_NO_DEVICE';
  t.throws(open('tpu'), { code, message: /no device called "tpu"; expected cpu,/ });
  t.throws(open(''), { code });
  t.throws(open('cpu:'), { code });
  t.throws(open('cuda:-1'), { code });
  t.throws(open('cuda:1x'), { code });
  t.throws(open('cpu:sse9'), { code, message: /no CPU variant "sse9"; it offers .*baseline/ });
  t.throws(open('cuda'), { code, message: /no library for the device cuda:0/ });
  t.throws(open('cuda', '/nowhere/libdiffit_cuda.so'), { code, message: /could not be loaded: .*nowhere/ });
  t.throws(() => native.openDevice(1 as never, '', 0), { code: 'DIFFIT_BAD_ARGUMENT', message: /must be a string/ });
  t.throws(() => native.openDevice('cpu', '', -1), { code: 'DIFFIT_BAD_ARGUMENT', message: /threads is -1/ });
  for (const device of [0, 99, -1, 1.5, Number.NaN]) {
    t.throws(() => native.memory(device), { code: 'DIFFIT_BAD_ARGUMENT', message: /no open device/ });
  }
});

t.test('every dtype comes back bit for bit', async (t) => {
  for (const [dtype, size] of bytesOf.entries()) {
    const bytes = Uint8Array.from({ length: 30 * size }, (_, i) => (i * 37 + dtype) % 256);
    const id = native.alloc(cpu, dtype, 3, 2, 3, 5);
    native.write(id, bytes, 0);
    t.same(new Uint8Array(await native.read(id)), bytes, `dtype ${dtype}`);
    native.release(id);
  }
});

t.test('write takes any view of bytes, copies them at call time, and puts them at an offset', async (t) => {
  const id = native.alloc(cpu, f32, 1, 4);
  const source = new Float32Array([1, 2, 3, 4]);
  native.write(id, source, 0);
  source.fill(9);
  t.same(await floats(id), [1, 2, 3, 4]);
  native.write(id, new Float32Array([0, 7, 8]).subarray(1), 8);
  t.same(await floats(id), [1, 2, 7, 8]);
  native.write(id, new DataView(new Float32Array([5, 6]).buffer, 4), 0);
  t.same(await floats(id), [6, 2, 7, 8]);
  native.write(id, Buffer.from(new Float32Array([3]).buffer), 4);
  t.same(await floats(id), [6, 3, 7, 8]);
  native.write(id, new Uint8Array(0), 16);
  const large = native.alloc(cpu, f32, 1, 100_000);
  const values = Float32Array.from({ length: 100_000 }, (_, i) => i);
  native.write(large, values, 0);
  values.fill(0);
  const back = new Float32Array(await native.read(large));
  t.equal(back[0], 0);
  t.equal(back[99_999], 99_999);
  const bad = 'DIFFIT_BAD_ARGUMENT';
  t.throws(() => native.write(id, new Float32Array(5), 0), { code: bad, message: /20 bytes at offset 0 .* 16 bytes/ });
  t.throws(() => native.write(id, new Float32Array(1), 13), { code: bad });
  t.throws(() => native.write(id, new Float32Array(1), -1), { code: bad });
  t.throws(() => native.write(id, new Float32Array(1), Number.NaN), { code: bad });
  t.throws(() => native.write(id, [1] as never, 0), { code: bad, message: /typed array or a DataView/ });
  t.throws(() => native.write(id, new ArrayBuffer(4) as never, 0), { code: bad });
  native.release(id);
  native.release(large);
});

t.test('a scalar has one element, an empty tensor none', async (t) => {
  const scalar = native.alloc(cpu, f32, 0);
  native.ops.fill(scalar, 2.5);
  t.same(await floats(scalar), [2.5]);
  const empty = native.alloc(cpu, f32, 2, 0, 5);
  t.equal((await native.read(empty)).byteLength, 0);
  native.ops.affine(empty, empty, 2, 1);
  await native.synchronize(cpu);
  native.release(scalar);
  native.release(empty);
});

t.test('sizes that are no sizes', async (t) => {
  const bad = (message: RegExp, ...args: Parameters<typeof native.alloc>) =>
    t.throws(() => native.alloc(...args), { code: 'DIFFIT_BAD_ARGUMENT', message });
  bad(/alloc: the dtype is 6/, cpu, 6, 1, 1);
  bad(/alloc: the dtype is -1/, cpu, -1, 1, 1);
  bad(/dimensions is 7/, cpu, f32, 7, 1, 1, 1, 1, 1, 1);
  bad(/dimension 1 is -1/, cpu, f32, 2, 1, -1);
  bad(/dimension 0 is 1.5/, cpu, f32, 1, 1.5);
  bad(/dimension 0 is nan/, cpu, f32, 1, Number.NaN);
  bad(/dimension 0 is inf/, cpu, f32, 1, Number.POSITIVE_INFINITY);
  bad(/dimension 2 must be a number/, cpu, f32, 3, 1, 1);
  bad(/dimension 0 must be a number/, cpu, f32, 1, '3' as never);
  bad(/more than 2\^52 bytes/, cpu, f32, 2, 2 ** 40, 2 ** 40);
  bad(/more than 2\^52 bytes/, cpu, f32, 6, 2 ** 30, 2 ** 30, 2 ** 30, 2 ** 30, 2 ** 30, 2 ** 30);
  bad(/more than 2\^52 bytes/, cpu, f32, 4, 0, 2 ** 31, 2 ** 31, 2 ** 31);
  bad(/no open device/, 77, f32, 1, 1);
});

t.test('views look into the same buffer and keep it alive', async (t) => {
  const before = native.memory(cpu);
  const base = native.alloc(cpu, f32, 1, 6);
  native.write(base, new Float32Array([0, 1, 2, 3, 4, 5]), 0);
  const tail = native.view(base, 8, f32, 2, 2, 2);
  const inner = native.view(tail, 4, f32, 1, 1);
  const bits = native.view(base, 0, 3, 1, 6);
  t.equal(native.memory(cpu).liveBuffers, before.liveBuffers + 1);
  native.release(base);
  t.equal(native.memory(cpu).liveBuffers, before.liveBuffers + 1);
  t.same(await floats(tail), [2, 3, 4, 5]);
  t.same(await floats(inner), [3]);
  native.ops.fill(inner, 9);
  t.same(await floats(tail), [2, 9, 4, 5]);
  t.equal(new Int32Array(await native.read(bits))[1], 0x3f800000);
  const bad = (message: RegExp, ...args: Parameters<typeof native.view>) =>
    t.throws(() => native.view(...args), { code: 'DIFFIT_BAD_ARGUMENT', message });
  bad(/20 bytes from offset 0 on do not fit into a tensor of 16 bytes/, tail, 0, f32, 1, 5);
  bad(/4 bytes from offset 16 on do not fit/, tail, 16, f32, 0);
  bad(/the offset is 17/, tail, 17, 5, 1, 0);
  bad(/the offset is -4/, tail, -4, f32, 1, 1);
  bad(/offset 2 is not a multiple of the element size, 4/, tail, 2, f32, 1, 1);
  native.view(tail, 16, f32, 1, 0);
  for (const id of [tail, inner, bits]) native.release(id);
  t.throws(() => native.view(base, 0, f32, 1, 1), { code: 'DIFFIT_STALE_ID' });
});

t.test('a stale or foreign id is an error, whoever uses the slot now', async (t) => {
  const stale = native.alloc(cpu, f32, 1, 1);
  native.release(stale);
  native.release(stale);
  const now = native.alloc(cpu, f32, 1, 1);
  t.not(now, stale, 'the slot has a new generation');
  native.release(stale);
  native.ops.fill(now, 1);
  t.same(await floats(now), [1], 'releasing a stale id touches nobody');
  const code = 'DIFFIT_STALE_ID';
  for (const id of [stale, 1, -1, 0.5, now + 0.5, now + 1, 2 ** 52 + now, 2 ** 53, 1e300, Number.NaN]) {
    t.throws(() => native.read(id), { code, message: /no tensor: released, or of another thread/ }, `${id}`);
    t.throws(() => native.ops.fill(id, 0), { code, message: /^fill: argument 1 \(y\) is no tensor/ }, `${id}`);
    native.release(id);
  }
  t.throws(() => native.read('x' as never), { code: 'DIFFIT_BAD_ARGUMENT' });
  t.throws(() => native.release(undefined as never), { code: 'DIFFIT_BAD_ARGUMENT' });
  t.same(await floats(now), [1]);
  native.release(now);
});
