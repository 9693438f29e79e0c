/**
 * What a network costs, from its options alone: operations of a forward pass, and what training keeps of it for the way back. Operations
 * are those of convolutions, matrix products and attention, a multiply-add counts as two; the rest is bound by memory.
 */

import type { ModelKind } from './index.js';

/** Options of a network, of any of the classes; only those that decide its size are read. */
type Config = Readonly<Record<string, unknown>>;

/** A latent network's sizes, from its options. */
function latentSizes(config: Config) {
  const defaults = { patchSize: 2, inChannels: 4, depth: 28, mlpRatio: 4 };
  const { inputSize, patchSize, inChannels, hiddenSize, depth, mlpRatio } = { ...defaults, ...config } as Record<
    string,
    number
  >;
  return { tokens: (inputSize / patchSize) ** 2, patch: patchSize ** 2 * inChannels, dim: hiddenSize, depth, mlpRatio };
}

/** Of a transformer block: tokens of a window, channels, hidden channels of the MLP over those, channels of the time token. */
interface Block {
  window: number;
  dim: number;
  mlpRatio?: number;
  timeDim?: number;
}

/** Operations of a forward pass of `tokens` tokens of `images` images through one transformer block. */
export function blockFlops(
  tokens: number,
  { window, dim, mlpRatio = 4, timeDim = dim }: Block,
  images: number,
): number {
  return tokens * ((8 + 4 * mlpRatio) * dim * dim + 4 * window * dim) + images * 6 * timeDim * dim;
}

/** Operations of a network's forward pass for one image, from its class's name and its options; a multiply-add counts as two. */
export function forwardFlops(kind: ModelKind, config: Config): number {
  if (kind === 'ImageDiffiT') return unetFlops(config);
  const { tokens, patch, dim, depth, mlpRatio } = latentSizes(config);
  return depth * blockFlops(tokens, { window: tokens, dim, mlpRatio }, 1) + tokens * 2 * dim * (patch + 2 * patch);
}

/**
 * Numbers that a training step keeps of one image for the way back: of every block the inputs of its layers (what a layer norm or an
 * activation makes is computed again), in a U-shaped network also those of its convolutions.
 */
export function keptNumbers(kind: ModelKind, config: Config): number {
  const kept = (tokens: number, dim: number, mlpRatio: number, dropout = 0): number =>
    tokens * dim * (6 + mlpRatio * (dropout > 0 ? 2 : 1));
  if (kind === 'ImageDiffiT') {
    const { stages, dropout, mlpRatio } = unet(config);
    const block = ({ pixels, width }: Stage, inputs: number): number =>
      pixels * inputs + kept(pixels, width, mlpRatio, dropout);
    const blocks = (stage: Stage, inputs: number): number =>
      block(stage, inputs) + (stage.count - 1) * block(stage, stage.width);
    const [top] = stages;
    const down = stages.reduce((sum, stage, i) => sum + blocks(stage, stages[Math.max(i - 1, 0)].width), 0);
    const up = stages.slice(1).reduce((sum, { width }, i) => {
      const inputs = width + stages[i].width;
      return sum + stages[i].pixels * (width + inputs) + blocks(stages[i], inputs); // upsampled, concatenated
    }, 0);
    return down + up + top.pixels * 2 * top.width;
  }
  const { tokens, dim, depth, mlpRatio } = latentSizes(config);
  // AdaLN keeps besides what its gates and modulations are multiplied with.
  return depth * (kept(tokens, dim, mlpRatio) + (kind === 'DiT' ? 4 * tokens * dim : 0));
}

/** One resolution of a U-shaped network. */
interface Stage {
  width: number;
  pixels: number;
  /** Blocks. */
  count: number;
  /** Tokens of an attention window. */
  window: number;
}

function unet(config: Config) {
  const defaults = { timeDim: 512, mlpRatio: 4, dropout: 0 };
  const { imgResolution, inChannels, baseChannels, timeDim, mlpRatio, dropout } = { ...defaults, ...config } as Record<
    string,
    number
  >;
  const { channelMult, numBlocks, windowSize } = config as Record<string, number | number[]>;
  const at = (value: number | number[], i: number): number => (Array.isArray(value) ? value[i] : value);
  const stages = (channelMult as number[]).map(
    (mult, i): Stage => ({
      width: mult * baseChannels,
      pixels: (imgResolution >> i) ** 2,
      count: at(numBlocks, i),
      window: Math.min(at(windowSize, i), imgResolution >> i) ** 2,
    }),
  );
  return { stages, inChannels, baseChannels, timeDim, mlpRatio, dropout };
}

/** Convolutions, products and attention; a block is a convolution, TMSA and an MLP. */
function unetFlops(config: Config): number {
  const { stages, inChannels, baseChannels, timeDim, mlpRatio } = unet(config);
  const conv = (pixels: number, inputs: number, outputs: number, taps = 9): number =>
    2 * pixels * taps * inputs * outputs;
  const blocks = ({ width, pixels, count, window }: Stage, inputs: number): number => {
    const transformer = blockFlops(pixels, { window, dim: width, mlpRatio, timeDim }, 1);
    const first = conv(pixels, inputs, width) + (inputs === width ? 0 : conv(pixels, inputs, width, 1));
    return first + (count - 1) * conv(pixels, width, width) + count * transformer;
  };
  const [top, ...below] = stages;
  let sum = conv(top.pixels, inChannels, top.width) + conv(top.pixels, top.width, inChannels);
  sum += 2 * timeDim * (baseChannels + timeDim) + blocks(top, top.width);
  below.forEach((stage, i) => {
    const above = stages[i];
    sum += conv(stage.pixels, above.width, above.width) + blocks(stage, above.width); // down
    sum += conv(above.pixels, stage.width, stage.width) + blocks(above, stage.width + above.width); // up
  });
  return sum;
}
