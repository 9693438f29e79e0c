/** 8-bit images [height, width, channels] in memory, as PNG files, and laid out in grids. Files go through sharp. */
import { FileFormatError, OptionError, ShapeError } from '../errors.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { format } from '../shape.js';
import { withFile, writeAtomically } from './files.js';

/** An 8-bit image in memory. */
export interface Image {
  /** [height, width, channels], row-major. */
  data: Uint8Array;
  /** In pixels. */
  width: number;
  /** In pixels. */
  height: number;
  /** 1 (grey), 3 (RGB) or 4 (RGBA). */
  channels: number;
}

/** Larger images are refused before they are decoded. */
const maxPixels = 2 ** 28;

/** The sharp module, loaded when an image is first read or written. @internal */
export async function loadSharp(): Promise<typeof import('sharp').default> {
  try {
    return (await import('sharp')).default;
  } catch (cause) {
    throw new OptionError(
      `Reading and writing images needs the package sharp, which did not load: npm install sharp. (${cause})`,
    );
  }
}

/** How a decoded image is brought to a size and a number of channels. */
export interface DecodeOptions {
  /** Side of a square the image is scaled to cover (Lanczos) and cropped to at its centre. Default: as it is. */
  size?: number;
  /** 3: RGB, 1: grey. Transparency is dropped. Default 3. */
  channels?: 1 | 3;
}

const decodeSchema = schema((z, is) =>
  z.strictObject({
    size: is.count.optional(),
    channels: z.literal([1, 3]).default(3),
  } satisfies Fields<DecodeOptions>),
);

/**
 * Decodes an image file held in memory (PNG, JPEG, WebP, GIF, TIFF, AVIF), upright as its EXIF data say, to 8 bits. `asStored`: the pixels as
 * the file has them, neither turned nor brought from its colour profile to sRGB; Pillow reads images so.
 * Throws FileFormatError, naming `label`, when the bytes are no intact image.
 */
export async function decodeImage(
  bytes: Uint8Array,
  label: string,
  options: DecodeOptions & { asStored?: boolean } = {},
): Promise<Image> {
  const { size, channels = 3, asStored = false } = options;
  const sharp = await loadSharp();
  try {
    let pipeline = sharp(bytes, {
      failOn: 'truncated',
      limitInputPixels: maxPixels,
      ignoreIcc: asStored,
    }).removeAlpha();
    if (!asStored) pipeline = pipeline.autoOrient();
    if (size !== undefined)
      pipeline = pipeline.resize(size, size, { fit: 'cover', position: 'centre', kernel: 'lanczos3' });
    pipeline = pipeline.toColourspace(channels === 1 ? 'b-w' : 'srgb');
    const { data, info } = await pipeline.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true });
    if (info.channels !== channels) throw new Error(`it decodes to ${info.channels} channels`);
    const plain = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return { data: plain, width: info.width, height: info.height, channels };
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message.trim().split('\n')[0] : String(cause);
    throw new FileFormatError(`${label} is not an intact image: ${reason}.`, { path: label, cause });
  }
}

/**
 * Reads an image file: PNG, JPEG, WebP, GIF, TIFF or AVIF, upright as its EXIF data say.
 *
 * @throws {FileError} The file cannot be read.
 * @throws {FileFormatError} It is no intact image.
 * @throws {OptionError} An option that is unknown or out of range; the package sharp does not load.
 */
export async function loadImage(path: string, options: DecodeOptions = {}): Promise<Image> {
  const settings = parseOptions(decodeSchema, options, 'loadImage');
  const bytes = await withFile(path, (handle) => handle.readFile());
  return decodeImage(bytes, path, settings);
}

/**
 * The bytes of a PNG file; `compression` from 0 to 9 as of zlib. Throws ShapeError when the data do not fit the size, OptionError when the package
 * sharp does not load.
 */
export async function encodePng({ data, width, height, channels }: Image, compression = 6): Promise<Uint8Array> {
  const sane =
    Number.isInteger(width) && width > 0 && Number.isInteger(height) && height > 0 && [1, 3, 4].includes(channels);
  if (!sane || data.length !== width * height * channels) {
    throw new ShapeError(
      `An image needs width x height x channels (1, 3 or 4) bytes; got ${data.length} for ${width} x ${height} x ${channels}.`,
    );
  }
  const sharp = await loadSharp();
  return sharp(data, { raw: { width, height, channels: channels as 1 | 3 | 4 } })
    .png({ compressionLevel: compression })
    .toBuffer();
}

/** Writes a PNG file, whole or not at all. Throws FileError, or OptionError when the name does not end in .png. */
export async function saveImage(path: string, image: Image): Promise<void> {
  if (!path.toLowerCase().endsWith('.png'))
    throw new OptionError(`${path} must end in .png: images are written as PNG.`);
  const png = await encodePng(image);
  await writeAtomically(path, (handle) => handle.writeFile(png));
}

/** Options of {@link imageGrid}. */
export interface GridOptions {
  /** Images per row. Default: the smallest number that makes the grid at least as wide as high. */
  columns?: number;
  /** Black pixels between images, after scaling. Default 2. */
  padding?: number;
  /** Whole factor by which each pixel is enlarged. Default 1. */
  scale?: number;
}

const gridSchema = schema((z, is) =>
  z.strictObject({
    columns: is.count.optional(),
    padding: is.natural.default(2),
    scale: is.count.default(1),
  } satisfies Fields<GridOptions>),
);

/**
 * Lays out images [N, H, W, C] row by row in one image.
 *
 * @throws {ShapeError} No image, or bytes that do not fill the shape.
 * @throws {OptionError} An option that is unknown or out of range.
 */
export function imageGrid(images: Uint8Array, shape: readonly number[], options: GridOptions = {}): Image {
  const { columns: wanted, padding, scale } = parseOptions(gridSchema, options, 'imageGrid');
  const [count, height, width, channels] = shape;
  if (shape.length !== 4 || count < 1 || images.length !== count * height * width * channels) {
    throw new ShapeError(
      `imageGrid: expected at least one image [N, H, W, C], got ${format(shape)} with ${images.length} bytes.`,
    );
  }
  const across = Math.min(wanted ?? Math.ceil(Math.sqrt(count)), count);
  const [cellHeight, cellWidth] = [height * scale + padding, width * scale + padding];
  const gridWidth = across * cellWidth - padding;
  const gridHeight = Math.ceil(count / across) * cellHeight - padding;
  const data = new Uint8Array(gridWidth * gridHeight * channels);
  const line = new Uint8Array(width * scale * channels);
  for (let i = 0; i < count; i++) {
    const top = Math.floor(i / across) * cellHeight;
    const left = (i % across) * cellWidth;
    for (let y = 0; y < height; y++) {
      const from = (i * height + y) * width * channels;
      for (let x = 0; x < line.length; x++) {
        line[x] = images[from + Math.floor(x / (scale * channels)) * channels + (x % channels)];
      }
      for (let k = 0; k < scale; k++) data.set(line, ((top + y * scale + k) * gridWidth + left) * channels);
    }
  }
  return { data, width: gridWidth, height: gridHeight, channels };
}
