/*
 * Images [B, H, W, C] under windows: which number of one image a pixel of the other sees through a tap (ky, kx) of the kernel. With
 * it the loaders of conv.cu and conv_mma.cuh find a number of the im2col matrix from its row and column, so the matrix is
 * never stored (Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning").
 */
#ifndef DIFFIT_CUDA_CONV_WINDOWS_CUH
#define DIFFIT_CUDA_CONV_WINDOWS_CUH

#include "gemm_epilogue.cuh"

namespace diffit {

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
template <class T>
struct Windows {
  int inHeight, inWidth, outHeight, outWidth, stride, padTop, padLeft;
  int lines;
  Divider pixelWidth, pixelHeight, channels, kernelWidth;
  const T *data;
  bool vector; /* are sixteen bytes of neighbouring channels one aligned load? */
};

/* A pixel of a batch of images, and the place in a kernel with its channel. */
struct Pixel {
  int sample, y, x;
  __device__ Pixel(int sample_, int y_, int x_) : sample(sample_), y(y_), x(x_) {}
  template <class T>
  __device__ Pixel(const Windows<T> &w, int index) {
    const int row = w.pixelWidth(index, &x);
    sample = w.pixelHeight(row, &y);
  }
};
struct Tap {
  int ky, kx, channel;
  __device__ Tap(int ky_, int kx_, int channel_) : ky(ky_), kx(kx_), channel(channel_) {}
  template <class T>
  __device__ Tap(const Windows<T> &w, int index) {
    const int tap = w.channels(index, &channel);
    ky = w.kernelWidth(tap, &kx);
  }
};

/* The number of `in` that output pixel p sees through tap t; null outside. */
template <class T>
__device__ const T *seenBy(const Windows<T> &w, const Pixel &p, const Tap &t) {
  const int y = p.y * w.stride + t.ky - w.padTop, x = p.x * w.stride + t.kx - w.padLeft;
  if (y < 0 || y >= w.inHeight || x < 0 || x >= w.inWidth) return nullptr;
  return w.data + (((int64_t)p.sample * w.inHeight + y) * w.inWidth + x) * w.channels.divisor + t.channel;
}
/* The number of `out` whose window shows input pixel p through tap t; null where there is none. */
template <class T>
__device__ const T *seeing(const Windows<T> &w, const Pixel &p, const Tap &t) {
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

/* The window over `in`, read from `image` (in or out), whose pixels are counted over `pixels` (the other). */
template <class T>
Windows<T> windowsOf(const diffit_tensor *in, const diffit_tensor *w, const diffit_tensor *out,
                     const diffit_tensor *image, const diffit_tensor *pixels, int64_t lines, int64_t stride,
                     int64_t padTop, int64_t padLeft) {
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
          (const T *)image->data,
          channels % (int64_t)(16 / sizeof(T)) == 0 && isAligned(image->data, 16)};
}

/* 1x1, unit stride, no padding: the im2col matrix is the image itself. */
inline bool isPointwise(const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *y, int64_t stride,
                        int64_t padTop, int64_t padLeft) {
  return w->shape[1] == 1 && w->shape[2] == 1 && stride == 1 && padTop == 0 && padLeft == 0 &&
         x->shape[1] == y->shape[1] && x->shape[2] == y->shape[2];
}

inline int64_t pixelsOf(const diffit_tensor *t) { return t->shape[0] * t->shape[1] * t->shape[2]; }

}  // namespace diffit

#endif
