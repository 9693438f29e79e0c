/** What importing the package loads: not what only some of its functions need. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';

const root = fileURLToPath(new URL('..', import.meta.url));
/** What tsx needs for the first TypeScript file. */
const loaders = ['tsx', 'esbuild', 'get-tsconfig', 'resolve-pkg-maps'];
const entry = new URL('../lib/index.ts', import.meta.url).href;

/** Modules that a process loads which runs `script`. */
function modulesOf(script: string): string[] {
  // ES modules as the loader sees them; what is CommonJS stands in its cache.
  const hooks = `import { writeSync } from 'node:fs';
    export async function load(url, context, next) { writeSync(1, url + '\\n'); return next(url, context); }`;
  const source = `import { createRequire, register } from 'node:module';
    register('data:text/javascript,' + encodeURIComponent(${JSON.stringify(hooks)}));
    ${script}
    for (const path of Object.keys(createRequire(import.meta.url).cache)) console.log('file://' + path);`;
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    ['--import', 'tsx', '--input-type=module', '-e', source],
    { cwd: root, encoding: 'utf8', timeout: 60_000 },
  );
  if (status !== 0) throw new Error(stderr);
  return [...new Set(stdout.split('\n').map((url) => url.split('?')[0]))];
}

const packagesOf = (urls: string[]): Set<string> =>
  new Set(urls.flatMap((url) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(url)?.[1] ?? []));
/** What a process has that imports nothing: TypeScript's loader, the test runner's hooks. */
const tools = packagesOf(modulesOf(''));

/** Packages in node_modules of which importing diffit and running `script` loads anything, and how many modules of its own. */
function loaded(script: string): { packages: string[]; own: number } {
  const urls = modulesOf(`const diffit = await import(${JSON.stringify(entry)});\n${script}`);
  const packages = [...packagesOf(urls)].filter((name) => !tools.has(name) && !loaders.includes(name));
  return { packages: packages.sort(), own: urls.filter((url) => url.startsWith(new URL('.', entry).href)).length };
}

t.test('importing the package loads its own modules and what finds the addon, no other package', async (t) => {
  const { packages, own } = loaded('');
  t.same(packages, ['node-gyp-build']);
  t.ok(own > 50 && own < 200, `${own} modules of its own`);
});

t.test('what is left out comes with its first use', async (t) => {
  const { packages } = loaded('new diffit.diffusion.GaussianDiffusion();');
  t.same(packages, ['node-gyp-build', 'zod']);
});
