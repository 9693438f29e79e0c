/**
 * A worker process and how to talk to it: a request is a line of JSON on its standard input, the answer a line on its standard
 * output. It ends with its input, so none outlives the driver.
 *
 *     {"do":"prepare", work, way, weights, inputs, output}   build it, run it once, write what it computed -> {}
 *     {"do":"time", iterations, repeats}                     -> {"ms": [one number an iteration]}: each `repeats` runs, divided
 *     {"do":"rss"}                                           -> {"bytes"}: the most resident since the end of `prepare`
 *     {"do":"release"}                                       forget it -> {}
 *
 * The first line is {"versions"}; a failure is {"error": "one sentence"}.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface } from 'node:readline';

const running = new Set<ChildProcess>();

/** Ends every worker at once. */
export function endAll(): void {
  for (const child of running) child.kill('SIGKILL');
}

export class WorkerProcess {
  versions: Record<string, string> = {};
  private readonly child: ChildProcess;
  private readonly lines: AsyncIterator<string>;
  private said = '';

  private constructor(program: string, argv: string[], env: NodeJS.ProcessEnv) {
    this.child = spawn(program, argv, { env, stdio: ['pipe', 'pipe', 'pipe'] });
    running.add(this.child);
    this.child.once('exit', () => running.delete(this.child));
    this.child.once('error', (error) => {
      this.said += error.message;
    });
    this.child.stdin?.on('error', () => undefined); // the answer that does not come says it
    this.child.stderr?.on('data', (text) => {
      this.said = (this.said + text).slice(-4000);
    });
    if (!this.child.stdout) throw new Error('no standard output');
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]();
  }

  static async start(program: string, argv: string[], env: NodeJS.ProcessEnv): Promise<WorkerProcess> {
    const worker = new WorkerProcess(program, argv, env);
    worker.versions = ((await worker.answer()).versions ?? {}) as Record<string, string>;
    return worker;
  }

  /** The answer to a request; throws its error, or what the process said last when it is gone. */
  async ask(request: Record<string, unknown>): Promise<Record<string, unknown>> {
    this.child.stdin?.write(`${JSON.stringify(request)}\n`);
    return this.answer();
  }

  private async answer(): Promise<Record<string, unknown>> {
    for (;;) {
      const { value, done } = await this.lines.next();
      if (done) throw new Error(`it ended: ${this.said.trim().split('\n').at(-1) || 'without a word'}`);
      if (!value.startsWith('{')) continue; // a library's own chatter
      const answer = JSON.parse(value);
      if (answer.error) throw new Error(answer.error);
      return answer;
    }
  }

  async end(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    const gone = new Promise((resolve) => this.child.once('exit', resolve));
    this.child.stdin?.end();
    const late = setTimeout(() => this.child.kill('SIGKILL'), 3000);
    await gone;
    clearTimeout(late);
  }
}

/** The worker's side: answers requests by `handlers`, one after the other. */
export async function serve(
  versions: Record<string, string>,
  handlers: Record<string, (request: Record<string, unknown>) => unknown>,
): Promise<void> {
  process.on('SIGINT', () => undefined); // the driver's to handle
  const say = (answer: unknown): void => void process.stdout.write(`${JSON.stringify(answer ?? {})}\n`);
  say({ versions });
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    try {
      say(await handlers[request.do](request));
    } catch (error) {
      say({ error: error instanceof Error ? error.message.replaceAll('\n', ' ').slice(0, 300) : String(error) });
    }
  }
  process.exit(0);
}

/** Milliseconds of each of `iterations` times `repeats` runs, per run; `run` does as many as it is told. */
export async function stopwatch(
  run: (times: number) => Promise<unknown>,
  { iterations, repeats }: { iterations: number; repeats: number },
): Promise<{ ms: number[] }> {
  const ms: number[] = [];
  for (let i = 0; i < iterations; i++) {
    const start = performance.now();
    await run(repeats);
    ms.push((performance.now() - start) / repeats);
  }
  return { ms };
}

/** One after the other, each when the one before is done. */
export const inTurn =
  (run: () => unknown) =>
  async (times: number): Promise<void> => {
    for (let i = 0; i < times; i++) await run();
  };
