/**
 * 3x3 convolutions of wide layers, which the CPU computes from tiles with fewer products (native/cpu/winograd.h): uneven padding, bias and
 * residual at the tiles' ragged ends, and how the error compares with that of a plain f32 sum.
 */
import t from 'tap';
import '../../lib/autograd.js';
import * as F from '../../lib/nn/functional.js';
import { scope } from '../../lib/scope.js';
import { forEachDevice, numbers, toTensor } from '../helpers.js';
import { checkOp, type OpCase } from './check.js';
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
