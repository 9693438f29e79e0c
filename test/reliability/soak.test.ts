/** Half a minute of what `npm run test:soak` does for hours; that it finds a leak; and one process ended in each way with work in its queue. */
import t from 'tap';
import { zeros } from '../../lib/tensor.js';
import { playEndings, ways } from './endings.js';
import { soak } from './soak.js';

const seed = Date.now() % 1e6;

t.test(`mixed work leaves nothing behind, seed ${seed}`, async (t) => {
  const report = await soak({ minutes: 0.3, seed, every: 1, endings: 0, say: (line) => t.comment(line) });
  t.ok(report.flat, 'everything is flat');
  t.ok(Object.values(report.rounds).every((rounds) => rounds > 0));
});

t.test('what grows is found', async (t) => {
  const held: unknown[] = [];
  const leak = { leak: async () => void held.push(zeros([1 << 16]), zeros([4]), zeros([4])) };
  const report = await soak({
    minutes: 0.05,
    seed,
    every: 0.1,
    endings: 0,
    say: (line) => t.comment(line),
    only: leak,
  });
  t.match(report, {
    flat: false,
    measures: { liveBuffers: { flat: false, why: /it grows by/ }, files: { flat: true } },
  });
});

t.test(`processes that end with work in the queue, seed ${seed}`, async (t) => {
  const count = Object.keys(ways).length;
  t.equal(
    playEndings(count, seed, (line) => t.comment(line)),
    count,
  );
});
