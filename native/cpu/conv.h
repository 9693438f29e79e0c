/*
 * Convolutions on NHWC images as matrix products over implicit im2col matrices: conv2d, conv2d_dgrad, conv2d_wgrad.
 *
 * x [B, H, W, I], w [O, kh, kw, I], y [B, OH, OW, O]. The im2col matrix has a row per output pixel and a column per
 * (ky, kx, i); its kernel rows (ky) are contiguous runs of kw I numbers of x, so packing copies runs and fills in zeros
 * only at the border, and the matrix is never stored (Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning").
 *
 *   conv2d  y [B OH OW, O]       = im2col(x) w^T
 *   dgrad   dx[pixels, I]        = im2col(dy) w', one product per residue of the pixel position modulo the stride: those
 *                                  pixels meet the same taps, and dy at unit stride, with the taps in reverse
 *   wgrad   dw [O, kh kw I]      = dy^T im2col(x)
 *
 * Images and weights are f32 or bf16, which is widened as it is packed: sums are f32, and results are rounded once.
 *
 * Traffic: x (dy) is read about kh kw times from the caches, once from memory.
 */
#ifndef DIFFIT_CPU_CONV_H
#define DIFFIT_CPU_CONV_H

/* Which pixels of an image [batch, height, width, channels], of f32 or bf16, the windows of an output grid cover. */
template <class T>
struct Windows {
  const T *image;
  int64_t height, width, channels;
  int64_t outHeight, outWidth;
  int64_t kernelHeight, kernelWidth;
  int64_t stride, padTop, padLeft;

  int64_t rowNumbers() const { return width * channels; }
  int64_t runNumbers() const { return kernelWidth * channels; }
};

/* The window at one output pixel: image row of its first kernel row, offset of its first number in that row. */
template <class T>
struct WindowCorner {
  const T *sample;
  int64_t y, offset;
  /* The image row under kernel row ky; null outside the image. */
  const T *row(const Windows<T> &w, int64_t ky) const {
    return y + ky >= 0 && y + ky < w.height ? sample + (y + ky) * w.rowNumbers() : nullptr;
  }
};

/* Output pixels in row-major order. */
template <class T>
struct PixelWalk {
  const Windows<T> &w;
  int64_t item, y, x;
  PixelWalk(const Windows<T> &windows, int64_t pixel)
      : w(windows),
        item(pixel / w.outWidth / w.outHeight),
        y(pixel / w.outWidth % w.outHeight),
        x(pixel % w.outWidth) {}
  WindowCorner<T> corner() const {
    return {w.image + item * w.height * w.rowNumbers(), y * w.stride - w.padTop,
            (x * w.stride - w.padLeft) * w.channels};
  }
  void next(int64_t pixels = 1) { /* at most to the end of the row */
    x += pixels;
    if (x < w.outWidth) return;
    x = 0;
    if (++y < w.outHeight) return;
    y = 0;
    item++;
  }
};

/* length numbers of an image row from `offset` on, which may lie outside the row: 0 there. `row` null: all 0. */
template <class T>
static void copyClipped(float *to, const T *row, int64_t rowNumbers, int64_t offset, int64_t length) {
  const int64_t begin = row ? imin(imax(-offset, 0), length) : length,
                end = imax(begin, imin(rowNumbers - offset, length));
  zeroRun(to, begin);
  if (begin < end) copyRun(to + begin, row + offset + begin, end - begin);
  if (end < length) zeroRun(to + end, length - end);
}

/* im2col with output pixels as lines, k = (ky, kx, i). */
template <class T>
struct WindowLines {
  Windows<T> w;
  WindowLines at(int64_t) const { return *this; }
  const float *line(int64_t pixel, float *stage) const {
    const WindowCorner<T> corner = PixelWalk<T>(w, pixel).corner();
    const int64_t rowNumbers = w.rowNumbers(), runNumbers = w.runNumbers();
    for (int64_t ky = 0; ky < w.kernelHeight; ky++)
      copyClipped(stage + ky * runNumbers, corner.row(w, ky), rowNumbers, corner.offset, runNumbers);
    return stage;
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *stage) const {
    if (depth == 0) return;
    const int64_t rowNumbers = w.rowNumbers(), runNumbers = w.runNumbers();
    WindowCorner<T> corners[kMaxLines];
    PixelWalk<T> walk(w, line);
    for (int64_t i = 0; i < lines; i++, walk.next()) corners[i] = walk.corner();
    const float *rows[kMaxLines];
    for (int64_t k = k0; k < k0 + depth;) {
      const int64_t ky = k / runNumbers, skipped = k - ky * runNumbers,
                    length = imin(runNumbers - skipped, k0 + depth - k);
      for (int64_t i = 0; i < lines; i++)
        rows[i] = run(corners[i].row(w, ky), rowNumbers, corners[i].offset + skipped, length, stage + i * length);
      transposeRows(panel + (k - k0) * width, width, rows, lines, length, width * w.stride * w.channels);
      k += length;
    }
  }
  /* length numbers of an image row as f32: where they lie, or copied to `stage`. */
  static const float *run(const T *row, int64_t rowNumbers, int64_t offset, int64_t length, float *stage) {
    if constexpr (sizeof(T) == sizeof(float))
      if (row && offset >= 0 && offset + length <= rowNumbers) return row + offset;
    copyClipped(stage, row, rowNumbers, offset, length);
    return stage;
  }
};

/* im2col with (ky, kx, i) as lines, k = output pixels. */
template <class T>
struct WindowDepths {
  Windows<T> w;
  WindowDepths at(int64_t) const { return *this; }
  /* What neighbouring output pixels take from one image row (or null): runs from `offset` on, `step` apart. */
  struct Run {
    const T *row;
    int64_t rowNumbers, offset, step;
  };
  DIFFIT_INLINE void copyPixels(float *to, int64_t width, const Run &run, int64_t pixels, int64_t length) {
    int64_t offset = run.offset;
    for (int64_t p = 0; p < pixels; p++, to += width, offset += run.step) {
      if (run.row && offset >= 0 && offset + length <= run.rowNumbers)
        copyRun(to, run.row + offset, length);
      else
        copyClipped(to, run.row, run.rowNumbers, offset, length);
    }
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *) const {
    if (depth == 0) return;
    const int64_t rowNumbers = w.rowNumbers(), runNumbers = w.runNumbers();
    for (int64_t i = 0, length; i < lines; i += length) {
      const int64_t ky = (line + i) / runNumbers, skipped = line + i - ky * runNumbers;
      length = imin(runNumbers - skipped, lines - i);
      PixelWalk<T> walk(w, k0);
      for (int64_t d = 0, pixels; d < depth; d += pixels, walk.next(pixels)) {
        pixels = imin(w.outWidth - walk.x, depth - d);
        const WindowCorner<T> corner = walk.corner();
        const Run run = {corner.row(w, ky), rowNumbers, corner.offset + skipped, w.stride * w.channels};
        float *to = panel + d * width + i;
        if (length == kMaxCols)
          copyPixels(to, width, run, pixels, kMaxCols);
        else
          copyPixels(to, width, run, pixels, length);
      }
    }
    if (lines < width)
      for (int64_t d = 0; d < depth; d++) zeroRun(panel + d * width + lines, width - lines);
  }
};

/* Every stride-th tap of the weights [outputs, kh, kw, inputs], in reverse: lines = inputs, k = (tap row, tap column,
   output), where tap (0, 0) is kernel position (lastY, lastX). */
template <class T>
struct ReversedTaps {
  const T *data;
  int64_t outputs, kernelHeight, kernelWidth, inputs;
  int64_t lastY, lastX, tapWidth, taps, stride;
  ReversedTaps at(int64_t) const { return *this; }
  /* The weights of one output channel at the kernel position of a tap. */
  const T *from(int64_t output, int64_t tap) const {
    const int64_t ky = lastY - tap / tapWidth * stride, kx = lastX - tap % tapWidth * stride;
    return data + ((output * kernelHeight + ky) * kernelWidth + kx) * inputs;
  }
  const float *line(int64_t input, float *stage) const {
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t output = 0; output < outputs; output++)
        stage[tap * outputs + output] = widen(from(output, tap)[input]);
    return stage;
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *) const {
    for (int64_t d = 0; d < depth; d++) {
      copyRun(panel + d * width, from((k0 + d) % outputs, (k0 + d) / outputs) + line, lines);
      zeroRun(panel + d * width + lines, width - lines);
    }
  }
};

/* Images [B, H, W, C] and weights [O, kh, kw, I] that belong together. */
static diffit_status checkConv(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                               const diffit_tensor *y, int64_t stride, int64_t padTop, int64_t padLeft) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(w);
  REQUIRE_FLOAT(y);
  REQUIRE(x->ndim == 4 && w->ndim == 4 && y->ndim == 4);
  REQUIRE(x->shape[0] == y->shape[0]);
  REQUIRE(x->shape[3] == w->shape[3]);
  REQUIRE(y->shape[3] == w->shape[0]);
  const int64_t limit = (int64_t)1 << 24;
  REQUIRE(stride >= 1 && stride < limit && padTop > -limit && padTop < limit && padLeft > -limit && padLeft < limit);
  return DIFFIT_OK;
}

/* 1x1, unit stride, no padding: the im2col matrix is the image itself. */
static bool isPointwise(const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *y, int64_t stride,
                        int64_t padTop, int64_t padLeft) {
  return w->shape[1] == 1 && w->shape[2] == 1 && stride == 1 && padTop == 0 && padLeft == 0 &&
         x->shape[1] == y->shape[1] && x->shape[2] == y->shape[2];
}

template <class T>
static const T *numbersOf(const diffit_tensor *t) {
  return (const T *)t->data;
}

template <class T>
static Windows<T> windowsOf(const diffit_tensor *image, const diffit_tensor *w, const diffit_tensor *out,
                            int64_t stride, int64_t padTop, int64_t padLeft) {
  return {numbersOf<T>(image), image->shape[1], image->shape[2], image->shape[3], out->shape[1], out->shape[2],
          w->shape[1],         w->shape[2],     stride,          padTop,          padLeft};
}

static Epilogue writeTo(const diffit_tensor *y, int64_t n) {
  Epilogue e = {};
  e.y = floatsOf(y);
  e.n = n;
  e.activation = DIFFIT_NO_ACTIVATION;
  return e;
}

/* Which form of Winograd's the convolution takes: 4, 2 or 0 (winograd.h). */
static int fewerProducts(const diffit_tensor *w, const diffit_tensor *y, int64_t stride) {
  if (w->shape[1] != 3 || w->shape[2] != 3 || stride != 1) return 0;
  return winogradSide(y->shape[0], y->shape[1], y->shape[2], w->shape[3], w->shape[0]);
}
template <class T>
static TileImage<T> tilesOf(const diffit_tensor *image) {
  return {numbersOf<T>(image), image->shape[1], image->shape[2], image->shape[3], nullptr};
}

/* The product of two plain matrices, as the operation gemm makes it. */
static diffit_status multiplyPlain(diffit_context *ctx, const float *a, bool transA, const float *b, bool transB,
                                   const Epilogue &e, int64_t m, int64_t n, int64_t k) {
  return multiplyMatrices<LineMatrix, DepthMatrix, LineMatrix, DepthMatrix>(ctx, a, 0, transA, b, 0, transB, e, 1, m, n,
                                                                            k);
}
static diffit_status multiplyPlain(diffit_context *ctx, const Bf16 *a, bool transA, const Bf16 *b, bool transB,
                                   const Epilogue &e, int64_t m, int64_t n, int64_t k) {
  return multiplyBf16(ctx, a, 0, transA, b, 0, transB, e, 1, m, n, k);
}

/* The lines of a T in memory. */
template <class T>
struct LinesOf;
template <>
struct LinesOf<float> {
  typedef LineMatrix Matrix;
};
template <>
struct LinesOf<Bf16> {
  typedef Bf16LineMatrix Matrix;
};

template <class A, class B>
static diffit_status multiplyLines(diffit_context *ctx, const A &a, const B &b, const Epilogue &e, int64_t m, int64_t n,
                                   int64_t k) {
  return isThin(m, n, k) ? multiplyThin(ctx, a, b, e, 1, m, n, k) : multiply(ctx, a, b, e, 1, m, n, k, true);
}

template <class T>
static diffit_status convolve(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                              const diffit_tensor *bias, const diffit_tensor *residual, const diffit_tensor *y,
                              int64_t stride, int64_t padTop, int64_t padLeft) {
  const int64_t outputs = w->shape[0], depth = w->shape[1] * w->shape[2] * w->shape[3];
  const int64_t pixels = y->shape[0] * y->shape[1] * y->shape[2];
  if (const int side = fewerProducts(w, y, stride)) {
    const Taps<T> taps = {numbersOf<T>(w), w->shape[3], outputs, false};
    const auto run = side == 4 ? winogradConv<4, T> : winogradConv<2, T>;
    return run(ctx, tilesOf<T>(x), taps, padTop, padLeft, bias ? f32(bias) : nullptr, floatsOf(residual), y);
  }
  Epilogue e = writeTo(y, outputs);
  e.bias = bias ? f32(bias) : nullptr;
  e.residual = floatsOf(residual);
  if (isPointwise(x, w, y, stride, padTop, padLeft))
    return multiplyPlain(ctx, numbersOf<T>(x), false, numbersOf<T>(w), true, e, pixels, outputs, depth);
  const WindowLines<T> windows = {windowsOf<T>(x, w, y, stride, padTop, padLeft)};
  const typename LinesOf<T>::Matrix weights = {numbersOf<T>(w), depth, 0};
  return multiplyLines(ctx, windows, weights, e, pixels, outputs, depth);
}

static diffit_status conv2d_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                               const diffit_tensor *bias, const diffit_tensor *residual, diffit_tensor *y,
                               int64_t stride, int64_t padTop, int64_t padLeft) {
  const diffit_status status = checkConv(ctx, x, w, y, stride, padTop, padLeft);
  if (status != DIFFIT_OK) return status;
  REQUIRE(x->dtype == w->dtype);
  REQUIRE(!bias || (bias->dtype == DIFFIT_F32 && numel(bias) == w->shape[0]));
  REQUIRE(!residual || (isFloat(residual) && numel(residual) == numel(y)));
  const auto run = x->dtype == DIFFIT_BF16 ? convolve<Bf16> : convolve<float>;
  return run(ctx, x, w, bias, residual, y, stride, padTop, padLeft);
}

/* The input positions first, first + stride, ... < size, and the taps (kernel positions) that reach them. */
struct Residue {
  int64_t count; /* positions */
  int64_t taps, lastTap; /* lastTap, lastTap - stride, ... >= 0 */
  int64_t pad; /* of the unit-stride window over dy at the first position */
  Residue(int64_t first, int64_t size, int64_t pad0, int64_t kernel, int64_t stride)
      : count(ceilDiv(size - first, stride)) {
    const int64_t tap = ((first + pad0) % stride + stride) % stride;
    taps = tap < kernel ? ceilDiv(kernel - tap, stride) : 0;
    lastTap = tap + (taps - 1) * stride;
    pad = taps - 1 - (first + pad0 - tap) / stride;
  }
};

template <class T>
static diffit_status convolveBack(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *w,
                                  const diffit_tensor *dx, int64_t stride, int64_t padTop, int64_t padLeft) {
  const int64_t batch = dx->shape[0], height = dx->shape[1], width = dx->shape[2], inputs = dx->shape[3];
  const int64_t outputs = w->shape[0], kh = w->shape[1], kw = w->shape[2];
  const T *gradient = numbersOf<T>(dy), *weights = numbersOf<T>(w);
  if (isPointwise(dx, w, dy, stride, padTop, padLeft))
    return multiplyPlain(ctx, gradient, false, weights, false, writeTo(dx, inputs), batch * height * width, inputs,
                         outputs);
  if (const int side = fewerProducts(w, dx, stride)) {
    const Taps<T> taps = {weights, outputs, inputs, true};
    const auto run = side == 4 ? winogradConv<4, T> : winogradConv<2, T>;
    return run(ctx, tilesOf<T>(dy), taps, 2 - padTop, 2 - padLeft, nullptr, Floats(), dx);
  }
  diffit_status status = DIFFIT_OK;
  for (int64_t firstY = 0; firstY < imin(stride, height); firstY++) {
    for (int64_t firstX = 0; firstX < imin(stride, width) && status == DIFFIT_OK; firstX++) {
      const Residue v(firstY, height, padTop, kh, stride), u(firstX, width, padLeft, kw, stride);
      const WindowLines<T> windows = {
          {gradient, dy->shape[1], dy->shape[2], outputs, v.count, u.count, v.taps, u.taps, 1, v.pad, u.pad}};
      const ReversedTaps<T> taps = {weights, outputs,         kh,    kw, inputs, v.lastTap, u.lastTap,
                                    u.taps,  v.taps * u.taps, stride};
      Epilogue e = writeTo(dx, inputs);
      if (stride > 1)
        e.grid = {u.count,
                  v.count,
                  (firstY * width + firstX) * inputs,
                  stride * inputs,
                  stride * width * inputs,
                  height * width * inputs};
      const int64_t pixels = batch * v.count * u.count, depth = taps.taps * outputs;
      /* The taps of one input lie far apart, so only a few inputs are gathered line by line. */
      status = inputs <= kThinLines ? multiplyLines(ctx, windows, taps, e, pixels, inputs, depth)
                                    : multiply(ctx, windows, taps, e, 1, pixels, inputs, depth, true);
    }
  }
  return status;
}

static diffit_status conv2d_dgrad_op(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *w,
                                     diffit_tensor *dx, int64_t stride, int64_t padTop, int64_t padLeft) {
  const diffit_status status = checkConv(ctx, dx, w, dy, stride, padTop, padLeft);
  if (status != DIFFIT_OK) return status;
  REQUIRE(dy->dtype == w->dtype);
  const auto run = dy->dtype == DIFFIT_BF16 ? convolveBack<Bf16> : convolveBack<float>;
  return run(ctx, dy, w, dx, stride, padTop, padLeft);
}

template <class T>
static diffit_status weightGradient(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy,
                                    const diffit_tensor *dw, int64_t stride, int64_t padTop, int64_t padLeft) {
  const int64_t outputs = dw->shape[0], lines = dw->shape[1] * dw->shape[2] * dw->shape[3];
  const int64_t pixels = dy->shape[0] * dy->shape[1] * dy->shape[2];
  if (const int side = fewerProducts(dw, dy, stride)) {
    const auto run = side == 4 ? winogradGrad<4, T> : winogradGrad<2, T>;
    return run(ctx, tilesOf<T>(x), tilesOf<T>(dy), dy->shape[0], floatsOf(dw), padTop, padLeft);
  }
  const T *gradient = numbersOf<T>(dy);
  const Epilogue e = writeTo(dw, lines);
  if (isPointwise(x, dw, dy, stride, padTop, padLeft))
    return multiplyPlain(ctx, gradient, true, numbersOf<T>(x), false, e, outputs, lines, pixels);
  const WindowDepths<T> windows = {windowsOf<T>(x, dw, dy, stride, padTop, padLeft)};
  return multiply(ctx, DepthMatrixOf<T>{gradient, outputs, 0}, windows, e, 1, outputs, lines, pixels, true);
}

static diffit_status conv2d_wgrad_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy,
                                     diffit_tensor *dw, int64_t stride, int64_t padTop, int64_t padLeft) {
  const diffit_status status = checkConv(ctx, x, dw, dy, stride, padTop, padLeft);
  if (status != DIFFIT_OK) return status;
  REQUIRE(x->dtype == dy->dtype);
  const auto run = x->dtype == DIFFIT_BF16 ? weightGradient<Bf16> : weightGradient<float>;
  return run(ctx, x, dy, dw, stride, padTop, padLeft);
}

#endif
