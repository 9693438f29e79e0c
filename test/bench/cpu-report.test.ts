/** bench/cpu/report.ts, files.ts and bench/tables.ts on hand-made numbers; and docs/benchmarks.md is what the committed JSON makes of it. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { errorOf, type FileTensor, readTensors, writeTensors } from '../../bench/cpu/files.js';
import {
  bestOf,
  type CpuReport,
  judge,
  median,
  type Outcome,
  type Row,
  ratioOf,
  shareOf,
} from '../../bench/cpu/report.js';
import { implementations, quickWorks, works } from '../../bench/cpu/work.js';
import { cpuTables, repeatTable, reportsFor, rewriteTables, tablesIn, withTables } from '../../bench/tables.js';
import { network } from '../../lib/bench/specs.js';
import { forwardFlops } from '../../lib/models/index.js';
import { temporaryFolder } from '../train/fixtures.js';

const ceilings = { fma: 1e12, fmaOneThread: 5e11, bf16Dot: 2e12, copy: 1e11 };
const outcome = (...rounds: number[]): Outcome => ({ rounds });

function row(change: Partial<Row>): Row {
  return {
    id: 'sgemm/a',
    group: 'gemm',
    dtype: 'f32',
    targets: [],
    ceilings,
    outcomes: { diffit: outcome(2) },
    ...change,
  };
}

t.test('medians and ratios by round', async (t) => {
  t.equal(median([3, 1, 2]), 2);
  t.equal(median([4, 1, 2, 3]), 2.5);
  // The medians' ratio would be 3 / 2; the rounds' own are 3, 1.5 and 1.
  t.same(ratioOf(outcome(3, 3, 4), outcome(1, 2, 4)), { median: 1.5, low: 1, high: 3 });
  t.same(ratioOf(outcome(6, 1, 1), outcome(1, 1, 1)), { median: 1, low: 1, high: 6 });
  t.equal(ratioOf(undefined, outcome(1)), undefined);
  t.equal(ratioOf({ rounds: [], failure: 'no' }, outcome(1)), undefined);
});

t.test('shares of the ceilings', async (t) => {
  // 1 GFLOP in 2 ms is 500 GFLOP/s, half the peak; 1 MB in 2 ms 0.5 GB/s.
  const share = shareOf(row({ flops: 1e9, bytes: 1e6 }), 2);
  t.match(share, { gigaflops: 500, gigabytesPerSecond: 0.5, ofPeak: 0.5, ofCopy: 0.005, binds: 'arithmetic' });
  t.match(shareOf(row({ flops: 1e6, bytes: 1e8 }), 2), { ofCopy: 0.5, binds: 'memory' });
  t.equal(shareOf(row({ flops: 1e9, dtype: 'bf16' }), 2).ofPeak, 0.25, 'the faster of the two peaks');
  t.equal(shareOf(row({ flops: 1e9, ceilings: { ...ceilings, fma: 2e12 } }), 2).ofPeak, 0.25, "the row's own peak");
  t.same(bestOf([ceilings, { fma: 1, fmaOneThread: 9e11, bf16Dot: 0, copy: 2e11 }]), {
    ...ceilings,
    fmaOneThread: 9e11,
    copy: 2e11,
  });
  t.match(shareOf(row({}), 2), { gigaflops: undefined, ofPeak: undefined, binds: undefined });
});

t.test('targets', async (t) => {
  const peers = { 'torch.compile': outcome(6), frozen: outcome(3) };
  const all = row({
    flops: 1.6e9,
    outcomes: { diffit: { rounds: [2], peakRss: 60 }, ...peers, big: { rounds: [9], peakRss: 100 } },
    targets: [
      { kind: 'ratio', bound: 2, peers: ['torch.compile'] },
      { kind: 'ratio', bound: 2, peers: ['torch.compile', 'frozen', 'absent'] },
      { kind: 'ratio', bound: 2, peers: ['absent'] },
      { kind: 'peak', bound: 0.8 },
      { kind: 'peak', bound: 0.85 },
      { kind: 'memory', bound: 0.5, peers: ['big'] },
      { kind: 'memory', bound: 0.6, peers: ['big'] },
      { kind: 'milliseconds', bound: 1 },
    ],
  });
  const found = judge(all);
  t.same(
    found.map(({ met, value, peer }) => [met, value, peer]),
    [
      [true, 3, 'torch.compile'],
      [false, 1.5, 'frozen'], // against the fastest
      [undefined, undefined, undefined],
      [true, 0.8, undefined],
      [false, 0.8, undefined],
      [false, 0.6, 'big'],
      [true, 0.6, 'big'],
      [false, 2, undefined],
    ],
  );
  const failed = { ...all, outcomes: { ...all.outcomes, diffit: { rounds: [], failure: 'no' } } };
  t.ok(
    judge(failed).every(({ met }) => met === undefined),
    'nothing is met by what did not run',
  );
});

const report: CpuReport = {
  schema: 1,
  kind: 'cpu',
  date: '2026-01-02T00:00:00Z',
  git: 'abc',
  quick: false,
  rounds: 2,
  machine: { processor: 'A processor', vendor: 'v', cores: 2, threads: 2, memory: 1, variant: 'avx2' },
  versions: { torch: '2.13' },
  missing: { tfjs: 'There is none.' },
  ceilings,
  rows: [
    row({
      flops: 1e9,
      bytes: 1,
      outcomes: {
        diffit: outcome(2, 4),
        torch: { rounds: [6, 6], error: 1e-6 },
        OpenBLAS: { rounds: [], failure: 'gone' },
      },
      targets: [{ kind: 'ratio', bound: 2, peers: ['torch'] }],
    }),
    row({
      id: 'train/b/f32',
      group: 'train',
      ceilings: { ...ceilings, fma: 8e11 },
      outcomes: { diffit: { rounds: [2], peakRss: 2 ** 20 }, 'torch eager': { rounds: [1], peakRss: 2 ** 22 } },
      targets: [{ kind: 'memory', bound: 0.5, peers: ['torch eager'] }],
    }),
  ],
};

t.test('tables', async (t) => {
  const text = cpuTables(report);
  t.match(text, 'A processor, 2 threads of everything, our variant avx2; 2026-01-02, commit abc; torch 2.13.');
  t.match(text, 'multiply-adds 1000 GFLOP/s (one thread 500), its bf16 dot product 2000; a large copy 100.0 GB/s');
  t.match(text, 'just before and after it, 800 to 1000 GFLOP/s.');
  t.match(text, 'Not there: There is none.');
  // 1 GFLOP in 3 ms: 333 GFLOP/s, a third of the peak. Ratios 3 and 1.5.
  t.match(text, '| a | 3.00 | 333 | 33% | 6.00 (**2.25**, 1.50–3.00) | no | >= 2x torch | yes, 2.25 |');
  t.match(text, '- sgemm/a, OpenBLAS: gone');
  t.match(text, 'its largest number: f32 1.0e-6 (torch).');
  t.match(text, '| b/f32 | 2.00 |  |  | 1.00 (**0.50**, 0.50–0.50) | memory <= 0.5x torch eager | yes, 0.25 |');
  t.match(text, '- b/f32: diffit 1 MiB, torch eager 4 MiB');
});

t.test('a second run beside the first', async (t) => {
  const [plain, trained] = report.rows;
  const second: CpuReport = {
    ...report,
    ceilings: { ...ceilings, fma: 9e11 },
    rows: [
      { ...plain, outcomes: { diffit: outcome(1, 2), torch: outcome(6, 6) } },
      { ...trained, outcomes: { diffit: { rounds: [], failure: 'gone' } } },
      row({ id: 'sgemm/new' }),
    ],
  };
  const text = repeatTable(report, second);
  t.match(text, 'with ceilings of 900 GFLOP/s and 100.0 GB/s');
  // Medians 3 and 1.5; ratios by round 3, 1.5 and then 6, 3.
  t.match(text, '| sgemm/a | 3.00, 1.50 | 0.50 | >= 2x torch: 2.25, 4.50 |');
  t.match(text, '| train/b/f32 | failed |');
  t.notMatch(text, 'sgemm/new');
  const both = { one: report, 'one-repeat': second };
  t.match(withTables('<!-- table: one-repeat -->\n<!-- end -->', both), text);
  t.match(withTables('<!-- table: one-repeat -->\n<!-- end -->', { 'one-repeat': second }), cpuTables(second));
});

t.test('regions of a text', async (t) => {
  const before = 'A\n<!-- table: one -->\nold\n<!-- end -->\nB\n<!-- table: two -->\nkept\n<!-- end -->\nC\n';
  t.same(tablesIn(before), ['one', 'two']);
  const after = withTables(before, { one: report });
  t.equal(
    after,
    `A\n<!-- table: one -->\n\n${cpuTables(report)}\n\n<!-- end -->\nB\n<!-- table: two -->\nkept\n<!-- end -->\nC\n`,
  );
  t.equal(withTables(after, { one: report }), after, 'twice is once');
  t.throws(() => withTables('<!-- table: one -->\nold\n', { one: report }), /the table one has no <!-- end -->/);
  t.throws(() => withTables(`<!-- table: one -->\nold\n<!-- table: two --><!-- end -->`, {}), /the table one has no/);
  const folder = temporaryFolder(t);
  const file = join(folder, 'x.md');
  const alone = before.replace(/<!-- table: two[\s\S]*?end -->/, '');
  writeFileSync(file, alone);
  writeFileSync(join(folder, 'one.json'), JSON.stringify(report));
  rewriteTables(file, folder);
  t.equal(readFileSync(file, 'utf8'), withTables(alone, { one: report }));
});

t.test('docs/benchmarks.md has the tables of the committed results', async (t) => {
  const docs = readFileSync(fileURLToPath(new URL('../../docs/benchmarks.md', import.meta.url)), 'utf8');
  const results = fileURLToPath(new URL('../../bench/results', import.meta.url));
  t.equal(withTables(docs, reportsFor(docs, results)), docs, 'else: npx tsx bench/tables.ts');
  const committed = readdirSync(results).filter((name) => /^cpu-.*\.json$/.test(name));
  t.same(tablesIn(docs).sort(), committed.map((name) => name.replace('.json', '')).sort(), 'every result is shown');
});

t.test('files and errors', async (t) => {
  const file = join(temporaryFolder(t), 'x.safetensors');
  const data = new Float32Array([1, -2, 4, 0, 8, 3]);
  writeTensors(file, { a: { shape: [2, 3], data }, b: { shape: [1], data: new Float32Array([5]) } });
  const read = readTensors(file);
  t.same(read.a, { dtype: 'F32', shape: [2, 3], data });
  const given = (...values: number[]): Record<string, FileTensor> => ({
    a: { dtype: 'F32', shape: [values.length], data: new Float32Array(values) },
  });
  t.equal(errorOf(given(1, 2, 4), given(1, 2, 4)), 0);
  t.equal(errorOf(given(1, 2.5, 4), given(1, 2, 4)), 0.125);
  for (const wrong of [given(Number.NaN, 2, 4), given(1, 2), {}]) t.equal(errorOf(wrong, given(1, 2, 4)), Infinity);
  t.equal(errorOf(given(1, Number.NaN, 4), given(1, 2, 4)), Infinity);
});

t.test('the list of works', async (t) => {
  for (const list of [works(), quickWorks()]) {
    t.equal(new Set(list.map(({ id }) => id)).size, list.length, 'ids differ');
    for (const { id, by, targets } of list) {
      t.equal(by[0], 'diffit', id);
      for (const name of by) t.ok(implementations[name], `${id}: ${name}`);
      for (const { peers = [] } of targets)
        for (const peer of peers) t.ok(by.includes(peer), `${id} is timed by ${peer}`);
    }
  }
  // What torch.utils.flop_counter counts, 32.668 GFLOP, and the attention in windows, which it leaves out: 16 tokens wide, 20 blocks.
  const { kind, config } = network('cifar10');
  const counted = forwardFlops(kind, config) / 1e9;
  t.ok(Math.abs(counted / (32.667992 + 0.172) - 1) < 1e-4, `${counted}`);
});
