/** bench/compare.ts: rounds are pooled, ratios and shares of the ceilings are right, targets are judged by their worst row. */
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { judge, markdown, merge, type Report, readReports } from '../../bench/compare.js';
import { temporaryFolder } from '../train/fixtures.js';

const id = 'attention/32x32/b8h16d72/forward';

function report(times: Record<string, Record<string, number | string>>, change: Partial<Report> = {}): Report {
  const results = Object.entries(times).flatMap(([id, by]) =>
    Object.entries(by).map(([implementation, ms]) => {
      const spec = { id, implementation, dtype: 'bf16', flops: 1e12, bytes: 1e9, items: 1, unit: 'tokens' };
      if (typeof ms === 'string') return { ...spec, error: ms };
      return { ...spec, ms: { median: ms, low: ms, high: ms } };
    }),
  );
  const device = { name: 'cuda', model: 'GPU' };
  const head = { schema: 1, group: 'attention', date: '2026-01-01', versions: {}, device, quick: false, dtype: 'bf16' };
  return { ...head, ceilings: { copy: 2e12, arithmetic: 5e14 }, results, ...change };
}

t.test('rounds, ratios, ceilings', async (t) => {
  const rounds = [
    report({ [id]: { diffit: 3 } }),
    report({ [id]: { diffit: 4 } }),
    report({ [id]: { diffit: 8 } }),
    report({ [id]: { 'sdpa mask': 16, flex: 'no Triton' } }, { ceilings: { copy: 1e12, arithmetic: 1e15 } }),
  ];
  const [row, ...others] = merge(rounds);
  t.same(others, []);
  t.same(row.times, { diffit: { ms: 4, spread: 8 / 3 }, 'sdpa mask': { ms: 16, spread: 1 } });
  t.same(row.errors, { flex: 'no Triton' });
  // 1 GB at 2 TB/s takes 0.5 ms, 1 TFLOP at 1 PFLOP/s 1 ms: the better ceiling of each report counts.
  t.match(row, { ofCopy: 0.125, ofArithmetic: 0.25, ofFloor: 0.25 });
});

t.test('targets', async (t) => {
  const all = (reports: Report[]) => judge(reports, merge(reports));
  const status = (targets: ReturnType<typeof all>, what: RegExp) => targets.find((target) => what.test(target.what));
  const other = 'attention/32x32/b16h16d72/forward';
  const good = [report({ [id]: { diffit: 1, flex: 2, 'sdpa mask': 4 }, [other]: { diffit: 1, 'sdpa mask': 2 } })];
  t.match(status(all(good), /flex/), { status: 'met', found: { value: 2, id } });
  t.match(
    status(all(good), /1024.*float mask/),
    { status: 'not met', found: { value: 2, id: other } },
    'the worst row',
  );
  t.match(status(all(good), /cuBLASLt/), { status: 'not measured', found: undefined });
  for (const change of [{ quick: true }, { device: { name: 'cuda-emulated' } }, { device: { name: 'cpu' } }])
    t.ok(all([report({ [id]: { diffit: 1, flex: 2 } }, change)]).every(({ status }) => status === 'not measured'));
  const step = 'sampler/imagenet256/b16/guided ddpm step';
  const sampler = (arithmetic: number) =>
    all([
      report({ [step]: { diffit: 20, 'compile reduce-overhead': 21 }, [`${step} arithmetic`]: { diffit: arithmetic } }),
    ]);
  t.match(status(sampler(0.1), /arithmetic/), { status: 'met', found: { value: 0.005 } });
  t.match(status(sampler(0.5), /arithmetic/), { status: 'not met' });
  t.match(status(sampler(0.1), /torch.compile/), { status: 'met', found: { value: 1.05 } });
});

t.test('the command', async (t) => {
  const folder = temporaryFolder(t);
  const [path, table] = [join(folder, 'a.json'), join(folder, 'table.md')];
  const one = report({ [id]: { diffit: 2, flex: 3, eager: 'out of memory' } });
  writeFileSync(path, JSON.stringify(one));
  const script = fileURLToPath(new URL('../../bench/compare.ts', import.meta.url));
  const out = execFileSync(process.execPath, ['--import=tsx', script, '--markdown', table, path], { encoding: 'utf8' });
  t.equal(out.trim(), readFileSync(table, 'utf8').trim());
  t.match(out, `| ${id} | 2.00 | 100% | 3.00 (1.50) | no |`);
  t.match(out, `- ${id}, bf16, eager: out of memory`);
  t.match(out, /against flex_attention with the bias \| >= 1.3x \| 1.50x \(attention.*\) \| met \|/);
  t.equal(markdown([one], merge([one]), judge([one], merge([one]))).trim(), out.trim());
  writeFileSync(path, '{}');
  t.throws(() => readReports([path]), /a\.json is not a report/);
});
