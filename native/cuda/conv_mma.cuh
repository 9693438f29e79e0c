/*
 * Convolutions on tensor cores: the implicit matrices of conv.cu for the tile of gemm_mma.cuh. A chunk is neighbouring channels of one pixel, so
 * it is whole when their number is a multiple of eight (f32: four).
 */
#ifndef DIFFIT_CUDA_CONV_MMA_CUH
#define DIFFIT_CUDA_CONV_MMA_CUH

#include "conv_windows.cuh"
#include "gemm_mma.cuh"

namespace diffit {

/* A line per pixel, k = (tap, channel): of `in` under output pixels, or of `out` over input pixels (kGradient). */
template <class T, bool kGradient>
struct WindowLineChunks {
  static constexpr bool kAlongDepth = true;
  struct Place {
    int sample, y, x; /* sample < 0: outside */
  };
  const T *data;
  Windows<T> w;
  __device__ Place place(int64_t, int line) const {
    if (line >= w.lines) return {-1, 0, 0};
    const Pixel p(w, line);
    return {p.sample, p.y, p.x};
  }
  __device__ const T *find(const Place &p, int depth, int end) const {
    if (p.sample < 0 || depth >= end) return nullptr;
    const Pixel pixel(p.sample, p.y, p.x);
    const Tap tap(w, depth);
    return kGradient ? seeing(w, pixel, tap) : seenBy(w, pixel, tap);
  }
};

/* A line per (tap, channel), k = output pixel. */
template <class T>
struct WindowDepthChunks {
  static constexpr bool kAlongDepth = false;
  struct Place {
    int ky, kx, channel; /* channel < 0: outside */
  };
  const T *data;
  Windows<T> w;
  __device__ Place place(int64_t, int line) const {
    if (line >= w.lines) return {0, 0, -1};
    const Tap t(w, line);
    return {t.ky, t.kx, t.channel};
  }
  __device__ const T *find(const Place &p, int depth, int end) const {
    if (p.channel < 0 || depth >= end) return nullptr;
    return seenBy(w, Pixel(w, depth), Tap(p.ky, p.kx, p.channel));
  }
};

/* Weights [O, taps, I] with a line per i and k = (tap, o). */
template <class T>
struct WeightChunks {
  static constexpr bool kAlongDepth = false;
  using Place = const T *;
  const T *data;
  int inputs, taps;
  Divider outputs;
  __device__ Place place(int64_t, int line) const { return line < inputs ? data + line : nullptr; }
  __device__ const T *find(Place from, int depth, int end) const {
    if (!from || depth >= end) return nullptr;
    int output;
    const int tap = outputs(depth, &output);
    return from + ((int64_t)output * taps + tap) * inputs;
  }
};

template <class T>
diffit_status mmaConv(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *y,
                      const Epilogue &e, const ConvPlace &at) {
  const int64_t outputs = w->shape[0], inputs = w->shape[3], depth = w->shape[1] * w->shape[2] * inputs;
  const int64_t pixels = pixelsOf(y);
  const LineChunks<T> weights = lineChunks<T>(w, outputs, depth, 0);
  const bool whole = hasWholeChunks<T>(x, inputs) && hasWholeChunks<T>(w, inputs);
  if (isPointwise(x, w, y, at.stride, at.padTop, at.padLeft))
    return multiplyMma<T>(ctx, lineChunks<T>(x, pixels, depth, 0), weights, whole, e, 1, pixels, outputs, depth);
  const WindowLineChunks<T, false> windows = {(const T *)x->data,
                                              windowsOf<T>(x, w, y, x, y, pixels, at.stride, at.padTop, at.padLeft)};
  return multiplyMma<T>(ctx, windows, weights, whole, e, 1, pixels, outputs, depth);
}

template <class T>
diffit_status mmaConvDgrad(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *w,
                           const diffit_tensor *dx, const Epilogue &e, const ConvPlace &at) {
  const int64_t outputs = w->shape[0], taps = w->shape[1] * w->shape[2], inputs = w->shape[3];
  const int64_t pixels = pixelsOf(dx), depth = taps * outputs;
  const WeightChunks<T> weights = {(const T *)w->data, (int)inputs, (int)taps, Divider(outputs)};
  const bool whole = hasWholeChunks<T>(dy, outputs) && hasWholeChunks<T>(w, inputs);
  if (isPointwise(dx, w, dy, at.stride, at.padTop, at.padLeft))
    return multiplyMma<T>(ctx, lineChunks<T>(dy, pixels, outputs, 0), depthChunks<T>(w, inputs, 0), whole, e, 1, pixels,
                          inputs, outputs);
  const WindowLineChunks<T, true> windows = {(const T *)dy->data,
                                             windowsOf<T>(dx, w, dy, dy, dx, pixels, at.stride, at.padTop, at.padLeft)};
  return multiplyMma<T>(ctx, windows, weights, whole, e, 1, pixels, inputs, depth);
}

template <class T>
diffit_status mmaConvWgrad(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy,
                           const diffit_tensor *dw, const Epilogue &e, const ConvPlace &at) {
  const int64_t outputs = dw->shape[0], inputs = dw->shape[3], lines = dw->shape[1] * dw->shape[2] * inputs;
  const int64_t pixels = pixelsOf(dy);
  const DepthChunks<T> gradient = depthChunks<T>(dy, outputs, 0);
  const bool whole = hasWholeChunks<T>(x, inputs) && hasWholeChunks<T>(dy, outputs);
  if (isPointwise(x, dw, dy, at.stride, at.padTop, at.padLeft))
    return multiplyMma<T>(ctx, gradient, depthChunks<T>(x, lines, 0), whole, e, 1, outputs, lines, pixels);
  const WindowDepthChunks<T> windows = {(const T *)x->data,
                                        windowsOf<T>(x, dw, dy, x, dy, lines, at.stride, at.padTop, at.padLeft)};
  return multiplyMma<T>(ctx, gradient, windows, whole, e, 1, outputs, lines, pixels);
}

}  // namespace diffit

#endif
