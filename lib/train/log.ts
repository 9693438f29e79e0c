/** A run's log: one JSON object per line and step, in DIR/log.jsonl. */
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { FileFormatError } from '../errors.js';
import { toFileError, writeAtomically } from '../io/files.js';
import type { StepReport } from './loop.js';

export class TrainLog {
  private constructor(
    private readonly path: string,
    private readonly handle: FileHandle,
  ) {}

  /** Opens a log to go on after `step`: later lines, of steps that will be repeated, are dropped. 0 starts a new one. */
  static async open(path: string, step: number): Promise<TrainLog> {
    const kept = step > 0 ? (await readLog(path)).filter((report) => report.step <= step) : [];
    await writeAtomically(path, (handle) => handle.writeFile(kept.map(line).join('')));
    try {
      return new TrainLog(path, await open(path, 'a'));
    } catch (error) {
      throw toFileError(error, path, 'written');
    }
  }

  async write(report: StepReport): Promise<void> {
    try {
      await this.handle.appendFile(line(report));
    } catch (error) {
      throw toFileError(error, this.path, 'written');
    }
  }

  async close(): Promise<void> {
    await this.handle.close();
  }
}

/** The steps in a log. A last line that a killed process left unfinished is ignored; no file is an empty log. */
export async function readLog(path: string): Promise<StepReport[]> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return '';
    throw toFileError(error, path, 'read');
  });
  const complete = text.slice(0, text.lastIndexOf('\n') + 1);
  return complete
    .split('\n')
    .filter(Boolean)
    .map((text, i) => {
      try {
        return JSON.parse(text) as StepReport;
      } catch (cause) {
        throw new FileFormatError(`${path} has no JSON object in line ${i + 1}.`, { path, cause });
      }
    });
}

function line(report: StepReport): string {
  return `${JSON.stringify(report)}\n`;
}
