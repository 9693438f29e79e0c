/*
 * Convolutions on NHWC images as matrix products over implicit im2col matrices: conv2d, conv2d_dgrad, conv2d_wgrad. f32 here, bf16, f16
 * and (asked for) TF32 on tensor cores in conv_mma.cuh, or by CUTLASS where it is built in and has the case (cutlass_conv.cuh).
 *
 * x [B, H, W, I], w [O, kh, kw, I], y [B, OH, OW, O]; a tap is a (ky, kx). The loaders find their numbers by conv_windows.cuh.
 *
 *   conv2d  y [B OH OW, O]   = x[pixel under (output pixel, tap), i] w[o, (tap, i)]
 *   dgrad   dx [B H W, I]    = dy[output pixel that sees (pixel) through (tap), o] w[o, (tap, i)]
 *   wgrad   dw [O, (tap, i)] = dy[output pixel, o] x[pixel under (output pixel, tap), i]
 *
 * Traffic: x (dy) is read about kh kw times through the L2 cache, once from memory.
 */
#include "conv_windows.cuh"
#include "cutlass_conv.cuh"
#include "gemm_load.cuh"
#include "gemm_problem.cuh"
#include "gemm_tile.cuh"

namespace diffit {
namespace {

__device__ inline float4 fourFrom(const float *from) { return *(const float4 *)from; }

/* A line per pixel, k = (tap, channel): of `in` under output pixels, or of `out` over input pixels (kGradient). */
template <bool kGradient>
struct WindowLines {
  static constexpr bool kAlongDepth = true;
  Windows<float> w;
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
  Windows<float> w;
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
  REQUIRE(isFloat(x) && isFloat(w) && isFloat(y));
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

/* Calls f(T{}) for tensor cores' T of the operands, or returns f32() where they are f32 and TF32 is not asked for. */
template <class Low, class Plain>
diffit_status byOperands(diffit_dtype dtype, const Low &low, const Plain &plain) {
  if (dtype == DIFFIT_BF16) return low(bf16{});
  if (dtype == DIFFIT_F16) return low(f16{});
  return useTf32() ? low(0.0f) : plain();
}

Epilogue writeTo(diffit_tensor *y) {
  Epilogue e = {};
  e.y = floats(y);
  e.activation = DIFFIT_NO_ACTIVATION;
  return e;
}

}  // namespace

diffit_status conv2d_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *bias,
                        const diffit_tensor *residual, diffit_tensor *y, int64_t stride, int64_t padTop,
                        int64_t padLeft) {
  TRY(checkConv(ctx, x, w, y, stride, padTop, padLeft));
  REQUIRE(x->dtype == w->dtype);
  const int64_t outputs = w->shape[0], depth = w->shape[1] * w->shape[2] * w->shape[3], pixels = pixelsOf(y);
  REQUIRE(!bias || isVector(bias, outputs));
  REQUIRE(!residual || isFloatVector(residual, numel(y)));
  Epilogue e = writeTo(y);
  e.bias = f32(bias);
  e.residual = floats(residual);
  return byOperands(
      x->dtype,
      [&](auto type) -> diffit_status {
        bool taken = false;
        TRY(cutlassConv(ctx, {ConvKind::kFprop, x, w, y, e, {stride, padTop, padLeft}}, &taken));
        if (taken) return DIFFIT_OK;
        return mmaConv<decltype(type)>(ctx, x, w, y, e, {stride, padTop, padLeft});
      },
      [&] {
        const LineLoader<float> weights = linesOf<float>(w, outputs, depth, 0);
        if (isPointwise(x, w, y, stride, padTop, padLeft))
          return multiply(ctx, linesOf<float>(x, pixels, depth, 0), weights, e, 1, pixels, outputs, depth);
        const WindowLines<false> windows = {windowsOf<float>(x, w, y, x, y, pixels, stride, padTop, padLeft)};
        return multiply(ctx, windows, weights, e, 1, pixels, outputs, depth);
      });
}

diffit_status conv2d_dgrad_op(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *w, diffit_tensor *dx,
                              int64_t stride, int64_t padTop, int64_t padLeft) {
  TRY(checkConv(ctx, dx, w, dy, stride, padTop, padLeft));
  REQUIRE(dy->dtype == w->dtype);
  const int64_t outputs = w->shape[0], taps = w->shape[1] * w->shape[2], inputs = w->shape[3];
  const int64_t pixels = pixelsOf(dx), depth = taps * outputs;
  const Epilogue e = writeTo(dx);
  return byOperands(
      dy->dtype,
      [&](auto type) -> diffit_status {
        bool taken = false;
        TRY(cutlassConv(ctx, {ConvKind::kDgrad, dx, w, dy, e, {stride, padTop, padLeft}}, &taken));
        if (taken) return DIFFIT_OK;
        return mmaConvDgrad<decltype(type)>(ctx, dy, w, dx, e, {stride, padTop, padLeft});
      },
      [&] {
        const WeightDepths weights = {f32(w), (int)inputs, (int)taps, Divider(outputs),
                                      inputs % 4 == 0 && isAligned(w->data, 16)};
        if (isPointwise(dx, w, dy, stride, padTop, padLeft))
          return multiply(ctx, linesOf<float>(dy, pixels, outputs, 0), weights, e, 1, pixels, inputs, outputs);
        const WindowLines<true> windows = {windowsOf<float>(dx, w, dy, dy, dx, pixels, stride, padTop, padLeft)};
        return multiply(ctx, windows, weights, e, 1, pixels, inputs, depth);
      });
}

diffit_status conv2d_wgrad_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy, diffit_tensor *dw,
                              int64_t stride, int64_t padTop, int64_t padLeft) {
  TRY(checkConv(ctx, x, dw, dy, stride, padTop, padLeft));
  REQUIRE(x->dtype == dy->dtype);
  const int64_t outputs = dw->shape[0], lines = dw->shape[1] * dw->shape[2] * dw->shape[3], pixels = pixelsOf(dy);
  const Epilogue e = writeTo(dw);
  return byOperands(
      x->dtype,
      [&](auto type) -> diffit_status {
        bool taken = false;
        TRY(cutlassConv(ctx, {ConvKind::kWgrad, x, dw, dy, e, {stride, padTop, padLeft}}, &taken));
        if (taken) return DIFFIT_OK;
        return mmaConvWgrad<decltype(type)>(ctx, x, dy, dw, e, {stride, padTop, padLeft});
      },
      [&] {
        const DepthLoader gradient = depthsOf(dy, outputs, 0);
        if (isPointwise(x, dw, dy, stride, padTop, padLeft))
          return multiply(ctx, gradient, depthsOf(x, lines, 0), e, 1, outputs, lines, pixels);
        const WindowDepths windows = {windowsOf<float>(x, dw, dy, x, dy, lines, stride, padTop, padLeft)};
        return multiply(ctx, gradient, windows, e, 1, outputs, lines, pixels);
      });
}

}  // namespace diffit
