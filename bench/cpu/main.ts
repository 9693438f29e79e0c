/**
 * Times diffit on a CPU beside its peers, in the same run and on the same weights, and writes bench/results/cpu-*.json and the tables
 * of docs/benchmarks.md that are made of it.
 *
 *     npm run bench -- --peers [options]
 *       --only TEXT       only works with this in their name
 *       --against TEXT    only these peers, by the names of the tables, with commas between
 *       --rounds N        turns of everybody (default 5)
 *       --limit MINUTES   after so long nothing further is started
 *       --quick           tiny sizes and two rounds: does it all run?
 *       --variant NAME    of our kernels: avx512, avx2, baseline (default: the best there is)
 *       --threads N       of everything (default: the cores)
 *       --without-peers   ours alone
 *       --out FILE        where the JSON goes (default bench/results/cpu-VENDOR-VARIANT.json; nowhere when only a part is timed). With
 *                         -repeat at the end of the name the tables show it beside the run without
 *
 * Every implementation lives in a process of its own that holds its models and works when it is asked to (station.ts). For each work all
 * are prepared on the same weights and inputs, their outputs are compared, and then they take turns: A B C, A B C, ... with a pause
 * between, one at a time, all with the same number of threads. The exit code is 1 when outputs disagree or something of ours failed.
 */
import { execFileSync } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus, totalmem } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { rewriteTables } from '../tables.js';
import { Bench } from './bench.js';
import { assemble, buildDist, root } from './prepare.js';
import { type CpuReport, ours, type Row } from './report.js';
import { endAll } from './station.js';
import { quickWorks, works } from './work.js';

function said(...argv: string[]): string | undefined {
  try {
    return execFileSync(argv[0], argv.slice(1), {
      cwd: root,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    }).trim();
  } catch {
    return undefined;
  }
}

export async function main(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      peers: { type: 'boolean' },
      only: { type: 'string', default: '' },
      against: { type: 'string' },
      rounds: { type: 'string' },
      limit: { type: 'string' },
      quick: { type: 'boolean', default: false },
      variant: { type: 'string' },
      threads: { type: 'string' },
      'without-peers': { type: 'boolean', default: false },
      out: { type: 'string' },
    },
  });
  const { only, quick, variant } = values;
  const rounds = Number(values.rounds ?? (quick ? 2 : 5));
  const threads = Number(values.threads ?? process.env.DIFFIT_NUM_THREADS ?? availableParallelism());
  if (!(Number.isInteger(rounds) && rounds > 0 && Number.isInteger(threads) && threads > 0))
    throw new Error('--rounds and --threads are whole numbers above 0.');
  const limit = Number(values.limit ?? Number.POSITIVE_INFINITY);
  if (!(limit > 0)) throw new Error('--limit is a number of minutes above 0.');
  const wanted = values.against?.split(',');
  const takesPart = (name: string): boolean => name === ours || !wanted || wanted.includes(name);
  const chosen = (quick ? quickWorks() : works())
    .filter(({ id }) => id.includes(only))
    .map((work) => ({ ...work, by: work.by.filter(takesPart) }));
  if (chosen.length === 0) throw new Error(`--only ${only}: no work has this in its name.`);
  const started = performance.now();
  const say = (line: string): void =>
    console.log(`${((performance.now() - started) / 1000).toFixed(0).padStart(5)} s  ${line}`);
  process.on('SIGINT', () => {
    endAll();
    process.exit(130);
  });
  buildDist();
  const crew = assemble({ threads, variant, peers: !values['without-peers'], say });
  for (const [peer, why] of Object.entries(crew.missing)) say(`without ${peer}: ${why}`);
  const rows: Row[] = [];
  const until = started + limit * 60_000;
  const bench = new Bench({ works: chosen, rounds, quick, crew, threads, until, say, onRow: (row) => rows.push(row) });
  try {
    const { ceilings, about } = await bench.run();
    say(`ceilings: ${JSON.stringify(ceilings)}`);
    const report: CpuReport = {
      schema: 1,
      kind: 'cpu',
      date: new Date().toISOString(),
      git: said('git', 'rev-parse', '--short', 'HEAD'),
      quick,
      rounds,
      machine: { ...about, vendor: crew.vendor, cores: cpus().length, threads, memory: totalmem() },
      versions: bench.versions,
      missing: crew.missing,
      ceilings,
      rows,
    };
    const vendor = { GenuineIntel: 'intel', AuthenticAMD: 'amd' }[crew.vendor] ?? process.arch;
    const results = join(root, 'bench', 'results');
    const standard = join(results, `cpu-${vendor}-${about.variant}.json`);
    const out = values.out ?? (quick || only || wanted || values['without-peers'] ? undefined : standard);
    if (out) {
      writeFileSync(out, `${JSON.stringify(report, null, 1)}\n`);
      const docs = join(root, 'docs', 'benchmarks.md');
      if (dirname(resolve(out)) === results && existsSync(docs)) rewriteTables(docs, results);
      say(`wrote ${out}`);
    }
    const failures = rows.flatMap(({ id, outcomes }) =>
      Object.entries(outcomes).flatMap(([name, { failure }]) => (failure ? [`${id}, ${name}: ${failure}`] : [])),
    );
    for (const failure of failures) console.error(`failed: ${failure}`);
    return failures.length > 0 ? 1 : 0;
  } finally {
    await bench.close();
  }
}

main(process.argv.slice(2)).then(
  (code) => process.exit(code),
  (error) => {
    endAll();
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    process.exit(1);
  },
);
