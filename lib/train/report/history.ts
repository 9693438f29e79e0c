/**
 * A run's log in columns, for drawing. Kinder than readLog(): a report is made of what there is. A log is read on where the
 * last reading ended, a piece at a time, so that neither a long one nor one that is being written holds anything up.
 */
import { open } from 'node:fs/promises';
import { toFileError } from '../../io/files.js';

/** What is drawn, each if the log has it; the names are those of StepReport. */
export const metrics = ['loss', 'lr', 'imagesPerSecond', 'gradNorm', 'memoryBytes'] as const;
export type Metric = (typeof metrics)[number];

const pieceBytes = 1 << 20;

export class History {
  /** Rising. */
  readonly steps: number[] = [];
  /** Images seen by the end of each step. */
  readonly images: number[] = [];
  /** By metric, a value per step: NaN where the log has none, Infinity where what it has is not finite. */
  readonly columns: Record<Metric, number[]> = { loss: [], lr: [], imagesPerSecond: [], gradNorm: [], memoryBytes: [] };
  /** Steps after which the log went back, because the run was resumed from there. */
  readonly resumes: number[] = [];
  /** Lines that are no JSON object with a step. */
  unreadable = 0;
  /** When the log was last written to; undefined when there is none. */
  changed?: Date;
  private offset = 0;
  private rest: Buffer = Buffer.alloc(0);

  constructor(readonly path: string) {}

  get length(): number {
    return this.steps.length;
  }

  /** Whether a metric has a value at any step. */
  has(metric: Metric): boolean {
    return this.columns[metric].some((value) => Number.isFinite(value));
  }

  /**
   * Reads what has been added. An unfinished last line waits for its end; a log that has become shorter is read anew.
   * Throws FileError; a missing log is an empty one.
   */
  async refresh(): Promise<void> {
    const handle = await open(this.path, 'r').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return undefined;
      throw toFileError(error, this.path, 'read');
    });
    if (!handle) return;
    try {
      const { size, mtime } = await handle.stat();
      this.changed = mtime;
      if (size < this.offset) this.clear();
      const piece = Buffer.alloc(Math.min(pieceBytes, Math.max(size - this.offset, 0)));
      while (this.offset < size) {
        const { bytesRead } = await handle.read(piece, 0, Math.min(piece.length, size - this.offset), this.offset);
        if (bytesRead === 0) break;
        this.offset += bytesRead;
        this.take(Buffer.concat([this.rest, piece.subarray(0, bytesRead)]));
      }
    } catch (error) {
      throw toFileError(error, this.path, 'read');
    } finally {
      await handle.close();
    }
  }

  private clear(): void {
    this.truncate(0);
    this.resumes.length = 0;
    this.unreadable = 0;
    this.offset = 0;
    this.rest = Buffer.alloc(0);
  }

  /** Adds all whole lines and keeps what is left. */
  private take(bytes: Buffer): void {
    const end = bytes.lastIndexOf(10) + 1;
    this.rest = Buffer.from(bytes.subarray(end));
    for (const line of bytes.toString('utf8', 0, end).split('\n')) {
      if (line.trim() !== '') this.add(parse(line));
    }
  }

  /** A step. One that was there already is done anew after a resume: what followed it no longer belongs to the run. */
  private add(report: Record<string, unknown> | undefined): void {
    const step = report?.step;
    if (report === undefined || typeof step !== 'number' || !Number.isFinite(step)) {
      this.unreadable++;
      return;
    }
    const { steps, columns } = this;
    if (steps.length > 0 && step <= steps[steps.length - 1]) {
      this.truncate(steps.findIndex((done) => done >= step));
      while (this.resumes.length > 0 && this.resumes[this.resumes.length - 1] >= step) this.resumes.pop();
      if (steps.length > 0) this.resumes.push(steps[steps.length - 1]);
    }
    steps.push(step);
    this.images.push(numberIn(report.images));
    for (const metric of metrics) columns[metric].push(numberIn(report[metric]));
  }

  private truncate(length: number): void {
    for (const column of [this.steps, this.images, ...Object.values(this.columns)]) column.length = length;
  }
}

function numberIn(value: unknown): number {
  if (value === undefined) return Number.NaN;
  return typeof value === 'number' && Number.isFinite(value) ? value : Number.POSITIVE_INFINITY;
}

/** An object from a line. NaN and Infinity, which JSON has no words for but other writers of logs use, are read as null. */
function parse(line: string): Record<string, unknown> | undefined {
  for (const text of [line, line.replaceAll(/([:,[]\s*)-?(?:NaN|Infinity|inf)\b/g, '$1null')]) {
    try {
      const value: unknown = JSON.parse(text);
      return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined;
    } catch {
      // once more without such numbers, then it is unreadable
    }
  }
  return undefined;
}
