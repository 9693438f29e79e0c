/**
 * Writes the tables of docs/benchmarks.md from the JSON of bench/cpu: what stands between `<!-- table: NAME -->` and `<!-- end -->` is
 * made from bench/results/NAME.json, and test/bench/cpu-report.test.ts fails when the two differ. NAME-repeat is a second run of NAME,
 * shown beside the first.
 *
 *     npx tsx bench/tables.ts
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  type CpuReport,
  type Judgement,
  judge,
  median,
  type Outcome,
  ours,
  type Row,
  ratioOf,
  shareOf,
} from './cpu/report.js';

const titles: Record<string, string> = {
  startup: 'Start-up: importing the library in a new process',
  gemm: 'Matrix products of the models, f32',
  attention: 'Attention with a bias, f32, 16 heads of 72',
  forward: 'Forward passes',
  train: 'Training steps (forward, backward, AdamW), f32',
};

const percent = (share: number | undefined): string => (share === undefined ? '' : `${(100 * share).toFixed(0)}%`);
const number = (value: number): string => (value >= 1000 ? value.toFixed(0) : value.toPrecision(3));

/** The tables of one run, in Markdown. */
export function cpuTables(report: CpuReport): string {
  const { machine, date, git, versions, missing, ceilings, rows } = report;
  const { processor, threads, variant } = machine;
  const giga = (rate: number): string => (rate / 1e9).toFixed(0);
  const named = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
  const dot = ceilings.bf16Dot > 0 ? `, its bf16 dot product ${giga(ceilings.bf16Dot)}` : '';
  const lines = [
    `${processor}, ${threads} threads of everything, our variant ${variant}; ${date.slice(0, 10)}${git ? `, commit ${git}` : ''}; ${named.join(', ')}.`,
    `Measured in the run, at best: multiply-adds ${giga(ceilings.fma)} GFLOP/s (one thread ${giga(ceilings.fmaOneThread)})${dot}; a large copy ${(ceilings.copy / 1e9).toFixed(1)} GB/s, read and written. The clock changes, so a row’s ceiling is the better of those just before and after it${peaks(rows)}.`,
    'Milliseconds are medians of the rounds; in brackets the peer over diffit, the median of the rounds’ own ratios (above 1: diffit is faster).',
    ...[...new Set(Object.values(missing))].map((why) => `Not there: ${why}`),
  ];
  for (const group of new Set(rows.map((row) => row.group)))
    lines.push(
      '',
      ...groupTable(
        group,
        rows.filter((row) => row.group === group),
      ),
    );
  return lines.join('\n');
}

/** From the lowest to the highest that rows were held against. */
function peaks(rows: Row[]): string {
  const found = rows.map((row) => row.ceilings.fma / 1e9);
  return found.length > 0 ? `, ${Math.min(...found).toFixed(0)} to ${Math.max(...found).toFixed(0)} GFLOP/s` : '';
}

function groupTable(group: string, rows: Row[]): string[] {
  const peers = [...new Set(rows.flatMap(({ outcomes }) => Object.keys(outcomes)))].filter((name) => name !== ours);
  const rates = group !== 'startup';
  const heads = ['', 'diffit, ms', ...(rates ? ['GFLOP/s', 'of the ceiling'] : []), ...peers, 'target', 'met'];
  const cells = rows.map((row) => {
    const own = row.outcomes[ours];
    const ms = own.rounds.length > 0 ? median(own.rounds) : undefined;
    const judged = judge(row);
    return [
      row.id.slice(row.id.indexOf('/') + 1),
      ms === undefined ? 'failed' : number(ms),
      ...(rates ? shares(row, ms) : []),
      ...peers.map((peer) => peerCell(row.outcomes[peer], own)),
      judged.map(described).join('; '),
      judged.map(verdict).join('; '),
    ];
  });
  const lines = [`#### ${titles[group] ?? group}`, '', `| ${heads.join(' | ')} |`, `|${'---|'.repeat(heads.length)}`];
  lines.push(...cells.map((row) => `| ${row.join(' | ')} |`));
  const memory = rows.filter(({ outcomes }) => Object.values(outcomes).some(({ peakRss }) => peakRss));
  if (memory.length > 0)
    lines.push('', 'Most resident memory of the process during the steps:', '', ...memory.map(memoryLine));
  const failed = rows.flatMap(({ id, outcomes }) =>
    Object.entries(outcomes).flatMap(([name, { failure }]) => (failure ? [`- ${id}, ${name}: ${failure}`] : [])),
  );
  if (failed.length > 0) lines.push('', 'Not measured:', '', ...failed);
  const errors = rows.flatMap(({ dtype, outcomes }) =>
    Object.entries(outcomes).map(([name, { error }]) => ({ dtype, name, error })),
  );
  const worst = (['f32', 'bf16'] as const).flatMap((dtype) => {
    const found = errors.filter(({ dtype: of, error }) => of === dtype && error !== undefined);
    if (found.length === 0) return [];
    const { name, error } = found.reduce((a, b) => ((b.error as number) > (a.error as number) ? b : a));
    return [`${dtype} ${(error as number).toExponential(1)} (${name})`];
  });
  if (worst.length > 0)
    lines.push('', `Largest difference of an output, over its largest number: ${worst.join(', ')}.`);
  return lines;
}

/** GFLOP/s, and the share of the row's own ceiling that binds. */
function shares(row: Row, ms: number | undefined): string[] {
  if (ms === undefined) return ['', ''];
  const { gigaflops, ofPeak, ofCopy, binds } = shareOf(row, ms);
  return [
    gigaflops === undefined ? '' : gigaflops.toFixed(0),
    binds === 'memory' ? `${percent(ofCopy)} of copy` : percent(ofPeak),
  ];
}

function peerCell(theirs: Outcome | undefined, own: Outcome): string {
  if (!theirs) return '';
  if (theirs.rounds.length === 0) return 'no';
  const ratio = ratioOf(theirs, own);
  const range = ratio ? ` (**${ratio.median.toFixed(2)}**, ${ratio.low.toFixed(2)}–${ratio.high.toFixed(2)})` : '';
  return `${number(median(theirs.rounds))}${range}`;
}

function described({ target: { kind, bound, peers = [] } }: Judgement): string {
  if (kind === 'milliseconds') return `< ${bound} ms`;
  if (kind === 'peak') return `>= ${percent(bound)} of peak`;
  return kind === 'memory' ? `memory <= ${bound}x ${peers.join(', ')}` : `>= ${bound}x ${peers.join(', ')}`;
}

function verdict(judgement: Judgement): string {
  return judgement.value === undefined ? 'not measured' : `${judgement.met ? 'yes' : 'no'}, ${shown(judgement)}`;
}

function shown({ target: { kind }, value = Number.NaN }: Judgement): string {
  if (kind === 'peak') return percent(value);
  return kind === 'milliseconds' ? `${value.toFixed(0)} ms` : value.toFixed(2);
}

const memoryLine = ({ id, outcomes }: Row): string => {
  const each = Object.entries(outcomes).flatMap(([name, { peakRss }]) =>
    peakRss ? [`${name} ${(peakRss / 2 ** 20).toFixed(0)} MiB`] : [],
  );
  return `- ${id.slice(id.indexOf('/') + 1)}: ${each.join(', ')}`;
};

/** A second run beside the first: our time, and the ratio of every target's peer, of each work that both did. */
export function repeatTable(first: CpuReport, second: CpuReport): string {
  const rows = second.rows.flatMap((row) => {
    const before = first.rows.find(({ id }) => id === row.id);
    return before ? [repeatRow(before, row)] : [];
  });
  const { date, git, ceilings } = second;
  return [
    `The same again, ${date.slice(0, 10)}${git ? `, commit ${git}` : ''}, with ceilings of ${(ceilings.fma / 1e9).toFixed(0)} GFLOP/s and ${(ceilings.copy / 1e9).toFixed(1)} GB/s: first run, second run.`,
    '',
    '| | diffit, ms | second over first | against the targets |',
    '|---|---|---|---|',
    ...rows.map((cells) => `| ${cells.join(' | ')} |`),
  ].join('\n');
}

function repeatRow(a: Row, b: Row): string[] {
  const times = [a, b].map(({ outcomes }) => outcomes[ours]?.rounds ?? []);
  if (times.some(({ length }) => length === 0)) return [b.id, 'failed', '', ''];
  const [before, after] = times.map(median);
  const judged = judge(b);
  const against = judge(a).flatMap((judgement, i) =>
    judgement.value === undefined || judged[i]?.value === undefined
      ? []
      : [`${described(judgement)}: ${shown(judgement)}, ${shown(judged[i])}`],
  );
  return [b.id, `${number(before)}, ${number(after)}`, (after / before).toFixed(2), against.join('; ')];
}

/** The text with the regions of these reports replaced; throws where one has no end. Regions of other names stay. */
export function withTables(text: string, reports: Readonly<Record<string, CpuReport>>): string {
  return text.replace(region, (whole, name: string, rest: string) => {
    if (!rest.endsWith(end)) throw new Error(`the table ${name} has no ${end}`);
    if (!reports[name]) return whole;
    const first = reports[firstOf(name)];
    const text = first && first !== reports[name] ? repeatTable(first, reports[name]) : cpuTables(reports[name]);
    return `<!-- table: ${name} -->\n\n${text}\n\n${end}`;
  });
}

const firstOf = (name: string): string => name.replace(/-repeat$/, '');
const end = '<!-- end -->';
const region = /<!-- table: ([\w.-]+) -->([\s\S]*?(?:<!-- end -->|$(?![\s\S])|(?=<!-- table: )))/g;

/** Names of the regions of a text. */
export const tablesIn = (text: string): string[] => [...text.matchAll(region)].map(([, name]) => name);

/** Renews the tables of a file from the JSON of a folder. */
export function rewriteTables(path: string, folder: string): void {
  const text = readFileSync(path, 'utf8');
  writeFileSync(path, withTables(text, reportsFor(text, folder)));
}

/** The reports that a text has regions for. */
export function reportsFor(text: string, folder: string): Record<string, CpuReport> {
  return Object.fromEntries(
    tablesIn(text).map((name) => [name, JSON.parse(readFileSync(join(folder, `${name}.json`), 'utf8'))]),
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const at = (path: string): string => fileURLToPath(new URL(path, import.meta.url));
  rewriteTables(at('../docs/benchmarks.md'), at('results'));
}
