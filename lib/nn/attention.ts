/**
 * TMSA: time-dependent multi-head self-attention with a learned relative position bias, in non-overlapping windows
 * (paper Eq. 3-6). State dict: qkv, qkv_temb, proj, relative_position_bias_table, as NVlabs/DiffiT names them.
 */
import { OptionError, ShapeError } from '../errors.js';
import { attention } from '../ops/attention.js';
import { add } from '../ops/elementwise.js';
import { reshape } from '../ops/index.js';
import { scope } from '../scope.js';
import { format } from '../shape.js';
import type { Tensor } from '../tensor.js';
import * as init from './init.js';
import { Linear } from './layers.js';
import { Module } from './module.js';

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
  /** Default 'tmsa'. */
  conditioning?: AttentionConditioning;
  /** The learned relative position bias. Default true; false is plain self-attention (DiT). */
  positionBias?: boolean;
}

export class TMSA extends Module {
  readonly qkv: Linear;
  readonly qkvTemb?: Linear;
  readonly biasTemb?: Linear;
  readonly proj: Linear;
  readonly table?: Tensor;
  private readonly options: Required<TMSAOptions>;

  constructor(options: TMSAOptions) {
    super();
    const { dim, timeDim = dim, numHeads, windowSize, conditioning = 'tmsa', positionBias = true } = options;
    if (dim % numHeads !== 0) throw new OptionError(`TMSA: numHeads ${numHeads} does not divide dim ${dim}.`);
    this.options = { dim, timeDim, numHeads, windowSize, conditioning, positionBias };
    if (conditioning === 'bias-only' && !positionBias) {
      throw new OptionError('TMSA: conditioning "bias-only" needs the position bias.');
    }
    const rows = (2 * windowSize - 1) ** 2;
    if (positionBias) {
      this.table = this.parameter('relative_position_bias_table', init.normal([rows, numHeads], 0.02));
      this.acceptsDerived('relative_position_index');
    }
    this.qkv = this.child('qkv', new Linear(dim, 3 * dim));
    if (conditioning === 'tmsa') this.qkvTemb = this.child('qkv_temb', new Linear(timeDim, 3 * dim));
    if (conditioning === 'bias-only') this.biasTemb = this.child('bias_temb', new Linear(timeDim, rows * numHeads));
    this.proj = this.child('proj', new Linear(dim, dim));
  }

  /**
   * x [B, H, W, C], or [B, N, C] with N = windowSize^2; time token [B, timeDim]. Returns the shape of x; `residual`
   * (same shape) is added in the last kernel. Throws OptionError when the window does not divide the map.
   */
  forward(x: Tensor, time: Tensor | undefined, { residual }: { residual?: Tensor } = {}): Tensor {
    const { dim, numHeads, windowSize } = this.options;
    const [height, width] = x.ndim === 4 ? x.shape.slice(1, 3) : [windowSize, windowSize];
    if (x.ndim < 3 || x.ndim > 4 || x.shape[x.ndim - 1] !== dim || (x.ndim === 3 && x.shape[1] !== windowSize ** 2)) {
      throw new ShapeError(
        `TMSA: x is ${format(x.shape)}, expected [B, H, W, ${dim}] or [B, ${windowSize ** 2}, ${dim}] (a ${windowSize}x${windowSize} window).`,
      );
    }
    return scope(() => {
      const qkv = reshape(this.qkv.forward(x), [x.shape[0], height, width, 3 * dim]);
      const y = attention(qkv, {
        heads: numHeads,
        window: [windowSize, windowSize],
        ...this.condition(x.shape[0], time),
      });
      return this.proj.forward(reshape(y, x.shape), { residual });
    });
  }

  private condition(batch: number, time: Tensor | undefined): { time?: Tensor; table?: Tensor } {
    const { conditioning, numHeads } = this.options;
    if (conditioning === 'none') return { table: this.table };
    if (!time) throw new OptionError(`TMSA: conditioning "${conditioning}" needs a time token.`);
    if (this.qkvTemb) return { table: this.table, time: this.qkvTemb.forward(time) };
    const [shift, table] = [(this.biasTemb as Linear).forward(time), this.table as Tensor];
    return { table: add(reshape(shift, [batch, table.shape[0], numHeads]), table) };
  }
}
