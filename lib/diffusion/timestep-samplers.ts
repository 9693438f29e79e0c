/**
 * Which timesteps a training step draws: uniformly, or in proportion to the loss found there lately (Nichol & Dhariwal
 * 2021, section 3.3). Deterministic from a seed; state() and restore() continue exactly.
 */
import { OptionError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { HostRandom, type HostRandomState } from '../random.js';

/** Timesteps of a batch; the mean of weights[i] loss[i] estimates the loss without bias. */
export interface TimestepDraw {
  /** Indices 0 .. numTimesteps - 1. */
  t: number[];
  /** 1 / (numTimesteps p(t)); all 1 when drawn uniformly. */
  weights: number[];
}

/** Options of {@link UniformTimesteps}. */
export interface TimestepSamplerOptions {
  /** Of the diffusion: {@link GaussianDiffusion.numTimesteps}. */
  numTimesteps: number;
  /** Integer from 0 to 2^53 - 1. */
  seed: number;
  /** Number of an independent sequence under the same seed. Default 0. */
  stream?: number;
}

const uniformSchema = schema((z, is) =>
  z.strictObject({
    numTimesteps: is.count,
    seed: is.natural,
    stream: is.natural.default(0),
  } satisfies Fields<TimestepSamplerOptions>),
);

/** Every timestep is as likely. */
export class UniformTimesteps {
  private readonly numTimesteps: number;
  private readonly random: HostRandom;

  /** @throws {OptionError} An option that is missing, unknown or out of range. */
  constructor(options: TimestepSamplerOptions) {
    const { numTimesteps, seed, stream } = parseOptions(uniformSchema, options, 'UniformTimesteps');
    this.numTimesteps = numTimesteps;
    this.random = new HostRandom(seed, stream);
  }

  /** Timesteps for `batch` images. */
  sample(batch: number): TimestepDraw {
    const t = Array.from({ length: batch }, () => this.random.integer(this.numTimesteps));
    return { t, weights: t.map(() => 1) };
  }

  /** For checkpoints: restore(state()) continues exactly here. Plain JSON. */
  state(): { random: HostRandomState } {
    return { random: this.random.state() };
  }

  /** Goes where `state` was taken. Throws OptionError on what is no state. */
  restore({ random }: { random: HostRandomState }): void {
    this.random.restore(random);
  }
}

/** Options of {@link LossSecondMomentTimesteps}. */
export interface LossSecondMomentOptions extends TimestepSamplerOptions {
  /** Losses remembered per timestep. Default 10. */
  historyPerTerm?: number;
  /** Share of the draws that stays uniform. Default 0.001. */
  uniformProb?: number;
}

/** State of {@link LossSecondMomentTimesteps}; plain JSON. */
export interface LossSecondMomentState {
  /** Of the random numbers. */
  random: HostRandomState;
  /** Per timestep the losses remembered, oldest first. */
  history: number[][];
}

const momentSchema = schema((z, is) =>
  z.strictObject({
    numTimesteps: is.count,
    seed: is.natural,
    stream: is.natural.default(0),
    historyPerTerm: is.count.default(10),
    uniformProb: is.share.default(0.001),
  } satisfies Fields<LossSecondMomentOptions>),
);

/**
 * Importance sampling of timesteps (Nichol & Dhariwal 2021, section 3.3): p(t) in proportion to sqrt(E[loss^2]) over the last losses of t, mixed with the uniform distribution; uniform until
 * every timestep has a full history.
 */
export class LossSecondMomentTimesteps {
  private readonly numTimesteps: number;
  private readonly historyPerTerm: number;
  private readonly uniformProb: number;
  private readonly random: HostRandom;
  private history: number[][];

  /** @throws {OptionError} An option that is missing, unknown or out of range. */
  constructor(options: LossSecondMomentOptions) {
    const parsed = parseOptions(momentSchema, options, 'LossSecondMomentTimesteps');
    const { numTimesteps, seed, stream, historyPerTerm, uniformProb } = parsed;
    this.numTimesteps = numTimesteps;
    this.historyPerTerm = historyPerTerm;
    this.uniformProb = uniformProb;
    this.random = new HostRandom(seed, stream);
    this.history = Array.from({ length: numTimesteps }, () => []);
  }

  /** p(t), summing to 1. */
  probabilities(): number[] {
    const n = this.numTimesteps;
    const uniform = this.history.map(() => 1 / n);
    if (this.history.some((losses) => losses.length < this.historyPerTerm)) return uniform;
    const moments = this.history.map((losses) => Math.sqrt(losses.reduce((s, v) => s + v * v, 0) / losses.length));
    const total = moments.reduce((s, v) => s + v, 0);
    if (total === 0) return uniform;
    return moments.map((v) => (v / total) * (1 - this.uniformProb) + this.uniformProb / n);
  }

  /** Timesteps for `batch` images, with the weights that make the loss unbiased. */
  sample(batch: number): TimestepDraw {
    const p = this.probabilities();
    let sum = 0;
    const cumulative = p.map((v) => {
      sum += v;
      return sum;
    });
    const t = Array.from({ length: batch }, () => {
      const at = this.random.uniform() * sum;
      return cumulative.findIndex((bound) => at < bound);
    });
    return { t, weights: t.map((i) => 1 / (this.numTimesteps * p[i])) };
  }

  /** Remembers the losses [B] of timesteps t [B]. Losses that are not finite are passed over. Throws OptionError when they do not fit. */
  update(t: ArrayLike<number>, losses: ArrayLike<number>): void {
    if (t.length !== losses.length) {
      throw new OptionError(`LossSecondMomentTimesteps: ${losses.length} losses for ${t.length} timesteps.`);
    }
    for (let i = 0; i < t.length; i++) {
      const remembered = this.history[t[i]];
      if (!remembered) {
        throw new OptionError(
          `LossSecondMomentTimesteps: timestep ${t[i]}, expected an integer from 0 to ${this.numTimesteps - 1}.`,
        );
      }
      if (!Number.isFinite(losses[i])) continue;
      remembered.push(losses[i]);
      if (remembered.length > this.historyPerTerm) remembered.shift();
    }
  }

  /** For checkpoints: restore(state()) continues exactly here. Plain JSON. */
  state(): LossSecondMomentState {
    return { random: this.random.state(), history: this.history.map((losses) => [...losses]) };
  }

  /** Goes where a state was taken. Throws OptionError when the history is not this sampler's: another number of timesteps, or too long a memory. */
  restore({ random, history }: LossSecondMomentState): void {
    if (history.length !== this.numTimesteps || history.some((losses) => losses.length > this.historyPerTerm)) {
      throw new OptionError(
        `LossSecondMomentTimesteps: a history of ${history.length} timesteps, expected ${this.numTimesteps} with at most ${this.historyPerTerm} losses each.`,
      );
    }
    this.random.restore(random);
    this.history = history.map((losses) => [...losses]);
  }
}
