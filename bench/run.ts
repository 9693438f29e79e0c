/** `npm run bench`: the figures of training, one after the other; with --peers the CPU's beside its peers (cpu/main.ts). */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const given = process.argv.slice(2);
const scripts = given.includes('--peers')
  ? [['cpu/main.ts', ...given]]
  : [['event-loop.ts'], ['memory.ts'], ['digits.ts']];
process.on('SIGINT', () => undefined); // the script at work gets it too, and ends
for (const [script, ...argv] of scripts) {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const { status } = spawnSync(process.execPath, ['--expose-gc', '--import=tsx', path, ...argv], { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
}
