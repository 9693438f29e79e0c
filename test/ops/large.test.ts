/**
 * Sizes that cross the borders of tiles, blocks of depth and threads' chunks, against plain loops in double precision;
 * and the same bits from one thread and from three.
 */
import t from 'tap';
import '../../lib/autograd.js';
import { cpuVariants, type DeviceName, setNumThreads } from '../../lib/device.js';
import * as F from '../../lib/nn/functional.js';
import { scope } from '../../lib/scope.js';
import { type FixtureTensor, forEachDevice, numbers, toTensor } from '../helpers.js';
import { checkOp, type OpCase } from './check.js';
import * as reference from './reference.js';

let seed = 1;
const product = (shape: readonly number[]): number => shape.reduce((n, d) => n * d, 1);
/** New even numbers in [-scale, scale). */
const f32 = (shape: number[], scale = 1): { shape: number[]; data: Float32Array } => ({
  shape,
  data: numbers(seed++, product(shape), scale),
});
const of = (shape: number[], data: Float32Array | Float64Array): FixtureTensor => ({ shape, data });

const cases: OpCase[] = [];

for (const [m, k, n] of [
  [70, 601, 300],
  [1500, 65, 33],
  [3, 300, 2000],
  [257, 1, 129],
  [1, 4099, 1],
]) {
  const [a, b, dout] = [f32([m, k]), f32([k, n]), f32([m, n])];
  const y = reference.matmul(a.data, b.data, m, k, n);
  const da = reference.matmul(dout.data, reference.transpose(b.data, k, n), m, n, k);
  const db = reference.matmul(reference.transpose(a.data, m, k), dout.data, k, m, n);
  const turned = (x: Float32Array | Float64Array, rows: number, columns: number, turn: boolean): FixtureTensor =>
    turn ? of([columns, rows], reference.transpose(x, rows, columns)) : of([rows, columns], x);
  for (const [transA, transB] of [
    [false, false],
    [false, true],
    [true, false],
    [true, true],
  ]) {
    cases.push({
      name: `matmul ${m}x${k}x${n} ${transA ? 't' : 'n'}${transB ? 't' : 'n'}`,
      inputs: { a: turned(a.data, m, k, transA), b: turned(b.data, k, n, transB) },
      run: (x) => F.matmul(x.a, x.b, { transA, transB }),
      out: of([m, n], y),
      dout,
      grads: { a: turned(da, m, k, transA), b: turned(db, k, n, transB) },
    });
  }
}

{
  // A batch of products with one matrix shared on either side.
  const [batch, m, k, n] = [9, 33, 70, 41];
  const [a, b, dout] = [f32([batch, m, k]), f32([k, n]), f32([batch, m, n])];
  const at = (x: Float32Array, i: number): Float32Array =>
    x.subarray((i * x.length) / batch, ((i + 1) * x.length) / batch);
  const y = new Float64Array(batch * m * n);
  const da = new Float64Array(batch * m * k);
  const db = new Float64Array(k * n);
  for (let i = 0; i < batch; i++) {
    y.set(reference.matmul(at(a.data, i), b.data, m, k, n), i * m * n);
    da.set(reference.matmul(at(dout.data, i), reference.transpose(b.data, k, n), m, n, k), i * m * k);
    reference.matmul(reference.transpose(at(a.data, i), m, k), at(dout.data, i), k, m, n).forEach((v, j) => {
      db[j] += v;
    });
  }
  cases.push({
    name: 'matmul batch',
    inputs: { a, b },
    run: (x) => F.matmul(x.a, x.b),
    out: of([batch, m, n], y),
    dout,
    grads: { a: of(a.shape, da), b: of(b.shape, db) },
  });
}

for (const [sizes, name] of [
  [{ b: 2, h: 33, w: 31, i: 20, o: 40, k: 3, stride: 1, pad: 1 }, '3x3'],
  [{ b: 3, h: 15, w: 17, i: 66, o: 70, k: 3, stride: 1, pad: 1 }, '3x3 of wide layers'], // tiles of 2 x 2 (winograd.h)
  [{ b: 2, h: 19, w: 22, i: 130, o: 140, k: 3, stride: 1, pad: 1 }, '3x3 of wider layers'], // of 4 x 4
  [{ b: 2, h: 24, w: 23, i: 129, o: 128, k: 3, stride: 1, pad: 0 }, '3x3 without padding'],
  [{ b: 6, h: 5, w: 3, i: 129, o: 200, k: 3, stride: 1, pad: 2 }, '3x3 with much padding'],
  [{ b: 1, h: 40, w: 37, i: 33, o: 24, k: 3, stride: 2, pad: 1 }, '3x3 stride 2'],
  [{ b: 2, h: 13, w: 11, i: 3, o: 70, k: 3, stride: 1, pad: 1 }, 'of an RGB image'],
  [{ b: 2, h: 13, w: 11, i: 2, o: 65, k: 3, stride: 2, pad: 1 }, 'of two channels, stride 2'],
  [{ b: 1, h: 40, w: 40, i: 70, o: 90, k: 1, stride: 1, pad: 0 }, '1x1'],
  [{ b: 3, h: 16, w: 16, i: 300, o: 3, k: 3, stride: 1, pad: 1 }, '3x3 to an image'],
  [{ b: 5, h: 30, w: 30, i: 1, o: 17, k: 5, stride: 3, pad: 2 }, '5x5 stride 3'],
] as [reference.ConvSizes, string][]) {
  const { b, h, w, i, o, k, stride, pad } = sizes;
  const [x, weight] = [f32([b, h, w, i]), f32([o, k, k, i])];
  const side = (n: number): number => Math.floor((n + 2 * pad - k) / stride) + 1;
  const dout = f32([b, side(h), side(w), o]);
  const { y, dx, dw } = reference.conv2d(x.data, weight.data, sizes, dout.data);
  cases.push({
    name: `conv ${name}`,
    inputs: { x, weight },
    run: (tensors) => F.conv2d(tensors.x, tensors.weight, undefined, { stride, padding: pad }),
    out: of(dout.shape, y),
    dout,
    grads: { x: of(x.shape, dx), weight: of(weight.shape, dw) },
  });
}

for (const [name, shape, groups] of [
  ['layerNorm', [700, 384], 0],
  ['layerNorm narrow', [5000, 7], 0],
  ['groupNorm', [2, 40, 41, 96], 32],
  ['groupNorm one group', [3, 30, 30, 10], 1],
] as [string, number[], number][]) {
  const channels = shape[shape.length - 1];
  const [x, weight, bias, dout] = [f32(shape, 3), f32([channels]), f32([channels]), f32(shape)];
  const perSample = product(shape) / shape[0];
  const setOf = groups
    ? (p: number) => Math.floor(p / perSample) * groups + Math.floor(((p % channels) * groups) / channels)
    : (p: number) => Math.floor(p / channels);
  const eps = 1e-5;
  const r = reference.normalize(x.data, { channels, eps, setOf }, weight.data, bias.data, dout.data);
  cases.push({
    name,
    inputs: { x, weight, bias },
    run: ({ x: values, ...rest }) =>
      groups ? F.groupNorm(values, { groups, eps, ...rest }) : F.layerNorm(values, { eps, ...rest }),
    out: of(shape, r.y),
    dout,
    grads: { x: of(shape, r.dx), weight: of([channels], r.dw), bias: of([channels], r.db) },
  });
}

for (const sizes of [
  { b: 1, h: 20, w: 20, heads: 2, d: 24, wh: 20, ww: 20 },
  { b: 2, h: 1, w: 131, heads: 3, d: 7, wh: 1, ww: 131 },
  { b: 3, h: 32, w: 32, heads: 4, d: 8, wh: 4, ww: 4 },
  { b: 1, h: 32, w: 24, heads: 2, d: 33, wh: 8, ww: 8 },
]) {
  const { b, h, w, heads, d, wh, ww } = sizes;
  const c = heads * d;
  const [qkv, time, table] = [
    f32([b, h, w, 3 * c], 2),
    f32([b, 3 * c], 2),
    f32([(2 * wh - 1) * (2 * ww - 1), heads], 2),
  ];
  const dout = f32([b, h, w, c]);
  const r = reference.attention(qkv.data, time.data, table.data, sizes, dout.data);
  cases.push({
    name: `attention ${Object.values(sizes)}`,
    inputs: { qkv, time, table },
    run: (x) => F.attention(x.qkv, { heads, window: [wh, ww], time: x.time, table: x.table }),
    out: of([b, h, w, c], r.y),
    dout,
    grads: { qkv: of(qkv.shape, r.dqkv), time: of(time.shape, r.dtime), table: of(table.shape, r.dtable) },
  });
}

for (const [shape, axes] of [
  [[3000, 70], 0],
  [[70, 3000], 1],
  [[100_003], 0],
  [[40, 50, 60], 1],
  [
    [40, 50, 60],
    [0, 2],
  ],
] as [number[], number | number[]][]) {
  const x = { shape, data: numbers(seed++, product(shape)).map((v) => v + 1) }; // no cancellation: a sum of the wrong terms shows
  const away = [axes].flat();
  const kept = shape.filter((_, i) => !away.includes(i));
  /** Position in the result of position p of x. */
  const to = (p: number): number => {
    let [result, step, rest] = [0, 1, p];
    for (let i = shape.length - 1; i >= 0; i--) {
      if (!away.includes(i)) {
        result += (rest % shape[i]) * step;
        step *= shape[i];
      }
      rest = Math.floor(rest / shape[i]);
    }
    return result;
  };
  const dout = f32(kept);
  const sums = new Float64Array(product(kept));
  x.data.forEach((v, p) => {
    sums[to(p)] += v;
  });
  const gradient = Float64Array.from(x.data, (_, p) => dout.data[to(p)]);
  cases.push({
    name: `sum of [${shape}] over ${axes}`,
    inputs: { x },
    run: (i) => F.sum(i.x, axes),
    out: of(kept, sums),
    dout,
    grads: { x: of(shape, gradient) },
  });
  const n = product(shape) / product(kept);
  cases.push({
    name: `mean of [${shape}] over ${axes}`,
    inputs: { x },
    run: (i) => F.mean(i.x, axes),
    out: of(
      kept,
      sums.map((v) => v / n),
    ),
    dout,
    grads: {
      x: of(
        shape,
        gradient.map((v) => v / n),
      ),
    },
  });
}

{
  const [rows, columns] = [300, 701];
  const [a, row, column, dout] = [f32([rows, columns]), f32([columns]), f32([rows, 1]), f32([rows, columns])];
  const [i, j] = [(p: number) => Math.floor(p / columns), (p: number) => p % columns];
  const dRow = new Float64Array(columns);
  const dColumn = new Float64Array(rows);
  dout.data.forEach((g, p) => {
    dRow[j(p)] += g * a.data[p];
    dColumn[i(p)] += g;
  });
  cases.push({
    name: 'a row + column, broadcast',
    inputs: { a, row, column },
    run: (x) => F.add(F.mul(x.a, x.row), x.column),
    out: of(
      a.shape,
      Float64Array.from(a.data, (v, p) => v * row.data[j(p)] + column.data[i(p)]),
    ),
    dout,
    grads: {
      a: of(
        a.shape,
        Float64Array.from(dout.data, (g, p) => g * row.data[j(p)]),
      ),
      row: of(row.shape, dRow),
      column: of(column.shape, dColumn),
    },
  });
  const x = f32([200, 1501], 8);
  const g = f32(x.shape);
  const [y, dx] = [new Float64Array(x.data.length), new Float64Array(x.data.length)];
  for (let r = 0; r < 200; r++) {
    const [from, until] = [r * 1501, (r + 1) * 1501];
    const most = Math.max(...x.data.subarray(from, until));
    let [total, mean] = [0, 0];
    for (let p = from; p < until; p++) total += Math.exp(x.data[p] - most);
    for (let p = from; p < until; p++) y[p] = Math.exp(x.data[p] - most) / total;
    for (let p = from; p < until; p++) mean += y[p] * g.data[p];
    for (let p = from; p < until; p++) dx[p] = y[p] * (g.data[p] - mean);
  }
  cases.push({
    name: 'softmax of 1501',
    inputs: { x },
    run: (v) => F.softmax(v.x),
    out: of(x.shape, y),
    dout: g,
    grads: { x: of(x.shape, dx) },
  });
  const z = f32([200_003], 6);
  const sigmoid = (v: number): number => 1 / (1 + Math.exp(-v));
  const dz = f32(z.shape);
  cases.push({
    name: 'SiLU of 200003',
    inputs: { z },
    run: (v) => F.silu(v.z),
    out: of(
      z.shape,
      Float64Array.from(z.data, (v) => v * sigmoid(v)),
    ),
    dout: dz,
    grads: {
      z: of(
        z.shape,
        Float64Array.from(z.data, (v, p) => dz.data[p] * sigmoid(v) * (1 + v * (1 - sigmoid(v)))),
      ),
    },
  });
}

{
  const [a, b, c] = [37, 41, 43];
  const x = f32([a, b, c]);
  const dout = f32([c, a, b]);
  const [y, dx] = [new Float64Array(x.data.length), new Float64Array(x.data.length)];
  for (let p = 0; p < x.data.length; p++) {
    const [i, j, k] = [Math.floor(p / (b * c)), Math.floor(p / c) % b, p % c];
    y[(k * a + i) * b + j] = x.data[p];
    dx[p] = dout.data[(k * a + i) * b + j];
  }
  cases.push({
    name: 'permute',
    inputs: { x },
    run: (v) => F.permute(v.x, [2, 0, 1]),
    out: of(dout.shape, y),
    dout,
    grads: { x: of(x.shape, dx) },
    tolerance: { out: 0, grad: 0 },
  });
  const [rows, width, count] = [100, 33, 5000];
  const [table, g] = [f32([rows, width]), f32([count, width])];
  const ids = BigInt64Array.from(numbers(seed++, count), (v) => BigInt(Math.floor(((v + 1) / 2) ** 3 * rows))); // few rows often
  const dtable = new Float64Array(rows * width);
  g.data.forEach((v, p) => {
    dtable[Number(ids[Math.floor(p / width)]) * width + (p % width)] += v;
  });
  cases.push({
    name: 'embedding',
    inputs: { table, ids: { shape: [count], data: ids } },
    run: (v) => F.embedding(v.table, v.ids),
    out: of(
      [count, width],
      Float64Array.from(g.data, (_, p) => table.data[Number(ids[Math.floor(p / width)]) * width + (p % width)]),
    ),
    dout: g,
    grads: { table: of([rows, width], dtable) },
  });
}

/** The bytes of the result and of every gradient. */
async function bits(device: DeviceName, c: OpCase): Promise<Buffer[]> {
  return scope(async () => {
    const inputs = Object.fromEntries(
      Object.entries(c.inputs).map(([key, value]) => [
        key,
        toTensor(value, { device, requiresGrad: key in (c.grads ?? {}) }),
      ]),
    );
    const y = c.run(inputs);
    if (c.dout) y.backward(toTensor(c.dout, { device }));
    const results = [y, ...Object.values(inputs).flatMap(({ grad }) => grad ?? [])];
    const bytes = await Promise.all(results.map(async (x) => Buffer.from(await x.bytes())));
    for (const { grad } of Object.values(inputs)) grad?.dispose();
    return bytes;
  });
}

t.test('large sizes equal plain loops', async (t) => {
  setNumThreads(3);
  await forEachDevice(t, async (t, device) => {
    // float32 sums of up to 3000 terms, one after the other
    for (const c of cases) await checkOp(t, device, { tolerance: { out: 5e-6, grad: 5e-6 }, ...c });
  });
  setNumThreads(1);
  await t.test('one thread gives the same bits as three', async (t) => {
    for (const c of cases) t.strictSame(await bits('cpu', c), await bits(cpuVariants()[0], c), c.name);
  });
  setNumThreads(0);
});
