/**
 * The DiffiT transformer block (Eq. 7-8): x = x + TMSA(LN(x), t); x = x + MLP(LN(x)), and the paper's ways of giving
 * it the time token (Tables 5 and 6).
 */
import { add, gelu, mul, silu } from '../ops/elementwise.js';
import { reshape, slice } from '../ops/index.js';
import { mlp } from '../ops/linear.js';
import { layerNorm } from '../ops/norm.js';
import { dropout } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { scope } from '../scope.js';
import type { Tensor } from '../tensor.js';
import { type AttendOptions, TMSA } from './attention.js';
import { Linear } from './layers.js';
import { Module } from './module.js';

/** Where the time token enters: attention (TMSA), AdaLN-Zero as in DiT, only the attention bias, only the MLP. */
export type Conditioning = 'tmsa' | 'adaln' | 'bias-only' | 'mlp-only';

/** Options of {@link TransformerBlock}. */
export interface TransformerBlockOptions {
  /** Channels C. */
  dim: number;
  /** Channels of the time token. */
  timeDim: number;
  /** Attention heads; divides dim. */
  numHeads: number;
  /** Side of the square attention window, in tokens. */
  windowSize: number;
  /** Hidden channels of the MLP over C. Default 4. */
  mlpRatio?: number;
  /** Dropout after the MLP's activation, in training. Default 0. */
  dropout?: number;
  /** Where the time token enters. Default 'tmsa'. */
  conditioning?: Conditioning;
  /** The attention's learned relative position bias. Default true. */
  positionBias?: boolean;
}

/** Options of {@link TransformerBlock.forward}; see {@link AttendOptions}. */
export type BlockOptions = Pick<AttendOptions, 'projected' | 'pairs'>;

/** Two linears with GELU (tanh form) between. State dict: fc1, fc2, and temb when the time token enters here. */
export class MLP extends Module {
  /** [hidden, dim]. */
  readonly fc1: Linear;
  /** [dim, hidden]. */
  readonly fc2: Linear;
  /** [hidden, timeDim], added before the activation; only with a `timeDim`. */
  readonly temb?: Linear;
  /** `dropout` acts after the activation, in training. */
  constructor(
    dim: number,
    hidden: number,
    timeDim: number | undefined,
    private readonly dropout: number,
  ) {
    super();
    this.fc1 = this.child('fc1', new Linear(dim, hidden));
    this.fc2 = this.child('fc2', new Linear(hidden, dim));
    if (timeDim) this.temb = this.child('temb', new Linear(timeDim, hidden));
  }
  /** x [..., dim] -> the same shape, plus `residual` of that shape; time token [B, timeDim]. */
  forward(x: Tensor, time: Tensor, residual?: Tensor): Tensor {
    const drops = this.training && this.dropout > 0;
    if (!this.temb && !drops) return mlp(x, this.fc1, this.fc2, { activation: 'geluTanh', residual });
    let hidden: Tensor;
    if (this.temb) hidden = gelu(add(this.fc1.forward(x), perSample(this.temb.forward(time), x.ndim)));
    else hidden = this.fc1.forward(x, { activation: 'geluTanh' });
    if (drops) hidden = dropout(hidden, this.dropout);
    return this.fc2.forward(hidden, { residual });
  }
}

/** DiT's AdaLN-Zero: `count` per-sample vectors from SiLU(t). State dict: 1.weight, 1.bias (0 is the SiLU). */
export class Modulation extends Module {
  /** [count dim, timeDim], zero at first. */
  readonly linear: Linear;
  /** `count` vectors of `dim` channels. */
  constructor(
    timeDim: number,
    private readonly dim: number,
    private readonly count: number,
  ) {
    super();
    this.linear = this.child('1', new Linear(timeDim, count * dim, { zero: true }));
  }
  /** Time token [B, timeDim] -> `count` tensors [B, 1, ..., dim] that broadcast over a sample's tokens. */
  forward(time: Tensor, ndim: number): Tensor[] {
    const all = this.linear.forward(silu(time));
    return Array.from({ length: this.count }, (_, i) =>
      perSample(slice(all, 1, i * this.dim, (i + 1) * this.dim), ndim),
    );
  }
}

/** LN(x) (1 + scale) + shift. @internal */
export function modulate(x: Tensor, shift: Tensor, scale: Tensor): Tensor {
  return add(mul(layerNorm(x), add(scale, 1)), shift);
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    dim: is.count,
    timeDim: is.count,
    numHeads: is.count,
    windowSize: is.count,
    mlpRatio: z.number().positive().default(4),
    dropout: z.number().min(0).lt(1).default(0),
    conditioning: z.enum(['tmsa', 'adaln', 'bias-only', 'mlp-only']).default('tmsa'),
    positionBias: z.boolean().default(true),
  } satisfies Fields<TransformerBlockOptions>),
);

/**
 * The DiffiT transformer block (the paper's Eq. 7-8): h = x + TMSA(LN(x), t); y = h + MLP(LN(h)). State dict: attn, mlp, and adaLN_modulation with
 * conditioning 'adaln'.
 */
export class TransformerBlock extends Module {
  /** The attention of Eq. 7. */
  readonly attn: TMSA;
  /** The MLP of Eq. 8. */
  readonly mlp: MLP;
  /** Shifts, scales and gates from the time token; only with conditioning 'adaln'. */
  readonly modulation?: Modulation;

  /** @throws {OptionError} An option that is missing, unknown or out of range; heads that do not divide dim. */
  constructor(options: TransformerBlockOptions) {
    super();
    const { dim, timeDim, numHeads, windowSize, ...rest } = parseOptions(optionsSchema, options, 'TransformerBlock');
    const { mlpRatio, dropout, conditioning, positionBias } = rest;
    const inAttention = conditioning === 'tmsa' || conditioning === 'bias-only' ? conditioning : 'none';
    this.attn = this.child(
      'attn',
      new TMSA({ dim, timeDim, numHeads, windowSize, conditioning: inAttention, positionBias }),
    );
    const mlpTime = conditioning === 'mlp-only' ? timeDim : undefined;
    this.mlp = this.child('mlp', new MLP(dim, Math.round(dim * mlpRatio), mlpTime, dropout));
    if (conditioning === 'adaln') this.modulation = this.child('adaLN_modulation', new Modulation(timeDim, dim, 6));
  }

  /** x [B, H, W, C] or [B, N, C], time token [B, timeDim] -> shape of x. Throws as {@link TMSA.forward}. */
  forward(x: Tensor, time: Tensor, options: BlockOptions = {}): Tensor {
    return scope(() => {
      if (this.modulation) return this.modulated(x, time, this.modulation.forward(time, x.ndim), options);
      const h = this.attn.forward(layerNorm(x), time, { residual: x, ...options });
      return this.mlp.forward(layerNorm(h), time, h);
    });
  }

  private modulated(x: Tensor, time: Tensor, parts: Tensor[], options: BlockOptions): Tensor {
    const [shiftMsa, scaleMsa, gateMsa, shiftMlp, scaleMlp, gateMlp] = parts;
    const h = add(x, mul(gateMsa, this.attn.forward(modulate(x, shiftMsa, scaleMsa), undefined, options)));
    return add(h, mul(gateMlp, this.mlp.forward(modulate(h, shiftMlp, scaleMlp), time)));
  }
}

/** [B, C] -> [B, 1, ..., C]: broadcasts over a sample's tokens. */
function perSample(x: Tensor, ndim: number): Tensor {
  return reshape(x, [x.shape[0], ...new Array<number>(ndim - 2).fill(1), x.shape[1]]);
}
