/** The CUDA emulator fails where a GPU might: a missing barrier, a wait left out, threads that never come. */
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { temporaryFolder } from '../train/fixtures.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

t.test('barriers, warps, asynchronous copies, matrix fragments', async (t) => {
  const program = join(temporaryFolder(t), 'check');
  const emulator = join(root, 'native', 'emulator');
  const sources = [
    join(root, 'test', 'native', 'emulator-check.cc'),
    join(emulator, 'block.cc'),
    join(emulator, 'fibre.cc'),
  ];
  execFileSync('c++', ['-std=c++17', '-O1', '-DDIFFIT_EMULATED', `-I${emulator}`, '-o', program, ...sources]);
  const runs: Record<string, { ran: boolean; wrong: number; why: string }> = JSON.parse(
    execFileSync(program, { encoding: 'utf8' }),
  );
  const right = { ran: true, wrong: 0, why: '' };
  for (const name of ['barrier', 'wait', 'bf16 k16', 'f16 k16', 'bf16 k8', 'tf32 k8', 'transposed']) {
    t.match(runs[name], right, name);
  }
  t.match(runs['no barrier'], { ran: true, wrong: 64 }, 'half of each block reads too early');
  t.match(runs['no wait'], { ran: true, wrong: 128 });
  t.match(runs['half a barrier'], {
    ran: false,
    why: /thread \(\d+, 0, 0\) of block \(0, 0, 0\) waits at a barrier for/,
  });
  t.match(runs['two operations'], { ran: false, why: /is at syncWarp, its warp at shuffleXor/ });
  t.match(runs['too many threads'], { ran: false, why: /invalid launch: grid 1 x 1 x 1, 1025 threads/ });
});
