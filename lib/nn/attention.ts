/**
 * TMSA: time-dependent multi-head self-attention with a learned relative position bias, in non-overlapping windows
 * (paper Eq. 3-6). State dict: qkv, qkv_temb, proj, relative_position_bias_table, as NVlabs/DiffiT names them.
 */
import { OptionError, ShapeError } from '../errors.js';
import { attention } from '../ops/attention.js';
import { add } from '../ops/elementwise.js';
import { reshape } from '../ops/index.js';
import { linear } from '../ops/linear.js';
import { widened } from '../ops/precision.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { autocast, scope } from '../scope.js';
import { format } from '../shape.js';
import type { Tensor } from '../tensor.js';
import * as init from './init.js';
import { Linear } from './layers.js';
import { Module } from './module.js';
import { subsetAttention } from './token-subset.js';

/** How the time token reaches the attention; the paper's ablations (Tables 5 and 6) switch it. */
export type AttentionConditioning =
  /** Through q, k and v: TMSA. */
  | 'tmsa'
  /** Through the relative position bias alone: a linear map of the token is added to the table, per sample. */
  | 'bias-only'
  /** Not at all (AdaLN or the MLP carries it). */
  | 'none';

/** Options of {@link TMSA}. */
export interface TMSAOptions {
  /** Channels C of the tokens. */
  dim: number;
  /** Channels of the time token; default `dim`. */
  timeDim?: number;
  /** Heads H; must divide dim. */
  numHeads: number;
  /** Side of the square window, in tokens. */
  windowSize: number;
  /** How the time token reaches it. Default 'tmsa'. */
  conditioning?: AttentionConditioning;
  /** The learned relative position bias B; DiT has none. Default true. */
  positionBias?: boolean;
}

/** Options of {@link TMSA.forward}. */
export interface AttendOptions {
  /** Added in the last kernel; shape of x. */
  residual?: Tensor;
  /** `time` is already the output of qkv_temb, [B, 3C]: see {@link TMSA.project}. */
  projected?: boolean;
  /** x holds some tokens of the window only, [B, K, C]: TokenSubset.pairs, i64 [B, K, K]. */
  pairs?: Tensor;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    dim: is.count,
    timeDim: is.count.optional(),
    numHeads: is.count,
    windowSize: is.count,
    conditioning: z.enum(['tmsa', 'bias-only', 'none']).default('tmsa'),
    positionBias: z.boolean().default(true),
  } satisfies Fields<TMSAOptions>),
);

/**
 * Time-dependent multi-head self-attention with a learned relative position bias, in non-overlapping windows (the paper's Eq. 3-6). State dict:
 * qkv, qkv_temb, proj, relative_position_bias_table, as NVlabs/DiffiT names them.
 */
export class TMSA extends Module {
  /** W_qs, W_ks, W_vs of Eq. 3-5 in one: [3C, C]. */
  readonly qkv: Linear;
  /** W_qt, W_kt, W_vt of Eq. 3-5 in one: [3C, timeDim]. Only with conditioning 'tmsa'. */
  readonly qkvTemb?: Linear;
  /** From the time token to what is added to the table. Only with conditioning 'bias-only'. */
  readonly biasTemb?: Linear;
  /** The output projection [C, C]. */
  readonly proj: Linear;
  /** B of Eq. 6, [(2 windowSize - 1)^2, numHeads]; none without positionBias. */
  readonly table?: Tensor;
  private readonly options: Required<TMSAOptions>;

  /** @throws {OptionError} An option that is missing, unknown or out of range; heads that do not divide dim. */
  constructor(options: TMSAOptions) {
    super();
    const given = parseOptions(optionsSchema, options, 'TMSA');
    const { dim, timeDim = dim, numHeads, windowSize, conditioning, positionBias } = given;
    if (dim % numHeads !== 0) throw new OptionError(`TMSA: numHeads ${numHeads} does not divide dim ${dim}.`);
    if (conditioning === 'bias-only' && !positionBias)
      throw new OptionError('TMSA: conditioning "bias-only" needs positionBias.');
    this.options = { dim, timeDim, numHeads, windowSize, conditioning, positionBias };
    const rows = (2 * windowSize - 1) ** 2;
    if (positionBias) {
      this.table = this.parameter('relative_position_bias_table', init.normal([rows, numHeads], 0.02));
      this.acceptsDerived('relative_position_index');
    }
    this.qkv = new Linear(dim, 3 * dim);
    if (conditioning === 'tmsa') this.qkvTemb = this.child('qkv_temb', new Linear(timeDim, 3 * dim));
    this.child('qkv', this.qkv); // the order of NVlabs' state dict
    if (conditioning === 'bias-only') this.biasTemb = this.child('bias_temb', new Linear(timeDim, rows * numHeads));
    this.proj = this.child('proj', new Linear(dim, dim));
  }

  /**
   * x [B, H, W, C], or [B, N, C] with N = windowSize^2; time token [B, timeDim]. Returns the shape of x.
   *
   * @throws {ShapeError} x of another shape.
   * @throws {OptionError} A window that does not divide the map; no time token where the conditioning needs one.
   */
  forward(x: Tensor, time?: Tensor, { residual, projected = false, pairs }: AttendOptions = {}): Tensor {
    const { dim, numHeads: heads, windowSize } = this.options;
    const [height, width] = x.ndim === 4 ? x.shape.slice(1, 3) : [windowSize, windowSize];
    const tokens = pairs ? pairs.shape[1] : windowSize ** 2;
    if (x.ndim < 3 || x.ndim > 4 || x.shape[x.ndim - 1] !== dim || (x.ndim === 3 && x.shape[1] !== tokens)) {
      throw new ShapeError(
        `TMSA: x is ${format(x.shape)}, expected [B, H, W, ${dim}] or [B, ${tokens}, ${dim}] (a ${windowSize}x${windowSize} window).`,
      );
    }
    return scope(() => {
      const qkv = this.qkv.forward(x);
      const condition = this.condition(x.shape[0], time, projected);
      const y = pairs
        ? subsetAttention(qkv, pairs, { heads, ...condition })
        : attention(reshape(qkv, [x.shape[0], height, width, 3 * dim]), {
            heads,
            window: [windowSize, windowSize],
            ...condition,
          });
      return this.proj.forward(reshape(y, x.shape), { residual });
    });
  }

  /**
   * qkv_temb is linear, so the projection of steps[i] + samples[b] is the sum of their own: steps [S, timeDim] ->
   * [S, 3C] without the bias, and samples [B, timeDim] -> [B, 3C] with it (just the bias [1, 3C] without samples). In f32 under any autocast:
   * it is done once.
   *
   * @throws {OptionError} Another conditioning than 'tmsa'.
   */
  project(steps: Tensor, samples?: Tensor): { steps: Tensor; samples: Tensor } {
    if (!this.qkvTemb) throw new OptionError('TMSA.project: only conditioning "tmsa" projects the time token.');
    const { weight, bias } = this.qkvTemb as Linear & { bias: Tensor };
    return autocast('f32', () => ({
      steps: linear(steps, weight),
      samples: samples ? linear(samples, weight, bias) : reshape(bias, [1, bias.size]),
    }));
  }

  /** What attention takes of the time token, in f32. */
  private condition(batch: number, time: Tensor | undefined, projected: boolean): { time?: Tensor; table?: Tensor } {
    const { conditioning, numHeads } = this.options;
    const { table } = this;
    if (conditioning === 'none') return { table };
    if (!time) throw new OptionError(`TMSA: conditioning "${conditioning}" needs a time token.`);
    if (this.qkvTemb) return { table, time: projected ? time : widened(this.qkvTemb.forward(time)) };
    const shift = (this.biasTemb as Linear).forward(time);
    const own = table as Tensor; // checked in the constructor
    return { table: add(reshape(shift, [batch, own.shape[0], numHeads]), own) };
  }
}
