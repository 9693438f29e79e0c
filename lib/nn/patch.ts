/** From latents to tokens and back: patch embedding, unpatchify, and the fixed table of positions (DiT, ViT). */
import { permute, reshape } from '../ops/index.js';
import { linear } from '../ops/linear.js';
import { scope } from '../scope.js';
import { type Tensor, tensor, zeros } from '../tensor.js';
import * as init from './init.js';
import { convLayout, Module } from './module.js';

/** Cuts images into p x p patches and projects each: a p x p convolution of stride p. State dict: proj.weight [C, in, p, p], proj.bias. */
export class PatchEmbed extends Module {
  /** [dim, p, p, inChannels] in memory. */
  readonly weight: Tensor;
  /** [dim]. */
  readonly bias: Tensor;
  /** Weights are xavier-uniform as those of a linear layer on all of a patch's numbers; the bias is zero. */
  constructor(
    private readonly patchSize: number,
    inChannels: number,
    dim: number,
  ) {
    super();
    const fanIn = patchSize ** 2 * inChannels;
    const weight = init.uniform([dim, patchSize, patchSize, inChannels], Math.sqrt(6 / (fanIn + dim)));
    this.weight = this.parameter('proj.weight', weight, convLayout);
    this.bias = this.parameter('proj.bias', zeros([dim]));
  }

  /** x [B, in, H, W] -> tokens [B, (H / p)(W / p), C], row-major. */
  forward(x: Tensor): Tensor {
    const p = this.patchSize;
    const [batch, channels, height, width] = x.shape;
    const [h, w] = [height / p, width / p];
    return scope(() => {
      const patches = permute(reshape(x, [batch, channels, h, p, w, p]), [0, 2, 4, 3, 5, 1]);
      const rows = reshape(patches, [batch, h * w, p * p * channels]);
      return linear(rows, reshape(this.weight, [this.weight.shape[0], p * p * channels]), this.bias);
    });
  }
}

/** Tokens [B, side^2, p p C], each a patch of p = `patchSize` with its channels last -> [B, C, side p, side p]. */
export function unpatchify(tokens: Tensor, side: number, patchSize: number): Tensor {
  const [batch, , width] = tokens.shape;
  const channels = width / patchSize ** 2;
  return scope(() => {
    const patches = reshape(tokens, [batch, side, side, patchSize, patchSize, channels]);
    return reshape(permute(patches, [0, 5, 1, 3, 2, 4]), [batch, channels, side * patchSize, side * patchSize]);
  });
}

/**
 * The 2-D sin-cos table of positions [1, side^2, dim]: the first half of the channels encodes the column, the second
 * the row; in each, sines and then cosines of position * 10000^(-k / (dim / 4)). dim is a multiple of 4.
 */
export function sinCosPositions(side: number, dim: number): Tensor {
  const quarter = dim / 4;
  const table = new Float32Array(side ** 2 * dim);
  for (let position = 0; position < side ** 2; position++) {
    for (const [half, at] of [position % side, Math.floor(position / side)].entries()) {
      for (let k = 0; k < quarter; k++) {
        const angle = at * 10000 ** (-k / quarter);
        const to = position * dim + 2 * half * quarter + k;
        table[to] = Math.sin(angle);
        table[to + quarter] = Math.cos(angle);
      }
    }
  }
  return tensor(table, { shape: [1, side ** 2, dim] });
}
