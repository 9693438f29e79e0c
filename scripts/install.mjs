/**
 * Gives the package its native addon: a prebuilt one that loads, else one compiled from source with node-gyp
 * (C++17 compiler, make and Python 3). A git clone, `--build` and npm's `--build-from-source` always compile.
 */
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { availableParallelism } from 'node:os';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');

function prebuiltLoads() {
  process.env.PREBUILDS_ONLY = '1';
  try {
    createRequire(import.meta.url)('node-gyp-build')(root);
    return true;
  } catch {
    return false;
  } finally {
    delete process.env.PREBUILDS_ONLY;
  }
}

/** What the build needs and this machine lacks, as it is called in a sentence. */
function missing() {
  const folders = (process.env.PATH ?? '').split(delimiter);
  const found = (...names) => names.some((name) => folders.some((folder) => existsSync(join(folder, name))));
  const lacking = [];
  if (!process.env.CXX && !found('g++', 'c++', 'clang++')) lacking.push('a C++17 compiler');
  if (!process.env.MAKE && !found('make', 'gmake')) lacking.push('make');
  if (!process.env.PYTHON && !found('python3', 'python')) lacking.push('Python 3');
  return lacking.join(', ').replace(/, ([^,]*)$/, ' and $1');
}

function fail(sentence) {
  console.error(`diffit: ${sentence}`);
  process.exit(1);
}

function build() {
  const here = `${process.platform}-${process.arch}`;
  if (!['linux', 'darwin'].includes(process.platform) || !['x64', 'arm64'].includes(process.arch)) {
    fail(`the addon is for Linux and macOS on x64 and arm64, not for ${here}.`);
  }
  const lacking = missing();
  if (lacking) {
    fail(`there is no prebuilt addon that loads on ${here}, and to compile it this machine lacks ${lacking}.`);
  }
  const env = { JOBS: String(availableParallelism()), ...process.env };
  // Headers that came with this Node binary save a download; an explicit setting wins.
  const prefix = dirname(dirname(process.execPath));
  if (!env.npm_config_nodedir && existsSync(join(prefix, 'include', 'node', 'node_api.h'))) {
    env.npm_config_nodedir = prefix;
  }
  const bundled = env.npm_config_node_gyp; // npm names its own node-gyp here while it runs scripts
  const [command, args] = bundled ? [process.execPath, [bundled]] : ['node-gyp', []];
  // configure + build, not rebuild: a second run compiles what changed.
  const result = spawnSync(command, [...args, 'configure', 'build'], { cwd: root, env, stdio: 'inherit' });
  if (result.error) fail(`${command} could not be started (${result.error.message}); run this through npm.`);
  if (result.status !== 0)
    fail('the addon could not be compiled, see above; it needs a C++17 compiler, make and Python 3.');
}

const forced =
  process.argv.includes('--build') ||
  process.env.npm_config_build_from_source === 'true' ||
  existsSync(join(root, '.git'));
if (forced || !prebuiltLoads()) build();
