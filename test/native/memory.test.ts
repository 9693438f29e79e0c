/** The pool: books that return to where they were, reuse, limits, and life after running out. */
import t from 'tap';
import { native, type TensorId } from '../../lib/native.js';

// A device of its own, so that the figures below are exact.
const device = native.openDevice('cpu:baseline', '', 1);
const u8 = 5;
const MiB = 2 ** 20;
const alloc = (bytes: number) => native.alloc(device, u8, 1, bytes);
const memory = () => native.memory(device);

t.afterEach(() => {
  native.setMemoryLimit(device, 0);
  native.trim(device);
});

t.test('live, reserved and peak', async (t) => {
  t.match(memory(), { liveBuffers: 0, liveBytes: 0, reservedBytes: 0, limitBytes: 0 });
  const a = alloc(1000);
  const b = alloc(3 * MiB);
  t.match(memory(), { liveBuffers: 2, liveBytes: 1000 + 3 * MiB, peakBytes: 1000 + 3 * MiB });
  native.release(b);
  t.match(memory(), { liveBuffers: 1, liveBytes: 1000, peakBytes: 1000 + 3 * MiB });
  t.ok(memory().reservedBytes >= 1000 + 3 * MiB, 'the pool keeps the free block');
  native.resetPeak(device);
  t.equal(memory().peakBytes, 1000);
  native.release(a);
  native.trim(device);
  t.match(memory(), { liveBuffers: 0, liveBytes: 0, reservedBytes: 0 });
});

t.test('a block takes at most 12.5 % more than was asked for, from 512 bytes on', async (t) => {
  for (let bytes = 512; bytes < 200 * MiB; bytes = Math.floor(bytes * 1.09) + 1) {
    const id = alloc(bytes);
    const { reservedBytes } = memory();
    if (reservedBytes < bytes || reservedBytes > bytes * 1.125 + 1) t.fail(`${bytes} bytes reserve ${reservedBytes}`);
    native.release(id);
    native.trim(device);
  }
  t.equal(memory().reservedBytes, 0);
});

t.test('a released block is reused', async (t) => {
  const first = alloc(5 * MiB);
  native.release(first);
  const { reservedBytes } = memory();
  for (let i = 0; i < 1000; i++) native.release(alloc(5 * MiB - (i % 1000)));
  t.equal(memory().reservedBytes, reservedBytes);
});

t.test('a free block is divided between smaller tensors, and whole again when they are gone', async (t) => {
  native.release(alloc(8 * MiB));
  const { reservedBytes } = memory();
  const parts = [alloc(3 * MiB), alloc(MiB), alloc(4 * MiB)];
  t.equal(memory().reservedBytes, reservedBytes);
  for (const [i, id] of parts.entries()) native.write(id, new Uint8Array(MiB).fill(i + 1), 0);
  for (const [i, id] of parts.entries()) {
    t.ok(
      new Uint8Array(await native.read(id)).subarray(0, MiB).every((byte) => byte === i + 1),
      'parts do not overlap',
    );
  }
  for (const order of [
    [1, 0, 2],
    [0, 2, 1],
    [2, 1, 0],
  ]) {
    for (const i of order) native.release(parts[i]);
    const whole = alloc(8 * MiB);
    t.equal(memory().reservedBytes, reservedBytes, 'whole again');
    native.release(whole);
    parts.splice(0, 3, alloc(3 * MiB), alloc(MiB), alloc(4 * MiB));
  }
  native.trim(device);
  t.equal(memory().reservedBytes, reservedBytes, 'what is in use stays');
  for (const id of parts) native.release(id);
  const small = alloc(1000);
  t.ok(memory().reservedBytes > reservedBytes, 'a small tensor takes none of it');
  native.release(small);
  native.trim(device);
  t.equal(memory().reservedBytes, 0);
});

t.test('sizes that keep changing do not pile up', async (t) => {
  for (let i = 0; i < 300; i++) native.release(alloc(32 * MiB + i * 2 * MiB));
  const { reservedBytes, peakBytes } = memory();
  t.ok(reservedBytes <= 2 * peakBytes + 256 * MiB, `${reservedBytes / MiB} MiB reserved`);
  await native.synchronize(device);
});

t.test('a limit: first free blocks go, then an error that tells the figures; releasing helps', async (t) => {
  native.setMemoryLimit(device, 64 * MiB);
  t.equal(memory().limitBytes, 64 * MiB);
  native.release(alloc(40 * MiB));
  const a = alloc(50 * MiB);
  t.ok(memory().reservedBytes <= 64 * MiB, 'the free 40 MiB made room');
  const code = 'DIFFIT_OUT_OF_MEMORY';
  t.throws(() => alloc(20 * MiB), {
    code,
    message: 'There is no memory for 20 MiB more on cpu:baseline: 50 MiB are live, the limit is 64 MiB.',
  });
  t.throws(() => alloc(100 * MiB), { code });
  native.write(a, new Uint8Array([5]), 0);
  t.equal(new Uint8Array(await native.read(a))[0], 5, 'the device still works');
  native.release(a);
  native.release(alloc(60 * MiB));
  native.setMemoryLimit(device, 8 * MiB);
  t.ok(memory().reservedBytes <= 8 * MiB, 'a lower limit gives free blocks back at once');
  t.equal(memory().liveBuffers, 0);
});

t.test('of small free blocks those longest unused go; the others serve again, each once', async (t) => {
  const sizes = [1000, 4000, 16000];
  const sizeOf = (i: number): number => sizes[i % sizes.length];
  for (const id of Array.from({ length: 300 }, (_, i) => alloc(sizeOf(i)))) native.release(id);
  const half = Math.floor(memory().reservedBytes / 2);
  native.setMemoryLimit(device, half);
  const { reservedBytes } = memory();
  t.ok(reservedBytes <= half && reservedBytes > half - 20000, `${reservedBytes} of ${half} bytes are left`);
  const ids = Array.from({ length: 135 }, (_, i) => alloc(sizeOf(i)));
  t.equal(memory().reservedBytes, reservedBytes, 'nothing new was asked of the device');
  for (const [i, id] of ids.entries()) native.write(id, new Uint8Array(sizeOf(i)).fill(i), 0);
  for (const [i, id] of ids.entries()) {
    const bytes = new Uint8Array(await native.read(id));
    if (!bytes.every((byte) => byte === i)) t.fail(`block ${i} is another's, too`);
    native.release(id);
  }
  t.equal(memory().liveBuffers, 0);
});

t.test('more than the machine has', async (t) => {
  t.throws(() => alloc(2 ** 50), { code: 'DIFFIT_OUT_OF_MEMORY', message: /1 PiB more .* there is no limit/ });
  native.release(alloc(MiB));
  t.equal(memory().liveBuffers, 0);
});

t.test('blocks that queued work still uses are given back after it', async (t) => {
  const ids: TensorId[] = [];
  for (let i = 0; i < 20; i++) {
    const id = native.alloc(device, 0, 1, MiB);
    native.ops.fill(id, i);
    native.ops.unary(id, id, 12);
    ids.push(id);
  }
  for (const id of ids) native.release(id);
  native.trim(device);
  t.equal(memory().reservedBytes, 0);
  native.setMemoryLimit(device, 8 * MiB);
  const last = native.alloc(device, 0, 1, MiB);
  native.ops.fill(last, 1);
  native.release(last);
  native.release(alloc(8 * MiB));
  await native.synchronize(device);
});

t.test('bad figures', async (t) => {
  for (const bytes of [-1, 1.5, Number.NaN, '1G' as never]) {
    t.throws(() => native.setMemoryLimit(device, bytes), { code: 'DIFFIT_BAD_ARGUMENT' });
  }
});
