/**
 * 3x3 convolutions of wide layers, which the CPU computes from tiles with fewer products (native/cpu/winograd.h): uneven padding, bias and
 * residual at the tiles' ragged ends, and how the error compares with that of a plain f32 sum.
 */
import t from 'tap';
import '../../lib/autograd.js';
import { native } from '../../lib/native.js';
import * as F from '../../lib/nn/functional.js';
import { scope } from '../../lib/scope.js';
import { Tensor } from '../../lib/tensor.js';
import { forEachDevice, numbers, testDevices, toTensor } from '../helpers.js';
import { checkOp, type OpCase } from './check.js';
import { normError, rounded } from './lowp.js';
import * as reference from './reference.js';

/** Columns of zeros around images [b, h, w, c], and what is left without them. */
function pad(x: Float32Array, [b, h, w, c]: number[], [top, right, bottom, left]: number[]): Float32Array {
  const [ph, pw] = [h + top + bottom, w + left + right];
  const y = new Float32Array(b * ph * pw * c);
  for (let row = 0; row < b * h; row++) {
    const to = (Math.floor(row / h) * ph + (row % h) + top) * pw + left;
    y.set(x.subarray(row * w * c, (row + 1) * w * c), to * c);
  }
  return y;
}
function crop(y: Float64Array, [b, h, w, c]: number[], [top, right, bottom, left]: number[]): Float64Array {
  const [ph, pw] = [h + top + bottom, w + left + right];
  const x = new Float64Array(b * h * w * c);
  for (let row = 0; row < b * h; row++) {
    const from = (Math.floor(row / h) * ph + (row % h) + top) * pw + left;
    x.set(y.subarray(from * c, (from + w) * c), row * w * c);
  }
  return x;
}

for (const [b, h, w, i, o, padding] of [
  [2, 21, 18, 128, 136, [0, 1, 2, 3]],
  [3, 14, 19, 40, 70, [2, 0, 1, 1]],
] as [number, number, number, number, number, [number, number, number, number]][]) {
  const [top, right, bottom, left] = padding;
  const around = { b, h: h + top + bottom, w: w + left + right, i, o, k: 3, stride: 1, pad: 0 };
  const shape = [b, around.h - 2, around.w - 2, o];
  const count = shape.reduce((n, d) => n * d, 1);
  const data = {
    x: numbers(1, b * h * w * i),
    weight: numbers(2, o * 9 * i),
    bias: numbers(3, o),
    residual: numbers(4, count),
  };
  const dout = numbers(5, count);
  const { y, dx, dw } = reference.conv2d(pad(data.x, [b, h, w, i], padding), data.weight, around, dout);
  const x = { shape: [b, h, w, i], data: data.x };
  const weight = { shape: [o, 3, 3, i], data: data.weight };
  const c: OpCase = {
    name: `padding ${padding} of ${i} -> ${o} channels, bias and residual`,
    inputs: { x, weight, bias: { shape: [o], data: data.bias }, residual: { shape, data: data.residual } },
    run: (v) => F.conv2d(v.x, v.weight, v.bias, { padding, residual: v.residual }),
    out: { shape, data: y.map((v, at) => v + data.bias[at % o] + data.residual[at]) },
    dout: { shape, data: dout },
    // Sums of over a thousand terms: measured at most 1.6e-6 (emulator), 1.3e-6 (CPU); f32 convolutions of such data by PyTorch are 1.2e-6 to 2.2e-6 off.
    tolerance: { out: 2e-6, grad: 2e-6 },
    grads: {
      x: { shape: x.shape, data: crop(dx, x.shape, padding) },
      weight: { shape: weight.shape, data: dw },
      residual: { shape, data: dout },
    },
  };
  t.test(c.name, (t) => forEachDevice(t, (t, device) => checkOp(t, device, c)));
}

t.test('no less exact than adding up in f32', (t) =>
  forEachDevice(t, (t, device) =>
    scope(async () => {
      const [b, side, i, o] = [2, 24, 256, 128];
      const [x, weight] = [numbers(1, b * side * side * i), numbers(2, o * 9 * i)];
      const tensors = [
        toTensor({ shape: [b, side, side, i], data: x }, { device }),
        toTensor({ shape: [o, 3, 3, i], data: weight }, { device }),
      ];
      const y = await F.conv2d(tensors[0], tensors[1], undefined, { padding: 1 }).data();
      let [found, plain] = [0, 0];
      for (let pixel = 0; pixel < 200; pixel++) {
        const [item, row, column] = [pixel % b, 1 + ((pixel * 7) % (side - 2)), 1 + ((pixel * 5) % (side - 2))];
        const c = (pixel * 11) % o;
        let [exact, sum] = [0, 0];
        for (let tap = 0; tap < 9; tap++) {
          const from = ((item * side + row + Math.floor(tap / 3) - 1) * side + column + (tap % 3) - 1) * i;
          for (let l = 0; l < i; l++) {
            const product = x[from + l] * weight[(c * 9 + tap) * i + l];
            exact += product;
            sum = Math.fround(sum + product);
          }
        }
        found += (Number(y[((item * side + row) * side + column) * o + c]) - exact) ** 2;
        plain += (sum - exact) ** 2;
      }
      t.ok(found <= 1.3 ** 2 * plain, `error ${Math.sqrt(found / plain).toFixed(2)} of that of a sum in f32`);
    }),
  ),
);

// Both forms and the implicit product, of bf16 and of images far from zero: against sums in double precision.
for (const [name, dtype, mean, sizes] of [
  ['F(4 x 4), bf16', 'bf16', 0, { b: 2, h: 24, w: 24, i: 128, o: 128, k: 3, stride: 1, pad: 1 }],
  ['F(4 x 4), mean 100', 'f32', 100, { b: 2, h: 24, w: 24, i: 128, o: 128, k: 3, stride: 1, pad: 1 }],
  ['F(2 x 2), bf16', 'bf16', 0, { b: 3, h: 14, w: 19, i: 40, o: 70, k: 3, stride: 1, pad: 1 }],
  ['stride 2, bf16', 'bf16', 0, { b: 2, h: 9, w: 11, i: 40, o: 38, k: 3, stride: 2, pad: 1 }],
  ['1 x 1, bf16', 'bf16', 0, { b: 2, h: 9, w: 7, i: 40, o: 70, k: 1, stride: 1, pad: 0 }],
  ['three channels, bf16', 'bf16', 0, { b: 2, h: 9, w: 7, i: 3, o: 70, k: 3, stride: 1, pad: 1 }],
  ['to three channels, bf16', 'bf16', 0, { b: 2, h: 9, w: 7, i: 70, o: 3, k: 3, stride: 1, pad: 1 }],
] as const) {
  t.test(`exact sums: ${name}`, async (t) => {
    const { b, h, w, i, o, k, stride, pad: padding } = sizes;
    const [oh, ow] = [h, w].map((n) => Math.floor((n + 2 * padding - k) / stride) + 1);
    const made = (seed: number, shape: number[], shift: number) => {
      const raw = numbers(
        seed,
        shape.reduce((n, d) => n * d, 1),
      ).map((v) => v + shift);
      return { shape, data: Float32Array.from(rounded(raw, dtype)) };
    };
    const [x, weight, dy] = [made(1, [b, h, w, i], mean), made(2, [o, k, k, i], 0), made(3, [b, oh, ow, o], mean)];
    const expected = reference.conv2d(x.data, weight.data, sizes, dy.data);
    for (const device of testDevices().filter((name) => name.startsWith('cpu'))) {
      await scope(async () => {
        const [tx, tw, tdy] = [x, weight, dy].map((v) => toTensor(v, { device }).to(dtype));
        const [y, dx, dw] = [dy, x, weight].map(({ shape }) => Tensor.empty(shape, dtype, device));
        native.ops.conv2d(tx.id, tw.id, 0, 0, y.id, stride, padding, padding);
        native.ops.conv2d_dgrad(tdy.id, tw.id, dx.id, stride, padding, padding);
        native.ops.conv2d_wgrad(tx.id, tdy.id, dw.id, stride, padding, padding);
        for (const [what, found, exact] of [
          ['y', y, expected.y],
          ['dx', dx, expected.dx],
          ['dw', dw, expected.dw],
        ] as const) {
          const data = (await found.data()) as Float32Array;
          if (dtype === 'bf16') {
            const off = normError(data, exact);
            t.ok(off <= 2.5e-3, `${device}: ${what}: ${off.toExponential(1)} <= 2.5e-3`);
          } else {
            let [off, most] = [0, 0];
            for (let at = 0; at < exact.length; at++) {
              off = Math.max(off, Math.abs(data[at] - exact[at]));
              most = Math.max(most, Math.abs(exact[at]));
            }
            t.ok(off <= 1e-5 * most, `${device}: ${what}: ${(off / most).toExponential(1)} of the largest number`);
          }
        }
      });
    }
  });
}
