/**
 * A chart of one metric: curves of all runs in an SVG that stretches to its frame, on a linear and (where all is positive) a
 * logarithmic axis, of which the page shows one; ticks are text around it, so that they stay legible at any width.
 */
import type { History, Metric } from './history.js';
import { type Content, type Html, html } from './html.js';
import { brokenMarks, brokenNote, brokenStretches, resumeMarks, type Stretch } from './marks.js';
import { bytesOf, linearTicks, logTicks, shortNumber, wholeNumber } from './numbers.js';
import { type Bucket, smoothAt, sumsOf, thin } from './thin.js';

/** What a metric is called and how it is drawn. */
export interface ChartSpec {
  metric: Metric;
  title: string;
  unit: string;
  scale: 'linear' | 'log';
  /** Noisy: a mean over a stretch says more than the steps do. */
  noisy: boolean;
  format: (value: number) => string;
}

const [linear, log] = [{ scale: 'linear' }, { scale: 'log' }] as const;

export const chartSpecs: readonly ChartSpec[] = [
  { metric: 'loss', title: 'Loss', unit: '', ...log, noisy: true, format: shortNumber },
  { metric: 'lr', title: 'Learning rate', unit: '', ...linear, noisy: false, format: shortNumber },
  { metric: 'imagesPerSecond', title: 'Throughput', unit: 'images/s', ...linear, noisy: true, format: shortNumber },
  { metric: 'gradNorm', title: 'Gradient norm', unit: 'before clipping', ...log, noisy: true, format: shortNumber },
  { metric: 'memoryBytes', title: 'Memory', unit: 'held from the device', ...linear, noisy: false, format: bytesOf },
];

/** Shares of the longest run that the levels of smoothing average over. */
const windows = [0.01, 0.04, 0.15];
/** The level shown at first; 0 is none. */
export const defaultSmoothing = 2;

/** Curves that are told apart by colour; more runs begin with the first again. */
export const colours = 8;

/** Coordinates of the SVGs. */
export const viewBox = { width: 1000, height: 400 };

/** A metric of one run, ready to be drawn. */
export interface Curve {
  buckets: readonly Bucket[];
  /** Of each bucket, for the index that stands for it. */
  steps: readonly number[];
  /** By level of smoothing from 1 on, a value per bucket; no levels for what is not noisy. */
  smooth: readonly (readonly number[])[];
  /** Where it was logged and is not finite. */
  broken: readonly Stretch[];
}

/** A metric of all runs. */
export interface Chart {
  spec: ChartSpec;
  /** By run; undefined for one whose log has no such metric. */
  curves: readonly (Curve | undefined)[];
  linear: readonly [number, number];
  log?: readonly [number, number];
}

/** Values averaged at a level of smoothing, when the longest run has `longest` steps. */
export function smoothingWindow(level: number, longest: number): number {
  return Math.max(3, Math.round(windows[level - 1] * longest));
}

/** The chart of a metric; undefined when no run has it. */
export function chartOf(spec: ChartSpec, histories: readonly History[]): Chart | undefined {
  const longest = Math.max(...histories.map(({ length }) => length));
  const count = Math.max(150, Math.floor(600 / Math.sqrt(histories.length)));
  const curves = histories.map((history) =>
    history.has(spec.metric) ? curveOf(history, spec, longest, count) : undefined,
  );
  const buckets = curves.flatMap((curve) => curve?.buckets.filter(({ low }) => Number.isFinite(low)) ?? []);
  if (buckets.length === 0) return undefined;
  const [low, high] = [Math.min(...buckets.map(({ low }) => low)), Math.max(...buckets.map(({ high }) => high))];
  const positive = Math.min(...buckets.flatMap(({ low, high }) => (low > 0 ? [low] : high > 0 ? [high] : [])));
  const room = (high - low) * 0.06;
  const fromZero = low >= 0 && (spec.scale === 'linear' || low < 0.6 * high);
  const linear = fromZero ? ([0, high * 1.06] as const) : ([low - room, high + room] as const);
  const factor = Math.max((high / positive) ** 0.06, 1.02);
  return {
    spec,
    curves,
    linear: low === high ? flat(low) : linear,
    ...(low >= 0 && high > 0 && { log: [positive / factor, high * factor] as const }),
  };
}

/** An axis for a value that never changes. */
function flat(value: number): [number, number] {
  return value === 0 ? [0, 1] : value > 0 ? [0, value * 1.2] : [value * 1.2, 0];
}

function curveOf({ steps, columns }: History, { metric, noisy }: ChartSpec, longest: number, count: number): Curve {
  const values = columns[metric];
  const buckets = thin(steps, values, count);
  const sums = sumsOf(values);
  return {
    buckets,
    steps: buckets.map(({ index }) => steps[index]),
    smooth: (noisy ? windows : []).map((_, i) =>
      buckets.map(({ index }) => smoothAt(sums, index, smoothingWindow(i + 1, longest))),
    ),
    broken: brokenStretches(steps, values),
  };
}

/** The steps that the axes of all charts of a page cover. */
export function stepRange(histories: readonly History[]): [number, number] {
  const ends = histories.flatMap(({ steps }) => (steps.length > 0 ? [steps[0], steps[steps.length - 1]] : []));
  const [first, last] = [Math.min(...ends), Math.max(...ends)];
  return [first < 0.05 * last || first === last ? 0 : first, last];
}

/** A chart as a figure. `values` is what its caption says while nothing is pointed at. */
export function chartFigure(
  chart: Chart,
  range: readonly [number, number],
  runs: readonly { name: string; resumes: readonly number[] }[],
  values: Content,
): Html {
  const { spec, linear, log } = chart;
  const scale = spec.scale === 'log' && log ? 'log' : 'linear';
  const id = `chart-${spec.metric}`;
  const axes = [drawAxis(chart, range, linear, 'linear'), log && drawAxis(chart, range, log, 'log')];
  const yTicks = (name: 'linear' | 'log', [low, high]: readonly [number, number]): Html => {
    const y = position(low, high, name);
    const labels = ticksOf(spec, low, high, name).map(
      (tick) => html`<span style="top:${percent(y(tick))}">${spec.format(tick)}</span>`,
    );
    return html`<div class="ticks y ${name}" aria-hidden="true">${labels}</div>`;
  };
  const [from, to] = range;
  const xTicks = stepTicks(range).map(
    (tick, i) =>
      html`<span style="left:${percent((tick - from) / (to - from))}" class="${i % 2 === 1 && 'odd'}${to - tick < 0.04 * (to - from) && ' end'}">${wholeNumber(tick)}</span>`,
  );
  const { height } = viewBox;
  const x = (step: number): number => round(((step - from) / (to - from)) * viewBox.width);
  const marks = chart.curves.map((curve, run) => [
    resumeMarks(runs[run].resumes, run, x, height),
    brokenMarks(spec.title, curve?.broken ?? [], run, x, height),
  ]);
  const notes = chart.curves.map((curve, run) =>
    brokenNote(curve?.broken ?? [], run, runs.length > 1 ? runs[run].name : undefined),
  );
  return html`<figure class="chart" id="${id}" data-metric="${spec.metric}" data-scale="${scale}" tabindex="0" aria-labelledby="${id}-name" aria-describedby="${id}-values">
<figcaption><h3 id="${id}-name">${spec.title}${spec.unit && html` <small>${spec.unit}</small>`}</h3>
${log && html`<button type="button" class="scale scripted" aria-pressed="${scale === 'log' ? 'true' : 'false'}" title="Logarithmic axis">log</button>`}
<p class="values" id="${id}-values">${values}</p></figcaption>
<div class="frame">${yTicks('linear', linear)}${log && yTicks('log', log)}
<div class="plot"><svg viewBox="0 0 ${viewBox.width} ${viewBox.height}" preserveAspectRatio="none" role="img" aria-label="${describe(chart, range)}">
${marks}${axes}</svg><div class="cursor"></div></div>
<div class="ticks x" aria-hidden="true">${xTicks}</div></div>
${notes}
</figure>`;
}

/** Grid lines and the curves of all runs on one of the two axes. */
function drawAxis(
  chart: Chart,
  range: readonly [number, number],
  [low, high]: readonly [number, number],
  name: 'linear' | 'log',
): Html {
  const y = position(low, high, name);
  const { width, height } = viewBox;
  const grid = ticksOf(chart.spec, low, high, name).map((tick) => `M0 ${round(y(tick) * height)}H${width}`);
  const curves = chart.curves.map((curve, run) => {
    if (!curve) return undefined;
    const paths = (points: readonly Point[]) => pathsOf(points, range, y);
    const raw = curve.buckets.flatMap((bucket): Point[] => {
      const [a, b]: Point[] = [
        [bucket.lowAt, bucket.low],
        [bucket.highAt, bucket.high],
      ];
      const ends = bucket.lowAt === bucket.highAt ? [a] : bucket.lowAt < bucket.highAt ? [a, b] : [b, a];
      return bucket.broken > 0 ? [...ends, gap] : ends;
    });
    const smooth = curve.smooth.map((values, i) => {
      const points = values.flatMap((value, k): Point[] =>
        curve.buckets[k].broken > 0 ? [gap] : [[curve.steps[k], value]],
      );
      return html`<path class="smooth s${i + 1}" d="${paths(points).line}"/>`;
    });
    const { line, dots } = paths(raw);
    return html`<g class="run run-${run} ink-${run % colours}"><path class="${chart.spec.noisy ? 'raw' : 'exact'}" d="${line}"/>${dots && html`<path class="dots" d="${dots}"/>`}${smooth}</g>`;
  });
  return html`<g class="${name}"><path class="grid" d="${grid.join('')}"/>${curves}</g>`;
}

/** Step and value; not a number where the curve is interrupted. */
type Point = readonly [number, number];
const gap: Point = [Number.NaN, Number.NaN];

/** Path data: lines through the points, anew after each gap, and dots for points that stand alone. */
function pathsOf(
  points: readonly Point[],
  [from, to]: readonly [number, number],
  y: (value: number) => number,
): { line: string; dots: string } {
  const lines: string[][] = [[]];
  for (const [step, value] of points) {
    const at = y(value);
    if (!Number.isFinite(at)) {
      if (lines[lines.length - 1].length > 0) lines.push([]);
      continue;
    }
    const x = ((step - from) / (to - from)) * viewBox.width;
    lines[lines.length - 1].push(`${round(x)} ${round(Math.min(Math.max(at, 0), 1) * viewBox.height)}`);
  }
  const line = lines.filter(({ length }) => length > 1).map((line) => `M${line.join('L')}`);
  const dots = lines.filter(({ length }) => length === 1).map(([point]) => `M${point}h0`);
  return { line: line.join(''), dots: dots.join('') };
}

/** Where a value lies on an axis: 0 at its top, 1 at its bottom; not finite for what a logarithm has no place for. */
function position(low: number, high: number, name: 'linear' | 'log'): (value: number) => number {
  if (name === 'linear') return (value) => (high - value) / (high - low);
  return (value) => (value > 0 ? Math.log(high / value) / Math.log(high / low) : Number.NaN);
}

function ticksOf({ metric }: ChartSpec, low: number, high: number, name: 'linear' | 'log'): number[] {
  if (name === 'log') return logTicks(low, high);
  const unit = metric !== 'memoryBytes' ? 1 : high > 1000 * 2 ** 20 ? 2 ** 30 : 2 ** 20;
  return linearTicks(low / unit, high / unit, 5).map((tick) => tick * unit);
}

function stepTicks([from, to]: readonly [number, number]): number[] {
  return linearTicks(from, to, 6).filter(Number.isInteger);
}

/** A sentence in place of the picture. */
function describe({ spec, curves }: Chart, [from, to]: readonly [number, number]): string {
  const ends = curves.flatMap((curve) => {
    const values = (curve?.smooth[defaultSmoothing - 1] ?? curve?.buckets.map(({ mean }) => mean) ?? []).filter(
      Number.isFinite,
    );
    return values.length > 0 ? [`from ${spec.format(values[0])} to ${spec.format(values[values.length - 1])}`] : [];
  });
  return `${spec.title} over steps ${wholeNumber(from)} to ${wholeNumber(to)}: ${ends.join('; ')}`;
}

function percent(share: number): string {
  return `${Math.round(share * 1e4) / 100}%`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
