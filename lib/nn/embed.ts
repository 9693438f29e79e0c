/** What the time token is made of: frequencies of a noise level through a two-layer SiLU MLP, and a vector per class. */
import { add, affine, cast, cos, less, mul, sin, where } from '../ops/elementwise.js';
import { concat, reshape } from '../ops/index.js';
import { rand } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { autocast, keep, noGrad, scope } from '../scope.js';
import { full, type Tensor, tensor } from '../tensor.js';
import * as init from './init.js';
import { Embedding, Linear } from './layers.js';
import { Module } from './module.js';

/**
 * 'positional': geometric frequencies down to 1/10000 (DDPM++, EDM); 'timestep': the same but for the last one, which
 * is left out (DDPM, ADM, DiT: exp(-ln(10000) k / half)); 'fourier': random ones (NCSN++).
 */
export type TimeEmbedding = 'positional' | 'timestep' | 'fourier';

/** Options of {@link TimeEmbed}. */
export interface TimeEmbedOptions {
  /** Channels of the frequencies [cos, sin]; even. */
  channels: number;
  /** Channels of the token. */
  timeDim: number;
  /** Which frequencies. */
  kind: TimeEmbedding;
  /** Initial weights of the linears: N(0, std^2); default xavier-uniform. */
  std?: number;
}

const timeSchema = schema((z, is) =>
  z.strictObject({
    channels: is.count.multipleOf(2),
    timeDim: is.count,
    kind: z.enum(['positional', 'timestep', 'fourier']),
    std: is.atLeastZero.optional(),
  } satisfies Fields<TimeEmbedOptions>),
);

/** Noise levels or (fractional) timesteps [B] -> time token [B, timeDim]. State dict: mlp.0, mlp.2, and freqs when they are random. */
export class TimeEmbed extends Module {
  /** mlp.0, [timeDim, channels], with SiLU behind it. */
  readonly fc1: Linear;
  /** mlp.2, [timeDim, timeDim]. */
  readonly fc2: Linear;
  private readonly freqs: Tensor;
  private readonly angle: number;

  /** @throws {OptionError} An option that is missing, unknown or out of range. */
  constructor(options: TimeEmbedOptions) {
    super();
    const { channels, timeDim, kind, std } = parseOptions(timeSchema, options, 'TimeEmbed');
    const half = channels / 2;
    if (kind === 'fourier') {
      this.freqs = this.buffer('freqs', init.normal([half], 16));
      this.angle = 2 * Math.PI;
    } else {
      this.freqs = keep(tensor(Float32Array.from({ length: half }, (_, k) => frequency(k, half, kind))));
      this.angle = 1;
    }
    this.fc1 = this.child('mlp.0', new Linear(channels, timeDim, { std }));
    this.fc2 = this.child('mlp.2', new Linear(timeDim, timeDim, { std }));
  }

  /**
   * level [B] f32 -> [B, timeDim]; features are [cos, sin] of the scaled frequencies, plus `further` [B, channels] if there are any. In f32 under
   * any autocast: it is little work.
   */
  forward(level: Tensor, further?: Tensor): Tensor {
    return scope(() => {
      const features = noGrad(() => {
        const angles = affine(mul(reshape(level, [level.size, 1]), this.freqs), this.angle, 0);
        return concat([cos(angles), sin(angles)], 1);
      });
      const all = further ? add(features, further) : features;
      return autocast('f32', () => this.fc2.forward(this.fc1.forward(all, { activation: 'silu' })));
    });
  }

  /** Gives all parameters, buffers and gradients back. */
  override dispose(): void {
    super.dispose();
    this.freqs.dispose();
  }
}

function frequency(k: number, half: number, kind: 'positional' | 'timestep'): number {
  if (kind === 'positional') return 10000 ** (-k / Math.max(half - 1, 1));
  // With every step in float32, as models were trained: times 1000, another last digit shows in the features.
  return Math.exp(Math.fround(Math.fround(-Math.log(10000)) * k) / half);
}

/** Options of {@link LabelEmbed}. */
export interface LabelEmbedOptions {
  /** Classes; labels are 0..numClasses-1. */
  numClasses: number;
  /** Channels of the vectors. */
  dim: number;
  /** Probability that a label becomes the null class in training, for classifier-free guidance. Default 0: no null class. */
  dropout?: number;
  /** Standard deviation of the initial vectors. Default 0.02. */
  std?: number;
}

const labelSchema = schema((z, is) =>
  z.strictObject({
    numClasses: is.count,
    dim: is.count,
    dropout: z.number().min(0).lt(1).default(0),
    std: is.atLeastZero.default(0.02),
  } satisfies Fields<LabelEmbedOptions>),
);

/** One vector per class, and with label dropout one more, the null class `numClasses`. weight [numClasses (+ 1), dim]. */
export class LabelEmbed extends Embedding {
  private readonly numClasses: number;
  private readonly dropout: number;

  /** @throws {OptionError} An option that is missing, unknown or out of range. */
  constructor(options: LabelEmbedOptions) {
    const { numClasses, dim, dropout, std } = parseOptions(labelSchema, options, 'LabelEmbed');
    super(numClasses + (dropout > 0 ? 1 : 0), dim, { std });
    this.numClasses = numClasses;
    this.dropout = dropout;
  }

  /** Labels i64 [B] -> [B, dim]; in training some become the null class (Ho & Salimans 2022, Algorithm 1). */
  override forward(labels: Tensor): Tensor {
    if (!this.training || this.dropout === 0) return super.forward(labels);
    return scope(() => super.forward(noGrad(() => this.drop(labels))));
  }

  private drop(labels: Tensor): Tensor {
    const { shape, device } = labels;
    const dropped = less(rand(shape, { device }), full(shape, this.dropout, { device }));
    return cast(where(dropped, full(shape, this.numClasses, { device }), cast(labels, 'f32')), 'i64');
  }
}
