/** Crops and resizing against Pillow's own pixels (resize.json). */
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import t from 'tap';
import { type Crop, squareImage } from '../../lib/data/crop.js';
import type { Image } from '../../lib/io/image.js';
import { type Resampling, resizeImage } from '../../lib/io/resample.js';

interface Case {
  width: number;
  height: number;
  channels: number;
  seed: number;
  size: number;
  crop: Crop;
  resampling: Resampling;
}
const fixture = JSON.parse(readFileSync(new URL('../fixtures/resize.json', import.meta.url), 'utf8')) as {
  full: (Case & { pixels: number[] })[];
  cases: (Case & { sha256: string })[];
};

/** The picture that make_resize.py describes. */
function picture({ width, height, channels, seed }: Case): Image {
  const data = new Uint8Array(width * height * channels);
  for (let i = 0; i < data.length; i++) {
    const c = i % channels;
    const x = Math.floor(i / channels) % width;
    const y = Math.floor(i / channels / width);
    const step = x > width / 2 && y < height / 3 ? 200 : 0;
    data[i] = (seed + 37 * x + 11 * y + 71 * c + ((x * y) % 97) + step) % 256;
  }
  return { data, width, height, channels };
}

t.test('every pixel is Pillow’s', async (t) => {
  for (const wanted of fixture.full) {
    const { data } = squareImage(picture(wanted), wanted.size, wanted.crop, wanted.resampling);
    t.same([...data], wanted.pixels, `${wanted.crop} ${wanted.resampling}`);
  }
  for (const wanted of fixture.cases) {
    const { width, height, size, crop, resampling } = wanted;
    const square = squareImage(picture(wanted), size, crop, resampling);
    t.match(square, { width: size, height: size, channels: wanted.channels });
    const found = createHash('sha256').update(square.data).digest('hex');
    t.equal(found, wanted.sha256, `${width} x ${height} -> ${size}, ${crop}, ${resampling}`);
  }
});

t.test('an image of its own size is itself', async (t) => {
  const image = picture({ width: 5, height: 7, channels: 3, seed: 1, size: 0, crop: 'scale', resampling: 'box' });
  t.equal(resizeImage(image, 5, 7, 'lanczos').data, image.data);
});
