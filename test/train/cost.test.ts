/** lib/train/cost.ts and models/cost.ts against what a step does: numbers kept are those that stay alive, operations those of PyTorch's counter. */
import t from 'tap';
import { autocast, manualSeed, memory, randn, scope, synchronize, tensor } from '../../lib/index.js';
import { forwardFlops, keptNumbers } from '../../lib/models/cost.js';
import { create, DiT, ImageDiffiT, LatentDiffiT, presets } from '../../lib/models/index.js';
import { estimateCost, planTraining, processors, readRecipe, shippedRecipes } from '../../lib/train/index.js';

t.test('operations', async (t) => {
  // torch.utils.flop_counter counts 32.668 GFLOP for cifar10 without the attention in windows of 16, 20 blocks of it.
  const { kind, model } = presets.cifar10;
  t.ok(Math.abs(forwardFlops(kind, { ...model }) / (32.667992e9 + 0.172e9) - 1) < 1e-4);
  // The published 114 G multiply-adds leave out the attention's own products.
  const { model: xl } = presets.imagenet256;
  const attention = 28 * 256 * 4 * 256 * 1152;
  const found = (forwardFlops('LatentDiffiT', { ...xl }) - attention) / 2e9;
  t.ok(Math.abs(found / 114 - 1) < 0.02, `${found}`);
  t.equal(forwardFlops('DiT', { ...xl }), forwardFlops('LatentDiffiT', { ...xl }));
});

/** Bytes that stay alive after a forward pass, for one of four images. */
async function keptBytes(make: () => { model: ImageDiffiT | LatentDiffiT | DiT; side: number; channels: number }) {
  manualSeed(1);
  const { model, side, channels } = make();
  model.train();
  const live = async (): Promise<number> => {
    await synchronize('cpu');
    return memory('cpu').liveBytes;
  };
  const [x, level] = [randn([4, channels, side, side]), tensor(new Float32Array(4).fill(0.1))];
  const labels = model instanceof ImageDiffiT ? undefined : tensor(new BigInt64Array(4));
  const before = await live();
  const y = scope(() => autocast('f32', () => model.forward(x, level, labels as never)));
  const bytes = (await live()) - before;
  for (const used of [y, x, level, labels]) used?.dispose();
  model.dispose();
  return bytes / 4;
}

t.test('numbers kept for the way back', async (t) => {
  const unet = {
    imgResolution: 16,
    inChannels: 3,
    baseChannels: 32,
    channelMult: [1, 2],
    numBlocks: 2,
    windowSize: 4,
    timeDim: 64,
    channelsPerHead: 16,
  };
  const variants = [{}, { dropout: 0.1 }, { numBlocks: 1 }, { mlpRatio: 2 }, { channelMult: [1] }];
  for (const change of variants) {
    const config = { ...unet, ...change };
    const bytes = await keptBytes(() => ({ model: new ImageDiffiT(config), side: 16, channels: 3 }));
    const estimate = 4 * keptNumbers('ImageDiffiT', config);
    t.ok(Math.abs(estimate / bytes - 1) < 0.1, `${JSON.stringify(change)}: ${estimate}, ${bytes}`);
  }
  const latent = { inputSize: 16, hiddenSize: 64, depth: 4, numHeads: 2, numClasses: 10 };
  for (const [kind, Model] of [
    ['LatentDiffiT', LatentDiffiT],
    ['DiT', DiT],
  ] as const) {
    const bytes = await keptBytes(() => ({ model: new Model(latent), side: 16, channels: 4 }));
    const estimate = 4 * keptNumbers(kind, latent);
    t.ok(Math.abs(estimate / bytes - 1) < 0.12, `${kind}: ${estimate}, ${bytes}`);
  }
});

t.test('what a run costs', async (t) => {
  const plan = planTraining({ preset: 'mnist', training: { batch: 10, images: 1005 }, evaluation: { samples: 100 } });
  const { kind, model } = presets.mnist;
  const flops = forwardFlops(kind, { ...model });
  const network = create('mnist');
  const cost = estimateCost(plan, { utilization: 0.5, count: 2 });
  t.match(cost, { parameters: network.parameterCount(), forwardFlops: flops, steps: 101, images: 1005, samples: 100 });
  network.dispose();
  t.equal(cost.trainingFlops, 3 * 1005 * flops);
  t.equal(cost.evaluations, 2 * 35, '18 steps of Heun, guided');
  t.equal(cost.samplingFlops, 100 * 70 * flops);
  t.equal(cost.trainingSeconds, (3 * 1005 * flops) / (67e12 * 2 * 0.5), 'in f32');
  const half = estimateCost(planTraining({ preset: 'imagenet256', training: { precision: 'bf16' } }));
  t.equal(half.trainingSeconds, undefined, 'no length, no time');
  t.equal(half.samplingSeconds, half.samplingFlops / (989e12 * 0.35));
  t.equal(half.memory.parameters, 22 * half.parameters);
  const small = { processor: { flops: { f32: 1e12, bf16: 1e12 }, memory: 1e6 } };
  t.match(estimateCost(plan, small), { microBatch: { fits: 0, planned: 10 }, trainingSeconds: Number });
  t.throws(() => estimateCost(plan, { processor: 'h10' }), { message: /did you mean "h100"/ });
  t.throws(() => estimateCost(plan, { utilization: 2 }), { code: 'DIFFIT_OPTION', message: /utilization/ });
  t.throws(() => estimateCost(plan, { gpus: 2 } as never), { code: 'DIFFIT_OPTION', message: /gpus/ });
  t.ok(Object.values(processors).every(({ flops, memory }) => flops.bf16 >= flops.f32 && memory > 2 ** 34));
});

t.test('the recipes of the paper', async (t) => {
  t.same(shippedRecipes(), ['cifar10', 'ffhq64', 'imagenet256', 'imagenet512']);
  for (const name of shippedRecipes()) {
    const recipe = await readRecipe(name);
    const { model = {}, training = {}, sampler = {}, evaluation = {}, sources = {} } = recipe;
    const parts = { model, training, sampler, evaluation };
    const settings = Object.entries(parts).flatMap(([part, of]) => Object.keys(of).map((key) => `${part}.${key}`));
    t.same(Object.keys(sources).sort(), settings.sort(), `${name}: every setting has a source`);
    // The same as the preset of that name, which says no more than the recipe does.
    const [plan, base] = [planTraining(recipe), planTraining({ preset: name }, { device: 'cuda' })];
    t.match(plan.model, base.model, name);
    for (const key of Object.keys(presets[name].model)) t.ok(key in model, `${name}: model.${key}`);
    const { images, ...others } = plan.training;
    t.same(others, base.training, name);
    t.same(plan.sampler, base.sampler, name);
    t.ok(Number(images) > 1e8);
    t.equal(plan.evaluation?.samples, 50_000);
  }
  await t.rejects(readRecipe('cifr10'), { code: 'DIFFIT_OPTION', message: /did you mean "cifar10"/ });
  await t.rejects(readRecipe('no/such.json'), { code: 'DIFFIT_FILE' });
});
