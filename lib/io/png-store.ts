/**
 * PNG files whose pixels are stored, not compressed: what a training loop reads fastest, and EDM's dataset_tool writes. They take a few memory
 * copies to make, where a library's call costs a millisecond whatever the size (PNG specification, third edition; RFC 1950 and 1951).
 */
import { crc32, deflateSync } from 'node:zlib';
import type { Image } from './image.js';

const signature = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
/** PNG's colour types by the number of channels. */
const colours: Record<number, number> = { 1: 0, 3: 2, 4: 6 };

/** The bytes of a PNG file of an 8-bit image of 1, 3 or 4 channels. */
export function storePng({ data, width, height, channels }: Image): Uint8Array {
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header[8] = 8;
  header[9] = colours[channels];
  const line = width * channels;
  const lines = Buffer.alloc(height * (line + 1)); // before each, a zero: no filter
  for (let y = 0; y < height; y++) lines.set(data.subarray(y * line, (y + 1) * line), y * (line + 1) + 1);
  return Buffer.concat([
    signature,
    ...chunk('IHDR', header),
    ...chunk('IDAT', deflateSync(lines, { level: 0 })),
    ...chunk('IEND', Buffer.alloc(0)),
  ]);
}

function chunk(type: string, data: Uint8Array): Uint8Array[] {
  const start = Buffer.alloc(8);
  start.writeUInt32BE(data.byteLength, 0);
  start.write(type, 4, 'latin1');
  const end = Buffer.alloc(4);
  end.writeUInt32BE(crc32(data, crc32(start.subarray(4))), 0);
  return [start, data, end];
}
