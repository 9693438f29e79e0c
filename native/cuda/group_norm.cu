/*
 * Group norm on NHWC with a fused SiLU, and its gradient; activations of any float type (floats.cuh), statistics and sums in f32
 * and f64.
 *
 * Sums per channel over chunks of positions (columns.cuh), joined per group in f64: once for the mean, once for squared distances to it, so large
 * means do no harm; then a pass that writes. Memory traffic: x three times, y once; the gradient x and dy twice, dx once.
 */
#include "columns.cuh"
#include "mathfun.cuh"

namespace diffit {
namespace {

/* Per sample and group, the sum of weight(channel) x the two column sums over chunks and the group's channels, to
   store(sample * groups + group, first, second). A warp per group. */
template <class Weight, class Store>
diffit_status groupSums(diffit_context *ctx, const Columns &g, int64_t groups, const float *partials, Weight weight,
                        Store store) {
  const int64_t perGroup = g.c / groups, chunks = g.chunks, c = g.c;
  return eachRow(ctx, g.samples * groups, [=] __device__(int64_t row, int lane) {
    const int64_t sample = row / groups, first = row % groups * perGroup;
    double a = 0, b = 0;
    for (int64_t i = lane; i < chunks * perGroup; i += 32) {
      const int64_t channel = first + i % perGroup;
      const float *from = partials + (sample * chunks + i / perGroup) * 2 * c + channel;
      a += (double)weight(channel) * from[0];
      b += (double)weight(channel) * from[c];
    }
    a = warpSum(a);
    b = warpSum(b);
    if (lane == 0) store(row, a, b);
  });
}

Columns groupColumns(const diffit_tensor *x) {
  int64_t positions = 1;
  for (int d = 1; d < x->ndim - 1; d++) positions *= x->shape[d];
  return columnsOf(x->shape[0], positions, lastDim(x));
}

struct GroupNorm {
  Columns g;
  int64_t groups, perGroup;
  Floats x, y;
  const float *w, *b;
  float *means, *rstds; /* [B, groups] */
  bool silu;
};

/* A thread's neighbours lie in one group when kWidth divides perGroup; the caller sees to it. */
template <int kWidth>
diffit_status groupNorm(diffit_context *ctx, const GroupNorm &c, float *partials, double eps) {
  const double count = (double)(c.g.positions * c.perGroup);
  const auto one = [=] __device__(int64_t) { return 1.0f; };
  TRY(columnSums<kWidth>(ctx, c.g, partials, [=] __device__(int64_t, int64_t i, int64_t, float2(&sums)[kWidth]) {
    float v[kWidth];
    load(c.x, i, v);
#pragma unroll
    for (int e = 0; e < kWidth; e++) sums[e].x += v[e];
  }));
  TRY(groupSums(ctx, c.g, c.groups, partials, one,
                [=] __device__(int64_t at, double sum, double) { c.means[at] = (float)(sum / count); }));
  TRY(columnSums<kWidth>(ctx, c.g, partials,
                         [=] __device__(int64_t sample, int64_t i, int64_t channel, float2(&sums)[kWidth]) {
                           const float m = c.means[sample * c.groups + channel / c.perGroup];
                           float v[kWidth];
                           load(c.x, i, v);
#pragma unroll
                           for (int e = 0; e < kWidth; e++) sums[e].x += (v[e] - m) * (v[e] - m);
                         }));
  TRY(groupSums(ctx, c.g, c.groups, partials, one, [=] __device__(int64_t at, double sum, double) {
    c.rstds[at] = (float)(1.0 / sqrt(sum / count + eps));
  }));
  return eachRow(ctx, c.g.samples * c.g.positions, [=] __device__(int64_t row, int lane) {
    const int64_t first = row / c.g.positions * c.groups;
    for (int64_t j = lane * kWidth; j < c.g.c; j += 32 * kWidth) {
      const int64_t group = first + j / c.perGroup;
      const float m = c.means[group], s = c.rstds[group];
      float v[kWidth], w[kWidth], b[kWidth];
      load(c.x, row * c.g.c + j, v);
      loadOr(c.w, j, 1.0f, w);
      loadOr(c.b, j, 0.0f, b);
#pragma unroll
      for (int e = 0; e < kWidth; e++) {
        v[e] = (v[e] - m) * s * w[e] + b[e];
        if (c.silu) v[e] = unaryForward<DIFFIT_SILU>(v[e]);
      }
      store(c.y, row * c.g.c + j, v);
    }
  });
}

struct GroupNormBackward {
  Columns g;
  int64_t groups, perGroup;
  Floats x, dy, dx;
  const float *w, *b, *means, *rstds;
  float *averages; /* [B, groups, 2] */
  bool silu;
};

/* h = (x - mean) rstd and the gradient of h w + b, of kWidth neighbours. */
template <int kWidth>
__device__ __forceinline__ void groupSlopes(const GroupNormBackward &c, int64_t group, int64_t i, int64_t channel,
                                            float (&h)[kWidth], float (&d)[kWidth], float (&w)[kWidth]) {
  const float m = c.means[group], s = c.rstds[group];
  load(c.x, i, h);
  load(c.dy, i, d);
  loadOr(c.w, channel, 1.0f, w);
#pragma unroll
  for (int e = 0; e < kWidth; e++) h[e] = (h[e] - m) * s;
  if (!c.silu) return;
  float b[kWidth];
  loadOr(c.b, channel, 0.0f, b);
#pragma unroll
  for (int e = 0; e < kWidth; e++) d[e] *= unaryDerivative<DIFFIT_SILU>(h[e] * w[e] + b[e]);
}

template <int kWidth>
diffit_status groupNormBackward(diffit_context *ctx, const GroupNormBackward &c, float *partials, float *dw,
                                float *db) {
  TRY(columnSums<kWidth>(ctx, c.g, partials,
                         [=] __device__(int64_t sample, int64_t i, int64_t channel, float2(&sums)[kWidth]) {
                           float h[kWidth], d[kWidth], w[kWidth];
                           groupSlopes(c, sample * c.groups + channel / c.perGroup, i, channel, h, d, w);
#pragma unroll
                           for (int e = 0; e < kWidth; e++) {
                             sums[e].x += d[e] * h[e];
                             sums[e].y += d[e];
                           }
                         }));
  TRY(totalSums(ctx, c.g, partials, dw, db));
  const double count = (double)(c.g.positions * c.perGroup);
  TRY(groupSums(
      ctx, c.g, c.groups, partials, [=] __device__(int64_t channel) { return c.w ? c.w[channel] : 1.0f; },
      [=] __device__(int64_t at, double product, double sum) {
        c.averages[2 * at] = (float)(sum / count);
        c.averages[2 * at + 1] = (float)(product / count);
      }));
  return eachRow(ctx, c.g.samples * c.g.positions, [=] __device__(int64_t row, int lane) {
    const int64_t first = row / c.g.positions * c.groups;
    for (int64_t j = lane * kWidth; j < c.g.c; j += 32 * kWidth) {
      const int64_t group = first + j / c.perGroup, i = row * c.g.c + j;
      const float meanD = c.averages[2 * group], meanDH = c.averages[2 * group + 1], s = c.rstds[group];
      float h[kWidth], d[kWidth], w[kWidth];
      groupSlopes(c, group, i, j, h, d, w);
#pragma unroll
      for (int e = 0; e < kWidth; e++) h[e] = ((d[e] * w[e] - meanD) - h[e] * meanDH) * s;
      store(c.dx, i, h);
    }
  });
}

}  // namespace

diffit_status group_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *b,
                            diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd, int64_t groups, double eps,
                            int64_t silu) {
  REQUIRE_FLOAT(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const Columns g = groupColumns(x);
  const int64_t c = g.c;
  REQUIRE(isFloatVector(y, numel(x)));
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(!mean || isVector(mean, g.samples * groups));
  REQUIRE(!rstd || isVector(rstd, g.samples * groups));
  if (numel(x) == 0) return DIFFIT_OK;
  float *partials = (float *)scratch(ctx, 0, (size_t)g.partials() * sizeof(float));
  float *statistics = (float *)scratch(ctx, 1, (size_t)(2 * g.samples * groups) * sizeof(float));
  if (!partials || !statistics) return DIFFIT_OUT_OF_MEMORY;
  const GroupNorm call = {g,
                          groups,
                          c / groups,
                          floats(x),
                          floats(y),
                          f32(w),
                          f32(b),
                          mean ? f32(mean) : statistics,
                          rstd ? f32(rstd) : statistics + g.samples * groups,
                          silu != 0};
  const int width = widthOf({call.x, call.y, floats(w), floats(b)}, call.perGroup);
  return withWidth(width, [&](auto k) { return groupNorm<decltype(k)::value>(ctx, call, partials, eps); });
}

diffit_status group_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                     const diffit_tensor *b, const diffit_tensor *mean, const diffit_tensor *rstd,
                                     const diffit_tensor *dy, diffit_tensor *dx, diffit_tensor *dw, diffit_tensor *db,
                                     int64_t groups, int64_t silu) {
  REQUIRE_FLOAT(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const Columns g = groupColumns(x);
  const int64_t c = g.c;
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(isVector(mean, g.samples * groups));
  REQUIRE(isVector(rstd, g.samples * groups));
  REQUIRE(isFloatVector(dy, numel(x)));
  REQUIRE(isFloatVector(dx, numel(x)));
  REQUIRE(!dw || isVector(dw, c));
  REQUIRE(!db || isVector(db, c));
  float *partials = (float *)scratch(ctx, 0, (size_t)g.partials() * sizeof(float));
  float *averages = (float *)scratch(ctx, 1, (size_t)(2 * g.samples * groups) * sizeof(float));
  if (!partials || !averages) return DIFFIT_OUT_OF_MEMORY;
  const GroupNormBackward call = {g,      groups, c / groups, floats(x), floats(dy), floats(dx),
                                  f32(w), f32(b), f32(mean),  f32(rstd), averages,   silu != 0};
  const int width = widthOf({call.x, call.dy, call.dx, floats(w), floats(b)}, call.perGroup);
  return withWidth(
      width, [&](auto k) { return groupNormBackward<decltype(k)::value>(ctx, call, partials, f32(dw), f32(db)); });
}

}  // namespace diffit
