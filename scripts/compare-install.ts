/**
 * What `npm install` of diffit costs, beside its neighbours: each into an empty project with an empty cache of npm, once with install scripts
 * and once without. Prints the markdown table of docs/install.md. Needs npm's registry, and `npm run prebuild` and `npm run build:ts` first.
 *
 *     npm run compare:install                      all of them, one after the other; fetches 1.2 GB
 *     npm run compare:install -- diffit tfjs       those whose name contains one of these words
 *
 * The columns: wall time; packages and disk space of node_modules; npm's cache afterwards, which is what it took from the registry (and the
 * tarball); what the install scripts added to node_modules, which is what they downloaded or compiled. What fails is said in the words of what
 * failed.
 */
import { spawnSync } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const neighbours = ['diffit', '@tensorflow/tfjs-node', 'onnxruntime-node', 'node-llama-cpp'];
const minute = 60_000;
/** What a failed install is recognised by: the first line that says why. */
const reason =
  /ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|fetch failed|status(?: code|Code)?\W+\d{3}|error:/i;

interface Installed {
  seconds: number;
  packages: number;
  /** Disk space of node_modules, and of npm's cache. */
  disk: number;
  cache: number;
  version: string;
  /** Packages that have an install script. */
  scripts: string[];
  /** Why it failed. */
  error?: string;
}

/** Disk space of a folder, each file once. */
function diskSpace(folder: string): number {
  if (!existsSync(folder)) return 0;
  const seen = new Set<number>();
  let bytes = 0;
  for (const name of readdirSync(folder, { recursive: true, encoding: 'utf8' })) {
    const { ino, blocks } = lstatSync(join(folder, name));
    if (!seen.has(ino)) bytes += blocks * 512;
    seen.add(ino);
  }
  return bytes;
}

/** The first line that says why, without npm's prefix and the colours of a terminal. */
function whyOf(said: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the escape sequences of colours
  const lines = said.replace(/\x1b\[[\d;]*m/g, '').split('\n');
  const plain = lines.map((line) => line.replace(/^npm (?:error|ERR!)\s*/, '').trim()).filter(Boolean);
  return plain.find((line) => reason.test(line)) ?? plain.at(-1) ?? 'it said nothing';
}

/** Installs one package into a new project. */
function install(name: string, spec: string, ...flags: string[]): Installed {
  const work = mkdtempSync(join(tmpdir(), 'compare-install-'));
  try {
    const project = join(work, 'project');
    const cache = join(work, 'cache');
    mkdirSync(project);
    writeFileSync(join(project, 'package.json'), '{ "private": true }\n');
    const started = performance.now();
    const { status, stdout, stderr, error } = spawnSync('npm', ['install', '--foreground-scripts', ...flags, spec], {
      cwd: project,
      encoding: 'utf8',
      timeout: 10 * minute,
      maxBuffer: 2 ** 28,
      env: { ...process.env, npm_config_cache: cache, npm_config_nodedir: '', npm_config_loglevel: 'error' },
    });
    const seconds = (performance.now() - started) / 1000;
    const modules = join(project, 'node_modules');
    const lockfile = join(modules, '.package-lock.json');
    const { packages = {} }: { packages?: Record<string, { hasInstallScript?: boolean; version: string }> } =
      existsSync(lockfile) ? JSON.parse(readFileSync(lockfile, 'utf8')) : {};
    return {
      seconds,
      packages: Object.keys(packages).length,
      disk: diskSpace(modules),
      cache: diskSpace(cache),
      version: packages[`node_modules/${name}`]?.version ?? '',
      scripts: Object.entries(packages).flatMap(([place, { hasInstallScript }]) =>
        hasInstallScript ? [place.replace(/^.*node_modules\//, '')] : [],
      ),
      ...(status !== 0 && { error: error?.message ?? whyOf(`${stderr}\n${stdout}`) }),
    };
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

/** The tarball as `npm pack` makes it. */
function packed(): string {
  const folder = mkdtempSync(join(tmpdir(), 'compare-install-tarball-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  spawnSync('npm', ['pack', '--ignore-scripts', '--pack-destination', folder], { cwd: root });
  const [tarball] = readdirSync(folder);
  if (!existsSync(join(root, 'prebuilds')) || !existsSync(join(root, 'dist')) || !tarball) {
    throw new Error('There are no prebuilds or no dist: run "npm run prebuild" and "npm run build:ts" first.');
  }
  return join(folder, tarball);
}

const mebibytes = (bytes: number): string => (bytes / 2 ** 20).toFixed(0);
const words = process.argv.slice(2);
const chosen = neighbours.filter((name) => words.length === 0 || words.some((word) => name.includes(word)));
const npm = spawnSync('npm', ['--version'], { encoding: 'utf8' }).stdout.trim();
const today = new Date().toISOString().slice(0, 10);
console.log(
  `${today}, Node ${process.versions.node}, npm ${npm}, ${availableParallelism()} threads of ${cpus()[0].model}:\n`,
);
console.log(
  '| package | `npm install` | with `--ignore-scripts` | packages | node_modules | npm cache afterwards | added by install scripts |\n' +
    '|---|---|---|---|---|---|---|',
);
for (const name of chosen) {
  const spec = name === 'diffit' ? packed() : name;
  const bare = install(name, spec, '--ignore-scripts');
  const full = install(name, spec);
  const { scripts } = bare;
  const time = (run: Installed): string => (run.error ? `fails: ${run.error}` : `${run.seconds.toFixed(1)} s`);
  const added = Math.max(0, full.disk - bare.disk);
  const by = scripts.length > 0 ? ` (${scripts.join(', ')})` : '';
  const cells = [
    `${name} ${bare.version}`,
    time(full),
    time(bare),
    bare.packages,
    `${mebibytes(full.error ? bare.disk : full.disk)} MiB`,
    `${mebibytes(bare.cache)} MiB`,
    full.error ? `failed${by}` : `${mebibytes(added)} MiB${by}`,
  ];
  console.log(`| ${cells.join(' | ')} |`);
}
