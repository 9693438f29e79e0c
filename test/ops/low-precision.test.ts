/**
 * bf16 and f16 in every operation that takes them. They compute in f32 and round once, so an operation of one rounding gives, bit for
 * bit, the f32 result of the same (representable) numbers rounded; the rounding here is the test's own. What sums is compared with double
 * precision. Gradients have their tensor's dtype. Sizes: vector loops, their tails, single elements, nothing, and views that
 * begin between the alignments.
 */
import t from 'tap';
import '../../lib/autograd.js';
import { type DeviceName, memory, setDefaultDevice } from '../../lib/device.js';
import * as F from '../../lib/nn/functional.js';
import type { UnaryKind } from '../../lib/ops/elementwise.js';
import { autocast, type LowPrecision, noGrad, scope } from '../../lib/scope.js';
import { numel, type Shape } from '../../lib/shape.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { assertClose, forEachDevice, maxRelativeError, numbers, withoutLeaks } from '../helpers.js';
import { normalize } from './reference.js';

/** Half the distance of neighbours, relative: the most that one rounding changes. */
const epsilon: Record<LowPrecision, number> = { bf16: 2 ** -8, f16: 2 ** -11 };
const lowDTypes: readonly LowPrecision[] = ['bf16', 'f16'];

/** Nearest number of `bits` significant bits whose exponent is at least `least`, ties to even; beyond `most` infinite. */
function rounded(x: number, dtype: LowPrecision): number {
  const [bits, least, most] = dtype === 'bf16' ? [8, -126, 2 ** 128 * (1 - 2 ** -9)] : [11, -14, 65520];
  if (!Number.isFinite(x) || x === 0) return x;
  const exponent = Math.max(Math.floor(Math.log2(Math.abs(x))), least);
  const unit = 2 ** (exponent - bits + 1);
  const scaled = x / unit;
  const floor = Math.floor(scaled);
  const up = scaled - floor > 0.5 || (scaled - floor === 0.5 && floor % 2 !== 0);
  const result = (up ? floor + 1 : floor) * unit;
  return Math.abs(result) >= most ? Math.sign(x) * Number.POSITIVE_INFINITY : result;
}
const roundAll = (x: ArrayLike<number>, dtype: LowPrecision): Float32Array =>
  Float32Array.from(x, (v) => rounded(v, dtype));

interface Case {
  name: string;
  shapes: readonly Shape[];
  /** Inputs that stay f32 beside the low ones. */
  wide?: readonly number[];
  run(inputs: Tensor[]): Tensor;
  /** Expected dtype; default the low one. */
  dtype?: 'f32';
  /** More than one rounding: largest error in units of epsilon, relative to the largest value. Default: bit for bit. */
  loose?: number;
  /** The same for gradients; 0: bit for bit. Default 3. */
  grad?: number;
  /** Values to take instead of numbers in [-1, 1). */
  map?(x: number): number;
}

const positive = (x: number): number => 0.1 + Math.abs(x);
const sizes: Shape[] = [[], [0], [1], [7], [8], [3, 11], [67, 64], [5, 1027]];
const each = (name: string, run: (x: Tensor[]) => Tensor, more: Partial<Case> = {}): Case[] =>
  sizes.map((shape) => ({ name: `${name} [${shape}]`, shapes: [shape, shape, shape], run, ...more }));

const ofKinds = (kinds: readonly UnaryKind[], shape: Shape, map?: Case['map']): Case[] =>
  kinds.map((kind) => ({ name: kind, shapes: [shape], run: ([x]) => F.unary(kind, x), grad: 0, map }));

const cases: Case[] = [
  ...ofKinds(['neg', 'tanh', 'sigmoid', 'relu', 'silu', 'geluTanh', 'geluErf', 'square', 'sin', 'cos'], [5, 131]),
  ...ofKinds(['exp', 'log', 'sqrt', 'rsqrt', 'reciprocal', 'abs'], [5, 136], positive),
  ...each('affine', ([x]) => F.affine(x, 1.7, 0.3), { grad: 0 }),
  ...each('clamp', ([x]) => F.clamp(x, -0.375, 0.5), { grad: 0 }),
  ...each('add', ([a, b]) => a.add(b), { grad: 0 }),
  ...each('mul', ([a, b]) => a.mul(b), { grad: 0 }),
  ...each(
    'linearCombination',
    ([a, b, c]) =>
      F.linearCombination([
        [0.3, a],
        [1.2, b],
        [-0.7, c],
      ]),
    { grad: 0 },
  ),
  {
    name: 'sub',
    shapes: [
      [4, 40],
      [4, 40],
    ],
    run: ([a, b]) => a.sub(b),
  },
  {
    name: 'div',
    shapes: [
      [4, 40],
      [4, 40],
    ],
    run: ([a, b]) => a.div(b),
    map: positive,
  },
  {
    name: 'pow',
    shapes: [
      [4, 9],
      [4, 9],
    ],
    run: ([a, b]) => F.pow(a, b),
    map: positive,
    grad: 6,
  },
  { name: 'maximum', shapes: [[65], [65]], run: ([a, b]) => F.maximum(a, b), grad: 0 },
  { name: 'minimum', shapes: [[64], [64]], run: ([a, b]) => F.minimum(a, b), grad: 0 },
  { name: 'less', shapes: [[64], [64]], run: ([a, b]) => noGrad(() => F.less(a, b)), dtype: 'f32' },
  { name: 'equal', shapes: [[64]], run: ([a]) => noGrad(() => F.equal(a, F.relu(a))), dtype: 'f32' },
  { name: 'isFinite', shapes: [[9]], run: ([a]) => F.unary('isFinite', a), dtype: 'f32' },
  {
    name: 'mixed add',
    shapes: [
      [6, 24],
      [6, 24],
    ],
    wide: [1],
    run: ([a, b]) => a.add(b),
    dtype: 'f32',
    grad: 0,
  },
  {
    name: 'mixed mul',
    shapes: [
      [3, 5],
      [3, 5],
    ],
    wide: [0],
    run: ([a, b]) => a.mul(b),
    dtype: 'f32',
  },
  { name: 'add a bias', shapes: [[9, 16], [16]], run: ([a, b]) => a.add(b) },
  { name: 'add a bias of 5', shapes: [[9, 5], [5]], run: ([a, b]) => a.add(b) },
  { name: 'add an f32 bias', shapes: [[9, 24], [24]], wide: [1], run: ([a, b]) => a.add(b), dtype: 'f32' },
  {
    name: 'scale per sample',
    shapes: [
      [3, 5, 32],
      [3, 1, 1],
    ],
    run: ([a, b]) => a.mul(b),
    grad: 6,
  },
  {
    name: 'scale per sample and channel',
    shapes: [
      [3, 5, 32],
      [3, 1, 32],
    ],
    run: ([a, b]) => a.mul(b),
    grad: 6,
  },
  {
    name: 'outer product',
    shapes: [
      [13, 1],
      [1, 24],
    ],
    run: ([a, b]) => a.mul(b),
    grad: 6,
  },
  { name: 'scalar', shapes: [[4, 24], []], run: ([a, b]) => a.mul(b), grad: 8 },
  {
    name: 'where',
    shapes: [
      [6, 16],
      [6, 16],
      [6, 16],
    ],
    wide: [0],
    run: ([c, a, b]) => F.where(F.less(c, c.detach().mul(0)), a, b),
    grad: 0,
  },
  { name: 'where, broadcast', shapes: [[6, 1], [6, 16], [16]], wide: [0], run: ([c, a, b]) => F.where(c, a, b) },
  { name: 'permute', shapes: [[3, 4, 5]], run: ([x]) => F.permute(x, [2, 0, 1]), grad: 0 },
  { name: 'slice', shapes: [[3, 8]], run: ([x]) => F.slice(x, 1, 2, 7), grad: 0 },
  {
    name: 'concat',
    shapes: [
      [3, 8],
      [3, 5],
    ],
    run: ([a, b]) => F.concat([a, b], 1),
    grad: 0,
  },
  {
    name: 'concat, mixed',
    shapes: [
      [3, 8],
      [3, 5],
    ],
    wide: [1],
    run: (x) => F.concat(x, 1),
    dtype: 'f32',
    grad: 0,
  },
  {
    name: 'pad',
    shapes: [[3, 4]],
    run: ([x]) =>
      F.pad(x, [
        [1, 0],
        [2, 3],
      ]),
    grad: 0,
  },
  { name: 'upsample2x', shapes: [[2, 3, 5, 16]], run: ([x]) => F.upsample2x(x), grad: 0 },
  { name: 'upsample2x of 3 channels', shapes: [[1, 2, 3, 3]], run: ([x]) => F.upsample2x(x), grad: 0 },
  { name: 'dropout', shapes: [[3, 40]], run: ([x]) => F.dropout(x, 0.3, { seed: 5 }), grad: 0 },
  { name: 'dropout of 7', shapes: [[3, 7]], run: ([x]) => F.dropout(x, 0.3, { seed: 5 }), grad: 0 },
  { name: 'cast', shapes: [[3, 43]], run: ([x]) => x.to('f32'), dtype: 'f32', grad: 0 },
  { name: 'max', shapes: [[3, 43]], run: ([x]) => F.max(x, 1), dtype: 'f32' },
  { name: 'softmax', shapes: [[3, 43]], run: ([x]) => F.softmax(x), dtype: 'f32', loose: 0.01 },
];

/** Runs a case on low-precision leaves and on f32 leaves of the same values, and compares. One assertion. */
async function check(t: import('tap').Test, device: DeviceName, low: LowPrecision, c: Case): Promise<void> {
  const problems: string[] = [];
  const compare = async (what: string, actual: Tensor | undefined, expected: Tensor | undefined, limit: number) => {
    if (!actual || !expected) return problems.push(`no ${what}`);
    const [is, f32] = [await actual.data(), (await expected.data()) as Float32Array];
    const should = actual.dtype === low ? roundAll(f32, low) : f32;
    const same = is.length === should.length && should.every((v, i) => Object.is(v, is[i]) || (v === 0 && is[i] === 0));
    if (limit === 0) return same || problems.push(`${what} is not the rounded f32 result`);
    const error = maxRelativeError(is, should);
    return error <= limit * epsilon[low] || problems.push(`${what}: error ${error.toExponential(1)}`);
  };
  const before = memory(device).liveBuffers;
  await scope(async () => {
    const values = c.shapes.map((shape, i) =>
      roundAll(Float32Array.from(numbers(i + 1, numel(shape)), c.map ?? ((x) => x)), low),
    );
    const leaves = (dtype: LowPrecision | 'f32'): Tensor[] =>
      c.shapes.map((shape, i) => {
        const leaf = tensor(values[i], { shape, device, dtype: c.wide?.includes(i) ? 'f32' : dtype });
        leaf.requiresGrad = true;
        return leaf;
      });
    const [lowLeaves, wideLeaves] = [leaves(low), leaves('f32')];
    const [y, reference] = [c.run(lowLeaves), c.run(wideLeaves)];
    if (y.dtype !== (c.dtype ?? low)) problems.push(`out is ${y.dtype}`);
    await compare('out', y, reference, c.loose ?? 0);
    if (y.requiresGrad) {
      const dout = tensor(roundAll(numbers(77, y.size), low), { shape: y.shape, device });
      y.backward(dout.to(y.dtype));
      reference.backward(dout);
      for (const [i, { grad, dtype }] of lowLeaves.entries()) {
        const { grad: wideGrad } = wideLeaves[i];
        if (grad && grad.dtype !== dtype) problems.push(`gradient ${i} is ${grad.dtype}`);
        if (grad || wideGrad) await compare(`gradient ${i}`, grad, wideGrad, c.grad ?? 3);
        grad?.dispose();
        wideGrad?.dispose();
      }
    }
  });
  const left = memory(device).liveBuffers - before;
  if (left > 0) problems.push(`${left} buffers left`);
  t.ok(problems.length === 0, `${low} ${c.name}${problems.length > 0 ? `: ${problems.join('; ')}` : ''}`);
}

t.test('operations round once, and gradients have their dtype', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    for (const low of lowDTypes) for (const c of cases) await check(t, device, low, c);
  }),
);

t.test('the rounding is right at its edges', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    const edges = [0, -0, 1, 65504, 65519, 65520, 65536, 3.4e38, 6e-8, 2e-8, 2 ** -14, 2 ** -25, 1e-40, 1 / 0, -1 / 0];
    const ties = [1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -11, 1 + 3 * 2 ** -11, 1 + 2 ** -8 + 2 ** -20];
    const values = Float32Array.from([...edges, ...ties, ...ties.map((x) => -x)]);
    await scope(async () => {
      for (const low of lowDTypes) {
        const x = tensor(values);
        const y = await F.affine(x, 1, 0).to(low).data();
        const into = await F.linearCombination([[1, x]], x.to(low)).data();
        t.strictSame(Array.from(y as Float32Array), Array.from(roundAll(values, low)), `${low} cast`);
        t.strictSame(Array.from(into as Float32Array), Array.from(roundAll(values, low)), `${low} as a result`);
        t.ok(Number.isNaN(Number((await tensor([Number.NaN]).to(low).add(1).data())[0])), `${low} NaN`);
      }
    });
  }),
);

t.test('views that begin between alignments', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    await withoutLeaks(t, device, async () => {
      for (const low of lowDTypes) {
        for (const first of [1, 2, 4]) {
          const [x, b] = [tensor(roundAll(numbers(3, 61), low)).to(low), tensor(numbers(4, 61))];
          const [low1, wide1] = [F.slice(x, 0, first), F.slice(b, 0, first)];
          const expected = await F.add(low1.to('f32'), wide1).data();
          t.strictSame(await F.add(low1, wide1).data(), expected, `${low} from ${first}`);
          t.strictSame(await low1.sum().item(), await low1.to('f32').sum().item(), `${low} sum from ${first}`);
        }
      }
    });
  }),
);

t.test('sums of low precision are f32 and exact to f32', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    await withoutLeaks(t, device, async () => {
      for (const low of lowDTypes) {
        for (const [outer, n, inner] of [
          [3, 700, 1],
          [2, 5, 7],
          [1, 300, 24],
          [4, 9000, 1],
          [2, 130, 33],
        ]) {
          const values = roundAll(numbers(5, outer * n * inner), low);
          const x = tensor(values, { shape: [outer, n, inner] }).to(low);
          x.requiresGrad = true;
          const [sums, tops] = [new Float64Array(outer * inner), new Float64Array(outer * inner).fill(-9)];
          for (const [i, v] of values.entries()) {
            const at = Math.floor(i / (n * inner)) * inner + (i % inner);
            sums[at] += v;
            tops[at] = Math.max(tops[at], v);
          }
          const y = F.sum(x, 1);
          t.equal(y.dtype, 'f32');
          assertClose(t, (await y.data()) as Float32Array, sums, 1e-6, `${low} sum [${outer}, ${n}, ${inner}]`);
          const mean = (await F.mean(x, 1).data()) as Float32Array;
          assertClose(
            t,
            mean,
            sums.map((v) => v / n),
            1e-6,
            `${low} mean`,
          );
          t.strictSame(Float64Array.from((await noGrad(() => F.max(x, 1)).data()) as Float32Array), tops, `${low} max`);
          const first = Number((await F.argmax(x, 1).data())[0]);
          t.equal(values[first * inner], tops[0], `${low} argmax`);
          y.backward(tensor(numbers(6, outer * inner), { shape: y.shape }));
          t.equal(x.grad?.dtype, low);
          const g = (await x.grad?.data()) as Float32Array;
          t.equal(g[inner * (n - 1)], rounded(numbers(6, 1)[0], low), `${low} gradient of the sum`);
          x.grad?.dispose();
        }
        t.equal(tensor([1, 2]).to(low).sum([]).dtype, 'f32', 'a sum over no axis too');
      }
    });
  }),
);

t.test('norms: x and y of any float dtype, statistics and parameters f32', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    await withoutLeaks(t, device, async () => {
      for (const low of lowDTypes) {
        for (const [input, cast] of [
          [low, undefined],
          ['f32', low],
          [low, low],
        ] as const) {
          for (const [groups, shape] of [
            [0, [6, 40]],
            [0, [5, 33]],
            [0, [40, 264]],
            [4, [2, 5, 7, 32]],
            [2, [2, 50, 10]],
            [1, [3, 6, 8]],
          ] as const) {
            const [channels, batch] = [shape[shape.length - 1], shape[0]];
            const each = numel(shape) / batch;
            const values = roundAll(
              numbers(8, numel(shape)).map((v) => 3 + 2 * v),
              low,
            );
            const x = tensor(values, { shape }).to(input);
            const weight = tensor(numbers(9, channels));
            const bias = tensor(numbers(10, channels));
            for (const leaf of [x, weight, bias]) leaf.requiresGrad = true;
            const name = `${groups ? `group_norm of ${groups}` : 'layer_norm'} [${shape}] ${input} -> ${cast ?? input}`;
            const run = (): Tensor =>
              groups ? F.groupNorm(x, { groups, weight, bias }) : F.layerNorm(x, { weight, bias });
            const y = autocast(cast ?? 'f32', run);
            t.equal(y.dtype, low, name);
            const dout = roundAll(numbers(11, numel(shape)), low);
            const per = channels / (groups || 1);
            const setOf = groups
              ? (p: number) => Math.floor(p / each) * groups + Math.floor((p % channels) / per)
              : (p: number) => Math.floor(p / channels);
            const eps = groups ? 1e-5 : 1e-6;
            const expected = normalize(
              values,
              { channels, eps, setOf },
              numbers(9, channels),
              numbers(10, channels),
              dout,
            );
            assertClose(t, (await y.data()) as Float32Array, expected.y, 1.1 * epsilon[low], `${name}: y`);
            y.backward(tensor(dout, { shape }).to(low));
            t.equal(x.grad?.dtype, input);
            const limit = input === 'f32' ? 2e-6 : 1.1 * epsilon[low];
            assertClose(t, (await x.grad?.data()) as Float32Array, expected.dx, limit, `${name}: dx`);
            assertClose(t, (await weight.grad?.data()) as Float32Array, expected.dw, 3e-6, `${name}: dw`);
            assertClose(t, (await bias.grad?.data()) as Float32Array, expected.db, 3e-6, `${name}: db`);
            for (const leaf of [x, weight, bias]) leaf.grad?.dispose();
          }
        }
      }
    });
  }),
);

t.test('layer norm without parameters: rows that lanes keep in registers, and longer ones', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    await withoutLeaks(t, device, async () => {
      for (const [input, low] of [
        ['f32', 'bf16'],
        ['bf16', 'bf16'],
        ['f16', 'f16'],
      ] as const) {
        for (const channels of [512, 1152, 1280, 2568]) {
          const rows = 9;
          const shape = [rows, channels];
          const values = roundAll(numbers(12, rows * channels), low);
          const x = tensor(values, { shape }).to(input);
          x.requiresGrad = true;
          const y = autocast(low, () => F.layerNorm(x));
          const dout = roundAll(numbers(13, rows * channels), low);
          y.backward(tensor(dout, { shape }).to(low));
          const setOf = (p: number): number => Math.floor(p / channels);
          const [ones, zeros] = [new Float32Array(channels).fill(1), new Float32Array(channels)];
          const expected = normalize(values, { channels, eps: 1e-6, setOf }, ones, zeros, dout);
          const name = `${input} -> ${low} of ${channels}`;
          assertClose(t, (await y.data()) as Float32Array, expected.y, 1.1 * epsilon[low], `${name}: y`);
          const limit = input === 'f32' ? 2e-6 : 1.1 * epsilon[low];
          assertClose(t, (await x.grad?.data()) as Float32Array, expected.dx, limit, `${name}: dx`);
          x.grad?.dispose();
        }
      }
    });
  }),
);

t.test('rows by index: a low table gives low rows, its gradient is summed in f32', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    await withoutLeaks(t, device, async () => {
      const values = roundAll(numbers(14, 6), 'bf16');
      const table = tensor(values, { shape: [3, 2] }).to('bf16');
      table.requiresGrad = true;
      const y = F.embedding(table, tensor([2, 0, 2, 2], { dtype: 'i64' }));
      t.equal(y.dtype, 'bf16');
      t.strictSame(
        Array.from((await y.data()) as Float32Array),
        [2, 0, 2, 2].flatMap((i) => [values[2 * i], values[2 * i + 1]]),
      );
      y.backward(tensor([1, 2, 3, 4, 5, 6, 256, 1], { shape: [4, 2] }).to('bf16'));
      t.strictSame(Array.from((await table.grad?.data()) as Float32Array), [3, 4, 0, 0, rounded(262, 'bf16'), 9]);
      table.grad?.dispose();
    });
  }),
);

t.test('gradients of several uses are added in place in their dtype', (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    await withoutLeaks(t, device, async () => {
      const x = tensor([1, 2, 3]).to('bf16');
      x.requiresGrad = true;
      for (let i = 0; i < 3; i++)
        x.mul(i + 1)
          .add(x)
          .backward(tensor([1, 0.5, 2]).to('bf16'));
      t.equal(x.grad?.dtype, 'bf16');
      t.strictSame(Array.from((await x.grad?.data()) as Float32Array), [9, 4.5, 18]);
      x.grad?.dispose();
    });
  }),
);
