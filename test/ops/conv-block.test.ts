/**
 * Convolutions as a U-shaped network has them, forward and backward: the sizes for which a Hopper GPU has kernels of CUTLASS's
 * (native/cuda/conv_tuning.cuh; DIFFIT_CONV_TILE picks one). Some pixels, or some outputs' weights, are compared with sums in double
 * precision. The emulator gets small ones of the same kind.
 */
import t from 'tap';
import { setDefaultDevice } from '../../lib/device.js';
import type { DType } from '../../lib/dtype.js';
import { native } from '../../lib/native.js';
import { scope } from '../../lib/scope.js';
import { Tensor } from '../../lib/tensor.js';
import { device, normError, random, rounding } from './lowp.js';

t.before(() => setDefaultDevice(device));
const emulated = device === 'cuda-emulated';
const [b, side, narrow, wide] = emulated ? [2, 6, 64, 72] : [4, 32, 256, 512];

interface Case {
  name: string;
  h: number;
  w: number;
  i: number;
  o: number;
  k: number;
  stride: number;
  /** Top, right, bottom, left. */
  padding: [number, number, number, number];
  residual?: DType;
  bias?: boolean;
}
const same: Pick<Case, 'k' | 'stride' | 'padding'> = { k: 3, stride: 1, padding: [1, 1, 1, 1] };
const square = { h: side, w: side };
const cases: Case[] = [
  { name: '3x3', ...square, i: narrow, o: wide, ...same, bias: true },
  { name: '3x3 onto f32', ...square, i: wide, o: narrow, ...same, bias: true, residual: 'f32' },
  { name: '3x3 onto its like', ...square, i: narrow, o: wide, ...same, residual: 'bf16' },
  { name: 'left over', h: side + 1, w: side - 1, i: narrow + 8, o: wide + 8, ...same },
  { name: 'halved', h: 2 * side, w: 2 * side, i: narrow, o: wide, k: 3, stride: 2, padding: [0, 1, 1, 0], bias: true },
  { name: 'halved, centred', h: 2 * side, w: 2 * side, i: wide, o: narrow, k: 3, stride: 2, padding: [1, 1, 1, 1] },
  { name: 'patches', h: 2 * side, w: 2 * side, i: narrow, o: wide, k: 2, stride: 2, padding: [0, 0, 0, 0] },
  { name: '1x1', ...square, i: wide, o: narrow, k: 1, stride: 1, padding: [0, 0, 0, 0], bias: true, residual: 'f32' },
];

/** Every place of n of which `count` are checked, the last one included. */
const sample = (n: number, count: number): number[] =>
  Array.from({ length: Math.min(count, n) }, (_, i) => n - 1 - Math.floor((i * n) / Math.min(count, n)));

for (const type of ['bf16', 'f16'] as const) {
  for (const c of cases) {
    t.test(`${type} ${c.name}`, (t) =>
      scope(async () => {
        const { h, w, i, o, k, stride } = c;
        const [top, right, bottom, left] = c.padding;
        const [oh, ow] = [h + top + bottom, w + left + right].map((n) => Math.floor((n - k) / stride) + 1);
        const out = c.residual === 'f32' ? 'f32' : type;
        const x = random(1, [b, h, w, i], type);
        const weight = random(2, [o, k, k, i], type);
        const dy = random(3, [b, oh, ow, o], type);
        const bias = c.bias ? random(4, [o], 'f32') : undefined;
        const residual = c.residual && random(5, [b, oh, ow, o], out);
        const y = Tensor.empty([b, oh, ow, o], out);
        const [dx, dw] = [Tensor.empty([b, h, w, i], type), Tensor.empty([o, k, k, i], 'f32')];
        const ids = [bias?.t.id ?? 0, residual?.t.id ?? 0] as const;
        native.ops.conv2d(x.t.id, weight.t.id, ...ids, y.id, stride, top, left);
        native.ops.conv2d_dgrad(dy.t.id, weight.t.id, dx.id, stride, top, left);
        native.ops.conv2d_wgrad(x.t.id, dy.t.id, dw.id, stride, top, left);

        /** Compares rows of `n` numbers of a result with sums that `add` puts together. */
        const compare = async (
          found: Tensor,
          n: number,
          rows: number[],
          add: (row: number, sums: Float64Array) => void,
        ) => {
          const data = await found.data();
          const [actual, expected]: number[][] = [[], []];
          for (const row of rows) {
            const sums = new Float64Array(n);
            add(row, sums);
            for (let at = 0; at < n; at++) {
              actual.push(Number(data[row * n + at]));
              expected.push(sums[at]);
            }
          }
          return normError(actual, expected);
        };
        const taps = sample(k * k, k * k).map((tap) => [Math.floor(tap / k), tap % k]);
        const errors = {
          y: await compare(y, o, sample(b * oh * ow, 24), (row, sums) => {
            const [n, oy, ox] = [Math.floor(row / (oh * ow)), Math.floor(row / ow) % oh, row % ow];
            for (let to = 0; to < o; to++) sums[to] = (bias?.values[to] ?? 0) + (residual?.values[row * o + to] ?? 0);
            for (const [ky, kx] of taps) {
              const [iy, ix] = [oy * stride + ky - top, ox * stride + kx - left];
              if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue;
              for (let to = 0; to < o; to++) {
                const [from, tap] = [((n * h + iy) * w + ix) * i, ((to * k + ky) * k + kx) * i];
                for (let l = 0; l < i; l++) sums[to] += x.values[from + l] * weight.values[tap + l];
              }
            }
          }),
          dx: await compare(dx, i, sample(b * h * w, 24), (row, sums) => {
            const [n, iy, ix] = [Math.floor(row / (h * w)), Math.floor(row / w) % h, row % w];
            for (const [ky, kx] of taps) {
              const [oy, ox] = [(iy + top - ky) / stride, (ix + left - kx) / stride];
              if (!(Number.isInteger(oy) && Number.isInteger(ox) && oy >= 0 && oy < oh && ox >= 0 && ox < ow)) continue;
              for (let to = 0; to < o; to++) {
                const g = dy.values[((n * oh + oy) * ow + ox) * o + to];
                const tap = ((to * k + ky) * k + kx) * i;
                for (let l = 0; l < i; l++) sums[l] += g * weight.values[tap + l];
              }
            }
          }),
          dw: await compare(dw, k * k * i, sample(o, 6), (row, sums) => {
            for (let at = 0; at < b * oh * ow; at++) {
              const [n, oy, ox] = [Math.floor(at / (oh * ow)), Math.floor(at / ow) % oh, at % ow];
              for (const [ky, kx] of taps) {
                const [iy, ix] = [oy * stride + ky - top, ox * stride + kx - left];
                if (iy < 0 || iy >= h || ix < 0 || ix >= w) continue;
                const [from, to] = [((n * h + iy) * w + ix) * i, (ky * k + kx) * i];
                const g = dy.values[at * o + row];
                for (let l = 0; l < i; l++) sums[to + l] += g * x.values[from + l];
              }
            }
          }),
        };
        const limits = { y: rounding[out], dx: rounding[type], dw: rounding.f32 };
        for (const name of ['y', 'dx', 'dw'] as const) {
          t.ok(errors[name] <= limits[name], `${name}: error ${errors[name].toExponential(1)} <= ${limits[name]}`);
        }
      }),
    );
  }
}
