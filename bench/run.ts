/** `npm run bench`: the figures of training and start-up, one after the other; with --peers the CPU's beside its peers (cpu/main.ts). */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const usage = `npm run bench                          event loop, memory, digits, start-up, JavaScript: writes bench/results/*.json
npm run bench -- --peers [options]     the CPU beside its peers; the options are in bench/cpu/main.ts`;

const given = process.argv.slice(2);
const peers = given.includes('--peers');
if (!peers && given.length > 0) {
  const asked = given.includes('--help');
  console[asked ? 'log' : 'error'](asked ? usage : `bench: ${given[0]} goes with --peers only.\n${usage}`);
  process.exit(asked ? 0 : 2);
}
const scripts = peers
  ? [['cpu/main.ts', ...given]]
  : [['event-loop.ts'], ['memory.ts'], ['digits.ts'], ['startup.ts'], ['js-overhead.ts']];
process.on('SIGINT', () => undefined); // the script at work gets it too, and ends
for (const [script, ...argv] of scripts) {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const { status } = spawnSync(process.execPath, ['--expose-gc', '--import=tsx', path, ...argv], { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}
