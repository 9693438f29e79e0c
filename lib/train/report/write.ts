/** Writing reports: once, of one folder or several, and again and again beside a run that goes on. */
import { join, resolve } from 'node:path';
import { OptionError } from '../../errors.js';
import { writeAtomically } from '../../io/files.js';
import { type Fields, parseOptions, schema } from '../../options.js';
import { History } from './history.js';
import { reportPage } from './page.js';
import { type RunFacts, type RunStatus, readRunFacts } from './run-facts.js';
import { SampleReader } from './samples.js';

/** Options of {@link writeReport}. */
export interface ReportOptions {
  /** The HTML file. Default: report.html in the run's folder, or in the working folder when runs are compared. */
  out?: string;
}

const optionsSchema = schema((z, is) => z.strictObject({ out: is.name.optional() } satisfies Fields<ReportOptions>));

/** What {@link writeReport} wrote. */
export interface WrittenReport {
  /** The HTML file. */
  path: string;
  /** Size of the page. */
  bytes: number;
  /** The runs it is about: their folders, how they ended, and how many steps they did of how many. */
  runs: { folder: string; status: RunStatus; step: number; steps?: number }[];
}

/**
 * Writes a page about the run in a folder, or about several runs side by side: curves, sample grids, settings. It needs nothing
 * but itself and is replaced whole. Throws FileError; TrainError when a folder holds no run; FileFormatError when its record is damaged;
 * OptionError for no folder, and for an option that is unknown or wrong.
 */
export async function writeReport(
  folders: string | readonly string[],
  options: ReportOptions = {},
): Promise<WrittenReport> {
  const { out: wanted } = parseOptions(optionsSchema, options, 'writeReport');
  const given = typeof folders === 'string' ? [folders] : folders;
  const distinct = given.filter((folder, i) => given.findIndex((other) => resolve(other) === resolve(folder)) === i);
  if (distinct.length === 0) throw new OptionError('writeReport: name the folder of at least one run.');
  const out = wanted ?? (distinct.length === 1 ? join(distinct[0], 'report.html') : 'report.html');
  const facts = await Promise.all(distinct.map((folder) => readRunFacts(folder)));
  return write(withDistinctNames(facts), new SampleReader(), out);
}

async function write(facts: readonly RunFacts[], samples: SampleReader, path: string): Promise<WrittenReport> {
  const grids = await samples.read(
    facts.map(({ folder, step }) => ({ folder, until: step === 0 ? Number.POSITIVE_INFINITY : step })),
  );
  const page = Buffer.from(await reportPage(facts.map((facts, i) => ({ facts, ...grids[i] }))));
  await writeAtomically(path, (handle) => handle.writeFile(page));
  const runs = facts.map(({ folder, status, step, steps }) => ({ folder, status, step, steps }));
  return { path, bytes: page.length, runs };
}

/** Runs of the same name are called by as much of their path as tells them apart: a/run and b/run. */
function withDistinctNames(facts: readonly RunFacts[]): RunFacts[] {
  return facts.map((run) => {
    const parts = resolve(run.folder).split(/[\\/]/);
    const others = facts.filter((other) => other !== run).map(({ folder }) => resolve(folder).split(/[\\/]/));
    const tail = (path: readonly string[], length: number): string => path.slice(-length).join('/');
    let length = 1;
    while (length < parts.length && others.some((other) => tail(other, length) === tail(parts, length))) length++;
    return { ...run, name: tail(parts, length) };
  });
}

/** Milliseconds between two pages of a running run, and how many times longer than the writing itself that is at least. */
const interval = 10_000;
const rest = 50;

/** Keeps DIR/report.html of a run that this process is doing. */
export class ReportKeeper {
  readonly path: string;
  private readonly history: History;
  private readonly samples = new SampleReader();
  private writing: Promise<unknown> | undefined;
  private next = 0;

  constructor(private readonly folder: string) {
    this.path = join(folder, 'report.html');
    this.history = new History(join(folder, 'log.jsonl'));
  }

  /** Something has changed: writes a page in the background, if the last one is old enough. */
  touch(): void {
    if (this.writing || performance.now() < this.next) return;
    // What goes wrong here may go well the next time; write() at the end says so if not.
    this.writing = this.page()
      .catch(() => undefined)
      .finally(() => {
        this.writing = undefined;
      });
  }

  /** Writes a page now. Throws FileError. */
  async write(): Promise<void> {
    await this.writing;
    await this.page();
  }

  private async page(): Promise<void> {
    const started = performance.now();
    try {
      await write([await readRunFacts(this.folder, this.history)], this.samples, this.path);
    } finally {
      const now = performance.now();
      this.next = now + Math.max(interval, rest * (now - started));
    }
  }
}
