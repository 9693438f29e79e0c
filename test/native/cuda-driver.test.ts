/** The CUDA library where it cannot run: no driver, an old one, one without a GPU or that fails; each is one sentence. */
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { backendLibrary } from '../../lib/native.js';
import { temporaryFolder } from '../train/fixtures.js';

const packageRoot = fileURLToPath(new URL('../..', import.meta.url));
const built = existsSync(backendLibrary('cuda'));

t.test('states of the driver', { skip: !built && 'the CUDA library was not built: there is no nvcc' }, async (t) => {
  const folder = temporaryFolder(t);
  const source = join(packageRoot, 'test', 'native', 'fake-driver.c');
  execFileSync('cc', ['-shared', '-fPIC', '-o', join(folder, 'libcuda.so.1'), source, '-ldl']);
  /** What `diffit info` says of the GPU under a fake driver. */
  const reason = (state?: { init: number; version: number; devices: number }): string => {
    const fake = state && {
      LD_LIBRARY_PATH: folder,
      FAKE_CUDA_INIT: String(state.init),
      FAKE_CUDA_VERSION: String(state.version),
      FAKE_CUDA_DEVICES: String(state.devices),
    };
    const cli = join(packageRoot, 'lib', 'cli', 'main.ts');
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--import=tsx', cli, 'info', '--json'], {
      env: { ...process.env, ...fake },
      encoding: 'utf8',
    });
    t.equal(status, 0, stderr);
    return JSON.parse(stdout).devices.find(({ name }: { name: string }) => name === 'cuda').reason;
  };
  t.match(
    reason({ init: 0, version: 12040, devices: 1 }),
    /driver is too old: it is made for CUDA 12\.4, and 13\.0 is/,
  );
  t.match(reason({ init: 100, version: 13000, devices: 0 }), /there is an NVIDIA driver, but it shows no GPU/i);
  t.match(reason({ init: 999, version: 13000, devices: 1 }), /cuda:0 could not be opened: unknown error/);
  if (!existsSync('/dev/nvidiactl')) t.equal(reason(), 'There is no NVIDIA driver on this machine.');
});
