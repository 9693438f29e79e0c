/** Replayed spans of operations: the same bits as running them, never with arguments of another time, whatever comes between. */
import t, { type Test } from 'tap';
import { memory, setMemoryLimit, synchronize } from '../../lib/device.js';
import { graphStats, replayed, setGraphs } from '../../lib/graph.js';
import { native } from '../../lib/native.js';
import { layerNorm } from '../../lib/ops/norm.js';
import '../../lib/autograd.js';
import { sum } from '../../lib/ops/reduce.js';
import { HostRandom } from '../../lib/random.js';
import { scope } from '../../lib/scope.js';
import { full, type Tensor, tensor, zeros } from '../../lib/tensor.js';
import { numbers, settledMemory } from '../helpers.js';
import { device } from '../ops/lowp.js';

const { ops } = native;

/** What `fn` adds to the counters. */
async function counted(fn: () => unknown): Promise<{ captured: number; replayed: number; plain: number }> {
  const before = graphStats(device);
  await fn();
  await synchronize(device);
  const { captured, replayed, plain } = graphStats(device);
  return {
    captured: captured - before.captured,
    replayed: replayed - before.replayed,
    plain: plain - before.plain,
  };
}
const values = async (x: Tensor) => [...((await x.data()) as Float32Array)];

t.test('a span that comes again is captured, then replayed; each runs once', async (t) => {
  const [key, x, total] = [{}, full([5], 1, { device }), zeros([5], { device })];
  const span = () =>
    replayed(key, device, () => {
      ops.affine(x.id, x.id, 2, 1);
      ops.linear_combination(total.id, x.id, 0, total.id, 1, 1, 0);
    });
  let [value, expected] = [1, 0];
  const rounds = [];
  for (let i = 0; i < 6; i++) {
    rounds.push(await counted(span));
    value = 2 * value + 1;
    expected += value;
    t.same(await values(total), Array(5).fill(expected));
  }
  t.same(rounds[0], { captured: 0, replayed: 0, plain: 1 });
  t.same(rounds[1], { captured: 1, replayed: 1, plain: 0 });
  for (const round of rounds.slice(2)) t.same(round, { captured: 0, replayed: 1, plain: 0 });
  t.same(await counted(() => replayed({}, device, () => {})), { captured: 0, replayed: 0, plain: 0 }, 'nothing at all');
  setGraphs(false);
  t.same(await counted(span), { captured: 0, replayed: 0, plain: 0 }, 'switched off');
  setGraphs(true);
  const cpu = graphStats('cpu');
  const y = zeros([1], { device: 'cpu' });
  for (let i = 0; i < 3; i++) replayed(key, 'cpu', () => ops.affine(y.id, y.id, 1, 1));
  t.same(await values(y), [3]);
  y.dispose();
  t.match(graphStats('cpu'), { captured: 0, replayed: 0, plain: cpu.plain + 3 }, 'the CPU has no graphs');
  x.dispose();
  total.dispose();
});

t.test('arguments of another time are never replayed', async (t) => {
  // Each variant differs from the first in one thing alone; all are known to the queue before any is checked.
  const make = (): Record<'x' | 'y' | 'a' | 'b' | 'small', Tensor> => ({
    x: tensor(numbers(1, 12), { shape: [3, 4], device }),
    y: tensor(numbers(2, 12), { shape: [3, 4], device }),
    a: zeros([3, 4], { device }),
    b: zeros([3, 4], { device }),
    small: zeros([1], { device }),
  });
  type Buffers = ReturnType<typeof make>;
  const variants: Record<string, (t: Buffers) => void> = {
    base: ({ x, a }) => ops.affine(x.id, a.id, 2, 1),
    scalar: ({ x, a }) => ops.affine(x.id, a.id, 2, 1 + 1e-9),
    input: ({ y, a }) => ops.affine(y.id, a.id, 2, 1),
    output: ({ x, b }) => ops.affine(x.id, b.id, 2, 1),
    operation: ({ x, a }) => ops.clamp(x.id, a.id, 2, 1),
    longer: ({ x, a }) => {
      ops.affine(x.id, a.id, 2, 1);
      ops.affine(a.id, a.id, 2, 1);
    },
    nothing: () => {},
    shape: ({ x, a }) => {
      const [from, to] = [x, a].map((z) => z.slice(0, 0, 2));
      ops.affine(from.id, to.id, 2, 1);
      from.dispose();
      to.dispose();
    },
    floats: ({ x, a }) => ops.cast(x.id, a.id),
    integers: ({ x, a }) => {
      const same = native.view(x.id, 0, 3, 2, 3, 4); // the same bytes as i32
      ops.cast(same, a.id);
      native.release(same);
    },
    rows: ({ x, a }) => ops.strided_copy(x.id, a.id, [3, 4], [4, 1], [4, 1], 0, 0),
    strides: ({ x, a }) => ops.strided_copy(x.id, a.id, [3, 4], [1, 3], [4, 1], 0, 0),
    fewer: ({ x, a }) => ops.strided_copy(x.id, a.id, [12], [1], [1], 0, 0),
    optional: ({ x, y, a }) => ops.linear_combination(x.id, y.id, 0, a.id, 1, 2, 3),
    absent: ({ x, a }) => ops.linear_combination(x.id, 0, 0, a.id, 1, 2, 3),
    list: ({ x, y, small }) => ops.square_sum([x.id, y.id], small.id),
    otherList: ({ x, small }) => ops.square_sum([x.id, x.id], small.id),
    shortList: ({ x, small }) => ops.square_sum([x.id], small.id),
  };
  const names = Object.keys(variants);
  const state = async (buffers: Buffers) =>
    Buffer.concat(await Promise.all(Object.values(buffers).map((x) => x.bytes()))).toString('hex');
  const run = async (graphs: boolean, order: readonly string[]): Promise<string[]> => {
    setGraphs(graphs);
    const [buffers, key, states] = [make(), {}, [] as string[]];
    for (const name of order) {
      replayed(key, device, () => variants[name](buffers));
      ops.affine(buffers.a.id, buffers.y.id, 0.5, 0.25); // something to show that inputs are read anew
      states.push(await state(buffers));
    }
    for (const x of Object.values(buffers)) x.dispose();
    setGraphs(true);
    return states;
  };
  const random = new HostRandom(5);
  for (const [base, other] of [...names.slice(1).map((name) => ['base', name]), ['floats', 'integers']]) {
    const order = [base, other, base, other, other, base, base, other];
    let actual: string[] = [];
    const stats = await counted(async () => {
      actual = await run(true, order);
    });
    t.same(actual, await run(false, order), `${other} beside ${base}`);
    t.ok(stats.replayed >= 5 || other === 'nothing', `${stats.replayed} replayed`);
  }
  const order = Array.from({ length: 150 }, () => names[random.integer(names.length)]);
  t.same(await run(true, order), await run(false, order), 'in any order');
});

t.test('what is no operation, or draws random numbers, runs between the parts of a span, in order', async (t) => {
  const [x, y] = [zeros([3], { device }), zeros([3], { device })];
  const id = native.openDevice(device, '', 0);
  const read: number[] = [];
  let round = 0;
  const between: Record<string, () => unknown> = {
    write: () => native.write(y.id, new Float32Array([7, 7, round]), 0),
    read: () => values(x).then(([value]) => read.push(value)),
    synchronize: () => native.synchronize(id),
    mark: () => native.mark(id, 1),
    trim: () => {
      native.release(native.alloc(id, 0, 1, 700));
      native.trim(id);
    },
    philox: () => ops.philox(y.id, 1, 3, round, 0),
    dropout: () => ops.dropout(x.id, y.id, 0.5, 3, round, 0),
  };
  for (const [name, act] of Object.entries(between)) {
    const states: Record<string, number[][]> = { replayed: [], plain: [] };
    for (const [kind, collected] of Object.entries(states)) {
      setGraphs(kind === 'replayed');
      ops.fill(x.id, 1);
      const key = {};
      const stats = await counted(async () => {
        for (round = 0; round < 4; round++) {
          const waited = replayed(key, device, () => {
            ops.affine(x.id, x.id, 1, 1);
            const result = act();
            ops.linear_combination(x.id, y.id, 0, x.id, 2, 1, 0);
            return result;
          });
          await waited;
          collected.push([...(await values(x)), ...(await values(y))]);
        }
      });
      if (kind === 'replayed') t.same(stats, { captured: 2, replayed: 6, plain: 2 }, `${name}: two parts each`);
      ops.fill(y.id, 0);
    }
    t.same(states.replayed, states.plain, name);
  }
  t.same(read.slice(0, 4), [2, 5, 11, 23], 'a read sees what was before it');
  setGraphs(true);
  x.dispose();
  y.dispose();
});

t.test('a failure inside a span is reported as ever, each time', async (t) => {
  const [x, ids, key] = [zeros([3], { device }), tensor([1, 2], { dtype: 'i64', device }), {}];
  for (let round = 1; round <= 4; round++) {
    replayed(key, device, () => {
      ops.affine(x.id, x.id, 1, 1);
      ops.softmax(ids.id, ids.id);
      ops.affine(x.id, x.id, 1, 1);
    });
    await t.rejects(native.read(x.id), { code: 'DIFFIT_INVALID', op: 'softmax' });
    t.same(await values(x), Array(3).fill(2 * round), 'the others ran, once');
  }
  // A function that throws in the middle: what it enqueued has run.
  for (let round = 1; round <= 3; round++) {
    t.throws(
      () =>
        replayed(key, device, () => {
          ops.affine(x.id, x.id, 1, 1);
          throw new RangeError('mine');
        }),
      new RangeError('mine'),
    );
    t.same(await values(x), Array(3).fill(8 + round));
  }
  // An index that is out of range is found by the read, also after a replay.
  const [table, y] = [full([3, 2], 4, { device }), zeros([2, 2], { device })];
  const gather = () => replayed(gather, device, () => ops.gather_rows(table.id, ids.id, y.id));
  const write = (...rows: bigint[]) => native.write(ids.id, new BigInt64Array(rows), 0);
  for (let round = 0; round < 3; round++) {
    write(0n, 2n);
    gather();
    t.same(await values(y), [4, 4, 4, 4]);
    write(0n, 3n);
    gather();
    await t.rejects(native.read(y.id), { code: 'DIFFIT_INVALID', message: /index 3 at position 1; expected 0 to 2/ });
  }
  for (const z of [x, ids, table, y]) z.dispose();
});

t.test('a graph is stale once scratch memory has moved', async (t) => {
  const small = tensor(numbers(1, 40 * 6), { shape: [40, 6], device });
  const weight = tensor(numbers(2, 6), { shape: [6], device, requiresGrad: true });
  const gradient = zeros([6], { device });
  const apart = async () => {
    scope(() => {
      replayed(gradient, device, () => {
        sum(layerNorm(small, { weight })).backward();
        ops.cast((weight.grad as Tensor).id, gradient.id);
      });
      weight.grad?.dispose();
      weight.grad = undefined;
    });
    return gradient.data();
  };
  setGraphs(false);
  const expected = await apart();
  setGraphs(true);
  t.same(await apart(), expected);
  t.match(await counted(apart), { captured: 1, replayed: 1 });
  t.match(await counted(apart), { captured: 0, replayed: 1 });
  scope(() => layerNormGradients(t, 4000)); // needs more scratch memory than anything before
  t.match(await counted(apart), { captured: 0, replayed: 0, plain: 1 });
  t.match(await counted(apart), { captured: 1, replayed: 1 });
  t.same(await apart(), expected);
  for (const x of [small, weight, gradient]) x.dispose();
});

function layerNormGradients(t: Test, rows: number): void {
  const x = full([rows, 300], 1, { device });
  const weight = full([300], 1, { device, requiresGrad: true });
  sum(layerNorm(x, { weight })).backward();
  t.ok(weight.grad);
  weight.grad?.dispose();
}

t.test('a loop that makes its tensors anew comes back to the same addresses', async (t) => {
  const before = (await settledMemory(device)).liveBuffers;
  const loop = async (steps: number) => {
    let x = tensor(numbers(3, 4000), { device });
    const key = {};
    let previous: Tensor | undefined;
    for (let i = 0; i < steps; i++) {
      const [next, trace] = scope(() => {
        const noise = full([4000], i, { device }); // outside: its number changes
        const f = replayed(key, device, () => scope(() => x.mul(0.5).add(x.square().mul(0.1)).mul(noise.clamp(0, 1))));
        return [x.mul(0.25).add(f), f];
      });
      x.dispose();
      previous?.dispose();
      [x, previous] = [next, trace];
    }
    previous?.dispose();
    const data = await x.data();
    x.dispose();
    return data;
  };
  setGraphs(false);
  const expected = await loop(30);
  setGraphs(true);
  const stats = await counted(async () => t.same(await loop(30), expected));
  t.ok(stats.plain <= 6 && stats.replayed >= 24, `${stats.plain} plain, ${stats.replayed} replayed`);
  t.equal(memory(device).liveBuffers, before);
});

t.test('a key that never repeats is left alone for a while', async (t) => {
  const [x, key] = [zeros([2], { device }), {}];
  const span = (value: number) => counted(() => replayed(key, device, () => ops.fill(x.id, value)));
  for (let i = 0; i < 16; i++) t.match(await span(i), { plain: 1 });
  t.match(
    await counted(() => {
      for (let i = 0; i < 256; i++) replayed(key, device, () => ops.fill(x.id, -1));
    }),
    { captured: 0, replayed: 0, plain: 256 },
  );
  t.match(await span(-1), { replayed: 0, plain: 1 }, 'looked at again');
  t.match(await span(-1), { captured: 1, replayed: 1 });
  t.match(await span(5), { plain: 1 });
  t.match(await span(-1), { captured: 0, replayed: 1 }, 'still known');
  t.same(await values(x), [-1, -1]);
  x.dispose();
});

t.test('no memory left inside a span', async (t) => {
  await settledMemory(device);
  const x = full([1000], 1, { device });
  native.trim(native.openDevice(device, '', 0));
  setMemoryLimit(memory(device).reservedBytes + 30_000, device);
  for (let round = 0; round < 4; round++) {
    t.throws(
      () =>
        scope(() =>
          replayed(x, device, () => {
            let y = x;
            for (let i = 0; i < 100; i++) y = y.add(1);
          }),
        ),
      { code: 'DIFFIT_OUT_OF_MEMORY' },
    );
    t.same((await x.add(1).data())[0], 2);
  }
  setMemoryLimit(0, device);
  x.dispose();
});
