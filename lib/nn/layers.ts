/** The plain layers: Linear, Conv2d, GroupNorm, Embedding. */
import { OptionError } from '../errors.js';
import { checkInteger } from '../ops/check.js';
import { type Conv2dOptions, conv2d } from '../ops/conv.js';
import { embedding } from '../ops/index.js';
import { type LinearOptions, linear } from '../ops/linear.js';
import { groupNorm } from '../ops/norm.js';
import { type Fields, parseOptions, schema } from '../options.js';
import type { Shape } from '../shape.js';
import { ones, type Tensor, zeros } from '../tensor.js';
import * as init from './init.js';
import { convLayout, Module } from './module.js';

/** Options of {@link Linear}. */
export interface LinearLayerOptions {
  /** Add a bias. Default true. */
  bias?: boolean;
  /** Start from zero weights. Default false. */
  zero?: boolean;
  /** Start from N(0, std^2). Default: xavier-uniform. */
  std?: number;
}

const linearSchema = schema((z, is) =>
  z.strictObject({
    bias: z.boolean().default(true),
    zero: z.boolean().default(false),
    std: is.atLeastZero.optional(),
  } satisfies Fields<LinearLayerOptions>),
);

/** y = x W^T + b on the last axis. weight [out, in] xavier-uniform, zero, or with `std` N(0, std^2); bias zero. State dict: weight, bias. */
export class Linear extends Module {
  /** [out, in]. */
  readonly weight: Tensor;
  /** [out]. */
  readonly bias?: Tensor;
  /**
   * @param inFeatures - Size of the input's last axis.
   * @param outFeatures - Size of the result's.
   * @throws {OptionError} Sizes below 1; an option that is unknown or out of range.
   */
  constructor(inFeatures: number, outFeatures: number, options: LinearLayerOptions = {}) {
    super();
    checkInteger('Linear', 'inFeatures', inFeatures, 1);
    checkInteger('Linear', 'outFeatures', outFeatures, 1);
    const { bias, zero, std } = parseOptions(linearSchema, options, 'Linear');
    const shape = [outFeatures, inFeatures];
    const initial = zero ? zeros : std === undefined ? init.xavierUniform : (of: Shape) => init.normal(of, std);
    this.weight = this.parameter('weight', init.linearWeight(shape, initial));
    if (bias) this.bias = this.parameter('bias', zeros([outFeatures]));
  }
  /** x [..., in] -> [..., out]; activation and residual are fused. Throws ShapeError for another last axis. */
  forward(x: Tensor, options?: LinearOptions): Tensor {
    return linear(x, this.weight, this.bias, options);
  }
}

/** Options of {@link Conv2d}. */
export interface Conv2dLayerOptions {
  /** Side of the square kernel, in pixels. Default 3. */
  kernel?: number;
  /** Step of the kernel, in pixels. Default 1. */
  stride?: number;
  /** Zeros around the image: one number, or [top, right, bottom, left]. Default floor((kernel - 1) / 2). */
  padding?: Conv2dOptions['padding'];
  /** Start from zero weights. Default false. */
  zero?: boolean;
}

const convSchema = schema((z, is) =>
  z.strictObject({
    kernel: is.count.default(3),
    stride: is.count.default(1),
    padding: z.union([is.natural, z.tuple([is.natural, is.natural, is.natural, is.natural])]).optional(),
    zero: z.boolean().default(false),
  } satisfies Fields<Conv2dLayerOptions>),
);

/** Convolution on NHWC. weight [out, k, k, in] in memory ([out, in, k, k] in state dicts), PyTorch's default init, bias zero. */
export class Conv2d extends Module {
  /** [out, k, k, in]. */
  readonly weight: Tensor;
  /** [out]. */
  readonly bias: Tensor;
  private readonly stride: number;
  private readonly padding: Conv2dOptions['padding'];
  /** @throws {OptionError} Channels below 1; an option that is unknown or out of range. */
  constructor(inChannels: number, outChannels: number, options: Conv2dLayerOptions = {}) {
    super();
    checkInteger('Conv2d', 'inChannels', inChannels, 1);
    checkInteger('Conv2d', 'outChannels', outChannels, 1);
    const given = parseOptions(convSchema, options, 'Conv2d');
    const { kernel, stride, padding = Math.floor((kernel - 1) / 2), zero } = given;
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
  /** Scale [channels], 1 at first. */
  readonly weight: Tensor;
  /** Shift [channels], 0 at first. */
  readonly bias: Tensor;
  /**
   * @param groups - Groups of consecutive channels; divides `channels`.
   * @param channels - Size of the last axis.
   * @param eps - Added to the variance. Default 1e-5.
   * @throws {OptionError} Groups that do not divide the channels.
   */
  constructor(
    private readonly groups: number,
    channels: number,
    private readonly eps = 1e-5,
  ) {
    super();
    checkInteger('GroupNorm', 'groups', groups, 1);
    checkInteger('GroupNorm', 'channels', channels, 1);
    if (channels % groups !== 0)
      throw new OptionError(`GroupNorm: ${groups} groups do not divide ${channels} channels.`);
    this.weight = this.parameter('weight', ones([channels]));
    this.bias = this.parameter('bias', zeros([channels]));
  }
  /** x [B, ..., channels] -> the same shape; with `silu` (default false), SiLU of the result. */
  forward(x: Tensor, { silu = false }: { silu?: boolean } = {}): Tensor {
    return groupNorm(x, { groups: this.groups, weight: this.weight, bias: this.bias, eps: this.eps, silu });
  }
}

/** Options of {@link Embedding}. */
export interface EmbeddingOptions {
  /** Standard deviation of the initial vectors. Default 0.02. */
  std?: number;
}

const embeddingSchema = schema((z, is) =>
  z.strictObject({ std: is.atLeastZero.default(0.02) } satisfies Fields<EmbeddingOptions>),
);

/** A table of vectors. State dict: weight. */
export class Embedding extends Module {
  /** [count, dim], N(0, std^2) at first. */
  readonly weight: Tensor;
  /** @throws {OptionError} Sizes below 1; an option that is unknown or out of range. */
  constructor(count: number, dim: number, options: EmbeddingOptions = {}) {
    super();
    checkInteger('Embedding', 'count', count, 1);
    checkInteger('Embedding', 'dim', dim, 1);
    const { std } = parseOptions(embeddingSchema, options, 'Embedding');
    this.weight = this.parameter('weight', init.normal([count, dim], std));
  }
  /** ids i64 [...] -> [..., dim]. An id outside 0..count-1 rejects the next awaited read. */
  forward(ids: Tensor): Tensor {
    return embedding(this.weight, ids);
  }
}
