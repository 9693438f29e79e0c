/**
 * attention in bf16 and f16 on tensor cores: values and every gradient against f64, at shapes that meet each kernel, its tails and its way round;
 * and no less exact than PyTorch's eager bf16 (test/reference/make_attention_lowp.py measured that on the same numbers).
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { native } from '../../lib/native.js';
import { attention } from '../../lib/ops/attention.js';
import { autocast, type LowPrecision, noGrad } from '../../lib/scope.js';
import { Tensor, tensor } from '../../lib/tensor.js';
import { numbers, withoutLeaks } from '../helpers.js';
import { device } from './lowp.js';
import * as reference from './reference.js';

type Errors = Record<'y' | 'dqkv' | 'dtime' | 'dtable', number>;
interface Case extends reference.AttentionSizes {
  name: string;
  /** Errors of PyTorch's eager computation in the dtype. */
  errors: Record<LowPrecision, Errors>;
}
const { cases }: { cases: Case[] } = JSON.parse(
  readFileSync(new URL('../fixtures/attention_lowp.json', import.meta.url), 'utf8'),
);

const limits: Record<LowPrecision, number> = { bf16: 5e-3, f16: 7e-4 };

interface Inputs {
  qkv: Tensor;
  time?: Tensor;
  table?: Tensor;
  dy: Tensor;
}

/** The numbers of make_attention_lowp.py; `shift` is added to the table. */
function inputs({ b, h, w, heads, d, wh, ww }: reference.AttentionSizes, dtype: LowPrecision, shift = 0): Inputs {
  const c = heads * d;
  const rows = (2 * wh - 1) * (2 * ww - 1);
  const make = (seed: number, shape: number[], scale: number, type: LowPrecision | 'f32') =>
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
    time: make(2, [b, 3 * c], 1, 'f32'),
    table: tensor(
      numbers(3, rows * heads).map((x) => x + shift),
      { shape: [rows, heads], requiresGrad: true },
    ),
    dy: make(4, [b, h, w, c], 1, dtype),
  };
}

/** ||x - expected|| / ||expected||. */
async function distance(x: Tensor | undefined, expected: ArrayLike<number>): Promise<number> {
  const data = (await x?.data()) ?? [];
  let [error, size] = [0, 0];
  for (let i = 0; i < expected.length; i++) {
    error += (Number(data[i]) - expected[i]) ** 2;
    size += expected[i] ** 2;
  }
  return Math.sqrt(error / size);
}

const values = async (x: Tensor): Promise<Float32Array> => (await x.data()) as Float32Array;

t.before(() => setDefaultDevice(device));

/** The call, its gradients, and their errors against f64. */
async function errorsOf(c: reference.AttentionSizes, { qkv, time, table, dy }: Inputs, shift = 0): Promise<Errors> {
  const y = attention(qkv, { heads: c.heads, window: [c.wh, c.ww], time, table });
  y.backward(dy);
  const c3 = 3 * c.heads * c.d;
  const expected = reference.attention(
    await values(qkv),
    time ? await values(time) : new Float32Array(c.b * c3),
    table ? (await values(table)).map((x) => x - shift) : new Float32Array((2 * c.wh - 1) * (2 * c.ww - 1) * c.heads),
    c,
    await values(dy),
  );
  return {
    y: await distance(y, expected.y),
    dqkv: await distance(qkv.grad, expected.dqkv),
    dtime: time ? await distance(time.grad, expected.dtime) : 0,
    dtable: table ? await distance(table.grad, expected.dtable) : 0,
  };
}

function clear({ qkv, time, table }: Inputs): void {
  for (const x of [qkv, time, table]) {
    x?.grad?.dispose();
    if (x) x.grad = undefined;
  }
}

t.before(() => setDefaultDevice(device));

/** Emulated half precision costs the most: large cases run in bf16 alone. */
const work = ({ b, h, w, heads, d, wh, ww }: reference.AttentionSizes): number => b * h * w * wh * ww * heads * d;

for (const c of cases) {
  for (const dtype of work(c) < 4e6 ? (['bf16', 'f16'] as const) : (['bf16'] as const)) {
    t.test(`${c.name}, ${dtype}`, (t) =>
      withoutLeaks(t, device, async () => {
        const x = inputs(c, dtype);
        const errors = await errorsOf(c, x);
        t.match(
          [x.qkv, x.time, x.table].map((leaf) => leaf?.grad?.dtype),
          [dtype, 'f32', 'f32'],
        );
        const keys = ['y', 'dqkv', 'dtime', 'dtable'] as const;
        t.ok(
          keys.every((key) => errors[key] <= Math.min(limits[dtype], c.errors[dtype][key])),
          keys
            .map((key) => `${key} ${errors[key].toExponential(1)} (eager ${c.errors[dtype][key].toExponential(1)})`)
            .join(', '),
        );
        clear(x);
      }),
    );
  }
}

const small = (sizes: Partial<reference.AttentionSizes>): reference.AttentionSizes => ({
  b: 2,
  h: 8,
  w: 8,
  heads: 2,
  d: 32,
  wh: 8,
  ww: 8,
  ...sizes,
});
/** One of each family of kernels: a warp per window, a block per window, grids. */
const families: Record<string, reference.AttentionSizes> = {
  'windows of 4x4': small({ wh: 4, ww: 4 }),
  'windows of 8x8': small({}),
  'a grid of 12x16': small({ b: 1, h: 12, w: 16, wh: 12, ww: 16 }),
  'a grid of 9x11': small({ h: 9, w: 11, wh: 9, ww: 11, heads: 1 }),
};

for (const [name, c] of Object.entries(families)) {
  t.test(`${name}: without a time token, without a table, without either`, (t) =>
    withoutLeaks(t, device, async () => {
      for (const left of ['time', 'table', 'neither'] as const) {
        const all = inputs(c, 'bf16');
        const x: Inputs = {
          ...all,
          time: left === 'time' ? all.time : undefined,
          table: left === 'table' ? all.table : undefined,
        };
        const errors = await errorsOf(c, x);
        t.ok(
          Object.values(errors).every((error) => error <= limits.bf16),
          `${left}: ${JSON.stringify(errors)}`,
        );
        clear(x);
      }
    }),
  );

  t.test(`${name}: the same bits on every run, and without recording`, (t) =>
    withoutLeaks(t, device, async () => {
      const x = inputs({ ...c, b: 3 }, 'bf16');
      const run = async (): Promise<Uint8Array[]> => {
        const y = attention(x.qkv, { heads: c.heads, window: [c.wh, c.ww], time: x.time, table: x.table });
        y.backward(x.dy);
        const bits = await Promise.all(
          [y, x.qkv.grad, x.time?.grad, x.table?.grad].map((result) => (result as Tensor).bytes()),
        );
        clear(x);
        return bits;
      };
      const first = await run();
      t.strictSame(await run(), first);
      const plain = noGrad(() =>
        attention(x.qkv, { heads: c.heads, window: [c.wh, c.ww], time: x.time, table: x.table }),
      );
      t.strictSame(await plain.bytes(), first[0]);
    }),
  );

  t.test(`${name}: the log-sum-exp of every row`, (t) =>
    withoutLeaks(t, device, async () => {
      const { qkv, time, table, dy } = inputs(c, 'bf16') as Required<Inputs>;
      const [y, lse] = [Tensor.empty(dy.shape, 'bf16', device), Tensor.empty([c.b, c.heads, c.h, c.w], 'f32', device)];
      const { heads, wh, ww } = c;
      native.ops.attention(qkv.id, time.id, table.id, y.id, lse.id, heads, wh, ww, 1 / Math.sqrt(c.d));
      const expected = reference.attention(
        await values(qkv),
        await values(time),
        await values(table),
        c,
        await values(dy),
      );
      const error = await distance(lse, expected.lse);
      t.ok(error < 1e-3, `error ${error.toExponential(1)}`);
    }),
  );

  // Rows whose log-sum-exp is below -88.7, where exp(-lse) would overflow: a known NaN of cuDNN's.
  t.test(`${name}: very negative logits`, (t) =>
    withoutLeaks(t, device, async () => {
      for (const shift of [-95, -300]) {
        const x = inputs(c, 'bf16', shift);
        const errors = await errorsOf(c, x, shift);
        t.ok(
          Object.values(errors).every((error) => error <= limits.bf16),
          `${shift}: ${JSON.stringify(errors)}`,
        );
        clear(x);
      }
    }),
  );
}

t.test('a table per sample goes through f32', (t) =>
  withoutLeaks(t, device, async () => {
    const c = small({ wh: 4, ww: 4 });
    const { qkv, dy } = inputs(c, 'bf16');
    const tables = tensor(numbers(5, c.b * 49 * c.heads), { shape: [c.b, 49, c.heads], requiresGrad: true });
    const y = attention(qkv, { heads: c.heads, window: [4, 4], table: tables });
    y.backward(dy);
    const slice = (x: Float32Array, i: number): Float32Array =>
      x.subarray((i * x.length) / c.b, ((i + 1) * x.length) / c.b);
    const [all, allTables, allDy] = [await values(qkv), await values(tables), await values(dy)];
    const parts = Array.from({ length: c.b }, (_, i) =>
      reference.attention(
        slice(all, i),
        new Float32Array(3 * c.heads * c.d),
        slice(allTables, i),
        { ...c, b: 1 },
        slice(allDy, i),
      ),
    );
    const joined = (key: 'y' | 'dqkv' | 'dtable'): number[] => parts.flatMap((part) => Array.from(part[key]));
    t.ok((await distance(y, joined('y'))) < limits.bf16);
    t.ok((await distance(qkv.grad, joined('dqkv'))) < limits.bf16);
    t.ok((await distance(tables.grad, joined('dtable'))) < limits.bf16);
    qkv.grad?.dispose();
    tables.grad?.dispose();
  }),
);

t.test('under autocast f32 tokens are rounded, their gradient is f32', (t) =>
  withoutLeaks(t, device, async () => {
    const c = families['windows of 8x8'];
    const { qkv, time, table, dy } = inputs(c, 'bf16');
    const wide = tensor(await values(qkv), { shape: qkv.shape, requiresGrad: true });
    const options = { heads: c.heads, window: [8, 8], time, table } as const;
    const [y, low] = [autocast('bf16', () => attention(wide, options)), attention(qkv, options)];
    t.equal(y.dtype, 'bf16');
    t.strictSame(await y.bytes(), await low.bytes());
    y.backward(dy);
    clear({ qkv, time, table, dy });
    low.backward(dy);
    t.equal(wide.grad?.dtype, 'f32');
    t.strictSame(await values(wide.grad as Tensor), await values(qkv.grad as Tensor));
    wide.grad?.dispose();
    clear({ qkv, time, table, dy });
  }),
);

t.test('the time token and the table may be given in bf16', (t) =>
  withoutLeaks(t, device, async () => {
    const c = families['windows of 4x4'];
    const { qkv, time, table } = inputs(c, 'bf16');
    const low = [time as Tensor, table as Tensor].map((x) => x.to('bf16'));
    const run = ([token, bias]: Tensor[]): Tensor =>
      noGrad(() => attention(qkv, { heads: c.heads, window: [4, 4], time: token, table: bias }));
    const [y, same] = [run(low), run(low.map((x) => x.to('f32')))];
    t.strictSame(await y.bytes(), await same.bytes());
  }),
);
