/**
 * What is timed, at which sizes, with the least bytes and operations it takes. "full" is for a GPU (the shapes of XL/2:
 * 16 heads of 72, and of the cifar10 network), "cpu" the same with fewer images, "quick" as small as the code allows;
 * "check" has the full sizes of single operations with two images, to be computed once and compared.
 * The most telling come first: a run with a time limit stops somewhere.
 */
import { blockFlops, forwardFlops } from '../models/cost.js';
import { type ImageDiffiTConfig, type LatentTransformerConfig, type ModelKind, preset } from '../models/index.js';
import type { Group, Precision, Spec } from './report.js';

export type Scale = 'full' | 'cpu' | 'quick' | 'check';

const itemBytes = (dtype: Precision): number => (dtype === 'f32' ? 4 : 2);

/** Sizes of one attention: a map of tokens, its windows, images, heads. */
interface Attention {
  side: number;
  window: number;
  batch: number;
  heads: number;
  dim: number;
}

const xlHeads = { heads: 16, dim: 72 };
const grid = (side: number, batch: number): Attention => ({ side, window: side, batch, ...xlHeads });
const windows = (side: number, window: number, batch: number): Attention => ({ side, window, batch, ...xlHeads });

const attentions: Record<Exclude<Scale, 'check'>, Attention[]> = {
  full: [
    grid(32, 8),
    grid(16, 32),
    windows(32, 4, 32),
    windows(64, 8, 32),
    grid(32, 16),
    grid(16, 64),
    { ...grid(32, 8), dim: 64 },
    grid(64, 2),
    grid(8, 128),
    { side: 32, window: 4, batch: 64, heads: 4, dim: 64 }, // cifar10
  ],
  cpu: [grid(32, 1), grid(16, 2), windows(32, 4, 2), windows(64, 8, 1)],
  quick: [
    { side: 4, window: 4, batch: 1, heads: 2, dim: 32 },
    { side: 8, window: 4, batch: 1, heads: 1, dim: 32 },
  ],
};

function attentionsOf(scale: Scale): Attention[] {
  if (scale !== 'check') return attentions[scale];
  const two = attentions.full.map((sizes) => JSON.stringify({ ...sizes, batch: 2 }));
  return [...new Set(two)].map((sizes) => JSON.parse(sizes));
}

/** Per token q, k, v of 3C in and C out, per pair of tokens in a window 2C + 2C operations; backward five products for two. */
function attentionSpecs(scale: Scale, dtype: Precision): Spec[] {
  return attentionsOf(scale).flatMap(({ side, window, batch, heads, dim }) =>
    (['forward', 'backward'] as const).map((pass) => {
      const [tokens, channels] = [batch * side * side, heads * dim];
      const backward = pass === 'backward';
      const tableBytes = 4 * (2 * window - 1) ** 2 * heads;
      const shape = window === side ? `${side}x${side}` : `${side}x${side}/${window}x${window}`;
      return {
        id: `attention/${shape}/b${batch}h${heads}d${dim}/${pass}`,
        group: 'attention',
        sizes: { side, window, batch, heads, dim, pass },
        flops: (backward ? 10 : 4) * tokens * window * window * channels,
        bytes:
          tokens * channels * (backward ? 8 : 4) * itemBytes(dtype) +
          (backward ? 4 * tokens * heads + tableBytes : 0) +
          tableBytes,
        items: tokens,
        unit: 'tokens',
      };
    }),
  );
}

/** y [m, n] = op(a) op(b); layout nt: y = x W^T of a linear layer, nn: its gradient of x, tn: that of W (written in f32). */
interface Product {
  m: number;
  n: number;
  k: number;
  layout: 'nt' | 'nn' | 'tn';
  epilogue: 'none' | 'bias' | 'bias+gelu' | 'bias+residual';
}

function products(scale: Scale): Product[] {
  const m = { full: 32 * 256, cpu: 2 * 256, check: 2 * 256, quick: 32 }[scale];
  const layers =
    scale === 'quick'
      ? [[64, 48]]
      : [
          [3456, 1152],
          [1152, 1152],
          [4608, 1152],
          [1152, 4608],
        ];
  const others =
    scale === 'full'
      ? [
          [1152, 3456],
          [3456, 3456],
          [4608, 4608],
          [3456, 4608],
          [4608, 3456],
        ]
      : [];
  const plain = ([n, k]: number[]): Product => ({ m, n, k, layout: 'nt', epilogue: 'none' });
  return [
    ...layers.map(plain),
    ...layers.map(([n, k]): Product => {
      const epilogue = n > 2 * k ? (n > 3 * k ? 'bias+gelu' : 'bias') : 'bias+residual';
      return { m, n, k, layout: 'nt', epilogue };
    }),
    ...layers.map(([n, k]): Product => ({ m, n: k, k: n, layout: 'nn', epilogue: 'none' })),
    ...layers.map(([n, k]): Product => ({ m: n, n: k, k: m, layout: 'tn', epilogue: 'none' })),
    ...others.map(plain),
  ];
}

function gemmSpecs(scale: Scale, dtype: Precision): Spec[] {
  return products(scale).map(({ m, n, k, layout, epilogue }) => {
    const size = itemBytes(dtype);
    const outputs = m * n * (layout === 'tn' ? 4 : size) + (epilogue === 'bias+residual' ? m * n * size : 0);
    return {
      id: `gemm/m${m}n${n}k${k}/${layout}${epilogue === 'none' ? '' : `+${epilogue}`}`,
      group: 'gemm',
      sizes: { m, n, k, layout, epilogue },
      flops: 2 * m * n * k,
      bytes: (m * k + n * k) * size + outputs,
      items: layout === 'tn' ? k : m,
      unit: 'tokens',
    };
  });
}

/** [input side, channels in, out, kernel, stride]: layers of the cifar10 network. */
const convolutions: Record<
  Exclude<Scale, 'check'>,
  { batch: number; layers: [number, number, number, number, number][] }
> = {
  full: {
    batch: 64,
    layers: [
      [32, 256, 256, 3, 1],
      [32, 512, 256, 3, 1],
      [16, 256, 256, 3, 1],
      [8, 256, 256, 3, 1],
      [32, 256, 256, 3, 2],
      [32, 3, 256, 3, 1],
      [32, 512, 256, 1, 1],
    ],
  },
  cpu: {
    batch: 2,
    layers: [
      [32, 256, 256, 3, 1],
      [16, 512, 256, 3, 1],
      [32, 256, 256, 3, 2],
      [32, 3, 256, 3, 1],
    ],
  },
  quick: {
    batch: 1,
    layers: [
      [8, 16, 16, 3, 1],
      [8, 16, 16, 3, 2],
    ],
  },
};

function convSpecs(scale: Scale, dtype: Precision): Spec[] {
  const { batch, layers } = scale === 'check' ? { ...convolutions.full, batch: 2 } : convolutions[scale];
  return layers.flatMap(([side, inputs, outputs, kernel, stride]) =>
    (['forward', 'dgrad', 'wgrad'] as const).map((pass) => {
      const out = Math.ceil(side / stride);
      const elements = batch * (side * side * inputs + out * out * outputs) + outputs * kernel * kernel * inputs;
      return {
        id: `conv/${side}x${side}x${inputs}/b${batch}o${outputs}k${kernel}s${stride}/${pass}`,
        group: 'conv',
        sizes: { batch, side, in: inputs, out: outputs, kernel, stride, pass },
        flops: 2 * batch * out * out * outputs * kernel * kernel * inputs,
        bytes: elements * itemBytes(dtype),
        items: batch,
        unit: 'images',
      };
    }),
  );
}

function blockSpecs(scale: Scale, dtype: Precision): Spec[] {
  const sizes = {
    full: [
      [16, 1152, 16, 32],
      [32, 1152, 16, 8],
      [16, 384, 6, 64],
    ],
    cpu: [
      [16, 1152, 16, 1],
      [16, 384, 6, 4],
    ],
    quick: [[4, 64, 2, 1]],
    check: [],
  }[scale];
  return sizes.flatMap(([side, dim, heads, batch]) =>
    (['forward', 'train'] as const).map((pass) => {
      const tokens = batch * side * side;
      const train = pass === 'train';
      const weights = 15 * dim * dim; // qkv, qkv_temb, proj, fc1, fc2
      return {
        id: `block/${side}x${side}/c${dim}h${heads}b${batch}/${pass}`,
        group: 'block',
        sizes: { side, dim, heads, batch, pass },
        flops: (train ? 3 : 1) * blockFlops(tokens, { window: side * side, dim }, batch),
        bytes: (train ? 2 : 1) * (2 * tokens * dim * 4 + weights * itemBytes(dtype)),
        items: tokens,
        unit: 'tokens',
      };
    }),
  );
}

/** A latent model with two blocks of 64 channels on 8 x 8 latents. */
const tiny: LatentTransformerConfig = { inputSize: 8, hiddenSize: 64, depth: 2, numHeads: 2, numClasses: 10 };

/** A U-shaped one with a block of 16 channels at either size. */
const tinyImage: ImageDiffiTConfig = {
  imgResolution: 8,
  inChannels: 3,
  baseChannels: 16,
  channelMult: [1, 2],
  numBlocks: 1,
  windowSize: 4,
  timeDim: 32,
  channelsPerHead: 16,
};

/** Options and class of a network by name: a preset, "tiny" or "tiny-image". */
export function network(name: string): { kind: ModelKind; config: Record<string, unknown> } {
  if (name === 'tiny') return { kind: 'LatentDiffiT', config: { ...tiny } };
  if (name === 'tiny-image') return { kind: 'ImageDiffiT', config: { ...tinyImage } };
  const { kind, model } = preset(name);
  return { kind, config: { ...model } };
}

function networkSpec(group: Group, name: string, batch: number, pass: string, passes: number): Spec {
  const { kind, config } = network(name);
  const flops = forwardFlops(kind, config);
  return {
    id: `${group}/${name}/b${batch}/${pass}`,
    group,
    sizes: { network: name, kind, batch, pass },
    config,
    flops: passes * batch * flops,
    items: batch,
    unit: 'images',
  };
}

const networks: Record<'model' | 'sampler' | 'train', Partial<Record<Scale, [name: string, batch: number][]>>> = {
  model: {
    full: [
      ['imagenet256', 32],
      ['imagenet512', 8],
      ['cifar10', 64],
      ['latent-small', 64],
    ],
    cpu: [
      ['latent-small', 1],
      ['cifar10', 1],
      ['imagenet256', 1],
    ],
    quick: [['tiny', 1]],
  },
  sampler: {
    full: [
      ['imagenet256', 16],
      ['cifar10', 64],
    ],
    cpu: [
      ['latent-small', 1],
      ['mnist', 4],
    ],
    quick: [['tiny', 1]],
  },
  train: {
    full: [
      ['imagenet256', 32],
      ['latent-small', 128],
      ['cifar10', 64],
    ],
    cpu: [
      ['mnist', 16],
      ['latent-small', 1],
    ],
    quick: [['tiny', 2]],
  },
};

function samplerSpecs(scale: Scale): Spec[] {
  return (networks.sampler[scale] ?? []).flatMap(([name, batch]) => {
    const ddpm = network(name).kind === 'LatentDiffiT';
    const step = networkSpec('sampler', name, batch, ddpm ? 'guided ddpm step' : 'edm step', 2);
    // The same loop around a network that costs nothing: what the sampler itself takes.
    return [step, { ...networkSpec('sampler', name, batch, `${step.sizes.pass} arithmetic`, 0), flops: undefined }];
  });
}

function copySpecs(scale: Scale, dtype: Precision): Spec[] {
  const bytes = { full: 2 ** 30, cpu: 2 ** 27, quick: 2 ** 16, check: 0 }[scale];
  const n = { full: 8192, cpu: 1536, quick: 48, check: 0 }[scale];
  if (scale === 'check') return [];
  return [
    {
      id: `copy/${bytes}`,
      group: 'copy',
      sizes: { bytes, kind: 'copy' },
      bytes: 2 * bytes,
      items: 2 * bytes,
      unit: 'bytes',
    },
    {
      id: `copy/product${n}`,
      group: 'copy',
      sizes: { n, kind: 'product' },
      flops: 2 * n ** 3,
      bytes: 3 * n * n * itemBytes(dtype),
      items: n,
      unit: 'tokens',
    },
  ];
}

/** The list of a group. */
export function specsOf(group: Group, scale: Scale, dtype: Precision): Spec[] {
  switch (group) {
    case 'copy':
      return copySpecs(scale, dtype);
    case 'attention':
      return attentionSpecs(scale, dtype);
    case 'gemm':
      return gemmSpecs(scale, dtype);
    case 'conv':
      return convSpecs(scale, dtype);
    case 'block':
      return blockSpecs(scale, dtype);
    case 'sampler':
      return samplerSpecs(scale);
    case 'model':
      return (networks.model[scale] ?? []).map(([name, batch]) => networkSpec('model', name, batch, 'forward', 1));
    case 'train':
      return (networks.train[scale] ?? []).map(([name, batch]) => networkSpec('train', name, batch, 'step', 3));
  }
}
