/** Whole blocks, models, steps of sampling and of training, through the same calls as a user's. Weights are random. */
import { type DeviceName, synchronize } from '../device.js';
import {
  GaussianDiffusion,
  type GaussianNetwork,
  type SamplerStep,
  sampleDdpm,
  sampleEdm,
} from '../diffusion/index.js';
import { ImageDiffiT, LatentDiffiT } from '../models/index.js';
import { TransformerBlock } from '../nn/block.js';
import { forLoading } from '../nn/init.js';
import { randn } from '../ops/random.js';
import { AdamW, Ema } from '../optim/index.js';
import { autocast, keep, noGrad, scope } from '../scope.js';
import { full, type Tensor, tensor } from '../tensor.js';
import { edmObjective, gaussianObjective } from '../train/objective.js';
import { type Effort, quantiles } from './measure.js';
import type { Preparation, Prepared } from './operations.js';
import type { Precision, Spec, Timing } from './report.js';

/** Guidance of NVIDIA's released model. */
const guidance = { cfgScale: 4.4, scalePow: 4 };
/** Steps of the schedules that the timed steps are the first of. */
const scheduleSteps = 250;

interface Network {
  model: LatentDiffiT | ImageDiffiT;
  /** Shape of its input. */
  shape: number[];
  numClasses: number;
}

/** A network without random numbers, to be loaded; in bf16 the matrices of a latent one take half the memory, for inference. */
export function emptyNetwork(kind: string, config: object, weights: 'f32' | 'bf16'): Network['model'] {
  if (kind === 'ImageDiffiT') return forLoading(() => new ImageDiffiT(config as never));
  return forLoading(() => new LatentDiffiT(config as never), { weights });
}

/** The network of a spec, on the default device. */
function networkOf({ sizes, config }: Spec): Network {
  const { batch, kind } = sizes;
  const model = kind === 'ImageDiffiT' ? new ImageDiffiT(config as never) : new LatentDiffiT(config as never);
  const { inChannels, numClasses, ...rest } = model.config;
  const side = 'imgResolution' in rest ? rest.imgResolution : rest.inputSize;
  return { model, shape: [Number(batch), inChannels, side, side], numClasses };
}

/** The same for inference: half-size weights where the precision is bf16. */
function frozen(spec: Spec, dtype: Precision): Network {
  const made = networkOf(spec);
  if (dtype !== 'bf16' || made.model instanceof ImageDiffiT) return made;
  const model = emptyNetwork('LatentDiffiT', spec.config as object, 'bf16');
  scope(() => model.loadStateDict(made.model.stateDict()));
  made.model.dispose();
  return { ...made, model };
}

const labelsOf = (batch: number, numClasses: number): Tensor | undefined =>
  numClasses > 0 ? tensor(BigInt64Array.from({ length: batch }, (_, i) => BigInt(i % numClasses))) : undefined;

const f32 = (x: Tensor): Tensor => (x.dtype === 'f32' ? x : x.to('f32'));

const block: Preparation = ({ sizes }, { device, dtype, seed }) => {
  const [side, dim, numHeads, batch] = ['side', 'dim', 'heads', 'batch'].map((name) => Number(sizes[name]));
  const network = new TransformerBlock({ dim, timeDim: dim, numHeads, windowSize: side });
  const train = sizes.pass === 'train';
  const made = (shape: number[], stream: number): Tensor => {
    const x = randn(shape, { device, seed, stream });
    x.requiresGrad = train;
    return x;
  };
  const [x, time] = [made([batch, side * side, dim], 0), made([batch, dim], 1)];
  const dy = randn(x.shape, { device, seed, stream: 2 });
  const forward = (): Tensor => autocast(dtype, () => network.forward(x, time));
  const step = (): void => {
    const y = forward();
    y.backward(y.dtype === 'f32' ? dy : dy.to(y.dtype));
    for (const leaf of [x, time, ...network.parameters()]) {
      leaf.grad?.dispose();
      leaf.grad = undefined;
    }
  };
  const run = (): void => void scope(() => (train ? step() : void noGrad(forward)));
  return { tensors: { x, time }, run, dispose: () => network.dispose() };
};

const model: Preparation = (spec, { device, dtype, seed }) => {
  const { model: network, shape, numClasses } = frozen(spec, dtype);
  network.eval();
  const x = randn(shape, { device, seed });
  const t = full([shape[0]], 0.5, { device });
  const y = labelsOf(shape[0], numClasses);
  const forward = (): Tensor => autocast(dtype, () => network.forward(x, t, y));
  const run = (): void => void scope(() => void noGrad(forward));
  return { tensors: { x, t }, run, dispose: () => network.dispose() };
};

const train: Preparation = (spec, { device, dtype, seed }) => {
  const { model: network, shape, numClasses } = networkOf(spec);
  network.train();
  const images = randn(shape, { device, seed });
  const labels = labelsOf(shape[0], numClasses);
  const adam = new AdamW(network.namedParameters(), { lr: 1e-4, weightDecay: 0 });
  const ema = new Ema(network.namedParameters());
  const objectives = { edm: edmObjective(), gaussian: gaussianObjective(new GaussianDiffusion()) };
  let step = 0;
  const loss = (): Tensor => {
    const key = { seed, stream: 16 * ++step, firstSample: 0 };
    if (network instanceof ImageDiffiT) return objectives.edm(network, { images, labels }, key);
    return objectives.gaussian(network, { images, labels }, key);
  };
  const run = (): void =>
    scope(() => {
      autocast(dtype, () => loss().backward());
      adam.step();
      adam.zeroGrad();
      ema.update(0.999);
    });
  const dispose = (): void => {
    for (const owner of [ema, adam, network]) owner.dispose();
  };
  return { tensors: { images }, run, dispose };
};

export const networks = { block, model, train } satisfies Record<
  string,
  (...args: Parameters<Preparation>) => Prepared
>;

/** The network in a precision, with an f32 output as the sampler's arithmetic wants it. */
function inPrecision(network: LatentDiffiT, dtype: Precision): GaussianNetwork {
  return {
    nullClass: network.nullClass,
    forward: (x, t, y) => f32(autocast(dtype, () => network.forward(x, t, y))),
    conditionOn(timesteps, y) {
      const stepped = keep(autocast(dtype, () => network.conditionOn(timesteps, y))); // freed by dispose() below
      return {
        forward: (x, i) => f32(autocast(dtype, () => stepped.forward(x, i))),
        dispose: () => stepped.dispose(),
      };
    },
  };
}

/** The steps of a sampler; with "arithmetic" in the pass around a network that always returns the same. */
function steps(spec: Spec, made: Network, device: DeviceName, dtype: Precision): AsyncIterable<SamplerStep> {
  const { model: network, shape, numClasses } = made;
  network.eval();
  const free = String(spec.sizes.pass).includes('arithmetic');
  const noise = randn(shape, { device, seed: 0 });
  const y = labelsOf(shape[0], numClasses);
  if (network instanceof ImageDiffiT) {
    const still = randn(shape, { device, seed: 1 });
    const forward = (x: Tensor, c: Tensor, labels?: Tensor): Tensor =>
      free ? still.detach() : f32(autocast(dtype, () => network.forward(x, c, labels)));
    return sampleEdm({ forward }, noise, { steps: scheduleSteps, labels: y });
  }
  const ddpm = new GaussianDiffusion({ respacing: String(scheduleSteps) });
  const [batch, channels, side] = shape;
  const still = randn([2 * batch, 2 * channels, side, side], { device, seed: 1 });
  const stand: GaussianNetwork = { nullClass: network.nullClass, forward: () => still.detach() };
  return sampleDdpm(free ? stand : inPrecision(network, dtype), noise, { ddpm, y, seed: 0, ...guidance });
}

/** Times steps as their caller sees them: from one to the next, the wait for the device included. */
export async function timeSteps(spec: Spec, device: DeviceName, dtype: Precision, effort: Effort): Promise<Timing> {
  const made = frozen(spec, dtype);
  const ran = scope(async () => {
    const times: number[] = [];
    const first = effort.warmUps;
    let [start, before, step] = [0, 0, 0];
    for await (const _ of steps(spec, made, device, dtype)) {
      const now = performance.now();
      if (step === first) start = now;
      else if (step > first) times.push(now - before);
      before = now;
      step++;
      const spent = now - start > effort.budget && times.length >= effort.least;
      if (step > first && (times.length >= effort.samples || spent)) break;
    }
    await synchronize(device);
    return { ...quantiles(times), samples: times.length, repeats: 1, clock: 'host' as const };
  });
  return ran.finally(() => made.model.dispose());
}
