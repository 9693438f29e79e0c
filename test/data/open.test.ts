import { join } from 'node:path';
import t from 'tap';
import { openDataset } from '../../lib/data/open.js';
import { writeZip } from '../../lib/io/zip.js';
import { png } from './images.js';

t.test('each kind of data set is recognised', async (t) => {
  t.equal((await openDataset('mnist', { split: 'test' })).length, 10_000);
  t.same((await openDataset('mnist', { split: 'test', size: 28 })).imageShape, [28, 28, 1]);

  const idx = (header: number[], data: number) => Buffer.concat([Buffer.from(header), Buffer.alloc(data)]);
  const image = await png([8, 8, 8]);
  const folder = t.testdir({
    idx: {
      't10k-images-idx3-ubyte': idx([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 28, 0, 0, 0, 28], 784),
      't10k-labels-idx1-ubyte': idx([0, 0, 8, 1, 0, 0, 0, 1], 1),
    },
    cifar: { 'data_batch_1.bin': Buffer.alloc(3073) },
    images: { cats: { 'a.png': image }, dogs: { 'b.png': image } },
    empty: {},
    'model.bin': 'x',
  });
  t.equal((await openDataset(join(folder, 'idx'), { split: 'test' })).length, 1);
  t.same((await openDataset(join(folder, 'cifar'))).imageShape, [32, 32, 3]);
  t.same((await openDataset(join(folder, 'images'), { size: 16 })).classNames, ['cats', 'dogs']);
  const zip = join(folder, 'images.ZIP');
  await writeZip(zip, [{ name: 'a.png', size: image.length, chunks: [image] }], false);
  const archive = await openDataset(zip);
  t.equal(archive.length, 1);
  archive.close?.();
});

t.test('what is none is said, with what was expected', async (t) => {
  const folder = t.testdir({
    empty: {},
    text: { 'a.txt': '' },
    cifar: { 'data_batch_1.bin': Buffer.alloc(3073) },
    'model.bin': 'x',
    images: { 'a.png': await png([1, 1, 1]) },
  });
  const cases: [string, object, string, RegExp][] = [
    ['minst', {}, 'DataError', /There is no data set "minst": it is neither "mnist" nor a file or folder/],
    [join(folder, 'empty'), {}, 'DataError', /is empty; expected images, MNIST/],
    [join(folder, 'text'), {}, 'DataError', /holds no images/],
    [join(folder, 'model.bin'), {}, 'DataError', /is a file, but not a \.zip/],
    [join(folder, 'model.bin', 'x'), {}, 'FileError', /is not a folder/],
    [join(folder, 'cifar'), { size: 64 }, 'OptionError', /CIFAR-10 images have size 32, got 64/],
    [join(folder, 'images'), { split: 'test' }, 'OptionError', /has no test split/],
    ['mnist', { size: 64 }, 'OptionError', /size is 64/],
  ];
  for (const [spec, options, name, message] of cases)
    await t.rejects(openDataset(spec, options), { name, message }, spec);
});
