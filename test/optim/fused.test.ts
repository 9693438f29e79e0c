/**
 * The optimizer's one pass over weights, moving averages and low-precision copies gives bit for bit what the separate passes give; and the
 * copies that weights keep for autocast are of the weights' present values, whoever wrote them, and die with the weights.
 */
import t from 'tap';
import '../../lib/autograd.js';
import { type DeviceName, memory, setDefaultDevice } from '../../lib/device.js';
import { loweredWeight } from '../../lib/ops/precision.js';
import { squareSums } from '../../lib/optim/clip.js';
import { Adam, type AdamOptions, AdamW, Ema, squareSum } from '../../lib/optim/index.js';
import { type LowPrecision, noGrad, scope } from '../../lib/scope.js';
import type { Shape } from '../../lib/shape.js';
import { full, type Tensor, tensor } from '../../lib/tensor.js';
import { assertClose, assertFails, forEachDevice, numbers, settledMemory, withoutLeaks } from '../helpers.js';

/** Whole chunks of the kernels and parts of them, fours and what is left, single elements, nothing. */
const shapes: Shape[] = [[3, 4], [5], [1], [0], [16384], [130, 127], [2, 16389]];

/** Weights, one of them a view that begins between alignments. */
function weights(device: DeviceName): Map<string, Tensor> {
  const list = shapes.map((shape, i) =>
    tensor(
      numbers(
        i + 1,
        shape.reduce((a, b) => a * b, 1),
      ),
      { shape, device },
    ),
  );
  const view = tensor(numbers(50, 41), { device }).slice(0, 1, 8).detach();
  for (const weight of [...list, view]) weight.requiresGrad = true;
  return new Map([...list, view].map((weight, i) => [`w${i}`, weight]));
}

const bytes = async (tensors: Iterable<Tensor>): Promise<string[]> =>
  Promise.all([...tensors].map(async (x) => Buffer.from(await x.bytes()).toString('base64')));

async function run(device: DeviceName, options: AdamOptions, low: LowPrecision | undefined, fused: boolean) {
  const parameters = weights(device);
  const all = [...parameters.values()];
  using ema = new Ema(parameters);
  using optimizer = options.weightDecay ? new AdamW(parameters, options) : new Adam(parameters, options);
  for (let step = 0; step < 3; step++) {
    // Only every other weight is used in low precision; in the second step one weight has no gradient.
    if (low && fused) for (const [i, weight] of all.entries()) if (i % 2 === 0) loweredWeight(weight, low).dispose();
    for (const [i, weight] of all.entries()) {
      if (step === 1 && i === 4) continue;
      weight.grad = tensor(numbers(100 * step + i, weight.size), { shape: weight.shape, device });
      if (step === 2 && i === 0) weight.grad = weight.grad.div(full(weight.shape, 0, { device }));
    }
    const scale = full([1], 0.7, { device });
    const decay = 0.9 + step / 100;
    optimizer.step(fused ? { scale, ema: { averages: ema, decay } } : { scale });
    if (!fused) ema.update(decay);
    optimizer.zeroGrad();
  }
  const copies = low ? all.map((weight) => loweredWeight(weight, low)) : [];
  const { tensors } = optimizer.stateDict();
  return bytes([...all, ...ema.averages.values(), ...Object.values(tensors), ...copies]);
}

t.test('one pass equals three', (t) =>
  forEachDevice(t, async (t, device) => {
    for (const low of [undefined, 'bf16', 'f16'] as const) {
      for (const options of [
        { finiteOnly: true },
        { finiteOnly: true, weightDecay: 0.1, betas: [0.8, 0.95] as const },
      ]) {
        await withoutLeaks(t, device, async () => {
          const [fused, separate] = [await run(device, options, low, true), await run(device, options, low, false)];
          t.strictSame(fused, separate, `${low} ${JSON.stringify(options)}`);
        });
      }
    }
  }),
);

t.test('with a scale of NaN a step changes nothing', (t) =>
  forEachDevice(t, async (t, device) => {
    await withoutLeaks(t, device, async () => {
      const parameters = weights(device);
      const all = [...parameters.values()];
      using ema = new Ema(parameters);
      using optimizer = new AdamW(parameters);
      const copies = all.map((weight) => loweredWeight(weight, 'bf16'));
      const state = () =>
        bytes([...all, ...ema.averages.values(), ...copies, ...Object.values(optimizer.stateDict().tensors)]);
      const step = (factor: number) => {
        for (const weight of all) weight.grad = full(weight.shape, 0.5, { device });
        optimizer.step({ scale: full([1], factor, { device }), ema: { averages: ema, decay: 0.5 } });
        optimizer.zeroGrad();
      };
      step(1);
      const before = await state();
      step(Number.NaN);
      t.strictSame(await state(), before);
      step(1);
      t.strictNotSame(await state(), before);
    });
  }),
);

t.test('sums of squares: of all, and of each', (t) =>
  forEachDevice(t, async (t, device) => {
    await scope(async () => {
      const list = [...weights(device).values(), ...Array.from({ length: 60 }, (_, i) => full([i % 3], i, { device }))];
      const expected = await Promise.all(
        list.map(async (x) => Array.from((await x.data()) as Float32Array).reduce((sum, v) => sum + v * v, 0)),
      );
      const sums = (await squareSums(list).data()) as Float32Array;
      const total = expected.reduce((a, b) => a + b, 0);
      assertClose(t, sums, [total, ...expected], 1e-6, 'sums');
      t.equal(await squareSum(list).item(), sums[0]);
    });
  }),
);

t.test('a decay outside 0 to 1 is an error before anything is written', async (t) =>
  scope(async () => {
    const weight = tensor([1, 2], { requiresGrad: true });
    using ema = new Ema([weight]);
    using optimizer = new Adam([weight]);
    weight.grad = tensor([1, 1]);
    await assertFails(t, () => optimizer.step({ ema: { averages: ema, decay: 1.5 } }), 'OptionError', /decay is 1\.5/);
    t.strictSame(Array.from((await weight.data()) as Float32Array), [1, 2]);
    optimizer.zeroGrad();
  }),
);

t.test("a weight's copy is made once, follows every write, and goes with the weight", (t) =>
  forEachDevice(t, async (t, device) => {
    setDefaultDevice(device);
    const before = (await settledMemory(device)).liveBuffers;
    const live = (): number => memory(device).liveBuffers - before;
    const weight = tensor([1, 1 + 2 ** -8, -3, 4], { shape: [2, 2], requiresGrad: true });
    t.equal(loweredWeight(weight, undefined), weight, 'without autocast it is the weight');
    scope(() => noGrad(() => loweredWeight(weight, 'bf16').dispose()));
    const copy = weight.lowered?.copy;
    t.equal(live(), 2, 'it outlives scopes and the tensors over it');
    await scope(async () => {
      const values = (): Promise<unknown> => loweredWeight(weight, 'bf16').toArray();
      t.strictSame(await values(), [
        [1, 1],
        [-3, 4],
      ]);
      weight.copyFrom(tensor([5, 6, 7, 8]));
      t.strictSame((await values()) as number[][], [
        [5, 6],
        [7, 8],
      ]);
      weight
        .detach()
        .reshape([4])
        .slice(0, 1, 2)
        .copyFrom(tensor([9]));
      t.strictSame(await values(), [
        [5, 9],
        [7, 8],
      ]);
      using optimizer = new AdamW([weight], { lr: 0.5, weightDecay: 0 });
      weight.grad = tensor([1, -1, 1, -1], { shape: [2, 2] });
      optimizer.step();
      optimizer.zeroGrad();
      t.equal(weight.lowered?.writes, weight.writes, 'the optimizer wrote the copy');
      t.strictSame(await copy?.toArray(), [
        [4.5, 9.5],
        [6.5, 8.5],
      ]);
    });
    t.equal(weight.lowered?.copy, copy, 'still the same tensor');
    loweredWeight(weight, 'f16').dispose();
    t.ok(copy?.isDisposed, 'one copy at a time');
    t.equal(live(), 2);
    weight.dispose();
    t.equal(live(), 0, 'nothing is left');
  }),
);
