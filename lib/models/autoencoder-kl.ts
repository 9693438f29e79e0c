/**
 * AutoencoderKL: the variational autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752), as Stable Diffusion
 * trained it and diffusers stores it. Images [B, 3, H, W] in [-1, 1] <-> latents [B, 4, H/8, W/8].
 *
 * Latents are not scaled here: a diffusion model works on z scalingFactor, and decode() takes what that divided by
 * scalingFactor gives. NCHW at the border, NHWC inside.
 */
import { OptionError, ShapeError } from '../errors.js';
import { Conv2d } from '../nn/layers.js';
import { Module, type StateDict, type StateDictOptions } from '../nn/module.js';
import { checkShapeOf } from '../ops/check.js';
import { clamp } from '../ops/elementwise.js';
import { permute, slice } from '../ops/index.js';
import { widened } from '../ops/precision.js';
import type { RandomKey } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { scope } from '../scope.js';
import { format, type Shape } from '../shape.js';
import type { Tensor } from '../tensor.js';
import { DiagonalGaussian } from './diagonal-gaussian.js';
import { type DecodeTiledOptions, decodeTiled } from './tiled-decode.js';
import { VaeDecoder, VaeEncoder } from './vae-blocks.js';

/** Options of {@link AutoencoderKL}; plain JSON. The defaults are those of Stable Diffusion's VAE. */
export interface AutoencoderConfig {
  /** Channels of the images going in. Default 3. */
  inChannels?: number;
  /** Channels of the images coming out. Default 3. */
  outChannels?: number;
  /** Channels of the latents. Default 4. */
  latentChannels?: number;
  /** Channels per resolution; each further one halves the size. Default [128, 256, 512, 512]. */
  blockOutChannels?: readonly number[];
  /** Residual blocks per resolution of the encoder; the decoder has one more. Default 2. */
  layersPerBlock?: number;
  /** Groups of all GroupNorms; divides all channels. Default 32. */
  normNumGroups?: number;
  /** One over the latents' standard deviation: what a diffusion model multiplies them by. Default 0.18215. */
  scalingFactor?: number;
}

const configSchema = schema((z, is) =>
  z.strictObject({
    inChannels: is.count.default(3),
    outChannels: is.count.default(3),
    latentChannels: is.count.default(4),
    blockOutChannels: z.array(is.count).min(1).default([128, 256, 512, 512]),
    layersPerBlock: is.count.default(2),
    normNumGroups: is.count.default(32),
    scalingFactor: z.number().positive().default(0.18215),
  } satisfies Fields<AutoencoderConfig>),
);

/** What {@link AutoencoderKL.forward} returns. */
export interface AutoencoderOutput {
  /** Images [B, outChannels, H, W]. */
  reconstruction: Tensor;
  /** Where the latents came from; kl() is the other part of the loss. */
  posterior: DiagonalGaussian;
}

/** Range of logvar, as diffusers clamps it. */
const logvarRange = [-30, 20] as const;

/**
 * The variational autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752), as Stable Diffusion trained it and diffusers stores it.
 * Images [B, 3, H, W] in [-1, 1] become latents [B, 4, H/8, W/8], and back. Latents are not scaled here: a diffusion model works on
 * z scalingFactor.
 */
export class AutoencoderKL extends Module {
  /** The validated options with their defaults; new AutoencoderKL(config) makes the same architecture. */
  readonly config: Readonly<Required<AutoencoderConfig>>;
  /** Pixels per latent, along a side. */
  readonly factor: number;
  private readonly encoder: VaeEncoder;
  private readonly decoder: VaeDecoder;
  private readonly quantConv: Conv2d;
  private readonly postQuantConv: Conv2d;

  /** @throws {OptionError} An option that is unknown or out of range, or groups that do not divide the channels. */
  constructor(options: AutoencoderConfig = {}) {
    super();
    const config = parseOptions(configSchema, options, 'AutoencoderKL');
    const { inChannels, outChannels, latentChannels, blockOutChannels, normNumGroups } = config;
    const uneven = blockOutChannels.find((channels) => channels % normNumGroups !== 0);
    if (uneven !== undefined) {
      throw new OptionError(`AutoencoderKL: normNumGroups ${normNumGroups} does not divide ${uneven} channels.`);
    }
    this.config = config;
    this.factor = 2 ** (blockOutChannels.length - 1);
    const moments = 2 * latentChannels;
    this.encoder = this.child(
      'encoder',
      new VaeEncoder({ ...config, imageChannels: inChannels, latentChannels: moments }),
    );
    this.decoder = this.child('decoder', new VaeDecoder({ ...config, imageChannels: outChannels }));
    this.quantConv = this.child('quant_conv', new Conv2d(moments, moments, { kernel: 1 }));
    this.postQuantConv = this.child('post_quant_conv', new Conv2d(latentChannels, latentChannels, { kernel: 1 }));
  }

  /**
   * The distribution of the latents of images x [B, inChannels, H, W] in [-1, 1]: mean and logvar
   * [B, latentChannels, H / factor, W / factor]; logvar is clamped to -30..20.
   *
   * @throws {ShapeError} Sides that `factor` does not divide, or other channels.
   */
  encode(x: Tensor): DiagonalGaussian {
    const { inChannels, latentChannels } = this.config;
    const { factor } = this;
    checkShapeOf('AutoencoderKL.encode', 'x', x, [-1, inChannels, -1, -1]);
    if (x.shape[2] % factor !== 0 || x.shape[3] % factor !== 0) {
      throw new ShapeError(`AutoencoderKL.encode: x is ${format(x.shape)}, expected sides that ${factor} divides.`);
    }
    const { mean, logvar } = scope(() => {
      const h = this.quantConv.forward(this.encoder.forward(permute(x, [0, 2, 3, 1])));
      const moments = widened(permute(h, [0, 3, 1, 2]));
      return {
        mean: slice(moments, 1, 0, latentChannels),
        logvar: clamp(slice(moments, 1, latentChannels), ...logvarRange),
      };
    });
    return new DiagonalGaussian(mean, logvar);
  }

  /** Latents [B, latentChannels, h, w] -> images [B, outChannels, h factor, w factor], about in [-1, 1]. Throws ShapeError for other channels. */
  decode(latents: Tensor): Tensor {
    checkShapeOf('AutoencoderKL.decode', 'latents', latents, [-1, this.config.latentChannels, -1, -1]);
    return scope(() => {
      const h = this.postQuantConv.forward(permute(latents, [0, 2, 3, 1]));
      return widened(permute(this.decoder.forward(h), [0, 3, 1, 2]));
    });
  }

  /**
   * For training: encodes, samples, decodes. Returns the images' reconstruction and the posterior, whose kl() is the
   * other part of the loss. Without a seed in `key` the default generator draws.
   */
  forward(x: Tensor, key: Partial<RandomKey> = {}): AutoencoderOutput {
    return scope(() => {
      const posterior = this.encode(x);
      return { reconstruction: this.decode(posterior.sample(key)), posterior };
    });
  }

  /**
   * decode() for latents of any size in the memory of one tile: tiles overlap and are faded into each other. Records no gradients. Rejects with
   * the signal's reason when aborted, before the next tile.
   *
   * @throws {OptionError} An option that is unknown or out of range.
   * @throws {ShapeError} Latents of other channels.
   */
  async decodeTiled(latents: Tensor, options: DecodeTiledOptions = {}): Promise<Tensor> {
    checkShapeOf('AutoencoderKL.decodeTiled', 'latents', latents, [-1, this.config.latentChannels, -1, -1]);
    return decodeTiled(latents, this.factor, (tile) => this.decode(tile), options);
  }

  /** As {@link Module.loadStateDict}; also takes the names older diffusers files have for the attention's layers. */
  override loadStateDict(state: StateDict, options?: StateDictOptions): void {
    super.loadStateDict(withCurrentNames(state), options);
  }

  /** As {@link Module.checkStateDict}; also takes the names older diffusers files have for the attention's layers. */
  override checkStateDict(state: Readonly<Record<string, { shape: Shape }>>, options?: StateDictOptions): void {
    super.checkStateDict(withCurrentNames(state), options);
  }
}

/** Names that older diffusers files have for the attention's layers. */
const attentionNames: Readonly<Record<string, string>> = {
  query: 'to_q',
  key: 'to_k',
  value: 'to_v',
  proj_attn: 'to_out.0',
};

/** The state-dict name of a stored tensor: query, key, value and proj_attn are to_q, to_k, to_v and to_out.0 today. */
export function autoencoderName(stored: string): string {
  return stored.replace(
    /(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)/,
    (_, before: string, name: string) => before + attentionNames[name],
  );
}

function withCurrentNames<T>(state: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(Object.entries(state).map(([name, value]) => [autoencoderName(name), value]));
}
