/** Gets ready what the peers need: Python with PyTorch, packages of npm, a preloaded library; and says in a sentence what is not to be had. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildSync } from 'esbuild';
import type { Station } from './work.js';

export const root = fileURLToPath(new URL('../..', import.meta.url));
const peersFolder = join(root, 'bench', 'peers');
const venv = join(peersFolder, '.venv');
const torchVersion = '2.13.0';

/** How a worker is started; a station that is not there is in `missing`. */
export interface Command {
  program: string;
  argv: string[];
  env: NodeJS.ProcessEnv;
}

export interface Crew {
  commands: Partial<Record<Station, Command>>;
  /** Peers that cannot run, each with one sentence. */
  missing: Record<string, string>;
  /** Of the processor. */
  vendor: string;
}

/** The library as users get it, for what starts a process of its own. */
export function buildDist(): void {
  const built = join(root, 'dist', 'index.js');
  const since = existsSync(built) ? statSync(built).mtimeMs : 0;
  const lib = join(root, 'lib');
  const files = readdirSync(lib, { recursive: true }) as string[];
  const newest = Math.max(...files.map((file) => statSync(join(lib, file)).mtimeMs));
  if (newest > since) execFileSync('npm', ['run', '--silent', 'build:ts'], { cwd: root, stdio: 'inherit' });
}

/** Our worker as plain JavaScript, as users run it: a compiler of TypeScript in its process would count as memory of ours, 40 MiB of it. */
function bundleOurs(): string {
  const outfile = join(root, 'out', 'bench', 'ours.mjs');
  buildSync({
    entryPoints: [join(root, 'bench', 'cpu', 'ours.ts')],
    outfile,
    bundle: true,
    packages: 'external',
    format: 'esm',
    platform: 'node',
    keepNames: true,
    logLevel: 'warning',
  });
  return outfile;
}

const ok = (program: string, ...argv: string[]): boolean => spawnSync(program, argv, { stdio: 'ignore' }).status === 0;

/** Runs a command; its last words when it fails. */
function failureOf(program: string, argv: string[], say: (line: string) => void, cwd = root): string | undefined {
  say(`${program} ${argv.join(' ')}`);
  const { status, stderr, error } = spawnSync(program, argv, { cwd, encoding: 'utf8', timeout: 1_200_000 });
  if (status === 0) return undefined;
  return error?.message ?? stderr.trim().split('\n').at(-1) ?? 'it failed';
}

/** A Python that has PyTorch, in a venv of the benchmark's own; or why there is none. */
function python(say: (line: string) => void): { program: string } | { why: string } {
  const program = join(venv, 'bin', 'python');
  const complete = "import torch, onnx, onnxscript, numpy; assert torch.__version__ >= '2.13'";
  if (ok(program, '-c', complete)) return { program };
  if (!ok('python3', '-c', '')) return { why: 'there is no python3' };
  // The system's PyTorch where it is recent: it need not be downloaded again.
  const has = ok('python3', '-c', "import torch; assert torch.__version__ >= '2.13'");
  const made = failureOf('python3', ['-m', 'venv', '--clear', ...(has ? ['--system-site-packages'] : []), venv], say);
  if (made) return { why: `no venv could be made: ${made}` };
  const packages = [...(has ? [] : [`torch==${torchVersion}`]), 'numpy', 'onnx', 'onnxscript'];
  const failed = failureOf(program, ['-m', 'pip', 'install', '--quiet', ...packages], say);
  if (failed && !has) return { why: `pip install ${packages.join(' ')} failed: ${failed}` };
  return ok(program, '-c', 'import torch') ? { program } : { why: 'PyTorch was installed and cannot be imported' };
}

/** PyTorch takes MKL's slower path on processors that are not Intel's; this makes MKL believe it is on one. */
function forcedMkl(): string | undefined {
  const library = join(venv, 'libintel_cpu_true.so');
  const source = join(venv, 'intel_cpu_true.c');
  writeFileSync(source, 'int mkl_serv_intel_cpu_true(void) { return 1; }\n');
  return ok('cc', '-shared', '-fPIC', '-o', library, source) ? library : undefined;
}

export function vendorOf(): string {
  if (!existsSync('/proc/cpuinfo')) return cpus()[0].model;
  return /^vendor_id\s*:\s*(\S+)/m.exec(readFileSync('/proc/cpuinfo', 'utf8'))?.[1] ?? process.arch;
}

export interface CrewOptions {
  threads: number;
  /** Of ours: avx2, ... */
  variant?: string;
  peers: boolean;
  say(line: string): void;
}

export function assemble({ threads, variant, peers, say }: CrewOptions): Crew {
  const count = String(threads);
  const env = { ...process.env, OMP_NUM_THREADS: count, OPENBLAS_NUM_THREADS: count, MKL_NUM_THREADS: count };
  const node = (file: string): Command => ({
    program: process.execPath,
    argv: ['--import=tsx', join(root, file)],
    env,
  });
  const crew: Crew = { commands: {}, missing: {}, vendor: vendorOf() };
  const ownEnv = { ...env, DIFFIT_NUM_THREADS: count, ...(variant && { DIFFIT_CPU: variant }) };
  crew.commands.diffit = { program: process.execPath, argv: [bundleOurs()], env: ownEnv };
  if (!peers) return crew;
  mkdirSync(venv, { recursive: true });

  const packages = existsSync(join(peersFolder, 'node_modules', 'onnxruntime-node'))
    ? undefined
    : failureOf('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], say, peersFolder);
  const found = python(say);
  if ('why' in found)
    for (const peer of ['torch', 'openblas', 'onnxruntime'])
      crew.missing[peer] = `PyTorch, OpenBLAS and onnxruntime's graph need Python: ${found.why}.`;
  else {
    const cache = join(venv, 'inductor');
    const torchEnv = {
      ...env,
      TORCHINDUCTOR_CACHE_DIR: cache,
      PYTHONWARNINGS: 'ignore',
      TORCHINDUCTOR_COMPILE_THREADS: '1',
    };
    const script = (file: string, more: NodeJS.ProcessEnv = {}): Command => ({
      program: found.program,
      argv: [join(peersFolder, file)],
      env: { ...torchEnv, ...more },
    });
    crew.commands.torch = script('cpu.py');
    crew.commands.openblas = script('openblas.py');
    if (!ok('g++', '--version')) crew.missing['torch.compile'] = 'torch.compile needs g++ on a CPU, and there is none.';
    if (crew.vendor === 'AuthenticAMD') {
      const library = forcedMkl();
      if (library) crew.commands['torch-mkl'] = script('cpu.py', { LD_PRELOAD: library });
      else crew.missing['torch-mkl'] = 'Forcing the AVX-512 path of MKL needs cc, and there is none.';
    } else {
      crew.missing['torch-mkl'] = `MKL's AVX-512 path need not be forced: the processor is ${crew.vendor}, not AMD.`;
    }
  }
  if (packages) crew.missing.onnxruntime = crew.missing.tfjs = `npm ci in bench/peers failed: ${packages}.`;
  else {
    crew.commands.tfjs = node('bench/peers/tfjs.mjs');
    if (!crew.missing.onnxruntime) crew.commands.onnxruntime = node('bench/peers/onnx.mjs');
  }
  return crew;
}
