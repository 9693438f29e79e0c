/** What a report says about a run: its folder's record, log and sample grids; older runs have checkpoints in place of the record. */
import { stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { FileError, TrainError } from '../../errors.js';
import { toFileError } from '../../io/files.js';
import { listCheckpoints, readCheckpointState } from '../checkpoint.js';
import { readModelDescription } from '../model-file.js';
import { type RunRecord, readRecord } from '../record.js';
import { History } from './history.js';

/** How a run is or ended: 'running', 'finished', 'interrupted' or 'failed'. */
export type RunStatus = RunRecord['status'];

export interface RunFacts {
  /** Last part of the folder's path. */
  name: string;
  folder: string;
  history: History;
  status: RunStatus;
  /** Why it failed. */
  error?: string;
  /** Steps done, and to be done in all where that is known. */
  step: number;
  steps?: number;
  /** Settings; without "model" and "training" when neither record nor checkpoint has them. */
  config: Record<string, unknown>;
  seed?: number;
  device?: string;
  deviceModel?: string;
  parameters?: number;
  data?: string;
  /** Seconds of all its sessions; without a record, of its steps. */
  elapsed: number;
  /** Steps after which the run was resumed. */
  resumes: readonly number[];
}

/** A log that has not grown for so many milliseconds is of a run that has ended, when nothing better is known. */
const silence = 15 * 60_000;

/** Reads a run's folder. `history` may be one that was read before. Throws FileError, FileFormatError, TrainError when it holds no run. */
export async function readRunFacts(
  folder: string,
  history = new History(join(folder, 'log.jsonl')),
): Promise<RunFacts> {
  const info = await stat(folder).catch((error) => {
    throw toFileError(error, folder, 'read');
  });
  if (!info.isDirectory())
    throw new FileError(`${folder} is a file, not the folder of a training run.`, { path: folder });
  const record = await readRecord(folder);
  await history.refresh();
  const { length, steps: logged, changed } = history;
  if (length === 0 && !record) {
    const found = changed ? 'there is no step in its log.jsonl' : 'there is no log.jsonl in it';
    throw new TrainError(`${folder} is not the folder of a training run: ${found}.`);
  }
  const idle = changed === undefined || Date.now() - changed.getTime() > silence;
  const shared = { name: basename(resolve(folder)), folder, history, step: logged[length - 1] ?? 0 };
  if (!record) {
    const old = await withoutRecord(folder);
    const status = old.finished ? 'finished' : idle ? 'interrupted' : 'running';
    return { ...shared, ...old, status, elapsed: secondsOfSteps(history, 0), resumes: history.resumes };
  }
  const { status, error, steps, seed, device, deviceModel, parameters, data, config, sessions } = record;
  const ended = status === 'running' && !isAlive(record, idle);
  return {
    ...shared,
    ...{ error, steps, seed, device, deviceModel, parameters, data, config },
    status: ended ? 'interrupted' : status,
    resumes: [...new Set([...history.resumes, ...sessions.map(({ after }) => after)])].filter((step) => step > 0),
    elapsed: sessions.reduce((sum, session, i) => {
      const running = status === 'running' && !ended && i === sessions.length - 1;
      const end = session.ended ?? (running ? new Date() : (changed ?? session.started));
      return sum + Math.max(0, Number(new Date(end)) - Number(new Date(session.started))) / 1000;
    }, 0),
  };
}

/** Seconds that the steps from index `start` on took; between them there are samples and checkpoints. */
export function secondsOfSteps({ images, columns: { imagesPerSecond } }: History, start: number): number {
  let seconds = 0;
  for (let i = start; i < images.length; i++) {
    const time = (images[i] - (i > 0 ? images[i - 1] : 0)) / imagesPerSecond[i];
    if (Number.isFinite(time) && time > 0) seconds += time;
  }
  return seconds;
}

/** Whether the process of a run still runs; on another machine, whether it still writes. */
function isAlive({ process: { pid, host } }: RunRecord, idle: boolean): boolean {
  if (host !== hostname()) return !idle;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'; // it is another user's
  }
}

/** The settings in the newest checkpoint or in the model file. */
async function withoutRecord(folder: string): Promise<Pick<RunFacts, 'config' | 'seed'> & { finished: boolean }> {
  const modelFile = join(folder, 'model.safetensors');
  const finished = (await stat(modelFile).catch(() => undefined)) !== undefined;
  const [newest] = (await listCheckpoints(folder)).slice(-1);
  if (newest) {
    const { config, seed } = await readCheckpointState(newest);
    return { config, seed, finished };
  }
  return { config: finished ? { model: await readModelDescription(modelFile) } : {}, finished };
}
