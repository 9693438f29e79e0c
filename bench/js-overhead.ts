/**
 * What an operation costs the main thread: JavaScript, the N-API crossing and the collector, but not the kernel, which runs on the device
 * queue's own thread. Tensors are tiny, so that the queue keeps up. Prints microseconds an operation and writes
 * bench/results/js-overhead.json; --only and --quick write to --out alone.
 *
 *     npm run build:ts && npx tsx bench/js-overhead.ts [--only TEXT] [--rounds 9] [--batches 20] [--package FILE] [--out FILE] [--quick]
 *
 * A batch is 250 times the operation in a scope() without recording, whose end disposes the results; then 250 with recording, every tensor
 * argument a leaf of its own, and a backward() from each result to its leaves. A round is some batches, the queue drained between them; the
 * figures are medians over the rounds of what a round took in all, so collections of garbage are in them. --package is another build to measure.
 */
import { resolve } from 'node:path';
import { PerformanceObserver } from 'node:perf_hooks';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import type { Tensor } from '../lib/index.js';
import { ownMs } from './own-time.js';
import { writeResult } from './training.js';

const { values } = parseArgs({
  options: {
    package: { type: 'string', default: fileURLToPath(new URL('../dist/index.js', import.meta.url)) },
    only: { type: 'string', default: '' },
    rounds: { type: 'string', default: '9' },
    batches: { type: 'string', default: '20' },
    out: { type: 'string' },
    quick: { type: 'boolean', default: false },
  },
});
const [rounds, batches] = values.quick ? [3, 2] : [Number(values.rounds), Number(values.batches)];
const perBatch = 250;
const diffit: typeof import('../lib/index.js') = await import(pathToFileURL(resolve(values.package)).href);
const { nn, noGrad, ones, optim, scope, setNumThreads, synchronize, tensor } = diffit;
const F = nn.functional;
setNumThreads(1); // where there are two cores, the main thread has one and the queue's the other

const vector = ones([4]);
const matrix = ones([2, 4]);
const square = ones([4, 4]);
const image = ones([1, 2, 2, 4]);
const table = ones([9, 2]);

/** Tensor arguments, and the operation on them. */
const operations: Record<string, [Tensor[], (...inputs: Tensor[]) => Tensor]> = {
  'x + y': [[vector, vector], (x, y) => x.add(y)],
  'x + 1': [[vector], (x) => x.add(1)],
  'x * y': [[vector, vector], (x, y) => x.mul(y)],
  'x * y, broadcast': [[matrix, vector], (x, y) => x.mul(y)],
  silu: [[vector], (x) => F.silu(x)],
  'to bf16': [[vector], (x) => x.to('bf16')],
  reshape: [[matrix], (x) => x.reshape([4, 2])],
  permute: [[matrix], (x) => x.permute([1, 0])],
  'slice, a view': [[matrix], (x) => x.slice(0, 0, 1)],
  'slice, a copy': [[matrix], (x) => x.slice(1, 0, 2)],
  concat: [[matrix, matrix], (x, y) => F.concat([x, y], 1)],
  'sum over an axis': [[matrix], (x) => x.sum(1)],
  softmax: [[matrix], (x) => F.softmax(x)],
  layerNorm: [[matrix, vector, vector], (x, weight, bias) => F.layerNorm(x, { weight, bias })],
  'groupNorm + SiLU': [
    [image, vector, vector],
    (x, weight, bias) => F.groupNorm(x, { groups: 2, weight, bias, silu: true }),
  ],
  matmul: [[matrix, square], (x, y) => F.matmul(x, y)],
  linear: [[matrix, square, vector], (x, weight, bias) => F.linear(x, weight, bias)],
  'linear + GELU': [
    [matrix, square, vector],
    (x, weight, bias) => F.linear(x, weight, bias, { activation: 'geluTanh' }),
  ],
  conv2d: [[image, ones([4, 3, 3, 4]), vector], (x, weight, bias) => F.conv2d(x, weight, bias, { padding: 1 })],
  attention: [[ones([1, 2, 2, 12]), table], (qkv, table) => F.attention(qkv, { heads: 2, table })],
};

interface Row {
  name: string;
  /** Microseconds of the main thread an operation. */
  operation: number;
  dispose?: number;
  recorded?: number;
  backward?: number;
}
type Times = Omit<Row, 'name'>;

const median = (numbers: number[]): number => numbers.sort((a, b) => a - b)[numbers.length >> 1];
const each = Array.from({ length: perBatch }, (_, i) => i);

/** One batch of an operation: milliseconds of each part. */
function batch(inputs: Tensor[], op: (...inputs: Tensor[]) => Tensor): Required<Times> {
  const marks: number[] = [];
  const mark = (): unknown => marks.push(ownMs());
  noGrad(() =>
    scope(() => {
      mark();
      for (let i = 0; i < perBatch; i++) op(...inputs);
      mark();
    }),
  );
  mark();
  scope(() => {
    const leaves = each.map(() => inputs.map(leafOf));
    mark();
    const results = each.map((i) => op(...leaves[i]));
    mark();
    const gradients = results.map((y) => y.detach());
    mark();
    for (let i = 0; i < perBatch; i++) results[i].backward(gradients[i]);
    mark();
    for (const { grad } of leaves.flat()) grad?.dispose();
  });
  const [a, b, c, d, e, f, g] = marks;
  return { operation: b - a, dispose: c - b, recorded: e - d, backward: g - f };
}

function leafOf(x: Tensor): Tensor {
  const leaf = x.detach();
  leaf.requiresGrad = true;
  return leaf;
}

/** One batch of steps of AdamW over so many parameters. */
function stepping(count: number): () => Times {
  const parameters = Array.from({ length: count }, () => tensor([1, 2, 3, 4], { requiresGrad: true }));
  for (const parameter of parameters) parameter.grad = ones([4]);
  const optimizer = new optim.AdamW(parameters);
  return () => {
    const start = ownMs();
    for (let i = 0; i < perBatch; i += count) optimizer.step();
    return { operation: ownMs() - start };
  };
}

/** The median over the rounds of every part, in microseconds an operation. */
async function measure(run: () => Times): Promise<Times> {
  const rows: Times[] = [];
  for (let round = -1; round < rounds; round++) {
    const sum: Times = { operation: 0 };
    for (let i = 0; i < batches; i++) {
      for (const [part, ms] of Object.entries(run()))
        sum[part as keyof Times] = (sum[part as keyof Times] ?? 0) + (1000 * ms) / (batches * perBatch);
      await synchronize();
    }
    if (round >= 0) rows.push(sum); // before that, V8 compiles and the pool grows
  }
  const parts = Object.keys(rows[0]) as (keyof Times)[];
  return Object.fromEntries(
    parts.map((part) => [part, Number(median(rows.map((row) => Number(row[part]))).toFixed(2))]),
  ) as unknown as Times;
}

const works: Record<string, () => Times> = {
  ...Object.fromEntries(Object.entries(operations).map(([name, [inputs, op]]) => [name, () => batch(inputs, op)])),
  'AdamW, of one parameter': stepping(1),
  'AdamW, of 50, each': stepping(50),
};

let collections = 0;
new PerformanceObserver((list) => {
  for (const { duration } of list.getEntries()) collections += duration;
}).observe({ entryTypes: ['gc'] });

const chosen = Object.entries(works).filter(([name]) => name.includes(values.only));
if (chosen.length === 0) throw new Error(`--only ${values.only}: no operation has this in its name.`);
const start = performance.now();
const rows: Row[] = [];
const cell = (us: number | undefined): string => (us === undefined ? '' : us.toFixed(2)).padStart(10);
console.log(`microseconds of the main thread  operation  dispose  recorded  backward`);
for (const [name, run] of chosen) {
  const times = await measure(run);
  rows.push({ name, ...times });
  console.log(name.padEnd(32), cell(times.operation), cell(times.dispose), cell(times.recorded), cell(times.backward));
}
const garbage = Number(((100 * collections) / (performance.now() - start)).toFixed(1));
console.log(`collections of garbage: ${garbage}% of the time`);
const workload = { perBatch, batches, rounds, garbagePercent: garbage };
const part = values.quick || values.only !== '';
if (values.out || !part) writeResult('js-overhead', { workload, microseconds: rows }, values.out);
