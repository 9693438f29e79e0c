/** Processes and workers that end, in every way there is, while a device has work in its queue and promises wait for it. */
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { HostRandom } from '../../lib/random.js';
import { prelude as queue } from '../native/prelude.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** {@link queue}, with work and promises that wait for it. */
const prelude = `${queue}
  work(20000);
  native.read(x).catch(() => {});
  native.synchronize(cpu).catch(() => {});
`;
/** Starts a worker with the same work; `ready` when it has enqueued it. */
const withWorker = (ending: string): string => `
  const { Worker } = require('node:worker_threads');
  const code = ${JSON.stringify(`${prelude} require('node:worker_threads').parentPort.postMessage('ready');`)} + ${JSON.stringify(ending)};
  const worker = new Worker(code, { eval: true });
  const ready = new Promise((resolve) => worker.once('message', resolve));
  const later = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
`;

interface Way {
  /** What the process does; it is given some milliseconds that differ from run to run. */
  script: (ms: number) => string;
  /** How it ends. */
  status: number | null;
  signal?: NodeJS.Signals;
  stderr?: RegExp;
}

export const ways: Record<string, Way> = {
  exit: { script: () => `${prelude} process.exit(3);`, status: 3 },
  'exit later': { script: (ms) => `${prelude} setTimeout(() => process.exit(4), ${ms});`, status: 4 },
  // Promises that wait keep a process alive; nothing waits here.
  return: { script: () => prelude.replace(/ {2}native\.(read|synchronize).*\n/g, ''), status: 0 },
  throw: { script: () => `${prelude} throw new Error('on purpose');`, status: 1, stderr: /on purpose/ },
  'throw later': {
    script: (ms) => `${prelude} setTimeout(() => { throw new Error('on purpose'); }, ${ms});`,
    status: 1,
    stderr: /on purpose/,
  },
  reject: { script: () => `${prelude} Promise.reject(new Error('on purpose'));`, status: 1, stderr: /on purpose/ },
  SIGTERM: {
    script: (ms) => `${prelude} setTimeout(() => process.kill(process.pid, 'SIGTERM'), ${ms});`,
    status: null,
    signal: 'SIGTERM',
  },
  SIGINT: {
    script: (ms) => `${prelude} setTimeout(() => process.kill(process.pid, 'SIGINT'), ${ms});`,
    status: null,
    signal: 'SIGINT',
  },
  'exit of a worker': {
    script: (ms) =>
      `${withWorker(`setTimeout(() => process.exit(0), ${ms});`)} worker.on('exit', (code) => process.exit(code + 5));`,
    status: 5,
  },
  'throw of a worker': {
    script: (ms) =>
      `${withWorker(`setTimeout(() => { throw new Error('on purpose'); }, ${ms});`)} worker.on('error', () => process.exit(6));`,
    status: 6,
  },
  'terminate a worker': {
    script: (ms) =>
      `${withWorker('')} ready.then(() => later(${ms})).then(() => worker.terminate()).then(() => process.exit(7));`,
    status: 7,
  },
  'exit beside a worker': {
    script: (ms) => `${withWorker('')} ready.then(() => later(${ms})).then(() => process.exit(8));`,
    status: 8,
  },
};

/** Milliseconds in which each must have ended. */
const patience = 30_000;

/** Ends `count` processes, the ways in turn; returns how many. Throws an Error at the first that does not end as it should. */
export function playEndings(count: number, seed: number, say: (line: string) => void): number {
  const random = new HostRandom(seed, 1);
  const names = Object.keys(ways);
  let slowest = 0;
  for (let i = 0; i < count; i++) {
    const name = names[i % names.length];
    const { script, status, signal = null, stderr = /^$/ } = ways[name];
    const ms = random.integer(80);
    const started = performance.now();
    const child = spawnSync(process.execPath, ['-e', script(ms)], {
      cwd: root,
      env: { PATH: process.env.PATH },
      encoding: 'utf8',
      timeout: patience,
      killSignal: 'SIGKILL',
    });
    slowest = Math.max(slowest, performance.now() - started);
    if (child.status !== status || child.signal !== signal || !stderr.test(child.stderr.trim())) {
      const how = `status ${child.status}, signal ${child.signal}, ${child.stderr.trim() || 'silent'}`;
      throw new Error(`"${name}" after ${ms} ms (seed ${seed}, number ${i}) ended otherwise: ${how}`);
    }
  }
  say(
    `${count} processes ended with work in the queue, as they should, the slowest after ${(slowest / 1000).toFixed(1)} s`,
  );
  return count;
}
