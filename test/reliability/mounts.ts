/**
 * Trains into folders that fail: a disk that is full or fills up, one that becomes read-only, one that is taken away. Each must end the run with
 * exit code 1 and one sentence, leave the last checkpoint whole, and let the run go on once the folder is well again.
 *
 * Linux; needs the right to mount (root, or user namespaces): runs itself in a mount namespace of its own by `unshare`.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { listCheckpoints, readCheckpointState } from '../../lib/train/checkpoint.js';
import { makeRecipe, outcome, startTraining } from './training.js';

/** Why file systems cannot be mounted here; undefined when they can. */
export function whyNoMounts(): string | undefined {
  if (process.platform !== 'linux') return 'mount namespaces are Linux';
  const { status } = spawnSync('unshare', ['-rm', 'true']);
  return status === 0 ? undefined : 'this user may not mount file systems (unshare -rm fails)';
}

export const mountFaults = ['full', 'filling', 'read-only', 'gone'] as const;
export type MountFault = (typeof mountFaults)[number];

/** Plays one fault in a namespace of its own; throws an Error with what went wrong. Returns the sentence the command ended with. */
export function playFault(fault: MountFault): string {
  const script = fileURLToPath(import.meta.url);
  const { status, stdout, stderr } = spawnSync('unshare', ['-rm', process.execPath, '--import=tsx', script, fault], {
    encoding: 'utf8',
  });
  if (status !== 0) throw new Error(`${fault}: ${stderr}`);
  return stdout.trim();
}

const steps = 60;
const sentence: Record<MountFault, RegExp> = {
  full: /cannot be written: the disk is full\.$/m,
  filling: /cannot be written: the disk is full\.$/m,
  'read-only': /cannot be written: the file system is read-only\.$/m,
  gone: /cannot be written: there is no such file or folder\.$/m,
};

async function play(fault: MountFault): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'diffit-mounts-'));
  const disk = join(folder, 'disk');
  const away = join(folder, 'away');
  for (const path of [disk, away]) mkdirSync(path);
  const mount = (...argv: string[]): void => void execFileSync('mount', [...argv, disk]);
  try {
    const recipe = await makeRecipe(folder);
    const whole = join(folder, 'whole');
    await startTraining(recipe, whole, steps).ended;
    mount('-t', 'tmpfs', '-o', 'size=16m', 'tmpfs');
    const out = join(disk, 'run');
    const every = ['--checkpoint-every', '10'];
    // A run with a checkpoint of step 10 that matters.
    const begun = await startTraining(recipe, out, 10, every).ended;
    if (begun.code !== 0) throw new Error(begun.stderr);
    const filler = join(disk, 'filler');
    const room = (bytes: number): void => {
      truncateSync(filler, 0);
      for (let size = 16 << 20; ; size -= 4096) {
        try {
          writeFileSync(filler, new Uint8Array(size));
          break;
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
        }
      }
      truncateSync(filler, Math.max(0, statSync(filler).size - bytes));
    };
    writeFileSync(filler, '');
    if (fault === 'full') room(0);
    if (fault === 'filling') room(60_000); // some files, then none: a checkpoint stops half-way
    if (fault === 'read-only') mount('-o', 'remount,ro');
    const resumed = startTraining(recipe, out, steps, [...every, '--resume']);
    if (fault === 'gone') {
      const log = join(out, 'log.jsonl');
      const before = statSync(log).size;
      while (resumed.child.exitCode === null && statSync(log).size === before) await sleep(2);
      execFileSync('mount', ['--move', disk, away]);
    }
    const { code, stderr } = await resumed.ended;
    if (code !== 1) throw new Error(`exit code ${code}, expected 1: ${stderr}`);
    if (!sentence[fault].test(stderr)) throw new Error(`expected ${sentence[fault]}, got: ${stderr}`);
    if (fault === 'gone') execFileSync('mount', ['--move', away, disk]);
    if (fault === 'read-only') mount('-o', 'remount,rw');
    if (existsSync(filler)) rmSync(filler);
    const [newest] = (await listCheckpoints(out)).slice(-1);
    if ((await readCheckpointState(newest)).step < 10) throw new Error('the checkpoint of step 10 is lost');
    const again = await startTraining(recipe, out, steps, [...every, '--resume']).ended;
    if (again.code !== 0) throw new Error(`cannot go on: ${again.stderr}`);
    if ((await outcome(out)) !== (await outcome(whole))) throw new Error('the run ended elsewhere');
    return stderr.trim().split('\n').slice(-1)[0];
  } finally {
    spawnSync('umount', ['-l', disk]);
    rmSync(folder, { recursive: true, force: true });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(await play(process.argv[2] as MountFault));
