/*
 * Layer norm over the last axis and group norm on NHWC (SiLU fused), with their gradients.
 *
 * layer_norm: a warp per row of x [rows, n]; mean first, then squared distances to it, so large means do no harm (the
 * second and third reading come from the caches). group_norm: sums per channel over chunks of positions, joined per group in
 * f64: once for the mean, once for squared distances; then a pass that writes. Gradients of w and b: sums per column
 * over chunks of rows, chunks added in order, in f64: the same bits on every run.
 *
 * Memory traffic: layer_norm x once, y once; its gradient x and dy twice, dx once; group_norm x three times, y once; its
 * gradient x and dy twice, dx once.
 */
#include "mathfun.cuh"

namespace diffit {
namespace {

constexpr int kColumns = 32, kRowLanes = kThreads / kColumns;
/* Most chunks that a column is summed in, and fewest rows of one. */
constexpr int64_t kMaxChunks = 64, kMinChunkRows = 32;

/* ---- sums over columns --------------------------------------------------------------------------------------- */

/* [samples, positions, c]; `chunk` positions are summed by one block, partial sums are [samples, chunks, 2, c]. */
struct Columns {
  int64_t samples, positions, c, chunk, chunks;
  __host__ __device__ int64_t partials() const { return samples * chunks * 2 * c; }
};

Columns columnsOf(int64_t samples, int64_t positions, int64_t c) {
  const int64_t chunk = imax(kMinChunkRows, ceilDiv(positions, kMaxChunks));
  return {samples, positions, c, chunk, ceilDiv(positions, chunk)};
}

struct ColumnShared {
  float2 sums[kRowLanes][kColumns];
};

template <class Body>
__global__ void __launch_bounds__(kThreads) columnSumsKernel(Columns g, Body body, float *partials) {
  ColumnShared &shared = sharedMemory<ColumnShared>();
  const int64_t tiles = ceilDiv(g.c, kColumns), block = blockIdx.x;
  const int column = (int)threadIdx.x % kColumns, lane = (int)threadIdx.x / kColumns;
  const int64_t channel = block % tiles * kColumns + column;
  const int64_t chunk = block / tiles % g.chunks, sample = block / tiles / g.chunks;
  const int64_t end = imin(g.positions, (chunk + 1) * g.chunk);
  float2 sum = make_float2(0, 0);
  if (channel < g.c) {
    for (int64_t p = chunk * g.chunk + lane; p < end; p += kRowLanes) {
      const float2 v = body(sample, (sample * g.positions + p) * g.c + channel, channel);
      sum.x += v.x;
      sum.y += v.y;
    }
  }
  shared.sums[lane][column] = sum;
  __syncthreads();
  if (lane != 0 || channel >= g.c) return;
  for (int i = 1; i < kRowLanes; i++) {
    sum.x += shared.sums[i][column].x;
    sum.y += shared.sums[i][column].y;
  }
  float *to = partials + (sample * g.chunks + chunk) * 2 * g.c + channel;
  to[0] = sum.x;
  to[g.c] = sum.y;
}

/* Partial sums over positions of the two numbers that body(sample, index, channel) returns. */
template <class Body>
diffit_status columnSums(diffit_context *ctx, const Columns &g, float *partials, Body body) {
  const int64_t blocks = g.samples * g.chunks * ceilDiv(g.c, kColumns);
  if (blocks == 0) return DIFFIT_OK;
  return launch(ctx, columnSumsKernel<Body>, dim3((unsigned)blocks), dim3(kThreads), sizeof(ColumnShared), g, body,
                partials);
}

/* first [c] and second [c] (either may be null): the sums over samples and chunks. */
diffit_status totalSums(diffit_context *ctx, const Columns &g, const float *partials, float *first, float *second) {
  const int64_t c = g.c, rows = g.samples * g.chunks;
  return forEach(ctx, 2 * c, [=] __device__(int64_t i) {
    float *to = i < c ? first : second;
    if (!to) return;
    double total = 0;
    for (int64_t k = 0; k < rows; k++) total += partials[k * 2 * c + i];
    to[i % c] = (float)total;
  });
}

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

}  // namespace

/* ---- layer norm ---------------------------------------------------------------------------------------------- */

diffit_status layer_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *b,
                            diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd, double eps) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(x->ndim >= 1 && numel(y) == numel(x));
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(!b || isVector(b, n));
  REQUIRE(!mean || isVector(mean, rows));
  REQUIRE(!rstd || isVector(rstd, rows));
  const float *in = f32(x), *pw = f32(w), *pb = f32(b);
  float *out = f32(y), *means = f32(mean), *rstds = f32(rstd);
  return eachRow(ctx, rows, [=] __device__(int64_t r, int lane) {
    const float *from = in + r * n;
    float *to = out + r * n;
    float sum = 0;
    for (int64_t i = lane; i < n; i += 32) sum += from[i];
    const float m = warpSum(sum) / (float)n;
    float squares = 0;
    for (int64_t i = lane; i < n; i += 32) squares += (from[i] - m) * (from[i] - m);
    const float s = (float)(1.0 / sqrt((double)warpSum(squares) / (double)n + eps));
    if (lane == 0) {
      if (means) means[r] = m;
      if (rstds) rstds[r] = s;
    }
    for (int64_t i = lane; i < n; i += 32) {
      float v = (from[i] - m) * s;
      if (pw) v *= pw[i];
      if (pb) v += pb[i];
      to[i] = v;
    }
  });
}

diffit_status layer_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                     const diffit_tensor *mean, const diffit_tensor *rstd, const diffit_tensor *dy,
                                     const diffit_tensor *dresidual, diffit_tensor *dx, diffit_tensor *dw,
                                     diffit_tensor *db) {
  REQUIRE_F32(x);
  REQUIRE(x->ndim >= 1);
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(isVector(mean, rows));
  REQUIRE(isVector(rstd, rows));
  REQUIRE(isVector(dy, rows * n));
  REQUIRE(!dresidual || isVector(dresidual, rows * n));
  REQUIRE(isVector(dx, rows * n));
  REQUIRE(!dw || isVector(dw, n));
  REQUIRE(!db || isVector(db, n));
  const float *in = f32(x), *pw = f32(w), *means = f32(mean), *rstds = f32(rstd), *upstream = f32(dy);
  const float *around = f32(dresidual);
  float *out = f32(dx);
  if (dw || db) { /* before dx is written, which may be dy */
    const Columns g = columnsOf(1, rows, n);
    float *partials = (float *)scratch(ctx, 0, (size_t)g.partials() * sizeof(float));
    if (!partials) return DIFFIT_OUT_OF_MEMORY;
    TRY(columnSums(ctx, g, partials, [=] __device__(int64_t, int64_t i, int64_t) {
      const int64_t r = i / n;
      return make_float2(upstream[i] * (in[i] - means[r]) * rstds[r], upstream[i]);
    }));
    TRY(totalSums(ctx, g, partials, f32(dw), f32(db)));
  }
  return eachRow(ctx, rows, [=] __device__(int64_t r, int lane) {
    const float *from = in + r * n, *g = upstream + r * n;
    const float m = means[r], s = rstds[r];
    float sum = 0, product = 0;
    for (int64_t i = lane; i < n; i += 32) {
      const float d = pw ? g[i] * pw[i] : g[i];
      sum += d;
      product += d * (from[i] - m) * s;
    }
    const float meanD = warpSum(sum) / (float)n, meanDH = warpSum(product) / (float)n;
    for (int64_t i = lane; i < n; i += 32) {
      const float d = pw ? g[i] * pw[i] : g[i];
      const float v = ((d - meanD) - (from[i] - m) * s * meanDH) * s;
      out[r * n + i] = around ? v + around[r * n + i] : v;
    }
  });
}

/* ---- group norm ---------------------------------------------------------------------------------------------- */

static Columns groupColumns(const diffit_tensor *x) {
  int64_t positions = 1;
  for (int d = 1; d < x->ndim - 1; d++) positions *= x->shape[d];
  return columnsOf(x->shape[0], positions, lastDim(x));
}

diffit_status group_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *b,
                            diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd, int64_t groups, double eps,
                            int64_t silu) {
  REQUIRE_F32(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const Columns g = groupColumns(x);
  const int64_t c = g.c, positions = g.positions, perGroup = c / groups;
  REQUIRE(isVector(y, numel(x)));
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(!mean || isVector(mean, g.samples * groups));
  REQUIRE(!rstd || isVector(rstd, g.samples * groups));
  if (numel(x) == 0) return DIFFIT_OK;
  const float *in = f32(x), *pw = f32(w), *pb = f32(b);
  float *out = f32(y);
  float *partials = (float *)scratch(ctx, 0, (size_t)g.partials() * sizeof(float));
  float *statistics = (float *)scratch(ctx, 1, (size_t)(2 * g.samples * groups) * sizeof(float));
  if (!partials || !statistics) return DIFFIT_OUT_OF_MEMORY;
  float *means = mean ? f32(mean) : statistics, *rstds = rstd ? f32(rstd) : statistics + g.samples * groups;
  const double count = (double)(positions * perGroup);
  const auto one = [=] __device__(int64_t) { return 1.0f; };
  TRY(columnSums(ctx, g, partials, [=] __device__(int64_t, int64_t i, int64_t) { return make_float2(in[i], 0); }));
  TRY(groupSums(ctx, g, groups, partials, one,
                [=] __device__(int64_t at, double sum, double) { means[at] = (float)(sum / count); }));
  TRY(columnSums(ctx, g, partials, [=] __device__(int64_t sample, int64_t i, int64_t channel) {
    const float d = in[i] - means[sample * groups + channel / perGroup];
    return make_float2(d * d, 0);
  }));
  TRY(groupSums(ctx, g, groups, partials, one, [=] __device__(int64_t at, double sum, double) {
    rstds[at] = (float)(1.0 / sqrt(sum / count + eps));
  }));
  return eachRow(ctx, g.samples * positions, [=] __device__(int64_t row, int lane) {
    const int64_t first = row / positions * groups;
    for (int64_t j = lane; j < c; j += 32) {
      const int64_t group = first + j / perGroup;
      float v = (in[row * c + j] - means[group]) * rstds[group];
      if (pw) v *= pw[j];
      if (pb) v += pb[j];
      out[row * c + j] = silu ? unaryForward<DIFFIT_SILU>(v) : v;
    }
  });
}

diffit_status group_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                     const diffit_tensor *b, const diffit_tensor *mean, const diffit_tensor *rstd,
                                     const diffit_tensor *dy, diffit_tensor *dx, diffit_tensor *dw, diffit_tensor *db,
                                     int64_t groups, int64_t silu) {
  REQUIRE_F32(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const Columns g = groupColumns(x);
  const int64_t c = g.c, positions = g.positions, perGroup = c / groups;
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(isVector(mean, g.samples * groups));
  REQUIRE(isVector(rstd, g.samples * groups));
  REQUIRE(isVector(dy, numel(x)));
  REQUIRE(isVector(dx, numel(x)));
  REQUIRE(!dw || isVector(dw, c));
  REQUIRE(!db || isVector(db, c));
  float *partials = (float *)scratch(ctx, 0, (size_t)g.partials() * sizeof(float));
  float *averages = (float *)scratch(ctx, 1, (size_t)(2 * g.samples * groups) * sizeof(float));
  if (!partials || !averages) return DIFFIT_OUT_OF_MEMORY;
  const float *in = f32(x), *pw = f32(w), *pb = f32(b), *means = f32(mean), *rstds = f32(rstd), *upstream = f32(dy);
  float *out = f32(dx);
  /* h = (x - mean) rstd, and the gradient of h w + b. */
  const auto normed = [=] __device__(int64_t group, int64_t i) { return (in[i] - means[group]) * rstds[group]; };
  const auto slope = [=] __device__(float h, int64_t i, int64_t channel) {
    if (!silu) return upstream[i];
    return upstream[i] * unaryDerivative<DIFFIT_SILU>((pw ? h * pw[channel] : h) + (pb ? pb[channel] : 0.0f));
  };
  TRY(columnSums(ctx, g, partials, [=] __device__(int64_t sample, int64_t i, int64_t channel) {
    const float h = normed(sample * groups + channel / perGroup, i), d = slope(h, i, channel);
    return make_float2(d * h, d);
  }));
  TRY(totalSums(ctx, g, partials, f32(dw), f32(db)));
  const double count = (double)(positions * perGroup);
  TRY(groupSums(
      ctx, g, groups, partials, [=] __device__(int64_t channel) { return pw ? pw[channel] : 1.0f; },
      [=] __device__(int64_t at, double product, double sum) {
        averages[2 * at] = (float)(sum / count);
        averages[2 * at + 1] = (float)(product / count);
      }));
  return eachRow(ctx, g.samples * positions, [=] __device__(int64_t row, int lane) {
    const int64_t first = row / positions * groups;
    for (int64_t j = lane; j < c; j += 32) {
      const int64_t group = first + j / perGroup, i = row * c + j;
      const float h = normed(group, i), d = slope(h, i, j) * (pw ? pw[j] : 1.0f);
      out[i] = ((d - averages[2 * group]) - h * averages[2 * group + 1]) * rstds[group];
    }
  });
}

}  // namespace diffit
