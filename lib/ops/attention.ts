/**
 * TMSA's core (Eq. 3-6): softmax(q k^T / sqrt(d) + B) v with a time token and a learned relative position bias, in
 * windows, without ever storing the N x N matrix. Backward saves only one log-sum-exp per row.
 */
import { OptionError } from '../errors.js';
import { native } from '../native.js';
import { autocastDType } from '../scope.js';
import { needsGrad, record } from '../tape.js';
import { Tensor } from '../tensor.js';
import { checkFloats, checkInteger, checkShapeOf } from './check.js';
import { lowered, widened } from './precision.js';

/** Arguments of {@link attention} besides qkv. */
export interface AttentionOptions {
  /** Heads; must divide C. */
  heads: number;
  /** Window [height, width] in tokens; must divide the map. Default: the whole map. */
  window?: readonly [number, number];
  /**
   * The time token's projection [B, 3C] (q, k, v parts). Its q part is added to every query, its v part to every output;
   * its k part cannot matter (softmax ignores a constant per row) and has gradient exactly 0.
   */
  time?: Tensor;
  /**
   * Relative position bias [(2 wh - 1)(2 ww - 1), heads], or one such table per sample [B, ..., heads]; tokens i and j
   * read row (yi - yj + wh - 1)(2 ww - 1) + (xi - xj + ww - 1).
   */
  table?: Tensor;
}

/**
 * qkv [B, H, W, 3C] (per token q, k, v; each head-major) -> [B, H, W, C]; logits are scaled by 1 / sqrt(C / heads). The result has
 * qkv's dtype, under autocast the autocast's; the time token, the table, logits and sums are f32. The paper's Eq. 3-6.
 *
 * @throws {OptionError} Heads that do not divide C, a window that does not divide the map.
 * @throws {ShapeError} A qkv, time token or table of another shape.
 */
export function attention(qkv: Tensor, { heads, window, time, table }: AttentionOptions): Tensor {
  checkFloats('attention', { qkv, time, table });
  checkShapeOf('attention', 'qkv', qkv, [-1, -1, -1, -1]);
  checkInteger('attention', 'heads', heads, 1);
  const [b, h, w, c3] = qkv.shape;
  const c = c3 / 3;
  if (!Number.isInteger(c / heads)) {
    throw new OptionError(`attention: ${c3} channels of qkv do not split into q, k, v of ${heads} heads.`);
  }
  const [wh, ww] = window ?? [h, w];
  checkInteger('attention', 'window height', wh, 1);
  checkInteger('attention', 'window width', ww, 1);
  if (h % wh !== 0 || w % ww !== 0) {
    throw new OptionError(`attention: a ${wh}x${ww} window does not divide the ${h}x${w} map.`);
  }
  checkShapeOf('attention', 'time', time, [b, c3]);
  const rows = (2 * wh - 1) * (2 * ww - 1);
  checkShapeOf('attention', 'table', table, table?.ndim === 3 ? [b, rows, heads] : [rows, heads]);
  const inputs = [lowered(qkv, autocastDType()), time && widened(time), table && widened(table)] as const;
  const [x, timeToken, bias] = inputs;
  const scale = 1 / Math.sqrt(c / heads);
  const y = Tensor.empty([b, h, w, c], x.dtype, x.device, 'attention');
  const lse = needsGrad(inputs) ? Tensor.empty([b, heads, h, w], 'f32', x.device, 'attention') : undefined;
  native.ops.attention(x.id, timeToken?.id ?? 0, bias?.id ?? 0, y.id, lse?.id ?? 0, heads, wh, ww, scale);
  record('attention', inputs, y, [...inputs, y, lse], { heads, wh, ww, scale });
  lse?.dispose();
  return y;
}
