/**
 * The turns: for each work everybody is prepared on the same weights and inputs, outputs are compared, and then they time it one after
 * the other, round after round (main.ts says how; station.ts has the processes).
 */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { errorOf, readTensors } from './files.js';
import { type Crew, root } from './prepare.js';
import { bestOf, type Ceilings, median, type Outcome, ours, type Row, ratioOf } from './report.js';
import { WorkerProcess } from './station.js';
import { implementations, type Station, type Work } from './work.js';

/** Largest difference of outputs, over their largest number. */
const tolerances = { f32: 1e-4, bf16: 2e-2 };
/**
 * Milliseconds of a turn, of the pause before it, and of a round that is dear: then three rounds do. The pause outlasts the waiting of
 * others' threads: OpenBLAS's look for work for 100 ms more, on a processor that the next one needs.
 */
const turn = { full: 200, quick: 1 };
const pause = 150;
const dearRound = 15_000;

export interface Options {
  works: Work[];
  rounds: number;
  quick: boolean;
  crew: Crew;
  threads: number;
  /** Of performance.now(): nothing is started after it. */
  until: number;
  say(line: string): void;
  onRow(row: Row): void;
}

/** One way of doing the work at hand, in its process. */
interface Player {
  name: string;
  station: Station;
  way: string;
  worker: WorkerProcess;
  outcome: Outcome;
  /** Of a time request. */
  iterations: number;
  repeats: number;
}

/** A row before its ceilings are known. */
type Bare = Omit<Row, 'ceilings'>;

export class Bench {
  readonly versions: Record<string, string> = {};
  private readonly workers = new Map<Station, WorkerProcess>();
  private readonly folder = mkdtempSync(join(tmpdir(), 'diffit-bench-'));
  private weights?: { key: string; path: string };

  constructor(private readonly options: Options) {}

  async run(): Promise<{ rows: Row[]; ceilings: Ceilings; about: { processor: string; variant: string } }> {
    const { works, say } = this.options;
    const rows: Row[] = [];
    const worker = await this.station('diffit');
    const seen: (Ceilings & { processor: string; variant: string })[] = [];
    const look = async (): Promise<void> => {
      seen.push((await worker.ask({ do: 'ceilings', quick: this.options.quick })) as never);
    };
    await look();
    for (const [i, work] of works.entries()) {
      if (performance.now() > this.options.until) {
        say(`the limit has passed: ${works.length - i} of ${works.length} works are not measured`);
        break;
      }
      say(`[${i + 1}/${works.length}] ${work.id}`);
      const row = work.group === 'startup' ? await this.startup(work) : await this.row(work);
      await look();
      rows.push({ ...row, ceilings: bestOf(seen.slice(-2)) });
      this.options.onRow(rows[i]);
    }
    return { rows, ceilings: bestOf(seen), about: seen[0] };
  }

  async close(): Promise<void> {
    for (const worker of this.workers.values()) await worker.end();
    rmSync(this.folder, { recursive: true, force: true });
  }

  private async start(station: Station): Promise<WorkerProcess> {
    const command = this.options.crew.commands[station];
    if (!command) throw new Error(this.options.crew.missing[station] ?? `there is no ${station}`);
    const worker = await WorkerProcess.start(command.program, command.argv, command.env);
    Object.assign(this.versions, worker.versions);
    return worker;
  }

  private async station(station: Station): Promise<WorkerProcess> {
    const there = this.workers.get(station) ?? (await this.start(station));
    this.workers.set(station, there);
    return there;
  }

  /** Those who do this work; a peer that is missing is left out, for the reason the report gives once. */
  private cast(work: Work): string[] {
    const { commands, missing } = this.options.crew;
    return work.by.filter(
      (name) =>
        commands[implementations[name].station] && !(name.startsWith('torch.compile') && missing['torch.compile']),
    );
  }

  /** What everybody is given: the files of weights and inputs. */
  private async give(work: Work): Promise<Record<string, string | undefined>> {
    const worker = await this.station('diffit');
    const inputs = join(this.folder, 'inputs.safetensors');
    if (!work.config) {
      await worker.ask({ do: 'save', work, inputs });
      return { inputs };
    }
    const key = JSON.stringify(work.config);
    const fresh = this.weights?.key !== key;
    if (fresh) {
      if (this.weights) rmSync(this.weights.path, { force: true });
      this.weights = { key, path: join(this.folder, `${work.sizes.network}.safetensors`) };
    }
    const weights = this.weights?.path;
    await worker.ask({ do: 'save', work, inputs, weights: fresh ? weights : undefined });
    return { inputs, weights };
  }

  private async row(work: Work): Promise<Bare> {
    const { id, group, dtype, flops, bytes, targets } = work;
    const row: Bare = { id, group, dtype, flops, bytes, targets, outcomes: {} };
    const files = await this.give(work);
    const players: Player[] = [];
    try {
      for (const name of this.cast(work)) {
        const outcome: Outcome = { rounds: [] };
        row.outcomes[name] = outcome;
        try {
          players.push(await this.prepare(work, name, files, outcome));
        } catch (error) {
          this.fail(name, outcome, error);
        }
      }
      await this.compare(work, files, players);
      await this.play(work, players);
    } finally {
      await this.dismiss(work, players);
    }
    return row;
  }

  private fail(name: string, outcome: Outcome, error: unknown): void {
    outcome.failure = error instanceof Error ? error.message : String(error);
    outcome.rounds = [];
    this.options.say(`    ${name}: ${outcome.failure}`);
  }

  private async prepare(work: Work, name: string, files: object, outcome: Outcome): Promise<Player> {
    const { station, way } = implementations[name];
    // A training step has a process to itself, whose memory is then its own.
    const worker = work.group === 'train' ? await this.start(station) : await this.station(station);
    const request: Record<string, unknown> = {
      ...files,
      work,
      way,
      output: this.outputOf(name),
      threads: this.options.threads,
    };
    try {
      if (station === 'onnxruntime') {
        request.graph = join(this.folder, 'graph.onnx');
        await (await this.station('torch')).ask({ ...request, do: 'export', path: request.graph });
      }
      await worker.ask({ ...request, do: 'prepare' });
      const once = (await worker.ask({ do: 'time', way, iterations: 2, repeats: 1 })).ms as number[];
      const budget = turn[this.options.quick ? 'quick' : 'full'];
      const repeats = Math.max(1, Math.ceil(budget / 50 / once[1]));
      const iterations = Math.min(20, Math.max(1, Math.ceil(budget / (once[1] * repeats))));
      return { name, station, way, worker, outcome, iterations, repeats };
    } catch (error) {
      if (work.group === 'train') await worker.end();
      throw error;
    }
  }

  private outputOf(name: string): string {
    return join(this.folder, `${name.replaceAll(/\W+/g, '-')}.out.safetensors`);
  }

  /** Outputs against those of PyTorch's straightforward module in f32, where there is one; else against ours. */
  private async compare(work: Work, files: object, players: Player[]): Promise<void> {
    const judge = ['torch eager', 'torch', ours].find((name) => players.some((player) => player.name === name));
    if (!judge) return;
    let reference = this.outputOf(judge);
    if (work.dtype !== 'f32') {
      reference = this.outputOf('reference');
      const station = this.options.crew.commands.torch ? 'torch' : 'diffit';
      await (await this.station(station)).ask({ ...files, do: 'reference', work, output: reference });
    }
    const expected = readTensors(reference);
    for (const { name, outcome } of players) {
      if (work.dtype === 'f32' && name === judge) continue;
      const error = errorOf(readTensors(this.outputOf(name)), expected);
      if (Number.isFinite(error)) outcome.error = error; // JSON has no others
      if (!(error <= tolerances[work.dtype]))
        this.fail(
          name,
          outcome,
          `its output is off by ${error.toExponential(1)}, at most ${tolerances[work.dtype]} was expected`,
        );
    }
  }

  private async play(work: Work, players: Player[]): Promise<void> {
    const { quick, say } = this.options;
    const healthy = (): Player[] => players.filter(({ outcome }) => !outcome.failure);
    let rounds = this.options.rounds;
    for (let round = 0; round < rounds; round++) {
      const started = performance.now();
      for (const player of healthy()) {
        const { name, way, worker, outcome, iterations, repeats } = player;
        await sleep(quick ? 1 : pause); // threads of the one before go to sleep
        try {
          // What another's turn drove out of the caches comes back outside the time, where that is little work.
          if (iterations > 1) await worker.ask({ do: 'time', way, iterations: 1, repeats });
          const { ms } = await worker.ask({ do: 'time', way, iterations, repeats });
          outcome.rounds.push(median(ms as number[]));
          if (work.group === 'train' && round === rounds - 1)
            outcome.peakRss = Number((await worker.ask({ do: 'rss' })).bytes);
        } catch (error) {
          this.fail(name, outcome, error);
        }
      }
      if (round === 0 && performance.now() - started > dearRound) rounds = Math.min(rounds, 3);
    }
    const own = players.find(({ name }) => name === ours)?.outcome;
    for (const { name, outcome } of healthy()) {
      const ratio = name === ours ? undefined : ratioOf(outcome, own);
      const against = ratio
        ? `, ${ratio.median.toFixed(2)}x ours (${ratio.low.toFixed(2)}-${ratio.high.toFixed(2)})`
        : '';
      const off = outcome.error === undefined ? '' : `, off by ${outcome.error.toExponential(1)}`;
      const rss = outcome.peakRss ? `, ${(outcome.peakRss / 2 ** 20).toFixed(0)} MiB` : '';
      say(`    ${name}: ${median(outcome.rounds).toPrecision(4)} ms${against}${off}${rss}`);
    }
  }

  private async dismiss(work: Work, players: Player[]): Promise<void> {
    if (work.group === 'train') for (const { worker } of players) await worker.end();
    else
      for (const worker of new Set(players.map((player) => player.worker)))
        await worker.ask({ do: 'release' }).catch(() => undefined);
  }

  /** Milliseconds of an import in a new process, Node's or Python's own start left out. */
  private async startup(work: Work): Promise<Bare> {
    const { id, group, dtype, targets } = work;
    const row: Bare = { id, group, dtype, targets, outcomes: {} };
    const { commands } = this.options.crew;
    const node = (file: string): [string, string[]] => [
      process.execPath,
      [
        '--input-type=module',
        '-e',
        `const t = performance.now(); await import(${JSON.stringify(pathToFileURL(file).href)}); console.log(performance.now() - t)`,
      ],
    ];
    const clock = 'import time; t = time.perf_counter(); import torch; print(1000 * (time.perf_counter() - t))';
    const onnx = join(root, 'bench/peers/node_modules/onnxruntime-node/dist/index.js');
    const ways: Record<string, [string, string[]] | undefined> = {
      [ours]: node(join(root, 'dist/index.js')),
      torch: commands.torch && [commands.torch.program, ['-c', clock]],
      onnxruntime: commands.onnxruntime && node(onnx),
    };
    for (let round = -1; round < this.options.rounds; round++) {
      for (const name of this.cast(work)) {
        const [program, argv] = ways[name] as [string, string[]];
        row.outcomes[name] ??= { rounds: [] };
        const ms = Number(execFileSync(program, argv, { encoding: 'utf8' }));
        if (round >= 0) row.outcomes[name].rounds.push(ms); // the first reads the files from the disk
      }
    }
    for (const [name, { rounds }] of Object.entries(row.outcomes))
      this.options.say(`    ${name}: ${median(rounds).toFixed(1)} ms`);
    return row;
  }
}
