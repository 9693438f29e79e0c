/**
 * LatentDiffiT against the original DiffiT (goldens latent_*, train20*): forward, intermediate values, every gradient,
 * guidance, 20 training steps; the released checkpoints' keys; sharing between guidance halves and steps; bad input.
 */
import { readFileSync } from 'node:fs';
import t, { type Test } from 'tap';
import '../../lib/autograd.js';
import { memory, setDefaultDevice } from '../../lib/device.js';
import { LatentDiffiT } from '../../lib/models/latent-diffit.js';
import { latentPresets } from '../../lib/models/latent-presets.js';
import type { CfgOptions, LatentTransformerConfig } from '../../lib/models/latent-transformer.js';
import { TimeEmbed } from '../../lib/nn/embed.js';
import { guidanceScale } from '../../lib/nn/guidance.js';
import { sinCosPositions } from '../../lib/nn/patch.js';
import { concat } from '../../lib/ops/index.js';
import { manualSeed } from '../../lib/ops/random.js';
import { AdamW } from '../../lib/optim/index.js';
import { noGrad, scope } from '../../lib/scope.js';
import { type Tensor, tensor, zeros } from '../../lib/tensor.js';
import {
  assertClose,
  assertFails,
  forEachDevice,
  loadFixture,
  maxElementError,
  maxRelativeError,
  numbers,
  settledMemory,
  toTensor,
  toTensors,
  withoutLeaks,
} from '../helpers.js';
import { checkGradients } from '../nn/check.js';
import { configOf } from './latent.js';

const onEachDevice = (t: Test, fn: (t: Test) => Promise<void>): Promise<void> =>
  forEachDevice(t, (t, device) => {
    setDefaultDevice(device);
    return withoutLeaks(t, device, () => fn(t));
  });

const f32 = async (x: Tensor): Promise<Float32Array> => (await x.data()) as Float32Array;

const golden = loadFixture('goldens/latent_model.safetensors');
const weights = golden.group('sd.');
const float = (t: Tensor): Tensor => t.to('f32');

/** The golden's model, in eval mode. */
function original(): LatentDiffiT {
  const model = new LatentDiffiT(configOf(golden)).eval();
  model.loadStateDict(toTensors(weights));
  return model;
}

t.test('forward at whole and fractional timesteps, and every gradient', (t) =>
  onEachDevice(t, async (t) => {
    const model = original();
    const grads = loadFixture('goldens/latent_model_grads.safetensors').group('grad.');
    const y = toTensor(golden.tensor('in.y'));
    const weight = toTensor(golden.tensor('in.loss_weight'));
    const run = async (t: Test, kind: 'int' | 'frac'): Promise<Tensor> => {
      const x = toTensor(golden.tensor('in.x'), { requiresGrad: true });
      const output = model.forward(x, toTensor(golden.tensor(`in.t_${kind}`)).to('f32'), y);
      t.strictSame(output.shape, golden.tensor(`out.${kind}`).shape);
      assertClose(t, await f32(output), golden.f32(`out.${kind}`), 5e-6, `out.${kind}`);
      const loss = output.mul(weight).mean();
      assertClose(t, [await loss.item()], golden.f32(`loss.${kind}`), 1e-5, `loss.${kind}`);
      loss.backward();
      return x.grad as Tensor;
    };
    const { x: expected, pos_embed: _, ...parameters } = grads;
    const dx = await run(t, 'int');
    assertClose(t, await f32(dx), expected.data, 1e-5, 'gradient of x');
    dx.dispose();
    await checkGradients(t, model, parameters, 2e-5);
    const fractional = await run(t, 'frac');
    const frac = loadFixture('goldens/latent_model_grads.safetensors').f32('grad_x.frac');
    assertClose(t, await f32(fractional), frac, 1e-5, 'gradient of x, fractional');
    fractional.dispose();
    for (const parameter of model.parameters()) parameter.grad?.dispose();
    model.dispose();
  }),
);

t.test('the features of t and the table of positions are the original ones', async (t) => {
  const acts = loadFixture('goldens/latent_model_acts.safetensors');
  const identity = tensor(
    Float32Array.from({ length: 256 ** 2 }, (_, i) => (i % 257 === 0 ? 1 : 0)),
    { shape: [256, 256] },
  );
  const embed = new TimeEmbed({ channels: 256, timeDim: 256, kind: 'timestep' });
  const [zero, w] = [zeros([256]), identity];
  embed.loadStateDict({ 'mlp.0.weight': w, 'mlp.0.bias': zero, 'mlp.2.weight': w, 'mlp.2.bias': zero });
  for (const [name, expected] of [
    ['t_int', 'act.t_freq'],
    ['t_frac', 'act.t_freq_frac'],
  ]) {
    // Both linears are the identity, so the token is SiLU of the features.
    const token = await f32(embed.forward(float(toTensor(golden.tensor(`in.${name}`)))));
    const silu = acts.f32(expected).map((v) => v / (1 + Math.exp(-v)));
    assertClose(t, token, silu, 4e-5, expected); // a last digit of the frequencies, times 1000
  }
  assertClose(t, await f32(sinCosPositions(4, 64)), acts.f32('init.pos_embed'), 1e-6, 'pos_embed');
  const fresh = new LatentDiffiT(configOf(golden));
  assertClose(t, await f32(fresh.stateDict().pos_embed), acts.f32('init.pos_embed'), 1e-6, 'of a new model');
  t.notOk(fresh.namedParameters().has('pos_embed'), 'which is not trained');
});

t.test('guidance: every case of the original, and all channels', (t) =>
  onEachDevice(t, async (t) => {
    const check = async (name: string, model: LatentDiffiT): Promise<void> => {
      const fixture = loadFixture(`goldens/${name}.safetensors`);
      const [x, y] = ['cfg.x', 'cfg.y'].map((key) => toTensor(fixture.tensor(key)));
      for (const [i, one] of fixture.json.cases.entries()) {
        const time = float(toTensor(fixture.tensor(`cfg.${i}.t`)));
        const { cfg_scale: cfgScale, scale_pow: scalePow, diffusion_steps: diffusionSteps, branch } = one;
        // Above inputSize 32 the constant scale is the default; the golden's patched cases ask for it.
        const options: CfgOptions = { cfgScale, diffusionSteps };
        if (branch === 'power_cosine') options.scalePow = scalePow;
        else if (one.patch_threshold === 0) options.scalePow = 'constant';
        const output = branch === 'none' ? model.forward(x, time, y) : model.forwardWithCfg(x, time, y, options);
        assertClose(t, await f32(output), fixture.f32(`cfg.${i}.out`), 5e-6, `${name} ${i}: ${branch}`);
        if (branch === 'none') continue;
        const half = time.slice(0, 0, time.shape[0] / 2);
        const pow = branch === 'power_cosine' ? scalePow : undefined;
        const scale = guidanceScale(half, { cfgScale, scalePow: pow, diffusionSteps });
        assertClose(t, await f32(scale), fixture.f32(`cfg.${i}.scale`), 1e-6, `${name} ${i}: scale`);
        if (name === 'latent_cfg' && i === 0) {
          const byDefault = model.forwardWithCfg(x, time, y, { cfgScale });
          t.strictSame(await byDefault.bytes(), await output.bytes(), 'pow 4 of 1000 steps is the default');
        }
      }
    };
    await noGrad(async () => {
      const model = original();
      await check('latent_cfg', model);
      const large = loadFixture('goldens/latent_cfg_large.safetensors');
      const big = new LatentDiffiT(configOf(large)).eval();
      big.loadStateDict(toTensors(large.group('sd.')));
      await check('latent_cfg_large', big);
      // All channels: e + s (c - e) on the four of noise, and each half's own variance.
      const fixture = loadFixture('goldens/latent_cfg.safetensors');
      const [x, y] = ['cfg.x', 'cfg.y'].map((key) => toTensor(fixture.tensor(key)));
      const time = tensor([500, 500, 500, 500]);
      const options: CfgOptions = { cfgScale: 3, scalePow: 'constant', cfgChannels: 'all' };
      const guided = await f32(model.forwardWithCfg(x, time, y, options));
      const same = concat([x.slice(0, 0, 2), x.slice(0, 0, 2)], 0);
      const plain = await f32(model.forward(same, time, y));
      const [half, image] = [plain.length / 2, plain.length / 4];
      const expected = plain.map((own, i) => {
        const [c, e] = [plain[i % half], plain[(i % half) + half]];
        return i % image < image / 2 ? e + 3 * (c - e) : own;
      });
      assertClose(t, guided, expected, 1e-6, 'all channels');
      for (const each of [model, big]) each.dispose();
    });
  }),
);

t.test('what is equal is shared: two sets of labels, and all steps of a sampler', (t) =>
  onEachDevice(t, (t) =>
    noGrad(async () => {
      const model = original();
      const x = toTensor(golden.tensor('in.x')).slice(0, 0, 2);
      const labels = tensor([3, 0, 10, 10], { dtype: 'i64' });
      const twice = concat([x, x], 0);
      const expected = await f32(model.forward(twice, tensor([37, 500, 37, 500]), labels));
      const shared = await f32(model.forward(x, tensor([37, 500]), labels));
      assertClose(t, shared, expected, 1e-6, 'y [2B] with x and t [B]');
      const all = await f32(model.forward(x, tensor([37, 500, 37, 500]), labels));
      assertClose(t, all, expected, 1e-6, 't [2B] too');

      const timesteps = [999, 499.75, 0];
      using network = model.conditionOn(timesteps, labels);
      for (const [step, time] of timesteps.entries()) {
        const full = await f32(model.forward(x, tensor([time, time]), labels));
        assertClose(t, await f32(network.forward(x, step)), full, 1e-6, `step ${step}`);
      }
      await assertFails(t, () => network.forward(x, 3), 'OptionError', /step is 3, expected 0 to 2/);
      await assertFails(
        t,
        () => network.forward(twice.slice(0, 0, 3), 0),
        'ShapeError',
        /y is \[4\], expected \[3\] or \[6\]/,
      );
      const unconditional = new LatentDiffiT({ ...configOf(golden), numClasses: 0 }).eval();
      const { 'y_embedder.embedding_table.weight': _, ...rest } = toTensors(weights);
      unconditional.loadStateDict(rest);
      const plain = unconditional.conditionOn(timesteps);
      const once = await f32(unconditional.forward(x, tensor([0, 0])));
      assertClose(t, await f32(plain.forward(x, 2)), once, 1e-6, 'without labels');
      for (const each of [model, unconditional, plain]) each.dispose();
    }),
  ),
);

t.test('gradient checkpointing changes memory, not gradients', (t) =>
  onEachDevice(t, async (t) => {
    const model = original();
    const fixture = loadFixture('goldens/latent_model_grads.safetensors');
    const { x: expected, pos_embed: _, ...parameters } = fixture.group('grad.');
    const run = async (): Promise<number> => {
      const x = toTensor(golden.tensor('in.x'), { requiresGrad: true });
      const [time, y] = [float(toTensor(golden.tensor('in.t_int'))), toTensor(golden.tensor('in.y'))];
      const before = (await settledMemory(x.device)).liveBytes;
      const output = scope(() => model.forward(x, time, y));
      const held = memory(x.device).liveBytes - before;
      output
        .mul(toTensor(golden.tensor('in.loss_weight')))
        .mean()
        .backward();
      assertClose(t, await f32(x.grad as Tensor), expected.data, 1e-5, 'gradient of x');
      await checkGradients(t, model, parameters, 2e-5);
      x.grad?.dispose();
      return held;
    };
    const kept = await run();
    model.gradientCheckpointing = true;
    const recomputed = await run();
    t.ok(recomputed < kept / 2, `${recomputed >> 10} KiB held for backward(), ${kept >> 10} KiB without checkpointing`);
    model.dispose();
  }),
);

/** The k rows of the attention's projections have gradient 0 up to rounding, which Adam turns into steps of lr. */
function withoutKeys(name: string, data: Float32Array): Float32Array {
  if (!/qkv\.bias$|qkv_temb\.(weight|bias)$/.test(name)) return data;
  const third = data.length / 3;
  return Float32Array.of(...data.subarray(0, third), ...data.subarray(2 * third));
}

t.test('20 steps of AdamW: first gradients, every loss, every weight', (t) =>
  onEachDevice(t, async (t) => {
    const fixture = loadFixture('goldens/train20.safetensors');
    const first = loadFixture('goldens/train20_step1.safetensors');
    const model = new LatentDiffiT({ ...configOf(fixture) }).eval(); // labels are not dropped in the golden
    model.loadStateDict(toTensors(fixture.group('sd0.')));
    const optimizer = new AdamW(model.namedParameters(), { lr: 1e-3, weightDecay: 0 });
    const [xt, noise, time, y] = ['xt', 'noise', 't', 'y'].map((key) => toTensor(fixture.tensor(`in.${key}`)));
    const lossOf = (step: number): Tensor =>
      scope(() => {
        const at = (x: Tensor): Tensor => x.slice(0, step, step + 1).reshape(x.shape.slice(1));
        const output = model.forward(at(xt), float(at(time)), at(y));
        return output.slice(1, 0, 4).sub(at(noise)).square().mean();
      });
    const compare = async (prefix: string, expected: typeof fixture, limit: number): Promise<void> => {
      const errors: [number, string][] = [];
      for (const [name, value] of Object.entries(model.stateDict())) {
        const [actual, wanted] = [await f32(value), expected.f32(`${prefix}.${name}`)];
        errors.push([maxRelativeError(withoutKeys(name, actual), withoutKeys(name, wanted)), name]);
        if (withoutKeys(name, actual) !== actual && maxRelativeError(actual, wanted) > 0.1) t.fail(`k rows of ${name}`);
      }
      const [worst, name] = errors.reduce((a, b) => (b[0] > a[0] ? b : a));
      t.ok(worst <= limit, `${errors.length} weights of ${prefix}, largest error ${worst.toExponential(1)} in ${name}`);
    };
    const losses: number[] = [];
    for (let step = 0; step < 20; step++) {
      const loss = lossOf(step);
      loss.backward();
      if (step === 0) {
        const problems: string[] = [];
        for (const [name, { grad }] of model.namedParameters()) {
          const expected = toTensor(first.tensor(`grad0.${name}`));
          const here = expected.ndim === 4 ? expected.permute([0, 2, 3, 1]) : expected;
          const error = maxRelativeError(await f32(grad as Tensor), await f32(here));
          if (!(error <= 1e-5)) problems.push(`${name}: ${error}`);
        }
        t.strictSame(problems, [], 'the first gradients');
      }
      optimizer.step();
      optimizer.zeroGrad();
      losses.push(await loss.item());
      if (step === 0) await compare('step1', first, 1e-5);
    }
    const error = maxElementError(losses, fixture.f32('losses'));
    t.ok(error <= 5e-6, `20 losses, relative error ${error.toExponential(1)}`);
    await compare('final', fixture, 1e-5);
    const after: number[] = [];
    for (let step = 0; step < 20; step++) after.push(await noGrad(() => lossOf(step)).item());
    t.ok(maxElementError(after, fixture.f32('losses_after')) <= 5e-6, 'and the losses afterwards');
    const table = (await f32(model.stateDict()['y_embedder.embedding_table.weight'])).subarray(4 * 32);
    t.strictSame(
      table,
      fixture.f32('sd0.y_embedder.embedding_table.weight').subarray(4 * 32),
      'the null class never moved',
    );
    optimizer.dispose();
    model.dispose();
  }),
);

/** A JSON file of the goldens. */
const json = (name: string): ReturnType<typeof JSON.parse> =>
  JSON.parse(readFileSync(new URL(`../fixtures/goldens/${name}.json`, import.meta.url), 'utf8'));

for (const side of [32, 64]) {
  t.test(`the released checkpoint of input size ${side}: every key, shape and their order`, async (t) => {
    const before = (await settledMemory('cpu')).liveBuffers;
    const released: [string, [number[], string]][] = Object.entries(json(`diffit_keys_d28_s${side}`).keys);
    // A block is 21M numbers, so the model here has one, and its keys are repeated for the others.
    using model = new LatentDiffiT({ inputSize: side, depth: 1 });
    const own = Object.entries(model.stateDict()).map(([name, { shape }]) => ({ name, shape }));
    const block = own.filter(({ name }) => name.startsWith('blocks.0.'));
    const start = own.indexOf(block[0]);
    const blocks = Array.from({ length: 28 }, (_, i) =>
      block.map(({ name, shape }) => ({ name: name.replace('.0.', `.${i}.`), shape })),
    ).flat();
    const all = [...own.slice(0, start), ...blocks, ...own.slice(start + block.length)];
    const expected = released.filter(([name]) => !name.endsWith('relative_position_index'));
    t.equal(released.length - expected.length, 28, 'besides the index of each block');
    t.strictSame(
      all,
      expected.map(([name, [shape]]) => ({ name, shape })),
    );
    const trainable = model.parameterCount();
    const ofBlock = block.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b), 0);
    const { counts } = json('counts');
    t.equal(trainable + 27 * ofBlock, counts[`depth28_input${side}`].trainable, 'parameters at depth 28');
    t.equal(trainable + 29 * ofBlock, counts[`depth30_input${side}`].trainable, 'and at depth 30');
    for (const shared of Object.values(model.stateDict())) shared.dispose();
    model.dispose();
    t.ok(memory('cpu').liveBuffers <= before + 2 * all.length, 'freed');
  });
}

t.test('presets: the released configurations, and smaller ones', async (t) => {
  const { inputSize: _, ...xl } = new LatentDiffiT({ ...latentPresets.imagenet256.model, depth: 1 }).config;
  const config = { patchSize: 2, inChannels: 4, hiddenSize: 1152, depth: 1, numHeads: 16, mlpRatio: 4 };
  const rest = { numClasses: 1000, classDropoutProb: 0.1, learnSigma: true, maskRatio: 0, decodeLayers: 4 };
  t.strictSame(xl, { ...config, ...rest });
  const { imagenet256, imagenet512 } = latentPresets;
  t.strictSame(imagenet512.model, { ...imagenet256.model, inputSize: 64 });
  t.strictSame(
    [imagenet256, imagenet512].map(({ sampler }) => sampler.cfgScale),
    [4.4, 1.49],
  );
  t.strictSame(
    [imagenet256, imagenet512].map(({ model }) => model.depth),
    [28, 28],
  );
  // 31^2 rows of bias per head, four linears of a block, and what is outside the blocks.
  const sum = (d: number, depth: number, heads: number): number =>
    depth * (15 * d ** 2 + 12 * d + 961 * heads) + d ** 2 + (17 + 258 + 1001 + 32) * d + 32;
  t.equal(sum(1152, 28, 16), json('counts').counts.depth28_input32.trainable, 'the formula holds');
  for (const [name, expected] of [
    ['latent-small', sum(384, 12, 6)],
    ['latent-base', sum(768, 12, 12)],
  ] as const) {
    using model = new LatentDiffiT(latentPresets[name].model);
    t.equal(model.parameterCount(), expected, `${name}: ${expected} parameters`);
  }
});

t.test('a state dict loads with and without the index buffers, and saves without', async (t) => {
  const model = new LatentDiffiT(configOf(golden));
  const state = toTensors(weights);
  model.loadStateDict(state);
  const bare = Object.fromEntries(Object.entries(state).filter(([name]) => !name.endsWith('relative_position_index')));
  model.loadStateDict(bare);
  t.strictSame(Object.keys(model.stateDict()).sort(), Object.keys(bare).sort());
  t.strictSame(await model.stateDict().pos_embed.data(), golden.f32('sd.pos_embed'), 'pos_embed is loaded');
  model.dispose();
});

t.test('initial values', async (t) => {
  manualSeed(5);
  const model = new LatentDiffiT({ inputSize: 16, hiddenSize: 96, depth: 1, numHeads: 2, numClasses: 50 });
  const state = model.stateDict();
  const statistics = async (name: string): Promise<{ std: number; most: number }> => {
    const data = await f32(state[name]);
    const std = Math.sqrt(data.reduce((sum, v) => sum + v * v, 0) / data.length);
    return { std, most: data.reduce((a, v) => Math.max(a, Math.abs(v)), 0) };
  };
  const uniform = (inputs: number, outputs: number): number => Math.sqrt(6 / (inputs + outputs));
  for (const [name, bound] of [
    ['x_embedder.proj.weight', uniform(16, 96)],
    ['blocks.0.attn.qkv.weight', uniform(96, 288)],
    ['blocks.0.attn.qkv_temb.weight', uniform(96, 288)],
    ['blocks.0.mlp.fc1.weight', uniform(96, 384)],
  ] as const) {
    const { std, most } = await statistics(name);
    t.ok(
      most <= bound && most > 0.98 * bound && Math.abs(std * Math.sqrt(3) - bound) < 0.05 * bound,
      `${name}: ${bound}`,
    );
  }
  for (const name of [
    't_embedder.mlp.0.weight',
    't_embedder.mlp.2.weight',
    'y_embedder.embedding_table.weight',
    'blocks.0.attn.relative_position_bias_table',
  ]) {
    const { std } = await statistics(name);
    t.ok(Math.abs(std - 0.02) < 1.5e-3, `${name}: deviation ${std}`);
  }
  for (const name of Object.keys(state).filter((name) => name.endsWith('.bias') || name.startsWith('final_layer'))) {
    t.strictSame(await statistics(name), { std: 0, most: 0 }, name);
  }
  model.dispose();
});

const small: LatentTransformerConfig = { inputSize: 8, hiddenSize: 16, depth: 2, numHeads: 2, numClasses: 10 };

t.test('training drops labels to the null class; eval does not', async (t) => {
  manualSeed(1);
  const model = new LatentDiffiT({ ...small, classDropoutProb: 0.5 });
  const state = Object.entries(model.stateDict());
  model.loadStateDict(
    Object.fromEntries(state.map(([name, { shape, size }], i) => [name, tensor(numbers(i, size, 0.5), { shape })])),
  );
  await noGrad(async () => {
    const image = tensor(numbers(1, 256), { shape: [1, 4, 8, 8] });
    const x = concat(new Array(16).fill(image), 0);
    const rows = async (label: number): Promise<string[]> => {
      const y = tensor(new Array(16).fill(label), { dtype: 'i64' });
      const data = await f32(model.forward(x, zeros([16]), y));
      return Array.from({ length: 16 }, (_, i) => data.subarray(i * 512, (i + 1) * 512).join());
    };
    const training = await rows(3);
    model.eval();
    const [evaluated, nulls] = [await rows(3), await rows(10)];
    t.equal(new Set(evaluated).size, 1);
    t.equal(new Set(training).size, 2);
    t.strictSame(new Set(training), new Set([evaluated[0], nulls[0]]), 'some samples are those of the null class');
  });
  model.dispose();
});

t.test('options are checked, by name', async (t) => {
  const bad: [Record<string, unknown>, RegExp][] = [
    [{ hidden: 16 }, /LatentDiffiT: unknown option "hidden"/],
    [{ inputsize: 8 }, /unknown option "inputsize" \(did you mean "inputSize"\?\)/],
    [{ inputSize: 0 }, /inputSize is /],
    [{ inputSize: 9 }, /patchSize 2 does not divide inputSize 9/],
    [{ hiddenSize: 18 }, /hiddenSize is 18, expected .*multiple of 4/],
    [{ numHeads: 3 }, /numHeads 3 does not divide hiddenSize 16/],
    [{ depth: 1.5 }, /depth is /],
    [{ classDropoutProb: 1 }, /classDropoutProb is /],
    [{ learnSigma: 'yes' }, /learnSigma is /],
    [{ maskRatio: 1 }, /maskRatio is /],
    [{ maskRatio: 0.3, decodeLayers: 2 }, /decodeLayers 2 leaves no encoder in depth 2/],
  ];
  for (const [options, message] of bad) {
    await assertFails(t, () => new LatentDiffiT({ ...small, ...options }), 'OptionError', message);
  }
  using plain = new LatentDiffiT({ ...small, learnSigma: false });
  t.equal(plain.outChannels, 4);
  t.equal(plain.nullClass, 10);
  t.strictSame(plain.forward(zeros([1, 4, 8, 8]), zeros([1]), zeros([1], { dtype: 'i64' })).shape, [1, 4, 8, 8]);
  using again = new LatentDiffiT(JSON.parse(JSON.stringify(plain.config)));
  t.strictSame(again.config, plain.config, 'the config is plain JSON that makes the same model');
});

t.test('inputs are checked', async (t) => {
  const model = new LatentDiffiT(small).eval();
  const unguided = new LatentDiffiT({ ...small, classDropoutProb: 0 }).eval();
  const plain = new LatentDiffiT({ ...small, numClasses: 0 }).eval();
  t.equal(unguided.nullClass, undefined);
  t.equal(plain.nullClass, undefined);
  const [x, time, y] = [zeros([2, 4, 8, 8]), zeros([2]), zeros([2], { dtype: 'i64' })];
  const cfg = { cfgScale: 4 };
  const three = zeros([3], { dtype: 'i64' });
  const bad: [() => unknown, string, RegExp][] = [
    [
      () => model.forward(zeros([2, 4, 16, 16]), time, y),
      'ShapeError',
      /x is \[2, 4, 16, 16\], expected \[B, 4, 8, 8\]/,
    ],
    [() => model.forward(zeros([4, 8, 8]), time, y), 'ShapeError', /x is \[4, 8, 8\]/],
    [() => model.forward(x, zeros([3]), y), 'ShapeError', /t is \[3\], expected \[2\]/],
    [() => model.forward(x, time, three), 'ShapeError', /y is \[3\], expected \[2\] or \[4\]/],
    [() => model.forward(x, time), 'OptionError', /class-conditional; give labels y \[B\] in 0\.\.9/],
    [() => plain.forward(x, time, y), 'OptionError', /labels given to an unconditional model/],
    [() => model.forward(x, time, time), 'DTypeError', /ids is f32, expected i64/],
    [() => unguided.forwardWithCfg(x, time, y, cfg), 'OptionError', /guidance needs a null class/],
    [
      () => model.forwardWithCfg(zeros([3, 4, 8, 8]), zeros([3]), three, cfg),
      'ShapeError',
      /expected the same even batch/,
    ],
    [() => model.forwardWithCfg(x, time, y, { cfgScale: Number.NaN }), 'OptionError', /cfgScale is NaN/],
    [
      () => model.forwardWithCfg(x, time, y, { ...cfg, cfgChannels: 9 }),
      'OptionError',
      /9 channels to guide, expected 1 to/,
    ],
    [() => model.forwardWithCfg(x, time, y, { ...cfg, scalePow: 0 }), 'OptionError', /scalePow is 0/],
    [() => model.forwardMasked(x, time, y), 'OptionError', /forwardMasked\(\) needs a model with maskRatio above 0/],
    [() => model.forward(x, time, tensor([0, 11], { dtype: 'i64' })).data(), 'DiffitError', /gather_rows.*11/],
  ];
  for (const [use, name, message] of bad) await assertFails(t, use, name, message);
  t.strictSame(
    await model.forward(x, time, y).toArray(),
    await zeros([2, 8, 8, 8]).toArray(),
    'and works on; a new model gives 0',
  );
  for (const each of [model, unguided, plain]) each.dispose();
});

t.test('a checkpoint of another resolution: the error names both', async (t) => {
  const [small32, small64] = [32, 64].map((inputSize) => new LatentDiffiT({ ...small, inputSize }));
  await assertFails(
    t,
    () => small32.loadStateDict(small64.stateDict()),
    'StateDictError',
    /is for inputSize 64 \(images of 512 px\), the model is for inputSize 32 \(256 px\): pos_embed: \[1, 1024, 16\], expected \[1, 256, 16\]\. Make the model with inputSize: 64\./,
  );
  await assertFails(
    t,
    () => small64.loadStateDict(small32.stateDict()),
    'StateDictError',
    /Make the model with inputSize: 32/,
  );
  const { pos_embed: _, ...rest } = small32.stateDict();
  await assertFails(t, () => small32.loadStateDict(rest), 'StateDictError', /1 missing \(pos_embed\)/);
  const wide = new LatentDiffiT({ ...small, inputSize: 32, hiddenSize: 32 });
  await assertFails(
    t,
    () => small32.loadStateDict(wide.stateDict()),
    'StateDictError',
    /misshapen \(pos_embed: \[1, 256, 32\]/,
  );
  for (const each of [small32, small64, wide]) each.dispose();
});
