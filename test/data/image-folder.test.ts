import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { openImageFolder } from '../../lib/data/image-folder.js';
import { png } from './images.js';

t.test('labels come from the first level of folders, in the order of their names', async (t) => {
  const folder = t.testdir({
    n02: { 'b.png': await png([20, 0, 0]), 'a.png': await png([21, 0, 0]), deep: { 'c.PNG': await png([22, 0, 0]) } },
    n01: { 'x.png': await png([10, 0, 0]) },
    n10: { 'x.png': await png([30, 0, 0]), 'notes.txt': 'no image', '.hidden.png': 'nor this' },
    empty: {},
    'readme.md': 'no image',
  });
  const set = await openImageFolder(folder);
  t.match(set, { length: 5, imageShape: [4, 4, 3], numClasses: 3 });
  t.same(set.classNames, ['n01', 'n02', 'n10']);
  const samples = await Promise.all([0, 1, 2, 3, 4].map((index) => set.get(index)));
  t.same(
    samples.map(({ image, label }) => [image[0], label]),
    [
      [10, 0],
      [21, 1],
      [20, 1],
      [22, 1],
      [30, 2],
    ],
  );
  t.equal(samples[0].image.length, 48);
  await t.rejects(set.get(5), { code: 'DIFFIT_OPTION' });
});

t.test('a flat folder is unlabelled; links are followed', async (t) => {
  const folder = t.testdir({ flat: { 'a.png': await png([1, 2, 3]) }, other: { 'z.png': await png([4, 5, 6]) } });
  symlinkSync(join(folder, 'other', 'z.png'), join(folder, 'flat', 'b.png'));
  const set = await openImageFolder(join(folder, 'flat'));
  t.match(set, { length: 2, numClasses: 0, classNames: undefined });
  t.same([...(await set.get(1)).image.subarray(0, 3)], [4, 5, 6]);
  t.equal((await set.get(1)).label, 0);

  mkdirSync(join(folder, 'links'));
  symlinkSync(join(folder, 'other'), join(folder, 'links', 'class'));
  t.same((await openImageFolder(join(folder, 'links'))).classNames, ['class']);
  symlinkSync(folder, join(folder, 'links', 'loop'));
  await t.rejects(openImageFolder(join(folder, 'links')), {
    name: 'DataError',
    message: /is a link to a folder above it/,
  });
});

t.test('size and channels', async (t) => {
  const folder = t.testdir({ 'a.png': await png([100, 100, 100], 8), 'b.png': await png([7, 7, 7], 6, 3) });
  const set = await openImageFolder(folder, { size: 5, channels: 1 });
  t.same(set.imageShape, [5, 5, 1]);
  t.same((await set.get(1)).image, new Uint8Array(25).fill(7));
  const asTheyAre = await openImageFolder(folder);
  t.same(asTheyAre.imageShape, [8, 8, 3]);
  await t.rejects(asTheyAre.get(1), {
    name: 'DataError',
    message: /b\.png is 6 x 3, the first image 8 x 8; set a size to resize all/,
  });
  for (const size of [0, 1.5, -4]) await t.rejects(openImageFolder(folder, { size }), { code: 'DIFFIT_OPTION' });
});

t.test('corrupt images are named or skipped and counted', async (t) => {
  const whole = await png([9, 9, 9]);
  const folder = t.testdir({
    a: { '1.png': 'not an image', '2.png': await png([2, 2, 2]) },
    b: { '3.png': whole.subarray(0, whole.length - 20), '4.png': await png([4, 4, 4]), '5.png': '' },
  });
  await t.rejects(
    openImageFolder(folder),
    { name: 'FileFormatError', path: join(folder, 'a/1.png') },
    'the first image',
  );
  const strict = await openImageFolder(folder, { size: 4 });
  await t.rejects(strict.get(2), { name: 'FileFormatError', message: /b\/3\.png is not an intact image/ });
  t.equal((await strict.get(3)).label, 1, 'others can be read');

  const lenient = await openImageFolder(folder, { onCorrupt: 'skip' });
  t.equal(lenient.length, 5);
  for (let round = 0; round < 2; round++) {
    const samples = await Promise.all([0, 1, 2, 3, 4].map((index) => lenient.get(index)));
    t.same(
      samples.map(({ image, label }) => [image[0], label]),
      [
        [2, 0],
        [2, 0],
        [4, 1],
        [4, 1],
        [2, 0],
      ],
    );
    t.equal(lenient.skipped, 3);
  }
  const all = t.testdir({ 'a.png': 'x', 'b.png': 'y' });
  await t.rejects(openImageFolder(all, { onCorrupt: 'skip' }), {
    name: 'DataError',
    message: /All 2 images are corrupt/,
  });
  await t.rejects(openImageFolder(all, { onCorrupt: 'ignore' as 'skip' }), { code: 'DIFFIT_OPTION' });
});

t.test('folders that are no data set', async (t) => {
  const image = await png([1, 1, 1]);
  await t.rejects(openImageFolder(t.testdir({ 'a.txt': '' })), { name: 'DataError', message: /holds no images/ });
  const mixed = t.testdir({ 'top.png': image, cats: { 'cat.png': image } });
  await t.rejects(openImageFolder(mixed), {
    name: 'DataError',
    message: /top \(top\.png\).*folders \(cats\/cat\.png\)/,
  });
  await t.rejects(openImageFolder(join(mixed, 'none')), { name: 'FileError', message: /there is no such file/ });
  writeFileSync(join(mixed, 'file'), '');
  await t.rejects(openImageFolder(join(mixed, 'file')), { name: 'FileError' });
});
