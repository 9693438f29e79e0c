/** The loss of a run as a picture: an SVG with the loss per step, a smoothed curve over it, and a logarithmic axis. */

import { type Fields, parseOptions, schema } from '../options.js';

/** A point of the curve. */
export interface LossPoint {
  /** From 1. */
  step: number;
  /** Of the step, before any smoothing. */
  loss: number;
}

const size = { width: 720, height: 400 };
const margin = { top: 40, right: 24, bottom: 48, left: 64 };
/** Most points drawn per curve; longer runs are averaged in equal stretches of steps. */
const resolution = 600;

/** Options of {@link lossCurveSvg}. */
export interface LossCurveOptions {
  /** Above the curve. Default 'Training loss'. */
  title?: string;
  /** Steps averaged for the smooth curve. Default 0: a twentieth of the run. */
  smoothing?: number;
}

const optionsSchema = schema((z, is) =>
  z.strictObject({
    title: z.string().default('Training loss'),
    smoothing: is.atLeastZero.default(0),
  } satisfies Fields<LossCurveOptions>),
);

/**
 * The loss of a run as an SVG document, with a smooth curve over it; or the smooth curves of several runs by their names, with a legend. Losses
 * that are not above 0 are left out. Throws OptionError for an option that is unknown or wrong.
 */
export function lossCurveSvg(
  points: readonly LossPoint[] | Readonly<Record<string, readonly LossPoint[]>>,
  options: LossCurveOptions = {},
): string {
  const { title, smoothing } = parseOptions(optionsSchema, options, 'lossCurveSvg');
  const single = Array.isArray(points);
  const runs: [string, readonly LossPoint[]][] = single ? [['', points as LossPoint[]]] : Object.entries(points);
  const series = runs.flatMap(([name, given], i): Series[] => {
    const drawn = given.filter(({ loss }) => Number.isFinite(loss) && loss > 0);
    if (drawn.length === 0) return [];
    const smooth = thin(movingAverage(drawn, smoothing || Math.max(1, drawn.length / 20)));
    return [{ name, raw: single ? thin(drawn) : undefined, smooth, color: colors[i % colors.length] }];
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.width} ${size.height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${size.width}" height="${size.height}" fill="#fff"/>`,
    text(size.width / 2, 24, title, 'text-anchor="middle" font-size="15"'),
    series.length > 0 ? curves(series) : '',
    text(size.width / 2, size.height - 10, 'step', 'text-anchor="middle"'),
    '</svg>',
    '',
  ].join('\n');
}

/** One run, thinned out for the picture. */
interface Series {
  name: string;
  raw?: readonly LossPoint[];
  smooth: readonly LossPoint[];
  color: string;
}

/** Told apart also by those who do not see red and green (Okabe and Ito's). */
const colors = ['#1f5fd0', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#000000'];

function curves(series: readonly Series[]): string {
  const all = series.flatMap(({ raw, smooth }) => raw ?? smooth);
  const logs = all.map(({ loss }) => Math.log10(loss));
  const [low, high] = [Math.min(...logs), Math.max(...logs)];
  const spread = Math.max(high - low, 1e-6);
  const steps = all.map(({ step }) => step);
  const [first, last] = [Math.min(...steps), Math.max(...steps)];
  const x = (step: number): number =>
    margin.left + ((step - first) / Math.max(last - first, 1)) * (size.width - margin.left - margin.right);
  const y = (loss: number): number =>
    margin.top + ((high - Math.log10(loss)) / spread) * (size.height - margin.top - margin.bottom);
  const line = (list: readonly LossPoint[], style: string): string =>
    `<polyline fill="none" ${style} points="${list.map(({ step, loss }) => `${round(x(step))},${round(y(loss))}`).join(' ')}"/>`;
  const lossTicks = logTicks(10 ** low, 10 ** high).map((loss) => {
    const grid = `<path d="M${margin.left} ${round(y(loss))}H${size.width - margin.right}" stroke="#ddd"/>`;
    return grid + text(margin.left - 8, y(loss) + 4, String(loss), 'text-anchor="end"');
  });
  const stepTicks = linearTicks(first, last).map((step) =>
    text(x(step), size.height - margin.bottom + 18, step.toLocaleString('en-US'), 'text-anchor="middle"'),
  );
  return [
    ...lossTicks,
    ...stepTicks,
    ...series.flatMap(({ raw }) => (raw ? [line(raw, 'stroke="#b9cdf0" stroke-width="1"')] : [])),
    ...series.map(({ smooth, color }) => line(smooth, `stroke="${color}" stroke-width="2"`)),
    ...series.flatMap(({ name, color }, i) => (name ? [legend(name, color, i)] : [])),
  ].join('\n');
}

/** A stroke and a name, from the upper right corner down. */
function legend(name: string, color: string, index: number): string {
  const [right, top] = [size.width - margin.right - 8, margin.top + 14 + 18 * index];
  const stroke = `<path d="M${right - 24} ${top - 4}h24" stroke="${color}" stroke-width="2"/>`;
  return stroke + text(right - 32, top, name, 'text-anchor="end"');
}

/** Geometric mean over `window` points around each, so that the curve runs through the middle of the log-scaled one. */
function movingAverage(points: readonly LossPoint[], window: number): LossPoint[] {
  const half = Math.floor(window / 2);
  const sums = [0];
  for (const { loss } of points) sums.push(sums[sums.length - 1] + Math.log(loss));
  return points.map(({ step }, i) => {
    const reach = Math.min(half, i, points.length - 1 - i);
    const mean = (sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1);
    return { step, loss: Math.exp(mean) };
  });
}

/** At most `resolution` points, each the mean of a stretch. */
function thin(points: readonly LossPoint[]): LossPoint[] {
  const stretch = Math.ceil(points.length / resolution);
  return Array.from({ length: Math.ceil(points.length / stretch) }, (_, i) => {
    const part = points.slice(i * stretch, (i + 1) * stretch);
    return { step: part[part.length - 1].step, loss: part.reduce((sum, { loss }) => sum + loss, 0) / part.length };
  });
}

/** 1, 2 and 5 times powers of ten within [low, high]; the ends when that gives fewer than two. */
function logTicks(low: number, high: number): number[] {
  const ticks: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const digit of [1, 2, 5]) {
      const tick = Number(`${digit}e${power}`);
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  }
  return ticks.length >= 2 ? ticks : [Number(low.toPrecision(3)), Number(high.toPrecision(3))];
}

/** About six round numbers within [low, high]. */
function linearTicks(low: number, high: number): number[] {
  const rough = Math.max((high - low) / 6, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const ticks: number[] = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(tick);
  return ticks;
}

function text(x: number, y: number, content: string, attributes: string): string {
  const escaped = content.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  return `<text x="${round(x)}" y="${round(y)}" ${attributes}>${escaped}</text>`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
