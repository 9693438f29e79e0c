/**
 * Makes prebuilds/linux-ARCH, what `npm install` uses without a compiler: the addon (tag glibc), and libdiffit_cuda.so where there is nvcc.
 *
 *     npm run prebuild                 both; compiles only what is out of date
 *     ARCHS=80 npm run prebuild        the CUDA library for these GPUs alone (default: native/cuda/Makefile's)
 *     npm run prebuild -- --cpu        the addon alone
 *
 * Both run where Node's own binaries run: no symbol may be newer than `floor`, and no library beyond those of `allowed` may be needed; that is
 * checked. Two things make it so on a newer system. libstdc++ is linked in. And glibc symbols that got a new version after the floor (2.34
 * moved threads and dlopen into libc.so) are bound to their older one, which every later glibc keeps: they are linked from stub libraries that
 * export just that older version.
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { allowed, atFloor, compareVersions, floor, formerHome, needs, tooNew } from './elf.js';

const root = fileURLToPath(new URL('..', import.meta.url));
const release = join(root, 'build/Release');
const out = join(root, 'prebuilds', `${process.platform}-${process.arch}`);

function run(command: string, args: string[], env: Record<string, string> = {}): void {
  execFileSync(command, args, { cwd: root, stdio: 'inherit', env: { ...process.env, ...env } });
}

/** Output of a program, up to 256 MiB of it. */
function output(command: string, ...args: string[]): string {
  return execFileSync(command, args, { encoding: 'utf8', maxBuffer: 2 ** 28, stdio: ['ignore', 'pipe', 'ignore'] });
}

/** Builds the stub libraries that export symbols in the versions which the floor had; their paths. */
function stubs(): string[] {
  const folder = join(root, 'build/floor');
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  const versions = new Map<string, Map<string, string[]>>(); // library, version, symbols
  const add = (home: string, version: string, name: string) => {
    const of = versions.get(home) ?? new Map<string, string[]>();
    versions.set(home, of.set(version, [...(of.get(version) ?? []), name]));
  };
  const symbolsOf = (library: string) => {
    const file = output(process.env.CXX ?? 'g++', `-print-file-name=${library}`).trim();
    return atFloor(output('objdump', '-T', file));
  };
  // A stub takes the place of the library of its name, so libm's has to be whole; libc's own is not needed, and stays what it is.
  for (const { name, version } of symbolsOf('libm.so.6')) add('libm.so.6', version, name);
  for (const { name, version, moved } of symbolsOf('libc.so.6')) {
    const home = formerHome(name);
    if (moved && home) add(home, version, name);
  }
  return [...versions].map(([soname, of]) => {
    const base = join(folder, soname.replace(/\.\d+$/, '')); // nvcc knows libraries by the ending .so
    const names = [...of.values()].flat();
    // -fno-builtin: some of the names mean something to the compiler.
    writeFileSync(`${base}.c`, names.map((name) => `void ${name}(void) {}\n`).join(''));
    writeFileSync(`${base}.map`, [...of].map(([version, list]) => `${version} { ${list.join('; ')}; };\n`).join(''));
    const flags = ['-shared', '-fPIC', '-nostdlib', '-fno-builtin', '-w', `-Wl,--version-script=${base}.map`];
    run('gcc', [...flags, `-Wl,-soname=${soname}`, '-o', base, `${base}.c`]);
    return base;
  });
}

/** An object with what a new system's libstdc++.a takes from a glibc beyond the floor, for the library that it is linked into alone. */
function substitutes(): string {
  const base = join(root, 'build/floor/substitutes');
  writeFileSync(
    `${base}.c`,
    `#define _GNU_SOURCE
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#define HIDDEN __attribute__((visibility("hidden")))
HIDDEN char __libc_single_threaded = 0; /* since 2.32; 0: count references atomically */
HIDDEN unsigned arc4random(void) {      /* since 2.36; std::random_device draws from it */
  unsigned bits = 0;
  if (getentropy(&bits, sizeof bits)) _exit(1);
  return bits;
}
/* A function since 2.33, inline before; the kernel's structure is glibc's. */
HIDDEN int fstat(int file, struct stat *buffer) { return syscall(SYS_fstat, file, buffer); }
HIDDEN int fstat64(int file, struct stat64 *buffer) { return syscall(SYS_fstat, file, buffer); }
`,
  );
  run('gcc', ['-O2', '-fPIC', '-c', '-o', `${base}.o`, `${base}.c`]);
  return `${base}.o`;
}

/** Copies a library without its symbols, and checks what it needs of the system. */
function ship(from: string, name: string): void {
  const to = join(out, name);
  mkdirSync(out, { recursive: true });
  copyFileSync(from, to);
  run('strip', ['--strip-unneeded', to]);
  const { versions, libraries, nobodys } = needs(output('objdump', '-T', to), output('objdump', '-p', to));
  const wrong = [...nobodys, ...tooNew(versions), ...libraries.filter((library) => !allowed.test(library))];
  const bytes = readFileSync(to);
  const highest = versions
    .filter((version) => version.startsWith('GLIBC_'))
    .sort(compareVersions)
    .at(-1);
  const mb = (size: number) => `${(size / 1e6).toFixed(1)} MB`;
  console.log(
    `${relative(root, to)}: ${mb(bytes.length)}, gzip ${mb(gzipSync(bytes, { level: 9 }).length)}, ${highest}`,
  );
  if (wrong.length > 0) {
    rmSync(to);
    throw new Error(
      `${name} needs what is newer than the floor (GLIBC_${floor.GLIBC}) or not allowed: ${wrong.join(', ')}`,
    );
  }
}

/** The GPUs whose machine code, and the PTX, that the library was compiled for. */
function architectures(): string {
  const compiled = readFileSync(join(root, 'build/cuda/cuda.flags'), 'utf8');
  const codes = [...new Set([...compiled.matchAll(/\bcode=(\w+)/g)].map(([, code]) => code))];
  return [...codes, ...(compiled.includes('-DDIFFIT_CUTLASS_SM90') ? ['sm_90a (CUTLASS)'] : [])].join(', ');
}

if (process.platform !== 'linux')
  throw new Error('Prebuilds are made on Linux; elsewhere the package is built at installation.');
rmSync(out, { recursive: true, force: true });
const older = stubs();
// The flags stand before the objects: the first library that has a symbol gives it its version.
const flags = [
  substitutes(),
  '-static-libstdc++',
  '-Wl,--exclude-libs,libstdc++.a',
  '-Wl,--no-as-needed',
  ...older,
  '-Wl,--as-needed',
];
run(process.execPath, ['scripts/install.mjs', '--build'], { LDFLAGS: flags.join(' ') });
ship(join(release, 'diffit.node'), 'diffit.glibc.node');

let nvcc = !process.argv.includes('--cpu');
try {
  if (nvcc) output(process.env.NVCC ?? 'nvcc', '--version');
} catch {
  nvcc = false;
  console.log('There is no nvcc: no libdiffit_cuda.so.');
}
if (nvcc) {
  const library = join(release, 'libdiffit_cuda.so');
  if (existsSync(library)) rmSync(library); // linked anew, with these flags
  // nvcc hands -Xlinker on out of place, so nothing may depend on the order of those.
  const forwarded = flags
    .filter((flag) => flag !== '-Wl,--as-needed')
    .flatMap((flag) => {
      if (!flag.startsWith('-')) return [flag];
      const [first, ...rest] = flag.split(',');
      return first === '-Wl' ? rest.map((part) => `-Xlinker=${part}`) : [`-Xcompiler=${flag}`];
    });
  run('make', ['-j2', '-C', 'native/cuda', 'cuda', `LINK_FLAGS=${forwarded.join(' ')}`]);
  ship(library, 'libdiffit_cuda.so');
  console.log(`for ${architectures()}`);
}
