/** Runs out of memory under a cap of its own, tells how, and goes on. */
import { parentPort } from 'node:worker_threads';
import { setMemoryLimit } from '../../lib/device.js';
import { OutOfMemoryError } from '../../lib/errors.js';
import { type Tensor, zeros } from '../../lib/tensor.js';

setMemoryLimit(8 * 2 ** 20);
const held: Tensor[] = [];
let error: unknown;
try {
  for (;;) held.push(zeros([2 ** 18]));
} catch (thrown) {
  error = thrown;
}
const before = held.length;
for (const tensor of held.splice(0)) tensor.dispose();
const value = await zeros([2 ** 18])
  .mean()
  .item();
const { request, owners } = error as OutOfMemoryError;
const typed = error instanceof OutOfMemoryError;
parentPort?.postMessage({ typed, op: request?.op, count: owners[0].count, before, value });
