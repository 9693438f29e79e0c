/**
 * bench/gpu.sh runs unattended: for real on the CPU, and with stand-ins for node, python3 and compute-sanitizer, to see that what
 * fails or hangs is reported and the rest goes on.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { temporaryFolder } from '../train/fixtures.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const script = join(root, 'bench', 'gpu.sh');

/** A folder of programs that stand in for the real ones; each is a line of shell. */
function standIns(t: Test, programs: Record<string, string>): string {
  const folder = join(temporaryFolder(t), 'bin');
  mkdirSync(folder);
  for (const [name, body] of Object.entries(programs)) {
    writeFileSync(join(folder, name), `#!/bin/bash\n${body}\n`);
    chmodSync(join(folder, name), 0o755);
  }
  return folder;
}

function runScript(folder: string, bin: string, ...argv: string[]) {
  const env = { ...process.env, PATH: `${bin}:${process.env.PATH}`, OUT: join(folder, 'ignored') };
  const { status, stdout, stderr } = spawnSync('bash', [script, ...argv, '--out', folder], { env, encoding: 'utf8' });
  const steps = existsSync(join(folder, 'steps.tsv')) ? readFileSync(join(folder, 'steps.tsv'), 'utf8') : '';
  return { status, stdout, stderr, steps };
}

const cuda = (available: boolean): string =>
  JSON.stringify({ devices: [{ name: 'cuda', available, reason: 'No driver.' }] });
/** node as the script calls it: the real one for -e, a device list for info. */
const node = (rest: string, available = true): string =>
  `[[ $1 == -e ]] && exec ${process.execPath} "$@"\n[[ $3 == info ]] && { echo '${cuda(available)}'; exit; }\n${rest}`;
const noTorch = 'exit 1';

t.test(
  'a bundle in the tree would be unpacked over this build',
  { skip: existsSync(join(root, 'out', 'gpu-bundle.tar.xz')) && 'out/gpu-bundle.tar.xz exists' },
  async (t) => {
    t.test('for real, on the CPU', async (t) => {
      const folder = temporaryFolder(t);
      const bin = standIns(t, { python3: noTorch });
      symlinkSync(process.execPath, join(bin, 'node'));
      const argv = ['bench', '--device', 'cpu', '--quick', '--groups', 'copy gemm', '--rounds', '1'];
      const { status, stdout, steps } = runScript(folder, bin, ...argv);
      t.equal(status, 0, stdout);
      for (const name of ['bench-copy-1', 'bench-gemm-1', 'compare']) t.match(steps, `${name}\tok\t`);
      t.match(stdout, /There is no PyTorch here/);
      t.match(stdout, /3 steps passed, 0 failed, 0 skipped/);
      t.match(readFileSync(join(folder, 'table.md'), 'utf8'), /\| gemm\/m32n64k48\/nt \| [\d.]+ \|/);
      const names = execFileSync('tar', ['-tzf', join(folder, 'results.tar.gz')], { encoding: 'utf8' });
      t.match(names, 'results/diffit-gemm-1.json');
    });

    t.test('no device: one line, and a record of it', async (t) => {
      const folder = temporaryFolder(t);
      const { status, stderr, steps } = runScript(
        folder,
        standIns(t, { node: node('', false), python3: noTorch }),
        'all',
      );
      t.equal(status, 1);
      t.equal(stderr, 'error: no CUDA device: No driver.\n');
      t.match(steps, 'info\tFAILED: No driver.\t0');
    });

    t.test('what fails and what hangs is reported, and the rest goes on', async (t) => {
      const folder = temporaryFolder(t);
      const bin = standIns(t, {
        node: node(
          '[[ "$*" == *"bench conv"* ]] && { echo "a kernel failed"; exit 1; }\n[[ "$*" == *"bench gemm"* && "$*" != *--list* ]] && sleep 60\nexit 0',
        ),
        python3: noTorch,
      });
      const argv = ['bench', '--seconds', '9', '--groups', 'conv gemm train model', '--rounds', '1'];
      const { status, stdout, steps } = runScript(folder, bin, ...argv);
      t.equal(status, 1);
      t.match(steps, /bench-conv-1\tFAILED: a kernel failed\t/);
      t.match(steps, /bench-gemm-1\tFAILED: over its limit of \d+ s\t/);
      t.match(steps, /bench-train-1\tskipped, no time left\t0/);
      t.match(stdout, /0 steps passed, 2 failed, 3 skipped/);
    });

    t.test('sanitizers: every run under every tool, findings named', async (t) => {
      const folder = temporaryFolder(t);
      const bin = standIns(t, {
        node: node('echo "$@"'),
        python3: noTorch,
        'compute-sanitizer': 'echo "$@"; [[ $2 == racecheck && "$*" == *"bench gemm"*bf16* ]] && exit 9; exit 0',
      });
      const { status, steps } = runScript(folder, bin, 'sanitize');
      t.equal(status, 1);
      for (const tool of ['memcheck', 'synccheck', 'initcheck'])
        t.match(steps, `sanitize-${tool}\tok: 12 runs clean\t`);
      t.match(steps, 'sanitize-racecheck\tFAILED: gemm-bf16 (exit 9)\t');
      const log = execFileSync('tar', [
        '-xzOf',
        join(folder, 'results.tar.gz'),
        'results/sanitize-memcheck-heads72-bf16.log',
      ]);
      t.match(
        log.toString(),
        /--error-exitcode 9 .*node --import=tsx lib\/cli\/main.ts bench attention --device cuda --dtype bf16 --only attention\/8x8\/b2h16d72 --save /,
      );
    });

    t.test('bad usage', async (t) => {
      const bin = standIns(t, { node: node('') });
      for (const [argv, message] of [
        [['everything'], /unknown argument everything/],
        [['bench', '--rounds', 'two'], /are numbers/],
      ] as [string[], RegExp][]) {
        const { status, stderr } = runScript(temporaryFolder(t), bin, ...argv);
        t.equal(status, 2);
        t.match(stderr, message);
      }
    });
  },
);
