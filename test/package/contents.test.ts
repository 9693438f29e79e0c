/** What `npm pack` would ship is what this list says: no more, and nothing missing. */
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const root = fileURLToPath(new URL('../..', import.meta.url));

const listed = [
  'CHANGELOG.md',
  'CMakeLists.txt',
  'LICENSE',
  'README.md',
  'binding.gyp',
  'licenses/CUTLASS.txt',
  'package.json',
  'recipes/cifar10.json',
  'recipes/ffhq64.json',
  'recipes/imagenet256.json',
  'recipes/imagenet512.json',
  'scripts/fetch-cutlass.sh',
  'scripts/install.mjs',
  'weights/mnist.safetensors',
];
/** `npm run prebuild` makes these; a clone without them packs none. */
const prebuilds = ['prebuilds/linux-x64/diffit.glibc.node', 'prebuilds/linux-x64/libdiffit_cuda.so'];

function under(folder: string): string[] {
  const entries = readdirSync(join(root, folder), { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name).slice(root.length));
}

t.test('the package holds what is listed', async (t) => {
  const printed = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
    cwd: root,
    encoding: 'utf8',
  });
  const [packed] = Object.values(JSON.parse(printed)) as { files: { path: string }[]; unpackedSize: number }[];
  const files = packed.files.map(({ path }) => path);
  // Types of every module; code in three entry points and the chunks they share.
  const compiled = under('lib').map((path) => path.replace(/^lib\//, 'dist/').replace(/\.ts$/, '.d.ts'));
  compiled.push('dist/index.js', 'dist/cli/main.js', 'dist/cli/quickstart.js');
  const chunks = files.filter((path) => /^dist\/chunks\/[\w-]+\.js$/.test(path));
  t.ok(chunks.length > 0 && chunks.length < 80, `${chunks.length} chunks`);
  const sources = under('native').filter((path) => !path.startsWith('native/emulator/'));
  const made = prebuilds.filter((path) => existsSync(join(root, path)));
  t.same(files.sort(), [...listed, ...compiled, ...chunks, ...sources, ...made].sort());
  t.ok(packed.unpackedSize < 80e6, `${packed.unpackedSize} bytes`);
});
