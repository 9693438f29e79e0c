/**
 * Merges reports of `diffit bench --out` and bench/peers/run.py into one table with ratios, and says which of the CUDA backend's
 * targets are met. Several reports of one implementation (rounds) count together: the median of their medians.
 *
 *     npx tsx bench/compare.ts [--markdown FILE] [--json FILE] REPORT.json ...
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

/** What is read of a report; lib/bench/report.ts has the whole. */
export interface Report {
  schema: number;
  group: string;
  date: string;
  git?: string;
  versions: Record<string, string | null>;
  device: { name: string; model?: string };
  quick: boolean;
  dtype: string;
  ceilings: { copy?: number | null; arithmetic?: number | null } | null;
  results: {
    id: string;
    implementation: string;
    dtype: string;
    flops?: number;
    bytes?: number;
    items: number;
    unit: string;
    ms?: { median: number; low: number; high: number };
    error?: string;
  }[];
}

/** One row of the table. */
export interface Row {
  id: string;
  dtype: string;
  group: string;
  /** Milliseconds by implementation, over all rounds: the median, and the largest over the smallest. */
  times: Record<string, { ms: number; spread: number }>;
  errors: Record<string, string>;
  ofCopy?: number;
  ofArithmetic?: number;
  /** The floor over our time. */
  ofFloor?: number;
}

export interface Target {
  what: string;
  target: string;
  status: 'met' | 'not met' | 'not measured';
  /** The worst of what was measured, and where. */
  found?: { value: number; id: string };
}

const ours = 'diffit';

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
}

export function merge(reports: readonly Report[]): Row[] {
  // What anybody reached in this run is the ceiling of all.
  const best = (dtype: string, what: 'copy' | 'arithmetic'): number =>
    Math.max(0, ...reports.filter((r) => what === 'copy' || r.dtype === dtype).map((r) => r.ceilings?.[what] || 0));
  const rows = new Map<string, Row & { medians: Record<string, number[]>; flops?: number; bytes?: number }>();
  for (const { group, results } of reports) {
    for (const { id, dtype, implementation, flops, bytes, ms, error } of results) {
      const key = `${id} ${dtype}`;
      const row = rows.get(key) ?? { id, dtype, group, times: {}, errors: {}, medians: {}, flops, bytes };
      rows.set(key, row);
      if (ms) row.medians[implementation] = [...(row.medians[implementation] ?? []), ms.median];
      else row.errors[implementation] = error ?? 'no time';
    }
  }
  return [...rows.values()].map(({ medians, flops, bytes, ...row }) => {
    for (const [implementation, values] of Object.entries(medians)) {
      row.times[implementation] = { ms: median(values), spread: Math.max(...values) / Math.min(...values) };
      delete row.errors[implementation];
    }
    const own = row.times[ours];
    const [copy, arithmetic] = [best(row.dtype, 'copy'), best(row.dtype, 'arithmetic')];
    if (!own) return row;
    const share = (amount: number | undefined, ceiling: number): number | undefined =>
      amount && ceiling ? (1000 * amount) / own.ms / ceiling : undefined;
    const [ofCopy, ofArithmetic] = [share(bytes, copy), share(flops, arithmetic)];
    const shares = [ofCopy, ofArithmetic].filter((v) => v !== undefined);
    return { ...row, ofCopy, ofArithmetic, ofFloor: shares.length > 0 ? Math.max(...shares) : undefined };
  });
}

/** Time of the first peer that has one, over ours. */
const ratio =
  (...peers: string[]) =>
  ({ times }: Row): number | undefined => {
    const peer = peers.map((name) => times[name]).find((time) => time !== undefined);
    return peer && times[ours] ? peer.ms / times[ours].ms : undefined;
  };

/** Issue 4's table: rows it is about, what is read of a row, the bound. `atMost` turns the comparison around. */
const wanted: {
  what: string;
  ids: RegExp;
  read: (row: Row, rows: Row[]) => number | undefined;
  bound: number;
  atMost?: true;
  unit: string;
}[] = [
  {
    what: 'TMSA forward, N = 1024, against flex_attention with the bias',
    ids: /^attention\/32x32\/b\d+h16d72\/forward$/,
    read: ratio('flex', 'flex padded'),
    bound: 1.3,
    unit: 'x',
  },
  {
    what: 'TMSA forward, N = 1024, against SDPA with a float mask',
    ids: /^attention\/32x32\/b\d+h16d72\/forward$/,
    read: ratio('sdpa mask'),
    bound: 3,
    unit: 'x',
  },
  {
    what: 'TMSA forward, N = 1024, against flash attention without a bias',
    ids: /^attention\/32x32\/b\d+h16d72\/forward$/,
    read: ratio('sdpa flash without bias'),
    bound: 0.5,
    unit: 'x',
  },
  {
    what: 'TMSA forward, N = 256: share of the binding ceiling',
    ids: /^attention\/16x16\/b\d+h16d72\/forward$/,
    read: ({ ofFloor }) => ofFloor,
    bound: 0.6,
    unit: '',
  },
  {
    what: 'TMSA backward with dTable against SDPA mem-efficient with the bias gradient',
    ids: /^attention\/(16x16|32x32)\/b\d+h16d72\/backward$/,
    read: ratio('sdpa mem-efficient mask'),
    bound: 2,
    unit: 'x',
  },
  {
    what: 'windows, forward, partition included: share of the copy bandwidth',
    ids: /^attention\/\d+x\d+\/[48]x[48]\/b\d+h16d72\/forward$/,
    read: ({ ofCopy }) => ofCopy,
    bound: 0.7,
    unit: '',
  },
  {
    what: 'windows, forward, partition included, against SDPA with a mask',
    ids: /^attention\/\d+x\d+\/[48]x[48]\/b\d+h16d72\/forward$/,
    read: ratio('sdpa mask'),
    bound: 3,
    unit: 'x',
  },
  {
    what: 'GEMM, M = B * 256, against cuBLASLt',
    ids: /^gemm\/m8192n\d+k\d+\/nt$/,
    read: ratio('torch.mm'),
    bound: 0.9,
    unit: 'x',
  },
  {
    what: "the sampler's arithmetic in a denoising step",
    ids: /^sampler\/imagenet256\/b\d+\/guided ddpm step arithmetic$/,
    read: ({ id, dtype, times }, rows) => {
      const whole = rows.find((row) => row.dtype === dtype && `${row.id} arithmetic` === id)?.times[ours];
      return whole && times[ours] && times[ours].ms / whole.ms;
    },
    bound: 0.01,
    atMost: true,
    unit: '',
  },
  {
    what: 'XL/2 at 256 px, guided steps, batch 16, against torch.compile with CUDA graphs',
    ids: /^sampler\/imagenet256\/b16\/guided ddpm step$/,
    read: ratio('compile max-autotune', 'compile reduce-overhead'),
    bound: 1,
    unit: 'x',
  },
];

/** The targets, judged by the worst row of each; only bf16 on a GPU counts. */
export function judge(reports: readonly Report[], rows: Row[]): Target[] {
  const real = reports.some(
    ({ device, quick }) => device.name.startsWith('cuda') && device.name !== 'cuda-emulated' && !quick,
  );
  return wanted.map(({ what, ids, read, bound, atMost, unit }) => {
    const target = `${atMost ? '<=' : '>='} ${unit ? `${bound}${unit}` : `${100 * bound}%`}`;
    const values = (real ? rows : []).flatMap((row) => {
      const value = row.dtype === 'bf16' && ids.test(row.id) ? read(row, rows) : undefined;
      return value === undefined ? [] : [{ value, id: row.id }];
    });
    if (values.length === 0) return { what, target, status: 'not measured' };
    const found = values.reduce((a, b) => ((atMost ? b.value > a.value : b.value < a.value) ? b : a));
    const met = atMost ? found.value <= bound : found.value >= bound;
    return { what, target, status: met ? 'met' : 'not met', found };
  });
}

/** The tables, in Markdown. */
export function markdown(reports: readonly Report[], rows: Row[], targets: Target[]): string {
  const lines: string[] = [];
  const heads = new Set(
    reports.map(({ device, date, git, versions }) => {
      const named = Object.entries(versions).filter(([, version]) => version);
      return `${device.model ?? device.name} (${device.name}), ${date.slice(0, 10)}${git ? `, commit ${git}` : ''}: ${named.map(([name, version]) => `${name} ${version}`).join(', ')}`;
    }),
  );
  lines.push(...[...heads].map((head) => `- ${head}`), '', '| target | | worst | |', '|---|---|---|---|');
  for (const { what, target, status, found } of targets) {
    const percent = target.endsWith('%');
    const value = found
      ? `${percent ? `${(100 * found.value).toFixed(1)}%` : `${found.value.toFixed(2)}x`} (${found.id})`
      : '';
    lines.push(`| ${what} | ${target} | ${value} | ${status} |`);
  }
  for (const key of new Set(rows.map(({ group, dtype }) => `${group}, ${dtype}`))) {
    const shown = rows.filter(({ group, dtype }) => `${group}, ${dtype}` === key);
    const peers = [...new Set(shown.flatMap(({ times, errors }) => Object.keys({ ...times, ...errors })))].filter(
      (name) => name !== ours,
    );
    lines.push('', `### ${key}`, '', 'Milliseconds; in brackets the peer over diffit (above 1: diffit is faster).', '');
    lines.push(`| | diffit | of floor | ${peers.join(' | ')} |`, `|---|---|---|${peers.map(() => '---|').join('')}`);
    for (const row of shown) {
      const { id, times, errors, ofFloor } = row;
      const cells = peers.map((name) => {
        if (!times[name]) return errors[name] ? 'no' : '';
        const over = times[ours] ? ` (${(times[name].ms / times[ours].ms).toFixed(2)})` : '';
        return `${times[name].ms.toPrecision(3)}${over}`;
      });
      const own = times[ours]?.ms.toPrecision(3) ?? (errors[ours] ? 'no' : '');
      lines.push(
        `| ${id} | ${own} | ${ofFloor === undefined ? '' : `${(100 * ofFloor).toFixed(0)}%`} | ${cells.join(' | ')} |`,
      );
    }
  }
  const failures = rows.flatMap(({ id, dtype, errors }) =>
    Object.entries(errors).map(([name, error]) => `- ${id}, ${dtype}, ${name}: ${error}`),
  );
  if (failures.length > 0) lines.push('', 'Not measured:', '', ...failures);
  return `${lines.join('\n')}\n`;
}

/** Reads the reports; a file that is none is an error naming it. */
export function readReports(paths: readonly string[]): Report[] {
  return paths.map((path) => {
    const report = JSON.parse(readFileSync(path, 'utf8'));
    if (report.schema !== 1 || !Array.isArray(report.results))
      throw new Error(`${path} is not a report of "diffit bench --out".`);
    return report;
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({
    options: { markdown: { type: 'string' }, json: { type: 'string' } },
    allowPositionals: true,
  });
  try {
    if (positionals.length === 0) throw new Error('Give the files of reports.');
    const reports = readReports(positionals);
    const rows = merge(reports);
    const targets = judge(reports, rows);
    if (values.json) writeFileSync(values.json, `${JSON.stringify({ targets, rows }, null, 2)}\n`);
    if (values.markdown) writeFileSync(values.markdown, markdown(reports, rows, targets));
    console.log(markdown(reports, rows, targets));
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    process.exit(1);
  }
}
