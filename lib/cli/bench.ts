/** `diffit bench`: times operations, blocks, models, sampling and training on a device, beside what the device can do at all. */
import { writeFileSync } from 'node:fs';
import { type Group, groups, type Precision, type Report, type Result, roofline } from '../bench/report.js';
import { type BenchOptions, listSpecs, runGroup, saveOutputs } from '../bench/run.js';
import { deviceId } from '../device.js';
import { OptionError, unknownName } from '../errors.js';
import { toFileError } from '../io/files.js';
import { interruptible } from './interrupt.js';
import { ensureWritableFile } from './output.js';
import type { Terminal } from './terminal.js';

/** The command's options as commander gives them. */
export interface BenchCommandOptions {
  device: string;
  dtype: Precision;
  quick?: boolean;
  only?: string;
  limit?: number;
  list?: boolean;
  save?: string;
  out?: string;
}

export async function bench(name: string, options: BenchCommandOptions, terminal: Terminal): Promise<number> {
  if (!(groups as readonly string[]).includes(name)) throw unknownName('benchmark', name, groups);
  const { device, dtype, quick, only, limit, list, save, out } = options;
  const asked: BenchOptions = { group: name as Group, device, dtype, quick, only, limit };
  const specs = listSpecs(asked);
  if (specs.length === 0 && !save)
    throw new OptionError(`--only ${only}: no benchmark of "${name}" has this in its name.`);
  if (list) {
    terminal.data({ group: name, device, dtype, specs });
    for (const { id } of specs) terminal.print(id);
    return 0;
  }
  for (const file of [save, out]) if (file) await ensureWritableFile(file);
  deviceId(device); // before the progress: a missing device is said in one line
  return interruptible(terminal, 'Stopping.', (signal) => measure({ ...asked, signal }, { save, out }, terminal));
}

async function measure(
  asked: BenchOptions,
  { save, out }: Pick<BenchCommandOptions, 'save' | 'out'>,
  terminal: Terminal,
): Promise<number> {
  if (save) {
    const saved = await saveOutputs(asked, save);
    terminal.data({ file: save, specs: saved.map(({ id }) => id) });
    terminal.print(`${save}: inputs and results of ${saved.length} benchmarks`);
    return 0;
  }
  const progress = await terminal.progress(`Timing ${asked.group}`, listSpecs(asked).length);
  const onResult = (soFar: Report): void => {
    const { results } = soFar;
    progress.update(results.length, results.at(-1)?.id);
    if (out) writeReport(out, soFar);
  };
  const report = await runGroup({ ...asked, onResult }).finally(() => progress.stop());
  terminal.data(report);
  for (const line of table(report)) terminal.print(line);
  return report.results.some(({ ms }) => ms) ? 0 : 1;
}

function writeReport(path: string, report: Report): void {
  try {
    writeFileSync(path, `${JSON.stringify(report, null, 2)}\n`);
  } catch (error) {
    throw toFileError(error, path, 'written');
  }
}

/** The report for people. */
function table({ device, dtype, ceilings, results }: Report): string[] {
  const { copy, arithmetic } = ceilings;
  const peak = device.name.startsWith('cpu') ? 'multiply-adds' : 'matrix product';
  const head = `${device.model} (${device.name}), ${dtype}; ceilings: copy ${si(copy)}B/s, ${peak} ${si(arithmetic)}FLOP/s`;
  const width = Math.max(...results.map(({ id }) => id.length));
  const columns = ['ms', '10-90%', 'GB/s', 'of copy', 'GFLOP/s', 'of peak', 'of floor', 'per second'];
  const rows = results.map((result) => `${result.id.padEnd(width)}  ${cells(result, ceilings)}`);
  return [head, `${''.padEnd(width)}  ${columns.map((column) => column.padStart(columnWidth)).join(' ')}`, ...rows];
}

const columnWidth = 14;

function cells(result: Result, ceilings: Report['ceilings']): string {
  const { ms, error, unit } = result;
  if (!ms) return error ?? '';
  const at = roofline(result, ms.median, ceilings);
  const percent = (share: number | undefined): string => (share === undefined ? '-' : `${(100 * share).toFixed(1)}%`);
  const number = (value: number | undefined): string => (value === undefined ? '-' : value.toPrecision(4));
  return [
    number(ms.median),
    `${ms.low.toPrecision(3)}-${ms.high.toPrecision(3)}`,
    number(at.gigabytesPerSecond),
    percent(at.ofCopy),
    number(at.gigaflops),
    percent(at.ofArithmetic),
    percent(at.ofFloor),
    `${si(at.perSecond)}${unit === 'bytes' ? 'B' : unit}`,
  ]
    .map((cell) => cell.padStart(columnWidth))
    .join(' ');
}

/** 1.2e12 -> "1.2 T". */
function si(value: number): string {
  const prefixes = ['', 'k', 'M', 'G', 'T', 'P'];
  const order = Math.min(prefixes.length - 1, Math.max(0, Math.floor(Math.log10(value) / 3)));
  return Number.isFinite(order) ? `${(value / 1000 ** order).toPrecision(3)} ${prefixes[order]}` : '-';
}
