/** How long the main thread itself has been at work: what a loop of synchronous calls costs, whatever runs beside it. */
import { openSync, readSync } from 'node:fs';

const text = Buffer.alloc(64);
/** The main thread's line of the scheduler: nanoseconds on a processor, nanoseconds of waiting for one. Linux alone has it. */
const schedule = process.platform === 'linux' ? openSync(`/proc/self/task/${process.pid}/schedstat`, 'r') : undefined;

function scheduled(): [ran: number, waited: number] {
  if (schedule === undefined) return [0, 0];
  const [ran, waited] = text.toString('latin1', 0, readSync(schedule, text, 0, text.length, 0)).split(' ');
  return [Number(ran) / 1e6, Number(waited) / 1e6];
}

/** Milliseconds on a processor so far; up to date where the thread has just slept, else as of the last tick. */
export const ranMs = (): number => scheduled()[0];

/** A clock in milliseconds that stands still while the thread is ready to run and another has its processor. */
export const ownMs = (): number => performance.now() - scheduled()[1];
