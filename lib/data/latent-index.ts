/**
 * What a folder of latents holds: latents.json beside its shards. Each shard-NNNNN.safetensors has `mean` and `std`
 * [n, C, h, w] of the encoder's distribution, unscaled; the same of the mirrored images as `mean_mirrored` and
 * `std_mirrored` when the index says so; and `labels` i64 [n] for a labelled set.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { DType } from '../dtype.js';
import { DataError, FileError, FileFormatError } from '../errors.js';
import { messageOf, quote, toFileError, writeAtomically } from '../io/files.js';
import { readSafetensorsHeader } from '../io/safetensors.js';
import { type SafetensorsEntry, tensorDType } from '../io/safetensors-format.js';
import { type Fields, schema } from '../options.js';
import { format, sameShape } from '../shape.js';

const indexName = 'latents.json';

/** What latents were made from and how; the same for all shards of a folder. */
export interface LatentSettings {
  /** Images in all, once every shard is there. */
  images: number;
  /** [height, width, channels] of the images. */
  imageShape: [height: number, width: number, channels: number];
  /** [channels, height, width] of their latents. */
  latentShape: [channels: number, height: number, width: number];
  /** What a diffusion model multiplies the latents by. */
  scalingFactor: number;
  /** 0 for an unlabelled set. */
  numClasses: number;
  /** Name of each label, where there are names. */
  classNames?: string[];
  /** Are the mirrored images there too? */
  mirrored: boolean;
  /** How the latents are stored. */
  dtype: 'f32' | 'f16' | 'bf16';
  /** SHA-256 of the weights that encoded them. */
  vae: string;
}

/** A file of latents. */
export interface LatentShard {
  /** Its name in the folder. */
  file: string;
  /** How many images it holds. */
  images: number;
}

/** What a folder of latents holds. */
export interface LatentIndex {
  /** What they were made from and how. */
  settings: LatentSettings;
  /** In the order of the images. */
  shards: LatentShard[];
}

const indexSchema = schema((z, { count, natural }) =>
  z.strictObject({
    format: z.literal('diffit-latents'),
    formatVersion: z.literal(1),
    settings: z.strictObject({
      images: count,
      imageShape: z.tuple([count, count, count]),
      latentShape: z.tuple([count, count, count]),
      scalingFactor: z.number().positive(),
      numClasses: natural,
      classNames: z.array(z.string()).optional(),
      mirrored: z.boolean(),
      dtype: z.enum(['f32', 'f16', 'bf16']),
      vae: z.string(),
    } satisfies Fields<LatentSettings>),
    shards: z.array(
      z.strictObject({
        file: z.string().regex(/^shard-\d{5,}\.safetensors$/),
        images: count,
      } satisfies Fields<LatentShard>),
    ),
  }),
);

/** Does a folder with these files hold latents? @internal */
export function isLatents(names: readonly string[]): boolean {
  return names.includes(indexName);
}

/** The index of a folder, undefined when it has none. Throws FileError, FileFormatError. */
export async function readLatentIndex(dir: string): Promise<LatentIndex | undefined> {
  const path = join(dir, indexName);
  const text = await readFile(path, 'utf8').catch((error) => {
    if (error.code === 'ENOENT') return undefined;
    throw toFileError(error, path, 'read');
  });
  if (text === undefined) return undefined;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw new FileFormatError(`${path} is not JSON: ${messageOf(cause)}.`, { path, cause });
  }
  const result = indexSchema().safeParse(value);
  if (result.success) return { settings: result.data.settings, shards: result.data.shards };
  const [{ path: at, message }] = result.error.issues;
  throw new FileFormatError(`${path} is no sound index of latents: ${at.join('.')}: ${message}.`, { path });
}

/** Writes the index, whole or not at all. Throws FileError. */
export async function writeLatentIndex(dir: string, { settings, shards }: LatentIndex): Promise<void> {
  const index = { format: 'diffit-latents', formatVersion: 1, settings, shards };
  await writeAtomically(join(dir, indexName), (handle) => handle.writeFile(`${JSON.stringify(index, undefined, 2)}\n`));
}

/** Names of a shard's tensors besides the labels. */
export function momentNames({ mirrored }: Pick<LatentSettings, 'mirrored'>): string[] {
  return mirrored ? ['mean', 'std', 'mean_mirrored', 'std_mirrored'] : ['mean', 'std'];
}

/**
 * Checks the header of a shard against the index, and the size of the file with it. Returns where in the file each
 * tensor starts. Throws DataError when the file is missing, FileFormatError when it is cut, damaged or another one.
 */
export async function checkShard(
  dir: string,
  { file, images }: LatentShard,
  settings: LatentSettings,
): Promise<Map<string, number>> {
  const path = join(dir, file);
  const { entries, dataStart } = await readSafetensorsHeader(path).catch((error) => {
    if (error instanceof FileError && (error.cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') {
      throw new DataError(`${path} is missing; ${indexName} beside it lists ${images} images there.`, { cause: error });
    }
    throw error;
  });
  const expect = (name: string, shape: readonly number[], dtype: DType): [string, number] => {
    const entry = entries.find((other: SafetensorsEntry) => other.name === name);
    if (!entry || !sameShape(entry.shape, shape) || tensorDType(entry, path) !== dtype) {
      const found = entry ? `${format(entry.shape)} of ${entry.dtype}` : 'absent';
      throw new FileFormatError(`${path}: ${quote(name)} is ${found}, expected ${format(shape)} of ${dtype}.`, {
        path,
      });
    }
    return [name, dataStart + entry.begin];
  };
  const moments = momentNames(settings).map((name) => expect(name, [images, ...settings.latentShape], settings.dtype));
  return new Map(settings.numClasses > 0 ? [...moments, expect('labels', [images], 'i64')] : moments);
}
