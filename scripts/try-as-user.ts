/**
 * Installs the package's tarball as a user would, in temporary folders, and prints every command with its outcome: a transcript. Ends with a
 * summary, exit code 1 when anything failed. Needs npm's registry and nothing else; run `npm run prebuild` and `npm run build:ts` first.
 *
 *     npm run try-as-user -- --quick      the Node that runs this: --ignore-scripts, ESM, CommonJS, worker, TypeScript, the command
 *     npm run try-as-user                 also the install script, a bundler, and the build from source with what it says when it cannot
 *     npm run try-as-user -- --all        all that on the oldest and newest of each supported line of Node (from npm)
 */
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const quick = process.argv.includes('--quick');
const all = process.argv.includes('--all');
const nodes = all ? ['20.19.0', '20', '22.12.0', '22', '24'] : [];
const typescript = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).devDependencies.typescript;

const work = mkdtempSync(join(tmpdir(), 'try diffit é雪 '));
process.on('exit', () => rmSync(work, { recursive: true, force: true }));
const failures: string[] = [];
let passed = 0;

interface Step {
  cwd: string;
  path: string;
  env?: Record<string, string>;
  /** What stdout and stderr must hold. */
  says?: RegExp;
  /** It has to fail, and say that. */
  fails?: boolean;
}

/** Runs one command, prints it and how it went; its output. */
function step(title: string, command: string[], { cwd, path, env, says, fails = false }: Step): string {
  const started = performance.now();
  const { status, stdout, stderr, error } = spawnSync(command[0], command.slice(1), {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, npm_config_nodedir: '', NODE_OPTIONS: '', ...env, PATH: path },
  });
  const said = `${stdout ?? ''}${stderr ?? ''}${error ?? ''}`;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const good = (status !== 0) === fails && (says === undefined || says.test(said));
  const shown = command.map((word) => (word.includes('\n') ? '…' : word)).join(' ');
  console.log(`${good ? 'ok  ' : 'FAIL'} ${title} (${seconds} s)\n       $ ${shown.replaceAll(work, '…')}`);
  const lines = said.trim().split('\n');
  const telling = good && says ? lines.filter((line) => says.test(line)).slice(0, 2) : lines.slice(good ? -1 : -30);
  for (const line of telling) if (line) console.log(`       ${line}`);
  if (good) passed++;
  else failures.push(title);
  return said;
}

/** Where a program of this machine is. */
function which(name: string): string {
  const folder = (process.env.PATH ?? '').split(delimiter).find((folder) => existsSync(join(folder, name)));
  if (!folder) throw new Error(`There is no ${name} on the PATH.`);
  return join(folder, name);
}

const npmCli = realpathSync(process.env.npm_execpath ?? which('npm'));

/** A PATH of one folder with node, npm and a shell: no compiler, no make, no Python. */
function bareBin(node: string): string {
  const bin = mkdtempSync(join(work, 'bin '));
  const links = { node, npm: npmCli, npx: join(dirname(npmCli), 'npx-cli.js'), sh: which('sh'), env: which('env') };
  for (const [name, target] of Object.entries(links)) symlinkSync(target, join(bin, name));
  return bin;
}

function project(name: string, files: Record<string, string> = {}): string {
  const folder = join(work, `${name} ø`);
  mkdirSync(folder);
  writeFileSync(join(folder, 'package.json'), '{ "private": true }\n');
  for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, file), text);
  return folder;
}

const esm = `
import { createRequire } from 'node:module';
import { Tensor, devices, randn, tensor } from 'diffit';
const required = createRequire(import.meta.url)('diffit');
if (required.Tensor !== Tensor || !(required.tensor([1]) instanceof Tensor)) throw new Error('two copies');
const sum = await tensor([1, 2, 3]).mul(2).sum().item();
console.log('esm', sum, devices()[0].variant, await randn([2], { seed: 1 }).data());`;
const cjs = `
const { tensor } = require('diffit');
tensor([1, 2, 3]).mul(2).sum().item().then((sum) => console.log('cjs', sum));`;
const worker = `
import { Worker, isMainThread, parentPort } from 'node:worker_threads';
import { ones } from 'diffit';
const sum = await ones([100]).sum().item();
if (isMainThread) {
  const count = (await Promise.all([1, 2].map(() => new Promise((done, fail) =>
    new Worker(new URL(import.meta.url)).on('message', done).on('error', fail))))).reduce((a, b) => a + b, sum);
  console.log('worker', count);
} else parentPort.postMessage(sum);`;
const ts = `
import { data, diffusion, models, optim, randn, type Shape, Tensor, type TensorOptions } from 'diffit';
const options: TensorOptions = { dtype: 'f32' };
const shape: Shape = [1, 1, 32, 32];
const model = models.create('mnist');
const adam = new optim.Adam(model.namedParameters(), { lr: 1e-3 });
export const x: Tensor = randn(shape, { ...options, seed: 1 });
export const loss: Promise<number> = x.sum().item();
// @ts-expect-error a shape is of numbers
randn(['1']);
console.log(adam, data, diffusion);`;
const cts = `
import diffit = require('diffit');
export const x: diffit.Tensor = diffit.ones([2]);`;
const tsconfig = (module: string, moduleResolution: string, files: string[]) =>
  JSON.stringify({
    compilerOptions: {
      strict: true,
      target: 'es2022',
      module,
      moduleResolution,
      types: ['node'],
      noEmit: true,
      skipLibCheck: false,
    },
    files,
  });

/** Everything for one Node. */
function tryNode(node: string, tarball: string, bare: string): void {
  const version = spawnSync(node, ['--version'], { encoding: 'utf8' }).stdout.trim();
  console.log(`\n==> Node ${version}`);
  const path = bareBin(node);
  const named = (title: string) => `${version}: ${title}`;
  const cwd = project(`project ${version}`, {
    'esm.mjs': esm,
    'cjs.cjs': cjs,
    'worker.mjs': worker,
    'check.mts': ts,
    'check.cts': cts,
    'bundler.ts': ts,
    'nodenext.json': tsconfig('nodenext', 'nodenext', ['check.mts', 'check.cts']),
    'bundler.json': tsconfig('esnext', 'bundler', ['bundler.ts']),
  });
  const at = { cwd, path };
  step(named('install without scripts and without a compiler'), ['npm', 'install', '--ignore-scripts', tarball], at);
  const addon = join(cwd, 'node_modules/diffit/prebuilds');
  const cuda =
    existsSync(addon) && readdirSync(addon, { recursive: true, encoding: 'utf8' }).some((f) => f.endsWith('cuda.so'));
  step(named('import, and require gives the same classes'), ['node', 'esm.mjs'], { ...at, says: /^esm 12 \w+/m });
  step(named('require'), ['node', 'cjs.cjs'], { ...at, says: /^cjs 12$/m });
  step(named('worker threads'), ['node', 'worker.mjs'], { ...at, says: /^worker 300$/m });
  step(named('the command, and the CUDA library'), ['npx', 'diffit', 'info'], {
    ...at,
    says: cuda ? /cuda(:0)?: (?!.*has no)/ : /cuda: not available\. .*has no/,
  });
  const draw = ['sample', '--preset', 'mnist', '--labels', '0-3', '--num', '4', '--steps', '4', '--out', 'grid.png'];
  step(named('draws digits from the shipped weights'), ['npx', 'diffit', ...draw], at);
  const compilers = [
    'npm',
    'install',
    '--ignore-scripts',
    '--no-save',
    `typescript@${typescript}`,
    '@types/node@20',
    'esbuild',
  ];
  step(named('TypeScript and a bundler from npm'), compilers, at);
  for (const config of ['nodenext', 'bundler']) {
    step(named(`TypeScript, strict, ${config}`), ['npx', 'tsc', '-p', `${config}.json`], at);
  }
  if (quick) return;
  const bundle = [
    'esm.mjs',
    '--bundle',
    '--platform=node',
    '--format=esm',
    '--external:diffit',
    '--outfile=bundled.mjs',
  ];
  step(named('a bundler that keeps the package external'), ['npx', 'esbuild', ...bundle], at);
  step(named('the bundle runs'), ['node', 'bundled.mjs'], { ...at, says: /^esm 12/m });

  const scripts = { cwd: project(`scripts ${version}`, { 'esm.mjs': esm }), path };
  step(named('install with its script, without a compiler'), ['npm', 'install', tarball], scripts);
  step(named('runs'), ['node', 'esm.mjs'], { ...scripts, says: /^esm 12/m });

  const source = project(`source ${version}`, { 'esm.mjs': esm });
  const lacking = /diffit: there is no prebuilt addon .* lacks a C\+\+17 compiler, make and Python 3\./;
  step(named('no prebuild, no compiler: one sentence'), ['npm', 'install', bare], {
    cwd: source,
    path,
    fails: true,
    says: lacking,
  });
  const full = `${path}${delimiter}${process.env.PATH}`;
  step(named('no prebuild: built from source'), ['npm', 'install', bare], { cwd: source, path: full });
  step(named('what was built runs'), ['node', 'esm.mjs'], { cwd: source, path, says: /^esm 12/m });
}

// ---- the tarball -------------------------------------------------------------------------------------------------
if (!existsSync(join(root, 'prebuilds')) || !existsSync(join(root, 'dist/index.js'))) {
  throw new Error('There are no prebuilds or no dist: run "npm run prebuild" and "npm run build:ts" first.');
}
const own = { cwd: root, path: process.env.PATH ?? '' };
const pack = (cwd: string, to: string) => {
  mkdirSync(to);
  step('npm pack', ['npm', 'pack', '--ignore-scripts', '--pack-destination', to], { ...own, cwd, says: /\.tgz|size/ });
  return join(to, readdirSync(to)[0]);
};
const tarball = pack(root, join(work, 'tarball'));
console.log(`       ${(readFileSync(tarball).length / 1e6).toFixed(1)} MB`);
let bare = '';
if (!quick) {
  // The same without prebuilds: what musl, arm64 and macOS find.
  step('unpack', ['tar', 'xzf', tarball, '-C', work], own);
  rmSync(join(work, 'package/prebuilds'), { recursive: true });
  bare = pack(join(work, 'package'), join(work, 'bare'));
  const other = 'data:text/javascript,Object.defineProperty(process,"arch",{value:"ppc64"})';
  const refused = {
    ...own,
    cwd: join(work, 'package'),
    fails: true,
    says: /diffit: the addon is for .*, not for \w+-ppc64/,
  };
  step('another processor: one sentence', [process.execPath, '--import', other, 'scripts/install.mjs'], refused);
  const musl = { cwd: project('musl'), path: bareBin(process.execPath), env: { LIBC: 'musl' }, fails: true };
  step('musl does not take the glibc build', ['npm', 'install', tarball], {
    ...musl,
    says: /diffit: there is no prebuilt addon/,
  });
}
if (nodes.length === 0) tryNode(process.execPath, tarball, bare);
for (const version of nodes) {
  const folder = project(`node ${version}`);
  const name = `node-${process.platform}-${process.arch}`;
  step(`Node ${version} from npm`, ['npm', 'install', '--ignore-scripts', `${name}@${version}`], {
    ...own,
    cwd: folder,
  });
  tryNode(join(folder, 'node_modules', name, 'bin/node'), tarball, bare);
}
console.log(`\n${passed} passed, ${failures.length} failed`);
for (const title of failures) console.log(`  ${title}`);
process.exit(failures.length > 0 ? 1 : 0);
