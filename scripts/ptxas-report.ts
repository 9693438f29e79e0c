/**
 * What the compiler says of the CUDA kernels: registers, shared memory, spills, and how many blocks of a kernel fit on a multiprocessor.
 *
 *     npm run report:ptxas -- [--archs 80,90a] [--files attention,attention_backward] [--kernels REGEXP] [--all] [--json] [--out FILE]
 *
 * Compiles each file as native/cuda/Makefile does, with -Xptxas -v, for one architecture after the other. By default the files of
 * attention, gemm, conv and mma, one line per kernel; --all also sums up the others, one line per file. CUTLASS's take long: name them. --kernels picks by demangled name.
 * Exits with 1 when a listed kernel spills. Blocks per multiprocessor follow from registers, threads and static shared memory; dynamic
 * shared memory is known at launch only, and such kernels are marked.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const cuda = join(root, 'native', 'cuda');
const hot = /^(attention|gemm|conv|mma)/;

/** A multiprocessor's limits, CUDA programming guide, compute capabilities 8.0 and 9.0. */
const limits: Record<number, { threads: number; blocks: number; shared: number }> = {
  80: { threads: 2048, blocks: 32, shared: 164 * 1024 },
  90: { threads: 2048, blocks: 32, shared: 228 * 1024 },
};
const registerFile = 65_536;
/** Registers are dealt out to warps in units of this; each block takes 1 KiB of shared memory besides its own. */
const registerUnit = 256;
const sharedOfBlock = 1024;

/** What the compiler says of one kernel. */
export interface Kernel {
  /** Mangled. */
  name: string;
  arch: string;
  registers: number;
  /** Static shared memory of a block, bytes of a thread's stack, bytes stored and loaded by spills. */
  shared: number;
  stack: number;
  spills: number;
  /** Of a block, where the source bounds it. */
  threads?: number;
  /** Does it also use dynamic shared memory? */
  dynamic?: boolean;
}

/** A kernel with its file and readable name. */
interface Listed extends Kernel {
  file: string;
  label: string;
}

/** Blocks of a kernel that fit on a multiprocessor at a time; undefined where the number of threads is not known. */
export function blocksPerMultiprocessor(
  arch: string,
  { registers, threads, shared }: Pick<Kernel, 'registers' | 'threads' | 'shared'>,
): number | undefined {
  const limit = limits[Number.parseInt(arch, 10)];
  if (!limit || !threads) return undefined;
  const warps = Math.ceil(threads / 32);
  const perWarp = Math.ceil((registers * 32) / registerUnit) * registerUnit;
  const byRegisters = Math.floor(Math.floor(registerFile / perWarp) / warps);
  const byShared = Math.floor(limit.shared / (shared + sharedOfBlock));
  return Math.min(limit.blocks, Math.floor(limit.threads / (warps * 32)), byRegisters, byShared);
}

/** What ptxas -v prints, by mangled name. */
export function parsePtxas(text: string): Kernel[] {
  const kernels = new Map<string, Kernel>();
  let current: Kernel | undefined;
  for (const line of text.split('\n')) {
    const entry = /Compiling entry function '(\S+)' for '(\S+)'/.exec(line);
    if (entry) {
      current = { name: entry[1], arch: entry[2].replace('sm_', ''), spills: 0, stack: 0, shared: 0, registers: 0 };
      kernels.set(`${entry[1]} ${entry[2]}`, current);
    }
    const stack = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    // A function that was not inlined has properties of its own, without an entry; its frame is its callers'.
    if (stack && current && current.registers === 0) {
      current.stack = Math.max(current.stack, Number(stack[1]));
      current.spills += Number(stack[2]) + Number(stack[3]);
    }
    const used = /Used (\d+) registers/.exec(line);
    if (used && current) {
      current.registers = Number(used[1]);
      current.shared = Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0);
    }
  }
  return [...kernels.values()];
}

/** Threads of a block and use of dynamic shared memory, from PTX, by mangled name. */
export function parsePtx(text: string): Map<string, Pick<Kernel, 'threads' | 'dynamic'>> {
  const about = new Map<string, Pick<Kernel, 'threads' | 'dynamic'>>();
  const parts = text.split(/^\.visible \.entry |^\.entry /m);
  const dynamic = [...parts[0].matchAll(/\.extern \.shared .*? (\w+)\[\]/g)].map(([, name]) => name);
  for (const part of parts.slice(1)) {
    const name = /^(\S+?)\s*\(/.exec(part)?.[1] as string;
    const threads = /\.(?:max|req)ntid (\d+)(?:, (\d+), (\d+))?/.exec(part);
    const count = threads?.slice(1).reduce((product, n) => product * Number(n ?? 1), 1);
    about.set(name, { threads: count, dynamic: dynamic.some((shared) => part.includes(shared)) });
  }
  return about;
}

/** The compiler's command line for a file, as the Makefile has it. */
function commandFor(file: string, arch: string): string {
  const target = `../../build/cuda/cuda/${file}.o`;
  const printed = execFileSync('make', ['-n', '-B', '-C', cuda, target, `ARCHS=${arch}`], { encoding: 'utf8' });
  const line = printed.split('\n').find((text) => text.includes(`-c ${file}.cu`));
  if (!line) throw new Error(`native/cuda/Makefile has no rule for ${file}.cu.`);
  return line.replace(/-o \S+/, '');
}

function compile(file: string, arch: string): Kernel[] {
  const folder = mkdtempSync(join(tmpdir(), 'diffit-ptxas-'));
  try {
    const command = `${commandFor(file, arch)} -o ${folder}/object.o -Xptxas -v --keep --keep-dir ${folder}`;
    const { status, stdout, stderr } = spawnSync('sh', ['-c', command], {
      cwd: cuda,
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
    });
    if (status !== 0) throw new Error(`${file}.cu does not compile for sm_${arch}: ${stderr.trim().split('\n')[0]}`);
    const ptx = readdirSync(folder).filter((name) => name.endsWith('.ptx'));
    const about = new Map(ptx.flatMap((name) => [...parsePtx(readFileSync(join(folder, name), 'utf8'))]));
    return parsePtxas(stdout + stderr)
      .filter((kernel) => kernel.arch === arch)
      .map((kernel) => ({ ...kernel, ...about.get(kernel.name) }));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** "void diffit::(anonymous namespace)::kernel<float, 72>(…)" -> "kernel<float, 72>". */
export function shorten(demangled: string): string {
  const plain = demangled
    .replaceAll(/\(anonymous namespace\)::|diffit::|<unnamed>::/g, '')
    .replace(/^void /, '')
    .replaceAll('__nv_bfloat16', 'bf16')
    .replaceAll('__half', 'f16')
    .replaceAll(/\(\w[\w ]*\)(-?\d+)/g, '$1'); // (int)72
  let depth = 0;
  for (let i = 0; i < plain.length; i++) {
    if (plain[i] === '<') depth++;
    else if (plain[i] === '>') depth--;
    else if (plain[i] === '(' && depth === 0) return plain.slice(0, i);
  }
  return plain;
}

function demangle(kernels: readonly Kernel[]): string[] {
  if (kernels.length === 0) return [];
  const input = kernels.map(({ name }) => name).join('\n');
  const { stdout } = spawnSync('c++filt', { input, encoding: 'utf8', maxBuffer: 2 ** 28 });
  return (stdout ?? input).trim().split('\n');
}

function row(kernel: Listed): string {
  const { label, arch, registers, shared, stack, spills, threads, dynamic } = kernel;
  const blocks = blocksPerMultiprocessor(arch, kernel);
  const occupancy =
    blocks === undefined
      ? ''
      : `${blocks} (${Math.round((100 * blocks * Number(threads)) / limits[Number.parseInt(arch, 10)].threads)}%)`;
  return `| \`${label}\` | ${arch} | ${threads ?? ''} | ${registers} | ${shared}${dynamic ? ' + dynamic' : ''} | ${stack} | ${spills} | ${occupancy} |`;
}

function main(): void {
  const { values } = parseArgs({
    options: {
      archs: { type: 'string', default: '80,90a' },
      files: { type: 'string' },
      kernels: { type: 'string', default: '' },
      all: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      out: { type: 'string' },
    },
  });
  const existing = readdirSync(cuda)
    .filter((name) => name.endsWith('.cu'))
    .map((name) => name.slice(0, -3))
    .sort();
  const asked = values.files?.split(',') ?? existing.filter((name) => values.all || hot.test(name));
  const unknown = asked.filter((name) => !existing.includes(name));
  if (unknown.length > 0)
    throw new Error(`native/cuda has no ${unknown.join(', ')}; there are ${existing.join(', ')}.`);
  const wanted = new RegExp(values.kernels);
  const listed: Listed[] = [];
  const others: { file: string; arch: string; kernels: Listed[] }[] = [];
  for (const file of asked) {
    for (const arch of values.archs.split(',')) {
      console.error(`${file}.cu for sm_${arch}`);
      const kernels = compile(file, arch);
      const names = demangle(kernels);
      const named = kernels.map((kernel, i) => ({ file, label: shorten(names[i]), ...kernel }));
      if (hot.test(file) || values.files) listed.push(...named.filter(({ label }) => wanted.test(label)));
      else others.push({ file, arch, kernels: named });
    }
  }
  listed.sort((a, b) => a.file.localeCompare(b.file) || a.label.localeCompare(b.label) || a.arch.localeCompare(b.arch));
  const lines = [
    '| kernel | sm | threads | registers | shared memory, bytes | stack, bytes | spills, bytes | blocks per multiprocessor (threads) |',
    '|---|---|---|---|---|---|---|---|',
    ...listed.map(row),
  ];
  if (others.length > 0) {
    lines.push('', '| file | sm | kernels | most registers | spills, bytes |', '|---|---|---|---|---|');
    for (const { file, arch, kernels } of others) {
      const spills = kernels.reduce((sum, kernel) => sum + kernel.spills, 0);
      lines.push(
        `| ${file}.cu | ${arch} | ${kernels.length} | ${Math.max(0, ...kernels.map(({ registers }) => registers))} | ${spills} |`,
      );
    }
  }
  const spilling = listed.filter(({ spills }) => spills > 0);
  lines.push('', `${listed.length} kernels listed, ${spilling.length} of them spill.`);
  const text = values.json ? JSON.stringify({ listed, others }, null, 2) : lines.join('\n');
  if (values.out) writeFileSync(values.out, `${text}\n`);
  else console.log(text);
  if (spilling.length > 0) process.exitCode = 1;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    main();
  } catch (error) {
    console.error(`error: ${error instanceof Error ? error.message : error}`);
    process.exit(2);
  }
}
