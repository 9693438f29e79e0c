/** Runs an example as its header says, in a process of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));

/** Started, from the repository's root: there tsconfig.json says what 'diffit' is. */
export function startExample(file: string, args: readonly string[]): ChildProcess {
  return spawn(process.execPath, ['--import', 'tsx', join('examples', file), ...args], { cwd: root });
}

/** Run to its end. */
export async function runExample(file: string, ...args: string[]): Promise<{ code: number; out: string; err: string }> {
  return finish(startExample(file, args));
}

/** A program run to its end. */
export async function runProgram(
  command: string,
  ...args: string[]
): Promise<{ code: number; out: string; err: string }> {
  return finish(spawn(command, args, { cwd: root }));
}

async function finish(child: ChildProcess): Promise<{ code: number; out: string; err: string }> {
  const code = new Promise<number>((resolve, reject) => {
    child.on('error', reject).on('close', (status) => resolve(status ?? -1));
  });
  const [out, err] = await Promise.all([child.stdout, child.stderr].map((stream) => (stream ? text(stream) : '')));
  return { code: await code, out, err };
}
