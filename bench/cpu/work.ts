/** What the CPU benchmark times: the works, who does each, and the targets of issue 5. */
import type { Spec } from '../../lib/bench/report.js';
import { network } from '../../lib/bench/specs.js';
import { models } from '../../lib/index.js';
import { ours, type Target } from './report.js';

/** A process that works: ours, or a peer's. One does several ways of a work. */
export type Station = 'diffit' | 'torch' | 'torch-mkl' | 'openblas' | 'onnxruntime' | 'tfjs';

/** An implementation by the name the tables show. */
export const implementations: Readonly<Record<string, { station: Station; way: string }>> = {
  [ours]: { station: 'diffit', way: '' },
  torch: { station: 'torch', way: 'torch' },
  'torch eager': { station: 'torch', way: 'eager' },
  'torch SDPA': { station: 'torch', way: 'sdpa' },
  'torch.compile': { station: 'torch', way: 'compile' },
  'torch.compile, frozen': { station: 'torch', way: 'compile-frozen' },
  'torch.compile, autocast': { station: 'torch', way: 'compile-autocast' },
  'torch.compile, bf16 weights': { station: 'torch', way: 'compile-half' },
  'torch, MKL AVX-512': { station: 'torch-mkl', way: 'torch' },
  'torch.compile, MKL AVX-512': { station: 'torch-mkl', way: 'compile' },
  OpenBLAS: { station: 'openblas', way: 'numpy' },
  onnxruntime: { station: 'onnxruntime', way: 'onnx' },
  tfjs: { station: 'tfjs', way: 'wasm' },
};

export interface Work {
  id: string;
  group: 'gemm' | 'attention' | 'forward' | 'train' | 'startup';
  dtype: 'f32' | 'bf16';
  sizes: Spec['sizes'];
  /** Of a network: its constructor's options, and the name its weights go by. */
  config?: Record<string, unknown>;
  flops?: number;
  bytes?: number;
  /** Names of `implementations`, ours first. */
  by: string[];
  targets: Target[];
}

const ratio = (bound: number, ...peers: string[]): Target => ({ kind: 'ratio', bound, peers });

/** y [m, n] = x W^T, plain and with the two epilogues of a block. */
function gemms(rows: number[], layers: [n: number, k: number][]): Work[] {
  const plain = layers.flatMap(([n, k]) => rows.map((m) => gemm(m, n, k, 'none')));
  const widest = layers.filter(([n, k]) => n === 4 * k || k === 4 * n);
  const fused = widest.flatMap(([n, k]) => rows.map((m) => gemm(m, n, k, n > k ? 'bias+gelu' : 'bias+residual')));
  return [...plain, ...fused];
}

function gemm(m: number, n: number, k: number, epilogue: string): Work {
  const plain = epilogue === 'none';
  const targets: Target[] = [{ kind: 'peak', bound: 0.85 }];
  if (plain) targets.push(ratio(2, 'torch'), ratio(0.95, 'OpenBLAS'));
  return {
    id: `sgemm/m${m}n${n}k${k}${plain ? '' : `/${epilogue}`}`,
    group: 'gemm',
    dtype: 'f32',
    sizes: { m, n, k, layout: 'nt', epilogue },
    flops: 2 * m * n * k,
    bytes: 4 * (m * k + n * k + m * n * (epilogue === 'bias+residual' ? 2 : 1)),
    by: [ours, 'torch', 'torch, MKL AVX-512', ...(plain ? ['OpenBLAS'] : [])],
    targets,
  };
}

function attentions(side: number, window: number, batch: number, heads = 16, dim = 72): Work[] {
  return (['forward', 'backward'] as const).map((pass): Work => {
    const [tokens, channels, back] = [batch * side * side, heads * dim, pass === 'backward'];
    const table = 4 * (2 * window - 1) ** 2 * heads;
    return {
      id: `attention/${window === side ? `N=${side * side}` : `windows of ${window * window}`}/b${batch}/${pass}`,
      group: 'attention',
      dtype: 'f32',
      sizes: { side, window, batch, heads, dim, pass },
      flops: (back ? 10 : 4) * tokens * window * window * channels,
      bytes: 4 * tokens * channels * (back ? 8 : 4) + (back ? 4 * tokens * heads + 2 * table : table),
      by: [ours, 'torch eager', 'torch SDPA'],
      targets: [ratio(back ? 5 : 3, 'torch SDPA')],
    };
  });
}

/** Without what is random in training, so that outputs can be compared: dropout of MLPs and of labels. */
function configOf(name: string): { kind: models.ModelKind; config: Record<string, unknown> } {
  const { kind, config } = network(name);
  return { kind, config: { ...config, ...(kind === 'ImageDiffiT' ? { dropout: 0 } : { classDropoutProb: 0 }) } };
}

function model(
  group: 'forward' | 'train',
  name: string,
  batch: number,
  dtype: Work['dtype'],
  by: string[],
  targets: Target[],
): Work {
  const { kind, config } = configOf(name);
  return {
    id: `${group}/${name}/b${batch}/${dtype}`,
    group,
    dtype,
    sizes: { network: name, kind, batch },
    config,
    flops: (group === 'train' ? 3 : 1) * batch * models.forwardFlops(kind, config),
    by: [ours, ...by],
    targets,
  };
}

const compiled = 'torch.compile';
const forced = 'torch.compile, MKL AVX-512';
const eager = ['torch eager', 'torch SDPA'];
const halves = ['torch.compile, autocast', 'torch.compile, bf16 weights'];

/** onnxruntime's target by batch; without one it is timed all the same. */
function forward(name: string, batch: number, bound: number, more: string[] = [], targets: Target[] = []): Work {
  const by = [...eager, compiled, 'torch.compile, frozen', forced, ...more];
  return model('forward', name, batch, 'f32', by, [ratio(bound, compiled), ratio(1.25, forced), ...targets]);
}
const forwardHalf = (name: string, batch: number, bound: number): Work =>
  model('forward', name, batch, 'bf16', ['torch SDPA', ...halves], [ratio(bound, ...halves)]);

function train(name: string, batch: number, bound: number, memory?: number): Work {
  const targets = [ratio(bound, compiled), ratio(1.4, forced)];
  if (memory) targets.push({ kind: 'memory', bound: memory, peers: [compiled] });
  return model('train', name, batch, 'f32', ['torch eager', compiled, forced], targets);
}

const startup: Work = {
  id: 'startup/import',
  group: 'startup',
  dtype: 'f32',
  sizes: {},
  by: [ours, 'torch', 'onnxruntime'],
  targets: [{ kind: 'milliseconds', bound: 80 }],
};

/** The issue's table. The dearest come last: what a run that is stopped has, it has of everything else. */
export function works(): Work[] {
  const small: [number, number][] = [
    [1152, 384],
    [384, 384],
    [1536, 384],
    [384, 1536],
  ];
  const xl: [number, number][] = [
    [3456, 1152],
    [1152, 1152],
    [4608, 1152],
    [1152, 4608],
  ];
  const rows = [256, 1024, 4096];
  const overOnnx = (bound: number): Target => ratio(bound, 'onnxruntime');
  return [
    startup,
    ...gemms(rows, small),
    ...gemms(rows, xl),
    ...attentions(16, 16, 2),
    ...attentions(32, 32, 1),
    ...attentions(32, 4, 2),
    ...attentions(32, 8, 2),
    forward(
      'latent-small',
      1,
      2.2,
      ['onnxruntime', 'tfjs'],
      [overOnnx(1.2), { kind: 'ratio', bound: 1, peers: ['tfjs'] }],
    ),
    forward('latent-small', 4, 2.2, ['onnxruntime']),
    forward('latent-small', 16, 2.2, ['onnxruntime'], [overOnnx(1.4), { kind: 'peak', bound: 0.8 }]),
    ...[1, 4, 16].map((batch) => forwardHalf('latent-small', batch, 1.7)),
    train('latent-small', 8, 2, 0.5),
    forward('cifar10', 8, 1.5),
    forward('cifar10', 16, 1.5),
    train('cifar10', 8, 1.5),
    train('cifar10', 16, 1.5),
    forward('imagenet256', 1, 2),
    forwardHalf('imagenet256', 1, 1.5),
  ];
}

/** As small as can be, one of each kind: does it all run? */
export function quickWorks(): Work[] {
  return [
    startup,
    gemm(32, 64, 48, 'none'),
    gemm(32, 192, 48, 'bias+gelu'),
    gemm(32, 48, 192, 'bias+residual'),
    ...attentions(8, 4, 1, 2, 32),
    forward('tiny', 1, 2.2, ['onnxruntime', 'tfjs'], [overOnnxQuick]),
    forwardHalf('tiny', 1, 1.7),
    train('tiny', 2, 2, 0.5),
    train('tiny-image', 2, 1.5),
  ];
}
const overOnnxQuick: Target = { kind: 'ratio', bound: 1.2, peers: ['onnxruntime'] };
