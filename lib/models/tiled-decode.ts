/**
 * Decoding large latents tile by tile: memory is that of one tile's activations, plus the image. Tiles overlap, and each
 * is faded in linearly over its upper and left neighbours, in the order and with the weights of diffusers' tiled decoder.
 */
import { synchronize } from '../device.js';
import { OptionError } from '../errors.js';
import { checkInteger } from '../ops/check.js';
import { add, affine, mul } from '../ops/elementwise.js';
import { concat, reshape, slice } from '../ops/index.js';
import { noGrad, scope } from '../scope.js';
import { arange, type Tensor } from '../tensor.js';

/** Options of {@link AutoencoderKL.decodeTiled}. */
export interface DecodeTiledOptions {
  /** Side of a tile, in latents. Default 64. */
  tileSize?: number;
  /** Share of a tile that it has in common with the next, 0 to below 1. Default 0.25. */
  overlap?: number;
  /** Called after every tile. */
  onTile?: (progress: { done: number; total: number }) => void;
  signal?: AbortSignal;
}

/**
 * Latents [B, C, h, w] -> images [B, C', h factor, w factor] through `decode`, which does that for a tile. Latents that
 * one tile holds are decoded as they are. Records no gradients. Rejects with the signal's reason when aborted, before
 * the next tile. Throws OptionError.
 */
export async function decodeTiled(
  latents: Tensor,
  factor: number,
  decode: (tile: Tensor) => Tensor,
  { tileSize = 64, overlap = 0.25, onTile, signal }: DecodeTiledOptions = {},
): Promise<Tensor> {
  checkInteger('decodeTiled', 'tileSize', tileSize, 1);
  const step = Math.trunc(tileSize * (1 - overlap));
  if (!(overlap >= 0 && step >= 1)) {
    throw new OptionError(
      `decodeTiled: overlap ${overlap} of ${tileSize} latents; expected 0 to below 1, with a new latent in every tile.`,
    );
  }
  const [, , h, w] = latents.shape;
  const whole = h <= tileSize && w <= tileSize;
  const [rows, columns] = whole ? [[0], [0]] : [starts(h, step), starts(w, step)];
  /** Pixels that are blended, and those of a tile that its right and lower neighbours leave. */
  const extent = Math.trunc(tileSize * factor * overlap);
  const kept = whole ? tileSize * factor : tileSize * factor - extent;
  let done = 0;
  const decodeAt = async (y: number, x: number): Promise<Tensor> => {
    signal?.throwIfAborted();
    const tile = scope(() => decode(crop(latents, y, x, tileSize)));
    await synchronize(latents.device); // so that tiles do not pile up, and progress is true
    onTile?.({ done: ++done, total: rows.length * columns.length });
    return tile;
  };
  return noGrad(() =>
    scope(async () => {
      const strips: Tensor[] = [];
      let above: Tensor[] = [];
      for (const y of rows) {
        const row: Tensor[] = [];
        for (const [j, x] of columns.entries()) {
          row.push(
            await scope(async () => {
              let tile = await decodeAt(y, x);
              if (y > 0) tile = blend(above[j], tile, 2, extent);
              return x > 0 ? blend(row[j - 1], tile, 3, extent) : tile;
            }),
          );
        }
        for (const tile of above) tile.dispose();
        above = row;
        strips.push(scope(() => join(row, kept)));
      }
      return concat(strips, 2);
    }),
  );
}

/** The kept part of every tile of a row, side by side. */
function join(row: readonly Tensor[], kept: number): Tensor {
  return concat(
    row.map((tile) => crop(tile, 0, 0, kept)),
    3,
  );
}

/**
 * `after` with its first `extent` positions along `axis` faded in over the last ones of `before`: position i of n is
 * before (1 - i/n) + after i/n. `extent` is cut to what both tiles have.
 */
function blend(before: Tensor, after: Tensor, axis: number, extent: number): Tensor {
  const n = Math.min(before.shape[axis], after.shape[axis], extent);
  if (n === 0) return after;
  return scope(() => {
    const shape = after.shape.map((_, i) => (i === axis ? n : 1));
    const weight = reshape(affine(arange(0, n, 1, { device: after.device }), 1 / n, 0), shape);
    const old = slice(before, axis, before.shape[axis] - n);
    const seam = add(mul(old, affine(weight, -1, 1)), mul(slice(after, axis, 0, n), weight));
    return concat([seam, slice(after, axis, n)], axis);
  });
}

/** 0, step, 2 step, … below `length`. */
function starts(length: number, step: number): number[] {
  return Array.from({ length: Math.ceil(length / step) }, (_, i) => i * step);
}

/** The square of x [B, C, H, W] with a corner at (y, x0), as far as there is one. */
function crop(x: Tensor, y: number, x0: number, side: number): Tensor {
  const [, , h, w] = x.shape;
  return slice(slice(x, 2, y, Math.min(y + side, h)), 3, x0, Math.min(x0 + side, w));
}
