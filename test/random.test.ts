import t from 'tap';
import { OptionError } from '../lib/errors.js';
import { HostRandom, philox4x32, splitWords } from '../lib/random.js';

t.test('philox4x32-10 gives the known answers of Random123 (tests/kat_vectors)', async (t) => {
  const known = [
    '00000000 00000000 00000000 00000000 00000000 00000000 6627e8d5 e169c58d bc57ac4c 9b00dbd8',
    'ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff 408f276d 41c83b0e a20bc7c6 6d5451fd',
    '243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0 d16cfe09 94fdcceb 5001e420 24126ea1',
  ];
  for (const line of known) {
    const words = line.split(' ').map((word) => Number.parseInt(word, 16));
    t.same([...philox4x32(words.slice(0, 4), words.slice(4, 6))], words.slice(6), line.slice(0, 17));
  }
});

t.test('HostRandom walks the counters of its stream', async (t) => {
  const random = new HostRandom(5, 2 ** 32 + 3);
  const expected = [0, 1].flatMap((block) => [...philox4x32([block, 0xffffffff, 3, 1], [5, 0])]);
  t.same(
    Array.from({ length: 8 }, () => random.uint32()),
    expected,
  );
  t.not(new HostRandom(5, 0).uint32(), new HostRandom(5, 1).uint32(), 'streams differ');
  t.not(new HostRandom(5).uint32(), new HostRandom(6).uint32(), 'seeds differ');
  t.same(splitWords(2 ** 53 - 1, 'seed'), [0xffffffff, 0x1fffff]);
  t.same(splitWords(-1, 'seed'), [0xffffffff, 0xffffffff], "two's complement");
  t.throws(() => new HostRandom(0.5), OptionError);
  t.throws(() => new HostRandom(2 ** 53), OptionError);
});

t.test('uniform and normal numbers have the right moments', async (t) => {
  const n = 200_000;
  const random = new HostRandom(1);
  const uniform = Float64Array.from({ length: n }, () => random.uniform());
  const normal = Float64Array.from({ length: n }, () => random.normal());
  const mean = (values: Float64Array, power: number) => values.reduce((sum, v) => sum + v ** power, 0) / n;
  // Six standard errors of each estimate.
  t.ok(Math.abs(mean(uniform, 1) - 1 / 2) < 6 * Math.sqrt(1 / 12 / n), 'uniform mean');
  t.ok(Math.abs(mean(uniform, 2) - 1 / 3) < 6 * Math.sqrt(4 / 45 / n), 'uniform second moment');
  t.ok(Math.abs(mean(normal, 1)) < 6 * Math.sqrt(1 / n), 'normal mean');
  t.ok(Math.abs(mean(normal, 2) - 1) < 6 * Math.sqrt(2 / n), 'normal variance');
  t.ok(Math.abs(mean(normal, 4) - 3) < 6 * Math.sqrt(96 / n), 'normal fourth moment');
  t.ok(
    uniform.every((v) => v >= 0 && v < 1),
    'uniform in [0, 1)',
  );
  t.ok(normal.every(Number.isFinite), 'normal finite');
});

t.test('integer is uniform and permutation is one', async (t) => {
  const random = new HostRandom(7);
  const counts = new Array<number>(7).fill(0);
  for (let i = 0; i < 70_000; i++) counts[random.integer(7)]++;
  const chiSquare = counts.reduce((sum, count) => sum + (count - 10_000) ** 2 / 10_000, 0);
  t.ok(chiSquare < 30, `chi-square ${chiSquare.toFixed(1)} with 6 degrees of freedom`);
  t.equal(random.integer(1), 0);
  const third = 2 ** 31 + 2 ** 30; // a quarter of all words is rejected here
  const low = Array.from({ length: 8000 }, () => random.integer(third)).filter((value) => value < third / 2).length;
  t.ok(Math.abs(low - 4000) < 6 * Math.sqrt(2000), `${low} of 8000 in the lower half`);
  for (const n of [0, -1, 1.5, 2 ** 32, Number.NaN]) t.throws(() => random.integer(n), OptionError);

  const order = random.permutation(1000);
  t.same(
    [...order].sort((a, b) => a - b),
    Array.from({ length: 1000 }, (_, i) => i),
  );
  t.same([...random.permutation(0)], []);
  t.same([...random.permutation(1)], [0]);
  const firsts = new Set<string>();
  for (let i = 0; i < 500; i++) firsts.add(random.permutation(3).join());
  t.equal(firsts.size, 6, 'all orders of three occur');
});

t.test('state and restore go on exactly', async (t) => {
  const random = new HostRandom(3, 9);
  for (let i = 0; i < 5; i++) random.normal();
  random.uint32();
  const state = JSON.parse(JSON.stringify(random.state()));
  const draws = () => [random.normal(), random.uint32(), random.normal(), random.uniform(), random.integer(10)];
  const expected = draws();
  const other = new HostRandom(3, 9);
  other.restore(state);
  t.same([other.normal(), other.uint32(), other.normal(), other.uniform(), other.integer(10)], expected);
  random.restore(state);
  t.same(draws(), expected);
  t.throws(() => random.restore({ position: -1 }), OptionError);
});
