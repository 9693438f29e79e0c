/*
 * Pooling of pixels, NHWC: the largest or the mean of the pixels of a window that lie in the image. A thread per 4 or 8 channels of a pixel
 * of y; neighbouring windows find their common pixels in the cache.
 *
 * Memory traffic: x is read once, y written once.
 */
#include "floats.cuh"

namespace diffit {

template <int kWidth, bool kMean>
static diffit_status pool(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *y, int64_t size,
                          int64_t stride, int64_t pad) {
  const Floats in = floats(x), out = floats(y);
  const int64_t h = x->shape[1], w = x->shape[2], c = x->shape[3], oh = y->shape[1], ow = y->shape[2];
  return forEach(ctx, numel(y) / kWidth, [=] __device__(int64_t i) {
    const int64_t at = i * kWidth, pixel = at / c, channel = at - pixel * c;
    const int64_t row = pixel / ow, sample = row / oh;
    const int64_t top = (row - sample * oh) * stride - pad, left = (pixel - row * ow) * stride - pad;
    const int64_t y0 = top < 0 ? 0 : top, y1 = top + size < h ? top + size : h;
    const int64_t x0 = left < 0 ? 0 : left, x1 = left + size < w ? left + size : w;
    float sum[kWidth], v[kWidth];
    load(in, ((sample * h + y0) * w + x0) * c + channel, sum);
    for (int64_t line = y0; line < y1; line++) {
      for (int64_t p = line == y0 ? x0 + 1 : x0; p < x1; p++) {
        load(in, ((sample * h + line) * w + p) * c + channel, v);
#pragma unroll
        for (int e = 0; e < kWidth; e++)
          sum[e] = kMean ? sum[e] + v[e] : (v[e] > sum[e] || v[e] != v[e]) ? v[e] : sum[e];
      }
    }
    const float share = kMean ? 1.0f / (float)((y1 - y0) * (x1 - x0)) : 1.0f;
#pragma unroll
    for (int e = 0; e < kWidth; e++) v[e] = kMean ? sum[e] * share : sum[e];
    store(out, at, v);
  });
}

diffit_status pool2d_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, int64_t kind, int64_t size,
                        int64_t stride, int64_t pad) {
  REQUIRE_FLOAT(x);
  REQUIRE(y->dtype == x->dtype);
  REQUIRE(kind == DIFFIT_MAX || kind == DIFFIT_MEAN);
  REQUIRE(x->ndim == 4 && y->ndim == 4);
  REQUIRE(y->shape[0] == x->shape[0] && y->shape[3] == x->shape[3]);
  REQUIRE(size > 0 && stride > 0 && pad >= 0 && pad < size);
  if (numel(y) == 0) return DIFFIT_OK;
  REQUIRE((y->shape[1] - 1) * stride - pad < x->shape[1] && (y->shape[2] - 1) * stride - pad < x->shape[2]);
  return withWidth(widthOf({floats(x), floats(y)}, x->shape[3]), [&](auto k) {
    constexpr int kWidth = decltype(k)::value;
    return kind == DIFFIT_MEAN ? pool<kWidth, true>(ctx, x, y, size, stride, pad)
                               : pool<kWidth, false>(ctx, x, y, size, stride, pad);
  });
}

}  // namespace diffit
