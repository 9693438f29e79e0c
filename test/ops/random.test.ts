/**
 * Random tensors on every device against lib/random.ts's Philox (which test/random.test.ts checks by known answers),
 * their independence of batches, their moments, and dropout.
 */
import t from 'tap';
import '../../lib/autograd.js';
import * as F from '../../lib/nn/functional.js';
import { defaultGenerator, Generator, manualSeed, type RandomKey, rand, randn } from '../../lib/ops/random.js';
import { philox4x32 } from '../../lib/random.js';
import { full, ones, tensor } from '../../lib/tensor.js';
import { assertClose, assertFails, forEachDevice, numbers, withoutLeaks } from '../helpers.js';

const words = (value: number): [number, number] => [value >>> 0, Math.floor(value / 2 ** 32)];

/** The 32-bit words behind a tensor of `shape`, as ops.def defines them. */
function expectedWords(shape: readonly number[], { seed, stream = 0, firstSample = 0 }: RandomKey): Uint32Array {
  const samples = shape[0] ?? 1;
  const elements = shape.slice(1).reduce((n, d) => n * d, 1);
  const result = new Uint32Array(samples * elements);
  for (let b = 0; b < samples; b++) {
    for (let e = 0; e < elements; e += 4) {
      const block = philox4x32([e / 4, firstSample + b, ...words(stream)], words(seed));
      result.set(block.subarray(0, elements - e), b * elements + e);
    }
  }
  return result;
}

const uniformOf = (word: number): number => (word >>> 8) * 2 ** -24;

/** Box-Muller over the whole blocks of each sample, in double precision. */
function expectedNormal(shape: readonly number[], key: RandomKey): Float64Array {
  const elements = shape.slice(1).reduce((n, d) => n * d, 1);
  const padded = [shape[0], Math.ceil(elements / 4) * 4];
  const u = expectedWords(padded, key);
  const pairs = Float64Array.from(u, (word, i) => {
    const [first, second] = i % 2 === 0 ? [word, u[i + 1]] : [u[i - 1], word];
    const radius = Math.sqrt(-2 * Math.log(((first >>> 8) + 1) * 2 ** -24));
    const angle = 2 * Math.PI * uniformOf(second);
    return radius * (i % 2 === 0 ? Math.cos(angle) : Math.sin(angle));
  });
  return Float64Array.from(
    { length: shape[0] * elements },
    (_, i) => pairs[Math.floor(i / elements) * padded[1] + (i % elements)],
  );
}

const keys: [number[], RandomKey][] = [
  [[3, 4, 5], { seed: 0 }],
  [[2, 7], { seed: 1, stream: 3 }],
  [[5], { seed: 42, stream: 1, firstSample: 1000 }],
  [[1, 1], { seed: 2 ** 53 - 1, stream: 2 ** 40 + 5 }],
  [[2, 3, 33, 31], { seed: 2 ** 32 + 7, stream: 2 ** 32, firstSample: 12 }],
  [[1, 100_003], { seed: 9 }],
  [[70_001, 2], { seed: 10 }],
];

t.test('rand equals Philox bit for bit, randn within 1e-6', (t) =>
  forEachDevice(t, (t, device) =>
    withoutLeaks(t, device, async () => {
      for (const [shape, key] of keys) {
        const name = `[${shape}] ${JSON.stringify(key)}`;
        const uniform = rand(shape, { ...key, device });
        t.strictSame(uniform.shape, shape);
        const expected = Float32Array.from(expectedWords(shape, key), uniformOf);
        t.ok(Buffer.compare(await uniform.bytes(), new Uint8Array(expected.buffer)) === 0, `uniform ${name}`);
        assertClose(
          t,
          await randn(shape, { ...key, device }).data(),
          expectedNormal(shape, key),
          1e-6,
          `normal ${name}`,
        );
      }
      t.equal(await rand([], { seed: 4, device }).item(), uniformOf(expectedWords([1], { seed: 4 })[0]), 'a scalar');
      t.strictSame(await randn([0, 3], { seed: 4, device }).toArray(), []);
      t.strictSame(await rand([2, 0], { seed: 4, device }).toArray(), [[], []]);
    }),
  ),
);

t.test('a sample has the same noise in any batch; seeds and streams are independent', (t) =>
  forEachDevice(t, (t, device) =>
    withoutLeaks(t, device, async () => {
      const whole = randn([7, 3, 5], { seed: 6, stream: 2, device });
      for (const [first, last] of [
        [0, 1],
        [1, 4],
        [4, 7],
        [6, 7],
      ]) {
        const part = randn([last - first, 3, 5], { seed: 6, stream: 2, firstSample: first, device });
        t.strictSame(await part.bytes(), await whole.slice(0, first, last).bytes(), `samples ${first} to ${last}`);
      }
      const n = 20_000;
      const a = await randn([1, n], { seed: 6, device }).data();
      for (const key of [{ seed: 7 }, { seed: 6, stream: 1 }, { seed: 6, firstSample: 1 }, { seed: 6 + 2 ** 32 }]) {
        const b = await randn([1, n], { ...key, device }).data();
        const correlation = [...a].reduce<number>((sum, v, i) => sum + Number(v) * Number(b[i]), 0) / n;
        t.ok(
          Math.abs(correlation) < 5 / Math.sqrt(n),
          `correlation ${correlation.toFixed(4)} with ${JSON.stringify(key)}`,
        );
      }
    }),
  ),
);

t.test('moments and evenness', async (t) => {
  const n = 400_000;
  const uniform = await rand([4, n / 4], { seed: 1 }).data();
  const normal = await randn([4, n / 4], { seed: 1 }).data();
  const moment = (values: ArrayLike<number | bigint>, power: number): number => {
    let sum = 0;
    for (let i = 0; i < values.length; i++) sum += Number(values[i]) ** power;
    return sum / n;
  };
  const near = (actual: number, expected: number, variance: number, name: string): void => {
    t.ok(Math.abs(actual - expected) < 5 * Math.sqrt(variance / n), `${name}: ${actual.toFixed(5)}`);
  };
  near(moment(uniform, 1), 1 / 2, 1 / 12, 'mean of rand');
  near(moment(uniform, 2), 1 / 3, 4 / 45, 'mean square of rand');
  near(moment(normal, 1), 0, 1, 'mean of randn');
  near(moment(normal, 2), 1, 2, 'mean square of randn');
  near(moment(normal, 3), 0, 15, 'mean cube of randn');
  near(moment(normal, 4), 3, 96, 'mean fourth power of randn');
  const counts = new Array<number>(64).fill(0);
  for (const v of uniform) counts[Math.floor(Number(v) * 64)]++;
  const chiSquare = counts.reduce((sum, count) => sum + (count - n / 64) ** 2 / (n / 64), 0);
  t.ok(chiSquare > 20 && chiSquare < 130, `chi-square of 64 bins ${chiSquare.toFixed(1)}, expected about 63`);
});

t.test('the default generator deals out streams; manualSeed and restore repeat them', async (t) => {
  manualSeed(3);
  const first = [await rand([4]).toArray(), await randn([4]).toArray()];
  t.notSame(first[0], await rand([4]).toArray(), 'draws differ');
  manualSeed(3);
  t.strictSame([await rand([4]).toArray(), await randn([4]).toArray()], first);
  const state = defaultGenerator.state();
  const next = await rand([4]).toArray();
  defaultGenerator.restore(state);
  t.strictSame(await rand([4]).toArray(), next);
  t.strictSame(await rand([4], { seed: 3, stream: 0 }).toArray(), first[0], 'the first draw is stream 0');
  const generator = new Generator(5);
  t.strictSame(
    [generator.next(), generator.next(), generator.state()],
    [
      { seed: 5, stream: 0 },
      { seed: 5, stream: 1 },
      { seed: 5, stream: 2 },
    ],
  );
  const before = defaultGenerator.state();
  await rand([2], { seed: 1 }).data();
  t.strictSame(defaultGenerator.state(), before, 'a draw with a seed of its own leaves it alone');
});

t.test('dropout drops where the uniform number is below p, scales the rest, and so does its gradient', (t) =>
  forEachDevice(t, (t, device) =>
    withoutLeaks(t, device, async () => {
      const shape = [3, 1001];
      const data = numbers(1, 3003);
      for (const p of [0.1, 0.5, 0.9]) {
        const key = { seed: 8, stream: 4, firstSample: 2 };
        const x = tensor(data, { shape, device, requiresGrad: true });
        const keep = Float32Array.from(expectedWords(shape, key), (word) => (uniformOf(word) >= p ? 1 / (1 - p) : 0));
        const y = F.dropout(x, p, key);
        assertClose(
          t,
          await y.data(),
          data.map((v, i) => v * keep[i]),
          1e-6,
          `dropout ${p}`,
        );
        y.backward(full(shape, 2, { device }));
        assertClose(
          t,
          (await x.grad?.data()) ?? [],
          keep.map((v) => 2 * v),
          1e-6,
          `gradient ${p}`,
        );
        x.grad?.dispose();
      }
      const x = ones([2, 2], { device });
      const same = F.dropout(x, 0);
      t.not(same, x, 'p = 0 is another tensor with the same values');
      same.dispose();
      t.strictSame(await x.toArray(), [
        [1, 1],
        [1, 1],
      ]);
      t.strictSame(await F.dropout(ones([0, 2], { device }), 0.5, { seed: 1 }).toArray(), []);
    }),
  ),
);

t.test('bad keys and probabilities', async (t) => {
  const x = ones([2]);
  const bad: [() => unknown, RegExp][] = [
    [() => F.dropout(x, 1), /p is 1, expected 0 <= p < 1/],
    [() => F.dropout(x, -0.1), /p is -0.1/],
    [() => F.dropout(x, Number.NaN), /p is NaN/],
    [() => rand([2], { seed: -1 }), /rand: seed is -1, expected an integer of at least 0/],
    [() => rand([2], { seed: 0.5 }), /seed is 0.5/],
    [() => randn([2], { seed: 2 ** 53 }), /seed is 9007199254740992/],
    [() => randn([2], { seed: 0, stream: -1 }), /stream is -1/],
    [() => randn([2], { seed: 0, firstSample: 1.5 }), /firstSample is 1.5/],
    [() => randn([2], { dtype: 'bf16' }), /makes f32/],
    [() => manualSeed(-5), /seed is -5/],
    [() => new Generator(Number.NaN), /seed is NaN/],
  ];
  for (const [use, message] of bad) await assertFails(t, use, 'OptionError', message);
  await assertFails(t, () => rand([-1]), 'ShapeError', /non-negative/);
});
