/**
 * Image-space DiffiT (paper section 3.2, Eq. 9-10): a U-shaped network of DiffiT ResBlocks.
 *
 *     tokenizer conv3x3 -> per resolution L ResBlocks -> stride-2 conv ... -> bottleneck
 *       -> upsample x2 + conv, concatenate the skip of that resolution, L ResBlocks ... -> GroupNorm, SiLU, conv3x3
 *
 * Images are NCHW at the border and NHWC inside. State-dict names: time_embed, label_embed, tokenizer,
 * augment_embed, encoder.I.{blocks.J,down}, decoder.I.{up,blocks.J}, head.{norm,conv}.
 */
import { OptionError, ShapeError } from '../errors.js';
import { type Conditioning, TransformerBlock } from '../nn/block.js';
import { LabelEmbed, TimeEmbed } from '../nn/embed.js';
import { Conv2d, GroupNorm, Linear } from '../nn/layers.js';
import { Module, ModuleList } from '../nn/module.js';
import { checkShapeOf } from '../ops/check.js';
import { add } from '../ops/elementwise.js';
import { concat, permute, upsample2x } from '../ops/index.js';
import { widened } from '../ops/precision.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { autocast, scope } from '../scope.js';
import { format } from '../shape.js';
import type { Tensor } from '../tensor.js';

/** Options of {@link ImageDiffiT}; plain JSON. */
export interface ImageDiffiTConfig {
  /** Side of the square image, in pixels; can be halved once per further resolution. */
  imgResolution: number;
  /** Channels of the image going in. */
  inChannels: number;
  /** Channels of the output. Default: inChannels. */
  outChannels?: number;
  /** Channels at the first resolution, before channelMult; even. */
  baseChannels: number;
  /** One entry per resolution: channels over baseChannels. Each further one halves the resolution. */
  channelMult: readonly number[];
  /** L of the paper: ResBlocks per resolution, one number or one per resolution. */
  numBlocks: number | readonly number[];
  /** Side of the attention window in tokens, one number or one per resolution; a smaller map is one window. */
  windowSize: number | readonly number[];
  /** Channels of the time token. Default 512. */
  timeDim?: number;
  /** Classes; 0, the default, for an unconditional model. */
  numClasses?: number;
  /**
   * Share of the labels that becomes the null class in training, from 0 to below 1; above 0 the model can be sampled with classifier-free
   * guidance. Default 0.
   */
  classDropoutProb?: number;
  /** Augmentation labels that the network can be told about, 9 of diffusion.Augmenter; 0, the default: it takes none. */
  augmentDim?: number;
  /** Dropout in the MLPs, while training, from 0 to below 1. Default 0. */
  dropout?: number;
  /** Attention has one head per this many channels. Default 64. */
  channelsPerHead?: number;
  /** Groups of the GroupNorms. Default min(32, channels / 4). */
  normGroups?: number;
  /** Hidden channels of the MLPs over their own. Default 4. */
  mlpRatio?: number;
  /** Frequencies of the noise level: geometric (DDPM++, EDM) or random (NCSN++). Default 'positional'. */
  timeEmbedding?: 'positional' | 'fourier';
  /** Where the time token enters the blocks; the paper's Tables 5 and 6. Default 'tmsa'. */
  conditioning?: Conditioning;
}

const configSchema = schema((z, is) => {
  const perStage = z.union([is.count, z.array(is.count).min(1)]);
  return z.strictObject({
    imgResolution: is.count,
    inChannels: is.count,
    outChannels: is.count.optional(),
    baseChannels: is.count.multipleOf(2),
    channelMult: z.array(is.count).min(1),
    numBlocks: perStage,
    windowSize: perStage,
    timeDim: is.count.default(512),
    numClasses: is.natural.default(0),
    classDropoutProb: z.number().min(0).lt(1).default(0),
    augmentDim: is.natural.optional(),
    dropout: z.number().min(0).lt(1).default(0),
    channelsPerHead: is.count.default(64),
    normGroups: is.count.optional(),
    mlpRatio: z.number().positive().default(4),
    timeEmbedding: z.enum(['positional', 'fourier']).default('positional'),
    conditioning: z.enum(['tmsa', 'adaln', 'bias-only', 'mlp-only']).default('tmsa'),
  } satisfies Fields<ImageDiffiTConfig>);
});

/** The options of an {@link ImageDiffiT} with their defaults; what has none stays absent where it was not given. */
export type ResolvedImageDiffiTConfig = Required<Omit<ImageDiffiTConfig, 'outChannels' | 'normGroups' | 'augmentDim'>> &
  Pick<ImageDiffiTConfig, 'outChannels' | 'normGroups' | 'augmentDim'>;
type Config = ResolvedImageDiffiTConfig;
type BlockConfig = Pick<Config, 'timeDim' | 'dropout' | 'channelsPerHead' | 'normGroups' | 'mlpRatio' | 'conditioning'>;

/** DiffiT ResBlock (Eq. 9-10): h = Conv3x3(SiLU(GroupNorm(x))); out = Transformer(h, t) + skip(x). */
export class ResBlock extends TransformerBlock {
  readonly norm: GroupNorm;
  readonly conv: Conv2d;
  readonly skip?: Conv2d;

  constructor(inChannels: number, channels: number, windowSize: number, config: BlockConfig) {
    const { timeDim, dropout, channelsPerHead, mlpRatio, conditioning } = config;
    const numHeads = Math.max(1, Math.floor(channels / channelsPerHead));
    super({ dim: channels, timeDim, numHeads, windowSize, mlpRatio, dropout, conditioning });
    this.norm = this.child('norm', new GroupNorm(groupsFor(inChannels, config), inChannels));
    this.conv = this.child('conv', new Conv2d(inChannels, channels));
    if (inChannels !== channels) this.skip = this.child('skip', new Conv2d(inChannels, channels, { kernel: 1 }));
  }

  /** x [B, H, W, in], time token [B, timeDim] -> [B, H, W, out]. */
  override forward(x: Tensor, time: Tensor): Tensor {
    return scope(() => {
      const h = super.forward(this.conv.forward(this.norm.forward(x, { silu: true })), time);
      return this.skip ? this.skip.forward(x, h) : add(h, x);
    });
  }
}

class EncoderStage extends Module {
  readonly blocks: ModuleList<ResBlock>;
  readonly down?: Conv2d;
  constructor(blocks: ResBlock[], down?: Conv2d) {
    super();
    this.blocks = this.child('blocks', new ModuleList(blocks));
    if (down) this.down = this.child('down', down);
  }
}

class DecoderStage extends Module {
  readonly up: Conv2d;
  readonly blocks: ModuleList<ResBlock>;
  constructor(up: Conv2d, blocks: ResBlock[]) {
    super();
    this.up = this.child('up', up);
    this.blocks = this.child('blocks', new ModuleList(blocks));
  }
}

class Head extends Module {
  readonly norm: GroupNorm;
  readonly conv: Conv2d;
  constructor(channels: number, outChannels: number, groups: number) {
    super();
    this.norm = this.child('norm', new GroupNorm(groups, channels));
    this.conv = this.child('conv', new Conv2d(channels, outChannels, { zero: true }));
  }
  forward(x: Tensor): Tensor {
    return this.conv.forward(this.norm.forward(x, { silu: true }));
  }
}

/**
 * Image-space DiffiT (the paper's section 3.2, Eq. 9-10): a U-shaped network of DiffiT ResBlocks. It is F of EDM's preconditioned denoiser, for
 * diffusion.edmLoss and diffusion.sampleEdm.
 */
export class ImageDiffiT extends Module {
  /** The validated options with their defaults; new ImageDiffiT(config) makes the same architecture. */
  readonly config: Readonly<ResolvedImageDiffiTConfig>;
  private readonly timeEmbed: TimeEmbed;
  private readonly labelEmbed?: LabelEmbed;
  private readonly augmentEmbed?: Linear;
  private readonly tokenizer: Conv2d;
  private readonly encoder: ModuleList<EncoderStage>;
  private readonly decoder: ModuleList<DecoderStage>;
  private readonly head: Head;

  /** @throws {OptionError} An option that is missing, unknown or out of range, or a window that does not divide its map. */
  constructor(options: ImageDiffiTConfig) {
    super();
    const config = parseOptions(configSchema, options, 'ImageDiffiT');
    this.config = config;
    const { inChannels, baseChannels, channelMult, timeDim, numClasses, classDropoutProb } = config;
    const stages = channelMult.length;
    const channels = channelMult.map((mult) => mult * baseChannels);
    const windows = windowsOf(config);
    const depths = stageValues('numBlocks', config.numBlocks, stages);
    const blocks = (first: number, i: number): ResBlock[] =>
      Array.from(
        { length: depths[i] },
        (_, j) => new ResBlock(j === 0 ? first : channels[i], channels[i], windows[i], config),
      );

    this.timeEmbed = this.child(
      'time_embed',
      new TimeEmbed({ channels: baseChannels, timeDim, kind: config.timeEmbedding }),
    );
    // As large as the time embedding it is added to (as EDM's class map is), or classes are learnt very late.
    if (numClasses > 0) {
      const labels = { numClasses, dim: timeDim, dropout: classDropoutProb, std: 1 };
      this.labelEmbed = this.child('label_embed', new LabelEmbed(labels));
    }
    if (config.augmentDim) {
      // Added to the frequencies, as EDM does; without a bias, so that no augmentation adds nothing.
      this.augmentEmbed = this.child('augment_embed', new Linear(config.augmentDim, baseChannels, { bias: false }));
    }
    this.tokenizer = this.child('tokenizer', new Conv2d(inChannels, channels[0]));
    const encoder = channels.map((width, i) => {
      const down = i < stages - 1 ? new Conv2d(width, width, { stride: 2 }) : undefined;
      return new EncoderStage(blocks(channels[Math.max(i - 1, 0)], i), down);
    });
    this.encoder = this.child('encoder', new ModuleList(encoder));
    const decoder = channels.slice(0, -1).map((width, i) => {
      const below = channels[i + 1];
      return new DecoderStage(new Conv2d(below, below), blocks(below + width, i));
    });
    this.decoder = this.child('decoder', new ModuleList(decoder));
    this.head = this.child(
      'head',
      new Head(channels[0], config.outChannels ?? inChannels, groupsFor(channels[0], config)),
    );
  }

  /** The label that stands for no class; undefined unless the model was trained with classDropoutProb. */
  get nullClass(): number | undefined {
    const { numClasses, classDropoutProb } = this.config;
    return numClasses > 0 && classDropoutProb > 0 ? numClasses : undefined;
  }

  /**
   * F(x; c_noise): x [B, C, S, S] (already scaled by c_in), cNoise [B], labels i64 [B] when the model has classes
   * -> [B, outChannels, S, S], f32 under any autocast. A label out of range rejects the next awaited read. augment [B, augmentDim]: what
   * diffusion.Augmenter did to x; left out, nothing.
   *
   * @throws {ShapeError} x, cNoise, labels or augment of another shape.
   * @throws {OptionError} Labels missing, or given to an unconditional model; augmentation labels given to a model without augmentDim.
   */
  forward(x: Tensor, cNoise: Tensor, labels?: Tensor, augment?: Tensor): Tensor {
    const { inChannels, imgResolution: side, numClasses } = this.config;
    const expected = [x.shape[0], inChannels, side, side];
    if (x.ndim !== 4 || x.shape.some((n, i) => n !== expected[i])) {
      throw new ShapeError(`ImageDiffiT: x is ${format(x.shape)}, expected [B, ${inChannels}, ${side}, ${side}].`);
    }
    if ((labels !== undefined) !== numClasses > 0) {
      throw new OptionError(
        labels
          ? 'ImageDiffiT: labels given to an unconditional model.'
          : `ImageDiffiT: this model is class-conditional; give labels [B] in 0..${numClasses - 1}.`,
      );
    }
    checkShapeOf('ImageDiffiT', 'cNoise', cNoise, [x.shape[0]]);
    checkShapeOf('ImageDiffiT', 'labels', labels, [x.shape[0]]);
    if (augment && !this.augmentEmbed)
      throw new OptionError('ImageDiffiT: augmentation labels given to a model without augmentDim.');
    checkShapeOf('ImageDiffiT', 'augment', augment, [x.shape[0], this.config.augmentDim ?? 0]);
    return scope(() => {
      const told = augment && autocast('f32', () => this.augmentEmbed?.forward(augment));
      const embedded = this.timeEmbed.forward(cNoise, told);
      const time = this.labelEmbed && labels ? add(embedded, this.labelEmbed.forward(labels)) : embedded;
      let h = this.tokenizer.forward(permute(x, [0, 2, 3, 1]));
      const skips: Tensor[] = [];
      for (const { blocks, down } of this.encoder) {
        for (const block of blocks) h = block.forward(h, time);
        if (down) {
          skips.push(h);
          h = down.forward(h);
        }
      }
      for (let i = this.decoder.length - 1; i >= 0; i--) {
        const { up, blocks } = this.decoder.at(i);
        h = concat([up.forward(upsample2x(h)), skips[i]], 3);
        for (const block of blocks) h = block.forward(h, time);
      }
      return widened(permute(this.head.forward(h), [0, 3, 1, 2]));
    });
  }
}

function groupsFor(channels: number, { normGroups }: Pick<Config, 'normGroups'>): number {
  return normGroups ?? Math.max(1, Math.min(32, Math.floor(channels / 4)));
}

function stageValues(option: string, value: number | readonly number[], stages: number): readonly number[] {
  if (typeof value === 'number') return new Array<number>(stages).fill(value);
  if (value.length === stages) return value;
  throw new OptionError(`ImageDiffiT: ${option} has ${value.length} entries for ${stages} resolutions.`);
}

/** The window of each resolution; a map smaller than the window is one window. */
function windowsOf({ imgResolution, channelMult, windowSize }: Config): number[] {
  return stageValues('windowSize', windowSize, channelMult.length).map((asked, i) => {
    const side = imgResolution / 2 ** i;
    if (!Number.isInteger(side)) {
      throw new OptionError(
        `ImageDiffiT: imgResolution ${imgResolution} cannot be halved ${i} times for ${channelMult.length} resolutions.`,
      );
    }
    const window = Math.min(asked, side);
    if (side % window !== 0) {
      throw new OptionError(
        `ImageDiffiT: windowSize ${window} does not divide the ${side}x${side} map of resolution ${i}.`,
      );
    }
    return window;
  });
}
