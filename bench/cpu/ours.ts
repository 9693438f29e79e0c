/** Our side of the CPU benchmark (station.ts says what it is asked): the package's own code, as a user calls it. */
import { efforts } from '../../lib/bench/measure.js';
import { emptyNetwork } from '../../lib/bench/networks.js';
import { operations, type Prepared } from '../../lib/bench/operations.js';
import type { Spec } from '../../lib/bench/report.js';
import { measureCeilings, peakFlops } from '../../lib/bench/run.js';
import {
  autocast,
  devices,
  diffusion,
  io,
  keep,
  manualSeed,
  models,
  noGrad,
  optim,
  randn,
  scope,
  synchronize,
  type Tensor,
  tensor,
  trimMemory,
  zeros,
} from '../../lib/index.js';
import { resetPeak, residentPeak } from './resident.js';
import { inTurn, serve, stopwatch } from './station.js';
import type { Work } from './work.js';

const device = 'cpu';
type Tensors = Record<string, Tensor>;
type Network = models.LatentTransformer | InstanceType<typeof models.modelKinds.ImageDiffiT>;

interface Task {
  /** So many iterations, done when it resolves. */
  run(times: number): Promise<void>;
  outputs(): Promise<Tensors>;
  dispose(): void;
}

let task: Task | undefined;

/** Weights as training starts with, but no zeros: every output then depends on everything. And inputs. */
async function save({ work, weights, inputs }: { work: Work; weights?: string; inputs: string }): Promise<void> {
  await scope(async () => {
    if (work.group === 'gemm' || work.group === 'attention') {
      const { tensors } = operations[work.group](specOf(work), { device, dtype: 'f32', seed: 1 });
      if (tensors.time) tensors.time.copyFrom(zeros(tensors.time.shape)); // the peers have none
      const { lse, ...given } = tensors;
      return io.saveSafetensors(inputs, given);
    }
    const { batch, kind } = work.sizes;
    if (weights) {
      manualSeed(7);
      const make = models.modelKinds[kind as models.ModelKind] as new (config: object) => Network;
      const network = new make(work.config as object);
      const state: Tensors = network.stateDict();
      let stream = 0;
      for (const [name, x] of Object.entries(state)) {
        const isZero = (await x.square().sum().item()) === 0;
        if (isZero) state[name] = randn(x.shape, { seed: 7, stream: stream++ }).mul(0.02);
      }
      await io.saveSafetensors(weights, state);
      network.dispose();
    }
    const { inChannels, numClasses = 0, ...rest } = { inChannels: 4, ...work.config } as Record<string, number>;
    const side = rest.imgResolution ?? rest.inputSize;
    const shape = [Number(batch), inChannels, side, side];
    const normal = (of: number[], stream: number): Tensor => randn(of, { seed: 11, stream });
    const image = kind === 'ImageDiffiT';
    const outputs = [shape[0], image ? inChannels : 2 * inChannels, side, side];
    const made: Tensors = {
      x: normal(shape, 0),
      target: normal(outputs, 1),
      noise: normal(shape, 2),
      level: normal([shape[0]], 3),
    };
    const steps = Array.from({ length: shape[0] }, (_, i) => (image ? -0.5 + i / 16 : 500 - 7 * i));
    made.t = tensor(new Float32Array(steps));
    if (!image) {
      const classes = numClasses || 1000;
      made.y = tensor(BigInt64Array.from({ length: shape[0] }, (_, i) => BigInt((207 + 31 * i) % classes)));
    }
    await io.saveSafetensors(inputs, made);
  });
}

const specOf = ({ id, sizes, group }: Work): Spec => ({ id, sizes, group: group as 'gemm', items: 1, unit: 'tokens' });

/** A single operation on the saved inputs. */
function operation(work: Work, inputs: Tensors): Task {
  const made: Prepared = keepAll(() =>
    operations[work.group as 'gemm'](specOf(work), { device, dtype: 'f32', seed: 1 }),
  );
  const { tensors } = made;
  for (const [name, x] of Object.entries(inputs)) tensors[name].copyFrom(x);
  made.refresh?.();
  const results = { forward: ['y'], backward: ['dqkv', 'dtable'] }[String(work.sizes.pass ?? 'forward')] as string[];
  // Enqueued one behind the other, as a model does.
  const run = (times: number): Promise<void> => {
    for (let i = 0; i < times; i++) made.run();
    return synchronize(device);
  };
  return {
    run,
    outputs: async () => {
      await run(1);
      return Object.fromEntries(results.map((name) => [name, tensors[name]]));
    },
    dispose: () => {
      for (const x of Object.values(tensors)) x.dispose();
    },
  };
}

function keepAll(make: () => Prepared): Prepared {
  return scope(() => {
    const made = make();
    for (const x of Object.values(made.tensors)) keep(x);
    return made;
  });
}

function forward(work: Work, network: Network, { x, t, y }: Tensors): Task {
  network.eval();
  const compute = (): Tensor => noGrad(() => autocast(work.dtype, () => network.forward(x, t, y)));
  return {
    run: inTurn(() => {
      scope(() => void compute());
      return synchronize(device);
    }),
    outputs: async () => ({ y: compute() }),
    dispose: () => network.dispose(),
  };
}

/** A step of AdamW; its outputs are the losses of the first three. */
function train(network: Network, { x, t, y, target, noise, level }: Tensors): Task {
  network.train();
  const adam = new optim.AdamW(network.namedParameters(), { lr: 1e-4, weightDecay: 0.01 });
  const lossOf = (): Tensor =>
    network instanceof models.ImageDiffiT
      ? diffusion.edmLoss(network, x, { rndNormal: level, noise }).loss
      : network.forward(x, t, y).sub(target).square().mean();
  const step = (): Promise<void> =>
    scope(() => {
      const loss = lossOf();
      loss.backward();
      adam.step();
      adam.zeroGrad();
      losses.push(keep(loss.detach()));
      while (losses.length > 3) losses.pop()?.dispose();
      return synchronize(device);
    });
  const losses: Tensor[] = [];
  return {
    run: inTurn(step),
    outputs: async () => {
      while (losses.length < 3) await step();
      const values = await Promise.all(losses.map((loss) => loss.item()));
      return { losses: tensor(new Float32Array(values)) };
    },
    dispose: () => {
      for (const loss of losses) loss.dispose();
      adam.dispose();
      network.dispose();
    },
  };
}

interface Preparation {
  work: Work;
  weights?: string;
  inputs: string;
  output: string;
}

async function begin({ work, weights, inputs }: Preparation): Promise<Task> {
  const { tensors } = await io.loadSafetensors(inputs);
  if (work.group === 'gemm' || work.group === 'attention') return operation(work, tensors);
  const network = emptyNetwork(
    String(work.sizes.kind),
    work.config as object,
    work.group === 'train' ? 'f32' : work.dtype,
  );
  await scope(async () => network.loadStateDict((await io.loadSafetensors(weights as string)).tensors));
  const made = work.group === 'train' ? train(network, tensors) : forward(work, network, tensors);
  const dispose = (): void => {
    made.dispose();
    for (const x of Object.values(tensors)) x.dispose();
  };
  return { ...made, dispose };
}

const writeOutputs = (path: string, of: Task): Promise<void> =>
  scope(async () => io.saveSafetensors(path, await of.outputs(), {}, { dtype: 'f32' }));

async function prepare(asked: Preparation): Promise<void> {
  task = await begin(asked);
  await writeOutputs(asked.output, task);
  trimMemory(device);
  await synchronize(device);
  resetPeak();
}

/** The same in f32, for what is compared with it. */
async function reference(asked: Preparation): Promise<void> {
  const exact = await begin({ ...asked, work: { ...asked.work, dtype: 'f32' } });
  await writeOutputs(asked.output, exact);
  exact.dispose();
  trimMemory(device);
}

const about = devices()[0];
const handlers = {
  save,
  prepare,
  reference,
  time: (asked: { iterations: number; repeats: number }) => stopwatch((task as Task).run, asked),
  rss: () => ({ bytes: residentPeak() }),
  release: () => {
    task?.dispose();
    task = undefined;
    trimMemory(device);
    return synchronize(device);
  },
  async ceilings({ quick }: { quick: boolean }) {
    // After every work, so a few copies have to do.
    const { copy, arithmetic } = await measureCeilings({ device, dtype: 'f32', effort: efforts.quick }, quick);
    const [fmaOneThread, bf16Dot] = [await peakFlops(device, 'fma', 'one'), await peakFlops(device, 'bf16Dot')];
    return { copy, fma: arithmetic, fmaOneThread, bf16Dot, processor: about.model, variant: about.variant };
  },
};
await serve({ node: process.versions.node }, handlers as never);
