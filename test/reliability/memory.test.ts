/**
 * Memory that runs out: the error says what was wanted, what there is and who holds it, and everything goes on as if nothing had happened,
 * also in the middle of a training step, while sampling and in a worker. What nobody holds any more is found before there is an error.
 */
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { memory, memoryOwners, setDefaultDevice, setMemoryLimit, synchronize, trimMemory } from '../../lib/device.js';
import { OutOfMemoryError } from '../../lib/errors.js';
import { matmul } from '../../lib/ops/linear.js';
import { scope } from '../../lib/scope.js';
import { ones, type Tensor, zeros } from '../../lib/tensor.js';
import { generate } from '../../lib/train/index.js';
import { settledMemory } from '../helpers.js';
import { bits, tinyModel, tinyTrainer } from '../train/fixtures.js';
import { startWorker } from './worker.js';

const MiB = 2 ** 20;
const devices = ['cpu', 'cuda-emulated'];

/** Lets `fn` fail for want of memory; the error. */
async function runsOut(t: Test, fn: () => unknown): Promise<OutOfMemoryError> {
  try {
    await fn();
  } catch (error) {
    t.ok(error instanceof OutOfMemoryError, String(error));
    return error as OutOfMemoryError;
  }
  t.fail('there was enough memory');
  return new OutOfMemoryError('');
}

/** A cap of so many bytes above what is held now. */
function leave(bytes: number, device: string): void {
  trimMemory(device);
  setMemoryLimit(memory(device).reservedBytes + bytes, device);
}

for (const device of devices) {
  t.test(`${device}: allocating until there is none, and going on`, async (t) => {
    const before = await settledMemory(device);
    leave(40 * MiB, device);
    const { limitBytes } = memory(device);
    const held: Tensor[] = [zeros([MiB], { device })];
    const error = await runsOut(t, () => {
      for (;;) held.push(ones([512, 1024], { device }));
    });
    const { liveBytes } = memory(device);
    t.equal(held.length, 1 + 18, '4 MiB, and 2 MiB 18 times');
    t.match(error, {
      name: 'OutOfMemoryError',
      code: 'DIFFIT_OUT_OF_MEMORY',
      request: { op: 'ones', shape: [512, 1024], dtype: 'f32', bytes: 2 * MiB, device },
      memory: { liveBytes, limitBytes },
    });
    const [largest, second] = error.owners;
    t.strictSame(largest, { op: 'fill', shape: [512, 1024], count: 18, bytes: 36 * MiB, dtype: 'f32' });
    t.strictSame(second, { op: 'fill', shape: [MiB], count: 1, bytes: 4 * MiB, dtype: 'f32' });
    t.ok(error.owners.length <= 5);
    t.match(
      error.message,
      /^ones \[512, 1024\] f32: There is no memory for 2 MiB more on [^:]+(:0)?: .* the limit is /,
    );
    t.match(
      error.message,
      / Most is held by 18 x \[512, 1024\] f32 of fill \(36\.0 MiB\), 1 x \[1048576\] f32 of fill/,
    );
    const product = await runsOut(t, () => matmul(held[1], held[2], { transB: true }));
    t.match(product.request, { op: 'matmul', shape: [512, 512], bytes: MiB });

    for (const tensor of held.splice(2)) tensor.dispose();
    t.equal(await scope(() => matmul(held[1], held[1], { transB: true }).mean().item()), 1024, 'it goes on');
    for (const tensor of held) tensor.dispose();
    setMemoryLimit(0, device);
    t.equal((await settledMemory(device)).liveBuffers, before.liveBuffers);
  });

  t.test(`${device}: in the middle of a training step, which is then taken as if nothing had been`, async (t) => {
    setDefaultDevice(device);
    t.teardown(() => setDefaultDevice('cpu'));
    const train = async (caps: readonly number[]): Promise<unknown> => {
      const losses: number[] = [];
      const trainer = tinyTrainer();
      const onStep = ({ loss }: { loss: number }): void => void losses.push(loss);
      await trainer.run(1, { onStep });
      for (const bytes of caps) {
        leave(bytes, device);
        const { liveBuffers } = await settledMemory(device);
        await runsOut(t, () => trainer.run(2, { onStep }));
        setMemoryLimit(0, device);
        const left = (await settledMemory(device)).liveBuffers - liveBuffers;
        t.ok(left <= 0, `${left} buffers are left of the step`);
      }
      await trainer.run(3, { onStep });
      const result = { losses, weights: await bits(trainer.model), average: await bits(trainer.average) };
      trainer.dispose();
      trainer.model.dispose();
      trainer.average.dispose();
      return result;
    };
    const undisturbed = await train([]);
    for (const bytes of device === 'cpu' ? [0, 50_000, 150_000] : [150_000])
      t.strictSame(await train([bytes]), undisturbed, `${bytes} bytes`);
  });

  t.test(`${device}: while sampling`, async (t) => {
    setDefaultDevice(device);
    t.teardown(() => setDefaultDevice('cpu'));
    const model = tinyModel().eval();
    const sample = async (): Promise<Uint8Array> => {
      for await (const pixels of generate(model, { count: 2, seed: 1, sampler: { steps: 2 } })) return pixels;
      throw new Error('no images');
    };
    const expected = await sample();
    const { liveBuffers } = await settledMemory(device);
    for (const bytes of [2048, 20_000]) {
      leave(bytes, device);
      await runsOut(t, sample);
      setMemoryLimit(0, device);
      t.equal((await settledMemory(device)).liveBuffers, liveBuffers);
    }
    t.strictSame(await sample(), expected);
    model.dispose();
  });
}

t.test('in a worker, which goes on, as does everyone else', async (t) => {
  const worker = startWorker(new URL('./memory-worker.ts', import.meta.url), {});
  const exit = once(worker, 'exit');
  const [answer] = await once(worker, 'message');
  t.same(answer, { typed: true, op: 'zeros', count: 8, before: 8, value: 0 });
  t.same(await exit, [0]);
  t.equal(memory().limitBytes, 0, 'the cap is the worker’s own');
});

t.test('memoryOwners: what holds the memory, by what made it', async (t) => {
  await synchronize();
  const before = memoryOwners('cpu', 1000);
  const a = zeros([3, 5]);
  const b = zeros([3, 5]);
  const sum = a.add(b);
  const added = memoryOwners('cpu', 1000).filter(
    ({ shape, op, count }) => !before.some((o) => o.op === op && o.count === count && `${o.shape}` === `${shape}`),
  );
  t.strictSame(added, [
    { op: 'fill', shape: [3, 5], count: 2, bytes: 120, dtype: 'f32' },
    { op: 'binary', shape: [3, 5], count: 1, bytes: 60, dtype: 'f32' },
  ]);
  t.equal(memoryOwners('cpu', 1).length, 1);
  for (const most of [-1, 1.5, Number.NaN, 'all' as never]) t.throws(() => memoryOwners('cpu', most), /got/);
  for (const tensor of [a, b, sum]) tensor.dispose();
});

/** 10,000 tensors of a quarter to three quarters of a MiB, 5 GB in all, under a cap of 256 MiB; nothing is disposed, or every second one, in a loop that does or does not yield. */
const cycles = `
  import { memory, setMemoryLimit, zeros } from ${JSON.stringify(new URL('../../lib/index.ts', import.meta.url).href)};
  const [way] = process.argv.slice(1);
  setMemoryLimit(256 * 2 ** 20);
  let most = 0;
  for (let i = 0; i < 10_000; i++) {
    const x = zeros([2 ** 16 * (1 + i % 3)]);
    if (way === 'mixed' && i % 2) x.dispose();
    if (way === 'await') await x.slice(0, 0, 1).item();
    if (way === 'turns') await new Promise(setImmediate);
    most = Math.max(most, memory().reservedBytes);
  }
  console.log(most <= 256 * 2 ** 20);
`;
for (const flags of [[], ['--expose-gc']]) {
  t.test(`10,000 tensors that nobody disposes of fit under a cap ${flags.join('')}`, async (t) => {
    for (const way of flags.length > 0 ? ['never', 'turns'] : ['never', 'mixed', 'await', 'turns']) {
      const argv = [...flags, '--import=tsx', '--input-type=module', '-e', cycles, way];
      const { status, stdout, stderr } = spawnSync(process.execPath, argv, {
        cwd: fileURLToPath(new URL('../..', import.meta.url)),
        encoding: 'utf8',
        timeout: 120_000,
      });
      t.match({ status, stdout, stderr }, { status: 0, stdout: 'true\n', stderr: '' }, way);
    }
  });
}
