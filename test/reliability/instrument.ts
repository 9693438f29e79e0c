/**
 * Programs under a sanitizer or valgrind: the instrumented builds, what a run of them needs in its environment, and which of its reports
 * are about this package. Node itself, V8 and the libraries beside them are not instrumented and keep memory until the end on purpose, so
 * a report counts when its stack goes through the addon (or through a program built here); the others are dropped.
 */
import { type SpawnSyncReturns, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = fileURLToPath(new URL('../..', import.meta.url));
const folder = join(root, 'test', 'reliability');

export type Tool = 'address' | 'thread' | 'valgrind';
export type Sanitizer = Exclude<Tool, 'valgrind'>;

const flags: Record<Sanitizer, string> = { address: 'address,undefined', thread: 'thread' };

/** Runs a command; an error names it and shows the end of what it said. */
export function must(command: string, argv: string[], env: NodeJS.ProcessEnv = process.env): string {
  const { status, error, stdout, stderr } = spawnSync(command, argv, {
    cwd: root,
    env,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  });
  if (status === 0) return stdout;
  throw new Error(`${command} ${argv.join(' ')}: ${error?.message ?? `${stdout}${stderr}`.slice(-4000)}`);
}

/** Builds the instrumented addon in build/address or build/thread, as far as it is not there. */
export function buildAddon(sanitizer: Sanitizer): void {
  const out = join('build', sanitizer);
  must('npx', ['cmake-js', 'build', '--out', out, '--parallel', '2', `--CDDIFFIT_SANITIZE=${flags[sanitizer]}`]);
}

/** Compiles C++ files with a sanitizer, with the flags of the addon's build. */
export function compile(sanitizer: Sanitizer, out: string, sources: string[], more: string[] = []): void {
  const common = ['-std=c++17', '-O1', '-g', '-fno-omit-frame-pointer', '-Wall', '-Wextra', '-pthread'];
  const sanitize = [`-fsanitize=${flags[sanitizer]}`, '-fno-sanitize=null,object-size,pointer-overflow'];
  must('g++', [...common, ...sanitize, ...more, '-o', out, ...sources]);
}

/** Environment and command in front of a program that is to run under a tool and write its reports below `logs`. */
function wrap(tool: Tool, logs: string): { env: Record<string, string>; command: string[] } {
  const log = join(logs, 'report');
  if (tool === 'valgrind') {
    const command = [
      'valgrind',
      '--tool=memcheck',
      '--leak-check=full',
      '--show-leak-kinds=definite',
      '--num-callers=30',
    ];
    command.push('--errors-for-leak-kinds=definite', `--log-file=${log}.%p`, '--error-limit=no');
    command.push(`--suppressions=${join(folder, 'suppressions', 'valgrind.txt')}`);
    return { env: {}, command };
  }
  const env: Record<string, string> = { DIFFIT_PREBUILD: join(root, 'build', tool) };
  const library = (name: string): string => must('g++', [`-print-file-name=lib${name}.so`]).trim();
  const suppressions = `suppressions=${join(folder, 'suppressions', `${tool}.txt`)}`;
  if (tool === 'address') {
    env.LD_PRELOAD = `${library('asan')} ${library('stdc++')}`;
    // Operations that ask for more memory than there is are tested; leaks are reported without changing the exit code.
    // Node's handler of SIGSEGV (for WebAssembly) would end the process without a report. Not detect_stack_use_after_return: gcc 12's
    // fake stack does not align vectors of 64 bytes (gcc bug 110027).
    env.ASAN_OPTIONS = `detect_leaks=1:allow_user_segv_handler=0:allocator_may_return_null=1:exitcode=99:log_path=${log}`;
    env.LSAN_OPTIONS = `exitcode=0:${suppressions}`;
    env.UBSAN_OPTIONS = 'print_stacktrace=1:halt_on_error=1'; // to stderr, whatever log_path says
  } else {
    env.LD_PRELOAD = library('tsan');
    env.TSAN_OPTIONS = `exitcode=0:second_deadlock_stack=1:history_size=4:${suppressions}:log_path=${log}`;
  }
  // Its map of memory has no place for what more random addresses would give.
  const randomBits = Number(readFileSync('/proc/sys/vm/mmap_rnd_bits', 'utf8'));
  return { env, command: tool === 'thread' && randomBits > 28 ? ['setarch', '-R'] : [] };
}

/** The reports in a tool's text, one string each. */
export function splitReports(tool: Tool, text: string): string[] {
  if (tool === 'thread') {
    return text.split(/^={18,}$/m).filter((part) => /WARNING: ThreadSanitizer|ERROR: ThreadSanitizer/.test(part));
  }
  if (tool === 'valgrind') {
    const paragraphs = text.replace(/^==\d+== ?/gm, '').split(/\n\s*\n/);
    return paragraphs.filter((part) => /^\s+(at|by) 0x/m.test(part));
  }
  const reports = text.split(/^(?==+\d+==ERROR: |(?:Direct|Indirect) leak of |\S+:\d+:\d+: runtime error)/m);
  return reports.filter((part) =>
    /^(==+\d+==ERROR: AddressSanitizer|(Direct|Indirect) leak of |\S+: runtime error)/.test(part),
  );
}

/** Whether the first stacks of a report go through the addon, its libraries, or a program of this folder. */
export function isOurs(report: string): boolean {
  return /diffit\.node|\/native\/(binding|cpu|abi)\/|\b(planted|threads)(-\w+)?\.(node|cc)\b/.test(report);
}

export interface Run extends Pick<SpawnSyncReturns<string>, 'status' | 'signal' | 'stdout' | 'stderr'> {
  /** Reports about this package. */
  findings: string[];
  seconds: number;
}

/** Runs a program under a tool; processes it starts are watched, too (valgrind: the program alone). */
export function runUnder(tool: Tool, argv: string[], env: Record<string, string> = {}, seconds = 3600): Run {
  const logs = mkdtempSync(join(tmpdir(), 'diffit-reports-'));
  try {
    const { env: needed, command } = wrap(tool, logs);
    const [program, ...rest] = [...command, ...argv];
    const started = performance.now();
    const { status, signal, stdout, stderr } = spawnSync(program, rest, {
      cwd: root,
      env: { ...process.env, ...needed, ...env },
      encoding: 'utf8',
      timeout: seconds * 1000,
      maxBuffer: 2 ** 28,
    });
    const texts = readdirSync(logs).map((name) => readFileSync(join(logs, name), 'utf8'));
    const findings = [...texts, ...(tool === 'address' ? [stderr] : [])]
      .flatMap((text) => splitReports(tool, text))
      .filter(isOurs);
    return { status, signal, stdout, stderr, findings, seconds: (performance.now() - started) / 1000 };
  } finally {
    rmSync(logs, { recursive: true, force: true });
  }
}
