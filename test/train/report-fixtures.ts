/** Folders of runs as training leaves them, made without training. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { saveImage } from '../../lib/io/index.js';
import { HostRandom } from '../../lib/random.js';
import type { RunRecord } from '../../lib/train/index.js';

/** A record of a finished run. */
export function record(changes: Partial<RunRecord> = {}): RunRecord {
  return {
    format: 'diffit-run',
    formatVersion: 1,
    status: 'finished',
    steps: 200,
    seed: 0,
    device: 'cpu',
    deviceModel: 'A processor',
    parameters: 761_234,
    data: 'mnist',
    config: {
      model: { kind: 'ImageDiffiT', preset: 'mnist', config: { baseChannels: 32, channelMult: [1, 1, 2] } },
      training: { batch: 32, lr: 1e-3, precision: 'f32' },
      data: { images: 60_000 },
    },
    process: { pid: process.pid, host: hostname() },
    sessions: [{ started: '2026-01-01T10:00:00.000Z', ended: '2026-01-01T11:05:00.000Z', after: 0 }],
    ...changes,
  };
}

/** A step of a log, with the loss at `step`; a number that JSON has no words for becomes null, as JSON.stringify has it. */
export function step(step: number, changes: Record<string, unknown> = {}): Record<string, unknown> {
  const loss = (0.2 + 2 / step) * (1 + 0.2 * Math.sin(step * 12.9898));
  return { step, loss, lr: 1e-3 * Math.min(1, step / 50), images: 32 * step, imagesPerSecond: 80, ...changes };
}

export interface RunFolder {
  record?: RunRecord;
  log?: readonly unknown[];
  /** What follows the last whole line. */
  rest?: string;
  /** Steps with a sample grid: noise that no two steps share. */
  samples?: readonly number[];
}

export async function makeRun(folder: string, { record, log, rest = '', samples = [] }: RunFolder): Promise<string> {
  mkdirSync(join(folder, 'samples'), { recursive: true });
  if (record) writeFileSync(join(folder, 'run.json'), JSON.stringify(record));
  if (log) writeFileSync(join(folder, 'log.jsonl'), log.map((line) => `${JSON.stringify(line)}\n`).join('') + rest);
  for (const step of samples) {
    const random = new HostRandom(step);
    const data = Uint8Array.from({ length: 40 * 30 }, () => random.integer(256));
    await saveImage(join(folder, 'samples', `${String(step).padStart(7, '0')}.png`), {
      data,
      width: 40,
      height: 30,
      channels: 1,
    });
  }
  return folder;
}
