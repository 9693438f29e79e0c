/**
 * `npm run test:faults`: kills training at random moments and lets its folder fail, and writes what came of it to
 * test/reliability/results/faults.json, from which docs/reliability.md has its figures.
 *
 *     npm run test:faults -- [--kills N] [--seed N]      (200 kills: about a quarter of an hour)
 */
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { killRuns } from './kills.js';
import { mountFaults, playFault, whyNoMounts } from './mounts.js';

const { values } = parseArgs({
  options: { kills: { type: 'string', default: '200' }, seed: { type: 'string', default: '1' } },
});
const started = performance.now();
const say = (line: string): void =>
  console.log(`${((performance.now() - started) / 1000).toFixed(0).padStart(5)} s  ${line}`);

const missing = whyNoMounts();
if (missing) say(`without failing folders: ${missing}`);
const folders = missing ? {} : Object.fromEntries(mountFaults.map((fault) => [fault, playFault(fault)]));
for (const [fault, sentence] of Object.entries(folders)) say(`${fault}: ${sentence}`);
const [kills, seed] = [Number(values.kills), Number(values.seed)];
const figures = await killRuns(kills, seed, say);
const report = {
  date: new Date().toISOString(),
  node: process.version,
  processor: cpus()[0].model,
  seconds: Math.round((performance.now() - started) / 1000),
  seed,
  ...figures,
  folders: missing ?? Object.keys(folders),
};
console.log(JSON.stringify(report, null, 1));
if (kills >= 200) {
  writeFileSync(fileURLToPath(new URL('results/faults.json', import.meta.url)), `${JSON.stringify(report, null, 1)}\n`);
}
