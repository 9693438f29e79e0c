/** Modules: names, layouts, strict loading, train and eval, disposal; the plain layers and their initial values. */
import t from 'tap';
import '../../lib/autograd.js';
import { memory } from '../../lib/device.js';
import { DiffitError, StateDictError } from '../../lib/errors.js';
import { TimeEmbed } from '../../lib/nn/embed.js';
import * as init from '../../lib/nn/init.js';
import { Conv2d, Embedding, GroupNorm, Linear } from '../../lib/nn/layers.js';
import { Module, ModuleList } from '../../lib/nn/module.js';
import { manualSeed } from '../../lib/ops/random.js';
import { noGrad, scope } from '../../lib/scope.js';
import { arange, full, ones, type Tensor, tensor, zeros } from '../../lib/tensor.js';
import { assertClose, assertFails, nchw, settledMemory, withoutLeaks } from '../helpers.js';

class Net extends Module {
  readonly stem = this.child('stem', new Conv2d(3, 4));
  readonly blocks = this.child('blocks', new ModuleList([new Linear(4, 5), new Linear(5, 4, { bias: false })]));
  readonly scale = this.parameter('scale', ones([]));
  readonly steps = this.buffer('steps', zeros([2]));
  readonly embed = this.child('embed', new TimeEmbed({ channels: 4, timeDim: 6, kind: 'positional' }));
  constructor() {
    super();
    this.acceptsDerived('relative_position_index');
  }
}

const names = [
  'scale',
  'steps',
  'stem.weight',
  'stem.bias',
  'blocks.0.weight',
  'blocks.0.bias',
  'blocks.1.weight',
  'embed.mlp.0.weight',
  'embed.mlp.0.bias',
  'embed.mlp.2.weight',
  'embed.mlp.2.bias',
];

t.test('a module outlives the scope that made it, and dispose frees all of it', async (t) => {
  const before = (await settledMemory('cpu')).liveBuffers;
  const net = scope(() => new Net());
  t.equal(memory('cpu').liveBuffers, before + names.length + 1, 'its tensors, and the frequencies');
  scope(() =>
    net.blocks
      .at(0)
      .forward(zeros([1, 4]))
      .sum()
      .backward(),
  );
  t.equal(memory('cpu').liveBuffers, before + names.length + 3, 'and two gradients');
  net.dispose();
  t.equal(memory('cpu').liveBuffers, before);
  await assertFails(t, () => net.blocks.at(0).forward(zeros([1, 4])), 'DisposedError', /was disposed/);
  {
    using inside = new Linear(2, 2);
    t.equal(memory('cpu').liveBuffers, before + 3, `${inside.parameterCount()} parameters, one input`);
  }
});

t.test('parameters and buffers go by PyTorch names', async (t) => {
  const net = new Net();
  const trainable = names.filter((name) => name !== 'steps');
  t.strictSame([...net.namedParameters().keys()].sort(), trainable.sort());
  t.strictSame(Object.keys(net.stateDict()).sort(), names.sort(), 'positional frequencies are not saved');
  t.ok(net.parameters().every((parameter) => parameter.requiresGrad));
  t.notOk(net.stateDict().steps.requiresGrad);
  t.equal(net.parameterCount(), 1 + (3 * 4 * 9 + 4) + (20 + 5) + 20 + (24 + 6) + (36 + 6));
  t.equal(net.blocks.length, 2);
  t.equal(net.blocks.at(-1), [...net.blocks][1]);
});

t.test('state dicts hold conv weights as [O, I, kh, kw], memory as [O, kh, kw, I]; both ways are exact', async (t) => {
  const net = new Net();
  t.strictSame(net.stem.weight.shape, [4, 3, 3, 3]);
  const weight = arange(0, 5 * 2 * 3 * 3).reshape([5, 2, 3, 3]);
  const conv = new Conv2d(2, 5);
  conv.loadStateDict({ weight, bias: zeros([5]) });
  t.strictSame(conv.weight.shape, [5, 3, 3, 2]);
  const memoryLayout = (await conv.weight.data()) as Float32Array;
  t.strictSame(nchw(memoryLayout, [5, 3, 3, 2]).data, await weight.data());
  t.strictSame(await conv.stateDict().weight.data(), await weight.data());

  const other = new Net();
  other.loadStateDict(net.stateDict());
  for (const [name, value] of Object.entries(other.stateDict())) {
    t.strictSame(await value.bytes(), await net.stateDict()[name].bytes(), name);
  }
  const parameter = other.scale;
  other.loadStateDict({ ...net.stateDict(), scale: tensor(2.5, { dtype: 'bf16' }) });
  t.equal(await parameter.item(), 2.5, 'values are copied into the same tensor, converted to its dtype');
});

t.test('strict loading lists everything that is wrong at once and changes nothing', async (t) => {
  const net = new Net();
  const before = await Promise.all(net.parameters().map((parameter) => parameter.bytes()));
  const unchanged = async (): Promise<void> => {
    t.strictSame(await Promise.all(net.parameters().map((parameter) => parameter.bytes())), before, 'nothing changed');
  };
  const { scale: _scale, 'blocks.1.weight': _weight, ...rest } = net.stateDict();
  const state = {
    ...rest,
    'stem.weight': zeros([4, 3, 3, 1]),
    steps: ones([3]),
    'blocks.2.bias': zeros([1]),
    extra: zeros([1]),
  };
  try {
    net.loadStateDict(state);
    t.fail('loaded');
  } catch (error) {
    t.ok(error instanceof StateDictError && error instanceof DiffitError);
    const { missing, unexpected, misshapen, message } = error as StateDictError;
    t.strictSame([...missing].sort(), ['blocks.1.weight', 'scale']);
    t.strictSame([...unexpected].sort(), ['blocks.2.bias', 'extra']);
    t.strictSame([...misshapen].sort(), [
      'stem.weight: [4, 3, 3, 1], expected [4, 3, 3, 3]',
      'steps: [3], expected [2]',
    ]);
    t.match(message, /2 missing \(.*\); 2 unexpected \(.*\); 2 misshapen \(.*\)/);
  }
  await unchanged();
  await assertFails(
    t,
    () => net.loadStateDict({ ...rest, steps: ones([3]) }, { strict: false }),
    'StateDictError',
    /1 misshapen/,
  );
  await unchanged();
  const whole = net.stateDict();
  const elsewhere = full([], 2, { device: 'cpu:baseline' });
  const gone = full([], 2);
  gone.dispose();
  for (const [bad, name, message] of [
    [full([], 2, { dtype: 'i64' }), 'DTypeError', /scale is i64, expected a float dtype/],
    [elsewhere, 'DeviceError', /scale is on cpu:baseline, the model on cpu/],
    [gone, 'DisposedError', /scale was disposed/],
  ] as const) {
    // The bad one comes last, after tensors that would load.
    await assertFails(t, () => net.loadStateDict({ ...whole, 'stem.bias': ones([4]), scale: bad }), name, message);
    await unchanged();
  }

  net.loadStateDict({ scale: full([], 3), unknown: zeros([1]) }, { strict: false });
  t.equal(await net.scale.item(), 3, 'without strict, what is there is loaded');
  net.loadStateDict({ ...net.stateDict(), relative_position_index: zeros([4, 4], { dtype: 'i64' }) });
  t.pass('a derived key is accepted and ignored');
});

t.test('train and eval reach every child', async (t) => {
  const net = new Net();
  const all = [net, net.stem, net.blocks, ...net.blocks, net.embed, net.embed.fc1];
  t.ok(
    all.every((module) => module.training),
    'new modules train',
  );
  t.equal(net.eval(), net);
  t.ok(all.every((module) => !module.training));
  net.train();
  t.ok(all.every((module) => module.training));
});

t.test('layers equal their formulas', (t) =>
  withoutLeaks(t, 'cpu', () =>
    noGrad(async () => {
      const linear = new Linear(2, 3);
      linear.loadStateDict({
        weight: tensor([
          [1, 2],
          [3, 4],
          [5, 6],
        ]),
        bias: tensor([10, 20, 30]),
      });
      t.strictSame(await linear.forward(tensor([[1, -1]])).toArray(), [[9, 19, 29]]);
      const conv = new Conv2d(1, 1, { kernel: 2, stride: 2, padding: 0 });
      conv.loadStateDict({
        weight: tensor([
          [
            [
              [1, 10],
              [100, 1000],
            ],
          ],
        ]),
        bias: tensor([5]),
      });
      t.strictSame(
        await conv
          .forward(
            tensor(
              [
                [1, 2],
                [3, 4],
              ],
              { shape: [1, 2, 2, 1] },
            ),
          )
          .toArray(),
        [[[[4326]]]],
      );
      const norm = new GroupNorm(1, 2);
      norm.loadStateDict({ weight: tensor([2, 2]), bias: tensor([1, 1]) });
      assertClose(t, (await norm.forward(tensor([[-3, 3]])).data()) as Float32Array, [-1, 3], 1e-5, 'GroupNorm');
      const embedding = new Embedding(3, 2);
      embedding.loadStateDict({
        weight: tensor([
          [1, 2],
          [3, 4],
          [5, 6],
        ]),
      });
      t.strictSame(await embedding.forward(tensor([2, 0], { dtype: 'i64' })).toArray(), [
        [5, 6],
        [1, 2],
      ]);
      for (const module of [linear, conv, norm, embedding]) module.dispose();
    }),
  ),
);

t.test('initial values: the right distributions, repeatable by manualSeed', async (t) => {
  const statistics = async (x: Tensor): Promise<{ mean: number; std: number; most: number }> => {
    const data = (await x.data()) as Float32Array;
    const mean = data.reduce((a, b) => a + b, 0) / data.length;
    return {
      mean,
      std: Math.sqrt(data.reduce((a, b) => a + (b - mean) ** 2, 0) / data.length),
      most: data.reduce((a, b) => Math.max(a, Math.abs(b)), 0),
    };
  };
  const near = (actual: number, expected: number, name: string): void => {
    t.ok(
      Math.abs(actual - expected) <= 0.03 * expected,
      `${name}: ${actual.toPrecision(3)}, expected ${expected.toPrecision(3)}`,
    );
  };
  manualSeed(1);
  const linear = new Linear(100, 200);
  const xavier = await statistics(linear.weight);
  near(xavier.most, Math.sqrt(6 / 300), 'xavier bound');
  near(xavier.std, Math.sqrt(2 / 300), 'xavier deviation');
  t.ok(Math.abs(xavier.mean) < 3e-3);
  t.strictSame(await statistics(linear.bias as Tensor), { mean: 0, std: 0, most: 0 });
  near((await statistics(new Conv2d(30, 40).weight)).most, 1 / Math.sqrt(270), 'conv bound 1 / sqrt(fan in)');
  near((await statistics(init.xavierUniform([40, 3, 3, 30]))).most, Math.sqrt(6 / (9 * 70)), 'xavier of a window');
  near((await statistics(new Embedding(100, 200).weight)).std, 0.02, 'embedding deviation');
  t.strictSame(await statistics(new Conv2d(3, 4, { zero: true }).weight), { mean: 0, std: 0, most: 0 });
  manualSeed(1);
  t.strictSame(await new Linear(100, 200).weight.bytes(), await linear.weight.bytes());
});

t.test('the time embedding: [cos, sin] of geometric frequencies down to 1/10000', async (t) => {
  const embed = new TimeEmbed({ channels: 8, timeDim: 8, kind: 'positional' });
  // fc1 as the identity and fc2 as well: the token is SiLU of the features.
  const identity = tensor(
    Float32Array.from({ length: 64 }, (_, i) => (i % 9 === 0 ? 1 : 0)),
    { shape: [8, 8] },
  );
  const [zero, noise] = [zeros([8]), [-1.5, 0.3, 1.1]];
  embed.loadStateDict({ 'mlp.0.weight': identity, 'mlp.0.bias': zero, 'mlp.2.weight': identity, 'mlp.2.bias': zero });
  const expected = noise.flatMap((c) => {
    const angles = [0, 1, 2, 3].map((k) => c * 10000 ** (-k / 3));
    return [...angles.map(Math.cos), ...angles.map(Math.sin)].map((v) => v / (1 + Math.exp(-v)));
  });
  assertClose(t, (await embed.forward(tensor(noise)).data()) as Float32Array, expected, 1e-6, 'features');
  const fourier = new TimeEmbed({ channels: 8, timeDim: 8, kind: 'fourier' });
  t.ok('freqs' in fourier.stateDict(), 'random frequencies are saved');
  t.notOk(fourier.namedParameters().has('freqs'), 'and not trained');
});
