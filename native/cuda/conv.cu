/*
 * Convolutions on NHWC images as matrix products over implicit im2col matrices: conv2d, conv2d_dgrad, conv2d_wgrad.
 *
 * x [B, H, W, I], w [O, kh, kw, I], y [B, OH, OW, O]; a tap is a (ky, kx). The loaders below find a number of the im2col matrix from its row
 * and column with multiplications instead of divisions, so the matrix is never stored (Chetlur et al., "cuDNN: Efficient
 * Primitives for Deep Learning").
 *
 *   conv2d  y [B OH OW, O]   = x[pixel under (output pixel, tap), i] w[o, (tap, i)]
 *   dgrad   dx [B H W, I]    = dy[output pixel that sees (pixel) through (tap), o] w[o, (tap, i)]
 *   wgrad   dw [O, (tap, i)] = dy[output pixel, o] x[pixel under (output pixel, tap), i]
 *
 * Traffic: x (dy) is read about kh kw times through the L2 cache, once from memory.
 */
#include "gemm_load.cuh"
#include "gemm_tile.cuh"

namespace diffit {
namespace {

/* n / d for 0 <= n < 2^31 as the high half of a product (Granlund and Montgomery, "Division by Invariant Integers"). */
struct Divider {
  unsigned divisor, factor, shift;
  explicit Divider(int64_t d) : divisor((unsigned)d), factor(0), shift(0) {
    if (d <= 1) return;
    while (((int64_t)1 << shift) < d) shift++;
    factor = (unsigned)((((uint64_t)1 << (31 + shift)) + d - 1) / d);
    shift -= 1;
  }
  __device__ int operator()(int n, int *rest) const {
    const int quotient = divisor == 1 ? n : (int)(__umulhi((unsigned)n, factor) >> shift);
    *rest = n - quotient * (int)divisor;
    return quotient;
  }
};

/* Two image grids and the window that joins them: pixel (oy, ox) of `out` sees (oy stride + ky - padTop, ...) of `in`. */
struct Windows {
  int inHeight, inWidth, outHeight, outWidth, stride, padTop, padLeft;
  int lines;
  Divider pixelWidth, pixelHeight, channels, kernelWidth;
  const float *data;
  bool vector; /* are four neighbouring channels one aligned load? */
};

__device__ inline float4 fourFrom(const float *from) { return *(const float4 *)from; }

/* A pixel of a batch of images, and the place in a kernel with its channel. */
struct Pixel {
  int sample, y, x;
  __device__ Pixel(const Windows &w, int index) {
    const int row = w.pixelWidth(index, &x);
    sample = w.pixelHeight(row, &y);
  }
};
struct Tap {
  int ky, kx, channel;
  __device__ Tap(const Windows &w, int index) {
    const int tap = w.channels(index, &channel);
    ky = w.kernelWidth(tap, &kx);
  }
};

/* The number of `in` that output pixel p sees through tap t; null outside. */
__device__ inline const float *seenBy(const Windows &w, const Pixel &p, const Tap &t) {
  const int y = p.y * w.stride + t.ky - w.padTop, x = p.x * w.stride + t.kx - w.padLeft;
  if (y < 0 || y >= w.inHeight || x < 0 || x >= w.inWidth) return nullptr;
  return w.data + (((int64_t)p.sample * w.inHeight + y) * w.inWidth + x) * w.channels.divisor + t.channel;
}
/* The number of `out` whose window shows input pixel p through tap t; null where there is none. */
__device__ inline const float *seeing(const Windows &w, const Pixel &p, const Tap &t) {
  int y = p.y + w.padTop - t.ky, x = p.x + w.padLeft - t.kx;
  if (y < 0 || x < 0) return nullptr;
  if (w.stride > 1) {
    if (y % w.stride != 0 || x % w.stride != 0) return nullptr;
    y /= w.stride;
    x /= w.stride;
  }
  if (y >= w.outHeight || x >= w.outWidth) return nullptr;
  return w.data + (((int64_t)p.sample * w.outHeight + y) * w.outWidth + x) * w.channels.divisor + t.channel;
}

/* A line per pixel, k = (tap, channel): of `in` under output pixels, or of `out` over input pixels (kGradient). */
template <bool kGradient>
struct WindowLines {
  static constexpr bool kAlongDepth = true;
  Windows w;
  __device__ float4 load(int64_t, int line, int depth, int end) const {
    if (line >= w.lines || depth >= end) return make_float4(0, 0, 0, 0);
    const Pixel pixel(w, line);
    float v[4] = {0, 0, 0, 0};
    for (int i = 0; i < (w.vector ? 1 : 4); i++) {
      if (depth + i >= end) break;
      const Tap tap(w, depth + i);
      const float *from = kGradient ? seeing(w, pixel, tap) : seenBy(w, pixel, tap);
      if (from && w.vector) return fourFrom(from);
      if (from) v[i] = *from;
    }
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

/* A line per (tap, channel), k = output pixel. */
struct WindowDepths {
  static constexpr bool kAlongDepth = false;
  Windows w;
  __device__ float4 load(int64_t, int line, int depth, int end) const {
    if (depth >= end || line >= w.lines) return make_float4(0, 0, 0, 0);
    const Pixel pixel(w, depth);
    float v[4] = {0, 0, 0, 0};
    for (int i = 0; i < (w.vector ? 1 : 4); i++) {
      if (line + i >= w.lines) break;
      const float *from = seenBy(w, pixel, Tap(w, line + i));
      if (from && w.vector) return fourFrom(from);
      if (from) v[i] = *from;
    }
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

/* Weights [O, taps, I] with a line per i and k = (tap, o). */
struct WeightDepths {
  static constexpr bool kAlongDepth = false;
  const float *data;
  int inputs, taps;
  Divider outputs;
  bool vector;
  __device__ float4 load(int64_t, int line, int depth, int end) const {
    if (depth >= end || line >= inputs) return make_float4(0, 0, 0, 0);
    int output;
    const int tap = outputs(depth, &output);
    const float *from = data + ((int64_t)output * taps + tap) * inputs + line;
    if (vector) return fourFrom(from);
    float v[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++)
      if (line + i < inputs) v[i] = from[i];
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

/* Images [B, H, W, C] and weights [O, kh, kw, I] that belong together, in sizes that 32 bits hold. */
diffit_status checkConv(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *y,
                        int64_t stride, int64_t padTop, int64_t padLeft) {
  REQUIRE_F32(x);
  REQUIRE_F32(w);
  REQUIRE_F32(y);
  REQUIRE(x->ndim == 4 && w->ndim == 4 && y->ndim == 4);
  REQUIRE(x->shape[0] == y->shape[0]);
  REQUIRE(x->shape[3] == w->shape[3]);
  REQUIRE(y->shape[3] == w->shape[0]);
  const int64_t limit = (int64_t)1 << 24;
  REQUIRE(stride >= 1 && stride < limit && padTop > -limit && padTop < limit && padLeft > -limit && padLeft < limit);
  REQUIRE(x->shape[0] * x->shape[1] * x->shape[2] < kSizeLimit && y->shape[0] * y->shape[1] * y->shape[2] < kSizeLimit);
  REQUIRE(x->shape[1] < limit && x->shape[2] < limit && y->shape[1] < limit && y->shape[2] < limit);
  REQUIRE(y->shape[1] * stride < kSizeLimit / 2 && y->shape[2] * stride < kSizeLimit / 2);
  return DIFFIT_OK;
}

/* The window over `in`, read from `image` (in or out), whose pixels are counted over `pixels` (the other). */
Windows windowsOf(const diffit_tensor *in, const diffit_tensor *w, const diffit_tensor *out, const diffit_tensor *image,
                  const diffit_tensor *pixels, int64_t lines, int64_t stride, int64_t padTop, int64_t padLeft) {
  const int64_t channels = image->shape[3];
  return {(int)in->shape[1],
          (int)in->shape[2],
          (int)out->shape[1],
          (int)out->shape[2],
          (int)stride,
          (int)padTop,
          (int)padLeft,
          (int)lines,
          Divider(pixels->shape[2]),
          Divider(pixels->shape[1]),
          Divider(channels),
          Divider(w->shape[2]),
          f32(image),
          channels % 4 == 0 && isAligned(image->data, 16)};
}

/* 1x1, unit stride, no padding: the im2col matrix is the image itself. */
bool isPointwise(const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *y, int64_t stride, int64_t padTop,
                 int64_t padLeft) {
  return w->shape[1] == 1 && w->shape[2] == 1 && stride == 1 && padTop == 0 && padLeft == 0 &&
         x->shape[1] == y->shape[1] && x->shape[2] == y->shape[2];
}

int64_t pixelsOf(const diffit_tensor *t) { return t->shape[0] * t->shape[1] * t->shape[2]; }

Epilogue writeTo(diffit_tensor *y) {
  Epilogue e = {};
  e.y = f32(y);
  e.activation = DIFFIT_NO_ACTIVATION;
  return e;
}

}  // namespace

diffit_status conv2d_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *bias,
                        const diffit_tensor *residual, diffit_tensor *y, int64_t stride, int64_t padTop,
                        int64_t padLeft) {
  TRY(checkConv(ctx, x, w, y, stride, padTop, padLeft));
  const int64_t outputs = w->shape[0], depth = w->shape[1] * w->shape[2] * w->shape[3], pixels = pixelsOf(y);
  REQUIRE(!bias || isVector(bias, outputs));
  REQUIRE(!residual || isVector(residual, numel(y)));
  Epilogue e = writeTo(y);
  e.bias = f32(bias);
  e.residual = f32(residual);
  const LineLoader<float> weights = linesOf<float>(w, outputs, depth, 0);
  if (isPointwise(x, w, y, stride, padTop, padLeft))
    return multiply(ctx, linesOf<float>(x, pixels, depth, 0), weights, e, 1, pixels, outputs, depth);
  const WindowLines<false> windows = {windowsOf(x, w, y, x, y, pixels, stride, padTop, padLeft)};
  return multiply(ctx, windows, weights, e, 1, pixels, outputs, depth);
}

diffit_status conv2d_dgrad_op(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *w, diffit_tensor *dx,
                              int64_t stride, int64_t padTop, int64_t padLeft) {
  TRY(checkConv(ctx, dx, w, dy, stride, padTop, padLeft));
  const int64_t outputs = w->shape[0], taps = w->shape[1] * w->shape[2], inputs = w->shape[3];
  const int64_t pixels = pixelsOf(dx), depth = taps * outputs;
  const Epilogue e = writeTo(dx);
  const WeightDepths weights = {f32(w), (int)inputs, (int)taps, Divider(outputs),
                                inputs % 4 == 0 && isAligned(w->data, 16)};
  if (isPointwise(dx, w, dy, stride, padTop, padLeft))
    return multiply(ctx, linesOf<float>(dy, pixels, outputs, 0), weights, e, 1, pixels, inputs, outputs);
  const WindowLines<true> windows = {windowsOf(dx, w, dy, dy, dx, pixels, stride, padTop, padLeft)};
  return multiply(ctx, windows, weights, e, 1, pixels, inputs, depth);
}

diffit_status conv2d_wgrad_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy, diffit_tensor *dw,
                              int64_t stride, int64_t padTop, int64_t padLeft) {
  TRY(checkConv(ctx, x, dw, dy, stride, padTop, padLeft));
  const int64_t outputs = dw->shape[0], lines = dw->shape[1] * dw->shape[2] * dw->shape[3], pixels = pixelsOf(dy);
  const DepthLoader gradient = depthsOf(dy, outputs, 0);
  const Epilogue e = writeTo(dw);
  if (isPointwise(x, dw, dy, stride, padTop, padLeft))
    return multiply(ctx, gradient, depthsOf(x, lines, 0), e, 1, outputs, lines, pixels);
  const WindowDepths windows = {windowsOf(x, dw, dy, x, dy, lines, stride, padTop, padLeft)};
  return multiply(ctx, gradient, windows, e, 1, outputs, lines, pixels);
}

}  // namespace diffit
