/*
 * Reductions of any float type to f32: sum, mean, maximum and argmax over one dimension; softmax and cross entropy of f32 with
 * their gradients.
 *
 * x is seen as [outer, n, inner]. inner = 1: a warp per row, or for long rows a warp per piece of kPiece elements, pieces joined in
 * order in f64. inner > 1: neighbouring threads take neighbouring columns, up to eight each, pieces of n likewise. Softmax and cross
 * entropy: a warp per row of n; the second reading comes from the caches. Memory traffic: x is read once.
 */
#include "floats.cuh"

namespace diffit {
namespace {

/* Elements of one partial sum; columns have more threads to share, so their pieces are shorter. */
constexpr int64_t kPiece = 4096, kColumnPiece = 128;

/* The larger one, NaN if there is one. */
__device__ inline float maxOrNan(float a, float b) { return b > a || b != b ? b : a; }

/* totals = sums (or maxima) of totals and kWidth numbers. */
template <int kWidth>
__device__ __forceinline__ void gather(const float (&v)[kWidth], bool maximum, float (&totals)[kWidth]) {
#pragma unroll
  for (int e = 0; e < kWidth; e++) totals[e] = maximum ? maxOrNan(totals[e], v[e]) : totals[e] + v[e];
}
template <int kWidth>
__device__ __forceinline__ void start(bool maximum, float (&totals)[kWidth]) {
#pragma unroll
  for (int e = 0; e < kWidth; e++) totals[e] = maximum ? -INFINITY : 0.0f;
}

/* y[o, j] = scale x sum over k of partials[o, k, j], or their maximum. */
diffit_status joinPieces(diffit_context *ctx, const float *partials, float *y, int64_t outer, int64_t pieces,
                         int64_t inner, bool maximum, double scale) {
  return forEach(ctx, outer * inner, [=] __device__(int64_t i) {
    const int64_t o = i / inner;
    const float *from = partials + o * pieces * inner + (i - o * inner);
    if (maximum) {
      float top = -INFINITY;
      for (int64_t k = 0; k < pieces; k++) top = maxOrNan(top, from[k * inner]);
      y[i] = top;
      return;
    }
    double total = 0;
    for (int64_t k = 0; k < pieces; k++) total += from[k * inner];
    y[i] = (float)(total * scale);
  });
}

/* [outer, n] -> partials [outer, pieces]. */
template <int kWidth>
diffit_status reduceRows(diffit_context *ctx, const Floats &x, float *partials, int64_t outer, int64_t n,
                         int64_t pieces, bool maximum) {
  return eachRow(ctx, outer * pieces, [=] __device__(int64_t task, int lane) {
    const int64_t o = task / pieces, begin = task % pieces * kPiece, end = imin(n, begin + kPiece);
    float v[kWidth], totals[kWidth];
    start(maximum, totals);
    for (int64_t i = begin + lane * kWidth; i < end; i += 32 * kWidth) {
      load(x, o * n + i, v);
      gather(v, maximum, totals);
    }
    float total = totals[0];
#pragma unroll
    for (int e = 1; e < kWidth; e++) total = maximum ? maxOrNan(total, totals[e]) : total + totals[e];
    total = maximum ? warpMax(total) : warpSum(total);
    if (lane == 0) partials[task] = total;
  });
}

/* [outer, n, inner] -> partials [outer, pieces, inner]. */
template <int kWidth>
diffit_status reduceColumns(diffit_context *ctx, const Floats &x, float *partials, int64_t outer, int64_t n,
                            int64_t inner, int64_t pieces, bool maximum) {
  const int64_t groups = inner / kWidth;
  return forEach(ctx, outer * pieces * groups, [=] __device__(int64_t i) {
    const int64_t task = i / groups, o = task / pieces, begin = task % pieces * kColumnPiece;
    const int64_t column = (i - task * groups) * kWidth, end = imin(n, begin + kColumnPiece);
    float v[kWidth], totals[kWidth];
    start(maximum, totals);
    for (int64_t k = begin; k < end; k++) {
      load(x, (o * n + k) * inner + column, v);
      gather(v, maximum, totals);
    }
#pragma unroll
    for (int e = 0; e < kWidth; e++) partials[task * inner + column + e] = totals[e];
  });
}

/* First index of the largest element; a NaN counts as larger than all numbers. A thread per result. */
diffit_status argmax(diffit_context *ctx, const Floats &x, int64_t *y, int64_t outer, int64_t n, int64_t inner) {
  return forEach(ctx, outer * inner, [=] __device__(int64_t task) {
    const int64_t first = task / inner * n * inner + task % inner;
    float top = loadOne(x, first);
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) {
      const float v = loadOne(x, first + i * inner);
      if (!(top == top && (v > top || v != v))) continue;
      best = i;
      top = v;
    }
    y[task] = best;
  });
}

/* ---- rows of a softmax, by a warp ---------------------------------------------------------------------------- */

__device__ inline float rowMax(const float *x, int64_t n, int lane) {
  float top = -INFINITY;
  for (int64_t i = lane; i < n; i += 32) top = maxOrNan(top, x[i]);
  return warpMax(top);
}

__device__ inline double rowExpSum(const float *x, int64_t n, float top, int lane) {
  double sum = 0;
  for (int64_t i = lane; i < n; i += 32) sum += expf(x[i] - top);
  return warpSum(sum);
}

}  // namespace

diffit_status reduce_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, int64_t kind, int64_t outer,
                        int64_t n, int64_t inner) {
  REQUIRE_FLOAT(x);
  REQUIRE(outer >= 0 && n >= 0 && inner >= 0);
  int64_t results, elements;
  REQUIRE(!__builtin_mul_overflow(outer, inner, &results) && numel(y) == results);
  REQUIRE(!__builtin_mul_overflow(results, n, &elements) && numel(x) == elements);
  REQUIRE(kind >= DIFFIT_SUM && kind <= DIFFIT_ARGMAX);
  REQUIRE(y->dtype == (kind == DIFFIT_ARGMAX ? DIFFIT_I64 : DIFFIT_F32));
  if (results == 0) return DIFFIT_OK;
  if (n == 0) {
    REQUIRE(kind == DIFFIT_SUM); /* only the empty sum is defined */
    return check(ctx, cudaMemsetAsync(y->data, 0, (size_t)results * sizeof(float), ctx->stream), "reduce");
  }
  if (kind == DIFFIT_ARGMAX) return argmax(ctx, floats(x), (int64_t *)y->data, outer, n, inner);
  const bool maximum = kind == DIFFIT_MAX;
  const double scale = kind == DIFFIT_MEAN ? 1.0 / (double)n : 1.0;
  const int64_t pieces = ceilDiv(n, inner > 1 ? kColumnPiece : kPiece);
  float *partials = (float *)scratch(ctx, 0, (size_t)(results * pieces) * sizeof(float));
  if (!partials) return DIFFIT_OUT_OF_MEMORY;
  const Floats in = floats(x);
  TRY(withWidth(widthOf({in}, inner > 1 ? inner : n), [&](auto w) {
    constexpr int kWidth = decltype(w)::value;
    return inner > 1 ? reduceColumns<kWidth>(ctx, in, partials, outer, n, inner, pieces, maximum)
                     : reduceRows<kWidth>(ctx, in, partials, outer, n, pieces, maximum);
  }));
  return joinPieces(ctx, partials, f32(y), outer, pieces, inner, maximum, scale);
}

/* ---- softmax and cross entropy ------------------------------------------------------------------------------- */

diffit_status softmax_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(numel(x) == numel(y));
  if (numel(x) == 0) return DIFFIT_OK;
  const int64_t n = lastDim(x);
  const float *in = f32(x);
  float *out = f32(y);
  return eachRow(ctx, numel(x) / n, [=] __device__(int64_t r, int lane) {
    const float *row = in + r * n;
    const float top = rowMax(row, n, lane), scale = (float)(1.0 / rowExpSum(row, n, top, lane));
    for (int64_t i = lane; i < n; i += 32) out[r * n + i] = expf(row[i] - top) * scale;
  });
}

diffit_status softmax_backward_op(diffit_context *ctx, const diffit_tensor *y, const diffit_tensor *dy,
                                  diffit_tensor *dx) {
  REQUIRE_F32(y);
  REQUIRE_F32(dy);
  REQUIRE_F32(dx);
  REQUIRE(numel(y) == numel(dy) && numel(y) == numel(dx));
  if (numel(y) == 0) return DIFFIT_OK;
  const int64_t n = lastDim(y);
  const float *py = f32(y), *pdy = f32(dy);
  float *out = f32(dx);
  return eachRow(ctx, numel(y) / n, [=] __device__(int64_t r, int lane) {
    const float *p = py + r * n, *g = pdy + r * n;
    float dot = 0;
    for (int64_t i = lane; i < n; i += 32) dot += p[i] * g[i];
    dot = warpSum(dot);
    for (int64_t i = lane; i < n; i += 32) out[r * n + i] = p[i] * (g[i] - dot);
  });
}

diffit_status cross_entropy_op(diffit_context *ctx, const diffit_tensor *logits, const diffit_tensor *labels,
                               diffit_tensor *loss) {
  REQUIRE_F32(logits);
  REQUIRE(labels->dtype == DIFFIT_I64);
  REQUIRE_F32(loss);
  REQUIRE(logits->ndim >= 1);
  const int64_t n = lastDim(logits), rows = numel(labels);
  REQUIRE(numel(logits) == rows * n && numel(loss) == rows);
  const float *in = f32(logits);
  const int64_t *label = (const int64_t *)labels->data;
  float *out = f32(loss);
  const IndexReport report(ctx, "cross_entropy");
  return eachRow(ctx, rows, [=] __device__(int64_t r, int lane) {
    const float *row = in + r * n, top = rowMax(row, n, lane);
    const double sum = rowExpSum(row, n, top, lane);
    if (lane != 0) return;
    out[r] = isIndex(report, label, r, n) ? (float)log(sum) + (top - row[label[r]]) : NAN;
  });
}

diffit_status cross_entropy_backward_op(diffit_context *ctx, const diffit_tensor *logits, const diffit_tensor *labels,
                                        const diffit_tensor *dloss, diffit_tensor *dlogits) {
  REQUIRE_F32(logits);
  REQUIRE(labels->dtype == DIFFIT_I64);
  REQUIRE_F32(dloss);
  REQUIRE_F32(dlogits);
  REQUIRE(logits->ndim >= 1);
  const int64_t n = lastDim(logits), rows = numel(labels);
  REQUIRE(numel(logits) == rows * n && numel(dlogits) == rows * n && numel(dloss) == rows);
  const float *in = f32(logits), *upstream = f32(dloss);
  const int64_t *label = (const int64_t *)labels->data;
  float *out = f32(dlogits);
  const IndexReport report(ctx, "cross_entropy_backward");
  return eachRow(ctx, rows, [=] __device__(int64_t r, int lane) {
    const float *row = in + r * n, top = rowMax(row, n, lane), g = upstream[r];
    const float scale = (float)(g / rowExpSum(row, n, top, lane));
    if (lane == 0) isIndex(report, label, r, n);
    for (int64_t i = lane; i < n; i += 32) out[r * n + i] = expf(row[i] - top) * scale - (i == label[r] ? g : 0.0f);
  });
}

}  // namespace diffit
