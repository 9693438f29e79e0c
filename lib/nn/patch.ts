/** Images to tokens and back, and the fixed sin-cos position table (ViT, DiT; SPEC section 3). */
import { OptionError } from '../errors.js';
import { permute, reshape } from '../ops/index.js';
import { scope } from '../scope.js';
import { type Tensor, tensor } from '../tensor.js';
import * as init from './init.js';
import { Conv2d } from './layers.js';
import { Module } from './module.js';

/** A convolution with stride = kernel = patch: [B, C, S, S] -> tokens [B, (S / p)^2, dim], row by row. State dict: proj. */
export class PatchEmbed extends Module {
  private readonly proj: Conv2d;
  constructor(patchSize: number, inChannels: number, dim: number) {
    super();
    // Initialised as the linear map it is.
    const initial: init.Initializer = ([out, ...rest]) =>
      scope(() => reshape(init.xavierUniform([out, rest.reduce((a, b) => a * b)]), [out, ...rest]));
    const options = { kernel: patchSize, stride: patchSize, padding: 0, initial };
    this.proj = this.child('proj', new Conv2d(inChannels, dim, options));
  }
  forward(x: Tensor): Tensor {
    return scope(() => {
      const map = this.proj.forward(permute(x, [0, 2, 3, 1]));
      const [batch, height, width, dim] = map.shape;
      return reshape(map, [batch, height * width, dim]);
    });
  }
}

/** Tokens [B, g^2, p p C], channel fastest, of a g x g grid -> image [B, C, g p, g p]. */
export function unpatchify(tokens: Tensor, patchSize: number): Tensor {
  const [batch, count, size] = tokens.shape;
  const grid = Math.sqrt(count);
  const channels = size / patchSize ** 2;
  return scope(() => {
    const patches = reshape(tokens, [batch, grid, grid, patchSize, patchSize, channels]);
    return reshape(permute(patches, [0, 5, 1, 3, 2, 4]), [batch, channels, grid * patchSize, grid * patchSize]);
  });
}

/**
 * Positions of a grid x grid map [1, grid^2, dim]: the first half of the channels encodes the column, the second the row;
 * in each half sines, then cosines, of frequencies 10000^(-k / (dim / 4)). Throws OptionError unless 4 divides dim.
 */
export function sinCosPositions(grid: number, dim: number): Tensor {
  if (dim % 4 !== 0) throw new OptionError(`sinCosPositions: dim is ${dim}, expected a multiple of 4.`);
  const quarter = dim / 4;
  const values = new Float32Array(grid * grid * dim);
  for (let token = 0; token < grid * grid; token++) {
    for (const [half, position] of [token % grid, Math.floor(token / grid)].entries()) {
      for (let k = 0; k < quarter; k++) {
        const angle = position * 10000 ** (-k / quarter);
        const at = token * dim + half * 2 * quarter + k;
        values[at] = Math.sin(angle);
        values[at + quarter] = Math.cos(angle);
      }
    }
  }
  return tensor(values, { shape: [1, grid * grid, dim] });
}
