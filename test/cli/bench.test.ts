/** `diffit bench`: every group runs on every device here, its JSON has what others read from it, bad usage is said in one line. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import t, { type Test } from 'tap';
import { quantiles } from '../../lib/bench/measure.js';
import { groups, type Report, roofline } from '../../lib/bench/report.js';
import { runGroup } from '../../lib/bench/run.js';
import { specsOf } from '../../lib/bench/specs.js';
import { run } from '../../lib/cli/program.js';
import * as io from '../../lib/io/index.js';
import { assertClose, forEachDevice, withoutLeaks } from '../helpers.js';
import { temporaryFolder } from '../train/fixtures.js';

async function diffit(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const [out, err]: string[][] = [[], []];
  const code = await run(argv, {
    stdout: { write: (text) => out.push(text) },
    stderr: { write: (text) => err.push(text) },
  });
  return { code, out: out.join(''), err: err.join('') };
}

function checkReport(t: Test, report: Report, device: string): void {
  t.match(report, { schema: 1, quick: true, dtype: 'f32', device: { name: device, model: String } });
  t.match(report.versions, { diffit: String, node: process.versions.node });
  t.ok(Date.parse(report.date) > 0 && report.ceilings.copy > 0 && report.ceilings.arithmetic > 0);
  t.ok(report.results.length > 0);
  for (const result of report.results) {
    const { id, ms, error, items } = result;
    t.notOk(error, `${id}: ${error ?? 'timed'}`);
    t.ok(ms && ms.low > 0 && ms.low <= ms.median && ms.median <= ms.high && ms.samples >= 2 && items > 0, id);
    t.match(result, { implementation: 'diffit', sizes: Object, dtype: 'f32', unit: /tokens|images|bytes/ });
  }
}

t.test('every group, as quick as can be', async (t) => {
  await forEachDevice(t, async (t, device) => {
    await withoutLeaks(t, device, async () => {
      for (const group of groups) {
        const { code, out, err } = await diffit('bench', group, '--device', device, '--quick', '--json');
        t.equal(code, 0, group);
        t.equal(err, '');
        const report: Report = JSON.parse(out);
        t.equal(report.group, group);
        checkReport(t, report, device);
      }
    });
  });
});

t.test('a table for people, a file for machines, a choice', async (t) => {
  const file = join(temporaryFolder(t), 'report.json');
  const asked = ['bench', 'gemm', '--quick', '--only', 'nn', '--out', file];
  const { code, out, err } = await diffit(...asked);
  t.equal(code, 0);
  t.match(out, /ceilings: copy .*B\/s, multiply-adds .*FLOP\/s\n.* of floor +per second\ngemm\/m32n48k64\/nn +\d/);
  t.match(err, /^Timing gemm 1\/1 {2}gemm\/m32n48k64\/nn\n$/);
  t.match(JSON.parse(readFileSync(file, 'utf8')).results, [{ id: 'gemm/m32n48k64/nn' }]);
  const listed = JSON.parse((await diffit('bench', 'attention', '--list', '--device', 'cuda', '--json')).out);
  t.match(listed, { group: 'attention', device: 'cuda', specs: Array });
  t.match(listed.specs[0], { id: 'attention/32x32/b8h16d72/forward', sizes: { side: 32, heads: 16, dim: 72 } });
});

t.test('inputs and results for a check elsewhere', async (t) => {
  const file = join(temporaryFolder(t), 'gemm.safetensors');
  const { code, out } = await diffit('bench', 'gemm', '--quick', '--only', '/nn', '--save', file, '--json');
  t.equal(code, 0);
  t.same(JSON.parse(out), { file, specs: ['gemm/m32n48k64/nn'] });
  const { tensors, metadata } = await io.loadSafetensors(file);
  t.match(metadata, { dtype: 'f32' });
  t.match(JSON.parse(metadata.specs), [{ sizes: { m: 32, n: 48, k: 64, layout: 'nn' } }]);
  const [a, b, y] = await Promise.all(['a', 'b', 'y'].map((name) => tensors[`gemm/m32n48k64/nn/${name}`].data()));
  const expected = Float64Array.from({ length: y.length }, (_, at) => {
    const [row, column] = [Math.floor(at / 48), at % 48];
    return Array.from({ length: 64 }, (_, k) => Number(a[row * 64 + k]) * Number(b[k * 48 + column])).reduce(
      (p, q) => p + q,
    );
  });
  assertClose(t, Array.from(y, Number), expected, 1e-6, 'y = a b');
  // The sizes are others than those that are timed: full, with two images.
  const narrow = ['bench', 'attention', '--only', 'attention/8x8/b2h16d72/forward', '--save', file, '--json'];
  t.match(JSON.parse((await diffit(...narrow)).out), { specs: ['attention/8x8/b2h16d72/forward'] });
  t.match(await diffit('bench', 'model', '--quick', '--save', file), {
    code: 2,
    err: /"model" has no single operations/,
  });
});

t.test('what cannot be timed is said, and the rest goes on', async (t) => {
  const report = await runGroup({ group: 'gemm', device: 'cpu', dtype: 'f32', quick: true, limit: 0 });
  t.ok(
    report.results.every(
      ({ ms, error }) => !ms && /^Not measured: the limit of 0 s had passed\.$/.test(error as string),
    ),
  );
  t.match(await diffit('bench', 'conv', '--device', 'cuda:63'), { code: 1, err: /^error: .*\n$/ });
});

t.test('bad usage: one line, exit code 2', async (t) => {
  const file = join(temporaryFolder(t), 'x');
  for (const [argv, message] of [
    [['bench'], /missing required argument 'what'/],
    [['bench', 'atention'], /Unknown benchmark "atention"; did you mean "attention"\?/],
    [['bench', 'gemm', '--dtype', 'f64'], /Allowed choices are f32, bf16, f16/],
    [['bench', 'gemm', '--device', 'gpu'], /Unknown device "gpu"/],
    [['bench', 'gemm', '--only', 'nothing'], /--only nothing: no benchmark of "gemm" has this in its name/],
    [['bench', 'gemm', '--limit', '0'], /integer of at least 1/],
    [['bench', 'gemm', 'conv'], /too many arguments/],
  ] as [string[], RegExp][]) {
    const { code, out, err } = await diffit(...argv, '--out', file);
    t.equal(code, 2, argv.join(' '));
    t.match(err, message);
    t.equal(err.trim().split('\n').length, 1, `one line: ${err}`);
    t.equal(out, '');
  }
  t.notOk(existsSync(file));
});

t.test('bytes, operations and what is made of them', async (t) => {
  const product = { id: '', group: 'gemm', sizes: {}, flops: 2e9, bytes: 1e6, items: 500, unit: 'tokens' } as const;
  const at = roofline(product, 4, { copy: 1e9, arithmetic: 1e12 });
  t.match(at, { gigabytesPerSecond: 0.25, gigaflops: 500, ofCopy: 0.25, ofArithmetic: 0.5, floor: 2, ofFloor: 0.5 });
  t.equal(at.perSecond, 125_000);
  t.match(roofline({ ...product, flops: undefined, bytes: undefined }, 4, { copy: 1, arithmetic: 1 }), {
    floor: undefined,
    ofFloor: undefined,
  });
  t.same(quantiles([3, 1, 2]), { median: 2, low: 1.2, high: 2.8 });
  // XL/2 at 256 pixels: 119 G multiply-adds a forward pass (docs/benchmarks.md), so 238 GFLOP.
  const xl = specsOf('model', 'full', 'bf16').find(({ id }) => id.startsWith('model/imagenet256'));
  t.ok(Math.abs((xl?.flops as number) / 32 / 238e9 - 1) < 0.01, `${(xl?.flops as number) / 32e9} GFLOP`);
  // The shapes are there.
  const ids = specsOf('gemm', 'full', 'bf16').map(({ id }) => id);
  for (const n of [1152, 3456, 4608]) for (const k of [1152, 3456, 4608]) t.ok(ids.includes(`gemm/m8192n${n}k${k}/nt`));
  for (const group of groups)
    for (const scale of ['full', 'cpu', 'quick'] as const) {
      const all = specsOf(group, scale, 'bf16').map(({ id }) => id);
      t.equal(new Set(all).size, all.length, `${group} ${scale}: ids differ`);
    }
});
