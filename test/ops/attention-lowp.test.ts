/**
 * attention in bf16 and f16 on tensor cores: values and every gradient against f64, at shapes that meet each kernel, its tails and its way round;
 * and no less exact than PyTorch's eager bf16 (test/reference/make_attention_lowp.py measured that on the same numbers).
 */
import { readFileSync } from 'node:fs';
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { attention } from '../../lib/ops/attention.js';
import type { LowPrecision } from '../../lib/scope.js';
import { type Tensor, tensor } from '../../lib/tensor.js';
import { numbers, withoutLeaks } from '../helpers.js';
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

const device = 'cuda-emulated';
const limits: Record<LowPrecision, number> = { bf16: 1e-2, f16: 1.5e-3 };

function inputs({ b, h, w, heads, d, wh, ww }: reference.AttentionSizes, dtype: LowPrecision) {
  const c = heads * d;
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
    table: make(3, [(2 * wh - 1) * (2 * ww - 1), heads], 1, 'f32'),
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

for (const c of cases) {
  for (const dtype of ['bf16', 'f16'] as const) {
    t.test(`${c.name}, ${dtype}`, (t) =>
      withoutLeaks(t, device, async () => {
        const { qkv, time, table, dy } = inputs(c, dtype);
        const run = () => attention(qkv, { heads: c.heads, window: [c.wh, c.ww], time, table });
        const y = run();
        y.backward(dy);
        const expected = reference.attention(
          await values(qkv),
          await values(time),
          await values(table),
          c,
          await values(dy),
        );
        const got = { y, dqkv: qkv.grad, dtime: time.grad, dtable: table.grad };
        const lines: string[] = [];
        let good = y.dtype === dtype && qkv.grad?.dtype === dtype && time.grad?.dtype === 'f32';
        for (const key of ['y', 'dqkv', 'dtime', 'dtable'] as const) {
          const error = await distance(got[key], expected[key]);
          good &&= error < limits[dtype] && error <= 1.5 * c.errors[dtype][key];
          lines.push(`${key} ${error.toExponential(1)} (eager ${c.errors[dtype][key].toExponential(1)})`);
        }
        t.ok(good, lines.join(', '));
        const first = await table.grad?.bytes();
        const again = run();
        t.strictSame(await again.bytes(), await y.bytes(), 'the same values again');
        const clear = () => {
          for (const x of [qkv, time, table]) {
            x.grad?.dispose();
            x.grad = undefined;
          }
        };
        clear();
        again.backward(dy);
        t.strictSame(await (table.grad as Tensor | undefined)?.bytes(), first, 'the same gradient of the table again');
        clear();
      }),
    );
  }
}
