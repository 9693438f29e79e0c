/**
 * Where a conversion writes: a file NAME.partial that grows, and NAME.progress.json, which says how much of it counts. Whatever ends a process,
 * the next one cuts what came after and goes on; at the end the file gets its name in one step.
 */
import { type FileHandle, open, readFile, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { FileFormatError } from '../errors.js';
import { messageOf, syncFolder, toFileError, writeAtomically } from '../io/files.js';
import type { Image } from '../io/image.js';
import { encodePng } from '../io/image.js';
import { writeNpz } from '../io/npz.js';
import { storePng } from '../io/png-store.js';
import { ZipStore } from '../io/zip-store.js';
import { encodeLabels, labelsFile } from './label-list.js';

/** A picture that was left out, and why. */
export interface Skipped {
  /** Its place in the source. */
  index: number;
  /** Its path. */
  name: string;
  /** The sentence it was refused with. */
  reason: string;
}

/** How far a conversion is. Plain JSON. */
export interface ConvertState {
  /** Pictures of the source that were dealt with. */
  position: number;
  /** Images written. */
  images: number;
  /** Bytes of the file that count. */
  bytes: number;
  /** Sums over all pixels, and of their squares, by channel. */
  sums: number[];
  squares: number[];
  skipped: Skipped[];
}

interface Progress {
  format: 'diffit-convert';
  formatVersion: 1;
  settings: Record<string, unknown>;
  state: ConvertState;
}

/** What an output makes of an image where this is done in parallel, and in order. */
export interface Output {
  readonly partial: string;
  /** The bytes that are written of an image. */
  encode(image: Image): Promise<Uint8Array>;
  /** Goes on behind what `state` counts. */
  restore(state: ConvertState): Promise<void>;
  /** Appends one image. */
  add(index: number, bytes: Uint8Array): Promise<void>;
  /** Makes what there is last, and returns its bytes. */
  sync(): Promise<number>;
  /** Writes what belongs to the end, and gives the file its name. */
  finish(labels: number[] | undefined, classNames?: readonly string[]): Promise<void>;
  close(): Promise<void>;
}

/** As EDM's dataset_tool counts: 00012/img00012345.png. */
export function imageName(index: number): string {
  const digits = String(index).padStart(8, '0');
  return `${digits.slice(0, 5)}/img${digits}.png`;
}

export const progressPath = (out: string): string => `${out}.progress.json`;
export const partialPath = (out: string): string => `${out}.partial`;

/** Opens the file of a conversion, new or to be gone on with. */
export async function openOutput(
  out: string,
  shape: readonly [number, number, number],
  compression: number,
): Promise<Output> {
  const partial = partialPath(out);
  const handle = await open(partial, 'a+').then(
    async (appending) => {
      await appending.close(); // exists now; positions can be chosen in a file opened without "a" alone
      return open(partial, 'r+');
    },
    (error) => {
      throw toFileError(error, partial, 'written');
    },
  );
  return out.toLowerCase().endsWith('.zip')
    ? new ZipOutput(out, handle, compression)
    : new NpzOutput(out, handle, shape);
}

/** PNG files, stored, and dataset.json. */
class ZipOutput implements Output {
  readonly partial: string;
  private readonly store: ZipStore;

  constructor(
    private readonly out: string,
    private readonly handle: FileHandle,
    private readonly compression: number,
  ) {
    this.partial = partialPath(out);
    this.store = new ZipStore(handle, this.partial);
  }

  async encode(image: Image): Promise<Uint8Array> {
    return this.compression === 0 ? storePng(image) : encodePng(image, this.compression);
  }

  async restore({ bytes, images }: ConvertState): Promise<void> {
    await this.store.restore(bytes);
    if (this.store.count !== images)
      throw new FileFormatError(`${this.partial} holds ${this.store.count} images, expected ${images}.`, {
        path: this.partial,
      });
  }

  add(index: number, bytes: Uint8Array): Promise<void> {
    return this.store.add(imageName(index), bytes);
  }

  async sync(): Promise<number> {
    await this.handle.sync();
    return this.store.length;
  }

  async finish(labels: number[] | undefined, classNames?: readonly string[]): Promise<void> {
    const entries = labels?.map((label, index) => [imageName(index), label] as const) ?? null;
    await this.store.add(labelsFile, encodeLabels(entries, classNames));
    await this.store.finish();
    await this.handle.sync();
    await this.handle.close();
    await rename(this.partial, this.out);
    await syncFolder(dirname(this.out));
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

/** Pixels as they are; the .npz is made of them at the end. */
class NpzOutput implements Output {
  readonly partial: string;
  private length = 0;

  constructor(
    private readonly out: string,
    private readonly handle: FileHandle,
    private readonly shape: readonly [number, number, number],
  ) {
    this.partial = partialPath(out);
  }

  async encode(image: Image): Promise<Uint8Array> {
    return image.data;
  }

  async restore({ bytes }: ConvertState): Promise<void> {
    const { size } = await this.handle.stat();
    if (size < bytes)
      throw new FileFormatError(`${this.partial} ends after ${size} bytes; expected at least ${bytes}.`, {
        path: this.partial,
      });
    await this.handle.truncate(bytes);
    this.length = bytes;
  }

  async add(_: number, bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.byteLength; ) {
      done += (await this.handle.write(bytes, done, bytes.byteLength - done, this.length + done)).bytesWritten;
    }
    this.length += bytes.byteLength;
  }

  async sync(): Promise<number> {
    await this.handle.sync();
    return this.length;
  }

  async finish(labels: number[] | undefined): Promise<void> {
    const [height, width, channels] = this.shape;
    const images = this.length / (height * width * channels);
    const chunks = this.handle.createReadStream({ start: 0, autoClose: false, highWaterMark: 1 << 20 });
    const pixels = { dtype: 'u8' as const, shape: [images, ...this.shape], chunks };
    const list = labels && {
      dtype: 'i64' as const,
      shape: [images],
      bytes: new Uint8Array(BigInt64Array.from(labels, BigInt).buffer),
    };
    await writeNpz(this.out, { arr_0: pixels, ...(list && { arr_1: list }) });
    await this.handle.close();
    await rm(this.partial);
  }

  close(): Promise<void> {
    return this.handle.close();
  }
}

/** Says how far a conversion is. */
export async function writeProgress(out: string, settings: Progress['settings'], state: ConvertState): Promise<void> {
  const progress: Progress = { format: 'diffit-convert', formatVersion: 1, settings, state };
  await writeAtomically(progressPath(out), (handle) => handle.writeFile(`${JSON.stringify(progress)}\n`));
}

/** A conversion is done. */
export async function removeProgress(out: string): Promise<void> {
  await rm(progressPath(out), { force: true });
}

/** What a conversion of before left, if there is any. Throws FileFormatError when it cannot be read. */
export async function readProgress(out: string): Promise<Pick<Progress, 'settings' | 'state'> | undefined> {
  const path = progressPath(out);
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined;
    throw toFileError(error, path, 'read');
  });
  if (text === undefined) return undefined;
  try {
    const { format, formatVersion, settings, state } = JSON.parse(text) as Progress;
    const numbers = [state.position, state.images, state.bytes, ...state.sums, ...state.squares];
    if (format !== 'diffit-convert' || formatVersion !== 1 || !numbers.every((n) => Number.isFinite(n) && n >= 0))
      throw new Error('it has other fields');
    return { settings, state };
  } catch (cause) {
    const message = `${path} is damaged (${messageOf(cause)}); delete it and ${partialPath(out)} to start again.`;
    throw new FileFormatError(message, { path, cause });
  }
}
