import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { openCifar10 } from '../../lib/data/cifar10.js';

/** Records whose pixel p of plane c in record i is (i + 3 c + p) % 256. */
function batch(labels: number[], first: number): Buffer {
  return Buffer.concat(
    labels.map((label, i) =>
      Buffer.concat([
        Buffer.of(label),
        ...[0, 1, 2].map((c) => Buffer.from(Uint8Array.from({ length: 1024 }, (_, p) => first + i + 3 * c + p))),
      ]),
    ),
  );
}

t.test('planes become channels, and batches follow each other', async (t) => {
  const folder = t.testdir({
    'data_batch_1.bin': batch([6, 9], 0),
    'data_batch_2.bin': batch([0], 2),
    'test_batch.bin': batch([3], 100),
    'batches.meta.txt': 'airplane\n',
  });
  const train = await openCifar10({ dir: folder });
  t.match(train, { length: 3, imageShape: [32, 32, 3], numClasses: 10 });
  t.same([train.classNames?.[0], train.classNames?.[9]], ['airplane', 'truck']);
  for (const [index, label] of [6, 9, 0].entries()) {
    const sample = await train.get(index);
    t.equal(sample.label, label);
    t.same(
      sample.image,
      Uint8Array.from({ length: 3072 }, (_, i) => index + 3 * (i % 3) + Math.floor(i / 3)),
    );
  }
  t.equal((await (await openCifar10({ dir: folder, split: 'test' })).get(0)).label, 3);
  const outer = t.testdir({ 'cifar-10-batches-bin': { 'data_batch_1.bin': batch([1], 0) } });
  t.equal((await openCifar10({ dir: outer })).length, 1);
});

t.test('missing and corrupt files', async (t) => {
  const folder = t.testdir({ 'data_batch_1.bin': batch([1], 0), 'data_batch_3.bin': batch([1], 0) });
  await t.rejects(openCifar10({ dir: folder }), { name: 'DataError', message: /data_batch_2\.bin is missing/ });
  await t.rejects(openCifar10({ dir: folder, split: 'test' }), {
    name: 'DataError',
    message: /test_batch\.bin is missing/,
  });
  await t.rejects(openCifar10({ dir: t.testdir({}) }), { name: 'DataError', message: /data_batch_1\.bin is missing/ });
  await t.rejects(openCifar10({ dir: join(folder, 'none') }), { name: 'FileError' });
  await t.rejects(openCifar10({ dir: folder, split: 'val' as 'test' }), { code: 'DIFFIT_OPTION' });
  const path = join(t.testdir({}), 'data_batch_1.bin');
  for (const [what, bytes, message] of [
    ['empty', Buffer.alloc(0), /is 0 bytes; expected a multiple of 3073/],
    ['cut', batch([1, 2], 0).subarray(0, 5000), /is 5000 bytes/],
    ['a label of 10', batch([1, 10], 0), /record 1 has the label 10; expected 0 \.\. 9/],
  ] as const) {
    writeFileSync(path, bytes);
    await t.rejects(openCifar10({ dir: join(path, '..') }), { name: 'FileFormatError', path, message }, what);
  }
});
