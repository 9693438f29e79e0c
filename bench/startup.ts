/**
 * How long does a program wait for the package? Starts fresh processes from dist, interleaved: Node alone, `import 'diffit'` (timed inside the
 * process, so without Node's own start), the command's help and its `info`; prints medians and writes bench/results/startup.json.
 *
 *     npm run build:ts && npx tsx bench/startup.ts [--runs 20]
 */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { writeResult } from './training.js';

const { values } = parseArgs({ options: { runs: { type: 'string', default: '20' } } });
const runs = Number(values.runs);
const dist = fileURLToPath(new URL('../dist', import.meta.url));

const inside = `const start = process.hrtime.bigint();
await import(${JSON.stringify(`${dist}/index.js`)});
console.log(Number(process.hrtime.bigint() - start) / 1e6);`;

/** Runs node; returns what it printed and the milliseconds until it ended. */
function node(...args: string[]): { stdout: string; ms: number } {
  const start = performance.now();
  const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`node ${args.join(' ')} failed: ${stderr}`);
  return { stdout, ms: performance.now() - start };
}

const cases: Record<string, () => number> = {
  node: () => node('-e', '0').ms,
  import: () => Number(node('--input-type=module', '-e', inside).stdout),
  help: () => node(`${dist}/cli/main.js`, '--help').ms,
  info: () => node(`${dist}/cli/main.js`, 'info').ms,
};
const times = Object.fromEntries(Object.keys(cases).map((name) => [name, [] as number[]]));
for (let i = 0; i < runs; i++) for (const [name, run] of Object.entries(cases)) times[name].push(run());

const median = (name: string): number => {
  const sorted = times[name].sort((a, b) => a - b);
  return Number(sorted[Math.floor(runs / 2)].toFixed(1));
};
const milliseconds = {
  import: median('import'),
  help: Number((median('help') - median('node')).toFixed(1)),
  info: Number((median('info') - median('node')).toFixed(1)),
};
console.log(
  `import 'diffit' ${milliseconds.import} ms; diffit --help ${milliseconds.help} ms, diffit info ${milliseconds.info} ms ` +
    `over node's own ${median('node')} ms (medians of ${runs})`,
);
writeResult('startup', { workload: { runs, nodeMs: median('node') }, milliseconds });
