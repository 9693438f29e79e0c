/**
 * The form of bench/results/cpu-*.json, which bench/cpu/main.ts writes and bench/tables.ts turns into the tables of
 * docs/benchmarks.md:
 *
 *     schema 1, kind "cpu"
 *     date, git, quick, rounds     when, what sources, how many rounds were asked for
 *     machine                      processor, vendor, cores, threads (of everything that was timed), memory, variant of ours
 *     versions                     of everything that ran
 *     missing                      peers that did not run and why, one sentence each
 *     ceilings                     the best of the run: operations per second of multiply-adds in registers, bytes per second of a
 *                                  large copy
 *     rows                         one per work: what it takes at least, the ceilings just before and after it (the better of the two:
 *                                  the clock changes within a run), and per implementation the milliseconds of every round (the
 *                                  median of the iterations in it), the error of its output, its peak resident memory
 *
 * Within a round the implementations take turns, one at a time, so the rounds are pairs: a ratio is the median of the rounds' own.
 */

/** What one way of doing the work made of it. */
export interface Outcome {
  /** Milliseconds of an iteration, one number a round. */
  rounds: number[];
  /** Largest difference from the reference output over the reference's largest number; missing where it is the reference. */
  error?: number;
  /** Bytes of resident memory at most while it worked, its process's own measure; training only. */
  peakRss?: number;
  /** Why there is no time. */
  failure?: string;
}

/** A demand of one of `peers` (the fastest there is), or of a ceiling. */
export interface Target {
  kind: 'ratio' | 'peak' | 'memory' | 'milliseconds';
  /** Of the peers' time over ours, of the FMA peak, of our memory over theirs, of our time. */
  bound: number;
  peers?: readonly string[];
}

/** What this machine does at most: operations and bytes per second. */
export interface Ceilings {
  /** Multiply-adds in registers, on all threads and on one; bf16 dot products (0: it has none); a large copy, read and written. */
  fma: number;
  fmaOneThread: number;
  bf16Dot: number;
  copy: number;
}

export interface Row {
  id: string;
  group: string;
  dtype: 'f32' | 'bf16';
  /** The least operations and bytes of an iteration. */
  flops?: number;
  bytes?: number;
  targets: readonly Target[];
  ceilings: Ceilings;
  /** Ours is "diffit". */
  outcomes: Record<string, Outcome>;
}

export interface CpuReport {
  schema: 1;
  kind: 'cpu';
  date: string;
  git?: string;
  quick: boolean;
  rounds: number;
  machine: { processor: string; vendor: string; cores: number; threads: number; memory: number; variant: string };
  versions: Record<string, string>;
  missing: Record<string, string>;
  ceilings: Ceilings;
  rows: Row[];
}

export const ours = 'diffit';

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** A ceiling is the best that was seen: another process can only lower it. */
export function bestOf(seen: readonly Ceilings[]): Ceilings {
  const best = (name: keyof Ceilings): number => Math.max(...seen.map((of) => of[name]));
  return { fma: best('fma'), fmaOneThread: best('fmaOneThread'), bf16Dot: best('bf16Dot'), copy: best('copy') };
}

export interface Ratio {
  median: number;
  low: number;
  high: number;
}

/** Theirs over ours, round by round: above 1 ours is faster. Undefined where one of them has no times. */
export function ratioOf(theirs: Outcome | undefined, own: Outcome | undefined): Ratio | undefined {
  const count = Math.min(theirs?.rounds.length ?? 0, own?.rounds.length ?? 0);
  if (!theirs || !own || count === 0) return undefined;
  const ratios = Array.from({ length: count }, (_, i) => theirs.rounds[i] / own.rounds[i]);
  return { median: median(ratios), low: Math.min(...ratios), high: Math.max(...ratios) };
}

/** A row's place under its ceilings. */
export interface Share {
  gigaflops?: number;
  gigabytesPerSecond?: number;
  ofPeak?: number;
  ofCopy?: number;
  /** Which ceiling is the nearer: the longer of the two least times. */
  binds?: 'arithmetic' | 'memory';
}

export function shareOf(row: Row, milliseconds: number): Share {
  const { fma, bf16Dot, copy } = row.ceilings;
  const seconds = milliseconds / 1000;
  const peak = row.dtype === 'bf16' ? Math.max(fma, bf16Dot) : fma;
  const { flops, bytes } = row;
  const [arithmetic, memory] = [(flops ?? 0) / peak, (bytes ?? 0) / copy];
  return {
    gigaflops: flops && flops / seconds / 1e9,
    gigabytesPerSecond: bytes && bytes / seconds / 1e9,
    ofPeak: flops && arithmetic / seconds,
    ofCopy: bytes && memory / seconds,
    binds: arithmetic + memory === 0 ? undefined : arithmetic >= memory ? 'arithmetic' : 'memory',
  };
}

export interface Judgement {
  target: Target;
  /** What was reached; undefined: not measured. */
  value?: number;
  /** Against which peer. */
  peer?: string;
  met?: boolean;
}

/** Ratios are judged against the fastest of the peers that ran. */
export function judge(row: Row): Judgement[] {
  const own = row.outcomes[ours];
  return row.targets.map((target): Judgement => {
    const { kind, bound, peers = [] } = target;
    if (!own || own.rounds.length === 0) return { target };
    if (kind === 'milliseconds') return reached(target, median(own.rounds), true);
    if (kind === 'peak') {
      const { ofPeak } = shareOf(row, median(own.rounds));
      return ofPeak === undefined ? { target } : reached(target, ofPeak);
    }
    const found = peers.flatMap((peer) => {
      const outcome = row.outcomes[peer];
      const value =
        kind === 'ratio'
          ? ratioOf(outcome, own)?.median
          : outcome?.peakRss && own.peakRss && own.peakRss / outcome.peakRss;
      return value ? [{ peer, value }] : [];
    });
    if (found.length === 0) return { target };
    const worst = found.reduce((a, b) => ((kind === 'memory' ? b.value > a.value : b.value < a.value) ? b : a));
    return { ...reached(target, worst.value, kind === 'memory'), peer: worst.peer, target: { ...target, bound } };
  });
}

function reached(target: Target, value: number, atMost = false): Judgement {
  return { target, value, met: atMost ? value <= target.bound : value >= target.bound };
}
