/**
 * `npm run test:fuzz`: fuzzes every target of targets.ts and the addon's own interface (calls.ts), and writes what came of it to
 * test/reliability/results/fuzz.json, from which docs/reliability.md has its figures. Exit code 1 with a finding.
 *
 *     npm run test:fuzz -- [--executions N] [--only TEXT] [--seed N]     (10.5 million: about twenty minutes on two cores)
 */
import { type ChildProcess, fork } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { type FuzzResult, fuzz } from './fuzz.js';
import { makeTargets } from './targets.js';

interface Job {
  name: string;
  executions: number;
  seed: number;
}

/** A child does jobs one after the other: a crash or a hang is one process's, and known by the job it was at. */
async function work(): Promise<void> {
  const { targets, close } = await makeTargets();
  process.on('disconnect', () => {
    close();
    process.exit(0);
  });
  process.on('message', async (job: Job) => {
    const target = targets.find(({ name }) => name === job.name);
    if (target) process.send?.(await fuzz(target, job.executions, job.seed));
  });
}

/** Resolves with a child's answer; rejects when it ends without one, or says nothing for half an hour. */
function answerOf(child: ChildProcess, job: Job): Promise<FuzzResult> {
  return new Promise((resolve, reject) => {
    const clock = setTimeout(() => child.kill('SIGKILL'), 1_800_000);
    const onExit = (code: number | null, signal: string | null): void => {
      clearTimeout(clock);
      reject(new Error(`${job.name}, seed ${job.seed}: the process ended with ${signal ?? code}`));
    };
    child.once('exit', onExit).once('message', (result) => {
      clearTimeout(clock);
      child.off('exit', onExit);
      resolve(result as FuzzResult);
    });
    child.send(job);
  });
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      executions: { type: 'string', default: '10500000' },
      only: { type: 'string', default: '' },
      seed: { type: 'string', default: '1' },
    },
  });
  const { targets, close } = await makeTargets();
  close();
  const chosen = targets.filter(({ name }) => name.includes(values.only));
  const total = chosen.reduce((sum, { weight }) => sum + weight, 0);
  const piece = 50_000;
  const jobs: Job[] = chosen.flatMap(({ name, weight }) => {
    const executions = Math.ceil((Number(values.executions) * weight) / total);
    return Array.from({ length: Math.ceil(executions / piece) }, (_, i) => ({
      name,
      executions: Math.min(piece, executions - i * piece),
      seed: Number(values.seed) * 100_000 + i,
    }));
  });
  const started = performance.now();
  const seconds = (): number => Math.round((performance.now() - started) / 1000);
  const results = new Map<string, FuzzResult>();
  let left = jobs.length;
  const add = ({ name }: Job, result: FuzzResult): void => {
    const sum = results.get(name) ?? { executions: 0, accepted: 0, slowestMs: 0 };
    sum.executions += result.executions;
    sum.accepted += result.accepted;
    sum.slowestMs = Math.max(sum.slowestMs, result.slowestMs);
    sum.finding ??= result.finding;
    results.set(name, sum);
    if (result.finding) console.error(result.finding);
    if (--left % 20 === 0) console.log(`${String(seconds()).padStart(5)} s  ${left} of ${jobs.length} pieces left`);
  };
  const queue = [...jobs];
  await Promise.all(
    Array.from({ length: availableParallelism() }, async () => {
      const child = fork(fileURLToPath(import.meta.url), ['--child'], {
        execArgv: ['--import=tsx', '--max-old-space-size=512'],
      });
      for (let job = queue.shift(); job; job = queue.shift()) add(job, await answerOf(child, job));
      child.disconnect();
    }),
  );
  const rows = [...results].map(([name, { slowestMs, ...result }]) => ({
    name,
    ...result,
    slowestMs: Math.ceil(slowestMs),
  }));
  console.table(rows.map(({ finding, ...row }) => ({ ...row, finding: finding?.message ?? '' })));
  const executions = rows.reduce((sum, row) => sum + row.executions, 0);
  const findings = rows.flatMap(({ finding }) => finding ?? []);
  const { version: node } = process;
  const report = {
    date: new Date().toISOString(),
    node,
    processor: cpus()[0].model,
    seconds: seconds(),
    executions,
    targets: rows,
  };
  console.log(`${executions} executions, ${findings.length} findings, ${seconds()} s`);
  if (executions >= 10_000_000) {
    const path = fileURLToPath(new URL('../results/fuzz.json', import.meta.url));
    writeFileSync(path, `${JSON.stringify(report, null, 1)}\n`);
  }
  process.exitCode = findings.length > 0 ? 1 : 0;
}

await (process.argv.includes('--child') ? work() : main());
