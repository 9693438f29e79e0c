import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { openImageZip } from '../../lib/data/zip.js';
import { writeZip } from '../../lib/io/zip.js';
import { png } from './images.js';

type Files = Record<string, Uint8Array | string>;

async function archive(path: string, files: Files, compress = false): Promise<string> {
  const sources = Object.entries(files).map(([name, content]) => {
    const bytes = Buffer.from(content);
    return { name, size: bytes.length, chunks: [bytes] };
  });
  await writeZip(path, sources, compress);
  return path;
}

const names = ['00000/img00000000.png', '00000/img00000001.png', '00001/img00001000.png'];
const images = async (): Promise<Files> => ({
  [names[2]]: await png([3, 3, 3]),
  [names[0]]: await png([1, 1, 1]),
  [names[1]]: await png([2, 2, 2]),
});

t.test("EDM's form: labels from dataset.json, images by name", async (t) => {
  const path = join(t.testdir(), 'x.zip');
  const labels = JSON.stringify({
    labels: [
      [names[1], 4],
      [names[0], 0],
      [names[2].replace('/', '\\'), 6],
    ],
  });
  for (const compress of [false, true]) {
    await archive(path, { ...(await images()), 'dataset.json': labels, 'notes.txt': '' }, compress);
    const set = await openImageZip(path);
    t.match(set, { length: 3, imageShape: [4, 4, 3], numClasses: 7, classNames: undefined });
    const samples = await Promise.all([2, 0, 1, 0].map((index) => set.get(index)));
    t.same(
      samples.map(({ image, label }) => [image[0], label]),
      [
        [3, 6],
        [1, 0],
        [2, 4],
        [1, 0],
      ],
      'several reads at the same time',
    );
    set.close();
    await t.rejects(set.get(0), { name: 'FileFormatError' }, 'closed');
  }
});

t.test('without labels', async (t) => {
  const path = join(t.testdir(), 'x.zip');
  const extras: Files[] = [{}, { 'dataset.json': '{"labels": null}' }, { 'dataset.json': '{}' }];
  for (const extra of extras) {
    const set = await openImageZip(await archive(path, { ...(await images()), ...extra }), { size: 2, channels: 1 });
    t.match(set, { length: 3, imageShape: [2, 2, 1], numClasses: 0 });
    t.same(await set.get(1), { image: Uint8Array.of(2, 2, 2, 2), label: 0 });
    set.close();
  }
});

t.test('malformed label lists', async (t) => {
  const path = join(t.testdir(), 'x.zip');
  const cases: [string, string, RegExp][] = [
    ['{"labels": [', 'FileFormatError', /dataset\.json is not valid JSON/],
    ['{"labels": 5}', 'FileFormatError', /needs "labels": a list/],
    ['{"labels": [[1, 2]]}', 'FileFormatError', /label entry 0 "\[1,2\]"; expected \[name, integer/],
    ['{"labels": [["a.png", 1.5]]}', 'FileFormatError', /label entry 0/],
    ['{"labels": [["a.png", -1]]}', 'FileFormatError', /label entry 0/],
    ['{"labels": [["a.png", 1e12]]}', 'FileFormatError', /label entry 0/],
    ['{"labels": [null]}', 'FileFormatError', /label entry 0 "null"/],
    [`{"labels": [["${names[0]}", 1]]}`, 'DataError', /has no label for "00000\/img00000001\.png"/],
  ];
  for (const [json, name, message] of cases) {
    await archive(path, { ...(await images()), 'dataset.json': json });
    await t.rejects(openImageZip(path), { name, message }, json);
  }
});

t.test('hostile and broken archives', async (t) => {
  const folder = t.testdir();
  const path = join(folder, 'x.zip');
  await t.rejects(openImageZip(path), { name: 'FileError', message: /there is no such file/ });
  writeFileSync(path, 'not an archive');
  await t.rejects(openImageZip(path), { name: 'FileFormatError', path, message: /is not a sound zip archive/ });
  await archive(path, { 'readme.txt': 'no images' });
  await t.rejects(openImageZip(path), { name: 'DataError', message: /holds no images/ });

  /** The archive with every occurrence of `from` replaced, local and central alike. */
  const rewrite = (from: string, to: string) => {
    const text = readFileSync(path).toString('latin1').replaceAll(from, to);
    writeFileSync(path, Buffer.from(text, 'latin1'));
  };
  for (const evil of ['../evil.png', '/etc/ev.png', 'a/../../.png', 'C:/evil.png']) {
    await archive(path, { 'folder/.png': 'x'.repeat(5), 'x/': '' }).catch(() => undefined);
    await archive(path, { 'folder/.png': 'x' });
    rewrite('folder/.png', evil.padEnd(11, 'g'));
    await t.rejects(openImageZip(path), { name: 'FileFormatError', path }, evil);
  }
  await archive(path, { 'a.png': await png([1, 1, 1]), 'b.png': await png([2, 2, 2]) });
  rewrite('b.png', 'a.png');
  await t.rejects(openImageZip(path), { name: 'FileFormatError', message: /entry "a\.png" twice/ });

  await archive(path, { 'bomb.png': new Uint8Array((64 << 20) + 1) }, true);
  await t.rejects(openImageZip(path), {
    name: 'FileFormatError',
    message: /"bomb\.png" is 67108865 bytes; at most 67108864/,
  });

  /** Sets the declared unpacked size of the only entry, in the central directory. */
  const declare = (size: number) => {
    const bytes = readFileSync(path);
    bytes.writeUInt32LE(size, bytes.indexOf('PK\u0001\u0002', 0, 'latin1') + 24);
    writeFileSync(path, bytes);
  };
  await archive(path, { 'liar.png': new Uint8Array(1 << 20) }, true);
  declare(1000);
  await t.rejects(openImageZip(path), { name: 'FileFormatError', message: /liar\.png/ }, 'more bytes than declared');
  await archive(path, { 'liar.png': new Uint8Array(1000) }, true);
  declare(60 << 20);
  await t.rejects(
    openImageZip(path),
    { name: 'FileFormatError', message: /packed bytes can hold/ },
    'fewer bytes than declared',
  );

  const whole = await png([5, 5, 5]);
  await archive(path, { 'a.png': whole, 'b.png': whole });
  const bytes = readFileSync(path);
  bytes[bytes.lastIndexOf('IDAT') + 8] ^= 1;
  writeFileSync(path, bytes);
  const set = await openImageZip(path);
  await t.rejects(set.get(1), { name: 'FileFormatError', message: /"b\.png" is corrupt: its checksum/ });
  t.equal((await set.get(0)).image[0], 5);
  set.close();
  const lenient = await openImageZip(path, { onCorrupt: 'skip' });
  t.equal((await lenient.get(1)).image[0], 5);
  t.equal(lenient.skipped, 1);
  lenient.close();
});
