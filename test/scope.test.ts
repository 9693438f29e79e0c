/** Scopes: what they free, what survives, across awaits, errors and concurrent tasks. */
import t from 'tap';
import '../lib/autograd.js';
import { defaultDevice, memory } from '../lib/device.js';
import { autocast, autocastDType, gradEnabled, keep, noGrad, scope, withGrad } from '../lib/scope.js';
import { ones, type Tensor, zeros } from '../lib/tensor.js';

const live = (): number => memory(defaultDevice()).liveBuffers;
const pause = (ms = 0): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

t.test('a scope frees what it does not return', async (t) => {
  const before = live();
  const kept: Tensor[] = [];
  const y = scope(() => {
    const x = ones([4]);
    kept.push(x);
    return x.add(1).mul(2);
  });
  t.ok(kept[0].isDisposed, 'an intermediate result is gone');
  t.equal(live(), before + 1);
  t.strictSame(await y.toArray(), [4, 4, 4, 4]);
  y.dispose();
  t.equal(live(), before);
  t.equal(
    scope(() => 5),
    5,
    'any value passes through',
  );
  t.equal(
    scope(() => undefined),
    undefined,
  );
});

t.test('tensors in arrays, plain objects and Maps survive, however deep', async (t) => {
  const before = live();
  const result = scope(() => {
    const shared = ones([1]);
    void ones([1]);
    return {
      list: [ones([2]), { deep: ones([3]) }],
      map: new Map([['a', ones([4])]]),
      shared,
      again: shared,
      none: null,
      text: 'x',
    };
  });
  t.equal(live(), before + 4);
  t.strictSame(await (result.list[1] as { deep: Tensor }).deep.toArray(), [1, 1, 1]);
  t.strictSame(await result.map.get('a')?.toArray(), [1, 1, 1, 1]);
  for (const tensor of [
    result.list[0] as Tensor,
    (result.list[1] as { deep: Tensor }).deep,
    result.map.get('a') as Tensor,
    result.shared,
  ]) {
    tensor.dispose();
  }
  t.equal(live(), before);
});

t.test('a nested scope hands its result to the scope around it', async (t) => {
  const before = live();
  let inner: Tensor | undefined;
  scope(() => {
    inner = scope(() => ones([2]).add(ones([2])));
    t.notOk(inner.isDisposed);
    t.equal(live(), before + 1);
  });
  t.ok(inner?.isDisposed);
  t.equal(live(), before);
  const outside = ones([1]);
  scope(() => {
    scope(() => outside);
    scope(() => [outside]);
  });
  t.notOk(outside.isDisposed, 'a tensor from outside is not adopted by being returned');
  scope(() => outside.add(1).dispose());
  outside.dispose();
  t.equal(live(), before);
});

t.test('an async scope ends when its promise settles', async (t) => {
  const before = live();
  let middle: Tensor | undefined;
  const y = await scope(async () => {
    const x = ones([2]);
    await pause();
    middle = x.add(1);
    t.strictSame(await middle.data(), Float32Array.of(2, 2));
    t.notOk(x.isDisposed, 'alive after an await');
    return { y: middle.mul(3) };
  });
  t.ok(middle?.isDisposed);
  t.equal(live(), before + 1);
  t.strictSame(await y.y.toArray(), [6, 6]);
  y.y.dispose();
  t.equal(live(), before);
});

t.test('concurrent scopes do not see each other', async (t) => {
  const before = live();
  const task = (value: number, rounds: number): Promise<Tensor> =>
    scope(async () => {
      let sum = zeros([3]);
      for (let i = 0; i < rounds; i++) {
        sum = sum.add(value);
        await pause(value);
        scope(() => sum.mul(2));
      }
      return sum;
    });
  const [a, b, c] = await Promise.all([task(1, 8), task(2, 2), task(0, 5)]);
  t.equal(live(), before + 3, 'each task keeps its result alone');
  t.strictSame(
    [await a.toArray(), await b.toArray(), await c.toArray()],
    [
      [8, 8, 8],
      [4, 4, 4],
      [0, 0, 0],
    ],
  );
  for (const tensor of [a, b, c]) tensor.dispose();
  t.equal(live(), before);
});

t.test('an exception frees everything and passes through', async (t) => {
  const before = live();
  const boom = new Error('boom');
  t.throws(
    () =>
      scope(() => {
        scope(() => ones([1]));
        ones([1]);
        throw boom;
      }),
    boom,
  );
  t.equal(live(), before);
  await t.rejects(
    scope(async () => {
      ones([1]);
      await pause();
      ones([1]);
      throw boom;
    }),
    boom,
  );
  t.equal(live(), before);
});

t.test('keep takes a tensor out of its scope', async (t) => {
  const before = live();
  const out: Tensor[] = [];
  scope(() => {
    out.push(keep(ones([2])), ...keep([ones([3]), ones([4])]));
    scope(() => out.push(keep(ones([5]))));
  });
  t.equal(live(), before + 4);
  t.ok(out.every((tensor) => !tensor.isDisposed));
  for (const tensor of out) tensor.dispose();
  const plain = ones([1]);
  t.equal(keep(plain), plain, 'outside a scope it does nothing');
  plain.dispose();
  t.equal(live(), before);
});

t.test('noGrad switches recording off, across awaits, and only for its own task', async (t) => {
  const x = ones([2], { requiresGrad: true });
  t.ok(gradEnabled());
  t.ok(x.mul(2).requiresGrad);
  t.notOk(noGrad(() => x.mul(2)).requiresGrad);
  const [off, on] = await Promise.all([
    noGrad(async () => {
      await pause(2);
      t.notOk(gradEnabled());
      await pause(2);
      return { y: x.mul(2), inner: withGrad(true, () => x.mul(2)), nested: scope(() => x.mul(2)) };
    }),
    (async () => {
      await pause(3);
      return x.mul(2);
    })(),
  ]);
  t.notOk(off.y.requiresGrad);
  t.notOk(off.nested.requiresGrad, 'a scope inside keeps it off');
  t.ok(off.inner.requiresGrad, 'withGrad(true) inside switches it on');
  t.ok(on.requiresGrad, 'another task is not affected');
  t.ok(gradEnabled());
  t.throws(() =>
    noGrad(() => {
      throw new Error('x');
    }),
  );
  t.ok(gradEnabled(), 'also after an exception');
  const before = live();
  scope(() => noGrad(() => void ones([1])));
  t.equal(live(), before, 'tensors made in noGrad belong to the scope around it');
});

t.test('autocast follows the call, as noGrad does, and knows its dtypes', async (t) => {
  t.equal(autocastDType(), undefined);
  await autocast('bf16', async () => {
    await pause();
    t.equal(autocastDType(), 'bf16');
    t.equal(
      scope(() => noGrad(() => autocastDType())),
      'bf16',
    );
    t.equal(
      autocast('f32', () => autocastDType()),
      undefined,
    );
  });
  t.equal(autocastDType(), undefined);
  t.throws(() => autocast('int8' as 'bf16', () => 1), {
    name: 'OptionError',
    message: /Unknown autocast dtype "int8".*bf16, f16, f32/,
  });
});
