/**
 * What a command says. Results go to stdout, as text or (with --json) as one JSON object per line; progress and notes go
 * to stderr: a bar on a terminal, a plain line now and then in a pipe, nothing with --json.
 */
import type { SingleBar } from 'cli-progress';

/** Seconds between progress lines in a pipe. */
const lineInterval = 5;

/** Where output goes; the process's streams, or a test's. */
export interface Streams {
  stdout: { write(text: string): unknown; isTTY?: boolean };
  stderr: { write(text: string): unknown; isTTY?: boolean };
}

export class Terminal {
  constructor(
    private readonly streams: Streams,
    readonly json: boolean,
  ) {}

  /** Whether someone is looking at the result: stdout is a terminal, and takes text. */
  get watched(): boolean {
    return !this.json && this.streams.stdout.isTTY === true;
  }

  /** Whether progress is a bar, which says itself how long it takes. */
  get hasBar(): boolean {
    return !this.json && this.streams.stderr.isTTY === true;
  }

  /** A line of the result, for people; dropped with --json. */
  print(line: string): void {
    if (!this.json) this.streams.stdout.write(`${line}\n`);
  }

  /** The result, for machines; dropped without --json. */
  data(value: unknown): void {
    if (this.json) this.streams.stdout.write(`${JSON.stringify(value)}\n`);
  }

  /** A remark on stderr. */
  note(line: string): void {
    if (!this.json) this.streams.stderr.write(`${line}\n`);
  }

  /** Starts showing progress towards `total`. */
  async progress(title: string, total: number, start = 0): Promise<Progress> {
    const { stderr } = this.streams;
    if (this.json) return new Progress(() => {}, title, total);
    if (!stderr.isTTY) return new Progress((line) => stderr.write(`${line}\n`), title, total);
    const { SingleBar: Bar, Presets } = (await import('cli-progress')).default;
    const format = `${title} {bar} {value}/{total}  {details}  {eta_formatted} left`;
    const bar = new Bar({ format, stream: process.stderr, hideCursor: true, etaBuffer: 50 }, Presets.shades_classic);
    bar.start(total, start, { details: '' });
    return new Progress(() => {}, title, total, bar);
  }
}

/** Progress being shown; see {@link Terminal.progress}. */
export class Progress {
  private lastLine = performance.now();

  constructor(
    private readonly write: (line: string) => void,
    private readonly title: string,
    private readonly total: number,
    private readonly bar?: SingleBar,
  ) {}

  /** `done` of the total; `details` say more about the moment. */
  update(done: number, details = ''): void {
    this.bar?.update(done, { details });
    const now = performance.now();
    if (this.bar || (done < this.total && now - this.lastLine < 1000 * lineInterval)) return;
    this.lastLine = now;
    this.write(`${this.title} ${done}/${this.total}${details ? `  ${details}` : ''}`);
  }

  /** A line between the progress, such as the name of a file that was written; not on a terminal, where the bar is. */
  note(line: string): void {
    if (!this.bar) this.write(line);
  }

  stop(): void {
    this.bar?.stop();
  }
}
