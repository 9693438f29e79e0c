/*
 * Layer norm over the last axis, and its gradient; activations of any float type (floats.cuh), statistics and sums in f32 and f64.
 *
 * A warp per row of x [rows, n]; mean first, then squared distances to it, so large means do no harm. A lane keeps its share of the row in
 * registers where that is small (n = 1152: nine vectors); longer rows are read again, from the caches. Gradients of w and b: columns.cuh.
 * Memory traffic: x once, y once; the gradient x and dy once (twice with gradients of w and b), dx once.
 */
#include "columns.cuh"

namespace diffit {
namespace {

/* f(pack, first element) for a lane's packs of kWidth elements of a row; at most kPacks, or with kPacks = 0 any number, all called 0. */
template <int kWidth, int kPacks, class F>
__device__ __forceinline__ void eachPack(int64_t n, int lane, const F &f) {
  if constexpr (kPacks > 0) {
#pragma unroll
    for (int k = 0; k < kPacks; k++) {
      const int i = (k * 32 + lane) * kWidth;
      if (i < n) f(k, (int64_t)i);
    }
  } else {
    for (int64_t i = lane * kWidth; i < n; i += 32 * kWidth) f(0, i);
  }
}

/* A lane's share of a row; with kPacks = 0 the pack at hand, read when it is asked for. */
template <int kWidth, int kPacks>
struct Share {
  const Floats &t;
  const int64_t row;
  Bits<kWidth> bits[kPacks > 0 ? kPacks : 1];

  __device__ __forceinline__ Share(const Floats &tensor, int64_t first, int64_t n, int lane) : t(tensor), row(first) {
    if constexpr (kPacks > 0)
      eachPack<kWidth, kPacks>(n, lane, [&](int k, int64_t i) { bits[k] = loadBits<kWidth>(t, row + i); });
  }
  __device__ __forceinline__ void get(int k, int64_t i, float (&v)[kWidth]) {
    if constexpr (kPacks == 0) bits[0] = loadBits<kWidth>(t, row + i);
    unpack(t, bits[k], v);
  }
};

struct LayerNorm {
  Floats x, y;
  const float *w, *b;
  float *means, *rstds;
  int64_t rows, n;
  double eps;
};

template <int kWidth, int kPacks>
struct LayerNormRow {
  LayerNorm c;

  __device__ void operator()(int64_t r, int lane) const {
    const int64_t row = r * c.n;
    Share<kWidth, kPacks> x(c.x, row, c.n, lane);
    float v[kWidth], sum = 0, squares = 0;
    eachPack<kWidth, kPacks>(c.n, lane, [&](int k, int64_t i) {
      x.get(k, i, v);
#pragma unroll
      for (int e = 0; e < kWidth; e++) sum += v[e];
    });
    const float m = warpSum(sum) / (float)c.n;
    eachPack<kWidth, kPacks>(c.n, lane, [&](int k, int64_t i) {
      x.get(k, i, v);
#pragma unroll
      for (int e = 0; e < kWidth; e++) squares += (v[e] - m) * (v[e] - m);
    });
    const float s = (float)(1.0 / sqrt((double)warpSum(squares) / (double)c.n + c.eps));
    if (lane == 0) {
      if (c.means) c.means[r] = m;
      if (c.rstds) c.rstds[r] = s;
    }
    eachPack<kWidth, kPacks>(c.n, lane, [&](int k, int64_t i) {
      float w[kWidth], b[kWidth];
      x.get(k, i, v);
      loadOr(c.w, i, 1.0f, w);
      loadOr(c.b, i, 0.0f, b);
#pragma unroll
      for (int e = 0; e < kWidth; e++) v[e] = (v[e] - m) * s * w[e] + b[e];
      store(c.y, row + i, v);
    });
  }
};

struct LayerNormBackward {
  Floats x, dy, around, dx;
  const float *w, *means, *rstds;
  float *dw, *db;
  int64_t rows, n;
};

template <int kWidth, int kPacks>
struct LayerNormBackwardRow {
  LayerNormBackward c;

  __device__ void operator()(int64_t r, int lane) const {
    const int64_t row = r * c.n;
    const float m = c.means[r], s = c.rstds[r];
    Share<kWidth, kPacks> x(c.x, row, c.n, lane), dy(c.dy, row, c.n, lane);
    float v[kWidth], d[kWidth], w[kWidth], sum = 0, product = 0;
    eachPack<kWidth, kPacks>(c.n, lane, [&](int k, int64_t i) {
      x.get(k, i, v);
      dy.get(k, i, d);
      loadOr(c.w, i, 1.0f, w);
#pragma unroll
      for (int e = 0; e < kWidth; e++) {
        d[e] *= w[e];
        sum += d[e];
        product += d[e] * (v[e] - m) * s;
      }
    });
    const float meanD = warpSum(sum) / (float)c.n, meanDH = warpSum(product) / (float)c.n;
    eachPack<kWidth, kPacks>(c.n, lane, [&](int k, int64_t i) {
      x.get(k, i, v);
      dy.get(k, i, d);
      loadOr(c.w, i, 1.0f, w);
#pragma unroll
      for (int e = 0; e < kWidth; e++) v[e] = ((d[e] * w[e] - meanD) - (v[e] - m) * s * meanDH) * s;
      if (c.around.data) {
        load(c.around, row + i, d);
#pragma unroll
        for (int e = 0; e < kWidth; e++) v[e] += d[e];
      }
      store(c.dx, row + i, v);
    });
  }
};

/* Sums for the gradients of w and b. */
template <int kWidth>
struct LayerNormColumns {
  LayerNormBackward c;
  __device__ void operator()(int64_t, int64_t i, int64_t channel, float2 (&sums)[kWidth]) const {
    const int64_t r = (i - channel) / c.n;
    const float m = c.means[r], s = c.rstds[r];
    float v[kWidth], d[kWidth];
    load(c.x, i, v);
    load(c.dy, i, d);
#pragma unroll
    for (int e = 0; e < kWidth; e++) {
      sums[e].x += d[e] * (v[e] - m) * s;
      sums[e].y += d[e];
    }
  }
};

/* Runs Row<kWidth, kPacks> on every row, with the packs of a lane in registers where there are few. */
template <template <int, int> class Row, int kWidth, class Call>
diffit_status eachNormRow(diffit_context *ctx, const Call &call) {
  if constexpr (kWidth > 1) {
    const int64_t packs = ceilDiv(call.n, 32 * kWidth);
    if (packs <= 4) return eachRow(ctx, call.rows, Row<kWidth, 4>{call});
    if (packs <= 9) return eachRow(ctx, call.rows, Row<kWidth, 9>{call});
  }
  return eachRow(ctx, call.rows, Row<kWidth, 0>{call});
}

template <int kWidth>
diffit_status layerNormBackward(diffit_context *ctx, const LayerNormBackward &call) {
  if (call.dw || call.db) { /* before dx is written, which may be dy */
    const Columns g = columnsOf(1, call.rows, call.n);
    float *partials = (float *)scratch(ctx, 0, (size_t)g.partials() * sizeof(float));
    if (!partials) return DIFFIT_OUT_OF_MEMORY;
    TRY(columnSums<kWidth>(ctx, g, partials, LayerNormColumns<kWidth>{call}));
    TRY(totalSums(ctx, g, partials, call.dw, call.db));
  }
  return eachNormRow<LayerNormBackwardRow, kWidth>(ctx, call);
}

}  // namespace

diffit_status layer_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *b,
                            diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd, double eps) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(y);
  REQUIRE(x->ndim >= 1 && numel(y) == numel(x));
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(!b || isVector(b, n));
  REQUIRE(!mean || isVector(mean, rows));
  REQUIRE(!rstd || isVector(rstd, rows));
  const LayerNorm call = {floats(x), floats(y), f32(w), f32(b), f32(mean), f32(rstd), rows, n, eps};
  const int width = widthOf({call.x, call.y, floats(w), floats(b)}, n);
  return withWidth(width, [&](auto k) { return eachNormRow<LayerNormRow, decltype(k)::value>(ctx, call); });
}

diffit_status layer_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                     const diffit_tensor *mean, const diffit_tensor *rstd, const diffit_tensor *dy,
                                     const diffit_tensor *dresidual, diffit_tensor *dx, diffit_tensor *dw,
                                     diffit_tensor *db) {
  REQUIRE_FLOAT(x);
  REQUIRE(x->ndim >= 1);
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(isVector(mean, rows));
  REQUIRE(isVector(rstd, rows));
  REQUIRE(isFloatVector(dy, rows * n));
  REQUIRE(!dresidual || isFloatVector(dresidual, rows * n));
  REQUIRE(isFloatVector(dx, rows * n));
  REQUIRE(!dw || isVector(dw, n));
  REQUIRE(!db || isVector(db, n));
  const LayerNormBackward call = {floats(x), floats(dy), floats(dresidual), floats(dx), f32(w), f32(mean),
                                  f32(rstd), f32(dw),    f32(db),           rows,       n};
  const int width = widthOf({call.x, call.dy, call.around, call.dx, floats(w)}, n);
  return withWidth(width, [&](auto k) { return layerNormBackward<decltype(k)::value>(ctx, call); });
}

}  // namespace diffit
