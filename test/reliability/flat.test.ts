/** The judgement of the soak, on series whose answer is known. */
import t from 'tap';
import { HostRandom } from '../../lib/random.js';
import { judge, type Sample } from './flat.js';

const tolerance = { growth: 0.05, most: 1.5, slack: 1 };
/** A value a minute. */
const series = (minutes: number, value: (minute: number) => number): Sample[] =>
  Array.from({ length: minutes }, (_, minute) => ({ hours: minute / 60, value: value(minute) }));
const noise = (seed: number): (() => number) => {
  const random = new HostRandom(seed);
  return () => random.uniform() * 2 - 1;
};

t.test('flat ones', async (t) => {
  t.match(
    judge(
      series(120, () => 7),
      tolerance,
    ),
    { flat: true, level: 7, most: 7, slope: 0 },
  );
  t.ok(
    judge(
      series(120, () => 0),
      tolerance,
    ).flat,
  );
  for (let seed = 0; seed < 200; seed++) {
    const random = noise(seed);
    for (const minutes of [12, 30, 120]) {
      const verdict = judge(
        series(minutes, () => 1000 + 80 * random()),
        tolerance,
      );
      t.ok(verdict.flat, `${minutes} minutes of seed ${seed}: ${verdict.why}`);
    }
  }
  const warming = series(120, (minute) => 1000 - 600 * Math.exp(-minute / 6));
  t.ok(judge(warming, tolerance).flat, 'growth that ends within the warm-up');
  t.ok(
    judge(
      series(120, (minute) => 1000 - minute),
      tolerance,
    ).flat,
    'what falls',
  );
  t.ok(
    judge(
      series(120, (minute) => (minute % 10 ? 1000 : 1400)),
      tolerance,
    ).flat,
    'a saw',
  );
  t.ok(
    judge(
      series(120, (minute) => (minute < 100 ? 9 : 10)),
      tolerance,
    ).flat,
    'one more, once',
  );
});

t.test('leaks', async (t) => {
  for (let seed = 0; seed < 200; seed++) {
    const random = noise(seed);
    const leak = series(120, (minute) => 1000 * (1 + (0.15 * minute) / 60) + 80 * random());
    const { flat, why, growth } = judge(leak, tolerance);
    t.ok(!flat && /grows by/.test(why ?? '') && Math.abs(growth - 0.15) < 0.1, `15 % an hour, seed ${seed}: ${growth}`);
  }
  t.notOk(
    judge(
      series(12, (minute) => 100 + minute * 2),
      tolerance,
    ).flat,
    'a fast one, in twelve minutes',
  );
  const counts = { growth: 0, most: 1.5, slack: 1 };
  t.notOk(
    judge(
      series(120, (minute) => 20 + Math.floor(minute / 30)),
      counts,
    ).flat,
    'a handle every half hour',
  );
  t.notOk(
    judge(
      series(120, (minute) => minute / 10),
      tolerance,
    ).flat,
    'from nothing',
  );
});

t.test('a peak', async (t) => {
  const { flat, why } = judge(
    series(120, (minute) => (minute === 60 ? 4000 : 1000)),
    tolerance,
  );
  t.notOk(flat);
  t.match(why, /4000 is far above its level of 1000/);
});

t.test('too few to tell', async (t) => {
  t.throws(
    () =>
      judge(
        series(9, () => 1),
        tolerance,
      ),
    /9 samples are too few/,
  );
});
