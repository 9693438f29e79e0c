/**
 * Conversions: what is written, against what the crops give; going on after a stop, a kill, a torn tail and a full disk; broken pictures; the
 * layouts of the sources; wrong inputs.
 */
import { spawn, spawnSync } from 'node:child_process';
import { appendFileSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import sharp from 'sharp';
import t, { type Test } from 'tap';
import { type ConvertOptions, convertDataset } from '../../lib/data/convert.js';
import { squareImage } from '../../lib/data/crop.js';
import { imagenetClasses } from '../../lib/data/imagenet.js';
import { openDataset } from '../../lib/data/open.js';
import { decodeImage } from '../../lib/io/image.js';
import { readNpz } from '../../lib/io/npz.js';
import { ZipArchive } from '../../lib/io/zip.js';
import { whyNoMounts } from '../reliability/mounts.js';
import { temporaryFolder } from '../train/fixtures.js';
import { tar } from './archives.js';
import { png } from './images.js';

const root = fileURLToPath(new URL('../..', import.meta.url));

/** A picture without repetition, as a PNG or a JPEG. */
function picture(seed: number, width: number, height: number, format: 'png' | 'jpeg' = 'png'): Promise<Buffer> {
  const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => (i * (seed + 3) + (i * i) / 97) % 256);
  return sharp(data, { raw: { width, height, channels: 3 } })
    [format]()
    .toBuffer();
}

/** Pictures of several sizes in two classes. */
async function pictures(t: Test, count = 9): Promise<string> {
  const dir = temporaryFolder(t);
  for (const name of ['cat', 'dog']) mkdirSync(join(dir, name));
  for (let i = 0; i < count; i++) {
    const [width, height] = [20 + 7 * (i % 3), 18 + 5 * (i % 4)];
    const bytes = await picture(i, width, height, i % 2 === 0 ? 'png' : 'jpeg');
    writeFileSync(join(dir, i < 3 ? 'cat' : 'dog', `${i}.${i % 2 === 0 ? 'png' : 'jpg'}`), bytes);
  }
  return dir;
}

const fresh = (t: Test, name = 'out.zip'): string => join(temporaryFolder(t), name);

t.test('a folder to a zip as EDM’s dataset_tool writes it: pixels, labels, counts, statistics', async (t) => {
  const source = await pictures(t);
  for (const [crop, resampling] of [
    ['center', 'lanczos'],
    ['scale', 'box'],
    ['adm', 'lanczos'],
  ] as const) {
    const out = fresh(t);
    const seen: number[] = [];
    const report = await convertDataset({
      ...{ source, out, size: 8, crop, resampling, threads: 2 },
      onProgress: ({ done, total }) => void seen.push(done, total),
    });
    t.match(report, { finished: true, images: 9, total: 9, imageShape: [8, 8, 3], skipped: [] });
    t.same(
      seen.filter((_, i) => i % 2 === 0),
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    );
    t.same(report.classes, [
      { label: 0, name: 'cat', count: 3 },
      { label: 1, name: 'dog', count: 6 },
    ]);
    const set = await openDataset(out);
    t.match(set, { length: 9, imageShape: [8, 8, 3], numClasses: 2, classNames: ['cat', 'dog'] });
    const pixels: number[][] = [[], [], []];
    for (let i = 0; i < 9; i++) {
      const path = join(source, i < 3 ? 'cat' : 'dog', `${i}.${i % 2 === 0 ? 'png' : 'jpg'}`);
      const decoded = await decodeImage(readFileSync(path), path, { asStored: true });
      const expected = squareImage(decoded, 8, crop, resampling).data;
      t.same(await set.get(i), { image: expected, label: i < 3 ? 0 : 1 }, `${crop} ${i}`);
      for (const [k, value] of expected.entries()) pixels[k % 3].push(value);
    }
    set.close();
    for (const [c, values] of pixels.entries()) {
      const mean = values.reduce((sum, x) => sum + x) / values.length;
      const variance = values.reduce((sum, x) => sum + (x - mean) ** 2, 0) / values.length;
      t.ok(Math.abs(report.mean[c] - mean) < 1e-9 && Math.abs(report.std[c] - Math.sqrt(variance)) < 1e-9);
    }
    const archive = await ZipArchive.open(out);
    t.same(archive.names.slice(0, 2), ['00000/img00000000.png', '00000/img00000001.png']);
    const list = JSON.parse(Buffer.from(await archive.read('dataset.json', 1e6)).toString());
    t.same(list.labels.slice(2, 4), [
      ['00000/img00000002.png', 0],
      ['00000/img00000003.png', 1],
    ]);
    archive.close();
    t.notOk(existsSync(`${out}.partial`) || existsSync(`${out}.progress.json`));
  }
});

t.test(
  'an .npz in guided-diffusion’s layout, PNG files that are compressed, the same bits for any number of threads',
  async (t) => {
    const source = await pictures(t);
    const npz = fresh(t, 'out.npz');
    await convertDataset({ source, out: npz, size: 8 });
    const { arr_0: images, arr_1: labels } = await readNpz(npz);
    t.match(images, { dtype: 'u8', shape: [9, 8, 8, 3] });
    t.same([...new BigInt64Array(labels.bytes.slice().buffer)], [0, 0, 0, 1, 1, 1, 1, 1, 1].map(BigInt));
    t.notOk(existsSync(`${npz}.partial`));
    const files: Buffer[] = [];
    for (const threads of [1, 2, 3]) {
      const out = fresh(t);
      await convertDataset({ source, out, size: 8, threads });
      files.push(readFileSync(out));
      const set = await openDataset(out);
      for (let i = 0; i < 9; i++) t.same((await set.get(i)).image, images.bytes.subarray(192 * i, 192 * (i + 1)));
      set.close();
    }
    t.ok(files.every((file) => file.equals(files[0])));
    const small = fresh(t);
    await convertDataset({ source, out: small, size: 8, compression: 9, labels: false });
    const set = await openDataset(small);
    t.match(set, { numClasses: 0, length: 9 });
    t.same((await set.get(4)).image, images.bytes.subarray(192 * 4, 192 * 5));
    set.close();
  },
);

t.test('stopped by a signal, with a torn tail, it goes on to the same bytes', async (t) => {
  const source = await pictures(t, 30);
  for (const name of ['out.zip', 'out.npz']) {
    const [whole, out] = [fresh(t, name), fresh(t, name)];
    await convertDataset({ source, out: whole, size: 8 });
    let calls = 0;
    for (;;) {
      const stop = new AbortController();
      const from = calls;
      const onProgress = ({ done }: { done: number }): void => {
        calls = done;
        if (done >= from + 7) stop.abort();
      };
      const report = await convertDataset({ source, out, size: 8, signal: stop.signal, onProgress });
      if (report.finished) break;
      t.ok(report.images >= from + 7 && report.images < 30, `${report.images} images`);
      t.notOk(existsSync(out));
      appendFileSync(`${out}.partial`, Buffer.alloc(777, 1)); // a write that did not count
    }
    t.ok(readFileSync(out).equals(readFileSync(whole)), name);
    t.notOk(existsSync(`${out}.partial`) || existsSync(`${out}.progress.json`));
  }
  t.match(await convertDataset({ source, out: fresh(t), size: 8, signal: AbortSignal.abort() }), {
    finished: false,
    images: 0,
  });
});

t.test('killed at any moment, it goes on to the same bytes', async (t) => {
  const source = await pictures(t, 400);
  const [whole, out] = [fresh(t), fresh(t)];
  const options: ConvertOptions = { source, out, size: 256, crop: 'adm', compression: 9 };
  const argv = ['data', 'convert', source, '--size', '256', '--crop', 'adm', '--compression', '9', '--threads', '1'];
  await convertDataset({ ...options, out: whole });
  const start = () =>
    spawn(process.execPath, ['--import=tsx', join(root, 'lib/cli/main.ts'), ...argv, '--out', out], { cwd: root });
  // At its very start, then once it has recorded some images.
  const recorded = (): number => {
    try {
      return JSON.parse(readFileSync(`${out}.progress.json`, 'utf8')).state.images;
    } catch {
      return 0;
    }
  };
  for (const reached of [() => existsSync(`${out}.partial`), () => recorded() > 0]) {
    const child = start();
    const ended = new Promise((resolve) => child.on('exit', resolve));
    while (child.exitCode === null && !reached()) await sleep(1);
    child.kill('SIGKILL');
    await ended;
  }
  const before = recorded();
  t.ok(before > 0 && before < 400, `killed after ${before} recorded images`);
  const seen: number[] = [];
  await convertDataset({ ...options, onProgress: ({ done }) => void seen.push(done) });
  t.equal(seen[0], before, 'goes on there');
  t.ok(readFileSync(out).equals(readFileSync(whole)));
});

t.test('broken pictures are named, and left out where that is asked for', async (t) => {
  const source = await pictures(t);
  const broken = join(source, 'dog', '4.png');
  writeFileSync(broken, readFileSync(broken).subarray(0, 200));
  writeFileSync(join(source, 'cat', '0.png'), 'no picture');
  const out = fresh(t);
  const options = { source, out, size: 8 };
  await t.rejects(convertDataset(options), { name: 'FileFormatError', message: /0\.png is not an intact image/ });
  const report = await convertDataset({ ...options, onCorrupt: 'skip' });
  t.match(report, { finished: true, images: 7, total: 9 });
  t.match(
    report.skipped.map(({ index, name, reason }) => [index, name.endsWith('.png'), reason]),
    [
      [0, true, /0\.png is not an intact image/],
      [4, true, /4\.png is not an intact image/],
    ],
  );
  t.same(
    report.classes.map(({ count }) => count),
    [2, 5],
  );
  const set = await openDataset(out);
  const labels = await Promise.all(Array.from({ length: 7 }, (_, i) => set.get(i).then(({ label }) => label)));
  t.same(labels, [0, 0, 1, 1, 1, 1, 1]);
  set.close();
  const all = t.testdir({ 'a.png': 'x', 'b.png': 'y' });
  for (const size of [8, undefined])
    await t.rejects(convertDataset({ source: all, out: fresh(t), size, onCorrupt: 'skip' }), {
      name: 'DataError',
      message: /All 2 pictures are corrupt/,
    });
});

t.test('CIFAR-10’s archive, MNIST, a zip, FFHQ', async (t) => {
  const dir = temporaryFolder(t);
  const record = Buffer.concat([Buffer.of(7), Buffer.from(Uint8Array.from({ length: 3072 }, (_, i) => i % 251))]);
  const cifar = join(dir, 'cifar-10-binary.tar.gz');
  writeFileSync(cifar, gzipSync(tar({ 'cifar-10-batches-bin/data_batch_1.bin': record })));
  const out = fresh(t);
  t.match(await convertDataset({ source: cifar, out }), { images: 1, imageShape: [32, 32, 3], total: 1 });
  const [before, after] = [await openDataset(cifar), await openDataset(out)];
  t.same(await after.get(0), await before.get(0));
  t.same([after.numClasses, after.classNames], [10, before.classNames]);
  const again = fresh(t);
  await convertDataset({ source: out, out: again });
  const set = await openDataset(again);
  t.same([set.numClasses, set.classNames], [10, before.classNames]);
  t.same(await set.get(0), await before.get(0), 'a zip of a zip');
  for (const opened of [set, after]) opened.close();

  const ffhq = t.testdir({
    '00000': { '00000.png': await png([9, 8, 7], 128) },
    '01000': { '01000.png': await png([1, 2, 3], 128) },
  });
  const faces = fresh(t);
  t.match(await convertDataset({ source: ffhq, out: faces, kind: 'ffhq' }), {
    images: 2,
    imageShape: [64, 64, 3],
    classes: [],
  });
  const opened = await openDataset(faces);
  t.match(opened, { numClasses: 0, imageShape: [64, 64, 3] });
  t.same((await opened.get(1)).image.subarray(0, 3), [1, 2, 3]);
  opened.close();

  const folder = t.testdir({
    '00000': { 'img00000000.png': await png([1, 1, 1]), 'img00000001.png': await png([2, 2, 2]) },
    'dataset.json': JSON.stringify({
      labels: [
        ['00000/img00000001.png', 0],
        ['00000/img00000000.png', 2],
      ],
    }),
  });
  const listed = fresh(t);
  t.match(
    (await convertDataset({ source: folder, out: listed })).classes.map(({ count }) => count),
    [1, 0, 1],
  );
});

t.test('ImageNet’s layouts and its devkit', async (t) => {
  const dir = temporaryFolder(t);
  const ids = Array.from({ length: 1000 }, (_, k) => `n${String(1000000 + ((7 * k) % 1000) * 37).padStart(8, '0')}`);
  const order = [...ids].sort();
  const cls = join(dir, 'ILSVRC', 'Data', 'CLS-LOC');
  mkdirSync(join(cls, 'val'), { recursive: true });
  for (const id of ids) mkdirSync(join(cls, 'train', id), { recursive: true });
  const pixel = await png([1, 2, 3], 12, 9);
  for (const id of ids) writeFileSync(join(cls, 'train', id, `${id}_1.JPEG`), pixel);
  const name = (i: number): string => `ILSVRC2012_val_${String(i).padStart(8, '0')}`;
  for (const i of [1, 2, 3]) writeFileSync(join(cls, 'val', `${name(i)}.JPEG`), pixel);
  const options: ConvertOptions = { source: dir, out: fresh(t), size: 4 };
  const train = await convertDataset(options);
  t.match(train, { images: 1000, imageShape: [4, 4, 3] });
  t.same(
    train.classes.map(({ name }) => name),
    imagenetClasses,
  );
  t.ok(train.classes.every(({ count }) => count === 1));

  const labelsOf = async (more: Partial<ConvertOptions>): Promise<number[]> => {
    const out = fresh(t);
    await convertDataset({ ...options, out, split: 'test', ...more });
    const set = await openDataset(out);
    const labels = await Promise.all([0, 1, 2].map((i) => set.get(i).then(({ label }) => label)));
    set.close();
    return labels;
  };
  await t.rejects(labelsOf({}), { name: 'DataError', message: /LOC_val_solution\.csv nor a devkit/ });
  const devkit = join(dir, 'ILSVRC2012_devkit_t12');
  mkdirSync(join(devkit, 'data'), { recursive: true });
  cpSync(fileURLToPath(new URL('../fixtures/io/meta.mat', import.meta.url)), join(devkit, 'data', 'meta.mat'));
  const truth = join(devkit, 'data', 'ILSVRC2012_validation_ground_truth.txt');
  writeFileSync(truth, '490\n361\n1000\n');
  const expected = [489, 360, 999].map((k) => order.indexOf(ids[k]));
  t.same(await labelsOf({ devkit }), expected);
  const rows = ids.map(
    (id, k) => `${k === 489 ? name(1) : k === 360 ? name(2) : k === 999 ? name(3) : `x${k}`},${id} 1 2 3 4`,
  );
  writeFileSync(join(dir, 'LOC_val_solution.csv'), `ImageId,PredictionString\n${rows.join('\n')}\n`);
  t.same(await labelsOf({}), expected);
  writeFileSync(truth, '490\n1001\n3\n');
  await t.rejects(labelsOf({ devkit }), { name: 'FileFormatError', message: /"1001" in line 2/ });
  writeFileSync(truth, '490\n1\n');
  await t.rejects(labelsOf({ devkit }), { name: 'DataError', message: /has no class for "ILSVRC2012_val_00000003"/ });
  const mat = join(devkit, 'data', 'meta.mat');
  const bytes = readFileSync(mat);
  for (const [what, damaged, message] of [
    ['cut', bytes.subarray(0, bytes.length - 500), /meta\.mat is damaged/],
    ['something else', Buffer.alloc(500), /no MATLAB file/],
    ['the header alone', bytes.subarray(0, 128), /has no list of structs "synsets"/],
  ] as const) {
    writeFileSync(mat, damaged);
    await t.rejects(labelsOf({ devkit }), { name: 'FileFormatError', message }, what);
  }
});

t.test('wrong inputs', async (t) => {
  const source = await pictures(t);
  const out = fresh(t);
  await t.rejects(convertDataset({ source, out: `${out}x` }), {
    name: 'OptionError',
    message: /ends in \.zip or \.npz/,
  });
  await t.rejects(convertDataset({ source, out, size: 0 }), { name: 'OptionError' });
  await t.rejects(convertDataset({ source, out, devkit: 'x' }), {
    name: 'OptionError',
    message: /devkit is for ImageNet/,
  });
  await t.rejects(convertDataset({ source, out, split: 'test' }), { name: 'OptionError', message: /no test split/ });
  await t.rejects(convertDataset({ source: join(source, 'none'), out }), {
    name: 'DataError',
    message: /no file or folder/,
  });
  await t.rejects(convertDataset({ source, out }), {
    name: 'DataError',
    message: /1\.jpg is 27 x 23, the first one 20 x 18; set a size/,
  });
  rmSync(`${out}.partial`);
  rmSync(`${out}.progress.json`);
  const stop = new AbortController();
  const onProgress = ({ done }: { done: number }): void => void (done > 3 && stop.abort());
  t.match(await convertDataset({ source, out, size: 8, signal: stop.signal, onProgress }), { finished: false });
  await t.rejects(convertDataset({ source, out, size: 9 }), {
    name: 'DataError',
    message: /of a conversion with another size/,
  });
  writeFileSync(join(source, 'cat', 'new.png'), await png([1, 1, 1]));
  await t.rejects(convertDataset({ source, out, size: 8 }), { name: 'DataError', message: /with another source/ });
  rmSync(join(source, 'cat', 'new.png'));
  const state = readFileSync(`${out}.progress.json`);
  writeFileSync(`${out}.progress.json`, '{"format":');
  await t.rejects(convertDataset({ source, out, size: 8 }), {
    name: 'FileFormatError',
    message: /progress\.json is damaged/,
  });
  writeFileSync(`${out}.progress.json`, state);
  const partial = readFileSync(`${out}.partial`);
  for (const [what, bytes, message] of [
    ['shorter', partial.subarray(0, 100), /partial ends after \d+ bytes/],
    ['another', Buffer.alloc(partial.length), /partial is damaged at byte 0/],
  ] as const) {
    writeFileSync(`${out}.partial`, bytes);
    await t.rejects(convertDataset({ source, out, size: 8 }), { name: 'FileFormatError', message }, what);
  }
  writeFileSync(`${out}.partial`, partial);
  t.match(await convertDataset({ source, out, size: 8 }), { finished: true, images: 9 });
  await t.rejects(convertDataset({ source, out, size: 8 }), { name: 'FileError', message: /is there already/ });
});

t.test('a disk that is full ends it with a sentence, and with room it goes on', { skip: whyNoMounts() }, async (t) => {
  const source = await pictures(t, 40);
  const [whole, disk] = [fresh(t), temporaryFolder(t)];
  await convertDataset({ source, out: whole, size: 32 });
  const command = `'${process.execPath}' --import=tsx lib/cli/main.ts data convert '${source}' --size 32 --out '${disk}/out.zip'`;
  const script = `mount -t tmpfs -o size=64k tmpfs '${disk}'; ${command}; echo "code $?" >&2
    mount -o remount,size=16m '${disk}'; ${command} && cmp '${disk}/out.zip' '${whole}' && echo the same`;
  const { stdout, stderr } = spawnSync('unshare', ['-rm', 'sh', '-c', script], { cwd: root, encoding: 'utf8' });
  t.match(stderr, /error: .*out\.zip\.\w+.* cannot be written: the disk is full\.\ncode 1/);
  t.match(stdout, /40 images of 32 x 32 x 3[\s\S]*the same/);
});
