/**
 * Products of two bf16 matrices on the CPU, by the processor's dot product and widened (DIFFIT_CPU_BF16), each in processes of its own:
 * against sums in double precision, in every transposition, with odd sizes, several blocks and splits of k and a full epilogue.
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { native } from '../../lib/native.js';
import { unaryKinds } from '../../lib/ops/elementwise.js';
import { bareEnvironment, numbers } from '../helpers.js';
import { normError, rounded } from './lowp.js';
import * as reference from './reference.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

interface Case {
  m: number;
  n: number;
  k: number;
  batch?: number;
  transA?: boolean;
  transB?: boolean;
  /** y in bf16, with bias, SiLU, a residual and what y holds; else the plain product in f32. */
  ends?: boolean;
  a?: ArrayLike<number>;
  b?: ArrayLike<number>;
}

const cases: Case[] = [];
for (const transA of [false, true]) {
  for (const transB of [false, true]) {
    const how = { transA, transB };
    cases.push({ m: 27, n: 33, k: 401, ...how }, { m: 27, n: 33, k: 401, ends: true, ...how });
    cases.push({ m: 15, n: 70, k: 37, batch: 3, ...how }, { m: 100, n: 64, k: 1537, ends: true, ...how });
    cases.push({ m: 6, n: 16, k: 6001, ...how }, { m: 30, n: 96, k: 1024, ...how }); // splits, blocks of k
    cases.push({ m: 5, n: 9, k: 1, ...how }, { m: 14, n: 32, k: 2, ...how }, { m: 3, n: 4, k: 0, ends: true, ...how });
    const whole = (count: number, seed: number) => Float64Array.from({ length: count }, (_, i) => ((i * seed) % 9) - 4);
    cases.push({ m: 29, n: 35, k: 99, a: whole(29 * 99, 7), b: whole(35 * 99, 5), ...how });
  }
}

/** Reads jobs as JSON, writes the result of each: numbers go both ways as the base64 of their bytes. */
const script = `
  const native = require('node-gyp-build')(${JSON.stringify(root)});
  const cpu = native.openDevice('cpu:avx512', '', 0);
  const put = (dtype, base64, ...shape) => {
    const x = native.alloc(cpu, dtype, shape.length, ...shape), bytes = Buffer.from(base64, 'base64');
    if (bytes.length) native.write(x, new Uint8Array(bytes), 0);
    return x;
  };
  (async () => {
    const out = [];
    for (const { a, b, y, bias, residual, batch, m, n, k, transA, transB, activation } of JSON.parse(require('fs').readFileSync(0))) {
      const to = put(activation < 0 ? 0 : 1, y, batch, m, n);
      native.ops.gemm(put(1, a, batch, m, k), put(1, b, batch, k, n), bias ? put(0, bias, n) : 0, 0,
        residual ? put(0, residual, batch, m, n) : 0, to, 0, batch, m, n, k, transA, transB, activation, -1, activation < 0 ? 0 : 1);
      out.push(Buffer.from(await native.read(to)).toString('base64'));
    }
    console.log(JSON.stringify(out));
  })();
`;

const base64 = (x: ArrayBufferView): string => Buffer.from(x.buffer, x.byteOffset, x.byteLength).toString('base64');
/** Values that bf16 holds, as its bits. */
const bf16Bits = (x: ArrayLike<number>): Uint16Array =>
  Uint16Array.from(new Uint32Array(Float32Array.from(x).buffer), (bits) => bits >>> 16);

interface Job {
  request: Record<string, unknown>;
  expected: Float64Array;
}

function job({ m, n, k, batch = 1, transA, transB, ends, ...given }: Case): Job {
  const a = Float64Array.from(given.a ?? rounded(numbers(1, batch * m * k), 'bf16'));
  const b = Float64Array.from(given.b ?? rounded(numbers(2, batch * k * n), 'bf16'));
  const expected = new Float64Array(batch * m * n);
  for (let z = 0; z < batch; z++) {
    const [x, w] = [a.slice(z * m * k, (z + 1) * m * k), b.slice(z * k * n, (z + 1) * k * n)];
    const left = transA ? reference.transpose(x, k, m) : x;
    expected.set(reference.matmul(left, transB ? reference.transpose(w, n, k) : w, m, k, n), z * m * n);
  }
  const request = { batch, m, n, k, transA: transA ? 1 : 0, transB: transB ? 1 : 0, activation: -1 };
  const operands = { a: base64(bf16Bits(a)), b: base64(bf16Bits(b)), y: '' };
  if (!ends) return { request: { ...request, ...operands }, expected };
  const [bias, residual] = [numbers(3, n), numbers(4, expected.length)];
  const before = rounded(numbers(5, expected.length), 'bf16');
  for (let i = 0; i < expected.length; i++) {
    const v = expected[i] + bias[i % n];
    expected[i] = v / (1 + Math.exp(-v)) + residual[i] + before[i];
  }
  const more = { y: base64(bf16Bits(before)), bias: base64(bias), residual: base64(residual) };
  return { request: { ...request, ...operands, ...more, activation: unaryKinds.silu }, expected };
}

function run(env: Record<string, string>, jobs: Job[]): { error: string; results: string[] } {
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', script], {
    cwd: root,
    env: bareEnvironment(env),
    input: JSON.stringify(jobs.map(({ request }) => request)),
    encoding: 'utf8',
    maxBuffer: 2 ** 26,
  });
  return { error: stderr.trim(), results: stdout ? JSON.parse(stdout) : [] };
}

const bytesOf = (result: string): ArrayBuffer => new Uint8Array(Buffer.from(result, 'base64')).buffer;
const floats = (result: string): Float32Array => new Float32Array(bytesOf(result));
const widened = (result: string): Float32Array =>
  new Float32Array(Uint32Array.from(new Uint16Array(bytesOf(result)), (bits) => bits << 16).buffer);

const runs = native.cpuVariants().includes('avx512');
const hasDots = runs && run({ DIFFIT_CPU_BF16: 'dot' }, []).error === '';

for (const way of ['dot', 'widen']) {
  t.test(way, { skip: !(way === 'dot' ? hasDots : runs) && 'the processor has no such instruction' }, async (t) => {
    const jobs = cases.map(job);
    const { error, results } = run({ DIFFIT_CPU_BF16: way, DIFFIT_NUM_THREADS: '2' }, jobs);
    t.equal(error, '');
    for (const [i, { m, n, k, batch = 1, transA, transB, ends, a }] of cases.entries()) {
      const name = `${batch} x ${m} x ${n} x ${k}${transA ? ' a^T' : ''}${transB ? ' b^T' : ''}`;
      const actual = ends ? widened(results[i]) : floats(results[i]);
      if (a) t.strictSame([...actual], [...jobs[i].expected], `${name} of whole numbers`);
      const [off, limit] = [normError(actual, jobs[i].expected), ends ? 2.5e-3 : 1e-6];
      t.ok(off <= limit, `${name}${ends ? ' with an epilogue' : ''}: ${off.toExponential(1)} <= ${limit}`);
    }
    const alone = run({ DIFFIT_CPU_BF16: way, DIFFIT_NUM_THREADS: '1' }, jobs);
    t.strictSame(alone.results, results, 'the same bits on one thread');
    // The instruction takes denormals for zeros: which way it went shows.
    const denormal = job({ m: 20, n: 20, k: 1, a: Array(20).fill(2 ** -130), b: Array(20).fill(2 ** 20) });
    const [value] = floats(run({ DIFFIT_CPU_BF16: way }, [denormal]).results[0]);
    t.equal(value, way === 'dot' ? 0 : 2 ** -110, 'a denormal');
  });
}

t.test('a wrong choice is one sentence', async (t) => {
  const start = (variant: string, way: string) => run({ DIFFIT_CPU: variant, DIFFIT_CPU_BF16: way }, []).error;
  if (runs) t.match(start('avx512', 'dots'), /DIFFIT_CPU_BF16 is "dots"; expected dot or widen\./);
  if (runs && !hasDots) t.match(start('avx512', 'dot'), /avx512 kernels on this processor have no bf16 dot product\./);
  process.env.DIFFIT_CPU_BF16 = 'dot';
  t.throws(() => native.openDevice(`cpu:${native.cpuVariants().at(-1)}`, '', 1), {
    message: /DIFFIT_CPU_BF16 is "dot"; the (baseline|neon) kernels on this processor have no bf16 dot product\./,
  });
  process.env.DIFFIT_CPU_BF16 = 'both';
  t.throws(() => native.openDevice('cpu', '', 1), { message: /DIFFIT_CPU_BF16 is "both"; expected dot or widen\./ });
  process.env.DIFFIT_CPU_BF16 = '';
  t.ok(native.openDevice('cpu', '', 1), 'empty: as if it were not there');
});
