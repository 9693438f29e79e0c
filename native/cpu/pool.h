/*
 * Pooling of pixels, NHWC: the largest or the mean of the pixels of a window that lie in the image.
 *
 * Memory traffic: x is read from memory once and from the cache size^2 / stride^2 times, y written once.
 */
#ifndef DIFFIT_CPU_POOL_H
#define DIFFIT_CPU_POOL_H

/* out[c] over the pixels of x, [lines, columns, c], each line `line` elements behind the one before. */
template <bool kMean>
static void poolWindow(const float *x, int64_t lines, int64_t columns, int64_t line, int64_t c, float *out) {
  const float share = 1.0f / (float)(lines * columns);
  int64_t i = 0;
  for (; i + kLanes <= c; i += kLanes) {
    vf sum = load(x + i);
    for (int64_t y = 0; y < lines; y++)
      for (int64_t p = y == 0; p < columns; p++) {
        const vf v = load(x + y * line + p * c + i);
        sum = kMean ? sum + v : (v > sum || v != v) ? v : sum;
      }
    store(out + i, kMean ? sum * share : sum);
  }
  for (; i < c; i++) {
    float sum = x[i];
    for (int64_t y = 0; y < lines; y++)
      for (int64_t p = y == 0; p < columns; p++) {
        const float v = x[y * line + p * c + i];
        sum = kMean ? sum + v : (v > sum || v != v) ? v : sum;
      }
    out[i] = kMean ? sum * share : sum;
  }
}

static diffit_status pool2d_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, int64_t kind,
                               int64_t size, int64_t stride, int64_t pad) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(kind == DIFFIT_MAX || kind == DIFFIT_MEAN);
  REQUIRE(x->ndim == 4 && y->ndim == 4);
  REQUIRE(y->shape[0] == x->shape[0] && y->shape[3] == x->shape[3]);
  REQUIRE(size > 0 && stride > 0 && pad >= 0 && pad < size);
  const int64_t h = x->shape[1], w = x->shape[2], c = x->shape[3], oh = y->shape[1], ow = y->shape[2];
  if (numel(y) == 0) return DIFFIT_OK;
  REQUIRE((oh - 1) * stride - pad < h && (ow - 1) * stride - pad < w);
  const float *in = f32(x);
  float *out = f32(y);
  parallelChunks(ctx, y->shape[0] * oh, imax(1, 8192 / (ow * c)), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const int64_t top = r % oh * stride - pad, y0 = imax(0, top), y1 = imin(h, top + size);
      const float *lines = in + (r / oh * h + y0) * w * c;
      for (int64_t i = 0; i < ow; i++) {
        const int64_t left = i * stride - pad, x0 = imax(0, left), x1 = imin(w, left + size);
        float *to = out + (r * ow + i) * c;
        if (kind == DIFFIT_MEAN)
          poolWindow<true>(lines + x0 * c, y1 - y0, x1 - x0, w * c, c, to);
        else
          poolWindow<false>(lines + x0 * c, y1 - y0, x1 - x0, w * c, c, to);
      }
    }
  });
  return DIFFIT_OK;
}

#endif
