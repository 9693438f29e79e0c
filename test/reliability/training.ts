/** A small training run as a process of its own, which the fault and soak scripts stop, starve and start again. */
import { type ChildProcess, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { saveImage } from '../../lib/io/index.js';
import { HostRandom } from '../../lib/random.js';
import { readLog } from '../../lib/train/index.js';
import { tinyConfig } from '../train/fixtures.js';

const main = fileURLToPath(new URL('../../lib/cli/main.ts', import.meta.url));

/** Makes 30 images of 8 x 8 in three classes and a recipe for them; returns the recipe's path. */
export async function makeRecipe(folder: string): Promise<string> {
  const random = new HostRandom(1);
  for (const name of ['a', 'b', 'c']) {
    mkdirSync(join(folder, 'images', name), { recursive: true });
    for (let i = 0; i < 10; i++) {
      const data = Uint8Array.from({ length: 64 }, () => random.integer(256));
      await saveImage(join(folder, 'images', name, `${i}.png`), { data, width: 8, height: 8, channels: 1 });
    }
  }
  const recipe = join(folder, 'recipe.json');
  const training = { batch: 4, lr: 1e-3, gradClip: 1 };
  writeFileSync(
    recipe,
    JSON.stringify({ model: tinyConfig, data: join(folder, 'images'), training, sampler: { steps: 2 } }),
  );
  return recipe;
}

export interface Ending {
  code: number | null;
  signal: NodeJS.Signals | null;
  stderr: string;
}

/** `diffit train` into `out`, with a checkpoint every few steps so that many kills meet one being written. */
export function startTraining(
  recipe: string,
  out: string,
  steps: number,
  more: string[] = [],
): { child: ChildProcess; ended: Promise<Ending> } {
  const argv = ['train', '--recipe', recipe, '--out', out, '--steps', String(steps), '--sample-every', '0', ...more];
  const child = spawn(process.execPath, ['--import=tsx', main, ...argv], { stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr?.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const ended = new Promise<Ending>((resolve) =>
    child.on('close', (code, signal) => resolve({ code, signal, stderr })),
  );
  return { child, ended };
}

/** What must be equal bit for bit: the averaged weights' file, and every step's loss. */
export async function outcome(out: string): Promise<string> {
  const model = createHash('sha256')
    .update(readFileSync(join(out, 'model.safetensors')))
    .digest('hex');
  const steps = (await readLog(join(out, 'log.jsonl'))).map(({ step, loss, lr }) => `${step} ${loss} ${lr}`);
  return `${model}\n${steps.join('\n')}`;
}
