/** Data sets of encoded images (PNG, JPEG, …), decoded when they are read. */
import { DataError, FileFormatError } from '../errors.js';
import { type DecodeOptions, decodeImage } from '../io/image.js';
import { type Fields, schema } from '../options.js';
import { checkIndex, type OpenDataset, type Sample } from './dataset.js';

/** Options of {@link openImageFolder} and {@link openImageZip}. */
export interface EncodedOptions extends DecodeOptions {
  /**
   * What to do about an image that does not decode: 'error' names it; 'skip' counts it and gives the next sound one in
   * its place. Default 'error'.
   */
  onCorrupt?: 'error' | 'skip';
  /** Stops the opening, which looks at every file of a folder. */
  signal?: AbortSignal;
}

/** The schema's entries of {@link EncodedOptions}. */
export const encodedFields = (...[z, is]: Parameters<Parameters<typeof schema>[0]>) =>
  ({
    size: is.count.optional(),
    channels: z.literal([1, 3]).optional(),
    onCorrupt: z.enum(['error', 'skip']).optional(),
    signal: is.signal.optional(),
  }) satisfies Fields<EncodedOptions>;
export const encodedSchema = schema((z, is) => z.strictObject(encodedFields(z, is)));

/** Where encoded images come from. */
export interface EncodedSource {
  length: number;
  /** The image in messages: a path. */
  name(index: number): string;
  label(index: number): number;
  read(index: number): Promise<Uint8Array>;
  close?(): void;
}

/** Encoded images and their classes: 0, and no names, for an unlabelled set. */
export interface LabelledSource {
  source: EncodedSource;
  classes: { count: number; names?: readonly string[] };
}

const extensions = /\.(png|jpe?g|webp|gif|tiff?|avif)$/i;

/** Is this the name of an image file? Hidden files are not. */
export function isImageName(name: string): boolean {
  return extensions.test(name) && !/(^|\/)\.[^/]*$/.test(name);
}

/** A data set of encoded images (PNG, JPEG, …), decoded when they are read. Close it, or open it with `using`. */
export class EncodedDataset implements OpenDataset {
  private readonly corrupt = new Set<number>();

  private constructor(
    private readonly source: EncodedSource,
    /** [height, width, channels] of every image. */
    readonly imageShape: readonly [number, number, number],
    /** Labels are 0 .. numClasses - 1; 0 for an unlabelled set. */
    readonly numClasses: number,
    /** Name of each label, where there are names. */
    readonly classNames: readonly string[] | undefined,
    private readonly options: EncodedOptions,
  ) {}

  /** Without a size, all images must have that of the first. @internal */
  static async open(
    source: EncodedSource,
    classes: { count: number; names?: readonly string[] },
    options: EncodedOptions,
  ): Promise<EncodedDataset> {
    const { size, channels = 3 } = options;
    let [height, width] = [size ?? 0, size ?? 0];
    if (size === undefined) {
      const probe = new EncodedDataset(source, [0, 0, channels], 0, undefined, options);
      ({ height, width } = (await probe.decode(0)).image);
    }
    return new EncodedDataset(source, [height, width, channels], classes.count, classes.names, options);
  }

  /** Number of images. */
  get length(): number {
    return this.source.length;
  }

  /** How many images were found corrupt so far, with onCorrupt 'skip'. */
  get skipped(): number {
    return this.corrupt.size;
  }

  /**
   * Image `index`, decoded, and its label.
   *
   * @throws {OptionError} An index outside.
   * @throws {FileFormatError} A corrupt image, unless onCorrupt is 'skip'.
   * @throws {DataError} An image of another size than the first, where no size is set; no sound image at all.
   */
  async get(index: number): Promise<Sample> {
    checkIndex(index, this.length);
    const { image, position } = await this.decode(index);
    const [height, width] = this.imageShape;
    if (image.height !== height || image.width !== width) {
      throw new DataError(
        `${this.source.name(position)} is ${image.width} x ${image.height}, the first image ${width} x ${height}; set a size to resize all.`,
      );
    }
    return { image: image.data, label: this.numClasses > 0 ? this.source.label(position) : 0 };
  }

  /** Gives an archive's file back. */
  close(): void {
    this.source.close?.();
  }

  /** Called at the end of the block by `using dataset = …`: {@link EncodedDataset.close}. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** The first sound image from `index` on, going round at the end. */
  private async decode(index: number) {
    for (let step = 0; step < this.length; step++) {
      const position = (index + step) % this.length;
      if (this.corrupt.has(position)) continue;
      try {
        const image = await decodeImage(await this.source.read(position), this.source.name(position), this.options);
        return { image, position };
      } catch (error) {
        if (this.options.onCorrupt !== 'skip' || !(error instanceof FileFormatError)) throw error;
        this.corrupt.add(position);
      }
    }
    throw new DataError(`All ${this.length} images are corrupt, from ${this.source.name(0)} on.`);
  }
}
