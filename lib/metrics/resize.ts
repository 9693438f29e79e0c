/**
 * Bilinear resizing without antialiasing, as two matrix products: each axis has a matrix with at most two weights in a row. Which pixels those are differs
 * between frameworks, and FID is sensitive to it (Parmar et al. 2022).
 */
import { OptionError } from '../errors.js';
import { permute, reshape } from '../ops/index.js';
import { matmul } from '../ops/linear.js';
import { scope } from '../scope.js';
import { type Tensor, tensor } from '../tensor.js';

/**
 * Where pixel i of the result lies in the image, scale = size / new size:
 * 'tensorflow': i scale, as TensorFlow 1 (FID's own and guided-diffusion's evaluator, torch-fidelity);
 * 'pytorch': (i + 1/2) scale - 1/2, at least 0, as PyTorch's interpolate (pytorch-fid).
 */
export type ResizeMode = 'tensorflow' | 'pytorch';

/** Weights [to, from] of one axis, in f32 arithmetic as the frameworks compute them. */
export function resizeMatrix(from: number, to: number, mode: ResizeMode): Float32Array {
  const f = Math.fround;
  const scale = f(from / to);
  const weights = new Float32Array(to * from);
  for (let i = 0; i < to; i++) {
    const at = mode === 'tensorflow' ? f(i * scale) : Math.max(f(f(scale * f(i + 0.5)) - 0.5), 0);
    const lower = Math.min(Math.floor(at), from - 1);
    const upper = Math.min(lower + 1, from - 1);
    const share = f(at - lower);
    weights[i * from + lower] += f(1 - share);
    weights[i * from + upper] += share;
  }
  return weights;
}

/** x f32 [B, H, W, C] -> [B, side, side, C]. Throws OptionError for an unknown mode. */
export function resize(x: Tensor, side: number, mode: ResizeMode): Tensor {
  if (mode !== 'tensorflow' && mode !== 'pytorch') {
    throw new OptionError(`resize is ${String(mode)}, expected tensorflow or pytorch.`);
  }
  const [b, h, w, c] = x.shape;
  const matrix = (from: number): Tensor =>
    tensor(resizeMatrix(from, side, mode), { device: x.device }).reshape([side, from]);
  return scope(() => {
    let y = x;
    if (h !== side) y = reshape(matmul(matrix(h), reshape(y, [b, h, w * c])), [b, side, w, c]);
    if (w === side) return y === x ? x.alias() : y;
    const columns = reshape(permute(y, [0, 2, 1, 3]), [b, w, side * c]);
    return permute(reshape(matmul(matrix(w), columns), [b, side, side, c]), [0, 2, 1, 3]);
  });
}
