/**
 * EDM's augmentation without leaks (Karras et al. 2022, appendix F.2; the resampling is that of Karras et al. 2020, arXiv 2006.06676): flips,
 * then scaling, rotation, anisotropic scaling and translation as one affine map, and nine labels for the network.
 *
 * An image is continued by reflection, doubled in size with the wavelet filter sym6, warped bilinearly, and halved with the same filter. All
 * of that but the warp is linear along one axis, so continuing, filtering and doubling are one matrix per axis, halving another:
 *
 *     x [n, C, H, W] -> up [Hu, n, Wu, C] -> warp [n, 2 (H + 6), 2 (W + 6), C] -> down [n, C, H, W]      Hu = 2 (3 H - 2) + 3
 *
 * The warp gathers four rows of C values for each pixel; zero rows and columns around `up` are the outside. Everything is done in f32 on the
 * images' device. An image of 3 x 32 x 32 costs 20 MFLOP in matrix products and about 3 MB of traffic.
 */
import { OptionError, ShapeError } from '../errors.js';
import { add, affine, cast, clamp, linearCombination, mul, sub, where } from '../ops/elementwise.js';
import { concat, embedding, permute, reshape } from '../ops/index.js';
import { matmul } from '../ops/linear.js';
import type { RandomKey } from '../ops/random.js';
import { type Fields, parseOptions, schema } from '../options.js';
import { autocast, keep, noGrad, scope } from '../scope.js';
import { format } from '../shape.js';
import { type Tensor, tensor } from '../tensor.js';
import {
  type Affine2d,
  type AugmentDraw,
  type AugmentOptions,
  augmentLabels,
  compose,
  drawAugment,
  labelsOf,
  scaling,
  sourceOf,
  translation,
} from './augment-draw.js';

const optionsSchema = schema((z, is) =>
  z.strictObject({
    p: is.share,
    xflip: is.atLeastZero.default(1e8),
    yflip: is.atLeastZero.default(1),
    scale: is.atLeastZero.default(1),
    rotate: is.atLeastZero.default(1),
    aniso: is.atLeastZero.default(1),
    translate: is.atLeastZero.default(1),
    scaleStd: is.atLeastZero.default(0.2),
    rotateMax: is.share.default(1),
    anisoStd: is.atLeastZero.default(0.2),
    anisoRotate: is.share.default(0.5),
    translateStd: is.atLeastZero.default(0.125),
  } satisfies Fields<AugmentOptions>),
);

/** The options with their defaults, whose owner's name starts a message. Throws OptionError. @internal */
export function parseAugment(options: AugmentOptions, what = 'Augmenter'): Required<AugmentOptions> {
  return parseOptions(optionsSchema, options, what);
}

/** Images after {@link Augmenter.augment}. */
export interface Augmented {
  /** [B, C, H, W], as the images were. */
  images: Tensor;
  /** What tells the network about it, [B, 9]; zeros when it is sampled. */
  labels: Tensor;
}

/** The wavelet sym6 (Daubechies, least asymmetric, 6 vanishing moments): 12 taps of norm 1 and sum sqrt(2). */
const sym6 = [
  0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
  0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
  0.0017677118642428036, -0.007800708325034148,
];
/** Pixels by which the warp's result is larger than the image on each side: what halving it reads beyond. */
const margin = 3;
/** Images are warped so many at a time: memory stays bounded. */
const mostAtOnce = 64;
/** Rows of a table are counted in f32. */
const mostRows = 2 ** 24;

/** What depends on the sizes alone. */
interface Tables {
  up: { rows: Tensor; columns: Tensor };
  down: { rows: Tensor; columns: Tensor };
  mirror: { rows: Tensor; columns: Tensor };
  /** Pixels of the warp's result, counted from its centre: [1, h, 1] and [1, 1, w]. */
  grid: { y: Tensor; x: Tensor };
  /** Size of `up`. */
  height: number;
  width: number;
}

/** EDM's augmentation without leaks (Karras et al. 2022, appendix F.2), on the images' device. Dispose it, or make it with `using`. */
export class Augmenter implements Disposable {
  /** The options with their defaults. */
  readonly options: Readonly<Required<AugmentOptions>>;
  private readonly tables = new Map<string, Tables>();

  /** @throws {OptionError} An option that is missing, unknown or out of range. */
  constructor(options: AugmentOptions) {
    this.options = parseAugment(options);
  }

  /**
   * What happens to images firstSample, firstSample + 1, … of a random stream of the host, `count` of them: whatever batch an image is in, its
   * draw is the same.
   */
  draw({ seed, stream = 0, firstSample = 0 }: RandomKey, count: number): AugmentDraw[] {
    return Array.from({ length: count }, (_, i) => drawAugment(seed, stream, firstSample + i, this.options));
  }

  /**
   * Images [B, C, H, W] f32 in [-1, 1], augmented by draws that the key names; see draw(). Not recorded for gradients.
   *
   * @throws {ShapeError} What are no images.
   */
  augment(images: Tensor, key: RandomKey): Augmented {
    return this.apply(images, this.draw(key, images.shape[0]));
  }

  /**
   * Images [B, C, H, W] f32, augmented by given draws, one per image. An image is continued as far as a reflection goes (EDM: as far as the
   * batch needs), so that its result does not depend on its batch.
   *
   * @throws {ShapeError} What are no images.
   * @throws {OptionError} Another number of draws.
   */
  apply(images: Tensor, draws: readonly AugmentDraw[]): Augmented {
    const [count, , height, width] = images.shape;
    if (images.ndim !== 4 || height < 2 || width < 2)
      throw new ShapeError(`Augmenter: images are ${format(images.shape)}, expected [B, C, H, W] of at least 2 x 2.`);
    if (draws.length !== count)
      throw new OptionError(`Augmenter: ${count} images need as many draws, got ${draws.length}.`);
    return noGrad(() =>
      autocast('f32', () =>
        scope(() => {
          const { device } = images;
          const tables = this.tablesOf(images);
          const maps = draws.map((draw) => this.mapOf(draw, [height, width]));
          const atOnce = Math.max(1, Math.min(mostAtOnce, Math.floor(mostRows / (tables.height * tables.width))));
          const parts: Tensor[] = [];
          for (let first = 0; first < count; first += atOnce) {
            const last = Math.min(first + atOnce, count);
            const [some, own] = [images.slice(0, first, last), draws.slice(first, last)];
            parts.push(scope(() => resample(flip(some, own, tables), maps.slice(first, last), tables)));
          }
          const labels = Float32Array.from(draws.flatMap(labelsOf));
          return {
            images: parts.length === 1 ? parts[0] : concat(parts, 0),
            labels: tensor(labels, { shape: [count, augmentLabels], device }),
          };
        }),
      ),
    );
  }

  /** Frees the tables that were made for the sizes of images so far. */
  dispose(): void {
    for (const { up, down, mirror, grid } of this.tables.values()) {
      for (const table of [...[up, down, mirror].flatMap(({ rows, columns }) => [rows, columns]), grid.y, grid.x])
        table.dispose();
    }
    this.tables.clear();
  }

  /** Called at the end of the block by `using augmenter = …`: {@link Augmenter.dispose}. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** From a pixel of the warp's result, counted from its centre, to a place in `up`, whose first row and column are zeros. */
  private mapOf(draw: AugmentDraw, size: [height: number, width: number]): Affine2d {
    const [y, x] = size.map((side) => continuedSize(side) + 0.5); // the centre of `up`
    return [
      translation(x, y),
      translation(-0.5),
      scaling(2),
      sourceOf(draw, size, this.options),
      scaling(0.5),
      translation(0.5),
    ].reduce(compose);
  }

  private tablesOf({ shape: [, , height, width], device }: Tensor): Tables {
    const key = [height, width, device].join();
    const found = this.tables.get(key);
    if (found) return found;
    const matrix = (values: Float32Array, rows: number): Tensor =>
      keep(tensor(values, { shape: [rows, values.length / rows], device }));
    const centred = (size: number, shape: number[]): Tensor =>
      keep(
        tensor(
          Float32Array.from({ length: size }, (_, i) => i + 0.5 - size / 2),
          { shape, device },
        ),
      );
    const [tall, wide] = [2 * (height + 2 * margin), 2 * (width + 2 * margin)];
    const made: Tables = {
      up: {
        rows: matrix(doubling(height), doubledSize(height)),
        columns: matrix(doubling(width), doubledSize(width)),
      },
      down: { rows: matrix(halving(height), height), columns: matrix(halving(width), width) },
      mirror: { rows: matrix(reversal(height), height), columns: matrix(reversal(width), width) },
      grid: { y: centred(tall, [1, tall, 1]), x: centred(wide, [1, 1, wide]) },
      height: doubledSize(height),
      width: doubledSize(width),
    };
    this.tables.set(key, made);
    return made;
  }
}

/** Place k of an axis of `size` that is continued by reflection without repeating its ends. */
function reflected(k: number, size: number): number {
  const inside = k < 0 ? -k : k;
  return inside < size ? inside : 2 * (size - 1) - inside;
}

/** An axis with its reflection on both sides. */
function continuedSize(size: number): number {
  return 3 * size - 2;
}

/** One zero before, and two after: a place on the last pixel's far side still has a neighbour. */
function doubledSize(size: number): number {
  return 2 * continuedSize(size) + 3;
}

/** [doubled, size]: continues an axis, doubles it with zeros between, and filters it. */
function doubling(size: number): Float32Array {
  const padded = continuedSize(size);
  const matrix = new Float32Array(doubledSize(size) * size);
  for (let o = 0; o < 2 * padded; o++) {
    for (let k = 0; k < sym6.length; k++) {
      const at = o + k - sym6.length / 2;
      if (at < 0 || at >= 2 * padded || at % 2 !== 0) continue;
      matrix[(o + 1) * size + reflected(at / 2 - (size - 1), size)] += sym6[sym6.length - 1 - k];
    }
  }
  return matrix;
}

/** [size, 2 (size + 6)]: filters an axis, takes every second place, and leaves the margin out. */
function halving(size: number): Float32Array {
  const from = 2 * (size + 2 * margin);
  const matrix = new Float32Array(size * from);
  for (let o = 0; o < size; o++) {
    for (let k = 0; k < sym6.length; k++) matrix[o * from + 2 * (o + margin) + k - 5] = sym6[k];
  }
  return matrix;
}

function reversal(size: number): Float32Array {
  const matrix = new Float32Array(size * size);
  for (let i = 0; i < size; i++) matrix[i * size + size - 1 - i] = 1;
  return matrix;
}

/** Images with those that are to be mirrored mirrored. */
function flip(images: Tensor, draws: readonly AugmentDraw[], { mirror }: Tables): Tensor {
  const flags = (of: (draw: AugmentDraw) => number): Tensor =>
    tensor(Float32Array.from(draws, of), { shape: [draws.length, 1, 1, 1], device: images.device });
  const across = where(
    flags(({ xflip }) => xflip),
    matmul(images, mirror.columns),
    images,
  );
  return where(
    flags(({ yflip }) => yflip),
    matmul(mirror.rows, across),
    across,
  );
}

function resample(images: Tensor, maps: readonly Affine2d[], { up, down, grid, height, width }: Tables): Tensor {
  const [n, channels, rows, columns] = images.shape;
  const wider = matmul(reshape(permute(images, [2, 0, 1, 3]), [rows * n * channels, columns]), up.columns, {
    transB: true,
  });
  const lines = permute(reshape(wider, [rows, n, channels, width]), [0, 1, 3, 2]);
  const doubled = matmul(up.rows, reshape(lines, [rows, n * width * channels]));
  const warped = warp(reshape(doubled, [height * n * width, channels]), maps, grid, [height, width]);
  const [, tall, wide] = warped.shape;
  const lower = matmul(down.rows, reshape(warped, [n, tall, wide * channels]));
  const planes = permute(reshape(lower, [n, rows, wide, channels]), [0, 3, 1, 2]);
  return matmul(planes, down.columns, { transB: true });
}

/** Rows of a table [height, n, width] read between its rows and columns, n maps of the grid: [n, h, w, C]. */
function warp(
  table: Tensor,
  maps: readonly Affine2d[],
  grid: Tables['grid'],
  [height, width]: readonly [number, number],
): Tensor {
  const [n, { device }] = [maps.length, table];
  const each = (of: (map: Affine2d, i: number) => number): Tensor =>
    tensor(Float32Array.from(maps, of), { shape: [n, 1, 1], device });
  /** Places along one axis: the whole number before, and how far beyond it. Outside the table they stay on its zeros. */
  const places = (row: 0 | 3, size: number): [Tensor, Tensor] => {
    const along = (k: number): Tensor => each((map) => map[row + k]);
    const start = add(mul(along(1), grid.y), along(2));
    const place = clamp(add(mul(along(0), grid.x), start), 0, size - 2);
    const whole = cast(cast(place, 'i32'), 'f32');
    return [whole, sub(place, whole)];
  };
  const [x, right] = places(0, width);
  const [y, below] = places(3, height);
  const first = add(
    linearCombination([
      [n * width, y],
      [1, x],
    ]),
    each((_, i) => i * width),
  );
  const at = (offset: number): Tensor => embedding(table, cast(affine(first, 1, offset), 'i64'));
  const pixels = [...right.shape, 1];
  const [rightward, downward] = [reshape(right, pixels), reshape(below, pixels)];
  const between = (a: Tensor, b: Tensor, share: Tensor): Tensor => add(a, mul(sub(b, a), share));
  const line = (offset: number): Tensor => between(at(offset), at(offset + 1), rightward);
  return between(line(0), line(n * width), downward);
}
