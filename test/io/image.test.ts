import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { crc32, inflateSync } from 'node:zlib';
import t from 'tap';
import { decodeImage, encodePng, imageGrid, loadImage, saveImage } from '../../lib/io/image.js';

/** Header and unfiltered rows of a PNG whose rows all have filter 0, 1 or 2; independent of sharp. */
function parsePng(bytes: Buffer) {
  const chunks: Record<string, Buffer> = {};
  for (let at = 8; at < bytes.length; ) {
    const length = bytes.readUInt32BE(at);
    const body = bytes.subarray(at + 4, at + 8 + length);
    if (crc32(body) !== bytes.readUInt32BE(at + 8 + length)) throw new Error('checksum');
    chunks[body.toString('latin1', 0, 4)] = body.subarray(4);
    at += 12 + length;
  }
  const [width, height] = [chunks.IHDR.readUInt32BE(0), chunks.IHDR.readUInt32BE(4)];
  return { width, height, depth: chunks.IHDR[8], colour: chunks.IHDR[9], data: inflateSync(chunks.IDAT) };
}

t.test('images survive a PNG file', async (t) => {
  const folder = t.testdir();
  for (const channels of [1, 3]) {
    const image = {
      data: Uint8Array.from({ length: 5 * 4 * channels }, (_, i) => (i * 37) % 256),
      width: 5,
      height: 4,
      channels,
    };
    const path = join(folder, `${channels}.png`);
    await saveImage(path, image);
    const { data, ...rest } = await loadImage(path, { channels: channels as 1 | 3 });
    t.same(rest, { width: 5, height: 4, channels });
    t.same([...data], [...image.data]);
    const png = parsePng(readFileSync(path));
    t.match(png, { width: 5, height: 4, depth: 8 });
  }
  const white = parsePng(
    Buffer.from(await encodePng({ data: new Uint8Array(4).fill(255), width: 1, height: 1, channels: 4 })),
  );
  t.match(white, { width: 1, height: 1, depth: 8, colour: 6 });
  t.same([...white.data.subarray(1)], [255, 255, 255, 255]);
  t.same(readdirSync(folder), ['1.png', '3.png'], 'no temporary files stay');
});

t.test('decoding crops at the centre, drops alpha, greys and upsizes', async (t) => {
  const data = new Uint8Array(6 * 2 * 3).map((_, i) => (Math.floor(i / 3) % 6) * 40);
  const wide = await encodePng({ data, width: 6, height: 2, channels: 3 });
  const cropped = await decodeImage(wide, 'wide', { size: 2 });
  t.same([cropped.width, cropped.height, cropped.channels], [2, 2, 3]);
  t.same([...cropped.data], [80, 80, 80, 120, 120, 120, 80, 80, 80, 120, 120, 120], 'columns 2 and 3 of 0 .. 5');
  t.same([...(await decodeImage(wide, 'wide', { channels: 1 })).data.subarray(0, 6)], [0, 40, 80, 120, 160, 200]);
  const rgba = await encodePng({ data: Uint8Array.of(10, 20, 30, 128), width: 1, height: 1, channels: 4 });
  t.same([...(await decodeImage(rgba, 'rgba')).data], [10, 20, 30]);
  t.same((await decodeImage(rgba, 'rgba', { size: 4 })).data.length, 48);
});

t.test('what is no image is an error with its name', async (t) => {
  const folder = t.testdir({ 'x.png': 'not an image' });
  const path = join(folder, 'x.png');
  await t.rejects(loadImage(path), { name: 'FileFormatError', path, message: /x\.png is not an intact image: / });
  const whole = await encodePng({
    data: new Uint8Array(3000).map((_, i) => (i * i) % 256),
    width: 50,
    height: 20,
    channels: 3,
  });
  writeFileSync(path, whole.subarray(0, whole.length / 2));
  await t.rejects(loadImage(path), { name: 'FileFormatError' }, 'truncated');
  writeFileSync(path, '');
  await t.rejects(loadImage(path), { name: 'FileFormatError' }, 'empty');
  await t.rejects(loadImage(join(folder, 'none.png')), { name: 'FileError', message: /there is no such file/ });
});

t.test('images that cannot be written', async (t) => {
  const folder = t.testdir({ file: '' });
  const image = { data: new Uint8Array(3), width: 1, height: 1, channels: 3 };
  await t.rejects(saveImage(join(folder, 'none', 'x.png'), image), {
    code: 'DIFFIT_FILE',
    message: /none\/x\.png cannot be written/,
  });
  await t.rejects(saveImage(join(folder, 'file', 'x.png'), image), { code: 'DIFFIT_FILE', message: /is not a folder/ });
  await t.rejects(saveImage(join(folder, 'x.jpg'), image), { code: 'DIFFIT_OPTION', message: /must end in \.png/ });
  await t.rejects(saveImage(join(folder, 'x.png'), { ...image, width: 2 }), { code: 'DIFFIT_SHAPE' });
  await t.rejects(saveImage(join(folder, 'x.png'), { ...image, width: 0, data: new Uint8Array(0) }), {
    code: 'DIFFIT_SHAPE',
  });
  t.same(readdirSync(folder), ['file']);
});

t.test('grids', async (t) => {
  const images = Uint8Array.of(1, 2, 3, 4, 5, 6); // three images of one row and two grey pixels
  t.same(imageGrid(images, [3, 1, 2, 1], { columns: 2, padding: 1 }), {
    width: 5,
    height: 3,
    channels: 1,
    // biome-ignore format: rows of pixels
    data: Uint8Array.of(
      1, 2, 0, 3, 4,
      0, 0, 0, 0, 0,
      5, 6, 0, 0, 0,
    ),
  });
  t.same(imageGrid(Uint8Array.of(1, 2, 3, 4, 5, 6), [1, 1, 2, 3], { scale: 2 }), {
    width: 4,
    height: 2,
    channels: 3,
    // biome-ignore format: rows of pixels
    data: Uint8Array.of(
      1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6,
      1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6,
    ),
  });
  const square = imageGrid(new Uint8Array(10), [10, 1, 1, 1], { padding: 0 });
  t.same([square.width, square.height], [4, 3], 'ten images: four across, three down');
  t.throws(() => imageGrid(images, [3, 1, 2], {}), { code: 'DIFFIT_SHAPE' });
  t.throws(() => imageGrid(images, [4, 1, 2, 1], {}), { code: 'DIFFIT_SHAPE' });
  t.throws(() => imageGrid(new Uint8Array(0), [0, 1, 2, 1], {}), { code: 'DIFFIT_SHAPE' });
  for (const options of [{ columns: 0 }, { padding: -1 }, { scale: 1.5 }]) {
    t.throws(() => imageGrid(images, [3, 1, 2, 1], options), { code: 'DIFFIT_OPTION' });
  }
});
