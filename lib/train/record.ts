/**
 * What a run says about itself, in DIR/run.json: its settings, how far it should go, and when it ran. Written when a run is opened,
 * and when it ends in whatever way it still can.
 */
import { readFile, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { FileFormatError } from '../errors.js';
import { toFileError, writeAtomically } from '../io/files.js';
import { type Fields, schema } from '../options.js';

const recordFormat = 'diffit-run';

/** One stretch of a run, from its start or resumption to its end. */
export interface RunSession {
  /** ISO 8601. */
  started: string;
  /** ISO 8601; absent while it runs, and when it was killed. */
  ended?: string;
  /** Step it went on after; 0 for a new run. */
  after: number;
}

/** What run.json holds. */
export interface RunRecord {
  /** Says what the file is. */
  format: 'diffit-run';
  /** Of the format. */
  formatVersion: 1;
  /** 'running' also stays when a run is killed: its process is then gone. */
  status: 'running' | 'finished' | 'interrupted' | 'failed';
  /** Why it failed. */
  error?: string;
  /** Steps it should do in all; absent before training and where something else ends it. */
  steps?: number;
  /** Names all random numbers of the run. */
  seed: number;
  /** Where it trains. */
  device: string;
  /** Processor or GPU. */
  deviceModel?: string;
  /** Trainable numbers of the network. */
  parameters: number;
  /** What it is trained on, as it was named. */
  data: string;
  /** Settings, as in the checkpoints. */
  config: Record<string, unknown>;
  /** What trains it. */
  process: { pid: number; host: string };
  /** Its stretches, the first first. */
  sessions: RunSession[];
}

const recordSchema = schema((z) =>
  z.object({
    format: z.literal(recordFormat),
    formatVersion: z.literal(1),
    status: z.enum(['running', 'finished', 'interrupted', 'failed']),
    error: z.string().optional(),
    steps: z.number().optional(),
    seed: z.number(),
    device: z.string(),
    deviceModel: z.string().optional(),
    parameters: z.number(),
    data: z.string(),
    config: z.record(z.string(), z.unknown()),
    process: z.object({ pid: z.number(), host: z.string() }),
    sessions: z.array(
      z.object({ started: z.string(), ended: z.string().optional(), after: z.number() } satisfies Fields<RunSession>),
    ),
  } satisfies Fields<RunRecord>),
);

/** Settings of a run that its record repeats. */
export type RunSettings = Pick<RunRecord, 'seed' | 'device' | 'deviceModel' | 'parameters' | 'data' | 'config'>;

/** Where a run's record lies. */
export function recordPath(folder: string): string {
  return join(folder, 'run.json');
}

/** The record in a run's folder; undefined where there is none. Throws FileError, FileFormatError. */
export async function readRecord(folder: string): Promise<RunRecord | undefined> {
  const path = recordPath(folder);
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw toFileError(error, path, 'read');
  });
  if (text === undefined) return undefined;
  try {
    return recordSchema().parse(JSON.parse(text));
  } catch (cause) {
    throw new FileFormatError(`${path} is no record of a training run.`, { path, cause });
  }
}

/** The record of the run that this process is doing. */
export class RunRecorder {
  private constructor(
    private readonly folder: string,
    private readonly record: RunRecord,
  ) {}

  /** Starts a record, or a session in the one of the run that goes on after step `after`. Throws FileError. */
  static async open(folder: string, after: number, settings: RunSettings): Promise<RunRecorder> {
    const sessions = after > 0 ? await earlierSessions(folder) : [];
    const recorder = new RunRecorder(folder, {
      format: recordFormat,
      formatVersion: 1,
      status: 'running',
      ...settings,
      process: { pid: process.pid, host: hostname() },
      sessions: [...sessions, { started: new Date().toISOString(), after }],
    });
    await recorder.write();
    return recorder;
  }

  get status(): RunRecord['status'] {
    return this.record.status;
  }

  /** Training towards `steps` begins. */
  async running(steps: number): Promise<void> {
    if (steps < Number.MAX_SAFE_INTEGER) this.record.steps = steps;
    this.record.status = 'running';
    await this.write();
  }

  /** Training has ended. */
  async ended(status: 'finished' | 'interrupted' | 'failed', error?: string): Promise<void> {
    this.record.status = status;
    this.record.error = error;
    this.record.sessions[this.record.sessions.length - 1].ended = new Date().toISOString();
    await this.write();
  }

  private async write(): Promise<void> {
    await writeAtomically(recordPath(this.folder), (handle) =>
      handle.writeFile(`${JSON.stringify(this.record, null, 2)}\n`),
    );
  }
}

/** Sessions of a run that is resumed; one that was killed ended when it last wrote to the log. */
async function earlierSessions(folder: string): Promise<RunRecord['sessions']> {
  // A damaged record must not keep a run from going on: its checkpoints have all that matters.
  const sessions = (await readRecord(folder).catch(() => undefined))?.sessions ?? [];
  const last = sessions[sessions.length - 1];
  if (last && last.ended === undefined) {
    const log = await stat(join(folder, 'log.jsonl')).catch(() => undefined);
    if (log) last.ended = log.mtime.toISOString();
  }
  return sessions;
}
