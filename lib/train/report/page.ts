/** The page of a report: one file without anything outside it, of one run or of several side by side. */
import { setImmediate } from 'node:timers/promises';
import {
  type Chart,
  chartFigure,
  chartOf,
  chartSpecs,
  colours,
  defaultSmoothing,
  smoothingWindow,
  stepRange,
} from './chart.js';
import { compareConfigs } from './config-table.js';
import { type Content, Html, html, jsonScript } from './html.js';
import { bytesOf, countOf, durationOf, shortNumber, wholeNumber } from './numbers.js';
import { type RunFacts, type RunStatus, secondsOfSteps } from './run-facts.js';
import type { RunSamples } from './samples.js';
import { script } from './script.js';
import { style } from './style.js';

/** Everything is in the page, and nothing may be fetched, whatever a name in it says. */
const policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

const statusWords: Record<RunStatus, string> = {
  running: 'Running',
  finished: 'Finished',
  interrupted: 'Interrupted',
  failed: 'Failed',
};

/** A run in the page. */
export interface PageRun extends RunSamples {
  facts: RunFacts;
}

/** The HTML document. Long logs are worked through a chart at a time, with room for the process's other work in between. */
export async function reportPage(runs: readonly PageRun[], written = new Date()): Promise<string> {
  const facts = runs.map(({ facts }) => facts);
  const histories = facts.map(({ history }) => history);
  const charts: Chart[] = [];
  for (const spec of chartSpecs) {
    const chart = chartOf(spec, histories);
    if (chart) charts.push(chart);
    await setImmediate();
  }
  const range = charts.length > 0 ? stepRange(histories) : ([0, 1] as const);
  const [only] = runs.length === 1 ? facts : [];
  const title = only ? `${only.name} · training report` : `${runs.length} runs compared · training report`;
  const running = facts.some(({ status }) => status === 'running');
  const page = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${title}</title>
<link rel="icon" href="data:,">
<style>${new Html(style)}</style>
</head>
<body data-smoothing="${defaultSmoothing}" data-runs="${runs.length}">
<header>
<p class="eyebrow"><span>diffit training report</span><span class="written">${running && followSwitch}written <time datetime="${written.toISOString()}">${clock(written)}</time></span></p>
${only ? runHeader(only) : comparisonHeader(facts)}
${complaints(runs)}</header>
<main>
${charts.length > 0 ? chartSection(charts, range, facts) : html`<p class="empty">No step has been logged yet.</p>`}
${sampleSection(runs)}
${compareConfigs(facts, swatch)}
</main>
${jsonScript('data', pageData(runs, charts, range))}
<script>${new Html(script)}</script>
</body>
</html>
`;
  return page.markup;
}

const followSwitch = html`<label class="scripted follow"><input type="checkbox" id="follow"> reload every 10 s</label> `;

function runHeader(run: RunFacts): Html {
  const { name, status, error, step, steps } = run;
  return html`<div class="title"><h1>${name}</h1>${statusPill(status)}</div>
<p class="lede">${ledeOf(run).map((part) => html`<span>${part}</span> `)}</p>
${error !== undefined && html`<p class="error" role="alert">${error}</p>`}
${steps !== undefined && html`<div class="progress" role="progressbar" aria-label="Steps done" aria-valuemin="0" aria-valuemax="${steps}" aria-valuenow="${step}"><i style="width:${Math.min(100, (100 * step) / steps).toFixed(1)}%"></i></div>`}
<dl class="facts">${factsOf(run).map(([term, value, more]) => html`<div><dt>${term}</dt><dd>${value}${more && html` <small>${more}</small>`}</dd></div>`)}</dl>`;
}

/** What was trained, on what and in what. */
function ledeOf({ config, parameters, device, deviceModel, data }: RunFacts): string[] {
  const [model, training] = [objectIn(config.model), objectIn(config.training)];
  const images = objectIn(config.data).images;
  const kind = typeof model.kind === 'string' ? model.kind : undefined;
  const parts = [
    kind && (typeof model.preset === 'string' ? `${kind}, preset ${model.preset}` : kind),
    parameters !== undefined && `${countOf(parameters)} parameters`,
    typeof training.precision === 'string' && `${training.precision}${device ? ` on ${deviceModel ?? device}` : ''}`,
    typeof images === 'number' && `${data ? `${data}, ` : ''}${wholeNumber(images)} images`,
  ];
  return parts.filter((part) => typeof part === 'string');
}

/** Numbers of a run: what, its value, and a word more. */
function factsOf(run: RunFacts): [string, string, string?][] {
  const { step, steps, status, elapsed, history, config } = run;
  const rate = recentRate(run);
  const images = history.images[history.length - 1];
  const total = objectIn(config.data).images;
  const epochs =
    typeof total === 'number' && total > 0
      ? `${shortNumber(Number((images / total).toPrecision(3)))} epochs`
      : undefined;
  const left = steps !== undefined && status === 'running' ? secondsLeft(run, steps) : undefined;
  const { memoryBytes } = history.columns;
  const peak = memoryBytes.reduce((most, bytes) => (Number.isFinite(bytes) && bytes > most ? bytes : most), 0);
  const facts: ([string, string, string?] | false)[] = [
    ['Step', wholeNumber(step), steps === undefined ? undefined : `of ${wholeNumber(steps)}`],
    history.length > 0 && [
      'Loss',
      shortNumber(lastLoss(run)),
      history.length > 1 ? `mean of ${wholeNumber(Math.min(lossWindow(run), history.length))} steps` : undefined,
    ],
    rate > 0 && ['Throughput', shortNumber(Number(rate.toPrecision(3))), 'images/s'],
    Number.isFinite(images) && ['Images seen', wholeNumber(images), epochs],
    ['Elapsed', durationOf(elapsed)],
    left !== undefined && ['Remaining', `about ${durationOf(left)}`],
    peak > 0 && ['Memory', bytesOf(peak), 'at most'],
  ];
  return facts.filter((fact) => fact !== false);
}

function comparisonHeader(runs: readonly RunFacts[]): Html {
  const columns = ['Run', 'Status', 'Step', 'Loss', 'Images/s', 'Images', 'Elapsed', 'Parameters'];
  const rows = runs.map((run, i) => {
    const { name, folder, status, error, step, steps, history, elapsed, parameters } = run;
    const images = history.images[history.length - 1];
    return html`<tr><th scope="row"><label title="${folder}"><input type="checkbox" class="scripted" data-run="${i}" checked> ${swatch(i)}${name}</label></th>
<td>${statusPill(status)}${error !== undefined && html`<small class="error">${error}</small>`}</td>
<td>${wholeNumber(step)}${steps !== undefined && steps !== step && html` <small>of ${wholeNumber(steps)}</small>`}</td>
<td>${shortNumber(lastLoss(run))}</td><td>${shortNumber(Number(recentRate(run).toPrecision(3)))}</td><td>${Number.isFinite(images) ? wholeNumber(images) : '–'}</td>
<td>${durationOf(elapsed)}</td><td>${parameters === undefined ? '–' : countOf(parameters)}</td></tr>`;
  });
  return html`<div class="title"><h1>${runs.length} runs compared</h1></div>
<div class="scroll"><table class="runs"><thead><tr>${columns.map((column) => html`<th scope="col">${column}</th>`)}</tr></thead><tbody>${rows}</tbody></table></div>
<p class="hint">Loss is the mean of the last 4% of a run's steps.</p>`;
}

function chartSection(charts: readonly Chart[], range: readonly [number, number], runs: readonly RunFacts[]): Html {
  const levels = ['off', 'light', 'medium', 'strong'];
  const figures = charts.map((chart) => {
    const { spec } = chart;
    const values = runs.map((run, i) => {
      const column = run.history.columns[spec.metric];
      const last =
        spec.metric === 'loss'
          ? lastLoss(run)
          : spec.metric === 'imagesPerSecond'
            ? recentRate(run)
            : lastFinite(column);
      return (
        chart.curves[i] &&
        html`<span class="run run-${i}">${runs.length > 1 && swatch(i)}${spec.format(Number(last.toPrecision(4)))}</span> `
      );
    });
    return chartFigure(chart, range, runs, values);
  });
  return html`<section aria-label="Curves"><div class="bar"><h2>Curves</h2>
<fieldset class="choice scripted"><legend>Smoothing</legend>${levels.map((level, i) => html`<label><input type="radio" name="smoothing" value="${i}"${i === defaultSmoothing && new Html(' checked')}><span>${level}</span></label>`)}</fieldset></div>
<div class="charts">${figures}</div>
<p class="hint">By step. Thin lines are the steps themselves, thick ones their mean over a stretch. <span class="scripted">Point at a chart to read values, or select it and use the arrow keys.</span></p></section>`;
}

function sampleSection(runs: readonly PageRun[]): Content {
  const steps = sampleSteps(runs);
  if (steps.length === 0) return undefined;
  const several = runs.length > 1;
  const last = steps.length - 1;
  const blocks = runs.map(({ facts: { name }, grids }, run) => {
    if (grids.length === 0) return undefined;
    const small = grids.every(({ width, height }) => Math.max(width, height) <= 400);
    const thumbs = grids.map(
      ({ step, uri, width, height }) =>
        html`<button type="button" class="thumb" data-step="${step}"><img src="${uri}" width="${width}" height="${height}" alt="Samples at step ${wholeNumber(step)}${several && ` of ${name}`}"><span>${wholeNumber(step)}</span></button>`,
    );
    return html`<div class="samples run run-${run}${small && ' pixels'}" data-samples="${run}">${several && html`<h3>${swatch(run)}${name}</h3>`}
<figure class="viewer scripted"><img alt=""><figcaption></figcaption></figure><div class="strip">${thumbs}</div></div>`;
  });
  return html`<section aria-label="Samples"><div class="bar"><h2>Samples</h2>
<div class="slider scripted"><button type="button" id="play">Play</button><label for="sample-step">Step</label><input type="range" id="sample-step" min="0" max="${last}" value="${last}" step="1"><output for="sample-step">${wholeNumber(steps[last])}</output></div></div>
<div class="sample-runs">${blocks}</div>
<p class="hint">Images of the averaged weights, from the same noise every time.</p></section>`;
}

/** Steps at which some run has a grid. */
function sampleSteps(runs: readonly PageRun[]): number[] {
  return [...new Set(runs.flatMap(({ grids }) => grids.map(({ step }) => step)))].sort((a, b) => a - b);
}

/** What could not be read. */
function complaints(runs: readonly PageRun[]): Content {
  const found = runs.flatMap(({ facts: { name, history }, damaged }) => [
    history.unreadable > 0 && `${wholeNumber(history.unreadable)} lines of the log of ${name} cannot be read.`,
    damaged.length > 0 && `Sample grids of ${name} that are no intact images: ${damaged.join(', ')}.`,
  ]);
  return found.map((sentence) => sentence && html`<p class="error">${sentence}</p>`);
}

/** What the script needs to say values: per chart and run the buckets, rounded. */
function pageData(runs: readonly PageRun[], charts: readonly Chart[], range: readonly [number, number]): unknown {
  const rounded = (values: readonly number[]): (number | null)[] =>
    values.map((value) => (Number.isFinite(value) ? Number(value.toPrecision(5)) : null));
  return {
    range,
    runs: runs.map(({ facts: { name } }, i) => ({ name, colour: i % colours })),
    samples: sampleSteps(runs),
    charts: charts.map(({ spec: { metric }, linear, log, curves }) => ({
      ...{ metric, linear, log, bytes: metric === 'memoryBytes' },
      curves: curves.map(
        (curve) =>
          curve && {
            steps: curve.steps,
            low: rounded(curve.buckets.map(({ low }) => low)),
            high: rounded(curve.buckets.map(({ high }) => high)),
            mean: rounded(curve.buckets.map(({ mean }) => mean)),
            smooth: curve.smooth.map(rounded),
          },
      ),
    })),
  };
}

function statusPill(status: RunStatus): Html {
  return html`<span class="status ${status}">${statusWords[status]}</span>`;
}

function swatch(run: number): Html {
  return html`<i class="swatch colour-${run % colours}"></i>`;
}

/** Steps whose mean is a run's loss. */
function lossWindow({ history }: RunFacts): number {
  return smoothingWindow(defaultSmoothing, history.length);
}

function lastLoss(run: RunFacts): number {
  const values = run.history.columns.loss.slice(-lossWindow(run)).filter(Number.isFinite);
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Images per second over the last hundred steps. */
function recentRate({ history }: RunFacts): number {
  const start = Math.max(1, history.length - 100);
  const seen = history.images[history.length - 1] - history.images[start - 1];
  return seen > 0 ? seen / secondsOfSteps(history, start) : lastFinite(history.columns.imagesPerSecond);
}

function secondsLeft({ history, step, elapsed }: RunFacts, steps: number): number | undefined {
  if (step === 0) return undefined;
  const perStep = secondsOfSteps(history, 0) / history.length;
  // Samples and checkpoints take their share too, as far as the clock has seen it.
  return (steps - step) * Math.max(perStep, Math.min(elapsed / step, 2 * perStep));
}

function lastFinite(values: readonly number[]): number {
  for (let i = values.length - 1; i >= 0; i--) if (Number.isFinite(values[i])) return values[i];
  return Number.NaN;
}

function objectIn(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function clock(time: Date): string {
  return time.toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });
}
