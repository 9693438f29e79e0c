/**
 * MDT's masked training of both latent models against a PyTorch twin (latent_masked_*): both passes, every gradient;
 * attention inside a subset; how subsets are drawn; the state dict without the option.
 */
import t from 'tap';
import '../../lib/autograd.js';
import { setDefaultDevice } from '../../lib/device.js';
import { DiT } from '../../lib/models/dit.js';
import { LatentDiffiT } from '../../lib/models/latent-diffit.js';
import { TMSA } from '../../lib/nn/attention.js';
import { TokenSubset } from '../../lib/nn/token-subset.js';
import { manualSeed } from '../../lib/ops/random.js';
import { noGrad, scope } from '../../lib/scope.js';
import { tensor, zeros } from '../../lib/tensor.js';
import {
  assertClose,
  assertFails,
  type Fixture,
  forEachDevice,
  loadFixture,
  numbers,
  toTensor,
  toTensors,
  withoutLeaks,
} from '../helpers.js';
import { checkGradients } from '../nn/check.js';

/** in.kept as lists of positions. */
function keptOf(fixture: Fixture): number[][] {
  const { shape, data } = fixture.tensor('in.kept');
  const positions = Array.from(data as BigInt64Array, Number);
  return Array.from({ length: shape[0] }, (_, b) => positions.slice(b * shape[1], (b + 1) * shape[1]));
}

for (const [name, Model] of [
  ['diffit', LatentDiffiT],
  ['dit', DiT],
] as const) {
  t.test(`${name}: the full and the masked pass, and every gradient of both`, (t) =>
    forEachDevice(t, (t, device) => {
      setDefaultDevice(device);
      return withoutLeaks(t, device, async () => {
        const fixture = loadFixture(`latent_masked_${name}.safetensors`);
        const model = new Model(fixture.json.config).eval();
        model.loadStateDict(toTensors(fixture.group('sd.')));
        const { x: expected, ...parameters } = fixture.group('grad.');
        for (const checkpointing of [false, true]) {
          model.gradientCheckpointing = checkpointing;
          const x = toTensor(fixture.tensor('in.x'), { requiresGrad: true });
          const [time, y] = ['t', 'y'].map((key) => toTensor(fixture.tensor(`in.${key}`)));
          const kept = new TokenSubset(keptOf(fixture), 4);
          t.strictSame(kept.positions.shape, [3, 11], '16 tokens x 0.7, rounded down');
          const out = model.forwardMasked(x, time, y, { kept });
          const full = model.forward(x, time, y);
          assertClose(t, (await out.data()) as Float32Array, fixture.f32('out'), 5e-6, 'out');
          assertClose(t, (await full.data()) as Float32Array, fixture.f32('out_full'), 5e-6, 'out_full');
          out.backward(toTensor(fixture.tensor('in.dout')));
          full.backward(toTensor(fixture.tensor('in.dout_full')));
          assertClose(t, (await x.grad?.data()) ?? [], expected.data, 2e-5, 'gradient of x');
          x.grad?.dispose();
          await checkGradients(t, model, parameters, 4e-5);
        }
        model.dispose();
      });
    }),
  );
}

t.test('a masked pass that leaves nothing out is the full pass', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, () =>
      noGrad(async () => {
        for (const [name, Model] of [
          ['diffit', LatentDiffiT],
          ['dit', DiT],
        ] as const) {
          const fixture = loadFixture(`latent_masked_${name}.safetensors`);
          using model = new Model(fixture.json.config).eval();
          model.loadStateDict(toTensors(fixture.group('sd.')));
          const [x, time, y] = ['x', 't', 'y'].map((key) => toTensor(fixture.tensor(`in.${key}`)));
          const order = Array.from({ length: 16 }, (_, i) => (5 * i + 3) % 16);
          const kept = new TokenSubset([order, [...order].reverse(), order], 4);
          const out = (await model.forwardMasked(x, time, y, { kept }).data()) as Float32Array;
          assertClose(t, out, fixture.f32('out_full'), 5e-6, name);
        }
      }),
    );
  }),
);

t.test('attention inside a subset of all tokens, in any order, is the whole attention', (t) =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, () =>
      noGrad(async () => {
        const attention = new TMSA({ dim: 16, numHeads: 2, windowSize: 3 });
        const [x, time] = [tensor(numbers(1, 288), { shape: [2, 9, 16] }), tensor(numbers(2, 32), { shape: [2, 16] })];
        const kept = new TokenSubset(
          [
            [8, 0, 4, 2, 6, 1, 3, 5, 7],
            [3, 1, 2, 0, 7, 8, 4, 5, 6],
          ],
          3,
        );
        const whole = (await attention.forward(x, time).data()) as Float32Array;
        const part = attention.forward(kept.take(x), time, { pairs: kept.pairs });
        const back = (await kept.restore(part, zeros([16])).data()) as Float32Array;
        assertClose(t, back, whole, 2e-6, 'restored');
        attention.dispose();
      }),
    );
  }),
);

t.test('subsets: taken and restored, checked, and drawn by key', async (t) => {
  await withoutLeaks(t, 'cpu', async () => {
    using kept = new TokenSubset(
      [
        [2, 0],
        [3, 1],
      ],
      2,
    );
    const x = tensor([10, 11, 12, 13, 20, 21, 22, 23], { shape: [2, 4, 1] });
    const taken = kept.take(x);
    t.strictSame(await taken.toArray(), [
      [[12], [10]],
      [[23], [21]],
    ]);
    const restored = await kept.restore(taken, tensor([-1])).data();
    t.strictSame([...restored], [10, -1, 12, -1, -1, 21, -1, 23]);
    t.strictSame([...(await kept.indicator().data())], [1, 0, 1, 0, 0, 1, 0, 1]);
    // Tokens 2 = (1, 0) and 0 = (0, 0) of a 2 x 2 grid: rows (dy + 1) 3 + dx + 1 of the table.
    t.strictSame((await kept.pairs.toArray()) as number[][], [
      [
        [4, 7],
        [1, 4],
      ],
      [
        [4, 7],
        [1, 4],
      ],
    ]);
    for (const bad of [[[0, 0]], [[0, 4]], [[0, 1], [2]], [[0.5, 1]]]) {
      await assertFails(t, () => new TokenSubset(bad, 2), 'OptionError', /expected \d distinct positions in 0\.\.3/);
    }

    const draw = (batch: number, ratio: number, key = {}): Promise<unknown> =>
      scope(() => TokenSubset.random(batch, 8, ratio, key).positions).toArray();
    const four = (await draw(4, 0.3, { seed: 7, stream: 2 })) as number[][];
    t.equal(four[0].length, 44, '64 x 0.7, rounded down');
    t.equal(new Set(four[1]).size, 44);
    t.notSame(four[0], four[1], 'every sample has its own');
    t.strictSame(await draw(2, 0.3, { seed: 7, stream: 2, firstSample: 2 }), four.slice(2), 'in any batch');
    t.notSame(await draw(4, 0.3, { seed: 7, stream: 3 }), four);
    manualSeed(3);
    const first = await draw(1, 0.5);
    t.notSame(await draw(1, 0.5), first, 'the next stream');
    manualSeed(3);
    t.strictSame(await draw(1, 0.5), first);
    t.equal(((await draw(1, 0.999)) as number[][])[0].length, 1, 'one token always stays');
    // Every token is as likely to stay: 64 x 400 draws with probability 44 / 64.
    const counts = new Array<number>(64).fill(0);
    for (const sample of (await draw(400, 0.3, { seed: 1 })) as number[][]) for (const i of sample) counts[i]++;
    t.ok(
      counts.every((n) => Math.abs(n - 275) < 5 * 9.3),
      `between ${Math.min(...counts)} and ${Math.max(...counts)} of 400`,
    );
  });
});

t.test('what masking adds to the model, and that it trains both passes', async (t) => {
  const config = { inputSize: 8, hiddenSize: 16, depth: 3, numHeads: 2, numClasses: 4, decodeLayers: 1 };
  using plain = new LatentDiffiT(config);
  using masked = new LatentDiffiT({ ...config, maskRatio: 0.5 });
  const added = Object.keys(masked.stateDict()).filter((name) => !(name in plain.stateDict()));
  t.strictSame(
    added.filter((name) => !name.startsWith('sideblocks.0.')),
    ['decoder_pos_embed', 'mask_token'],
  );
  t.strictSame(
    added.filter((name) => name.startsWith('sideblocks.0.')).map((name) => name.slice('sideblocks.0.'.length)),
    Object.keys(plain.stateDict()).flatMap((name) => (name.startsWith('blocks.0.') ? [name.slice(9)] : [])),
    'a side block is a block',
  );
  const [x, time, y] = [
    tensor(numbers(1, 512), { shape: [2, 4, 8, 8] }),
    tensor([3, 500]),
    zeros([2], { dtype: 'i64' }),
  ];
  const key = { seed: 4, stream: 1 };
  const run = (options = key): Promise<Uint8Array> =>
    noGrad(() => masked.eval().forwardMasked(x, time, y, options).bytes());
  const state = Object.entries(masked.stateDict());
  masked.loadStateDict(
    Object.fromEntries(state.map(([name, { shape, size }], i) => [name, tensor(numbers(i, size, 0.3), { shape })])),
  );
  t.strictSame(await run(), await run(), 'a key names a subset');
  t.notSame(await run(), await run({ seed: 4, stream: 2 }));
  const four = tensor([0, 1, 2, 3], { dtype: 'i64' });
  await assertFails(t, () => masked.forwardMasked(x, time, four), 'ShapeError', /y is \[4\], expected \[2\]/);
  const other = new TokenSubset([[0, 1]], 4);
  await assertFails(
    t,
    () => masked.forwardMasked(x, time, y, { kept: other }),
    'ShapeError',
    /kept is \[1, 2\].*2 samples/,
  );
});
