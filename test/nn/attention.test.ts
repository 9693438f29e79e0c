/**
 * TMSA against the original DiffiTAttention (goldens tmsa*), the exact identities of time-dependent attention, and the
 * transformer block inside the ResBlock (goldens image_block*).
 */
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { ResBlock } from '../../lib/models/image-diffit.js';
import { TMSA } from '../../lib/nn/attention.js';
import { TransformerBlock } from '../../lib/nn/block.js';
import * as F from '../../lib/nn/functional.js';
import { noGrad } from '../../lib/scope.js';
import { type Tensor, tensor, zeros } from '../../lib/tensor.js';
import {
  assertClose,
  assertFails,
  type Fixture,
  forEachDevice,
  loadFixture,
  nchw,
  nhwc,
  numbers,
  toTensor,
  toTensors,
  withoutLeaks,
} from '../helpers.js';
import { checkGradients } from './check.js';

const onEachDevice = (t: Test, fn: (t: Test) => Promise<void>): Promise<void> =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, () => fn(t));
  });

const f32 = async (x: Tensor | undefined): Promise<Float32Array> =>
  ((await x?.data()) ?? new Float32Array()) as Float32Array;

/** The golden's module with its weights. */
function golden(name: string): { fixture: Fixture; module: TMSA; x: Tensor; time: Tensor } {
  const fixture = loadFixture(`goldens/${name}.safetensors`);
  const { dim, num_heads: numHeads, window_size: windowSize, temb_dim: timeDim } = fixture.json.config;
  const module = new TMSA({ dim, timeDim, numHeads, windowSize });
  module.loadStateDict(toTensors(fixture.group('sd.')));
  const [x, time] = ['in.x', 'in.temb'].map((key) => toTensor(fixture.tensor(key), { requiresGrad: true }));
  return { fixture, module, x, time };
}

for (const name of ['tmsa', 'tmsa_temb20', 'tmsa_windowed']) {
  t.test(`${name}: forward and every gradient equal the original`, (t) =>
    onEachDevice(t, async (t) => {
      const { fixture, module, x, time } = golden(name);
      const y = module.forward(x, time);
      t.strictSame(y.shape, fixture.tensor('out').shape);
      assertClose(t, await f32(y), fixture.f32('out'), 2e-6, 'out');
      y.backward(toTensor(fixture.tensor('in.dout')));
      assertClose(t, await f32(x.grad), fixture.f32('grad.x'), 5e-6, 'gradient of x');
      assertClose(t, await f32(time.grad), fixture.f32('grad.temb'), 5e-6, 'gradient of the time token');
      const { x: _x, temb: _temb, ...parameters } = fixture.group('grad.');
      const { dim } = fixture.json.config;
      for (const parameter of [module.qkvTemb?.weight, module.qkvTemb?.bias]) {
        const grad = await f32(parameter?.grad);
        const row = grad.length / (3 * dim);
        t.ok(
          grad.subarray(dim * row, 2 * dim * row).every((v) => v === 0),
          "the time projection's k rows get exactly 0",
        );
      }
      await checkGradients(t, module, parameters, 5e-6);
      x.grad?.dispose();
      time.grad?.dispose();
      module.dispose();
    }),
  );
}

/** Overwrites rows [from, to) of a parameter [rows, ...] with `value(i)`. */
async function setRows(
  parameter: Tensor | undefined,
  from: number,
  to: number,
  value: (i: number, old: number) => number,
): Promise<void> {
  if (!parameter) throw new Error('no such parameter');
  const data = Float32Array.from(await f32(parameter));
  const row = data.length / parameter.shape[0];
  for (let i = from * row; i < to * row; i++) data[i] = value(i, data[i]);
  parameter.copyFrom(tensor(data, { shape: parameter.shape }));
}

/** x W^T + b per row, in double precision. */
function linear(x: ArrayLike<number>, weight: Float32Array, bias?: Float32Array): Float64Array {
  const rows = bias?.length ?? Math.sqrt(weight.length);
  const columns = weight.length / rows;
  return Float64Array.from({ length: (x.length / columns) * rows }, (_, i) => {
    const [sample, row] = [Math.floor(i / rows), i % rows];
    let sum = bias?.[row] ?? 0;
    for (let k = 0; k < columns; k++) sum += x[sample * columns + k] * weight[row * columns + k];
    return sum;
  });
}

t.test('identities of the time token', (t) =>
  onEachDevice(t, (t) =>
    noGrad(async () => {
      const { module, x, time, fixture } = golden('tmsa');
      const { qkvTemb, qkv } = module as Required<TMSA>;
      const dim = 32;
      const batch = 3;
      const out = await f32(module.forward(x, time));
      const restore = (): void => module.loadStateDict(toTensors(fixture.group('sd.')));

      await setRows(qkvTemb.weight, dim, 2 * dim, (i) => 100 * Math.sin(i));
      await setRows(qkvTemb.bias, dim, 2 * dim, (i) => i);
      t.strictSame(await f32(module.forward(x, time)), out, "the time token's k part changes no bit");
      restore();

      // Adding one vector to every key shifts each row of logits by a constant.
      await setRows(qkv.bias, dim, 2 * dim, (i, old) => old + Math.cos(i));
      assertClose(t, await f32(module.forward(x, time)), out, 2e-6, 'a constant added to every key');
      restore();
      await setRows(module.table, 0, 49, (i, old) => old + [3, -2, 0.5, 7][i % 4]);
      assertClose(t, await f32(module.forward(x, time)), out, 2e-6, 'a constant added to a column of the bias table');
      restore();

      // The v part passes straight through: y gains (x_t Wvt + b) Wo, the same for all tokens of a sample.
      await setRows(qkvTemb.weight, 2 * dim, 3 * dim, () => 0);
      await setRows(qkvTemb.bias, 2 * dim, 3 * dim, () => 0);
      const without = await f32(module.forward(x, time));
      const [weight, bias] = ['sd.qkv_temb.weight', 'sd.qkv_temb.bias'].map((key) => fixture.f32(key));
      const vt = linear(fixture.f32('in.temb'), weight.slice(2 * dim * dim), bias.slice(2 * dim));
      const gained = linear(vt, fixture.f32('sd.proj.weight'));
      const expected = without.map((v, i) => v + gained[Math.floor(i / (16 * dim)) * dim + (i % dim)]);
      assertClose(t, out, expected, 1e-6, "the time token's v part");
      restore();

      // The time token acts as if it were part of the bias of qkv, sample by sample.
      const whole = linear(fixture.f32('in.temb'), weight, bias);
      const zero = zeros([1, dim]);
      for (let b = 0; b < batch; b++) {
        restore();
        await setRows(qkv.bias, 0, 3 * dim, (i, old) => old + whole[b * 3 * dim + i]);
        await setRows(qkvTemb.bias, 0, 3 * dim, () => 0);
        const y = module.forward(F.slice(x, 0, b, b + 1), zero);
        assertClose(t, await f32(y), out.slice(b * 16 * dim, (b + 1) * 16 * dim), 2e-6, `sample ${b}: time as a bias`);
      }
      module.dispose();
    }),
  ),
);

t.test('windows do not see each other, samples do not see each other, and a single window is the token form', (t) =>
  onEachDevice(t, (t) =>
    noGrad(async () => {
      const { module, x, time, fixture } = golden('tmsa_windowed');
      const out = await f32(module.forward(x, time));
      const data = Float32Array.from(fixture.f32('in.x'));
      // Another window (rows 4-7, columns 8-11) of sample 1.
      const inside = (i: number): boolean => {
        const [c, w, h] = [32, 16, 16];
        const [column, row, sample] = [Math.floor(i / c) % w, Math.floor(i / (c * w)) % h, Math.floor(i / (c * w * h))];
        return sample === 1 && row >= 4 && row < 8 && column >= 8 && column < 12;
      };
      const changed = await f32(
        module.forward(
          tensor(
            data.map((v, i) => (inside(i) ? -v : v)),
            { shape: x.shape },
          ),
          time,
        ),
      );
      const differing = Array.from(out.keys()).filter((i) => out[i] !== changed[i]);
      t.ok(differing.length > 400, `${differing.length} of 512 values of that window changed`);
      t.ok(differing.every(inside), 'no other value changed in a single bit');

      const single = golden('tmsa');
      const grid = single.module.forward(single.x.reshape([3, 4, 4, 32]), single.time);
      t.strictSame(grid.shape, [3, 4, 4, 32]);
      t.strictSame(
        await grid.bytes(),
        await single.module.forward(single.x, single.time).bytes(),
        '[B, H, W, C] as [B, N, C]',
      );
      const residual = tensor(numbers(5, 3 * 16 * 32), { shape: [3, 16, 32] });
      const sum = F.add(single.module.forward(single.x, single.time), residual);
      assertClose(
        t,
        await f32(single.module.forward(single.x, single.time, { residual })),
        await f32(sum),
        1e-6,
        'residual',
      );
      module.dispose();
      single.module.dispose();
    }),
  ),
);

t.test('TMSA checks its options and inputs', async (t) => {
  const module = new TMSA({ dim: 8, timeDim: 6, numHeads: 2, windowSize: 4 });
  const time = zeros([1, 6]);
  const bad: [() => unknown, string, RegExp][] = [
    [() => new TMSA({ dim: 8, numHeads: 3, windowSize: 4 }), 'OptionError', /TMSA: numHeads 3 does not divide dim 8/],
    [
      () => module.forward(zeros([1, 8, 8, 4]), time),
      'ShapeError',
      /x is \[1, 8, 8, 4\], expected \[B, H, W, 8\] or \[B, 16, 8\]/,
    ],
    [() => module.forward(zeros([1, 15, 8]), time), 'ShapeError', /x is \[1, 15, 8\]/],
    [() => module.forward(zeros([16, 8]), time), 'ShapeError', /x is \[16, 8\]/],
    [() => module.forward(zeros([1, 6, 8, 8]), time), 'OptionError', /a 4x4 window does not divide the 6x8 map/],
    [() => module.forward(zeros([1, 4, 4, 8]), undefined), 'OptionError', /conditioning "tmsa" needs a time token/],
    [() => module.forward(zeros([1, 4, 4, 8]), zeros([1, 5])), 'ShapeError', /weight is \[24, 6\], expected \[\*, 5\]/],
    [() => module.forward(zeros([2, 4, 4, 8]), time), 'ShapeError', /time is \[1, 24\], expected \[2, 24\]/],
  ];
  for (const [use, name, message] of bad) await assertFails(t, use, name, message);
  const plain = new TMSA({ dim: 8, numHeads: 2, windowSize: 4, conditioning: 'none' });
  t.notOk(plain.namedParameters().has('qkv_temb.weight'));
  t.strictSame(plain.forward(zeros([1, 4, 4, 8]), undefined).shape, [1, 4, 4, 8]);
});

for (const name of ['image_block', 'image_block_same']) {
  t.test(`${name}: the ResBlock's forward and every gradient equal the original`, (t) =>
    onEachDevice(t, async (t) => {
      const fixture = loadFixture(`goldens/${name}.safetensors`);
      const {
        in_channels: inputs,
        out_channels: outputs,
        temb_dim: timeDim,
        num_heads: heads,
        window_size,
      } = fixture.json.config;
      const rename = <T>(group: Record<string, T>): Record<string, T> =>
        Object.fromEntries(
          Object.entries(group).map(([key, value]) => [/^fc[12]\./.test(key) ? `mlp.${key}` : key, value]),
        );
      const block = new ResBlock(inputs, outputs, window_size, {
        timeDim,
        channelsPerHead: outputs / heads,
        normGroups: fixture.json.config.norm_groups,
        mlpRatio: 4,
        dropout: 0,
        conditioning: 'tmsa',
      });
      block.loadStateDict(toTensors(rename(fixture.group('sd.'))));
      const image = (key: string) => nhwc(fixture.f32(key), fixture.tensor(key).shape);
      const x = toTensor(image('in.x'), { requiresGrad: true });
      const time = toTensor(fixture.tensor('in.temb'), { requiresGrad: true });
      const y = block.forward(x, time);
      const out = nchw(await f32(y), y.shape);
      t.strictSame(out.shape, fixture.tensor('out').shape);
      assertClose(t, out.data, fixture.f32('out'), 2e-6, 'out');
      y.backward(toTensor(image('in.dout')));
      assertClose(t, await f32(x.grad), image('grad.x').data, 5e-6, 'gradient of x');
      assertClose(t, await f32(time.grad), fixture.f32('grad.temb'), 5e-6, 'gradient of the time token');
      const { x: _x, temb: _temb, ...parameters } = rename(fixture.group('grad.'));
      await checkGradients(t, block, parameters, 5e-6);
      x.grad?.dispose();
      time.grad?.dispose();
      block.dispose();
    }),
  );
}

t.test('a transformer block on tokens equals the same block on a grid; dropout acts in training only', async (t) => {
  const block = new TransformerBlock({ dim: 16, timeDim: 8, numHeads: 2, windowSize: 4, dropout: 0.5 });
  const x = tensor(numbers(1, 2 * 16 * 16), { shape: [2, 16, 16] });
  const time = tensor(numbers(2, 16), { shape: [2, 8] });
  const run = (h = x): Promise<Uint8Array> => noGrad(() => block.forward(h, time).bytes());
  t.notSame(await run(), await run(), 'training draws anew each time');
  block.eval();
  const quiet = await run();
  t.strictSame(await run(), quiet);
  t.strictSame(await run(x.reshape([2, 4, 4, 16])), quiet);
  block.train();
  t.notSame(await run(), quiet);
});
