/**
 * Everything that takes options refuses, with one OptionError that starts with its name and names the option: one that is unknown, one of the
 * wrong type, one out of range, and NaN; and says which name was meant when a known one is near.
 */
import t from 'tap';
import { data, diffusion, io, models, nn, OptionError, optim, tensor, train, zeros } from '../lib/index.js';
import { temporaryFolder, tinyConfig } from './train/fixtures.js';

type Call = (options: never) => unknown;

interface Case {
  call: (options: Record<string, unknown>) => unknown;
  /** Options that are needed, right. */
  given?: Record<string, unknown>;
  /** A misspelt option, and what was meant. */
  misspelt: [wrong: string, meant: string];
  /** By name: values it does not take. */
  wrong: Record<string, unknown[]>;
}

const weight = tensor([1, 2], { requiresGrad: true });
const noise = zeros([1, 4, 2, 2]);
const network = (() => {
  throw new Error('the network was called');
}) as never;
/** Takes the first step of a sampler. */
const first = (steps: AsyncGenerator<unknown>): Promise<unknown> => steps.next();
const ddpm = new diffusion.GaussianDiffusion();
const options = (call: Call): Case['call'] => call as Case['call'];
const latent = { inputSize: 4, hiddenSize: 16, depth: 1, numHeads: 2, numClasses: 3 };
const model = new models.LatentDiffiT(latent);
const dataset: data.Dataset = {
  length: 4,
  imageShape: [8, 8, 1],
  numClasses: 0,
  get: network,
} as never;
const pixels = new Uint8Array(64);
const vae = new models.AutoencoderKL({ blockOutChannels: [4, 4], layersPerBlock: 1, normNumGroups: 2 });
const array = { shape: [64], dtype: 'u8', bytes: pixels } as never;

const cases: Record<string, Case> = {
  Adam: {
    call: options((o) => new optim.Adam([weight], o)),
    misspelt: ['beta', 'betas'],
    wrong: { lr: [-1, '1', NaN], betas: [[1, 1], 0.9], eps: [NaN] },
  },
  AdamW: {
    call: options((o) => new optim.AdamW([weight], o)),
    misspelt: ['weightdecay', 'weightDecay'],
    wrong: { weightDecay: [-1, NaN, null] },
  },
  rampLr: {
    call: options((o) => optim.rampLr(1, 10, o)),
    misspelt: ['decays', 'decay'],
    wrong: { final: ['0', NaN], decay: [[1], 5] },
  },
  cosineLr: {
    call: options((o) => optim.cosineLr(1, 10, o)),
    misspelt: ['warmups', 'warmup'],
    wrong: { warmup: [-1, NaN], final: ['x'] },
  },
  edmEmaDecay: {
    call: options((o) => optim.edmEmaDecay(0, 1, o)),
    given: { halfLifeImages: 1 },
    misspelt: ['rampup', 'rampUp'],
    wrong: { halfLifeImages: [-1, Number.NaN, '5'] },
  },
  Linear: {
    call: options((o) => new nn.Linear(2, 2, o)),
    misspelt: ['biass', 'bias'],
    wrong: { bias: ['yes'], std: [-1, NaN] },
  },
  Conv2d: {
    call: options((o) => new nn.Conv2d(2, 2, o)),
    misspelt: ['strides', 'stride'],
    wrong: { stride: [0, 1.5, NaN, '1'] },
  },
  Embedding: {
    call: options((o) => new nn.Embedding(2, 2, o)),
    misspelt: ['sdt', 'std'],
    wrong: { std: [-1, NaN, '1'] },
  },
  TMSA: {
    call: options((o) => new nn.TMSA(o)),
    given: { dim: 16, timeDim: 8, numHeads: 2, windowSize: 4 },
    misspelt: ['numHead', 'numHeads'],
    wrong: { dim: [0, 1.5, NaN, '16'], windowSize: [-1] },
  },
  TransformerBlock: {
    call: options((o) => new nn.TransformerBlock(o)),
    given: { dim: 16, timeDim: 8, numHeads: 2, windowSize: 4 },
    misspelt: ['mlpratio', 'mlpRatio'],
    wrong: { dim: [0, NaN], mlpRatio: [-1, '4'] },
  },
  TimeEmbed: {
    call: options((o) => new nn.TimeEmbed(o)),
    given: { channels: 8, timeDim: 8, kind: 'positional' },
    misspelt: ['stdd', 'std'],
    wrong: { kind: ['sin'], channels: [0, NaN] },
  },
  LabelEmbed: {
    call: options((o) => new nn.LabelEmbed(o)),
    given: { numClasses: 3, dim: 8 },
    misspelt: ['dropouts', 'dropout'],
    wrong: { dropout: [1.5, NaN, 'x'], numClasses: [-1] },
  },
  ImageDiffiT: {
    call: options((o) => new models.ImageDiffiT(o)),
    given: { ...tinyConfig },
    misspelt: ['baseChannel', 'baseChannels'],
    wrong: { dropout: [2, NaN], channelMult: [[], 'x', [0]], imgResolution: [0, '8'] },
  },
  LatentDiffiT: {
    call: options((o) => new models.LatentDiffiT(o)),
    given: latent,
    misspelt: ['hiddensize', 'hiddenSize'],
    wrong: { depth: [0, 1.5, NaN], learnSigma: ['yes'] },
  },
  AutoencoderKL: {
    call: options((o) => new models.AutoencoderKL(o)),
    misspelt: ['latentChannel', 'latentChannels'],
    wrong: { latentChannels: [0, NaN, '4'] },
  },
  'LatentDiffiT.forwardWithCfg': {
    call: options((o) => model.forwardWithCfg(noise, tensor([1]), tensor(new BigInt64Array(1)), o)),
    given: { cfgScale: 2 },
    misspelt: ['cfgscale', 'cfgScale'],
    wrong: { cfgScale: ['2', NaN], scalePow: [NaN] },
  },
  GaussianDiffusion: {
    call: options((o) => new diffusion.GaussianDiffusion(o)),
    misspelt: ['schedul', 'schedule'],
    wrong: { steps: [0, 1.5, NaN, '1000'], schedule: ['line'] },
  },
  'GaussianDiffusion.trainingLosses': {
    call: options((o) => ddpm.trainingLosses(network, noise, [1], o)),
    given: { noise },
    misspelt: ['noises', 'noise'],
    wrong: { noise: [1, 'x'] },
  },
  UniformTimesteps: {
    call: options((o) => new diffusion.UniformTimesteps(o)),
    given: { numTimesteps: 4, seed: 0 },
    misspelt: ['seeds', 'seed'],
    wrong: { numTimesteps: [0, NaN], seed: [-1, 0.5] },
  },
  LossSecondMomentTimesteps: {
    call: options((o) => new diffusion.LossSecondMomentTimesteps(o)),
    given: { numTimesteps: 4, seed: 0 },
    misspelt: ['historyPerTerms', 'historyPerTerm'],
    wrong: { historyPerTerm: [0, NaN], uniformProb: [-1, 2] },
  },
  sampleEdm: {
    call: options((o) => first(diffusion.sampleEdm(network, noise, o))),
    misspelt: ['step', 'steps'],
    wrong: { steps: [0, 2.5, NaN, '18'], churn: [-1, NaN], sigmaMin: [0, -1], signal: [{}] },
  },
  sampleDdpm: {
    call: options((o) => first(diffusion.sampleDdpm(network, noise, o))),
    given: { ddpm },
    misspelt: ['cfgscale', 'cfgScale'],
    wrong: { ddpm: [{}, null], cfgScale: [NaN, '1'], seed: [-1] },
  },
  sampleDdim: {
    call: options((o) => first(diffusion.sampleDdim(network, noise, o))),
    given: { ddpm },
    misspelt: ['etas', 'eta'],
    wrong: { eta: [-0.1, 1.1, NaN, '0'] },
  },
  sampleDpmSolver: {
    call: options((o) => first(diffusion.sampleDpmSolver(network, noise, o))),
    given: { ddpm },
    misspelt: ['seeds', 'seed'],
    wrong: { seed: [-1, NaN, '0'], clipDenoised: ['yes'] },
  },
  edmLoss: {
    call: options((o) => diffusion.edmLoss(network, noise, o)),
    given: { rndNormal: zeros([1]), noise },
    misspelt: ['pmean', 'pMean'],
    wrong: { rndNormal: [1], sigmaData: [0, -1, NaN] },
  },
  openMnist: {
    call: options((o) => data.openMnist(o)),
    misspelt: ['splits', 'split'],
    wrong: { size: [30, NaN, '28'], split: ['val'] },
  },
  openCifar10: {
    call: options((o) => data.openCifar10(o)),
    given: { dir: 'x' },
    misspelt: ['splits', 'split'],
    wrong: { dir: [5], split: ['val'] },
  },
  openDataset: {
    call: options((o) => data.openDataset('none', o)),
    misspelt: ['sizes', 'size'],
    wrong: { size: [0, 1.5, NaN, '8'] },
  },
  DataLoader: {
    call: options((o) => new data.DataLoader(dataset, o)),
    given: { batchSize: 2 },
    misspelt: ['batchsize', 'batchSize'],
    wrong: { batchSize: [0, 1.5, NaN, '2'], seed: [-1] },
  },
  loadSafetensors: {
    call: options((o) => io.loadSafetensors('none', o)),
    misspelt: ['dtypes', 'dtype'],
    wrong: { dtype: ['f64'], signal: [1], onProgress: [1] },
  },
  saveSafetensors: {
    call: options((o) => io.saveSafetensors('/nowhere/x', {}, {}, o)),
    misspelt: ['checksum', 'checksums'],
    wrong: { checksums: [1], dtype: ['f64'] },
  },
  loadImage: {
    call: options((o) => io.loadImage('none', o)),
    misspelt: ['channel', 'channels'],
    wrong: { channels: [2, NaN, '3'] },
  },
  imageGrid: {
    call: options((o) => io.imageGrid(pixels, [1, 8, 8, 1], o)),
    misspelt: ['column', 'columns'],
    wrong: { columns: [0, 1.5, NaN, '1'], padding: [-1] },
  },
  writeNpz: {
    call: options((o) => io.writeNpz('/nowhere/x', {}, o)),
    misspelt: ['compres', 'compress'],
    wrong: { compress: ['yes'] },
  },
  generate: {
    call: options((o) => first(train.generate(model, o))),
    given: { count: 1 },
    misspelt: ['batchs', 'batch'],
    wrong: { count: [-1, 1.5, NaN, '1'], batch: [0, NaN], seed: [-1], vae: [{}], signal: [1], labels: ['3'] },
  },
  denoise: {
    call: options((o) => diffusion.denoise(network, noise, tensor([1]), o)),
    misspelt: ['sigmadata', 'sigmaData'],
    wrong: { sigmaData: [0, -1, NaN, '1'], labels: [[1]] },
  },
  'GaussianDiffusion.predictXStart': {
    call: options((o) => ddpm.predictXStart(noise, noise, [1], o)),
    misspelt: ['clipdenoised', 'clipDenoised'],
    wrong: { clipDenoised: ['yes', NaN] },
  },
  openImageFolder: {
    call: options((o) => data.openImageFolder('none', o)),
    misspelt: ['onCorupt', 'onCorrupt'],
    wrong: { size: [0, NaN, '8'], channels: [2], onCorrupt: ['ignore'] },
  },
  openImageZip: {
    call: options((o) => data.openImageZip('none', o)),
    misspelt: ['sizes', 'size'],
    wrong: { size: [0, NaN, '8'], channels: [2], onCorrupt: ['ignore'] },
  },
  toTensor: {
    call: options((o) => io.toTensor(array, o)),
    misspelt: ['devise', 'device'],
    wrong: { device: [1, '', NaN] },
  },
  hubFile: {
    call: options((o) => io.hubFile('hf://a/b/c', o)),
    misspelt: ['cachedir', 'cacheDir'],
    wrong: { cacheDir: [1, '', NaN], token: [5], onProgress: ['x'], signal: [1] },
  },
  writeImageNpz: {
    call: options((o) => io.writeImageNpz('/nowhere/x', pixels, [1, 8, 8, 1], o)),
    misspelt: ['label', 'labels'],
    wrong: { compress: ['yes', NaN], labels: [5] },
  },
  guidanceScale: {
    call: options((o) => nn.guidanceScale(tensor([1]), o as never)),
    given: { cfgScale: 2 },
    misspelt: ['scalepow', 'scalePow'],
    wrong: { cfgScale: [NaN, '2'], scalePow: [0, NaN], diffusionSteps: [0, 1.5] },
  },
  TokenSubset: {
    call: options((o) => new nn.TokenSubset([[0]], 2, o)),
    misspelt: ['devise', 'device'],
    wrong: { device: [1, NaN] },
  },
  'TokenSubset.random': {
    call: options((o) => nn.TokenSubset.random(1, 2, 0.5, o)),
    misspelt: ['sead', 'seed'],
    wrong: { seed: [-1, 0.5, NaN, '1'], firstSample: [-1] },
  },
  'Adam.step': {
    call: options((o) => new optim.Adam([weight]).step(o)),
    misspelt: ['scales', 'scale'],
    wrong: { scale: [1, NaN], ema: [{}, 1] },
  },
  'LatentDiffiT.forwardMasked': {
    call: options((o) => model.forwardMasked(noise, tensor([1]), tensor(new BigInt64Array(1)), o)),
    misspelt: ['sead', 'seed'],
    wrong: { seed: [-1, NaN, '1'] },
  },
  Trainer: {
    call: options((o) => new train.Trainer(o)),
    given: {
      model,
      average: model,
      optimizer: new optim.Adam(model.namedParameters()),
      objective: () => noise,
      loader: new data.DataLoader(dataset, { batchSize: 1 }),
    },
    misspelt: ['gradclip', 'gradClip'],
    wrong: {
      model: [{}],
      optimizer: [1],
      objective: ['edm'],
      loader: [[]],
      seed: [-1, NaN],
      microBatch: [0, 1.5, '1'],
      gradClip: [0, NaN],
      precision: ['f16'],
      nonFinite: ['ignore'],
    },
  },
  loadWeights: {
    call: options((o) => train.loadWeights(model, 'none', o)),
    misspelt: ['stric', 'strict'],
    wrong: { strict: ['yes', NaN], rename: [{}], device: [1], onProgress: [1], signal: [1] },
  },
  loadModel: {
    call: options((o) => train.loadModel('none', o)),
    misspelt: ['weight', 'weights'],
    wrong: { weights: ['f64', NaN], onProgress: [1], signal: [1] },
  },
  saveModel: {
    call: options((o) => train.saveModel('/nowhere/x.safetensors', model, o)),
    misspelt: ['dtyp', 'dtype'],
    wrong: { dtype: ['f64', NaN], description: [{}, 'a model'] },
  },
  describeModel: {
    call: options((o) => train.describeModel(model, o)),
    misspelt: ['presets', 'preset'],
    wrong: { preset: [1, NaN], classNames: ['cat', [1]], sampler: ['edm'] },
  },
  ablate: {
    call: options((o) => train.ablate({ study: 'none', recipe: {}, out: '/nowhere', steps: 1, ...(o as object) })),
    misspelt: ['variant', 'variants'],
    wrong: {
      study: [1],
      recipe: ['cifar10'],
      out: [1],
      steps: [0, 1.5],
      seed: [-1],
      variants: [[], [1]],
      checkpointEvery: [0],
      evaluate: [1],
      signal: [1],
      onStep: [1],
    },
  },
  estimateCost: {
    call: options((o) => train.estimateCost(train.planTraining({ preset: 'mnist' }), o)),
    misspelt: ['sample', 'samples'],
    wrong: { images: [0], samples: [-1], processor: [1, {}], count: [0], utilization: [0, 2] },
  },
  lossCurveSvg: {
    call: options((o) => train.lossCurveSvg([], o)),
    misspelt: ['titel', 'title'],
    wrong: { title: [1], smoothing: [-1, NaN, '1'] },
  },
  edmObjective: {
    call: options((o) => train.edmObjective(o)),
    misspelt: ['pmean', 'pMean'],
    wrong: { pMean: [NaN, '1'], pStd: [0, NaN], sigmaData: [-1] },
  },
  encodeLatents: {
    call: options((o) => train.encodeLatents(o)),
    given: { dataset, vae, out: '/nowhere/x' },
    misspelt: ['shardsize', 'shardSize'],
    wrong: {
      dataset: [1],
      vae: [{}],
      out: [1, ''],
      batch: [0, NaN],
      shardSize: [1.5],
      dtype: ['u8'],
      flip: [1],
      signal: [1],
    },
  },
  loadAutoencoder: {
    call: options((o) => train.loadAutoencoder('none', o)),
    misspelt: ['onprogress', 'onProgress'],
    wrong: { onProgress: [1], signal: [NaN] },
  },
  saveAutoencoder: {
    call: options((o) => train.saveAutoencoder('/nowhere/x', vae, o)),
    misspelt: ['dtyp', 'dtype'],
    wrong: { dtype: ['f64', NaN] },
  },
  writeReport: {
    call: options((o) => train.writeReport('none', o)),
    misspelt: ['outs', 'out'],
    wrong: { out: [1, '', NaN] },
  },
  planTraining: {
    call: options((o) => train.planTraining({ preset: 'mnist' }, o)),
    misspelt: ['devise', 'device'],
    wrong: { device: [1, '', NaN] },
  },
  'TrainingRun.open': {
    call: options((o) => train.TrainingRun.open(o)),
    given: { plan: train.planTraining({ preset: 'mnist' }), out: '/nowhere/x' },
    misspelt: ['resumes', 'resume'],
    wrong: {
      plan: [{}, 'mnist'],
      out: [1, ''],
      seed: [-1, NaN],
      resume: ['yes'],
      checkpointEvery: [-1, 1.5],
      keepCheckpoints: [0, NaN],
      sampleEvery: ['1'],
      vae: [{}],
      lr: [1e-3],
      report: [1],
      nonFinite: ['ignore'],
      onNote: [1],
    },
  },
};

const attempt = async (call: Case['call'], given: Record<string, unknown>): Promise<unknown> => {
  try {
    await call(given);
    return undefined;
  } catch (error) {
    return error;
  }
};

t.test('everything that takes options', async (t) => {
  for (const [name, { call, given = {}, misspelt, wrong }] of Object.entries(cases)) {
    await t.test(name, async (t) => {
      const [spelt, meant] = misspelt;
      const unknown = (await attempt(call, { ...given, [spelt]: 1 })) as Error;
      t.type(unknown, OptionError, spelt);
      t.match(unknown?.message, `${name}: unknown option "${spelt}" (did you mean "${meant}"?)`);
      const strange = (await attempt(call, { ...given, zzz: 1 })) as Error;
      t.match(strange?.message, /unknown option "zzz", expected one of: /);
      for (const [option, values] of Object.entries(wrong)) {
        for (const value of values) {
          const error = (await attempt(call, { ...given, [option]: value })) as Error;
          t.type(error, OptionError, `${option}: ${String(value)}`);
          t.match(
            error?.message,
            new RegExp(`^${name.replace('.', '\\.')}: .*\\b${option}.* (is|expected) `),
            `${option}: ${String(value)}`,
          );
          t.notMatch(error?.message, /\n/);
        }
      }
    });
  }
});

t.test('a recipe and a plan', async (t) => {
  for (const [recipe, message] of [
    [{ preset: 'mnist', trainin: {} }, /Recipe: unknown option "trainin" \(did you mean "training"\?\)/],
    [{ preset: 'mnist', training: { lr: 'fast' } }, /Recipe, training: lr is "fast", expected/],
    [{ preset: 'mnist', sampler: { steps: Number.NaN } }, /steps is NaN, expected/],
    [{ preset: 'mnist', training: { batch: 0 } }, /Recipe, training: batch is 0, expected/],
  ] as const) {
    t.throws(() => train.planTraining(recipe as never), { name: 'OptionError', message });
  }
  const plan = train.planTraining({ preset: 'mnist' });
  const out = temporaryFolder(t);
  await t.rejects(train.TrainingRun.open({ plan, out, keepCheckpoints: 0 }), {
    name: 'OptionError',
    message: /keepCheckpoints is 0/,
  });
});
