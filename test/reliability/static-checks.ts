/** clang-tidy (.clang-tidy) and cppcheck over the native code, each file with the flags that native/sources.json compiles it with. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './instrument.js';

interface Sources {
  napi_version: number;
  binding: string[];
  cpu: string[];
  cpu_flags: string[];
  cpu_variants: Record<string, Record<string, string[]>>;
}

const sources: Sources = JSON.parse(readFileSync(join(root, 'native', 'sources.json'), 'utf8'));
const variants = Object.entries(sources.cpu_variants[process.arch] ?? {});
const variantFile = (name: string): string => `native/cpu/variants/${name}.cc`;

export interface StaticResult {
  files: number;
  /** What the tool prints of each finding. */
  findings: string[];
  seconds: number;
}

/** Runs a command per file; a nonzero exit code or a line of `findings` in its output is a finding. */
function overFiles(jobs: { file: string; command: string; argv: string[] }[]): StaticResult {
  const started = performance.now();
  const findings: string[] = [];
  for (const { file, command, argv } of jobs) {
    const { status, error, stdout, stderr } = spawnSync(command, argv, {
      cwd: root,
      encoding: 'utf8',
      maxBuffer: 2 ** 28,
    });
    if (error) throw new Error(`${command} could not be started: ${error.message}`);
    if (status !== 0) findings.push(`${file}: ${stdout}${stderr}`.trim());
  }
  return { files: jobs.length, findings, seconds: Math.round((performance.now() - started) / 1000) };
}

export function tidy(): StaticResult {
  // What gcc alone knows among the flags and the warnings is passed over.
  const common = [
    ...sources.cpu_flags,
    '-Wno-unknown-warning-option',
    '-Wno-psabi',
    `-DNAPI_VERSION=${sources.napi_version}`,
  ];
  common.push('-isystem', 'node_modules/node-api-headers/include');
  const files: [string, string[]][] = [
    ...[...sources.binding, ...sources.cpu].map((file): [string, string[]] => [file, []]),
    ...variants.map(([name, flags]): [string, string[]] => [variantFile(name), flags]),
  ];
  return overFiles(
    files.map(([file, flags]) => ({ file, command: 'clang-tidy', argv: ['--quiet', file, '--', ...common, ...flags] })),
  );
}

export function cppcheck(): StaticResult {
  const common = [
    '--quiet',
    '--std=c++17',
    '--language=c++',
    '--enable=warning,performance,portability',
    '--error-exitcode=1',
  ];
  common.push(
    '--inline-suppr',
    '--suppressions-list=test/reliability/suppressions/cppcheck.txt',
    '-D__x86_64__',
    '-D__linux__',
  );
  const macros = (flags: string[]): string[] =>
    flags
      .filter((flag) => flag.startsWith('-mavx') || flag === '-mfma' || flag === '-mf16c')
      .map((flag) => `-D__${flag.slice(2).toUpperCase()}__`);
  return overFiles([
    ...[...sources.binding, ...sources.cpu].map((file) => ({ file, command: 'cppcheck', argv: [...common, file] })),
    ...variants.map(([name, flags]) => ({
      file: variantFile(name),
      command: 'cppcheck',
      argv: [...common, ...macros(flags), variantFile(name)],
    })),
  ]);
}
