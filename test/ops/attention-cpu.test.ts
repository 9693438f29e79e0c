/**
 * attention on every variant of the CPU in f32 and bf16, forward and every gradient against plain loops in f64: head dims that fill
 * vectors and that do not, windows of one tile, of several, wide ones (whose table is read in place) and odd ones, a tensor large
 * enough that its gradient is written past the caches, and without time token or table; and the same bits from one thread and from
 * three.
 */
import t from 'tap';
import '../../lib/autograd.js';
import { cpuVariants, type DeviceName, setDefaultDevice, setNumThreads } from '../../lib/device.js';
import { attention } from '../../lib/ops/attention.js';
import { scope } from '../../lib/scope.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { numbers, withoutLeaks } from '../helpers.js';
import * as reference from './reference.js';

type Dtype = 'f32' | 'bf16';
const limits: Record<Dtype, number> = { f32: 2e-6, bf16: 5e-3 };

const sizes = (h: number, w: number, wh: number, ww: number, heads: number, d: number): reference.AttentionSizes => ({
  b: 2,
  h,
  w,
  heads,
  d,
  wh,
  ww,
});
const cases: reference.AttentionSizes[] = [
  ...[72, 64, 32, 128, 20].flatMap((d) => [
    sizes(8, 8, 4, 4, 3, d),
    sizes(8, 16, 8, 8, 2, d),
    { ...sizes(16, 16, 16, 16, 1, d), b: 1 },
  ]),
  sizes(2, 3, 1, 1, 2, 72),
  sizes(1, 7, 1, 7, 2, 72),
  sizes(10, 10, 10, 10, 2, 72),
  sizes(6, 16, 6, 16, 2, 64),
  sizes(8, 48, 8, 48, 1, 64),
  { ...sizes(32, 32, 32, 32, 1, 72), b: 1 },
  { ...sizes(80, 64, 4, 4, 4, 72), b: 1 },
];

interface Inputs {
  qkv: Tensor;
  time?: Tensor;
  table?: Tensor;
  dy: Tensor;
}
const names = ['y', 'dqkv', 'dtime', 'dtable'] as const;

function inputs({ b, h, w, heads, d, wh, ww }: reference.AttentionSizes, dtype: Dtype, left: string): Inputs {
  const c = heads * d;
  const rows = (2 * wh - 1) * (2 * ww - 1);
  const make = (seed: number, shape: number[], scale: number, type: Dtype): Tensor =>
    tensor(
      numbers(
        seed,
        shape.reduce((x, y) => x * y),
        scale,
      ),
      { shape, dtype: type, requiresGrad: true },
    );
  return {
    qkv: make(1, [b, h, w, 3 * c], 2, dtype),
    time: left.includes('time') ? make(2, [b, 3 * c], 1, 'f32') : undefined,
    table: left.includes('table') ? make(3, [rows, heads], 2, 'f32') : undefined,
    dy: make(4, [b, h, w, c], 1, dtype),
  };
}

function run({ heads, wh, ww }: reference.AttentionSizes, { qkv, time, table, dy }: Inputs): (Tensor | undefined)[] {
  const y = attention(qkv, { heads, window: [wh, ww], time, table });
  y.backward(dy);
  return [y, qkv.grad, time?.grad, table?.grad];
}

/** The gradients of leaves outlive a scope. */
function clear({ qkv, time, table, dy }: Inputs): void {
  for (const x of [qkv, time, table, dy]) {
    x?.grad?.dispose();
    if (x) x.grad = undefined;
  }
}

async function distance(x: Tensor, expected: Float64Array): Promise<number> {
  const data = await x.data();
  let [error, size] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    error += (Number(data[i]) - expected[i]) ** 2;
    size += expected[i] ** 2;
  }
  return Math.sqrt(error / size);
}

/** By case: the same for every variant. */
const references = new Map<string, ReturnType<typeof reference.attention>>();

for (const variant of cpuVariants() as DeviceName[]) {
  t.test(variant, async (t) => {
    setDefaultDevice(variant);
    for (const dtype of ['f32', 'bf16'] as const)
      for (const c of cases)
        for (const left of c.wh * c.ww <= 64 && c.h * c.w <= 1024
          ? ['time and table', 'time', 'table', 'neither']
          : ['time and table'])
          await withoutLeaks(t, variant, async () => {
            const x = inputs(c, dtype, left);
            const results = run(c, x);
            const values = async (v: Tensor | undefined, n: number) =>
              v ? ((await v.data()) as Float32Array) : new Float32Array(n);
            const key = JSON.stringify([c, dtype, left]);
            const expected =
              references.get(key) ??
              reference.attention(
                await values(x.qkv, 0),
                await values(x.time, c.b * 3 * c.heads * c.d),
                await values(x.table, (2 * c.wh - 1) * (2 * c.ww - 1) * c.heads),
                c,
                await values(x.dy, 0),
              );
            references.set(key, expected);
            for (const [i, name] of names.entries()) {
              const result = results[i];
              if (!result) continue;
              const error = await distance(result, expected[name]);
              // a window of one token has gradients of q and k that are rounding alone, and none of the table
              if (c.wh * c.ww === 1 && name === 'dtable') continue;
              t.ok(error <= limits[dtype], `${Object.values(c)} ${dtype}, ${left}: ${name} ${error.toExponential(1)}`);
            }
            clear(x);
          });
  });
}

t.test('one thread gives the same bits as three', async (t) => {
  setDefaultDevice('cpu');
  for (const dtype of ['f32', 'bf16'] as const)
    for (const c of cases) {
      const bits = async (threads: number): Promise<Uint8Array[]> => {
        setNumThreads(threads);
        return scope(async () => {
          const x = inputs(c, dtype, 'time and table');
          const results = await Promise.all((run(c, x) as Tensor[]).map((result) => result.bytes()));
          clear(x);
          return results;
        });
      };
      t.strictSame(await bits(1), await bits(3), `${Object.values(c)} ${dtype}`);
    }
  setNumThreads(0);
});
