/** A run's sample grids as data URIs, few and small enough for one page. */
import { readdir, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { toFileError, withFile } from '../../io/files.js';
import { loadSharp } from '../../io/image.js';

/** A sample grid in the page. */
export interface SampleGrid {
  step: number;
  uri: string;
  /** Of the image in the page, which may have been scaled down. */
  width: number;
  height: number;
}

/** The grids of a run, and files that are no intact images. */
export interface RunSamples {
  grids: SampleGrid[];
  damaged: string[];
}

/** Most grids of one run, and most bytes of those of all runs, before base64. */
const mostGrids = 24;
const mostBytes = 2_400_000;

/** Reads grids, and remembers them for the next page of the same runs. */
export class SampleReader {
  private readonly known = new Map<string, { key: string; grid: SampleGrid | undefined }>();

  /** Of each folder, grids spread evenly over the run, the first and the last among them; none of steps after `until`. */
  async read(runs: readonly { folder: string; until: number }[]): Promise<RunSamples[]> {
    const most = Math.max(4, Math.min(mostGrids, Math.floor(60 / runs.length)));
    const chosen = await Promise.all(runs.map(async ({ folder, until }) => spread(await list(folder, until), most)));
    const limit = mostBytes / Math.max(1, chosen.flat().length);
    const found: RunSamples[] = [];
    for (const files of chosen) {
      const run: RunSamples = { grids: [], damaged: [] };
      for (const file of files) {
        const grid = await this.grid(file, limit);
        if (grid) run.grids.push(grid);
        else run.damaged.push(basename(file.path));
      }
      found.push(run);
    }
    return found;
  }

  private async grid({ path, step }: GridFile, limit: number): Promise<SampleGrid | undefined> {
    const { mtimeMs, size } = await stat(path).catch((error) => {
      throw toFileError(error, path, 'read');
    });
    const key = `${mtimeMs} ${size} ${size <= limit ? 'whole' : Math.round(limit)}`;
    const known = this.known.get(path);
    if (known?.key === key) return known.grid;
    const grid = await encode(path, step, limit);
    this.known.set(path, { key, grid });
    return grid;
  }
}

interface GridFile {
  path: string;
  step: number;
}

/** Grids in a run's folder, by step. */
async function list(folder: string, until: number): Promise<GridFile[]> {
  const samples = join(folder, 'samples');
  const names = await readdir(samples).catch(() => []);
  return names
    .flatMap((name) => {
      const step = /^(\d+)\.png$/.exec(name)?.[1];
      return step === undefined || Number(step) > until ? [] : [{ path: join(samples, name), step: Number(step) }];
    })
    .sort((a, b) => a.step - b.step);
}

function spread<T>(items: readonly T[], most: number): T[] {
  if (items.length <= most) return [...items];
  return Array.from({ length: most }, (_, i) => items[Math.round((i * (items.length - 1)) / (most - 1))]);
}

/** The file as it is, or as a WebP of at most about `limit` bytes; undefined for what is no intact image. */
async function encode(path: string, step: number, limit: number): Promise<SampleGrid | undefined> {
  const png = await withFile(path, (handle) => handle.readFile());
  const sharp = await loadSharp();
  const { width, height } = await sharp(png)
    .metadata()
    .catch(() => ({ width: 0, height: 0 }));
  if (!width || !height) return undefined;
  if (png.length <= limit) return { step, uri: `data:image/png;base64,${png.toString('base64')}`, width, height };
  for (let scale = 1; ; ) {
    const side = { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
    const image = await sharp(png)
      .resize(side)
      .webp({ quality: 85 })
      .toBuffer()
      .catch(() => undefined);
    if (!image) return undefined;
    const uri = `data:image/webp;base64,${image.toString('base64')}`;
    if (image.length <= limit || side.width < 64) return { step, uri, ...side };
    scale *= Math.min(0.8, Math.sqrt(limit / image.length));
  }
}
