/** Matrix products in bf16 and f16 on tensor cores, against sums in double precision over the rounded operands. */
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import type { DType } from '../../lib/dtype.js';
import { native } from '../../lib/native.js';
import { unaryKinds } from '../../lib/ops/elementwise.js';
import { linear, matmul } from '../../lib/ops/linear.js';
import { autocast, noGrad, scope } from '../../lib/scope.js';
import { Tensor, tensor } from '../../lib/tensor.js';
import { withoutLeaks } from '../helpers.js';
import { assertNear, device, random, rounded, rounding } from './lowp.js';
import * as reference from './reference.js';

t.before(() => setDefaultDevice(device));
const lows = ['bf16', 'f16'] as const;

const gelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
const siluSlope = (x: number): number => {
  const s = 1 / (1 + Math.exp(-x));
  return s + x * s * (1 - s);
};

interface Case {
  m: number;
  n: number;
  k: number;
  batch?: number;
  transA?: boolean;
  transB?: boolean;
  /** One a, or one b, for the whole batch. */
  shared?: 'a' | 'b';
  type?: DType;
  out?: DType;
}

/** Operands of a case on the device, and the product in double precision. */
function operands({ m, n, k, batch = 1, transA, transB, shared, type = 'bf16' }: Case) {
  const [batchA, batchB] = [shared === 'a' ? 1 : batch, shared === 'b' ? 1 : batch];
  const a = random(1, transA ? [batchA, k, m] : [batchA, m, k], type);
  const b = random(2, transB ? [batchB, n, k] : [batchB, k, n], type);
  const product = new Float64Array(batch * m * n);
  for (let z = 0; z < batch; z++) {
    const [x, y] = [a.values.subarray((z % batchA) * m * k), b.values.subarray((z % batchB) * k * n)];
    const left = transA ? reference.transpose(x.slice(0, m * k), k, m) : x;
    const right = transB ? reference.transpose(y.slice(0, n * k), n, k) : y;
    product.set(reference.matmul(left, right, m, k, n), z * m * n);
  }
  return { a: a.t, b: b.t, product };
}

interface Ends {
  bias?: Tensor;
  gate?: Tensor;
  residual?: Tensor;
  pre?: Tensor;
  activation?: number;
  gateKind?: number;
  accumulate?: boolean;
}

/** The operation itself: lib/ops asks for less than it can do. */
function run(y: Tensor, a: Tensor, b: Tensor, c: Case, e: Ends = {}): Tensor {
  native.ops.gemm(
    a.id,
    b.id,
    e.bias?.id ?? 0,
    e.gate?.id ?? 0,
    e.residual?.id ?? 0,
    y.id,
    e.pre?.id ?? 0,
    c.batch ?? 1,
    c.m,
    c.n,
    c.k,
    c.transA ? 1 : 0,
    c.transB ? 1 : 0,
    e.activation ?? -1,
    e.gateKind ?? -1,
    e.accumulate ? 1 : 0,
  );
  return y;
}

const nameOf = (c: Case): string =>
  `${c.type ?? 'bf16'} ${c.batch ?? 1} x ${c.m} x ${c.n} x ${c.k}${c.transA ? ' a^T' : ''}${c.transB ? ' b^T' : ''} -> ${c.out}`;

t.test('all transpositions, tails in every dimension, batches, both tiles, pieces of k', (t) =>
  withoutLeaks(t, device, async () => {
    const cases: Case[] = [];
    for (const transA of [false, true]) {
      for (const transB of [false, true]) {
        const how = { transA, transB };
        cases.push({ m: 72, n: 40, k: 72, ...how }); // 16-byte rows, tails everywhere
        cases.push({ m: 33, n: 29, k: 37, type: 'f16', out: 'f32', ...how }); // number by number
        cases.push({ m: 256, n: 264, k: 40, out: 'f32', ...how }); // the large tile
        cases.push({ m: 16, n: 24, k: 1048, type: 'f16', ...how }); // pieces of k
      }
    }
    cases.push({ m: 24, n: 16, k: 64, batch: 3, out: 'f32' });
    cases.push({ m: 24, n: 16, k: 64, batch: 3, transB: true, shared: 'b' });
    cases.push({ m: 24, n: 16, k: 64, batch: 3, transA: true, shared: 'a', type: 'f16' });
    cases.push({ m: 1, n: 1, k: 1 }, { m: 1, n: 200, k: 16, type: 'f16', out: 'bf16' }, { m: 130, n: 1, k: 8 });
    cases.push({ m: 9, n: 7, k: 1100, out: 'f32' }); // pieces, number by number
    cases.push({ m: 5, n: 8, k: 0 });
    for (const c of cases) {
      await scope(async () => {
        const { a, b, product } = operands(c);
        const type = c.out ?? c.type ?? 'bf16';
        const y = run(Tensor.empty([c.batch ?? 1, c.m, c.n], type), a, b, c);
        await assertNear(t, y, product, rounding[type], nameOf({ ...c, out: type }));
      });
    }
  }),
);

t.test('whole numbers come out exactly', async (t) => {
  for (const type of lows) {
    await scope(async () => {
      const [m, n, k] = [72, 48, 96];
      const whole = (seed: number, count: number) =>
        Float32Array.from({ length: count }, (_, i) => ((i * 7 + seed * 3) % 9) - 4);
      const [x, w] = [whole(1, m * k), whole(2, n * k)];
      const expected = reference.matmul(x, reference.transpose(w, n, k), m, k, n);
      const [a, b] = [tensor(x, { shape: [m, k], dtype: type }), tensor(w, { shape: [n, k], dtype: type })];
      const y = run(Tensor.empty([m, n]), a, b, { m, n, k, transB: true });
      t.strictSame(Array.from((await y.data()) as Float32Array), Array.from(expected), type);
    });
  }
});

t.test('bias, pre, activation, gate, residual and accumulation, in every dtype', async (t) => {
  // Eight at a time, one at a time, and after pieces of k have been joined.
  for (const [m, n, k] of [
    [40, 72, 32],
    [19, 21, 24],
    [16, 24, 1048],
  ]) {
    for (const [type, gateType, residualType, preType, out] of [
      ['bf16', 'bf16', 'f32', 'bf16', 'f32'],
      ['f16', 'f32', 'f16', 'f32', 'f16'],
      ['bf16', 'f16', 'bf16', 'f16', 'bf16'],
    ] as const) {
      await scope(async () => {
        const c: Case = { m, n, k, type, transB: true };
        const { a, b, product } = operands(c);
        const bias = random(3, [n], 'f32');
        const gate = random(4, [m, n], gateType);
        const residual = random(5, [m, n], residualType);
        const before = random(6, [m, n], out);
        const pre = Tensor.empty([m, n], preType);
        const y = run(before.t, a, b, c, {
          bias: bias.t,
          gate: gate.t,
          residual: residual.t,
          pre,
          activation: unaryKinds.geluTanh,
          gateKind: unaryKinds.silu,
          accumulate: true,
        });
        const sum = product.map((v, i) => v + bias.values[i % n]);
        const expected = sum.map((v, i) => gelu(v) * siluSlope(gate.values[i]) + residual.values[i] + before.values[i]);
        const name = `${m} x ${n} x ${k} ${type}, gate ${gateType}, residual ${residualType}, y ${out}`;
        await assertNear(t, pre, sum, rounding[preType], `${name}: pre ${preType}`);
        await assertNear(t, y, expected, rounding[out], name);
      });
    }
  }
});

t.test('f32 operands may have any float around them too', async (t) => {
  for (const n of [24, 21]) {
    await scope(async () => {
      const c: Case = { m: 20, n, k: 33, type: 'f32' };
      const { a, b, product } = operands(c);
      const residual = random(5, [20, n], 'bf16');
      const y = run(Tensor.empty([20, n], 'f16'), a, b, c, { residual: residual.t });
      await assertNear(
        t,
        y,
        product.map((v, i) => v + residual.values[i]),
        rounding.f16,
        `n = ${n}`,
      );
    });
  }
});

t.test('the same bits every time, in pieces of k too', (t) =>
  scope(async () => {
    const c: Case = { m: 48, n: 40, k: 2056, transA: true };
    const { a, b } = operands(c);
    const [first, second] = [0, 1].map(() => run(Tensor.empty([48, 40]), a, b, c));
    t.strictSame(await first.bytes(), await second.bytes());
  }),
);

t.test('linear and matmul: dtypes of results', (t) =>
  withoutLeaks(t, device, async () => {
    for (const low of lows) {
      const x = random(1, [3, 5, 16], 'f32').t;
      const w = random(2, [8, 16], 'f32').t;
      const wide = random(3, [3, 5, 8], 'f32').t;
      t.equal(autocast(low, () => linear(x, w)).dtype, low);
      t.equal(autocast(low, () => linear(x.to(low), w)).dtype, low);
      t.equal(autocast(low, () => linear(x, w, undefined, { residual: wide })).dtype, 'f32');
      t.equal(autocast(low, () => linear(x, w, undefined, { residual: wide.to(low) })).dtype, low);
      t.equal(autocast(low, () => autocast('f32', () => linear(x, w))).dtype, 'f32');
      t.equal(autocast(low, () => matmul(x, w, { transB: true })).dtype, low);
      t.equal(linear(x.to(low), w.to(low)).dtype, low);
      t.equal(linear(x.to(low), w.to(low), undefined, { residual: wide }).dtype, 'f32');
      t.equal(noGrad(() => linear(x, w.to('bf16'))).dtype, 'f32');
      t.throws(() => linear(x.to(low), w), {
        name: 'DTypeError',
        message: /weight is f32, expected (bf16|f16) as x is/,
      });
      t.throws(() => matmul(x, w.to(low)), { name: 'DTypeError', message: /b is (bf16|f16), expected f32 as a is/ });
    }
  }),
);

t.test('gradients of linear under autocast', async (t) => {
  const [m, n, k] = [40, 24, 32];
  for (const low of lows) {
    for (const withResidual of [true, false]) {
      await withoutLeaks(t, device, async () => {
        const leaf = (seed: number, shape: number[]) => {
          const { t: made, values } = random(seed, shape, 'f32');
          made.requiresGrad = true;
          return { t: made, values };
        };
        const [x, w, bias, residual] = [leaf(1, [m, k]), leaf(2, [n, k]), leaf(3, [n]), leaf(4, [m, n])];
        const y = autocast(low, () => linear(x.t, w.t, bias.t, withResidual ? { residual: residual.t } : {}));
        const g = random(5, [m, n], y.dtype);
        y.backward(g.t);
        const [lowX, lowW, lowG] = [x, w, g].map((v) => rounded(v.values, low));
        const product = reference.matmul(lowX, reference.transpose(lowW, n, k), m, k, n);
        const out = product.map((v, i) => v + bias.values[i % n] + (withResidual ? residual.values[i] : 0));
        const name = `${low}${withResidual ? ' with an f32 residual' : ''}`;
        await assertNear(t, y, out, rounding[y.dtype], `${name}: y`);
        const dw = reference.matmul(reference.transpose(lowG, m, n), lowX, n, m, k);
        await assertNear(t, x.t.grad, reference.matmul(lowG, lowW, m, n, k), rounding[low], `${name}: dx`);
        await assertNear(t, w.t.grad, dw, rounding.f32, `${name}: dw`);
        t.strictSame([x.t.grad?.dtype, w.t.grad?.dtype, bias.t.grad?.dtype], ['f32', 'f32', 'f32']);
        if (withResidual) await assertNear(t, residual.t.grad, g.values, 0, `${name}: dresidual`);
        for (const { t: made } of [x, w, bias, residual]) made.grad?.dispose();
      });
    }
  }
});

t.test('gradients of matmul under autocast', async (t) => {
  for (const [transA, transB] of [
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ]) {
    await scope(async () => {
      const [m, n, k] = [16, 24, 40];
      const a = random(1, transA ? [k, m] : [m, k], 'f32');
      const b = random(2, transB ? [n, k] : [k, n], 'f32');
      a.t.requiresGrad = b.t.requiresGrad = true;
      const y = autocast('bf16', () => matmul(a.t, b.t, { transA, transB }));
      const g = random(3, [m, n], 'bf16');
      y.backward(g.t);
      const left = rounded(transA ? reference.transpose(a.values, k, m) : a.values, 'bf16'); // [m, k]
      const right = rounded(transB ? reference.transpose(b.values, n, k) : b.values, 'bf16'); // [k, n]
      const da = reference.matmul(g.values, reference.transpose(right, k, n), m, n, k);
      const db = reference.matmul(reference.transpose(left, m, k), g.values, k, m, n);
      const how = `a${transA ? '^T' : ''} b${transB ? '^T' : ''}`;
      await assertNear(t, y, reference.matmul(left, right, m, k, n), rounding.bf16, how);
      await assertNear(t, a.t.grad, transA ? reference.transpose(da, m, k) : da, rounding.bf16, `${how}: da`);
      await assertNear(t, b.t.grad, transB ? reference.transpose(db, k, n) : db, rounding.bf16, `${how}: db`);
      for (const leaf of [a, b]) leaf.t.grad?.dispose();
    });
  }
});

t.test('gradients through an activation, whose input is kept in the low dtype', async (t) => {
  const [m, n, k] = [24, 40, 16];
  const slope = (x: number): number => (gelu(x + 1e-4) - gelu(x - 1e-4)) / 2e-4;
  for (const low of lows) {
    await withoutLeaks(t, device, async () => {
      const [x, w, bias] = [random(1, [m, k], 'f32'), random(2, [n, k], 'f32'), random(3, [n], 'f32')];
      for (const leaf of [x, w, bias]) leaf.t.requiresGrad = true;
      const y = autocast(low, () => linear(x.t, w.t, bias.t, { activation: 'geluTanh' }));
      const g = random(4, [m, n], low);
      y.backward(g.t);
      const [lowX, lowW] = [rounded(x.values, low), rounded(w.values, low)];
      const pre = reference
        .matmul(lowX, reference.transpose(lowW, n, k), m, k, n)
        .map((v, i) => v + bias.values[i % n]);
      const kept = rounded(pre, low);
      const dpre = rounded(
        kept.map((v, i) => slope(v) * g.values[i]),
        low,
      );
      const db = new Float64Array(n);
      for (const [i, v] of dpre.entries()) db[i % n] += v;
      const dw = reference.matmul(reference.transpose(dpre, m, n), lowX, n, m, k);
      await assertNear(t, y, pre.map(gelu), rounding[low], `${low}: y`);
      await assertNear(t, x.t.grad, reference.matmul(dpre, lowW, m, n, k), rounding[low], `${low}: dx`);
      await assertNear(t, w.t.grad, dw, rounding[low], `${low}: dw`);
      await assertNear(t, bias.t.grad, db, rounding[low], `${low}: dbias`);
      for (const leaf of [x, w, bias]) leaf.t.grad?.dispose();
    });
  }
});
