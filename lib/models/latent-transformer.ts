/**
 * What LatentDiffiT and DiT share: a transformer on the patches of a latent image, conditioned by time and class.
 *
 *     tokens = patches(x) W + positions;  c = time(t) + class(y);  depth blocks over (tokens, c);  head -> patches
 *
 * State-dict names are those of NVlabs/DiffiT and facebookresearch/DiT: pos_embed, x_embedder, t_embedder, y_embedder,
 * blocks.I, final_layer. With maskRatio it can also be trained as MDT (Gao et al., arXiv 2303.14389), which adds MDT's
 * decoder_pos_embed, mask_token and sideblocks.0.
 */
import { checkpoint } from '../autograd.js';
import { OptionError, ShapeError, StateDictError } from '../errors.js';
import { Modulation, modulate, TransformerBlock } from '../nn/block.js';
import { LabelEmbed, TimeEmbed } from '../nn/embed.js';
import { guidanceScale, guideHalves } from '../nn/guidance.js';
import * as init from '../nn/init.js';
import { Linear } from '../nn/layers.js';
import { Module, ModuleList, type StateDictOptions } from '../nn/module.js';
import { PatchEmbed, sinCosPositions, unpatchify } from '../nn/patch.js';
import { TokenSubset } from '../nn/token-subset.js';
import { add, silu, where } from '../ops/elementwise.js';
import { concat, slice } from '../ops/index.js';
import { layerNorm } from '../ops/norm.js';
import { widened } from '../ops/precision.js';
import type { RandomKey } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { noGrad, scope } from '../scope.js';
import { format, type Shape } from '../shape.js';
import { type Tensor, tensor, zeros } from '../tensor.js';
import { StepNetwork } from './step-network.js';

/** Options of {@link LatentDiffiT} and {@link DiT}; plain JSON. The defaults are XL/2 for 256 px. */
export interface LatentTransformerConfig {
  /** Side of the latent, S: 32 for images of 256 px, 64 for 512 px. Default 32. */
  inputSize?: number;
  /** Side of a patch; divides inputSize. Default 2. */
  patchSize?: number;
  /** Channels of the latent. Default 4. */
  inChannels?: number;
  /** Channels C of the tokens; a multiple of 4. Default 1152. */
  hiddenSize?: number;
  /** Transformer blocks. Default 28. */
  depth?: number;
  /** Attention heads; divides hiddenSize. Default 16. */
  numHeads?: number;
  /** Hidden channels of the MLPs over C. Default 4. */
  mlpRatio?: number;
  /** Classes; 0 for an unconditional model. Default 1000. */
  numClasses?: number;
  /** Share of the labels that becomes the null class in training, from 0 to below 1; 0: no null class, and no guidance. Default 0.1. */
  classDropoutProb?: number;
  /** Also predict the variance: 2 inChannels out. Default true. */
  learnSigma?: boolean;
  /** MDT's masked training: the share of tokens that forwardMasked() leaves out, from 0 to below 1. Default 0: none, and the plain model. */
  maskRatio?: number;
  /** With maskRatio: how many of the last blocks see all tokens; fewer than depth. Default 4. */
  decodeLayers?: number;
}

const configSchema = schema((z, is) =>
  z.strictObject({
    inputSize: is.count.default(32),
    patchSize: is.count.default(2),
    inChannels: is.count.default(4),
    hiddenSize: is.count.multipleOf(4).default(1152),
    depth: is.count.default(28),
    numHeads: is.count.default(16),
    mlpRatio: z.number().positive().default(4),
    numClasses: is.natural.default(1000),
    classDropoutProb: z.number().min(0).lt(1).default(0.1),
    learnSigma: z.boolean().default(true),
    maskRatio: z.number().min(0).lt(1).default(0),
    decodeLayers: is.count.default(4),
  } satisfies Fields<LatentTransformerConfig>),
);

/** How the blocks and the head get the time token: DiffiT's TMSA, or DiT's AdaLN-Zero (without a position bias). */
export type LatentConditioning = 'tmsa' | 'adaln';

/** Options of {@link LatentTransformer.forwardWithCfg}. */
export interface CfgOptions {
  /** The guidance scale s; 1 is the conditional model alone. */
  cfgScale: number;
  /** Exponent of the power-cosine scale, or 'constant'. Default: 4 up to inputSize 32, 'constant' above. */
  scalePow?: number | 'constant';
  /** Timesteps of training. Default 1000. */
  diffusionSteps?: number;
  /** How many of the first channels are guided, or 'all' inChannels. Default 3. */
  cfgChannels?: number | 'all';
}

const cfgSchema = schema((z, is) =>
  z.strictObject({
    cfgScale: z.number(),
    scalePow: z.union([z.number().positive(), z.literal('constant')]).optional(),
    diffusionSteps: is.count.optional(),
    cfgChannels: z.union([is.count, z.literal('all')]).default(3),
  } satisfies Fields<CfgOptions>),
);

/** Options of {@link LatentTransformer.forwardMasked}: the tokens that are kept, or the random key they are drawn with. */
export interface MaskOptions extends Partial<RandomKey> {
  /** The tokens the first blocks see. Default: drawn, a share of maskRatio left out. Stays the caller's. */
  kept?: TokenSubset;
}

const maskSchema = schema((z, is) =>
  z.strictObject({
    kept: is.value<TokenSubset>((value) => value instanceof TokenSubset, 'a TokenSubset').optional(),
    ...is.random,
  } satisfies Fields<MaskOptions>),
);

/** Per block what it is conditioned on: the time token [B, C], or its projections [B, 3C]. */
interface Condition {
  token?: Tensor;
  projections?: readonly Tensor[];
}

/** DiffiT: LayerNorm, SiLU, Linear. DiT: modulated LayerNorm, Linear. State dict: linear, adaLN_modulation.1. */
class FinalLayer extends Module {
  readonly linear: Linear;
  readonly modulation?: Modulation;
  constructor(dim: number, outputs: number, conditioning: LatentConditioning) {
    super();
    this.linear = this.child('linear', new Linear(dim, outputs, { zero: true }));
    if (conditioning === 'adaln') this.modulation = this.child('adaLN_modulation', new Modulation(dim, dim, 2));
  }
  forward(x: Tensor, time: Tensor | undefined): Tensor {
    return scope(() => {
      if (!this.modulation) return this.linear.forward(silu(layerNorm(x)));
      const [shift, scale] = this.modulation.forward(time as Tensor, x.ndim);
      return this.linear.forward(modulate(x, shift, scale));
    });
  }
}

/**
 * What {@link LatentDiffiT} and {@link DiT} share: a transformer on the patches of a latent, conditioned by time and class. It is a network for
 * diffusion.GaussianDiffusion. State-dict names are those of NVlabs/DiffiT and facebookresearch/DiT.
 */
export abstract class LatentTransformer extends Module {
  /** The validated options with their defaults. */
  readonly config: Readonly<Required<LatentTransformerConfig>>;
  /** Recompute each block in backward() instead of keeping its activations: less memory, a third more time. Default false. */
  gradientCheckpointing = false;
  private readonly name: string;
  private readonly conditioning: LatentConditioning;
  /** Tokens along one side. */
  private readonly side: number;
  private readonly positions: Tensor;
  private readonly patches: PatchEmbed;
  private readonly timeEmbed: TimeEmbed;
  private readonly labelEmbed?: LabelEmbed;
  private readonly blocks: ModuleList<TransformerBlock>;
  private readonly head: FinalLayer;
  private readonly masking?: { positions: Tensor; token: Tensor; side: ModuleList<TransformerBlock> };

  /**
   * @param name - The class, for messages.
   * @throws {OptionError} An option that is unknown or out of range, or one that does not divide another.
   */
  constructor(name: string, options: LatentTransformerConfig, conditioning: LatentConditioning) {
    super();
    const config = parseOptions(configSchema, options, name);
    const { inputSize, patchSize, inChannels, hiddenSize: dim, depth, numHeads, mlpRatio } = config;
    if (inputSize % patchSize !== 0)
      throw new OptionError(`${name}: patchSize ${patchSize} does not divide inputSize ${inputSize}.`);
    if (dim % numHeads !== 0) throw new OptionError(`${name}: numHeads ${numHeads} does not divide hiddenSize ${dim}.`);
    if (config.maskRatio > 0 && config.decodeLayers >= depth)
      throw new OptionError(`${name}: decodeLayers ${config.decodeLayers} leaves no encoder in depth ${depth}.`);
    this.config = config;
    this.name = name;
    this.conditioning = conditioning;
    this.side = inputSize / patchSize;
    const blocks = (length: number): ModuleList<TransformerBlock> => {
      const positionBias = conditioning === 'tmsa';
      const block = { dim, timeDim: dim, numHeads, windowSize: this.side, mlpRatio, conditioning, positionBias };
      return new ModuleList(Array.from({ length }, () => new TransformerBlock(block)));
    };
    this.positions = this.buffer('pos_embed', sinCosPositions(this.side, dim));
    if (config.maskRatio > 0) {
      const positions = this.parameter('decoder_pos_embed', sinCosPositions(this.side, dim));
      const token = this.parameter('mask_token', init.normal([1, 1, dim], 0.02));
      this.masking = { positions, token, side: this.child('sideblocks', blocks(1)) };
    }
    this.patches = this.child('x_embedder', new PatchEmbed(patchSize, inChannels, dim));
    const time = { channels: 256, timeDim: dim, kind: 'timestep', std: 0.02 } as const;
    this.timeEmbed = this.child('t_embedder', new TimeEmbed(time));
    if (config.numClasses > 0) {
      const labels = { numClasses: config.numClasses, dim, dropout: config.classDropoutProb };
      this.labelEmbed = this.child('y_embedder.embedding_table', new LabelEmbed(labels));
    }
    this.blocks = this.child('blocks', blocks(depth));
    this.head = this.child('final_layer', new FinalLayer(dim, patchSize ** 2 * this.outChannels, conditioning));
  }

  /** Channels of the output: inChannels of noise and, with learnSigma, as many of variance. */
  get outChannels(): number {
    return this.config.inChannels * (this.config.learnSigma ? 2 : 1);
  }

  /** The label that stands for no class; undefined for a model that cannot be guided. */
  get nullClass(): number | undefined {
    const { numClasses, classDropoutProb } = this.config;
    return numClasses > 0 && classDropoutProb > 0 ? numClasses : undefined;
  }

  /**
   * x [B, inChannels, S, S], timesteps t f32 [B] (may be fractional), labels y i64 [B] when the model has classes
   * -> [B, outChannels, S, S], f32 under any autocast. With y (and t, if it differs) [2B], the same images under two sets of labels, as guidance
   * needs them: [2B, ...], the first set first. A label out of range rejects the next awaited read.
   *
   * @throws {ShapeError} x, t or y of another shape.
   * @throws {OptionError} Labels missing, or given to an unconditional model.
   */
  forward(x: Tensor, t: Tensor, y?: Tensor): Tensor {
    const batch = this.checkInputs(x, y, t);
    return scope(() => {
      const token = this.timeToken(t, y, batch);
      return this.decode(this.embed(x, batch), { token });
    });
  }

  /**
   * Classifier-free guidance as the released code batches it: x, t and y are [2B], conditional labels first and then the
   * null class; the second half of x is not read. -> [2B, outChannels, S, S], where both halves hold the guided noise
   * and the other channels are each half's own.
   *
   * @throws {OptionError} The model has no null class; an option that is missing, unknown or out of range.
   * @throws {ShapeError} x, t and y that are not one even batch.
   */
  forwardWithCfg(x: Tensor, t: Tensor, y: Tensor, options: CfgOptions): Tensor {
    const { inputSize, inChannels } = this.config;
    const given = parseOptions(cfgSchema, options, `${this.name}.forwardWithCfg`);
    const { cfgScale, scalePow = inputSize <= 32 ? 4 : 'constant', diffusionSteps, cfgChannels } = given;
    if (this.nullClass === undefined) {
      throw new OptionError(`${this.name}: guidance needs a null class; this model has none (classDropoutProb is 0).`);
    }
    const half = x.shape[0] / 2;
    if (!Number.isInteger(half) || t.shape[0] !== x.shape[0] || y.shape[0] !== x.shape[0]) {
      throw new ShapeError(
        `${this.name}: x is ${format(x.shape)}, t ${format(t.shape)} and y ${format(y.shape)}, expected the same even batch.`,
      );
    }
    return scope(() => {
      const scale = guidanceScale(slice(t, 0, 0, half), {
        cfgScale,
        diffusionSteps,
        scalePow: scalePow === 'constant' ? undefined : scalePow,
      });
      const output = this.forward(slice(x, 0, 0, half), t, y);
      return guideHalves(output, scale, cfgChannels === 'all' ? inChannels : cfgChannels);
    });
  }

  /**
   * The model at given timesteps and labels (i64 [B], or [2B] as for forward()): `forward(x, i)` is forward(x,
   * timesteps[i], y), with what does not depend on x computed once. Dispose it after the last step, or make it with `using`. Not for training.
   */
  conditionOn(timesteps: readonly number[], y?: Tensor): StepNetwork {
    return noGrad(() =>
      scope(() => {
        const steps = this.timeEmbed.forward(tensor([...timesteps], { device: this.positions.device }));
        const samples = y && this.labelEmbed?.forward(y);
        const tmsa = this.conditioning === 'tmsa';
        const parts = tmsa ? [...this.blocks].map(({ attn }) => attn.project(steps, samples)) : [{ steps, samples }];
        const run = (x: Tensor, conditions: readonly Tensor[]): Tensor => {
          const batch = this.checkInputs(x, y);
          const rows = conditions.map((c) =>
            c.shape[0] === batch ? c : add(c, zeros([batch, 1], { device: x.device })),
          );
          return this.decode(this.embed(x, batch), tmsa ? { projections: rows } : { token: rows[0] });
        };
        return new StepNetwork(parts, run, this);
      }),
    );
  }

  /**
   * The masked pass of MDT: the first blocks see the tokens in `kept` alone; a side block fills in the others from a
   * learned token, and the last decodeLayers blocks see all. Arguments and result as forward(). `kept` is drawn, with
   * maskRatio, from `seed` and `stream`, by default from the default generator. The loss of MDT is that of forward() plus
   * that of forwardMasked().
   *
   * @throws {OptionError} The model was made without maskRatio; an option that is unknown or out of range.
   * @throws {ShapeError} x, t, y or kept of another shape.
   */
  forwardMasked(x: Tensor, t: Tensor, y?: Tensor, options: MaskOptions = {}): Tensor {
    const { kept, ...key } = parseOptions(maskSchema, options, `${this.name}.forwardMasked`);
    if (!this.masking) throw new OptionError(`${this.name}: forwardMasked() needs a model with maskRatio above 0.`);
    const [batch] = x.shape;
    if (this.checkInputs(x, y, t) !== batch) {
      throw new ShapeError(`${this.name}: y is ${format((y as Tensor).shape)}, expected [${batch}].`);
    }
    if (kept && (kept.positions.shape[0] !== batch || kept.side !== this.side)) {
      throw new ShapeError(
        `${this.name}: kept is ${format(kept.positions.shape)} of ${kept.side ** 2} tokens, expected ${batch} samples of ${this.side ** 2} tokens.`,
      );
    }
    const { positions, token: blank, side } = this.masking;
    return scope(() => {
      const subset = kept ?? TokenSubset.random(batch, this.side, this.config.maskRatio, { ...key, device: x.device });
      const token = this.timeToken(t, y, batch);
      const seen = this.through(0, this.encoders, subset.take(this.embed(x, batch)), { token }, subset);
      const filled = add(subset.restore(seen, blank), positions);
      const guessed = side.at(0).forward(filled, token);
      const all = where(subset.indicator(), filled, guessed);
      return this.output(this.through(this.encoders, this.blocks.length, all, { token }), { token });
    });
  }

  /** As Module.checkStateDict; a checkpoint of another resolution gives a StateDictError that names both. */
  override checkStateDict(state: Readonly<Record<string, { shape: Shape }>>, options?: StateDictOptions): void {
    const { inputSize, patchSize } = this.config;
    const given = state.pos_embed?.shape ?? [];
    const size = Math.sqrt(given[1]) * patchSize;
    if (given.length === 3 && size !== inputSize && Number.isInteger(size)) {
      const misshapen = [`pos_embed: ${format(given)}, expected ${format(this.positions.shape)}`];
      throw new StateDictError(
        `${this.name}: this checkpoint is for inputSize ${size} (images of ${8 * size} px), the model is for inputSize ${inputSize} ` +
          `(${8 * inputSize} px): ${misshapen[0]}. Make the model with inputSize: ${size}.`,
        { missing: [], unexpected: [], misshapen },
      );
    }
    super.checkStateDict(state, options);
  }

  /** Blocks before the decoder; all when the model knows no masking. */
  private get encoders(): number {
    return this.blocks.length - (this.masking ? this.config.decodeLayers : 0);
  }

  /** [B, C, S, S] -> tokens [batch, N, C]; twice the same when batch is 2B. */
  private embed(x: Tensor, batch: number): Tensor {
    return scope(() => {
      const tokens = add(this.patches.forward(x), this.positions);
      return batch === x.shape[0] ? tokens : concat([tokens, tokens], 0);
    });
  }

  private timeToken(t: Tensor, y: Tensor | undefined, batch: number): Tensor {
    return scope(() => {
      const embedded = this.timeEmbed.forward(t);
      const time = embedded.shape[0] === batch ? embedded : concat([embedded, embedded], 0);
      return this.labelEmbed && y ? add(time, this.labelEmbed.forward(y)) : time;
    });
  }

  private decode(tokens: Tensor, condition: Condition): Tensor {
    const seen = this.through(0, this.encoders, tokens, condition);
    if (!this.masking) return this.output(seen, condition);
    const all = add(seen, this.masking.positions);
    return this.output(this.through(this.encoders, this.blocks.length, all, condition), condition);
  }

  /** Blocks [first, last) over tokens h, which are freed. */
  private through(
    first: number,
    last: number,
    h: Tensor,
    { token, projections }: Condition,
    kept?: TokenSubset,
  ): Tensor {
    const pairs = kept ? [kept.pairs] : [];
    for (let i = first; i < last; i++) {
      const run = (x: Tensor, time: Tensor, ...rest: Tensor[]): Tensor =>
        this.blocks.at(i).forward(x, time, { projected: projections !== undefined, pairs: rest[0] });
      const time = projections ? projections[i] : (token as Tensor);
      // Everything the second run needs goes in as an input, which the tape keeps.
      const next = this.gradientCheckpointing ? checkpoint(run, h, time, ...pairs) : run(h, time, ...pairs);
      h.dispose();
      h = next;
    }
    return h;
  }

  private output(tokens: Tensor, { token }: Condition): Tensor {
    return scope(() => widened(unpatchify(this.head.forward(tokens, token), this.side, this.config.patchSize)));
  }

  /** Throws unless the inputs fit the model and each other; the batch of the output. */
  private checkInputs(x: Tensor, y: Tensor | undefined, t?: Tensor): number {
    const { inChannels, inputSize, numClasses } = this.config;
    const [batch] = x.shape;
    const expected = [batch, inChannels, inputSize, inputSize];
    if (x.ndim !== 4 || x.shape.some((n, i) => n !== expected[i])) {
      throw new ShapeError(
        `${this.name}: x is ${format(x.shape)}, expected [B, ${inChannels}, ${inputSize}, ${inputSize}].`,
      );
    }
    if ((y !== undefined) !== numClasses > 0) {
      throw new OptionError(
        y
          ? `${this.name}: labels given to an unconditional model.`
          : `${this.name}: this model is class-conditional; give labels y [B] in 0..${numClasses - 1}.`,
      );
    }
    const fits = (given: Tensor | undefined, most: number): boolean =>
      !given || (given.ndim === 1 && (given.shape[0] === batch || given.shape[0] === most));
    if (!fits(y, 2 * batch)) {
      throw new ShapeError(`${this.name}: y is ${format((y as Tensor).shape)}, expected [${batch}] or [${2 * batch}].`);
    }
    const result = y ? y.shape[0] : batch;
    if (!fits(t, result)) {
      throw new ShapeError(`${this.name}: t is ${format((t as Tensor).shape)}, expected [${batch}].`);
    }
    return result;
  }
}
