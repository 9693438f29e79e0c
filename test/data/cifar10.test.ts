import { copyFileSync, existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import t from 'tap';
import { openCifar10 } from '../../lib/data/cifar10.js';
import { openDataset } from '../../lib/data/open.js';
import { readPickle } from '../../lib/io/pickle.js';
import { tar } from './archives.js';

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

/** What Python 2's cPickle writes of a batch, protocol 2: byte (i, j) of the data is (first + i + 7 j) % 256. */
function python2Batch(labels: number[], first: number): Buffer {
  const data = Buffer.from(
    Uint8Array.from({ length: labels.length * 3072 }, (_, k) => first + Math.floor(k / 3072) + 7 * (k % 3072)),
  );
  const uint32 = (value: number): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    return bytes;
  };
  const text = (value: string): Buffer =>
    Buffer.concat([Buffer.from('U'), Buffer.of(value.length), Buffer.from(value)]);
  return Buffer.concat([
    Buffer.from('\x80\x02}q\x01(', 'latin1'),
    text('batch_label'),
    text('training batch'),
    text('labels'),
    Buffer.from(']q\x02(', 'latin1'),
    ...labels.map((label) => Buffer.of(0x4b, label)),
    Buffer.from('e'),
    text('data'),
    Buffer.from('cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R', 'latin1'),
    Buffer.from('(K\x01K', 'latin1'),
    Buffer.of(labels.length),
    Buffer.from('M\x00\x0c\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87R', 'latin1'),
    Buffer.from('(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T', 'latin1'),
    uint32(data.length),
    data,
    Buffer.from('tbu.'),
  ]);
}

/** Bytes of image i of such a batch: planes become channels. */
const expected = (start: number): Uint8Array =>
  Uint8Array.from({ length: 3072 }, (_, k) => start + 7 * (1024 * (k % 3) + Math.floor(k / 3)));

t.test('the archives as they are published, packed and unpacked', async (t) => {
  const folder = t.testdir({});
  const files = {
    'cifar-10-batches-py/readme.html': Buffer.alloc(1700),
    'cifar-10-batches-py/data_batch_2': python2Batch([7], 9),
    'cifar-10-batches-py/batches.meta': Buffer.from('not read'),
    'cifar-10-batches-py/test_batch': python2Batch([2], 50),
    'cifar-10-batches-py/data_batch_1': python2Batch([5, 0], 3),
  };
  for (const [name, bytes] of [
    ['cifar-10-python.tar.gz', gzipSync(tar(files))],
    ['plain.tar', tar(files)],
  ] as const) {
    const path = join(folder, name);
    writeFileSync(path, bytes);
    for (const set of [await openDataset(path), await openCifar10({ dir: path })]) {
      t.match(set, { length: 3, imageShape: [32, 32, 3], numClasses: 10 });
      const samples = await Promise.all([0, 1, 2].map((i) => set.get(i)));
      t.same(samples, [
        { image: expected(3), label: 5 },
        { image: expected(4), label: 0 },
        { image: expected(9), label: 7 },
      ]);
    }
    t.same(await (await openDataset(path, { split: 'test' })).get(0), { image: expected(50), label: 2 });
  }
  const binary = join(folder, 'cifar-10-binary.tar.gz');
  writeFileSync(binary, gzipSync(tar({ 'cifar-10-batches-bin/data_batch_1.bin': batch([6], 0) })));
  t.equal((await (await openCifar10({ dir: binary })).get(0)).label, 6);
  const unpacked = t.testdir({ 'cifar-10-batches-py': { data_batch_1: python2Batch([4], 1) } });
  t.same(await (await openDataset(unpacked)).get(0), { image: expected(1), label: 4 });
  t.same(await (await openDataset(join(unpacked, 'cifar-10-batches-py'))).get(0), { image: expected(1), label: 4 });
});

t.test('pickles of Python 3 and NumPy', async (t) => {
  for (const protocol of [2, 4]) {
    const dir = t.testdir({});
    const name = `../fixtures/io/cifar_protocol${protocol}.pickle`;
    copyFileSync(fileURLToPath(new URL(name, import.meta.url)), join(dir, 'data_batch_1'));
    const set = await openCifar10({ dir });
    t.same(
      [await set.get(0), await set.get(1)],
      [
        { image: expected(0), label: 3 },
        { image: expected(1), label: 8 },
      ],
    );
  }
});

t.test('a pickle runs nothing, and damaged archives are refused', async (t) => {
  const dir = t.testdir({});
  const marker = join(dir, 'it-ran');
  mkdirSync(join(dir, 'x'));
  const read = (bytes: Buffer): unknown => readPickle(bytes, 'x');
  for (const [what, bytes, message] of [
    ['os.system', Buffer.from(`cos\nsystem\n(S'touch ${marker}'\ntR.`), /would call "os\.system"/],
    [
      'builtins.eval, protocol 4',
      Buffer.from('\x80\x04\x8c\x08builtins\x8c\x04eval\x93.', 'latin1'),
      /"builtins\.eval"/,
    ],
    ['an instance', Buffer.from('(i__main__\nX\n.'), /opcode "i"/],
    ['persistent id', Buffer.from('Px\n.'), /opcode "P"/],
    ['a call of no function', Buffer.from('}(tR.'), /calls what is no array/],
    ['a state of a list', Buffer.from('](tb.'), /no array/],
    ['an empty stack', Buffer.from('.'), /stack is empty/],
    ['nothing', Buffer.alloc(0), /ends too early/],
    ['a length beyond the end', Buffer.from('T\xff\xff\xff\x7f', 'latin1'), /ends too early/],
    ['protocol 5', Buffer.from('\x80\x05.', 'latin1'), /newer than 4/],
    ['a function alone', Buffer.from('cnumpy\nndarray\n.'), /a value is missing/],
  ] as const) {
    t.throws(() => read(bytes), { name: 'FileFormatError', message }, what);
  }
  t.notOk(existsSync(marker));
  const good = python2Batch([1, 2], 0);
  for (let length = 0; length < good.length; length += 97)
    t.throws(() => read(good.subarray(0, length)), { name: 'FileFormatError' });
  t.same(readPickle(Buffer.from('(lp0\nI1\naL-5L\naF1.5\naI01\na\x8a\x02\x00\xffaNa.', 'latin1'), 'x'), [
    1,
    -5,
    1.5,
    true,
    -256,
    null,
  ]);

  const write = (content: Buffer): string => {
    writeFileSync(join(dir, 'x', 'data_batch_1'), content);
    return join(dir, 'x');
  };
  await t.rejects(openCifar10({ dir: write(python2Batch([1, 12], 0)) }), { message: /record 1 has the label 12/ });
  await t.rejects(openCifar10({ dir: write(Buffer.from('].')) }), { message: /it is no dictionary/ });
  await t.rejects(openCifar10({ dir: write(Buffer.from('}.')) }), { message: /"data" is no array of bytes/ });
  const path = join(dir, 'cifar.tar.gz');
  const packed = gzipSync(tar({ data_batch_1: good }));
  for (const [what, bytes, message] of [
    ['cut', packed.subarray(0, packed.length - 30), /cifar\.tar\.gz (ends|is no sound)/],
    ['no archive', Buffer.alloc(2000, 7), /header at byte 0 is damaged/],
    ['without a set', gzipSync(tar({ a: Buffer.from('b') })), /data_batch_1\.bin is missing/],
    ['with a gap', gzipSync(tar({ data_batch_2: good })), /data_batch_1 is missing/],
  ] as const) {
    writeFileSync(path, bytes);
    await t.rejects(openDataset(path), { message }, what);
  }
  await t.rejects(openDataset(join(dir, 'none.tar')), { name: 'DataError' });
});
