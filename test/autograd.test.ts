/** Autograd: how gradients gather, what backward() uses up, checkpointing, memory. Rules per operation: test/ops. */
import t, { type Test } from 'tap';
import { checkpoint } from '../lib/autograd.js';
import { memory } from '../lib/device.js';
import * as F from '../lib/nn/functional.js';
import { Linear } from '../lib/nn/layers.js';
import { manualSeed } from '../lib/ops/random.js';
import { noGrad, scope } from '../lib/scope.js';
import { ones, type Tensor, tensor, zeros } from '../lib/tensor.js';
import { assertClose, assertFails, numbers, settledMemory, withoutLeaks } from './helpers.js';

const leaf = (values: number[] | Float32Array, shape?: number[]): Tensor =>
  tensor(Float32Array.from(values), { shape, requiresGrad: true });

/** The gradients of some leaves as plain numbers; disposes them. */
async function take(...leaves: Tensor[]): Promise<(number[] | undefined)[]> {
  return Promise.all(
    leaves.map(async (x) => {
      const { grad } = x;
      x.grad = undefined;
      const values = grad && [...((await grad.data()) as Float32Array)];
      grad?.dispose();
      return values;
    }),
  );
}

const test = (name: string, fn: (t: Test) => Promise<void>): void => {
  void t.test(name, (t) => withoutLeaks(t, 'cpu', () => fn(t)));
};

test('gradients accumulate over uses and over calls', async (t) => {
  const x = leaf([1, 2]);
  x.mul(3).add(x).add(x.square()).sum().backward(); // 3 + 1 + 2x
  t.strictSame(await take(x), [[6, 8]]);
  x.sum().backward();
  x.mul(2).sum().backward();
  t.strictSame(await take(x), [[3, 3]]);
  const y = x.mul(x); // one tensor as both inputs
  y.backward(tensor([1, 10]));
  t.strictSame(await take(x), [[2, 40]]);
});

test('a shared subexpression is differentiated once, with all that flows into it', async (t) => {
  const x = leaf([0.5]);
  let y = x.mul(1);
  for (let i = 0; i < 40; i++) y = y.add(y); // 2^40 paths
  y.backward();
  t.strictSame(await take(x), [[2 ** 40]]);
});

test('two leaves that get one gradient do not share later additions', async (t) => {
  const [x, w] = [leaf([1, 2, 3, 4], [2, 2]), leaf([1, 1, 1, 1])];
  const direct = x.mul(2);
  x.reshape([4]).add(w).reshape([2, 2]).add(direct).sum().backward();
  t.strictSame(
    await take(x, w),
    [
      [3, 3, 3, 3],
      [1, 1, 1, 1],
    ],
    'through a view',
  );

  const upstream = tensor([5, 6, 7, 8], { shape: [4] });
  const twice = x.mul(2).reshape([4]);
  x.reshape([4]).add(twice).backward(upstream);
  t.strictSame(await take(x), [[15, 18, 21, 24]]);
  t.strictSame(await upstream.toArray(), [5, 6, 7, 8], "the caller's gradient stays as it was");

  const [a, b] = [leaf([1]), leaf([2])];
  a.add(b).backward();
  a.mul(3).backward();
  t.strictSame(await take(a, b), [[4], [1]]);
});

test('broadcast inputs get the sum over what was repeated', async (t) => {
  const [x, row, column, scalar] = [
    leaf([1, 2, 3, 4, 5, 6], [2, 3]),
    leaf([1, 2, 3]),
    leaf([10, 20], [2, 1]),
    leaf([2], []),
  ];
  x.mul(row).add(column).mul(scalar).sum().backward();
  t.strictSame(await take(x, row, column, scalar), [[2, 4, 6, 2, 4, 6], [10, 14, 18], [6, 6], [136]]);
  t.strictSame(scalar.shape, []);
  const one = leaf([3], [1, 1]);
  one
    .add(zeros([2, 5, 2]))
    .sum()
    .backward();
  t.strictSame(await take(one), [[20]]);
});

test('backward wants a scalar or a gradient of the right shape, and something recorded', async (t) => {
  const x = leaf([1, 2]);
  const y = x.mul(2);
  const bad: [() => unknown, string, RegExp][] = [
    [() => y.backward(), 'ShapeError', /a gradient of shape \[2\] is needed, got none/],
    [() => y.backward(ones([3])), 'ShapeError', /shape \[2\] is needed, got \[3\]/],
    [() => x.backward(ones([2])), 'AutogradError', /is a leaf/],
    [() => ones([1]).backward(), 'AutogradError', /nothing was recorded/],
    [() => noGrad(() => x.sum()).backward(), 'AutogradError', /nothing was recorded/],
    [() => x.detach().mul(2).sum().backward(), 'AutogradError', /nothing was recorded/],
  ];
  for (const [use, name, message] of bad) await assertFails(t, use, name, message);
  t.equal(x.grad, undefined, 'nothing was added by the failures');
  y.backward(ones([2]));
  await assertFails(t, () => y.backward(ones([2])), 'AutogradError', /the graph through "affine" was already used/);
  t.strictSame(await take(x), [[2, 2]]);

  const hidden = x.square();
  hidden.sum().backward();
  await take(x);
  await assertFails(
    t,
    () => hidden.add(x).sum().backward(),
    'AutogradError',
    /the graph through "unary" was already used/,
  );
  t.equal(x.grad, undefined, 'a failing call leaves no part of a gradient');
});

test('detach and noGrad cut; integer and untracked inputs get nothing', async (t) => {
  const [x, frozen] = [leaf([3]), tensor([4])];
  x.mul(x.detach())
    .add(noGrad(() => x.mul(100)))
    .mul(frozen)
    .backward();
  t.strictSame(await take(x, frozen), [[12], undefined]);
  const ids = tensor([1, 0, 1], { dtype: 'i64' });
  const table = leaf([1, 2, 3, 4], [2, 2]);
  F.embedding(table, ids).sum().backward();
  t.strictSame(await take(table), [[1, 1, 2, 2]]);
  const h = x.mul(2);
  t.notOk(h.detach().requiresGrad);
  h.dispose();
  x.to('bf16').to('f32').mul(3).backward();
  t.strictSame(await take(x), [[3]], 'through bf16 and back');
});

test('inputs may be disposed after use, results before backward', async (t) => {
  const x = leaf([2, 3]);
  const loss = scope(() => x.square().mul(x.exp()).sum()); // intermediate results are gone here
  loss.backward();
  const [grad] = await take(x);
  assertClose(
    t,
    grad as number[],
    [2, 3].map((v) => (2 * v + v * v) * Math.exp(v)),
    1e-6,
    'd/dx x^2 e^x',
  );
  const copy = x.detach();
  const z = copy.add(0);
  z.requiresGrad = true;
  const w = z.mul(z);
  z.dispose();
  w.sum().backward();
  t.ok(z.grad, 'a disposed leaf still gets its gradient');
  z.grad?.dispose();
});

test('where hides what it does not choose, infinities and NaN included', async (t) => {
  const [a, b] = [leaf([1, 1, 1]), leaf([2, 2, 2])];
  F.where(tensor([1, 0, 1]), a, b).backward(tensor([1, Number.POSITIVE_INFINITY, Number.NaN]));
  t.strictSame(await take(a, b), [
    [1, 0, Number.NaN],
    [0, Number.POSITIVE_INFINITY, 0],
  ]);
});

test('ties of maximum and minimum are split, max goes to the first', async (t) => {
  const [a, b] = [leaf([1, 2, 3]), leaf([3, 2, 1])];
  F.maximum(a, b).backward(tensor([2, 4, 6]));
  t.strictSame(await take(a, b), [
    [0, 2, 6],
    [2, 2, 0],
  ]);
  F.minimum(a, b).backward(tensor([2, 4, 6]));
  t.strictSame(await take(a, b), [
    [2, 2, 0],
    [0, 2, 6],
  ]);
  const x = leaf([5, 1, 5, 2, 2, 2], [2, 3]);
  x.max(1, true).backward(tensor([[7], [9]]));
  t.strictSame(await take(x), [[7, 0, 0, 9, 0, 0]]);
});

test('memory falls back to what it was, whether or not backward is called', async (t) => {
  const layers = [new Linear(16, 32), new Linear(32, 4)];
  const x = tensor(numbers(1, 8 * 16), { shape: [8, 16] });
  const forward = (): Tensor =>
    scope(() =>
      layers[1]
        .forward(layers[0].forward(x, { activation: 'geluTanh' }))
        .square()
        .mean(),
    );
  const before = await settledMemory('cpu');
  const parameters = layers.flatMap((layer) => layer.parameters());
  for (let i = 0; i < 3; i++) {
    const loss = forward();
    t.ok(memory('cpu').liveBuffers > before.liveBuffers + 1, 'the graph holds what backward needs');
    loss.backward();
    t.equal(
      memory('cpu').liveBuffers,
      before.liveBuffers + 1 + parameters.length,
      'the loss and one gradient each are left',
    );
    loss.dispose();
    for (const parameter of parameters) parameter.grad?.dispose();
    for (const parameter of parameters) parameter.grad = undefined;
    t.equal(memory('cpu').liveBuffers, before.liveBuffers);
  }
  noGrad(forward).dispose();
  t.equal(memory('cpu').liveBuffers, before.liveBuffers, 'noGrad holds nothing');
  // A part of the graph that gets no gradient is let go, too.
  const [p, q] = [leaf([1]), leaf([2])];
  checkpoint((a, _b) => a.mul(2), p.square(), q.square()).backward();
  await take(p);
  for (const layer of layers) layer.dispose();
});

test('checkpoint() gives the gradients of the plain call, dropout and parameters included', async (t) => {
  const [a, b] = [new Linear(6, 12), new Linear(12, 6)];
  const parameters = [...a.parameters(), ...b.parameters()];
  const x = leaf(numbers(2, 5 * 6), [5, 6]);
  const block = (h: Tensor): Tensor =>
    F.add(b.forward(F.dropout(a.forward(h, { activation: 'silu' }), 0.3)), F.dropout(h, 0.5));
  const run = async (wrap: (h: Tensor) => Tensor): Promise<{ out: number[]; grads: unknown[]; after: unknown }> => {
    manualSeed(11);
    const out = scope(() => wrap(wrap(x.mul(2))).mul(3));
    out.backward(tensor(numbers(3, 30), { shape: [5, 6] }));
    const after = await F.dropout(ones([8]), 0.5).toArray(); // the generator goes on as if nothing was repeated
    return { out: [...((await out.data()) as Float32Array)], grads: await take(x, ...parameters), after };
  };
  const plain = await run(block);
  t.strictSame(await run((h) => checkpoint(block, h)), plain, 'one block at a time');
  t.strictSame(await run((h) => checkpoint((g) => checkpoint(block, g), h)), plain, 'nested');
  t.ok(
    plain.grads.every((grad) => grad),
    'every parameter has a gradient',
  );

  const { liveBuffers } = await settledMemory('cpu');
  const held = (wrap: (h: Tensor) => Tensor): number => {
    const y = scope(() => wrap(x));
    const buffers = memory('cpu').liveBuffers - liveBuffers;
    y.backward(ones([5, 6]));
    y.dispose();
    return buffers;
  };
  const [with_, without] = [held((h) => checkpoint(block, h)), held(block)];
  t.ok(with_ < without, `${with_} buffers held instead of ${without}`);
  await take(x, ...parameters);

  noGrad(() => t.notOk(checkpoint(block, x).requiresGrad));
  a.dispose();
  b.dispose();
});

test('checkpoint() of several inputs, unused ones, constants and the identity', async (t) => {
  const [x, y, unused] = [leaf([2]), leaf([3]), leaf([9])];
  const constant = tensor([5]);
  checkpoint((a, b, c, _d) => a.mul(b).mul(c), x, y, constant, unused).backward();
  t.strictSame(await take(x, y, constant, unused), [[15], [10], undefined, undefined]);
  const same = checkpoint((a) => a, x);
  t.not(same, x);
  same.mul(4).backward();
  t.strictSame(await take(x), [[4]]);
  checkpoint(() => y, x).backward();
  t.strictSame(await take(x, y), [undefined, [1]], 'a leaf from outside');
  const error = new RangeError('from inside');
  t.throws(
    () =>
      checkpoint(() => {
        throw error;
      }, x),
    error,
  );
});

test('a long chain needs no recursion', async (t) => {
  const x = leaf([1]);
  let y = x.add(0);
  for (let i = 0; i < 20_000; i++) y = scope(() => y.add(1));
  y.backward();
  t.strictSame(await take(x), [[1]]);
});
