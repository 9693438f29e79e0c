/** Workers that run TypeScript: tsx leaves the threads of a process to their own devices. */
import { Worker } from 'node:worker_threads';

const api = import.meta.resolve('tsx/esm/api');

/** A worker that runs a module. */
export function startWorker(module: URL, workerData: unknown): Worker {
  const code = `import(${JSON.stringify(api)}).then(({ register }) => (register(), import(${JSON.stringify(module.href)})));`;
  return new Worker(code, { eval: true, workerData, execArgv: [] });
}
