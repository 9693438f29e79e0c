import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { crc32, inflateRawSync } from 'node:zlib';
import t from 'tap';
import { hostArray, hostValues } from '../../lib/io/array.js';
import { fromTensor, toTensor } from '../../lib/io/array-tensor.js';
import { readNpy, writeNpy } from '../../lib/io/npy.js';
import { NpzFile, openImageNpz, readNpz, writeImageNpz, writeNpz } from '../../lib/io/npz.js';
import { fixture, values } from './fixtures.js';

const pixels = Array.from({ length: 72 }, (_, i) => i % 251);
const longs = [-(2n ** 62n), -1n, 0n, 2n ** 53n + 1n];

/** The entries of a stored or deflated zip archive, found from its directory; independent of the package's reader. */
function unzip(bytes: Buffer): Record<string, Buffer> {
  const end = bytes.lastIndexOf('PK\u0005\u0006', undefined, 'latin1');
  const entries: Record<string, Buffer> = {};
  for (let i = 0, at = bytes.readUInt32LE(end + 16); i < bytes.readUInt16LE(end + 10); i++) {
    const [method, checksum, packed] = [
      bytes.readUInt16LE(at + 10),
      bytes.readUInt32LE(at + 16),
      bytes.readUInt32LE(at + 20),
    ];
    const [nameLength, extra, comment] = [28, 30, 32].map((field) => bytes.readUInt16LE(at + field));
    const local = bytes.readUInt32LE(at + 42);
    const start = local + 30 + bytes.readUInt16LE(local + 26) + bytes.readUInt16LE(local + 28);
    const raw = bytes.subarray(start, start + packed);
    const data = method === 8 ? inflateRawSync(raw) : raw;
    if (crc32(data) !== checksum) throw new Error('checksum');
    entries[bytes.toString('utf8', at + 46, at + 46 + nameLength)] = data;
    at += 46 + nameLength + extra + comment;
  }
  return entries;
}

t.test('.npy files written by NumPy', async (t) => {
  const expected: [file: string, dtype: string, shape: number[], data: (number | bigint)[]][] = [
    ['f4.npy', 'f32', [2, 3], values.floats],
    ['version2.npy', 'f32', [2, 3], values.floats],
    ['f2.npy', 'f16', [9], values.halves],
    ['f8.npy', 'f64', [5], values.doubles],
    ['i8.npy', 'i64', [2, 2], longs],
    ['i4.npy', 'i32', [3], [-(2 ** 31), 7, 2 ** 31 - 1]],
    ['u1.npy', 'u8', [2, 3, 4, 3], pixels],
    ['scalar.npy', 'f32', [], [0.5]],
    ['empty.npy', 'f32', [0, 3], []],
  ];
  for (const [file, dtype, shape, data] of expected) {
    const array = await readNpy(fixture(file));
    t.equal(array.dtype, dtype, file);
    t.same(array.shape, shape, file);
    t.same([...hostValues(array)], data, file);
  }
});

t.test('.npy files with contents that have no array here', async (t) => {
  for (const [file, message] of [
    ['fortran.npy', /is stored in Fortran order; save it with numpy\.ascontiguousarray/],
    ['big_endian.npy', /has the \.npy dtype ">f4"; expected little-endian <f8/],
    ['complex.npy', /has the \.npy dtype "<c8"/],
  ] as const) {
    await t.rejects(readNpy(fixture(file)), { name: 'FileFormatError', path: fixture(file), message }, file);
  }
});

t.test('what is written is what NumPy writes', async (t) => {
  const folder = t.testdir();
  for (const file of ['f4.npy', 'f2.npy', 'f8.npy', 'i8.npy', 'i4.npy', 'u1.npy', 'scalar.npy', 'empty.npy']) {
    const path = join(folder, file);
    await writeNpy(path, await readNpy(fixture(file)));
    t.same(readFileSync(path), readFileSync(fixture(file)), file);
  }
  await t.rejects(writeNpy(join(folder, 'x.npy'), hostArray(new Float32Array(5), [2, 3])), {
    code: 'DIFFIT_SHAPE',
    message: /\[2, 3\] of f32 is 24 bytes, got 20/,
  });
  await t.rejects(writeNpy(join(folder, 'none', 'x.npy'), hostArray(new Float32Array(1))), { code: 'DIFFIT_FILE' });
});

t.test('corrupt .npy files', async (t) => {
  const path = join(t.testdir(), 'x.npy');
  const whole = readFileSync(fixture('f4.npy'));
  for (let length = 0; length < whole.length; length++) {
    writeFileSync(path, whole.subarray(0, length));
    const outcome = await readNpy(path).catch((error) => error.name);
    if (outcome !== 'FileFormatError') t.fail(`${length} bytes gave ${outcome}`);
  }
  const header = (text: string, data = 24) => {
    const bytes = Buffer.concat([
      Buffer.from('\x93NUMPY\x01\x00\0\0', 'latin1'),
      Buffer.from(text),
      Buffer.alloc(data),
    ]);
    bytes.writeUInt16LE(text.length, 8);
    return bytes;
  };
  const dict = (shape: string, descr = "'<f4'", order = 'False') =>
    header(`{'descr': ${descr}, 'fortran_order': ${order}, 'shape': ${shape}, }\n`);
  const cases: [string, Buffer, RegExp][] = [
    ['too much data', Buffer.concat([whole, Buffer.of(1)]), /should hold 24 bytes for \[2, 3\] of f32, but holds 25/],
    ['another version', Buffer.concat([whole.subarray(0, 6), Buffer.of(3, 0), whole.subarray(8)]), /version 3\.0/],
    ['no magic', Buffer.from('this is text, not an array'), /first bytes/],
    ['huge shape', dict('(9007199254740991, 9007199254740991)'), /should hold/],
    ['shape beyond integers', dict('(99999999999999999999,)'), /not a tuple/],
    ['negative shape', dict('(-2, 3)'), /not a Python dictionary/],
    ['shape as a list', dict('[2, 3]'), /not a Python dictionary/],
    ['shape of strings', dict("('2',)"), /not a tuple/],
    ['shape as a number', dict('6'), /not a tuple/],
    ['structured dtype', dict('(2,)', "[('a', '<f4')]"), /not a Python dictionary/],
    ['object dtype', dict('(2,)', "'|O'"), /dtype "\|O"/],
    ['no dictionary', header('(1, 2)'), /not a Python dictionary/],
    ['code', header("__import__('os')"), /not a Python dictionary/],
    ['text after it', header("{'descr': '<f4', 'fortran_order': False, 'shape': (6,)} 1"), /not a Python dictionary/],
    ['a missing field', header("{'descr': '<f4', 'shape': (6,)}"), /has \.npy fields "descr", "shape"; expected/],
    ['a field twice', header("{'descr': '<f4', 'descr': '<f4', 'shape': (6,)}"), /not a Python dictionary/],
  ];
  for (const [what, bytes, message] of cases) {
    writeFileSync(path, bytes);
    await t.rejects(readNpy(path), { name: 'FileFormatError', path, message }, what);
  }
  await t.rejects(readNpy(`${path}.none`), { name: 'FileError' });
});

t.test('.npz files written by NumPy', async (t) => {
  const images = await readNpz(fixture('images.npz'));
  t.same(Object.keys(images), ['arr_0', 'arr_1']);
  t.same([...hostValues(images.arr_0)], pixels);
  t.same([...hostValues(images.arr_1)], [7n, 999n]);
  const stats = await readNpz(fixture('compressed.npz'));
  t.same([...hostValues(stats.mu)], values.doubles, 'f64 keeps all its bits');
  t.same(stats.sigma.shape, [2, 2]);

  const file = await NpzFile.open(fixture('images.npz'));
  t.same(file.names, ['arr_0', 'arr_1']);
  t.same(await file.header('arr_0'), { dtype: 'u8', shape: [2, 3, 4, 3], dataBytes: 72 });
  const rows: [number[], number[]][] = [];
  for await (const { shape, bytes } of file.rows('arr_0', 1)) rows.push([[...shape], [...bytes]]);
  t.same(rows, [
    [[1, 3, 4, 3], pixels.slice(0, 36)],
    [[1, 3, 4, 3], pixels.slice(36)],
  ]);
  for await (const _ of file.rows('arr_0', 1)) break; // leaving early frees the reader
  await t.rejects(file.read('arr_2'), { name: 'FileFormatError', message: /"arr_2\.npy" is not in the archive/ });
  await t.rejects(file.rows('arr_0', 0).next(), { code: 'DIFFIT_OPTION' });
  file.close();
});

t.test('the image layout, written whole and in pieces', async (t) => {
  const folder = t.testdir();
  const path = join(folder, 'samples.npz');
  const labels = BigInt64Array.of(7n, 999n);
  const numpy = unzip(readFileSync(fixture('images.npz')));
  for (const compress of [false, true]) {
    async function* pieces() {
      yield Uint8Array.from(pixels.slice(0, 36));
      yield Uint8Array.from(pixels.slice(36));
    }
    for (const images of [Uint8Array.from(pixels), pieces()]) {
      await writeImageNpz(path, images, [2, 3, 4, 3], { labels, compress });
      const ours = unzip(readFileSync(path));
      t.same(Object.keys(ours), ['arr_0.npy', 'arr_1.npy']);
      t.same(ours, numpy, 'the entries are byte for byte those of numpy.savez');
    }
    const opened = await openImageNpz(path);
    t.same(opened.shape, [2, 3, 4, 3]);
    t.same(opened.labels, labels);
    const batches: Uint8Array[] = [];
    for await (const batch of opened.batches(2)) batches.push(batch);
    t.same(batches, [Uint8Array.from(pixels)]);
    opened.close();
  }
  const first = readFileSync(path);
  await writeImageNpz(path, Uint8Array.from(pixels), [2, 3, 4, 3], { labels, compress: true });
  t.same(readFileSync(path), first, 'equal contents give equal files');

  await writeImageNpz(path, new Uint8Array(0), [0, 8, 8, 3]);
  const none = await openImageNpz(path);
  t.same([none.shape, none.labels], [[0, 8, 8, 3], undefined]);
  none.close();
  await writeNpz(path, { arr_0: hostArray(new Float32Array(4), [1, 2, 2, 1]) });
  await t.rejects(openImageNpz(path), { name: 'FileFormatError', message: /arr_0 is f32 \[1, 2, 2, 1\]; expected u8/ });
  await writeNpz(path, { arr_0: hostArray(new Uint8Array(4), [1, 2, 2, 1]), arr_1: hostArray(new Int32Array(3)) });
  await t.rejects(openImageNpz(path), { name: 'FileFormatError', message: /arr_1 is i32 \[3\]; expected 1 integer/ });
});

t.test('failed writes leave nothing behind', async (t) => {
  const folder = t.testdir();
  const path = join(folder, 'samples.npz');
  async function* failing() {
    yield new Uint8Array(10);
    throw new Error('the sampler failed');
  }
  await t.rejects(writeImageNpz(path, failing(), [1, 4, 5, 1]), { message: 'the sampler failed' });
  await t.rejects(writeImageNpz(path, [new Uint8Array(10)], [1, 4, 5, 1]), {
    code: 'DIFFIT_SHAPE',
    message: /arr_0 needs 20 bytes, its chunks have 10/,
  });
  await t.rejects(writeImageNpz(path, [new Uint8Array(30)], [1, 4, 5, 1]), { code: 'DIFFIT_SHAPE' });
  await t.rejects(writeImageNpz(path, new Uint8Array(20), [1, 4, 5, 1], { labels: new BigInt64Array(2) }), {
    code: 'DIFFIT_SHAPE',
  });
  await t.rejects(writeImageNpz(join(folder, 'none', 'x.npz'), new Uint8Array(1), [1, 1, 1, 1]), {
    code: 'DIFFIT_FILE',
  });
  t.same(readdirSync(folder), []);
});

t.test('corrupt .npz files', async (t) => {
  const folder = t.testdir();
  const path = join(folder, 'x.npz');
  for (const name of ['images.npz', 'compressed.npz']) {
    const whole = readFileSync(fixture(name));
    const intact = await readNpz(fixture(name));
    for (let length = 0; length < whole.length; length += 11) {
      writeFileSync(path, whole.subarray(0, length));
      const outcome = await readNpz(path).catch((error) => error.name);
      if (outcome !== 'FileFormatError') t.fail(`${name}: ${length} bytes gave ${outcome}`);
    }
    let unnoticed = 0;
    for (let at = 0; at < whole.length; at += 3) {
      const bytes = Buffer.from(whole);
      bytes[at] ^= 0x55;
      writeFileSync(path, bytes);
      const outcome = await readNpz(path).catch((error) => error.name);
      if (typeof outcome === 'string') {
        if (outcome !== 'FileFormatError') t.fail(`${name}: byte ${at} gave ${outcome}`);
      } else if (JSON.stringify(outcome) === JSON.stringify(intact)) unnoticed++;
      else if (Object.keys(outcome).join() === Object.keys(intact).join()) {
        t.fail(`${name}: byte ${at} changed an array without an error`);
      }
    }
    t.ok(unnoticed < whole.length / 6, `${name}: flips of ${unnoticed} unused bytes do no harm`);
  }
  await t.rejects(readNpz(`${path}.none`), { name: 'FileError' });
});

t.test('arrays and tensors', async (t) => {
  const double = toTensor(hostArray(Float64Array.of(0.1, 2), [2, 1]), { device: 'cpu' });
  t.same([double.dtype, double.shape, [...(await double.data())]], ['f32', [2, 1], [Math.fround(0.1), 2]]);
  const back = await fromTensor(toTensor(hostArray(BigInt64Array.of(-5n)), { device: 'cpu' }));
  t.same([back.dtype, back.shape, [...hostValues(back)]], ['i64', [1], [-5n]]);
  const bf16 = await fromTensor(toTensor(hostArray(Float32Array.of(1.5)), { device: 'cpu' }).to('bf16'));
  t.same([bf16.dtype, [...hostValues(bf16)]], ['f32', [1.5]]);
  const odd = new Uint8Array(9).subarray(1);
  odd[0] = 3;
  t.same([...hostValues({ dtype: 'i64', shape: [1], bytes: odd })], [3n], 'unaligned bytes');
  t.throws(() => hostArray(new Int8Array(1) as unknown as Uint8Array), { code: 'DIFFIT_DTYPE' });
});
