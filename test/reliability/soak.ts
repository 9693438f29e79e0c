/**
 * `npm run test:soak`: mixed work for hours - training, sampling, files, data loading, workers that come and go, aborts and errors at random -
 * and what the process holds meanwhile: live buffers, the pool, memory, handles, threads. At the end each must be flat (flat.ts), and processes
 * that end with work in the queue must all have ended well (endings.ts). Two hours or more write test/reliability/results/soak.json, from
 * which docs/reliability.md has its figures.
 *
 *     npm run test:soak -- [--minutes 120] [--seed 1] [--out FILE] [--quick]      (quick: half a minute, of everything a little)
 */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { memory, trimMemory } from '../../lib/device.js';
import { HostRandom } from '../../lib/random.js';
import { settledMemory } from '../helpers.js';
import { playEndings } from './endings.js';
import { judge, type Tolerance, type Verdict } from './flat.js';
import { makePlace, work } from './soak-work.js';

const counts: Tolerance = { growth: 0, most: 1.2, slack: 2 };
/** What is measured, at rest, and what of it is still flat. */
const measures = {
  liveBuffers: { growth: 0, most: 1.1, slack: 2 },
  poolBytes: { growth: 0.02, most: 1.5, slack: 1 << 20 },
  rssBytes: { growth: 0.05, most: 1.5, slack: 8 << 20 },
  handles: counts,
  files: counts,
  threads: { ...counts, slack: 4 }, // libvips' come and go
} satisfies Record<string, Tolerance>;
type Measures = Record<keyof typeof measures, number>;
/** JavaScript's heap and malloc's find their size in some minutes; before, memory is told and not judged. */
const minutesOfRss = 10;
const fewestSamples = 12;

export interface SoakOptions {
  minutes: number;
  seed: number;
  /** Seconds between two measurements. */
  every: number;
  /** Processes ended with work in the queue. */
  endings: number;
  say: (line: string) => void;
  /** Instead of all kinds of work. */
  only?: typeof work;
}

export interface SoakReport {
  seed: number;
  minutes: number;
  rounds: Record<string, number>;
  measures: Partial<Record<keyof typeof measures, Verdict>>;
  samples: (Measures & { hours: number })[];
  endings: number;
  flat: boolean;
}

async function measure(): Promise<Measures> {
  const { liveBuffers } = await settledMemory();
  trimMemory(); // what is free goes back, or the pool's own policy is what would be measured
  const { reservedBytes } = memory();
  return {
    liveBuffers,
    poolBytes: reservedBytes,
    rssBytes: process.memoryUsage.rss(),
    handles: process.getActiveResourcesInfo().length,
    files: readdirSync('/proc/self/fd').length,
    threads: readdirSync('/proc/self/task').length,
  };
}

/** Rejects when a piece of work fails, or a process does not end as it should; what is not flat is in the report. */
export async function soak({ minutes, seed, every, endings, say, only = work }: SoakOptions): Promise<SoakReport> {
  const folder = mkdtempSync(join(tmpdir(), 'diffit-soak-'));
  const random = new HostRandom(seed);
  const jobs = Object.entries(only);
  const rounds: Record<string, number> = Object.fromEntries(jobs.map(([name]) => [name, 0]));
  const samples: SoakReport['samples'] = [];
  say(`seed ${seed}, ${minutes} minutes`);
  try {
    const place = await makePlace(folder);
    const started = performance.now();
    const seconds = (): number => (performance.now() - started) / 1000;
    for (let next = every; seconds() < minutes * 60 || samples.length < fewestSamples; ) {
      // The first rounds are every kind of work in turn, so that what each opens for good is open before the judgement begins.
      const done = Object.values(rounds).reduce((sum, n) => sum + n, 0);
      const [name, job] = jobs[done < jobs.length ? done : random.integer(jobs.length)];
      await job(place, random).catch((error) => {
        throw new Error(`${name}, round ${done} of seed ${seed}: ${error.stack ?? error}`, { cause: error });
      });
      rounds[name]++;
      if (seconds() < next || done + 1 < jobs.length) continue;
      next = seconds() + every;
      const now = await measure();
      samples.push({ hours: seconds() / 3600, ...now });
      const { liveBuffers, poolBytes, rssBytes, handles, files, threads } = now;
      const held = `${liveBuffers} buffers, pool ${mib(poolBytes)}, memory ${mib(rssBytes)}`;
      say(
        `${(seconds() / 60).toFixed(1)} min, ${done + 1} rounds: ${held}, ${handles} handles, ${files} files, ${threads} threads`,
      );
    }
    const judged = Object.entries(measures).filter(([name]) => name !== 'rssBytes' || minutes >= minutesOfRss);
    const verdicts = judged.map(([name, tolerance]) => {
      const series = samples.map((sample) => ({ hours: sample.hours, value: sample[name as keyof Measures] }));
      return [name, judge(series, tolerance)] as const;
    });
    for (const [name, { level, most, slope, error, flat, why }] of verdicts) {
      const share = `slope ${slope.toPrecision(3)} an hour (+- ${error.toPrecision(2)})`;
      say(`${name}: level ${level}, most ${most}, ${share}: ${flat ? 'flat' : `NOT FLAT, ${why}`}`);
    }
    const ended = playEndings(endings, seed, say);
    return {
      seed,
      minutes,
      rounds,
      measures: Object.fromEntries(verdicts) as SoakReport['measures'],
      samples,
      endings: ended,
      flat: verdicts.every(([, { flat }]) => flat),
    };
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      minutes: { type: 'string' },
      seed: { type: 'string', default: String(Date.now() % 1e6) },
      out: { type: 'string' },
      quick: { type: 'boolean', default: false },
    },
  });
  const minutes = Number(values.minutes ?? (values.quick ? 0.5 : 120));
  const report = await soak({
    minutes,
    seed: Number(values.seed),
    every: Math.min(60, (minutes * 60) / 15),
    endings: values.quick ? 6 : 100,
    say: (line) => console.log(line),
  });
  const whole = { date: new Date().toISOString(), node: process.version, processor: cpus()[0].model, ...report };
  const results = fileURLToPath(new URL('results/soak.json', import.meta.url));
  const out = values.out ?? (minutes >= 120 ? results : undefined);
  if (out) writeFileSync(out, `${JSON.stringify(whole, null, 1)}\n`);
  console.log(report.flat ? 'Everything is flat.' : 'Something grows.');
  process.exitCode = report.flat ? 0 : 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
