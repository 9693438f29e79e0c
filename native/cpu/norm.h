/*
 * Layer norm over the last axis and its gradient, and what both norms share.
 *
 * Statistics take two passes over a piece that lies in the L1 cache (mean, then squared distance to it), so large means do no
 * harm. Gradients of w and b are kept per block of rows and added in order: the same for any number of threads.
 *
 * Memory traffic: x once, y once; the gradient reads x and dy once and writes dx once.
 */
#ifndef DIFFIT_CPU_NORM_H
#define DIFFIT_CPU_NORM_H

/* Sum of (x - mean)^2 over n elements. */
template <class X>
static double sumSquaredDistance(X x, int64_t n, float mean) {
  double total = 0;
  for (int64_t at = 0; at < n; at += kSumBlock) {
    const int64_t end = imin(n, at + kSumBlock);
    vf a = {}, b = {};
    int64_t i = at;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const vf u = load(x + i) - mean, v = load(x + i + kLanes) - mean;
      a += u * u;
      b += v * v;
    }
    total += hsum(a + b);
    for (; i < end; i++) {
      const float distance = element(x + i) - mean;
      total += (double)distance * distance;
    }
  }
  return total;
}

static bool isVector(const diffit_tensor *t, int64_t n) { return t->dtype == DIFFIT_F32 && numel(t) == n; }
static bool isFloats(const diffit_tensor *t, int64_t n) { return isFloat(t) && numel(t) == n; }
static float *optional(const diffit_tensor *t) { return t ? f32(t) : nullptr; }

/* Number of rows: all dimensions but the last. */
static int64_t leadingRows(const diffit_tensor *t) {
  int64_t rows = 1;
  for (int d = 0; d < t->ndim - 1; d++) rows *= t->shape[d];
  return rows;
}

template <class P>
static void layerNorm(diffit_context *ctx, P x, const float *w, const float *b, P y, float *mean, float *rstd,
                      int64_t rows, int64_t n, double eps) {
  parallelChunks(ctx, rows, imax(1, 8192 / imax(n, 1)), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const P from = x + r * n, to = y + r * n;
      const float m = (float)(sumRow(from, n) / (double)n);
      const float s = (float)(1.0 / ::sqrt(sumSquaredDistance(from, n, m) / (double)n + eps));
      if (mean) mean[r] = m;
      if (rstd) rstd[r] = s;
      eachVector(n, [=](auto get, auto put) {
        vf v = (get(from) - m) * s;
        if (w) v = v * get(w);
        if (b) v = v + get(b);
        put(to, v);
      });
    }
  });
}

static diffit_status layer_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                   const diffit_tensor *b, diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd,
                                   double eps) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(y);
  REQUIRE(x->ndim >= 1 && numel(y) == numel(x));
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(!b || isVector(b, n));
  REQUIRE(!mean || isVector(mean, rows));
  REQUIRE(!rstd || isVector(rstd, rows));
  withFloats(
      [&](auto in, auto out) {
        layerNorm(ctx, in, optional(w), optional(b), out, optional(mean), optional(rstd), rows, n, eps);
      },
      x, y);
  return DIFFIT_OK;
}

/* sums, where wanted: partial gradients [blocks][w, b][n]. */
template <class P>
static void layerNormBackward(diffit_context *ctx, P x, const float *w, const float *means, const float *rstds, P dy,
                              P dresidual, P dx, float *partials, int64_t rows, int64_t n, int64_t block) {
  parallelChunks(ctx, rows, block, [=](int64_t begin, int64_t end, int) {
    float *sumW = partials ? partials + begin / block * 2 * n : nullptr, *sumB = partials ? sumW + n : nullptr;
    if (partials) memset(sumW, 0, (size_t)(2 * n) * sizeof(float));
    for (int64_t r = begin; r < end; r++) {
      const P from = x + r * n, g = dy + r * n, to = dx + r * n;
      const float m = means[r], s = rstds[r];
      vf sum = {}, product = {};
      eachVector(n, [=, &sum, &product](auto get, auto put) {
        const vf h = (get(from) - m) * s;
        vf d = get(g);
        if (sumW) {
          put(sumW, get(sumW) + d * h);
          put(sumB, get(sumB) + d);
        }
        if (w) d = d * get(w);
        sum += d;
        product += d * h; /* 0 beyond the end, as d is */
      });
      const float meanD = hsum(sum) / (float)n, meanDH = hsum(product) / (float)n;
      eachVector(n, [=](auto get, auto put) {
        const vf h = (get(from) - m) * s;
        vf d = get(g);
        if (w) d = d * get(w);
        d = ((d - meanD) - h * meanDH) * s;
        if (dresidual) d = d + get(dresidual + r * n);
        put(to, d);
      });
    }
  });
}

static diffit_status layer_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                            const diffit_tensor *mean, const diffit_tensor *rstd,
                                            const diffit_tensor *dy, const diffit_tensor *dresidual, diffit_tensor *dx,
                                            diffit_tensor *dw, diffit_tensor *db) {
  REQUIRE_FLOAT(x);
  REQUIRE(x->ndim >= 1);
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(isVector(mean, rows));
  REQUIRE(isVector(rstd, rows));
  REQUIRE(isFloats(dy, rows * n));
  REQUIRE(!dresidual || isFloats(dresidual, rows * n));
  REQUIRE(isFloats(dx, rows * n));
  REQUIRE(!dw || isVector(dw, n));
  REQUIRE(!db || isVector(db, n));
  /* At least 64 blocks where there are rows enough, at most 256 rows each. */
  const bool wantsSums = dw || db;
  const int64_t block = wantsSums ? imin(256, imax(8, rows / 64)) : imax(1, 8192 / imax(n, 1));
  const int64_t blocks = ceilDiv(rows, block);
  float *partials = nullptr;
  if (wantsSums) {
    partials = (float *)diffit_cpu_shared(ctx, 0, (size_t)(imax(blocks, 1) * 2 * n) * sizeof(float));
    if (!partials) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "layer_norm_backward: no memory for partial sums");
  }
  withFloats(
      [&](auto in, auto grad, auto around, auto out) {
        layerNormBackward(ctx, in, optional(w), f32(mean), f32(rstd), grad, around, out, partials, rows, n, block);
      },
      x, dy, dresidual, dx);
  for (int which = 0; which < 2; which++) {
    const diffit_tensor *sums = which == 0 ? dw : db;
    if (!sums) continue;
    parallelChunks(ctx, n, 256, [=, to = f32(sums)](int64_t begin, int64_t end, int) {
      double total[256] = {0};
      for (int64_t k = 0; k < blocks; k++)
        for (int64_t j = begin; j < end; j++) total[j - begin] += partials[(2 * k + which) * n + j];
      for (int64_t j = begin; j < end; j++) to[j] = (float)total[j - begin];
    });
  }
  return DIFFIT_OK;
}

#endif
