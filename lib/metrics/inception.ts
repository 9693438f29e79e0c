/**
 * InceptionV3 as FID is measured with: the network of TensorFlow's "inception-2015-12-05", whose weights were converted to PyTorch's names.
 *
 * It differs from torchvision's in what its pooling branches do: the mean of a window counts only pixels of the image (blocks 5b to 7b), and the last
 * block, 7c, takes the maximum; there are 1008 logits. Batch norm is folded into the convolutions when weights are loaded (inception-file.ts).
 */

import * as init from '../nn/init.js';
import { Linear } from '../nn/layers.js';
import { convLayout, Module } from '../nn/module.js';
import { conv2d } from '../ops/conv.js';
import { relu } from '../ops/elementwise.js';
import { concat, reshape } from '../ops/index.js';
import { linear } from '../ops/linear.js';
import { pool2d } from '../ops/pool.js';
import { mean } from '../ops/reduce.js';
import { autocast, noGrad, scope } from '../scope.js';
import type { Tensor } from '../tensor.js';
import { zeros } from '../tensor.js';

/** What the network gives for a batch of B images. */
export interface InceptionOutput {
  /** [B, 2048], the means of the last block's channels ("pool_3"). FID, precision and recall are of these. */
  features: Tensor;
  /** [B, 2023], the first 7 channels of block 6d's 1x1 branch ("mixed_6/conv"), 17 x 17 x 7. sFID is of these. */
  spatial: Tensor;
  /** [B, 1008], without the bias, as guided-diffusion's evaluator takes them for the Inception Score. */
  logits: Tensor;
}

/** Channels of mixed_6/conv that sFID is of. */
const spatialChannels = 7;

/** Sides of a kernel, or of a square one. */
type Side = number | readonly [height: number, width: number];

/** Convolution, batch norm folded into it, ReLU. A 1x1 one is a matrix product with the ReLU in it. */
class Conv extends Module {
  private readonly weight: Tensor;
  private readonly bias: Tensor;
  private readonly padding: readonly [number, number, number, number];

  constructor(
    inChannels: number,
    private readonly outChannels: number,
    side: Side,
    private readonly options: { stride?: number; same?: boolean } = {},
  ) {
    super();
    const [kh, kw] = typeof side === 'number' ? [side, side] : side;
    this.weight = this.parameter('conv.weight', init.fanInUniform([outChannels, kh, kw, inChannels]), convLayout);
    this.bias = this.parameter('conv.bias', zeros([outChannels]));
    const [y, x] = options.same ? [(kh - 1) / 2, (kw - 1) / 2] : [0, 0];
    this.padding = [y, x, y, x];
  }

  /** [B, H, W, in] -> [B, H', W', out]. */
  forward(x: Tensor): Tensor {
    return scope(() => {
      const { weight, bias, outChannels, padding } = this;
      const [, kh, kw, inChannels] = weight.shape;
      if (kh * kw === 1) return linear(x, reshape(weight, [outChannels, inChannels]), bias, { activation: 'relu' });
      return relu(conv2d(x, weight, bias, { stride: this.options.stride, padding }));
    });
  }
}

const same = { same: true };
const down = { stride: 2 };

/** A run of layers, each on the one before's result, which is then given back. */
function through(x: Tensor, ...layers: readonly { forward(x: Tensor): Tensor }[]): Tensor {
  return scope(() => layers.reduce((h, layer) => replaced(h, layer.forward(h), x), x));
}

function joined(branches: readonly Tensor[]): Tensor {
  const y = concat(branches, 3);
  for (const branch of branches) branch.dispose();
  return y;
}

const meanPool = (x: Tensor): Tensor => pool2d(x, { kind: 'mean', size: 3, padding: 1 });
const maxDown = (x: Tensor): Tensor => pool2d(x, { kind: 'max', size: 3, stride: 2 });

/** Block of 35 x 35 pixels. */
class BlockA extends Module {
  private readonly one: Conv;
  private readonly five: readonly Conv[];
  private readonly double: readonly Conv[];
  private readonly pool: Conv;
  constructor(channels: number, poolFeatures: number) {
    super();
    this.one = this.child('branch1x1', new Conv(channels, 64, 1));
    this.five = [
      this.child('branch5x5_1', new Conv(channels, 48, 1)),
      this.child('branch5x5_2', new Conv(48, 64, 5, same)),
    ];
    this.double = [
      this.child('branch3x3dbl_1', new Conv(channels, 64, 1)),
      this.child('branch3x3dbl_2', new Conv(64, 96, 3, same)),
      this.child('branch3x3dbl_3', new Conv(96, 96, 3, same)),
    ];
    this.pool = this.child('branch_pool', new Conv(channels, poolFeatures, 1));
  }
  forward(x: Tensor): Tensor {
    return scope(() =>
      joined([
        this.one.forward(x),
        through(x, ...this.five),
        through(x, ...this.double),
        this.pool.forward(meanPool(x)),
      ]),
    );
  }
}

/** From 35 x 35 to 17 x 17 pixels. */
class BlockB extends Module {
  private readonly three: Conv;
  private readonly double: readonly Conv[];
  constructor(channels: number) {
    super();
    this.three = this.child('branch3x3', new Conv(channels, 384, 3, down));
    this.double = [
      this.child('branch3x3dbl_1', new Conv(channels, 64, 1)),
      this.child('branch3x3dbl_2', new Conv(64, 96, 3, same)),
      this.child('branch3x3dbl_3', new Conv(96, 96, 3, down)),
    ];
  }
  forward(x: Tensor): Tensor {
    return scope(() => joined([this.three.forward(x), through(x, ...this.double), maxDown(x)]));
  }
}

const wide: Side = [1, 7];
const high: Side = [7, 1];

/** Block of 17 x 17 pixels. */
class BlockC extends Module {
  private readonly one: Conv;
  private readonly seven: readonly Conv[];
  private readonly double: readonly Conv[];
  private readonly pool: Conv;
  constructor(channels: number, inner: number) {
    super();
    this.one = this.child('branch1x1', new Conv(channels, 192, 1));
    this.seven = [
      this.child('branch7x7_1', new Conv(channels, inner, 1)),
      this.child('branch7x7_2', new Conv(inner, inner, wide, same)),
      this.child('branch7x7_3', new Conv(inner, 192, high, same)),
    ];
    this.double = [
      this.child('branch7x7dbl_1', new Conv(channels, inner, 1)),
      this.child('branch7x7dbl_2', new Conv(inner, inner, high, same)),
      this.child('branch7x7dbl_3', new Conv(inner, inner, wide, same)),
      this.child('branch7x7dbl_4', new Conv(inner, inner, high, same)),
      this.child('branch7x7dbl_5', new Conv(inner, 192, wide, same)),
    ];
    this.pool = this.child('branch_pool', new Conv(channels, 192, 1));
  }
  /** The first branch alone, 192 channels. */
  ones(x: Tensor): Tensor {
    return this.one.forward(x);
  }
  forward(x: Tensor): Tensor {
    return scope(() =>
      joined([
        this.one.forward(x),
        through(x, ...this.seven),
        through(x, ...this.double),
        this.pool.forward(meanPool(x)),
      ]),
    );
  }
}

/** From 17 x 17 to 8 x 8 pixels. */
class BlockD extends Module {
  private readonly three: readonly Conv[];
  private readonly seven: readonly Conv[];
  constructor(channels: number) {
    super();
    this.three = [
      this.child('branch3x3_1', new Conv(channels, 192, 1)),
      this.child('branch3x3_2', new Conv(192, 320, 3, down)),
    ];
    this.seven = [
      this.child('branch7x7x3_1', new Conv(channels, 192, 1)),
      this.child('branch7x7x3_2', new Conv(192, 192, wide, same)),
      this.child('branch7x7x3_3', new Conv(192, 192, high, same)),
      this.child('branch7x7x3_4', new Conv(192, 192, 3, down)),
    ];
  }
  forward(x: Tensor): Tensor {
    return scope(() => joined([through(x, ...this.three), through(x, ...this.seven), maxDown(x)]));
  }
}

/** Block of 8 x 8 pixels. */
class BlockE extends Module {
  private readonly one: Conv;
  private readonly three: readonly Conv[];
  private readonly double: readonly Conv[];
  private readonly pool: Conv;
  constructor(
    channels: number,
    private readonly pooling: 'mean' | 'max',
  ) {
    super();
    this.one = this.child('branch1x1', new Conv(channels, 320, 1));
    this.three = [
      this.child('branch3x3_1', new Conv(channels, 384, 1)),
      this.child('branch3x3_2a', new Conv(384, 384, [1, 3], same)),
      this.child('branch3x3_2b', new Conv(384, 384, [3, 1], same)),
    ];
    this.double = [
      this.child('branch3x3dbl_1', new Conv(channels, 448, 1)),
      this.child('branch3x3dbl_2', new Conv(448, 384, 3, same)),
      this.child('branch3x3dbl_3a', new Conv(384, 384, [1, 3], same)),
      this.child('branch3x3dbl_3b', new Conv(384, 384, [3, 1], same)),
    ];
    this.pool = this.child('branch_pool', new Conv(channels, 192, 1));
  }
  forward(x: Tensor): Tensor {
    return scope(() => {
      const three = this.three[0].forward(x);
      const double = through(x, this.double[0], this.double[1]);
      return joined([
        this.one.forward(x),
        this.three[1].forward(three),
        this.three[2].forward(three),
        this.double[2].forward(double),
        this.double[3].forward(double),
        this.pool.forward(pool2d(x, { kind: this.pooling, size: 3, padding: 1 })),
      ]);
    });
  }
}

/**
 * InceptionV3 with FID's changes (Szegedy et al. 2015; Heusel et al. 2017). Weights are random until {@link loadInception} or loadStateDict() brings some; forward only.
 * State dict: PyTorch's names, with batch norm folded into `NAME.conv.weight` and `NAME.conv.bias`.
 */
export class InceptionV3 extends Module {
  /** Side of the images it takes. */
  static readonly side = 299;

  private readonly stem1: readonly Conv[];
  private readonly stem2: readonly Conv[];
  private readonly early: readonly (BlockA | BlockB | BlockC)[];
  private readonly sixD: BlockC;
  private readonly late: readonly (BlockC | BlockD | BlockE)[];
  private readonly fc: Linear;

  constructor() {
    super();
    this.stem1 = [
      this.child('Conv2d_1a_3x3', new Conv(3, 32, 3, down)),
      this.child('Conv2d_2a_3x3', new Conv(32, 32, 3)),
      this.child('Conv2d_2b_3x3', new Conv(32, 64, 3, same)),
    ];
    this.stem2 = [this.child('Conv2d_3b_1x1', new Conv(64, 80, 1)), this.child('Conv2d_4a_3x3', new Conv(80, 192, 3))];
    this.early = [
      this.child('Mixed_5b', new BlockA(192, 32)),
      this.child('Mixed_5c', new BlockA(256, 64)),
      this.child('Mixed_5d', new BlockA(288, 64)),
      this.child('Mixed_6a', new BlockB(288)),
      this.child('Mixed_6b', new BlockC(768, 128)),
      this.child('Mixed_6c', new BlockC(768, 160)),
    ];
    this.sixD = this.child('Mixed_6d', new BlockC(768, 160));
    this.late = [
      this.child('Mixed_6e', new BlockC(768, 192)),
      this.child('Mixed_7a', new BlockD(768)),
      this.child('Mixed_7b', new BlockE(1280, 'mean')),
      this.child('Mixed_7c', new BlockE(2048, 'max')),
    ];
    this.fc = this.child('fc', new Linear(2048, 1008));
  }

  /** Images [B, 299, 299, 3] in [-1, 1] -> features, spatial features, logits. In f32; nothing is recorded. */
  forward(images: Tensor): InceptionOutput {
    const run = (): InceptionOutput => {
      const stem = scope(() => maxDown(through(maxDown(through(images, ...this.stem1)), ...this.stem2)));
      const middle = replaced(stem, through(stem, ...this.early));
      const spatial = scope(() => {
        const ones = this.sixD.ones(middle).slice(3, 0, spatialChannels);
        return reshape(ones, [ones.shape[0], -1]);
      });
      const end = replaced(middle, through(middle, this.sixD, ...this.late));
      const features = replaced(end, mean(end, [1, 2]));
      return { features, spatial, logits: linear(features, this.fc.weight) };
    };
    return noGrad(() => autocast('f32', () => scope(run)));
  }
}

/** `after`, with `before` given back unless it is `kept`. */
function replaced(before: Tensor, after: Tensor, kept?: Tensor): Tensor {
  if (before !== kept) before.dispose();
  return after;
}
