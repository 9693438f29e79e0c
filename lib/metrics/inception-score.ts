/** Inception Score (Salimans et al. 2016), streamed: exp of the mean KL divergence of p(class | image) from p(class), over splits in order. */
import { DataError, ShapeError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';

/** Options of {@link InceptionScore}. */
export interface InceptionScoreOptions {
  /** Images of a split; the last one may be shorter. Default 5000, as guided-diffusion's evaluator has it: 10 splits of 50,000 images. */
  splitSize?: number;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({ splitSize: is.count.default(5000) } satisfies Fields<InceptionScoreOptions>),
);

/** What {@link InceptionScore.result} gives. */
export interface InceptionScoreResult {
  /** Mean of the splits' scores. */
  score: number;
  /** Their standard deviation (of the population). */
  deviation: number;
  /** Score of each split. */
  splits: number[];
}

/** The Inception Score of predictions that come batch by batch; keeps two numbers a class. */
export class InceptionScore {
  private readonly splitSize: number;
  private readonly totals: Float64Array;
  private readonly scores: number[] = [];
  private negentropy = 0;
  private inSplit = 0;

  /**
   * @param classes - Numbers of a prediction.
   * @throws {OptionError} An option that is unknown or out of range.
   */
  constructor(
    private readonly classes: number,
    options: InceptionScoreOptions = {},
  ) {
    this.splitSize = parseOptions(optionsSchema, options, 'InceptionScore').splitSize;
    this.totals = new Float64Array(classes);
  }

  /** Adds logits [n, classes]; their softmax is taken in f64. Throws ShapeError for no whole rows, DataError for NaN. */
  addLogits(logits: Float32Array | Float64Array): void {
    const { classes } = this;
    const row = new Float64Array(classes);
    for (let at = 0; at < this.checked(logits); at += classes) {
      let most = Number.NEGATIVE_INFINITY;
      for (let k = 0; k < classes; k++) most = Math.max(most, logits[at + k]);
      let sum = 0;
      for (let k = 0; k < classes; k++) sum += row[k] = Math.exp(logits[at + k] - most);
      for (let k = 0; k < classes; k++) row[k] /= sum;
      this.addRow(row);
    }
  }

  /** Adds probabilities [n, classes], each row with the sum 1. Throws ShapeError for no whole rows, DataError for NaN. */
  addProbabilities(probabilities: Float32Array | Float64Array): void {
    const { classes } = this;
    for (let at = 0; at < this.checked(probabilities); at += classes) {
      this.addRow(Float64Array.from(probabilities.subarray(at, at + classes)));
    }
  }

  /** The score of all predictions. Throws DataError when there were none. */
  result(): InceptionScoreResult {
    const splits = this.inSplit > 0 ? [...this.scores, this.splitScore()] : [...this.scores];
    if (splits.length === 0) throw new DataError('An Inception Score needs at least one image.');
    const score = splits.reduce((sum, value) => sum + value, 0) / splits.length;
    const variance = splits.reduce((sum, value) => sum + (value - score) ** 2, 0) / splits.length;
    return { score, deviation: Math.sqrt(variance), splits };
  }

  private checked({ length }: { length: number }): number {
    if (length % this.classes === 0) return length;
    throw new ShapeError(`InceptionScore: ${length} numbers are no whole rows of ${this.classes} classes.`);
  }

  private addRow(row: Float64Array): void {
    let sum = 0;
    for (let k = 0; k < row.length; k++) {
      const p = row[k];
      this.totals[k] += p;
      if (p > 0) sum += p * Math.log(p);
      else if (p !== 0) throw new DataError(`Class ${k} has the probability ${p}.`); // NaN too
    }
    this.negentropy += sum;
    if (++this.inSplit < this.splitSize) return;
    this.scores.push(this.splitScore());
    this.totals.fill(0);
    this.negentropy = 0;
    this.inSplit = 0;
  }

  private splitScore(): number {
    const n = this.inSplit;
    let divergence = this.negentropy / n;
    for (const total of this.totals) if (total > 0) divergence -= (total / n) * Math.log(total / n);
    return Math.exp(divergence);
  }
}
