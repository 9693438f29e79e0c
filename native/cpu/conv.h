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
 * Traffic: x (dy) is read about kh kw times from the caches, once from memory.
 */
#ifndef DIFFIT_CPU_CONV_H
#define DIFFIT_CPU_CONV_H

/* Which pixels of an image [batch, height, width, channels] the windows of an output grid cover. */
struct Windows {
  const float *image;
  int64_t height, width, channels;
  int64_t outHeight, outWidth;
  int64_t kernelHeight, kernelWidth;
  int64_t stride, padTop, padLeft;

  int64_t rowFloats() const { return width * channels; }
  int64_t runFloats() const { return kernelWidth * channels; }
};

/* The window at one output pixel: image row of its first kernel row, offset of its first number in that row. */
struct WindowCorner {
  const float *sample;
  int64_t y, offset;
  /* The image row under kernel row ky; null outside the image. */
  const float *row(const Windows &w, int64_t ky) const {
    return y + ky >= 0 && y + ky < w.height ? sample + (y + ky) * w.rowFloats() : nullptr;
  }
};

/* Output pixels in row-major order. */
struct PixelWalk {
  const Windows &w;
  int64_t item, y, x;
  PixelWalk(const Windows &windows, int64_t pixel) : w(windows) {
    x = pixel % w.outWidth;
    y = pixel / w.outWidth % w.outHeight;
    item = pixel / w.outWidth / w.outHeight;
  }
  WindowCorner corner() const {
    return {w.image + item * w.height * w.rowFloats(), y * w.stride - w.padTop,
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
static void copyClipped(float *to, const float *row, int64_t rowFloats, int64_t offset, int64_t length) {
  const int64_t begin = row ? imin(imax(-offset, 0), length) : length,
                end = imax(begin, imin(rowFloats - offset, length));
  zeroRun(to, begin);
  if (begin < end) copyRun(to + begin, row + offset + begin, end - begin);
  if (end < length) zeroRun(to + end, length - end);
}

/* im2col with output pixels as lines, k = (ky, kx, i). */
struct WindowLines {
  Windows w;
  WindowLines at(int64_t) const { return *this; }
  const float *line(int64_t pixel, float *stage) const {
    const WindowCorner corner = PixelWalk(w, pixel).corner();
    const int64_t rowFloats = w.rowFloats(), runFloats = w.runFloats();
    for (int64_t ky = 0; ky < w.kernelHeight; ky++)
      copyClipped(stage + ky * runFloats, corner.row(w, ky), rowFloats, corner.offset, runFloats);
    return stage;
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *stage) const {
    if (depth == 0) return;
    const int64_t rowFloats = w.rowFloats(), runFloats = w.runFloats();
    WindowCorner corners[kMaxLines];
    PixelWalk walk(w, line);
    for (int64_t i = 0; i < lines; i++, walk.next()) corners[i] = walk.corner();
    const float *rows[kMaxLines];
    for (int64_t k = k0; k < k0 + depth;) {
      const int64_t ky = k / runFloats, skipped = k - ky * runFloats,
                    length = imin(runFloats - skipped, k0 + depth - k);
      for (int64_t i = 0; i < lines; i++) {
        const int64_t offset = corners[i].offset + skipped;
        const float *row = corners[i].row(w, ky);
        if (row && offset >= 0 && offset + length <= rowFloats) {
          rows[i] = row + offset;
        } else {
          copyClipped(stage + i * length, row, rowFloats, offset, length);
          rows[i] = stage + i * length;
        }
      }
      transposeRows(panel + (k - k0) * width, width, rows, lines, length, width * w.stride * w.channels);
      k += length;
    }
  }
};

/* im2col with (ky, kx, i) as lines, k = output pixels. */
struct WindowDepths {
  Windows w;
  WindowDepths at(int64_t) const { return *this; }
  /* What neighbouring output pixels take from one image row (or null): runs from `offset` on, `step` apart. */
  struct Run {
    const float *row;
    int64_t rowFloats, offset, step;
  };
  DIFFIT_INLINE void copyPixels(float *to, int64_t width, const Run &run, int64_t pixels, int64_t length) {
    int64_t offset = run.offset;
    for (int64_t p = 0; p < pixels; p++, to += width, offset += run.step) {
      if (run.row && offset >= 0 && offset + length <= run.rowFloats)
        copyRun(to, run.row + offset, length);
      else
        copyClipped(to, run.row, run.rowFloats, offset, length);
    }
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *) const {
    if (depth == 0) return;
    const int64_t rowFloats = w.rowFloats(), runFloats = w.runFloats();
    for (int64_t i = 0, length; i < lines; i += length) {
      const int64_t ky = (line + i) / runFloats, skipped = line + i - ky * runFloats;
      length = imin(runFloats - skipped, lines - i);
      PixelWalk walk(w, k0);
      for (int64_t d = 0, pixels; d < depth; d += pixels, walk.next(pixels)) {
        pixels = imin(w.outWidth - walk.x, depth - d);
        const WindowCorner corner = walk.corner();
        const Run run = {corner.row(w, ky), rowFloats, corner.offset + skipped, w.stride * w.channels};
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
struct ReversedTaps {
  const float *data;
  int64_t outputs, kernelHeight, kernelWidth, inputs;
  int64_t lastY, lastX, tapWidth, taps, stride;
  ReversedTaps at(int64_t) const { return *this; }
  /* The weights of one output channel at the kernel position of a tap. */
  const float *from(int64_t output, int64_t tap) const {
    const int64_t ky = lastY - tap / tapWidth * stride, kx = lastX - tap % tapWidth * stride;
    return data + ((output * kernelHeight + ky) * kernelWidth + kx) * inputs;
  }
  const float *line(int64_t input, float *stage) const {
    for (int64_t tap = 0; tap < taps; tap++)
      for (int64_t output = 0; output < outputs; output++) stage[tap * outputs + output] = from(output, tap)[input];
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
  REQUIRE_F32(x);
  REQUIRE_F32(w);
  REQUIRE_F32(y);
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

static Windows windowsOf(const diffit_tensor *image, const diffit_tensor *w, const diffit_tensor *out, int64_t stride,
                         int64_t padTop, int64_t padLeft) {
  return {f32(image),  image->shape[1], image->shape[2], image->shape[3], out->shape[1], out->shape[2],
          w->shape[1], w->shape[2],     stride,          padTop,          padLeft};
}

static Epilogue writeTo(float *y, int64_t n) {
  Epilogue e = {};
  e.y = y;
  e.n = n;
  e.activation = DIFFIT_NO_ACTIVATION;
  return e;
}

/* Which form of Winograd's the convolution takes: 4, 2 or 0 (winograd.h). */
static int fewerProducts(const diffit_tensor *w, const diffit_tensor *y, int64_t stride) {
  if (w->shape[1] != 3 || w->shape[2] != 3 || stride != 1) return 0;
  return winogradSide(y->shape[0], y->shape[1], y->shape[2], w->shape[3], w->shape[0]);
}
static TileImage tilesOf(const diffit_tensor *image) {
  return {f32(image), image->shape[1], image->shape[2], image->shape[3], nullptr};
}

template <class A, class B>
static diffit_status multiplyLines(diffit_context *ctx, const A &a, const B &b, const Epilogue &e, int64_t m, int64_t n,
                                   int64_t k) {
  return isThin(m, n, k) ? multiplyThin(ctx, a, b, e, 1, m, n, k) : multiply(ctx, a, b, e, 1, m, n, k, true);
}

static diffit_status conv2d_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                               const diffit_tensor *bias, const diffit_tensor *residual, diffit_tensor *y,
                               int64_t stride, int64_t padTop, int64_t padLeft) {
  const diffit_status status = checkConv(ctx, x, w, y, stride, padTop, padLeft);
  if (status != DIFFIT_OK) return status;
  const int64_t outputs = w->shape[0], depth = w->shape[1] * w->shape[2] * w->shape[3];
  const int64_t pixels = y->shape[0] * y->shape[1] * y->shape[2];
  REQUIRE(!bias || (bias->dtype == DIFFIT_F32 && numel(bias) == outputs));
  REQUIRE(!residual || (residual->dtype == DIFFIT_F32 && numel(residual) == numel(y)));
  if (const int side = fewerProducts(w, y, stride)) {
    const Taps taps = {f32(w), w->shape[3], outputs, false};
    const auto run = side == 4 ? winogradConv<4> : winogradConv<2>;
    return run(ctx, tilesOf(x), taps, padTop, padLeft, bias ? f32(bias) : nullptr, residual ? f32(residual) : nullptr,
               y);
  }
  Epilogue e = writeTo(f32(y), outputs);
  e.bias = bias ? f32(bias) : nullptr;
  e.residual = residual ? f32(residual) : nullptr;
  const LineMatrix weights = {f32(w), depth, 0};
  if (isPointwise(x, w, y, stride, padTop, padLeft))
    return multiplyLines(ctx, LineMatrix{f32(x), depth, 0}, weights, e, pixels, outputs, depth);
  const WindowLines windows = {windowsOf(x, w, y, stride, padTop, padLeft)};
  return multiplyLines(ctx, windows, weights, e, pixels, outputs, depth);
}

/* The input positions first, first + stride, ... < size, and the taps (kernel positions) that reach them. */
struct Residue {
  int64_t count; /* positions */
  int64_t taps, lastTap; /* lastTap, lastTap - stride, ... >= 0 */
  int64_t pad; /* of the unit-stride window over dy at the first position */
  Residue(int64_t first, int64_t size, int64_t pad0, int64_t kernel, int64_t stride) {
    const int64_t tap = ((first + pad0) % stride + stride) % stride;
    count = ceilDiv(size - first, stride);
    taps = tap < kernel ? ceilDiv(kernel - tap, stride) : 0;
    lastTap = tap + (taps - 1) * stride;
    pad = taps - 1 - (first + pad0 - tap) / stride;
  }
};

static diffit_status conv2d_dgrad_op(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *w,
                                     diffit_tensor *dx, int64_t stride, int64_t padTop, int64_t padLeft) {
  diffit_status status = checkConv(ctx, dx, w, dy, stride, padTop, padLeft);
  if (status != DIFFIT_OK) return status;
  const int64_t batch = dx->shape[0], height = dx->shape[1], width = dx->shape[2], inputs = dx->shape[3];
  const int64_t outputs = w->shape[0], kh = w->shape[1], kw = w->shape[2];
  if (isPointwise(dx, w, dy, stride, padTop, padLeft))
    return multiply(ctx, LineMatrix{f32(dy), outputs, 0}, DepthMatrix{f32(w), inputs, 0}, writeTo(f32(dx), inputs), 1,
                    batch * height * width, inputs, outputs, true);
  if (const int side = fewerProducts(w, dx, stride)) {
    const Taps taps = {f32(w), outputs, inputs, true};
    const auto run = side == 4 ? winogradConv<4> : winogradConv<2>;
    return run(ctx, tilesOf(dy), taps, 2 - padTop, 2 - padLeft, nullptr, nullptr, dx);
  }
  for (int64_t firstY = 0; firstY < imin(stride, height); firstY++) {
    for (int64_t firstX = 0; firstX < imin(stride, width) && status == DIFFIT_OK; firstX++) {
      const Residue v(firstY, height, padTop, kh, stride), u(firstX, width, padLeft, kw, stride);
      const Windows windows = {f32(dy), dy->shape[1], dy->shape[2], outputs, v.count, u.count, v.taps, u.taps,
                               1,       v.pad,        u.pad};
      const ReversedTaps taps = {f32(w), outputs,         kh,    kw, inputs, v.lastTap, u.lastTap,
                                 u.taps, v.taps * u.taps, stride};
      Epilogue e = writeTo(f32(dx), inputs);
      if (stride > 1)
        e.grid = {u.count,
                  v.count,
                  (firstY * width + firstX) * inputs,
                  stride * inputs,
                  stride * width * inputs,
                  height * width * inputs};
      const int64_t pixels = batch * v.count * u.count, depth = taps.taps * outputs;
      /* The taps of one input lie far apart, so only a few inputs are gathered line by line. */
      status = inputs <= kThinLines ? multiplyLines(ctx, WindowLines{windows}, taps, e, pixels, inputs, depth)
                                    : multiply(ctx, WindowLines{windows}, taps, e, 1, pixels, inputs, depth, true);
    }
  }
  return status;
}

static diffit_status conv2d_wgrad_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy,
                                     diffit_tensor *dw, int64_t stride, int64_t padTop, int64_t padLeft) {
  const diffit_status status = checkConv(ctx, x, dw, dy, stride, padTop, padLeft);
  if (status != DIFFIT_OK) return status;
  const int64_t outputs = dw->shape[0], lines = dw->shape[1] * dw->shape[2] * dw->shape[3];
  const int64_t pixels = dy->shape[0] * dy->shape[1] * dy->shape[2];
  if (const int side = fewerProducts(dw, dy, stride)) {
    const auto run = side == 4 ? winogradGrad<4> : winogradGrad<2>;
    return run(ctx, tilesOf(x), tilesOf(dy), dy->shape[0], f32(dw), padTop, padLeft);
  }
  const DepthMatrix gradient = {f32(dy), outputs, 0};
  const Epilogue e = writeTo(f32(dw), lines);
  if (isPointwise(x, dw, dy, stride, padTop, padLeft))
    return multiply(ctx, gradient, DepthMatrix{f32(x), lines, 0}, e, 1, outputs, lines, pixels, true);
  return multiply(ctx, gradient, WindowDepths{windowsOf(x, dw, dy, stride, padTop, padLeft)}, e, 1, outputs, lines,
                  pixels, true);
}

#endif
