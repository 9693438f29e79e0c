/**
 * ImageDiffiT against its PyTorch twin (image_diffit_*): every way of conditioning, forward and every gradient; options
 * and inputs; parameter counts of the presets; determinism.
 */
import t from 'tap';
import '../../lib/autograd.js';
import { memory, setDefaultDevice } from '../../lib/device.js';
import { ImageDiffiT, type ImageDiffiTConfig } from '../../lib/models/image-diffit.js';
import { create, preset, presets } from '../../lib/models/presets.js';
import { noGrad, scope } from '../../lib/scope.js';
import { tensor, zeros } from '../../lib/tensor.js';
import {
  assertClose,
  assertFails,
  forEachDevice,
  loadFixture,
  numbers,
  settledMemory,
  toTensor,
  toTensors,
  withoutLeaks,
} from '../helpers.js';
import { checkGradients } from '../nn/check.js';

for (const variant of ['tmsa', 'labels', 'fourier', 'adaln', 'bias_only', 'mlp_only', 'augment']) {
  t.test(`${variant}: forward and every gradient equal the twin`, (t) =>
    forEachDevice(t, (t, device) => {
      setDefaultDevice(device);
      return withoutLeaks(t, device, async () => {
        const fixture = loadFixture(`image_diffit_${variant}.safetensors`);
        const model = new ImageDiffiT(fixture.json.config);
        model.loadStateDict(toTensors(fixture.group('sd.')));
        const x = toTensor(fixture.tensor('in.x'), { requiresGrad: true });
        const cNoise = toTensor(fixture.tensor('in.c_noise'));
        const labels = fixture.has('in.labels') ? toTensor(fixture.tensor('in.labels')) : undefined;
        const augment = fixture.has('in.augment') ? toTensor(fixture.tensor('in.augment')) : undefined;
        const y = model.forward(x, cNoise, labels, augment);
        t.strictSame(y.shape, fixture.tensor('out').shape);
        assertClose(t, (await y.data()) as Float32Array, fixture.f32('out'), 5e-6, 'out');
        y.backward(toTensor(fixture.tensor('in.dout')));
        const { x: gradient, ...parameters } = fixture.group('grad.');
        assertClose(t, (await x.grad?.data()) ?? [], gradient.data, 2e-5, 'gradient of x');
        x.grad?.dispose();
        await checkGradients(t, model, parameters, 2e-5);
        model.dispose();
      });
    }),
  );
}

const small: ImageDiffiTConfig = {
  imgResolution: 8,
  inChannels: 3,
  baseChannels: 8,
  channelMult: [1, 2],
  numBlocks: 1,
  windowSize: 4,
  timeDim: 16,
};

t.test('augmentation labels of zero are none, and a model without augmentDim takes none', async (t) => {
  await withoutLeaks(t, 'cpu', () =>
    noGrad(async () => {
      const model = new ImageDiffiT({ ...small, augmentDim: 9 });
      model.loadStateDict(
        { 'head.conv.weight': tensor(numbers(1, 3 * 9 * 8), { shape: [3, 8, 3, 3] }) },
        { strict: false },
      );
      const [x, level] = [tensor(numbers(2, 2 * 192), { shape: [2, 3, 8, 8] }), zeros([2])];
      const without = await model.forward(x, level).data();
      t.same(await model.forward(x, level, undefined, zeros([2, 9])).data(), without);
      const told = tensor(numbers(3, 18), { shape: [2, 9] });
      t.notSame(await model.forward(x, level, undefined, told).data(), without);
      await assertFails(
        t,
        () => model.forward(x, level, undefined, zeros([2, 8])),
        'ShapeError',
        /augment is \[2, 8\]/,
      );
      const plain = new ImageDiffiT(small);
      await assertFails(t, () => plain.forward(x, level, undefined, told), 'OptionError', /without augmentDim/);
      model.dispose();
      plain.dispose();
    }),
  );
});

t.test('options are checked, by name', async (t) => {
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ windowsize: 4 }, /unknown option "windowsize" \(did you mean "windowSize"\?\)/],
    [{ imgResolution: 0 }, /imgResolution is /],
    [{ inChannels: 1.5 }, /inChannels is /],
    [{ baseChannels: 7 }, /baseChannels is 7, expected .*multiple of 2/],
    [{ channelMult: [] }, /channelMult is /],
    [{ conditioning: 'TMSA' }, /conditioning is /],
    [{ timeEmbedding: 'sinusoidal' }, /timeEmbedding is /],
    [{ dropout: 1 }, /dropout is /],
    [{ numClasses: -1 }, /numClasses is /],
    [{ windowSize: [4] }, /windowSize has 1 entries for 2 resolutions/],
    [{ numBlocks: [1, 1, 1] }, /numBlocks has 3 entries for 2 resolutions/],
    [{ windowSize: 3 }, /windowSize 3 does not divide the 8x8 map of resolution 0/],
    [{ imgResolution: 12, windowSize: [4, 4] }, /windowSize 4 does not divide the 6x6 map of resolution 1/],
    [{ imgResolution: 9, windowSize: 3 }, /imgResolution 9 cannot be halved 1 times for 2 resolutions/],
    [{ normGroups: 3 }, /3 groups do not divide 8 channels/],
    [{ channelsPerHead: 5, baseChannels: 16 }, /numHeads 3 does not divide dim 16/],
  ];
  for (const [options, message] of bad) {
    await assertFails(t, () => new ImageDiffiT({ ...small, ...options } as ImageDiffiTConfig), 'OptionError', message);
  }
  const { inChannels: _, ...incomplete } = small;
  await assertFails(
    t,
    () => new ImageDiffiT(incomplete as ImageDiffiTConfig),
    'OptionError',
    /ImageDiffiT: inChannels is /,
  );
  await assertFails(
    t,
    () => create('cifar'),
    'OptionError',
    /Unknown preset "cifar"; did you mean "cifar10"\?.*mnist, cifar10, ffhq64/,
  );
  await assertFails(t, () => preset('toString'), 'OptionError', /Unknown preset "toString"/);
  t.equal(
    new ImageDiffiT({ ...small, windowSize: 16 }).config.windowSize,
    16,
    'a map smaller than the window is one window',
  );
});

t.test('inputs are checked', async (t) => {
  const plain = new ImageDiffiT(small);
  const classes = new ImageDiffiT({ ...small, numClasses: 10 });
  const [x, c, labels] = [zeros([2, 3, 8, 8]), zeros([2]), zeros([2], { dtype: 'i64' })];
  const bad: [() => unknown, string, RegExp][] = [
    [() => plain.forward(zeros([2, 3, 16, 16]), c), 'ShapeError', /x is \[2, 3, 16, 16\], expected \[B, 3, 8, 8\]/],
    [() => plain.forward(zeros([2, 1, 8, 8]), c), 'ShapeError', /x is \[2, 1, 8, 8\]/],
    [() => plain.forward(zeros([3, 8, 8]), c), 'ShapeError', /x is \[3, 8, 8\]/],
    [() => plain.forward(x, zeros([3])), 'ShapeError', /cNoise is \[3\], expected \[2\]/],
    [() => plain.forward(x, c, labels), 'OptionError', /labels given to an unconditional model/],
    [() => classes.forward(x, c), 'OptionError', /class-conditional; give labels \[B\] in 0\.\.9/],
    [() => classes.forward(x, c, c), 'DTypeError', /ids is f32, expected i64/],
    [
      () => classes.forward(x, c, zeros([1], { dtype: 'i64' }).reshape([1, 1])),
      'ShapeError',
      /labels is \[1, 1\], expected \[2\]/,
    ],
  ];
  for (const [use, name, message] of bad) await assertFails(t, use, name, message);
  for (const model of [plain, classes]) model.dispose();
});

/** Trainable numbers of a model, added up from the architecture's description. */
function countParameters(config: ImageDiffiTConfig): number {
  const { imgResolution, baseChannels, channelMult, timeDim = 512, channelsPerHead = 64 } = config;
  const { numClasses = 0, classDropoutProb = 0 } = config;
  const labels = numClasses + (classDropoutProb > 0 ? 1 : 0);
  const stages = channelMult.length;
  const per = (value: number | readonly number[], i: number): number => (typeof value === 'number' ? value : value[i]);
  const linear = (inputs: number, outputs: number): number => inputs * outputs + outputs;
  const conv = (inputs: number, outputs: number, k = 3): number => inputs * outputs * k * k + outputs;
  const width = (i: number): number => baseChannels * channelMult[i];
  const block = (inputs: number, i: number): number => {
    const c = width(i);
    const window = Math.min(per(config.windowSize, i), imgResolution / 2 ** i);
    const table = (2 * window - 1) ** 2 * Math.max(1, Math.floor(c / channelsPerHead));
    const attention = linear(c, 3 * c) + linear(timeDim, 3 * c) + table + linear(c, c);
    const skip = inputs === c ? 0 : conv(inputs, c, 1);
    return 2 * inputs + conv(inputs, c) + attention + linear(c, 4 * c) + linear(4 * c, c) + skip;
  };
  const stage = (inputs: number, i: number): number =>
    block(inputs, i) + (per(config.numBlocks, i) - 1) * block(width(i), i);
  let total = linear(baseChannels, timeDim) + linear(timeDim, timeDim) + labels * timeDim;
  total += conv(config.inChannels, width(0));
  for (let i = 0; i < stages; i++) {
    total += stage(width(Math.max(i - 1, 0)), i);
    if (i === stages - 1) continue;
    total += conv(width(i), width(i)); // down
    total += conv(width(i + 1), width(i + 1)) + stage(width(i + 1) + width(i), i); // up and its blocks
  }
  return total + 2 * width(0) + conv(width(0), config.outChannels ?? config.inChannels);
}

t.test('presets have as many parameters as their description adds up to', async (t) => {
  const before = (await settledMemory('cpu')).liveBuffers;
  for (const name of ['mnist', 'cifar10', 'ffhq64'] as const) {
    using model = create(name);
    const expected = countParameters(presets[name].model as ImageDiffiTConfig);
    t.equal(model.parameterCount(), expected, `${name}: ${expected} parameters`);
  }
  t.equal(memory('cpu').liveBuffers, before, 'disposing a model frees all of it');
  using labelled = create('mnist', { numClasses: 3, baseChannels: 16 });
  t.equal(labelled.config.numClasses, 3);
  t.equal(
    labelled.parameterCount(),
    countParameters({ ...(presets.mnist.model as ImageDiffiTConfig), numClasses: 3, baseChannels: 16 }),
  );
  const { config } = labelled;
  using again = new ImageDiffiT(JSON.parse(JSON.stringify(config)));
  t.strictSame(again.config, config, 'the config is plain JSON that makes the same model');
});

t.test('create() makes what the preset says, latent ones too', async (t) => {
  using latent = create('imagenet512', { depth: 1, hiddenSize: 32, numHeads: 2, numClasses: 3 });
  t.match(latent.config, { inputSize: 64, patchSize: 2, depth: 1, hiddenSize: 32, classDropoutProb: 0.1 });
  t.throws(() => create('imagenet25'), { name: 'OptionError', message: /did you mean "imagenet256"/ });
});

t.test('an image does not depend on the others of its batch; a fresh model gives 0', async (t) => {
  const fixture = loadFixture('image_diffit_labels.safetensors');
  const model = new ImageDiffiT(fixture.json.config).eval();
  const [x, c, labels] = ['in.x', 'in.c_noise', 'in.labels'].map((key) => toTensor(fixture.tensor(key)));
  await noGrad(() =>
    withoutLeaks(t, 'cpu', async () => {
      const fresh = await model.forward(x, c, labels).data();
      t.ok(
        [...fresh].every((v) => v === 0),
        'the last convolution starts at 0',
      );
      model.loadStateDict(toTensors(fixture.group('sd.')));
      const whole = (await model.forward(x, c, labels).data()) as Float32Array;
      const size = whole.length / 3;
      for (let b = 0; b < 3; b++) {
        const alone = scope(() => model.forward(x.slice(0, b, b + 1), c.slice(0, b, b + 1), labels.slice(0, b, b + 1)));
        assertClose(
          t,
          (await alone.data()) as Float32Array,
          whole.subarray(b * size, (b + 1) * size),
          1e-6,
          `image ${b} alone`,
        );
      }
      t.strictSame(
        model.forward(zeros([0, 1, 16, 16]), zeros([0]), tensor([], { dtype: 'i64' })).shape,
        [0, 1, 16, 16],
      );
    }),
  );
  model.dispose();
});

t.test('dropout acts in training and not in eval', async (t) => {
  const model = new ImageDiffiT({ ...small, dropout: 0.5 });
  model.loadStateDict(
    Object.fromEntries(
      Object.entries(model.stateDict()).map(([name, { shape, size }], i) => [
        name,
        tensor(numbers(i, size, 0.3), { shape }),
      ]),
    ),
  );
  const x = tensor(numbers(1, 192), { shape: [1, 3, 8, 8] });
  const run = (): Promise<Uint8Array> => noGrad(() => model.forward(x, zeros([1])).bytes());
  t.notSame(await run(), await run());
  model.eval();
  t.strictSame(await run(), await run());
  model.dispose();
});
