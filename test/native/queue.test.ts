/** The ordered queue: order, promises, how a failure is delivered, and that the device goes on afterwards. */
import t from 'tap';
import { native, type TensorId } from '../../lib/native.js';

const cpu = native.openDevice('cpu', '', 0);
const f32 = 0;
const i64 = 4;
const floats = async (id: TensorId) => [...new Float32Array(await native.read(id))];
const make = (values: number[]) => {
  const id = native.alloc(cpu, f32, 1, values.length);
  native.write(id, new Float32Array(values), 0);
  return id;
};

t.test('everything happens in the order it was asked for', async (t) => {
  const x = make([0]);
  const expected: number[] = [];
  const reads: Promise<number[]>[] = [];
  let value = 0;
  for (let i = 0; i < 5000; i++) {
    if (i % 7 === 0) {
      value = i;
      native.write(x, new Float32Array([i]), 0);
    } else {
      value += 1;
      native.ops.affine(x, x, 1, 1);
    }
    if (i % 3 === 0) {
      expected.push(value);
      reads.push(floats(x));
    }
  }
  t.same((await Promise.all(reads)).flat(), expected);
  native.release(x);
});

t.test('promises of one device settle in order', async (t) => {
  const x = make([1]);
  const settled: string[] = [];
  await Promise.all([
    native.read(x).then(() => settled.push('a')),
    native.synchronize(cpu).then(() => settled.push('b')),
    native.read(x).then(() => settled.push('c')),
  ]);
  t.same(settled, ['a', 'b', 'c']);
  native.release(x);
});

t.test('a tensor may be released while its work is still queued', async (t) => {
  const x = make([1, 2, 3]);
  const y = native.alloc(cpu, f32, 1, 3);
  native.ops.affine(x, y, 10, 0);
  native.release(x);
  const other = make([7, 7, 7]);
  const result = floats(y);
  native.release(y);
  native.release(other);
  native.release(make([8, 8, 8]));
  t.same(await result, [10, 20, 30], 'blocks are reused in stream order');
});

t.test('more work than nodes are kept for', async (t) => {
  const x = make([0]);
  for (let i = 0; i < 50_000; i++) native.ops.affine(x, x, 1, 1);
  t.same(await floats(x), [50_000]);
  for (let i = 0; i < 20_000; i++) native.ops.affine(x, x, 1, 1);
  t.same(await floats(x), [70_000]);
  t.equal(native.memory(cpu).queued, 0);
  native.release(x);
});

t.test('a failure rejects the next read with its operation, once; then the device works on', async (t) => {
  const x = make([1, 2]);
  const table = native.alloc(cpu, f32, 2, 3, 2);
  const ids = native.alloc(cpu, i64, 1, 1);
  native.ops.fill(table, 4);
  native.write(ids, new BigInt64Array([99n]), 0);
  const y = native.alloc(cpu, f32, 2, 1, 2);

  const earlier = floats(x);
  native.ops.gather_rows(table, ids, y);
  native.ops.affine(x, x, 2, 0);
  native.ops.softmax(ids, y);
  t.same(await earlier, [1, 2], 'a read from before the failure is not touched');
  await t.rejects(native.read(x), {
    code: 'DIFFIT_INVALID',
    op: 'gather_rows',
    message: /^gather_rows: (?!gather_rows)/,
  });
  t.same(await floats(x), [2, 4], 'work after the failure was done');
  await native.synchronize(cpu);

  native.ops.gather_rows(table, ids, y);
  await t.rejects(native.synchronize(cpu), { code: 'DIFFIT_INVALID', op: 'gather_rows' });
  await native.synchronize(cpu);
  native.write(ids, new BigInt64Array([2n]), 0);
  native.ops.gather_rows(table, ids, y);
  t.same(await floats(y), [4, 4]);
  for (const id of [x, table, ids, y]) native.release(id);
});

t.test('devices have queues of their own', async (t) => {
  const other = native.openDevice('cpu:baseline', '', 1);
  const a = make([1]);
  const b = native.alloc(other, f32, 1, 1);
  t.throws(() => native.ops.affine(a, b, 1, 0), {
    code: 'DIFFIT_INVALID',
    message: 'affine: argument 2 (y) is on cpu:baseline, another argument on cpu.',
  });
  t.throws(() => native.ops.square_sum([a, b], a), { code: 'DIFFIT_INVALID' });
  native.ops.softmax(b, native.alloc(other, i64, 1, 1));
  await native.synchronize(cpu);
  await t.rejects(native.synchronize(other), { code: 'DIFFIT_INVALID', op: 'softmax' });
});

t.test('the event loop goes on while the device works', async (t) => {
  const n = 1024;
  const a = native.alloc(cpu, f32, 2, n, n);
  const y = native.alloc(cpu, f32, 2, n, n);
  native.ops.fill(a, 0.5);
  let ticks = 0;
  let done = false;
  for (let i = 0; i < 4; i++) native.ops.gemm(a, a, 0, 0, 0, y, 0, 1, n, n, n, 0, 0, -1, -1, 0);
  const finished = native.read(y).then((bytes) => {
    done = true;
    return new Float32Array(bytes)[0];
  });
  while (!done) {
    await new Promise(setImmediate);
    ticks++;
  }
  t.equal(await finished, n / 4);
  t.ok(ticks > 1, `${ticks} turns of the event loop`);
  native.release(a);
  native.release(y);
});
