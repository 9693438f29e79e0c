/** Optimizers, clipping, averages and schedules against torch.optim and EDM's training loop (goldens/optim). */
import t from 'tap';
import '../../lib/autograd.js';
import { OptionError, ShapeError } from '../../lib/errors.js';
import {
  Adam,
  AdamW,
  clipGradNorm,
  constantLr,
  cosineLr,
  Ema,
  edmEmaDecay,
  rampLr,
  squareSum,
} from '../../lib/optim/index.js';
import { scope } from '../../lib/scope.js';
import { full, type Tensor, tensor, zeros } from '../../lib/tensor.js';
import { assertClose, loadFixture } from '../helpers.js';

const golden = loadFixture('goldens/optim.safetensors');
const tolerance = 1e-6;

/** Row i of a stack [n, ...shape]. */
function at(name: string, i: number): { data: Float32Array; shape: number[] } {
  const [n, ...shape] = golden.tensor(name).shape;
  const all = golden.f32(name);
  const size = all.length / n;
  return { data: all.slice(i * size, (i + 1) * size), shape };
}

function parameter(data: Float32Array, shape: number[]): Tensor {
  return tensor(data, { shape, requiresGrad: true });
}

const optimizers = { adam: Adam, adamw_wd0: AdamW, adamw_wd01: AdamW };
for (const [name, , { lr, betas, eps, weight_decay: weightDecay }] of golden.json.config.opts) {
  t.test(`${name}: five steps equal torch.optim`, async (t) => {
    const weight = parameter(golden.f32('opt.param0'), [7, 5]);
    const optimizer = new optimizers[name as keyof typeof optimizers](new Map([['weight', weight]]), {
      lr,
      betas,
      eps,
      weightDecay,
    });
    for (let k = 0; k < 5; k++) {
      optimizer.zeroGrad();
      weight.grad = tensor(at('opt.grads', k).data, { shape: [7, 5] });
      optimizer.step();
      const { tensors } = optimizer.stateDict();
      for (const [key, value] of [
        ['param', weight],
        ['exp_avg', tensors['m.weight']],
        ['exp_avg_sq', tensors['v.weight']],
      ] as const) {
        assertClose(
          t,
          (await value.data()) as Float32Array,
          at(`${name}.${key}`, k).data,
          tolerance,
          `step ${k} ${key}`,
        );
      }
    }
  });
}

t.test('AdamW decays by 0.01 unless told otherwise, Adam by 0', async (t) => {
  for (const [Kind, expected] of [
    [AdamW, 1 - 1e-3],
    [Adam, 1],
  ] as const) {
    const weight = parameter(Float32Array.of(1), [1]);
    const optimizer = new Kind([weight], { lr: 0.1 });
    weight.grad = zeros([1]);
    optimizer.step();
    assertClose(t, (await weight.data()) as Float32Array, [expected], tolerance, Kind.name);
  }
});

t.test('a parameter without a gradient is left alone and its step does not count', async (t) => {
  // One constant gradient, whatever its size, moves a fresh Adam parameter by lr (up to eps): bias correction counts.
  const [a, b] = [parameter(Float32Array.of(1), [1]), parameter(Float32Array.of(1), [1])];
  const optimizer = new Adam([a, b], { lr: 0.125 });
  const step = (...grads: (number | undefined)[]) => {
    optimizer.zeroGrad();
    for (const [i, p] of [a, b].entries()) if (grads[i] !== undefined) p.grad = full([1], grads[i]);
    optimizer.step();
  };
  step(3, undefined);
  step(3, undefined);
  t.same(await b.toArray(), [1]);
  step(undefined, 5);
  t.same(optimizer.stateDict().steps, { 0: 2, 1: 1 });
  assertClose(t, (await b.data()) as Float32Array, [1 - 0.125], tolerance, 'first step of b');
  step(3, 5);
  assertClose(t, (await a.data()) as Float32Array, [1 - 3 * 0.125], tolerance, 'third step of a');
  assertClose(t, (await b.data()) as Float32Array, [1 - 2 * 0.125], tolerance, 'second step of b');
});

t.test('finiteOnly counts NaN and infinity in gradients as 0; without it they spread', async (t) => {
  const bad = Float32Array.of(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 2);
  const run = async (finiteOnly: boolean): Promise<number[]> => {
    const weight = parameter(new Float32Array(4), [4]);
    const optimizer = new Adam([weight], { lr: 1, finiteOnly });
    weight.grad = tensor(bad);
    optimizer.step({ scale: clipGradNorm([weight], 1).scale });
    weight.grad = tensor(bad);
    optimizer.step();
    return [...((await weight.data()) as Float32Array)];
  };
  const clean = await run(true);
  t.same(clean.slice(0, 3), [0, 0, 0]);
  t.ok(clean[3] < 0);
  t.ok(Number.isNaN((await run(false))[0]));
});

t.test('a state carries over: three steps, save, load, two steps equal five steps', async (t) => {
  const run = async (restartAt: number): Promise<unknown> => {
    const weight = parameter(golden.f32('opt.param0'), [7, 5]);
    let optimizer = new AdamW([weight]);
    for (let k = 0; k < 5; k++) {
      if (k === restartAt) {
        const next = new AdamW([weight]);
        next.loadStateDict(optimizer.stateDict());
        optimizer.dispose();
        optimizer = next;
      }
      optimizer.zeroGrad();
      weight.grad = tensor(at('opt.grads', k).data, { shape: [7, 5] });
      optimizer.step();
    }
    return weight.toArray();
  };
  t.same(await run(3), await run(-1));
});

t.test('state and gradients outlive the scope they were made in, and are freed on request', async (t) => {
  const { weight, optimizer, ema } = scope(() => {
    const weight = parameter(Float32Array.of(1, 2), [2]);
    return { weight, optimizer: new Adam([weight]), ema: new Ema([weight]) };
  });
  const { tensors } = optimizer.stateDict();
  scope(() => {
    weight.mul(weight).sum().backward();
    optimizer.step();
    ema.update(0.5);
  });
  const gradient = weight.grad as Tensor;
  t.same(await gradient.toArray(), [2, 4]);
  t.notOk(tensors['m.0'].isDisposed);
  optimizer.zeroGrad();
  t.ok(gradient.isDisposed);
  t.equal(weight.grad, undefined);
  optimizer.dispose();
  ema.dispose();
  t.ok(tensors['v.0'].isDisposed);
  t.ok(ema.averages.get('0')?.isDisposed);
});

for (const [tag, , maxNorm] of golden.json.config.clip) {
  t.test(`clipGradNorm, ${tag} gradients, equals torch.nn.utils.clip_grad_norm_`, async (t) => {
    const parameters = golden.json.config.clip_shapes.map((shape: number[], i: number) => {
      const made = parameter(new Float32Array(shape.reduce((a, b) => a * b)), shape);
      made.grad = tensor(golden.f32(`clip.${tag}.grad_in${i}`), { shape });
      return made;
    }) as Tensor[];
    const { norm, scale } = clipGradNorm(parameters, maxNorm);
    assertClose(t, (await norm.data()) as Float32Array, golden.f32(`clip.${tag}.total_norm`), tolerance, 'norm');
    assertClose(t, (await scale.data()) as Float32Array, golden.f32(`clip.${tag}.coef`), tolerance, 'scale');
    // After one step of Adam with beta1 = 0, m is the gradient that was used.
    const optimizer = new Adam(parameters, { betas: [0, 0.999] });
    optimizer.step({ scale });
    const { tensors } = optimizer.stateDict();
    for (const [i] of parameters.entries()) {
      const used = (await tensors[`m.${i}`].data()) as Float32Array;
      assertClose(t, used, golden.f32(`clip.${tag}.grad_out${i}`), tolerance, `gradient ${i}`);
    }
  });
}

t.test('clipGradNorm without any gradient', async (t) => {
  const { norm } = clipGradNorm([parameter(new Float32Array(2), [2])], 1);
  t.equal(await norm.item(), 0);
  t.equal(await squareSum([tensor([3, 4])]).item(), 25);
});

t.test('EMA with a constant decay', async (t) => {
  const weight = parameter(golden.f32('ema.init'), [7, 5]);
  const ema = new Ema(new Map([['weight', weight]]));
  for (let k = 0; k < golden.json.config.ema_n; k++) {
    weight.copyFrom(tensor(at('ema.params', k).data, { shape: [7, 5] }));
    ema.update(golden.json.config.decay);
    const average = (await (ema.averages.get('weight') as Tensor).data()) as Float32Array;
    assertClose(t, average, at('ema.const.out', k).data, tolerance, `update ${k}`);
  }
});

for (const name of ['edm0', 'edm1']) {
  t.test(`EMA with EDM's half-life, ${name}`, async (t) => {
    const { ema_halflife_kimg, ema_rampup_ratio, batch_size } = golden.json.config.edm;
    const options = { halfLifeImages: ema_halflife_kimg * 1000, rampUp: ema_rampup_ratio };
    const images = golden.tensor(`ema.${name}.cur_nimg`).data as BigInt64Array;
    const betas = golden.tensor(`ema.${name}.beta`).data as Float64Array;
    const weight = parameter(golden.f32('ema.init'), [7, 5]);
    const average = parameter(golden.f32('ema.init'), [7, 5]); // of another model, as the trainer has it
    const ema = new Ema([weight], [average]);
    for (let k = 0; k < golden.json.config.ema_n; k++) {
      const decay = edmEmaDecay(Number(images[k]), batch_size, options);
      t.ok(Math.abs(decay - betas[k]) <= 1e-14, `decay ${decay}`);
      weight.copyFrom(tensor(at('ema.params', k).data, { shape: [7, 5] }));
      ema.update(decay);
      assertClose(t, (await average.data()) as Float32Array, at(`ema.${name}.out`, k).data, tolerance, `update ${k}`);
    }
    t.equal(edmEmaDecay(0, 2, { halfLifeImages: 2, rampUp: null }), 0.5, 'without ramp-up');
    ema.reset();
    t.same(await average.toArray(), await weight.toArray());
    ema.dispose();
    t.notOk(average.isDisposed, 'averages given to it are not its own');
  });
}

t.test('learning rates', async (t) => {
  const { lr, lr_rampup_kimg } = golden.json.config.lr;
  const ramp = rampLr(lr, lr_rampup_kimg * 1000);
  const images = golden.tensor('edm_lr.cur_nimg').data as BigInt64Array;
  const expected = golden.tensor('edm_lr.lr').data as Float64Array;
  for (const [i, n] of images.entries()) t.equal(ramp(Number(n)), expected[i], `EDM's ramp at ${n} images`);
  t.equal(rampLr(0.5, 0)(0), 0.5);
  const decayed = rampLr(1, 10, { decay: [100, 200], final: 0.1 });
  const points = [0, 5, 50, 100, 150, 200, 999].map((images) => Number(decayed(images).toFixed(12)));
  t.same(points, [0, 0.5, 1, 1, 0.55, 0.1, 0.1], 'rises, stays, falls along a half cosine, stays');
  t.equal(constantLr(0.25)(1e9), 0.25);
  const cosine = cosineLr(1, 100, { final: 0.2, warmup: 10 });
  t.equal(cosine(0), 0);
  t.ok(Math.abs(cosine(5) - 0.5 * (0.2 + 0.4 * (1 + Math.cos(Math.PI / 20)))) < 1e-15);
  t.ok(Math.abs(cosine(50) - 0.6) < 1e-15);
  t.equal(cosine(100), 0.2);
  t.equal(cosine(1000), 0.2);
});

t.test('bad input is one clear error', async (t) => {
  const weight = parameter(new Float32Array(2), [2]);
  t.throws(() => new Adam([]), new OptionError('Adam: there are no parameters.'));
  t.throws(() => new Adam([zeros([1], { dtype: 'i64' })]), { code: 'DIFFIT_DTYPE' });
  t.throws(() => new Adam([weight], { lr: -1 }), { message: /lr is -1/ });
  t.throws(() => new Adam([weight], { lr: Number.NaN }), { message: /lr is NaN/ });
  t.throws(() => new Adam([weight], { betas: [0.9, 1] }), { message: /betas/ });
  const optimizer = new Adam([weight]);
  t.throws(() => optimizer.loadStateDict({ steps: {}, tensors: {} }), { message: /no step count for parameter "0"/ });
  t.throws(() => optimizer.loadStateDict({ steps: { 0: 1 }, tensors: {} }), { message: /no tensor "m.0"/ });
  const misshapen = { steps: { 0: 1 }, tensors: { 'm.0': zeros([3]), 'v.0': zeros([2]) } };
  t.throws(() => optimizer.loadStateDict(misshapen), ShapeError);
  t.throws(() => clipGradNorm([weight], 0), { message: /maxNorm is 0/ });
  t.throws(() => squareSum([]), OptionError);
  t.throws(() => new Ema([weight], [zeros([3])]), ShapeError);
  t.throws(() => new Ema(new Map([['a', weight]]), [zeros([2])]), { message: /no average for parameter "a"/ });
  t.throws(() => new Ema([weight]).update(1.5), { message: /decay is 1.5/ });
  t.throws(() => rampLr(Number.NaN, 1), OptionError);
});
