/** What scripts in processes and workers of their own begin with, for tests of how those end. */
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** Beginning of a script: `native`, a device, a 600 x 600 tensor, and `work(n)` that enqueues n products of it. */
export const prelude = `
  const native = require('node-gyp-build')(${JSON.stringify(root)});
  const cpu = native.openDevice('cpu', '', 2);
  const x = native.alloc(cpu, 0, 2, 600, 600);
  native.ops.fill(x, 0.001);
  const work = (n) => {
    for (let i = 0; i < n; i++) native.ops.gemm(x, x, 0, 0, 0, x, 0, 1, 600, 600, 600, 0, 0, -1, -1, 0);
  };
`;
