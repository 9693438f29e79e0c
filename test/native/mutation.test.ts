/**
 * Would the suite notice? In a copy of the kernels one barrier, or one wait for an asynchronous copy, is taken out; the emulated
 * library is built anew from that file, and the operations' own tests, which pass with the library as it is, must fail with it.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { temporaryFolder } from '../train/fixtures.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const kernels = join(root, 'native', 'cuda');
const objects = join(root, 'build', 'cuda', 'emulated');
const library = 'libdiffit_cuda_emulated.so';

interface Mutation {
  /** File of native/cuda, what is taken out of it, and which of its places: from 0. */
  file: string;
  remove: 'barrier' | 'wait';
  place: number;
  /** The .cu file to compile: the file itself, or one that includes it. */
  unit: string;
  /** The test that must fail, and which of its subtests to run. */
  suite: string;
  only: string;
}

const patterns = { barrier: /__syncthreads\(\);/g, wait: /\bwaitCopies<[^>]*>\(\);/g };

const barrier = { remove: 'barrier' } as const;
const wait = { remove: 'wait' } as const;
const f32 = { suite: 'fixtures', only: '/PyTorch/' };
const products = { unit: 'mma_bf16', suite: 'gemm-lowp', only: '/whole numbers/' };
const grids = { suite: 'attention-lowp', only: '/a grid of 2x48, bf16/' };
const windows = { suite: 'attention-lowp', only: '/windows of 2x2, head dim 40, bf16/' };

const mutations: Mutation[] = [
  { ...barrier, file: 'attention.cu', place: 1, unit: 'attention', ...f32 },
  { ...barrier, file: 'gemm_tile.cuh', place: 1, unit: 'gemm', ...f32 },
  { ...barrier, file: 'gemm_mma.cuh', place: 0, ...products },
  { ...wait, file: 'gemm_mma.cuh', place: 0, ...products },
  { ...wait, file: 'attention_grid.cu', place: 0, unit: 'attention_grid', ...grids },
  { ...wait, file: 'attention_grid_backward.cu', place: 0, unit: 'attention_grid_backward', ...grids },
  { ...wait, file: 'attention_window.cu', place: 0, unit: 'attention_window', ...windows },
];

/** A copy of the package as far as the operations' tests need it, with a library of its own. */
function copyPackage(t: Test): string {
  const folder = temporaryFolder(t);
  const [release, tests] = [join(folder, 'build', 'Release'), join(folder, 'test')];
  mkdirSync(release, { recursive: true });
  mkdirSync(tests);
  for (const name of [
    'lib',
    'test/ops',
    'test/helpers.ts',
    'package.json',
    'tsconfig.json',
    'build/Release/diffit.node',
  ])
    cpSync(join(root, name), join(folder, name), { recursive: true });
  for (const name of ['node_modules', 'test/fixtures', 'weights']) symlinkSync(join(root, name), join(folder, name));
  copyFileSync(join(root, 'build', 'Release', library), join(release, library));
  return folder;
}

/** Runs a suite of the copied package on the emulator; stops at the first failure. */
function runSuite(folder: string, { suite, only }: Pick<Mutation, 'suite' | 'only'>) {
  const env = { ...process.env, DIFFIT_TEST_DEVICES: 'cuda-emulated', TAP_BAIL: '1', TAP_GREP: only };
  const file = join('test', 'ops', `${suite}.test.ts`);
  const { status, stdout, stderr } = spawnSync(process.execPath, ['--import=tsx', file], {
    cwd: folder,
    env,
    encoding: 'utf8',
  });
  return { passed: status === 0, checks: (stdout.match(/^ +ok \d+ - /gm) ?? []).length, output: stdout + stderr };
}

/** Takes one place out; throws when there is none. */
function mutate(source: string, { file, remove, place }: Mutation): string {
  const found = [...source.matchAll(patterns[remove])][place];
  if (!found) throw new Error(`${file} has no ${remove} number ${place}`);
  return source.slice(0, found.index) + source.slice(found.index + found[0].length);
}

/** Builds the library with the mutated file into the copied package. */
function build(t: Test, folder: string, mutation: Mutation): void {
  const native = join(temporaryFolder(t), 'native');
  for (const room of ['abi', 'cuda', 'emulator'])
    cpSync(join(root, 'native', room), join(native, room), { recursive: true });
  const cuda = join(native, 'cuda');
  const path = join(cuda, mutation.file);
  writeFileSync(path, mutate(readFileSync(path, 'utf8'), mutation));
  const object = join(native, `${mutation.unit}.o`);
  // The Makefile's own commands, so that flags and the list of objects are these.
  const compiled = `../../build/cuda/emulated/${mutation.unit}.o`;
  const printed = execFileSync('make', ['-n', '-B', '-C', kernels, 'emulated'], { encoding: 'utf8' }).split('\n');
  const compile = printed.find((line) => line.includes(` -c ${mutation.unit}.cu `)) as string;
  const link = printed.find((line) => line.includes(' -shared ')) as string;
  const run = (command: string, cwd: string): void => {
    execFileSync('sh', ['-c', command], { cwd, stdio: 'pipe' });
  };
  run(`${compile.replace(/ -o \S+/, '')} -O0 -o ${object}`, cuda);
  const shared = join(folder, 'build', 'Release', library);
  run(link.replace(/ -o \S+/, ` -o ${shared}`).replace(` ${compiled}`, ` ${object}`), kernels);
}

t.test(
  'a barrier or a wait taken out of a kernel makes its tests fail',
  { skip: !existsSync(objects) && 'the emulator is not built (npm run build:emulator)' },
  async (t) => {
    const folder = copyPackage(t);
    for (const suite of new Set(mutations.map(({ suite }) => suite))) {
      const all = mutations.filter((mutation) => mutation.suite === suite);
      for (const only of new Set(all.map(({ only }) => only))) {
        copyFileSync(join(root, 'build', 'Release', library), join(folder, 'build', 'Release', library));
        const { passed, checks, output } = runSuite(folder, { suite, only });
        t.ok(passed && checks > 0, `${suite}, ${only}: ${checks} checks pass with the kernels as they are`, {
          output: passed ? '' : output.slice(-2000),
        });
      }
      for (const mutation of all) {
        build(t, folder, mutation);
        const { passed, output } = runSuite(folder, mutation);
        const { file, remove, place } = mutation;
        const failure = /^ +not ok .*/m.exec(output)?.[0].trim();
        t.ok(!passed && failure, `${file} without ${remove} ${place}: ${failure ?? output.slice(-500)}`);
      }
    }
  },
);

t.test('every kernel that waits for copies is among them', async (t) => {
  const sources = readdirSync(kernels).filter((name) => /\.cuh?$/.test(name) && name !== 'arch.cuh');
  const waiting = sources.filter((name) => readFileSync(join(kernels, name), 'utf8').match(patterns.wait));
  const covered = new Set(mutations.filter(({ remove }) => remove === 'wait').map(({ file }) => file));
  t.same(
    waiting.filter((name) => !covered.has(name)),
    [],
  );
});
