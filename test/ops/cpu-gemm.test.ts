/**
 * The CPU's matrix products against sums in double precision: f32 and bf16 in every transposition, panels of both heights, tails in every
 * dimension, several blocks and splits of k, lines that lie a multiple of 4 KB apart, and every part of the epilogue.
 */
import t from 'tap';
import { setDefaultDevice } from '../../lib/device.js';
import type { DType } from '../../lib/dtype.js';
import { native } from '../../lib/native.js';
import { unaryKinds } from '../../lib/ops/elementwise.js';
import { scope } from '../../lib/scope.js';
import { Tensor } from '../../lib/tensor.js';
import { testDevices } from '../helpers.js';
import { normError, random } from './lowp.js';
import * as reference from './reference.js';

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const silu = (x: number): number => x * sigmoid(x);
const siluSlope = (x: number): number => sigmoid(x) * (1 + x * (1 - sigmoid(x)));

interface Case {
  m: number;
  n: number;
  k: number;
  batch?: number;
  transA: boolean;
  transB: boolean;
  ends?: 'bias' | 'activated' | 'gate' | 'all';
}

const cases: Case[] = [];
for (const transA of [false, true]) {
  for (const transB of [false, true]) {
    const how = { transA, transB };
    cases.push({ m: 27, n: 33, k: 401, ends: 'all', ...how });
    cases.push({ m: 15, n: 70, k: 37, batch: 3, ends: 'gate', ...how });
    cases.push({ m: 30, n: 96, k: 1024, ends: 'activated', ...how });
    cases.push({ m: 6, n: 16, k: 3001, ends: 'bias', ...how }); // splits of k
    cases.push({ m: 100, n: 64, k: 384, ...how });
    cases.push({ m: 1, n: 130, k: 77, ends: 'all', ...how });
    if (transA)
      cases.push({ m: 1024, n: 37, k: 45, batch: 2, ends: 'all', ...how }, { m: 512, n: 1030, k: 33, ...how }); // packed
    cases.push({ m: 5, n: 9, k: 1, ...how }, { m: 3, n: 4, k: 0, ends: 'bias', ...how });
  }
}

/** The operand's types, the type of y and the residual, and the error that its rounding and the sums allow. */
const types: [DType, DType, number][] = [
  ['f32', 'f32', 2e-6],
  ['bf16', 'bf16', 2.5e-3],
  ['bf16', 'f32', 2e-6],
];

for (const device of testDevices().filter((name) => name.startsWith('cpu'))) {
  for (const [type, out, tolerance] of types) {
    t.test(`${device} ${type} -> ${out}`, async (t) => {
      setDefaultDevice(device);
      for (const { m, n, k, batch = 1, transA, transB, ends } of cases) {
        await scope(async () => {
          const a = random(1, transA ? [batch, k, m] : [batch, m, k], type);
          const b = random(2, transB ? [batch, n, k] : [batch, k, n], type);
          const bias = ends && ends !== 'gate' ? random(3, [n], 'f32') : undefined;
          const gate = ends === 'gate' || ends === 'all' ? random(4, [batch, m, n], type) : undefined;
          const residual = ends === 'activated' || ends === 'all' ? random(5, [batch, m, n], out) : undefined;
          const active = ends === 'activated' || ends === 'all';
          const pre = active ? Tensor.empty([batch, m, n], type) : undefined;
          const y = random(6, [batch, m, n], out);
          native.ops.gemm(
            a.t.id,
            b.t.id,
            bias?.t.id ?? 0,
            gate?.t.id ?? 0,
            residual?.t.id ?? 0,
            y.t.id,
            pre?.id ?? 0,
            batch,
            m,
            n,
            k,
            transA ? 1 : 0,
            transB ? 1 : 0,
            active ? unaryKinds.silu : -1,
            gate ? unaryKinds.silu : -1,
            ends === 'all' ? 1 : 0,
          );
          const [sums, expected] = [new Float64Array(batch * m * n), new Float64Array(batch * m * n)];
          for (let z = 0; z < batch; z++) {
            const [x, w] = [a.values.slice(z * m * k, (z + 1) * m * k), b.values.slice(z * k * n, (z + 1) * k * n)];
            const left = transA ? reference.transpose(x, k, m) : x;
            sums.set(reference.matmul(left, transB ? reference.transpose(w, n, k) : w, m, k, n), z * m * n);
          }
          for (let i = 0; i < sums.length; i++) {
            sums[i] += bias?.values[i % n] ?? 0;
            expected[i] = (active ? silu(sums[i]) : sums[i]) * (gate ? siluSlope(gate.values[i]) : 1);
            expected[i] += (residual?.values[i] ?? 0) + (ends === 'all' ? y.values[i] : 0);
          }
          const name = `${batch} x ${m} x ${n} x ${k}${transA ? ' a^T' : ''}${transB ? ' b^T' : ''} ${ends ?? ''}`;
          const error = normError(await y.t.data(), expected);
          t.ok(error <= tolerance, `${name}: ${error.toExponential(1)} <= ${tolerance}`);
          if (!pre) return;
          const preError = normError(await pre.data(), sums);
          t.ok(preError <= (type === 'f32' ? 2e-6 : 2.5e-3), `${name}: pre ${preError.toExponential(1)}`);
        });
      }
    });
  }
}
