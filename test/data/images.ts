/** What the tests of image sets share: small images of one colour. */
import { encodePng } from '../../lib/io/image.js';

/** A PNG of one RGB colour. */
export async function png(colour: [number, number, number], width = 4, height = width): Promise<Buffer> {
  const data = Uint8Array.from({ length: width * height * 3 }, (_, i) => colour[i % 3]);
  return Buffer.from(await encodePng({ data, width, height, channels: 3 }));
}
