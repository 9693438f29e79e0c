/**
 * The matrix products of a DiffiT-XL block, forward and backward, with what each ends in: the sizes for which a GPU has kernels of
 * CUTLASS's (native/cuda/gemm_tuning.cuh; DIFFIT_GEMM_TILE picks one). Some rows of each are compared with sums in double
 * precision. The emulator gets small ones of the same kind.
 */
import t from 'tap';
import { setDefaultDevice } from '../../lib/device.js';
import type { DType } from '../../lib/dtype.js';
import { native } from '../../lib/native.js';
import { unaryKinds } from '../../lib/ops/elementwise.js';
import { scope } from '../../lib/scope.js';
import { Tensor } from '../../lib/tensor.js';
import { device, normError, random, rounding } from './lowp.js';

t.before(() => setDefaultDevice(device));
const emulated = device === 'cuda-emulated';
const [tokens, width, hidden, long] = emulated ? [48, 72, 136, 1088] : [2048, 1152, 4608, 65536];

const sigmoid = (x: number): number => 1 / (1 + Math.exp(-x));
const inner = (x: number): number => 2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3);
const gelu = (x: number): number => x * sigmoid(inner(x));
const geluSlope = (x: number): number => {
  const s = sigmoid(inner(x));
  return s + x * s * (1 - s) * 2 * Math.sqrt(2 / Math.PI) * (1 + 3 * 0.044715 * x ** 2);
};

interface Case {
  name: string;
  m: number;
  n: number;
  k: number;
  batch?: number;
  transA?: boolean;
  transB?: boolean;
  bias?: boolean;
  gelu?: boolean;
  pre?: boolean;
  gate?: boolean;
  residual?: DType;
  /** The residual is y itself. */
  inPlace?: boolean;
  accumulate?: boolean;
  out?: DType;
}
const forward = { transB: true, bias: true };
const cases: Case[] = [
  { name: 'qkv', m: tokens, n: 3 * width, k: width, ...forward },
  { name: 'fc1, inference', m: tokens, n: hidden, k: width, ...forward, gelu: true },
  { name: 'fc1, training', m: tokens, n: hidden, k: width, ...forward, gelu: true, pre: true },
  { name: 'fc2', m: tokens, n: width, k: hidden, ...forward, residual: 'f32', out: 'f32' },
  { name: 'fc2 in place', m: tokens, n: width, k: hidden, ...forward, residual: 'f32', inPlace: true, out: 'f32' },
  { name: 'fc2, low residual', m: tokens, n: width, k: hidden, ...forward, residual: 'bf16' },
  { name: 'without a bias', m: tokens, n: width, k: width, transB: true },
  { name: 'rows left over', m: tokens - 7, n: width + 8, k: width + 8, ...forward },
  { name: 'dgrad', m: tokens, n: width, k: hidden },
  { name: 'dgrad through a gate', m: tokens, n: hidden, k: width, gate: true },
  { name: 'dgrad onto y', m: tokens, n: width, k: width, accumulate: true },
  { name: 'wgrad', m: hidden, n: width, k: tokens, transA: true, out: 'f32' },
  { name: 'wgrad of a long batch', m: width, n: width, k: long, transA: true, out: 'f32' },
  { name: 'wgrad, tokens left over', m: width, n: width, k: tokens - 5, transA: true, out: 'f32' },
  { name: 'a batch', m: tokens / 2, n: width, k: width, batch: 3 },
];

/** Every row of which `count` are checked, the last one included. */
const sample = (m: number, count: number): number[] =>
  Array.from({ length: Math.min(count, m) }, (_, i) => m - 1 - Math.floor((i * m) / Math.min(count, m)));

for (const type of ['bf16', 'f16'] as const) {
  for (const c of cases) {
    t.test(`${type} ${c.name}`, (t) =>
      scope(async () => {
        const { m, n, k, batch = 1, transA, transB, out = type } = c;
        const a = random(1, transA ? [batch, k, m] : [batch, m, k], type);
        const b = random(2, transB ? [batch, n, k] : [batch, k, n], type);
        const residualType = c.residual === 'bf16' ? type : c.residual;
        const bias = c.bias ? random(3, [n], 'f32') : undefined;
        const gate = c.gate ? random(4, [batch, m, n], type) : undefined;
        const residual = residualType && random(5, [batch, m, n], residualType);
        const before = random(6, [batch, m, n], out);
        const y = c.inPlace && residual ? residual.t : before.t;
        const pre = c.pre ? Tensor.empty([batch, m, n], type) : undefined;
        native.ops.gemm(
          a.t.id,
          b.t.id,
          bias?.t.id ?? 0,
          gate?.t.id ?? 0,
          residual?.t.id ?? 0,
          y.id,
          pre?.id ?? 0,
          batch,
          m,
          n,
          k,
          transA ? 1 : 0,
          transB ? 1 : 0,
          c.gelu ? unaryKinds.geluTanh : -1,
          c.gate ? unaryKinds.geluTanh : -1,
          c.accumulate ? 1 : 0,
        );
        const [found, foundPre] = [await y.data(), await pre?.data()];
        const [actual, expected, actualPre, expectedPre]: number[][] = [[], [], [], []];
        for (let z = 0; z < batch; z++) {
          for (const row of sample(m, k > 10000 ? 6 : 24)) {
            const sums = new Float64Array(n);
            for (let l = 0; l < k; l++) {
              const v = a.values[z * m * k + (transA ? l * m + row : row * k + l)];
              const from = z * n * k + (transB ? l : l * n);
              for (let j = 0; j < n; j++) sums[j] += v * b.values[from + j * (transB ? k : 1)];
            }
            for (let j = 0; j < n; j++) {
              const at = (z * m + row) * n + j;
              const sum = sums[j] + (bias?.values[j] ?? 0);
              actualPre.push(Number(foundPre?.[at] ?? 0));
              expectedPre.push(pre ? sum : 0);
              actual.push(Number(found[at]));
              expected.push(
                (c.gelu ? gelu(sum) : sum) * (gate ? geluSlope(gate.values[at]) : 1) +
                  (residual?.values[at] ?? 0) +
                  (c.accumulate ? before.values[at] : 0),
              );
            }
          }
        }
        const error = normError(actual, expected);
        t.ok(error <= rounding[out], `y: error ${error.toExponential(1)} <= ${rounding[out]}`);
        const preError = normError(actualPre, expectedPre);
        if (pre) t.ok(preError <= rounding[type], `pre: error ${preError.toExponential(1)} <= ${rounding[type]}`);
      }),
    );
  }
}
