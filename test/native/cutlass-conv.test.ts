/** What CUTLASS is asked for is the convolution that is meant: its own arithmetic of shapes, run on the host. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { temporaryFolder } from '../train/fixtures.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const here = process.env.CUTLASS_DIR || existsSync(join(root, 'build', 'cutlass'));
const skip =
  (spawnSync('nvcc', ['--version']).status !== 0 && 'there is no nvcc') || (!here && "CUTLASS's headers are not here");

t.test('shapes, strides and padding in terms of CUTLASS', { skip, timeout: 300_000 }, async (t) => {
  const program = join(temporaryFolder(t), 'check');
  const headers = execFileSync(join(root, 'scripts', 'fetch-cutlass.sh'), { encoding: 'utf8' })
    .trim()
    .split(' ');
  const includes = headers.flatMap((directory) => ['-isystem', directory]);
  const options = [
    '-std=c++17',
    '-O1',
    '-arch=sm_80',
    '--extended-lambda',
    '--expt-relaxed-constexpr',
    '-DDIFFIT_CUTLASS',
  ];
  const source = join(root, 'test', 'native', 'cutlass-conv-check.cu');
  execFileSync('nvcc', [...options, ...includes, `-I${join(root, 'native', 'cuda')}`, '-o', program, source]);
  const outcomes: Record<string, string[]> = JSON.parse(execFileSync(program, { encoding: 'utf8' }));
  const all = ['right', 'right', 'right']; // forward, gradient of the image, gradient of the weights
  const strided = ['right', 'refused', 'right'];
  const none = ['refused', 'refused', 'refused'];
  t.strictSame(outcomes, {
    '3x3': all,
    '3x3, no padding': all,
    '3x3, stride 2, padded above and left': strided,
    '3x3, stride 2, padded below and right': strided,
    '3x3, stride 2, odd sides': strided,
    '1x1': all,
    '1x1, stride 2: the last pixels are not seen': strided,
    '2x5, other padding on each side': all,
    '5x5, padding of a whole window': all,
    '2x2, stride 2': strided,
    'cut off': none,
    'padding below zero': none,
    'stride 9': none,
  });
});
