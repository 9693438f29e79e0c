/**
 * The parts of Stable Diffusion's autoencoder (Rombach et al., arXiv 2112.10752): residual blocks, attention over the
 * whole map, encoder and decoder. NHWC inside and at the border; state-dict names are diffusers'. All GroupNorms have
 * eps 1e-6.
 */
import { Conv2d, GroupNorm, Linear } from '../nn/layers.js';
import { Module, ModuleList } from '../nn/module.js';
import { attention } from '../ops/attention.js';
import { concat, upsample2x } from '../ops/index.js';
import { linear } from '../ops/linear.js';
import { scope } from '../scope.js';
import type { Tensor } from '../tensor.js';

const eps = 1e-6;

/** What encoder and decoder are made from. */
export interface VaeShape {
  /** Channels of the images. */
  imageChannels: number;
  /** Channels of the encoder's result, or of the decoder's input. */
  latentChannels: number;
  /** Channels per resolution, the images' first. */
  blockOutChannels: readonly number[];
  /** Residual blocks per resolution; the decoder has one more. */
  layersPerBlock: number;
  normNumGroups: number;
}

/** h = conv1(SiLU(norm1(x))); out = conv2(SiLU(norm2(h))) + shortcut(x). */
export class VaeResnetBlock extends Module {
  private readonly norm1: GroupNorm;
  private readonly conv1: Conv2d;
  private readonly norm2: GroupNorm;
  private readonly conv2: Conv2d;
  private readonly shortcut?: Conv2d;

  constructor(inChannels: number, channels: number, groups: number) {
    super();
    this.norm1 = this.child('norm1', new GroupNorm(groups, inChannels, eps));
    this.conv1 = this.child('conv1', new Conv2d(inChannels, channels));
    this.norm2 = this.child('norm2', new GroupNorm(groups, channels, eps));
    this.conv2 = this.child('conv2', new Conv2d(channels, channels));
    if (inChannels !== channels) {
      this.shortcut = this.child('conv_shortcut', new Conv2d(inChannels, channels, { kernel: 1 }));
    }
  }

  /** x [B, H, W, in] -> [B, H, W, channels]. */
  forward(x: Tensor): Tensor {
    return scope(() => {
      const h = this.conv1.forward(this.norm1.forward(x, { silu: true }));
      return this.conv2.forward(this.norm2.forward(h, { silu: true }), this.shortcut?.forward(x) ?? x);
    });
  }
}

/** x + out(softmax(q k^T / sqrt(C)) v) over all H W positions, with one head; q, k, v of GroupNorm(x). */
export class VaeAttention extends Module {
  private readonly norm: GroupNorm;
  private readonly qkv: readonly Linear[];
  private readonly out: Linear;

  constructor(channels: number, groups: number) {
    super();
    this.norm = this.child('group_norm', new GroupNorm(groups, channels, eps));
    this.qkv = ['to_q', 'to_k', 'to_v'].map((name) => this.child(name, new Linear(channels, channels)));
    this.out = this.child('to_out.0', new Linear(channels, channels));
  }

  /** x [B, H, W, C] -> [B, H, W, C]. The matrix of H W x H W weights is never stored. */
  forward(x: Tensor): Tensor {
    return scope(() => {
      const weight = concat(
        this.qkv.map((layer) => layer.weight),
        0,
      );
      const bias = concat(
        this.qkv.map((layer) => layer.bias as Tensor),
        0,
      );
      const qkv = linear(this.norm.forward(x), weight, bias);
      return this.out.forward(attention(qkv, { heads: 1 }), { residual: x });
    });
  }
}

/** Residual block, attention, residual block. */
class MidBlock extends Module {
  private readonly attentions: ModuleList<VaeAttention>;
  private readonly resnets: ModuleList<VaeResnetBlock>;

  constructor(channels: number, groups: number) {
    super();
    const resnet = () => new VaeResnetBlock(channels, channels, groups);
    this.attentions = this.child('attentions', new ModuleList([new VaeAttention(channels, groups)]));
    this.resnets = this.child('resnets', new ModuleList([resnet(), resnet()]));
  }

  forward(x: Tensor): Tensor {
    return scope(() => this.resnets.at(1).forward(this.attentions.at(0).forward(this.resnets.at(0).forward(x))));
  }
}

/** A convolution under diffusers' name for it: downsamplers.0.conv, upsamplers.0.conv. */
class Resampler extends Module {
  readonly conv: Conv2d;
  constructor(conv: Conv2d) {
    super();
    this.conv = this.child('conv', conv);
  }
}

function resnets(count: number, first: number, channels: number, groups: number): ModuleList<VaeResnetBlock> {
  return new ModuleList(
    Array.from({ length: count }, (_, i) => new VaeResnetBlock(i === 0 ? first : channels, channels, groups)),
  );
}

/** Residual blocks of one resolution, then half the size: stride 2 with zeros on the right and below only. */
class DownBlock extends Module {
  private readonly resnets: ModuleList<VaeResnetBlock>;
  private readonly downsamplers?: ModuleList<Resampler>;

  constructor(inChannels: number, channels: number, { layersPerBlock, normNumGroups }: VaeShape, last: boolean) {
    super();
    this.resnets = this.child('resnets', resnets(layersPerBlock, inChannels, channels, normNumGroups));
    if (last) return;
    const conv = new Conv2d(channels, channels, { stride: 2, padding: [0, 1, 1, 0] });
    this.downsamplers = this.child('downsamplers', new ModuleList([new Resampler(conv)]));
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      let h = x;
      for (const block of this.resnets) h = block.forward(h);
      return this.downsamplers?.at(0).conv.forward(h) ?? h;
    });
  }
}

/** Residual blocks of one resolution, then twice the size: nearest neighbour and a convolution. */
class UpBlock extends Module {
  private readonly resnets: ModuleList<VaeResnetBlock>;
  private readonly upsamplers?: ModuleList<Resampler>;

  constructor(inChannels: number, channels: number, { layersPerBlock, normNumGroups }: VaeShape, last: boolean) {
    super();
    this.resnets = this.child('resnets', resnets(layersPerBlock + 1, inChannels, channels, normNumGroups));
    if (last) return;
    this.upsamplers = this.child('upsamplers', new ModuleList([new Resampler(new Conv2d(channels, channels))]));
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      let h = x;
      for (const block of this.resnets) h = block.forward(h);
      return this.upsamplers?.at(0).conv.forward(upsample2x(h)) ?? h;
    });
  }
}

/** Images [B, H, W, C] -> [B, H / f, W / f, latentChannels], f = 2^(resolutions - 1). */
export class VaeEncoder extends Module {
  private readonly convIn: Conv2d;
  private readonly downBlocks: ModuleList<DownBlock>;
  private readonly midBlock: MidBlock;
  private readonly normOut: GroupNorm;
  private readonly convOut: Conv2d;

  constructor(shape: VaeShape) {
    super();
    const { imageChannels, latentChannels, blockOutChannels: channels, normNumGroups: groups } = shape;
    const deepest = channels[channels.length - 1];
    this.convIn = this.child('conv_in', new Conv2d(imageChannels, channels[0]));
    const blocks = channels.map(
      (width, i) => new DownBlock(channels[Math.max(i - 1, 0)], width, shape, i === channels.length - 1),
    );
    this.downBlocks = this.child('down_blocks', new ModuleList(blocks));
    this.midBlock = this.child('mid_block', new MidBlock(deepest, groups));
    this.normOut = this.child('conv_norm_out', new GroupNorm(groups, deepest, eps));
    this.convOut = this.child('conv_out', new Conv2d(deepest, latentChannels));
  }

  forward(x: Tensor): Tensor {
    return scope(() => {
      let h = this.convIn.forward(x);
      for (const block of this.downBlocks) h = block.forward(h);
      return this.convOut.forward(this.normOut.forward(this.midBlock.forward(h), { silu: true }));
    });
  }
}

/** Latents [B, h, w, latentChannels] -> images [B, f h, f w, C]. */
export class VaeDecoder extends Module {
  private readonly convIn: Conv2d;
  private readonly upBlocks: ModuleList<UpBlock>;
  private readonly midBlock: MidBlock;
  private readonly normOut: GroupNorm;
  private readonly convOut: Conv2d;

  constructor(shape: VaeShape) {
    super();
    const { imageChannels, latentChannels, normNumGroups: groups } = shape;
    const channels = [...shape.blockOutChannels].reverse();
    const widest = channels[channels.length - 1];
    this.convIn = this.child('conv_in', new Conv2d(latentChannels, channels[0]));
    const blocks = channels.map(
      (width, i) => new UpBlock(channels[Math.max(i - 1, 0)], width, shape, i === channels.length - 1),
    );
    this.upBlocks = this.child('up_blocks', new ModuleList(blocks));
    this.midBlock = this.child('mid_block', new MidBlock(channels[0], groups));
    this.normOut = this.child('conv_norm_out', new GroupNorm(groups, widest, eps));
    this.convOut = this.child('conv_out', new Conv2d(widest, imageChannels));
  }

  forward(z: Tensor): Tensor {
    return scope(() => {
      let h = this.midBlock.forward(this.convIn.forward(z));
      for (const block of this.upBlocks) h = block.forward(h);
      return this.convOut.forward(this.normOut.forward(h, { silu: true }));
    });
  }
}
