/**
 * Is a series of measurements flat? After a warm-up a straight line is fitted to it; what it surely grows (its slope less three standard errors)
 * must stay within a few percent of its level in an hour, and no value may stand out far above the level.
 */

export interface Sample {
  /** Hours since the start. */
  hours: number;
  value: number;
}

/** What is still flat. */
export interface Tolerance {
  /** Part of the level by which it may grow in an hour; in a shorter series: in all of it. */
  growth: number;
  /** The highest value, as a multiple of the level. */
  most: number;
  /** So much is never growth, in the measure's own unit. */
  slack: number;
}

export interface Verdict {
  /** Median after the warm-up. */
  level: number;
  most: number;
  /** Of the fitted line, per hour, and its standard error. */
  slope: number;
  error: number;
  /** The slope as a part of the level. */
  growth: number;
  flat: boolean;
  /** Why it is not flat. */
  why?: string;
}

/** The part of a series that is warm-up. */
const warmUp = 0.25;
const fewest = 8;

export function judge(series: readonly Sample[], tolerance: Tolerance): Verdict {
  const samples = series.slice(Math.floor(series.length * warmUp));
  if (samples.length < fewest) throw new Error(`${series.length} samples are too few to judge.`);
  const values = samples.map(({ value }) => value).sort((a, b) => a - b);
  const level = values[values.length >> 1];
  const most = values[values.length - 1];
  const { slope, error } = fit(samples);
  const hours = samples[samples.length - 1].hours - samples[0].hours;
  const sure = (slope - 3 * error) * Math.min(hours, 1);
  const allowed = tolerance.growth * level + tolerance.slack;
  const highest = tolerance.most * level + tolerance.slack;
  const verdict = { level, most, slope, error, growth: level ? slope / level : slope };
  if (sure > allowed) return { ...verdict, flat: false, why: `it grows by ${slope.toPrecision(3)} an hour` };
  if (most > highest) return { ...verdict, flat: false, why: `${most} is far above its level of ${level}` };
  return { ...verdict, flat: true };
}

/** Least squares. */
function fit(samples: readonly Sample[]): { slope: number; error: number } {
  const mean = (of: (sample: Sample) => number): number =>
    samples.reduce((sum, sample) => sum + of(sample), 0) / samples.length;
  const [x, y] = [mean(({ hours }) => hours), mean(({ value }) => value)];
  const spread = mean(({ hours }) => (hours - x) ** 2);
  const slope = mean(({ hours, value }) => (hours - x) * (value - y)) / spread;
  const rest = mean(({ hours, value }) => (value - y - slope * (hours - x)) ** 2);
  return { slope, error: Math.sqrt(rest / spread / (samples.length - 2)) };
}
