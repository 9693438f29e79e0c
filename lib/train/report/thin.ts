/** Long series made short enough to draw: each stretch of steps keeps its extremes, so a spike of one step stays visible. */

/** A stretch of steps. */
export interface Bucket {
  /** First and last step. */
  first: number;
  last: number;
  /** Smallest and largest value and their steps; NaN when no value is finite. */
  low: number;
  high: number;
  lowAt: number;
  highAt: number;
  mean: number;
  /** Values that were logged and are not finite; History has them as Infinity, and as NaN what was not logged. */
  broken: number;
  /** Where it lies in the series: the index of a value that stands for it. */
  index: number;
}

/** At most `count` buckets of equally many values; of one value each when there are no more values than that. */
export function thin(steps: readonly number[], values: readonly number[], count: number): Bucket[] {
  const width = Math.max(1, Math.ceil(values.length / count));
  const buckets: Bucket[] = [];
  for (let start = 0; start < values.length; start += width) {
    const end = Math.min(start + width, values.length);
    let [low, high, lowAt, highAt, sum, found, broken] = [Number.NaN, Number.NaN, Number.NaN, Number.NaN, 0, 0, 0];
    for (let i = start; i < end; i++) {
      const value = values[i];
      if (!Number.isFinite(value)) {
        if (!Number.isNaN(value)) broken++;
        continue;
      }
      if (!(value >= low)) [low, lowAt] = [value, steps[i]];
      if (!(value <= high)) [high, highAt] = [value, steps[i]];
      sum += value;
      found++;
    }
    // Curves reach from the first step to the last, whatever the buckets' middles.
    const index = start === 0 ? 0 : end === values.length ? end - 1 : (start + end - 1) >> 1;
    const [first, last, mean] = [steps[start], steps[end - 1], sum / found];
    buckets.push({ first, last, low, high, lowAt, highAt, mean, broken, index });
  }
  return buckets;
}

/** Sums from the start on, for means of stretches. */
export interface Sums {
  sum: Float64Array;
  /** Finite values so far. */
  count: Float64Array;
}

export function sumsOf(values: readonly number[]): Sums {
  const sum = new Float64Array(values.length + 1);
  const count = new Float64Array(values.length + 1);
  for (let i = 0; i < values.length; i++) {
    const finite = Number.isFinite(values[i]);
    sum[i + 1] = sum[i] + (finite ? values[i] : 0);
    count[i + 1] = count[i] + (finite ? 1 : 0);
  }
  return { sum, count };
}

/**
 * Mean of the `window` values around index `i`. At the start it reaches no further ahead than back, or a loss that falls from
 * 1 would begin at 0.3; at the end it goes on averaging what there is. NaN where no value is finite.
 */
export function smoothAt({ sum, count }: Sums, i: number, window: number): number {
  const reach = Math.min(Math.floor(window / 2), i);
  const [from, to] = [i - reach, Math.min(i + reach + 1, sum.length - 1)];
  return (sum[to] - sum[from]) / (count[to] - count[from]);
}
