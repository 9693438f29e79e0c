/** The plain layers: Linear, Conv2d, GroupNorm, Embedding. */
import { OptionError } from '../errors.js';
import { type Conv2dOptions, conv2d } from '../ops/conv.js';
import { embedding } from '../ops/index.js';
import { type LinearOptions, linear } from '../ops/linear.js';
import { groupNorm } from '../ops/norm.js';
import type { Shape } from '../shape.js';
import { ones, type Tensor, zeros } from '../tensor.js';
import * as init from './init.js';
import { convLayout, Module } from './module.js';

/** y = x W^T + b on the last axis. weight [out, in] xavier-uniform, zero, or with `std` N(0, std^2); bias zero. */
export class Linear extends Module {
  readonly weight: Tensor;
  readonly bias?: Tensor;
  constructor(
    inFeatures: number,
    outFeatures: number,
    { bias = true, zero = false, std }: { bias?: boolean; zero?: boolean; std?: number } = {},
  ) {
    super();
    const shape = [outFeatures, inFeatures];
    const initial = zero ? zeros : std === undefined ? init.xavierUniform : (of: Shape) => init.normal(of, std);
    this.weight = this.parameter('weight', init.linearWeight(shape, initial));
    if (bias) this.bias = this.parameter('bias', zeros([outFeatures]));
  }
  /** x [..., in] -> [..., out]; activation and residual are fused. */
  forward(x: Tensor, options?: LinearOptions): Tensor {
    return linear(x, this.weight, this.bias, options);
  }
}

/** Options of {@link Conv2d}. */
export interface Conv2dLayerOptions {
  kernel?: number;
  stride?: number;
  /** One number, or [top, right, bottom, left]. */
  padding?: Conv2dOptions['padding'];
  /** Start from zero weights. Default false. */
  zero?: boolean;
}

/** Convolution on NHWC. weight [out, k, k, in] in memory ([out, in, k, k] in state dicts), PyTorch's default init, bias zero. */
export class Conv2d extends Module {
  readonly weight: Tensor;
  readonly bias: Tensor;
  private readonly stride: number;
  private readonly padding: Conv2dOptions['padding'];
  /** Defaults: kernel 3, stride 1, padding (kernel - 1) / 2. */
  constructor(inChannels: number, outChannels: number, options: Conv2dLayerOptions = {}) {
    super();
    const { kernel = 3, stride = 1, padding = Math.floor((kernel - 1) / 2), zero = false } = options;
    const shape = [outChannels, kernel, kernel, inChannels];
    this.weight = this.parameter('weight', zero ? zeros(shape) : init.fanInUniform(shape), convLayout);
    this.bias = this.parameter('bias', zeros([outChannels]));
    this.stride = stride;
    this.padding = padding;
  }
  /** x [B, H, W, in] -> [B, H', W', out]; `residual` (shape of the result) is added in the same pass. */
  forward(x: Tensor, residual?: Tensor): Tensor {
    return conv2d(x, this.weight, this.bias, { stride: this.stride, padding: this.padding, residual });
  }
}

/** GroupNorm with scale and shift on [B, ..., C], eps 1e-5, and optionally SiLU fused behind it. */
export class GroupNorm extends Module {
  readonly weight: Tensor;
  readonly bias: Tensor;
  constructor(
    private readonly groups: number,
    channels: number,
    private readonly eps = 1e-5,
  ) {
    super();
    if (channels % groups !== 0)
      throw new OptionError(`GroupNorm: ${groups} groups do not divide ${channels} channels.`);
    this.weight = this.parameter('weight', ones([channels]));
    this.bias = this.parameter('bias', zeros([channels]));
  }
  forward(x: Tensor, { silu = false }: { silu?: boolean } = {}): Tensor {
    return groupNorm(x, { groups: this.groups, weight: this.weight, bias: this.bias, eps: this.eps, silu });
  }
}

/** A table of vectors; weight [count, dim] ~ N(0, std^2). */
export class Embedding extends Module {
  readonly weight: Tensor;
  constructor(count: number, dim: number, { std = 0.02 }: { std?: number } = {}) {
    super();
    this.weight = this.parameter('weight', init.normal([count, dim], std));
  }
  /** ids i64 [...] -> [..., dim]. */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
}
