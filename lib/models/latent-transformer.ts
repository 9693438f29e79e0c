/**
 * Transformers on latents: LatentDiffiT (paper section 3.3, as NVlabs/DiffiT released it; SPEC section 3) and its baseline
 * DiT (Peebles & Xie 2023, arXiv 2212.09748). They share every layer but the conditioning: TMSA with a relative position
 * bias, or AdaLN-Zero.
 *
 *     tokens = patches W + positions;  c = time(t) + label(y)
 *     depth x block(tokens, c)
 *     DiffiT: Linear(SiLU(LN(tokens)));  DiT: Linear(modulate(LN(tokens), c));  then back to an image
 *
 * State-dict names are the released ones: x_embedder.proj, pos_embed, t_embedder.mlp.{0,2}, y_embedder.embedding_table,
 * blocks.I.{attn,mlp,adaLN_modulation}, final_layer.{linear,adaLN_modulation}.
 */
import { z } from 'zod';
import { checkpoint } from '../autograd.js';
import { OptionError, ShapeError, StateDictError } from '../errors.js';
import { Modulation, modulate, TransformerBlock } from '../nn/block.js';
import { LabelEmbed, TimeEmbed } from '../nn/embed.js';
import { guidanceScale, guide } from '../nn/guidance.js';
import * as init from '../nn/init.js';
import { Linear } from '../nn/layers.js';
import { Module, ModuleList } from '../nn/module.js';
import { PatchEmbed, sinCosPositions, unpatchify } from '../nn/patch.js';
import { checkShapeOf } from '../ops/check.js';
import { add, silu } from '../ops/elementwise.js';
import { concat, slice } from '../ops/index.js';
import { layerNorm } from '../ops/norm.js';
import { parseOptions } from '../options.js';
import { scope } from '../scope.js';
import { format, type Shape } from '../shape.js';
import type { Tensor } from '../tensor.js';

const count = z.int().min(1);

const configSchema = z.strictObject({
  /** Side of the latent: 32 for 256 px, 64 for 512 px with Stable Diffusion's VAE. */
  inputSize: count.default(32),
  /** Side of a patch, which becomes one token; divides inputSize. */
  patchSize: count.default(2),
  /** Channels of the latent. */
  inChannels: count.default(4),
  /** Channels of a token; a multiple of 4 that numHeads divides. */
  hiddenSize: count.multipleOf(4).default(1152),
  /** Blocks. */
  depth: count.default(28),
  numHeads: count.default(16),
  /** Hidden channels of the MLPs over hiddenSize. */
  mlpRatio: z.number().positive().default(4),
  numClasses: count.default(1000),
  /** Labels that become the null class in training; above 0 the model can be guided. */
  classDropoutProb: z.number().min(0).lt(1).default(0.1),
  /** Predict the variance too: twice as many channels out as in. */
  learnSigma: z.boolean().default(true),
  /** Recompute each block in the backward pass: memory of one block for one more forward pass. */
  checkpointBlocks: z.boolean().default(false),
});

/** Options of {@link LatentDiffiT} and {@link DiT}; plain JSON. The defaults are XL/2 at 256 px. */
export type LatentConfig = z.input<typeof configSchema>;

/** Options of {@link LatentTransformer.forwardWithCfg}. */
export interface CfgOptions {
  /** The guidance scale; 1 is none. */
  cfgScale: number;
  /** Exponent of the power-cosine scale; null: constant. Default: 4 up to input size 32, else constant, as released. */
  scalePow?: number | null;
  /** Default 1000. */
  diffusionSteps?: number;
  /** Channels that are guided, from the first. Default 3, as released; 'all' guides the noise channels. */
  cfgChannels?: number | 'all';
}

/** Frequencies of the time embedding: 128 cosines, 128 sines. */
const timeChannels = 256;
/** Standard deviation of the initial time MLP and label vectors. */
const embeddingStd = 0.02;
/** Pixels per latent of Stable Diffusion's VAE, for messages. */
const vaeFactor = 8;

/** Last layer. State dict: linear, and adaLN_modulation with DiT's conditioning. */
class FinalLayer extends Module {
  readonly linear: Linear;
  readonly modulation?: Modulation;
  constructor(dim: number, out: number, modulated: boolean) {
    super();
    this.linear = this.child('linear', new Linear(dim, out, { initial: init.zeros }));
    if (modulated) this.modulation = this.child('adaLN_modulation', new Modulation(dim, dim, 2));
  }
  forward(x: Tensor, c: Tensor): Tensor {
    if (!this.modulation) return this.linear.forward(silu(layerNorm(x)));
    const [shift, scale] = this.modulation.forward(c, x.ndim);
    return this.linear.forward(modulate(x, shift, scale));
  }
}

export abstract class LatentTransformer extends Module {
  /** The validated options with their defaults; the same class made with them is the same architecture. */
  readonly config: Readonly<z.output<typeof configSchema>>;
  private readonly positions: Tensor;
  private readonly patches: PatchEmbed;
  private readonly timeEmbed: TimeEmbed;
  private readonly labelEmbed: LabelEmbed;
  private readonly blocks: ModuleList<TransformerBlock>;
  private readonly final: FinalLayer;

  /** Throws OptionError naming the option. */
  constructor(
    private readonly name: string,
    conditioning: 'tmsa' | 'adaln',
    options: LatentConfig,
  ) {
    super();
    const config = parseOptions(configSchema, options, name);
    this.config = config;
    const { inputSize, patchSize, inChannels, hiddenSize: dim, depth, numHeads, mlpRatio, numClasses } = config;
    if (inputSize % patchSize !== 0) {
      throw new OptionError(`${name}: patchSize ${patchSize} does not divide inputSize ${inputSize}.`);
    }
    if (dim % numHeads !== 0) {
      throw new OptionError(`${name}: numHeads ${numHeads} does not divide hiddenSize ${dim}.`);
    }
    const grid = inputSize / patchSize;
    this.positions = this.buffer('pos_embed', sinCosPositions(grid, dim));
    this.patches = this.child('x_embedder', new PatchEmbed(patchSize, inChannels, dim));
    const initial: init.Initializer = (shape) => init.normal(shape, embeddingStd);
    const time = { channels: timeChannels, timeDim: dim, kind: 'timestep', initial } as const;
    this.timeEmbed = this.child('t_embedder', new TimeEmbed(time));
    const labels = { numClasses, dim, dropout: config.classDropoutProb, std: embeddingStd };
    this.labelEmbed = this.child('y_embedder.embedding_table', new LabelEmbed(labels));
    const positionBias = conditioning === 'tmsa';
    const block = { dim, timeDim: dim, numHeads, windowSize: grid, mlpRatio, conditioning, positionBias };
    const blocks = Array.from({ length: depth }, () => new TransformerBlock(block));
    this.blocks = this.child('blocks', new ModuleList(blocks));
    const out = patchSize ** 2 * this.outChannels;
    this.final = this.child('final_layer', new FinalLayer(dim, out, conditioning === 'adaln'));
  }

  /** Channels of the output: noise, and with learnSigma the variance. */
  get outChannels(): number {
    return this.config.inChannels * (this.config.learnSigma ? 2 : 1);
  }

  /** The label that stands for no class; undefined without classDropoutProb. */
  get nullClass(): number | undefined {
    const { numClasses, classDropoutProb } = this.config;
    return classDropoutProb > 0 ? numClasses : undefined;
  }

  /**
   * x [B, C, S, S], timesteps t f32 [B] (0..1000, fractions allowed), labels y i64 [B] -> [B, outChannels, S, S].
   * y may be [2B], two label sets for the same images (guidance): the result is [2B, ...], and what does not depend on
   * the label is computed once. Throws ShapeError.
   */
  forward(x: Tensor, t: Tensor, y: Tensor): Tensor {
    const { inChannels, inputSize: side, patchSize } = this.config;
    const batch = x.shape[0];
    const expected = [batch, inChannels, side, side];
    if (x.ndim !== 4 || x.shape.some((n, i) => n !== expected[i])) {
      throw new ShapeError(`${this.name}: x is ${format(x.shape)}, expected [B, ${inChannels}, ${side}, ${side}].`);
    }
    checkShapeOf(this.name, 't', t, [batch]);
    const twice = y.ndim === 1 && y.shape[0] === 2 * batch;
    if (!twice) checkShapeOf(this.name, 'y', y, [batch]);
    return scope(() => {
      const both = (z: Tensor): Tensor => (twice ? concat([z, z], 0) : z);
      const c = add(both(this.timeEmbed.forward(t)), this.labelEmbed.forward(y));
      let h = both(add(this.patches.forward(x), this.positions));
      for (const block of this.blocks) h = this.run(block, h, c);
      return unpatchify(this.final.forward(h, c), patchSize);
    });
  }

  /**
   * The released model's guided forward: a batch [conditional half | null half] of x [2B, C, S, S], t [2B], y [2B]. The
   * second half of x is not read. Guided channels are equal in both halves of the result; the others are each half's own.
   */
  forwardWithCfg(x: Tensor, t: Tensor, y: Tensor, options: CfgOptions): Tensor {
    const { cfgScale, diffusionSteps, cfgChannels = 3 } = options;
    const { inputSize, inChannels } = this.config;
    const batch = x.shape[0];
    if (batch % 2 !== 0) throw new ShapeError(`${this.name}: guidance takes two halves, got a batch of ${batch}.`);
    const scalePow = options.scalePow === undefined ? (inputSize <= 32 ? 4 : null) : options.scalePow;
    return scope(() => {
      const schedule = { cfgScale, scalePow: scalePow ?? undefined, diffusionSteps };
      const scale = guidanceScale(slice(t, 0, 0, batch / 2), schedule);
      const images = slice(x, 0, 0, batch / 2);
      const out = this.forward(concat([images, images], 0), t, y);
      const [cond, uncond] = [slice(out, 0, 0, batch / 2), slice(out, 0, batch / 2, batch)];
      const channels = cfgChannels === 'all' ? inChannels : cfgChannels;
      const guided = guide(cond, uncond, scale, channels);
      const rest = slice(uncond, 1, channels, this.outChannels);
      return concat([guided, concat([slice(guided, 1, 0, channels), rest], 1)], 0);
    });
  }

  /** As Module's; weights of another resolution are named as that. */
  override checkStateDict(state: Readonly<Record<string, { shape: Shape }>>, options: { strict?: boolean } = {}): void {
    const given = state.pos_embed?.shape;
    const { inputSize, patchSize } = this.config;
    const [mine, theirs] = [inputSize, Math.sqrt(given?.[1] ?? 0) * patchSize];
    if (given?.length === 3 && theirs !== mine) {
      const size = (side: number): string => `input size ${side} (${side * vaeFactor} px)`;
      throw new StateDictError(
        `${this.name}: these weights are for ${size(theirs)}, the model for ${size(mine)}; make it with inputSize ${theirs} ` +
          `(on the command line: a preset of that size).`,
        { missing: [], unexpected: [], misshapen: ['pos_embed'] },
      );
    }
    super.checkStateDict(state, options);
  }

  private run(block: TransformerBlock, h: Tensor, c: Tensor): Tensor {
    if (!this.config.checkpointBlocks) return block.forward(h, c);
    return checkpoint((x, time) => block.forward(x, time), h, c);
  }
}

/** Latent DiffiT: TMSA conditioning. */
export class LatentDiffiT extends LatentTransformer {
  constructor(options: LatentConfig = {}) {
    super('LatentDiffiT', 'tmsa', options);
  }
}

/** DiT: AdaLN-Zero conditioning, no position bias in the attention. */
export class DiT extends LatentTransformer {
  constructor(options: LatentConfig = {}) {
    super('DiT', 'adaln', options);
  }
}
