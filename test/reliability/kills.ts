/**
 * Kills training processes with SIGKILL at random moments and resumes them, until runs that were killed over and over have reached their
 * end, and compares each bit for bit with one that nobody disturbed.
 */
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HostRandom } from '../../lib/random.js';
import { makeRecipe, outcome, startTraining } from './training.js';

export interface KillFigures {
  kills: number;
  /** Kills before the first step was logged, and those that left a half-written file. */
  beforeTraining: number;
  whileWriting: number;
  /** Runs that were killed and came to the end of the undisturbed one. */
  runs: number;
}

const steps = 120;
const options = ['--checkpoint-every', '2'];

/** Throws an Error when a run cannot be resumed or ends elsewhere. */
export async function killRuns(kills: number, seed: number, say: (line: string) => void): Promise<KillFigures> {
  const folder = mkdtempSync(join(tmpdir(), 'diffit-kills-'));
  try {
    const recipe = await makeRecipe(folder);
    const whole = join(folder, 'whole');
    const undisturbed = await startTraining(recipe, whole, steps, options).ended;
    if (undisturbed.code !== 0) throw new Error(`the undisturbed run failed: ${undisturbed.stderr}`);
    const expected = await outcome(whole);
    const random = new HostRandom(seed);
    const figures: KillFigures = { kills: 0, beforeTraining: 0, whileWriting: 0, runs: 0 };
    while (figures.kills < kills) {
      const out = join(folder, 'killed');
      rmSync(out, { recursive: true, force: true });
      for (let first = true; ; first = false) {
        const started = existsSync(join(out, 'run.json'));
        const before = logBytes(out);
        const { child, ended } = startTraining(recipe, out, steps, [...options, ...(started ? ['--resume'] : [])]);
        if (figures.kills >= kills && !first) {
          const end = await ended;
          if (end.code !== 0) throw new Error(`a killed run cannot be resumed: ${end.stderr}`);
          break;
        }
        const early = random.integer(8) === 0; // while it starts
        const delay = early ? random.integer(400) : random.integer(250);
        if (!early) while (child.exitCode === null && logBytes(out) === before) await sleep(2);
        await Promise.race([sleep(delay), ended]);
        child.kill('SIGKILL');
        const { code, signal, stderr } = await ended;
        if (signal !== 'SIGKILL') {
          if (code !== 0) throw new Error(`a killed run cannot be resumed: ${stderr}`);
          break; // it was done before
        }
        figures.kills++;
        if (logBytes(out) === 0) figures.beforeTraining++;
        if (existsSync(out) && readdirSync(out).some((name) => name.endsWith('.tmp'))) figures.whileWriting++;
        if (figures.kills % 10 === 0) say(`${figures.kills} kills, ${figures.runs} runs at their end`);
      }
      if ((await outcome(out)) !== expected) throw new Error('a run that was killed and resumed ended elsewhere');
      figures.runs++;
    }
    return figures;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function logBytes(out: string): number {
  return statSync(join(out, 'log.jsonl'), { throwIfNoEntry: false })?.size ?? 0;
}
