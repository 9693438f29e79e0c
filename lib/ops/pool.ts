/** Pooling of the pixels of a window on NHWC activations; forward only, for networks that measure images and are not trained. */
import { AutogradError, OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { format } from '../shape.js';
import { needsGrad } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkInteger, checkShapeOf } from './check.js';

/** Options of {@link pool2d}. */
export interface Pool2dOptions {
  /** The largest pixel of a window, or the mean of those that lie in the image. */
  kind: 'max' | 'mean';
  /** Side of the window, in pixels. */
  size: number;
  /** Step of the window, in pixels. Default 1. */
  stride?: number;
  /** How far a window may reach over the edge, in pixels, less than its side. What is outside counts for nothing. Default 0. */
  padding?: number;
}

/** As `kind` of native/abi/ops.def. */
const kinds = { mean: 1, max: 2 } as const;

/**
 * x [B, H, W, C] -> [B, H', W', C] with H' = floor((H + 2 padding - size) / stride) + 1, in x's dtype.
 *
 * @throws {ShapeError} A window larger than the padded image.
 * @throws {OptionError} A size or stride below 1, a padding that is not below the size.
 * @throws {AutogradError} An input that wants a gradient: there is none. Run it in noGrad().
 */
export function pool2d(x: Tensor, { kind, size, stride = 1, padding = 0 }: Pool2dOptions): Tensor {
  checkFloats('pool2d', { x });
  checkShapeOf('pool2d', 'x', x, [-1, -1, -1, -1]);
  checkInteger('pool2d', 'size', size, 1);
  checkInteger('pool2d', 'stride', stride, 1);
  checkInteger('pool2d', 'padding', padding, 0);
  if (padding >= size) throw new OptionError(`pool2d: padding is ${padding}, expected less than the size ${size}.`);
  if (!(kind in kinds)) throw new OptionError(`pool2d: kind is ${String(kind)}, expected max or mean.`);
  if (needsGrad([x])) throw new AutogradError('pool2d has no gradient; run it in noGrad().');
  const [b, h, w, c] = x.shape;
  if (h + 2 * padding < size || w + 2 * padding < size) {
    throw new ShapeError(`pool2d: a window of ${size} does not fit into x ${format(x.shape)} with padding ${padding}.`);
  }
  const side = (n: number): number => Math.floor((n + 2 * padding - size) / stride) + 1;
  const y = Tensor.empty([b, side(h), side(w), c], x.dtype, x.device);
  native.ops.pool2d(x.id, y.id, kinds[kind], size, stride, padding);
  return y;
}
