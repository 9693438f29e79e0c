/** 2-D convolution on NHWC activations, weights [O, kh, kw, I] (cross-correlation, as PyTorch's conv2d). */
import { OptionError, ShapeError } from '../errors.js';
import { native } from '../native.js';
import { autocastDType } from '../scope.js';
import { format } from '../shape.js';
import { record } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkInteger, checkShapeOf, checkTensors } from './check.js';
import { checkOperands } from './linear.js';
import { lowered, loweredWeight } from './precision.js';

/** Options of {@link conv2d}. */
export interface Conv2dOptions {
  /** Step of the window, in pixels. Default 1. */
  stride?: number;
  /** Zeros around the image: one number, or [top, right, bottom, left]. Default 0. */
  padding?: number | readonly [number, number, number, number];
  /** Added to the result in the same memory pass; shape of the result, which has its dtype. */
  residual?: Tensor;
}

/**
 * x [B, H, W, I], weight [O, kh, kw, I], bias [O] -> [B, H', W', O] with H' = floor((H + top + bottom - kh) / stride) + 1. x and
 * weight have one dtype (or autocast gives them one), the bias is f32.
 *
 * @throws {ShapeError} Channels that differ, or a kernel larger than the padded image.
 * @throws {OptionError} A stride below 1, a padding that is no number of pixels.
 */
export function conv2d(
  x: Tensor,
  weight: Tensor,
  bias?: Tensor,
  { stride = 1, padding = 0, residual }: Conv2dOptions = {},
): Tensor {
  checkFloats('conv2d', { x, weight, residual });
  checkTensors('conv2d', { bias }, 'f32', x.device);
  checkShapeOf('conv2d', 'x', x, [-1, -1, -1, -1]);
  const [b, h, w, i] = x.shape;
  checkShapeOf('conv2d', 'weight', weight, [-1, -1, -1, i]);
  const [o, kh, kw] = weight.shape;
  checkShapeOf('conv2d', 'bias', bias, [o]);
  checkInteger('conv2d', 'stride', stride, 1);
  const [top, right, bottom, left] = typeof padding === 'number' ? [padding, padding, padding, padding] : padding;
  for (const n of [top, right, bottom, left]) {
    if (!Number.isInteger(n) || n < 0) throw new OptionError(`conv2d: padding ${n} is not a number of pixels.`);
  }
  if (h + top + bottom < kh || w + left + right < kw) {
    throw new ShapeError(
      `conv2d: a ${kh}x${kw} window does not fit into x ${format(x.shape)} with padding ${format([top, right, bottom, left])}.`,
    );
  }
  const shape = [
    b,
    Math.floor((h + top + bottom - kh) / stride) + 1,
    Math.floor((w + left + right - kw) / stride) + 1,
    o,
  ];
  checkShapeOf('conv2d', 'residual', residual, shape);
  const dtype = autocastDType();
  const [input, kernel] = [lowered(x, dtype), loweredWeight(weight, dtype)];
  checkOperands('conv2d', 'x', input, 'weight', kernel);
  const y = Tensor.empty(shape, residual?.dtype ?? input.dtype, x.device, 'conv2d');
  native.ops.conv2d(input.id, kernel.id, bias?.id ?? 0, residual?.id ?? 0, y.id, stride, top, left);
  record('conv2d', [input, weight, bias, residual], y, [input, kernel], { stride, top, left });
  if (input !== x) input.dispose();
  if (kernel !== weight) kernel.dispose();
  return y;
}
