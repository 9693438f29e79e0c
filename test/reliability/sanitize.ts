/**
 * `npm run test:sanitize`: the addon under AddressSanitizer with UndefinedBehaviorSanitizer, under ThreadSanitizer and under valgrind, and the
 * native code through clang-tidy and cppcheck. Writes what came of it to test/reliability/results/sanitize.json, from which
 * docs/reliability.md has its figures. Exit code 1 with a finding, a failed test, or an error on purpose that was not seen.
 *
 *     npm run test:sanitize -- [--only address|thread|valgrind|tidy|cppcheck] [--quick] [--out FILE] [--files TEXT] [--variant NAME]
 *
 * --quick: cppcheck, and the threads of the addon and the errors on purpose under both sanitizers; no instrumented addon is compiled.
 * --files: of the test files those with TEXT in their path. --variant: the CPU kernels that tests of all variants are limited to.
 * Needs g++ with its sanitizers, CMake, and valgrind, clang-tidy and cppcheck for the parts that use them.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Parser } from 'tap-parser';
import { buildAddon, compile, must, type Run, root, runUnder, type Sanitizer, type Tool } from './instrument.js';
import { cppcheck, tidy } from './static-checks.js';
import { makeRecipe } from './training.js';

const parts = ['address', 'thread', 'valgrind', 'tidy', 'cppcheck'] as const;
type Part = (typeof parts)[number];

/** Folders and files of tests, below test/. The thread part leaves out what only computes the same on the same threads. */
const suites: Record<Sanitizer, string[]> = {
  address: ['ops', 'nn', 'autograd.test.ts', 'tensor.test.ts', 'scope.test.ts', 'random.test.ts', 'optim', 'native'],
  thread: ['ops', 'autograd.test.ts', 'scope.test.ts', 'optim', 'native'],
};
/**
 * Not here: tests of the GPU's sources, emulated or not, which are built otherwise; of sizes that take an instrumented build an hour; and for
 * the address part of what the pool keeps, since there it gives every tensor a piece of its own (threads.cc tests the pool itself).
 */
const onGpu = [
  'native/replay',
  'native/cuda-driver',
  'native/cutlass-conv',
  'native/emulator',
  'native/faults',
  'native/runtime',
];
const leftOut: Record<Sanitizer, string[]> = {
  address: [...onGpu, 'native/mutation', 'ops/large', 'native/memory'],
  thread: [...onGpu, 'native/mutation', 'ops/large'],
};

function testFiles(sanitizer: Sanitizer): string[] {
  const folder = join(root, 'test');
  const files = suites[sanitizer].flatMap((name) =>
    name.endsWith('.ts') ? name : readdirSync(join(folder, name)).map((file) => join(name, file)),
  );
  const wanted = files.filter(
    (file) => file.endsWith('.test.ts') && !leftOut[sanitizer].some((name) => file.startsWith(name)),
  );
  return wanted.map((file) => join('test', file));
}

/** Assertions in TAP output, subtests' own ones; those that failed by name. */
function countTests(output: string): { passed: number; failures: string[] } {
  let passed = 0;
  const failures: string[] = [];
  const count = (parser: Parser): void => {
    let closes = false;
    parser.on('child', (child: Parser) => {
      closes = true;
      count(child);
    });
    parser.on('assert', ({ ok, skip, todo, fullname }) => {
      if (!ok && !skip && !todo && !closes) failures.push(fullname);
      else if (ok && !skip && !closes) passed++;
      closes = false;
    });
  };
  const parser = new Parser();
  count(parser);
  parser.end(output);
  return { passed, failures };
}

interface PartResult {
  /** Of the last run in it. */
  date: string;
  /** Whether it ran to its end, with every file and all variants. */
  whole: boolean;
  /** Programs and test files that ran (static checks: files), and the assertions in them (threads.cc: rounds). */
  runs: number;
  ran: string[];
  tests: number;
  findings: string[];
  failures: string[];
  seconds: number;
  notes: string[];
}

const { values } = parseArgs({
  options: {
    only: { type: 'string' },
    quick: { type: 'boolean', default: false },
    out: { type: 'string' },
    files: { type: 'string', default: '' },
    variant: { type: 'string' },
  },
});
const begun = performance.now();
/** Writes what there is so far. */
let save = (): void => undefined;
const say = (line: string): void =>
  console.log(`${((performance.now() - begun) / 1000).toFixed(0).padStart(5)} s  ${line}`);

const planted: Record<Tool, Record<string, RegExp>> = {
  address: {
    overflow: /heap-buffer-overflow/,
    stale: /heap-use-after-free/,
    leak: /leak of 1000 byte/,
    undefined: /runtime error: signed integer overflow/,
  },
  thread: { race: /data race/ },
  valgrind: { overflow: /Invalid read of size 4/, leak: /1,000 bytes in 1 blocks are definitely lost/ },
};

/**
 * The proof that an error would be seen: planted.cc makes one each time, as an addon that node loads under the very options of the tests;
 * the number of kinds seen. One that is not seen is a failure.
 */
function seePlanted(tool: Tool, folder: string, result: PartResult): void {
  const addon = join(folder, `planted-${tool}.node`);
  const source = join(root, 'test', 'reliability', 'native', 'planted.cc');
  if (tool === 'valgrind')
    must('g++', ['-std=c++17', '-O1', '-g', '-pthread', '-shared', '-fPIC', '-o', addon, source]);
  else compile(tool, addon, [source], ['-shared', '-fPIC']);
  const script = `process.dlopen({ exports: {} }, ${JSON.stringify(addon)})`;
  for (const [kind, sentence] of Object.entries(planted[tool])) {
    const { findings, seconds } = runUnder(tool, [process.execPath, '-e', script], { PLANTED: kind });
    const seen = findings.some((finding) => sentence.test(finding));
    say(`${tool}: ${kind} on purpose: ${seen ? 'seen' : 'NOT SEEN'} (${seconds.toFixed(1)} s)`);
    if (seen) result.notes.push(`${kind} on purpose: seen`);
    else result.failures.push(`${kind} on purpose was not seen`);
  }
}

/** Adds a run to the result of its part; `failed` is what is wrong with it but for the reports. */
function add(result: PartResult, name: string, run: Run, tests: number, failed: string[]): void {
  result.runs++;
  result.ran.push(`${name}: ${tests}`);
  result.tests += tests;
  result.findings.push(...run.findings.map((report) => `${name}\n${report}`));
  result.failures.push(...failed.map((what) => `${name}: ${what}`));
  for (const report of run.findings.slice(0, 5)) console.log(report.trimEnd());
  for (const what of failed.slice(0, 20)) console.log(`failed: ${name}: ${what}`);
  say(
    `${name}: ${tests} tests, ${failed.length} failed, ${run.findings.length} findings (${run.seconds.toFixed(0)} s)`,
  );
}

const endedWell = ({ status, signal, stderr }: Run): string[] =>
  status === 0 ? [] : [`it ended with ${signal ?? status}: ${stderr.slice(-2000)}`];

/** The queue, the pool and the scheduler without Node: native/threads.cc. */
function runThreads(sanitizer: Sanitizer, folder: string, result: PartResult, seconds: number): void {
  const program = join(folder, `threads-${sanitizer}`);
  const sources = ['queue', 'replay', 'pool'].map((name) => `native/binding/${name}.cc`);
  compile(sanitizer, program, ['test/reliability/native/threads.cc', ...sources, 'native/cpu/context.cc']);
  const run = runUnder(sanitizer, [program, String(seconds)], { LD_PRELOAD: '' });
  const rounds = [...run.stdout.matchAll(/: (\d+) rounds/g)].reduce((sum, [, n]) => sum + Number(n), 0);
  result.notes.push(...run.stdout.trim().split('\n'));
  add(result, 'threads without node', run, rounds, endedWell(run));
}

/** `diffit train` on pictures of 8 x 8 pixels with a sample and checkpoints, then on from the last one. */
async function runTraining(tool: Tool, folder: string, result: PartResult, steps: number): Promise<void> {
  const recipe = await makeRecipe(folder);
  const argv = (end: number): string[] => [
    ...[process.execPath, '--import=tsx', 'lib/cli/main.ts', 'train', '--recipe', recipe, '--out', join(folder, 'run')],
    ...['--steps', String(end), '--checkpoint-every', '2', '--sample-every', '2'],
  ];
  for (const [name, command] of Object.entries({
    'a training': argv(steps),
    'the same, resumed': [...argv(2 * steps), '--resume'],
  })) {
    const run = runUnder(tool, command, tool === 'valgrind' ? { DIFFIT_CPU: 'avx2' } : {});
    add(result, name, run, 1, endedWell(run));
  }
}

async function runPart(part: Part, result: PartResult): Promise<void> {
  if (part === 'tidy' || part === 'cppcheck') {
    const { files, findings } = part === 'tidy' ? tidy() : cppcheck();
    result.runs = files;
    result.findings = findings;
    for (const finding of findings) console.log(finding);
    say(`${part}: ${files} files, ${findings.length} with findings`);
    return;
  }
  const folder = mkdtempSync(join(tmpdir(), 'diffit-sanitize-'));
  try {
    seePlanted(part, folder, result);
    if (part !== 'valgrind') {
      runThreads(part, folder, result, values.quick ? 1 : 10);
      if (values.quick) return;
      buildAddon(part);
      say(`${part}: the addon is built`);
    }
    await runTraining(part, folder, result, part === 'valgrind' ? 2 : 6);
    if (part === 'valgrind') return;
    const env: Record<string, string> = { TAP_TIMEOUT: '3600' };
    const variants = values.variant ?? '';
    // The emulated GPU's library is no part of these builds.
    const all: string[] = JSON.parse(
      must(process.execPath, [
        '-p',
        `JSON.stringify(require('node-gyp-build')(${JSON.stringify(root)}).cpuVariants())`,
      ]),
    );
    env.DIFFIT_TEST_DEVICES = (variants ? [variants] : all).map((name) => `cpu:${name}`).join(',');
    for (const file of testFiles(part).filter((name) => name.includes(values.files))) {
      const run = runUnder(part, [process.execPath, '--import=tsx', file], env);
      const { passed, failures } = countTests(run.stdout);
      const crashed = failures.length === 0 ? endedWell(run) : [];
      add(result, file, run, passed + failures.length, [...failures, ...crashed]);
    }
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

const quick: readonly Part[] = ['cppcheck', 'address', 'thread'];
const chosen = (values.quick ? quick : parts).filter((part) => !values.only || part === values.only);
if (chosen.length === 0) throw new Error(`--only ${values.only}: expected one of ${parts.join(', ')}`);
/** The parts that ran replace those of the file, whose others stay: a part takes long enough to be run by itself. */
function write(file: string): void {
  const before = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).parts : {};
  const report = {
    node: process.version,
    compiler: must('g++', ['--version']).split('\n')[0],
    processor: cpus()[0].model,
    parts: { ...before, ...results },
  };
  writeFileSync(file, `${JSON.stringify(report, null, 1)}\n`);
}

// The record is what ran as a whole.
const whole = !values.quick && !values.files && !values.variant;
const out = values.out ?? (whole ? join(root, 'test', 'reliability', 'results', 'sanitize.json') : undefined);
const results: Partial<Record<Part, PartResult>> = {};
for (const part of chosen) {
  const started = performance.now();
  const result: PartResult = {
    date: '',
    whole: false,
    runs: 0,
    ran: [],
    tests: 0,
    findings: [],
    failures: [],
    seconds: 0,
    notes: [],
  };
  results[part] = result;
  save = () => {
    result.seconds = Math.round((performance.now() - started) / 1000);
    result.date = new Date().toISOString();
    if (out) write(out);
  };
  await runPart(part, result);
  result.whole = whole;
  save();
}
const all = Object.values(results);
const sum = (list: (result: PartResult) => number): number => all.reduce((total, result) => total + list(result), 0);
const bad = sum(({ findings, failures }) => findings.length + failures.length);
console.table(
  Object.fromEntries(
    Object.entries(results).map(([part, { runs, tests, findings, failures, seconds }]) => [
      part,
      { runs, tests, findings: findings.length, failures: failures.length, seconds },
    ]),
  ),
);
process.exitCode = bad > 0 ? 1 : 0;
