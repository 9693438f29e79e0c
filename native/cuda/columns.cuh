/*
 * Sums over columns of [samples, positions, c], two numbers at once: blocks sum chunks of positions in f32, kWidth neighbouring columns a
 * thread; the chunks are added in order in f64, so the same bits come on every run. Memory traffic: what the body reads, once.
 */
#ifndef DIFFIT_CUDA_COLUMNS_CUH
#define DIFFIT_CUDA_COLUMNS_CUH

#include "floats.cuh"

namespace diffit {

/* Most chunks that a column is summed in, and fewest rows of one. */
constexpr int64_t kMaxChunks = 64, kMinChunkRows = 32;

/* [samples, positions, c]; `chunk` positions are summed by one block, partial sums are [samples, chunks, 2, c]. */
struct Columns {
  int64_t samples, positions, c, chunk, chunks;
  __host__ __device__ int64_t partials() const { return samples * chunks * 2 * c; }
};

inline Columns columnsOf(int64_t samples, int64_t positions, int64_t c) {
  const int64_t chunk = imax(kMinChunkRows, ceilDiv(positions, kMaxChunks));
  return {samples, positions, c, chunk, ceilDiv(positions, chunk)};
}

/* The threads of a block as lanes over rows x groups of kWidth columns: few columns leave more lanes. */
struct ColumnThreads {
  int across, lanes;
};
inline ColumnThreads columnThreads(int64_t groups) {
  int across = 32;
  while (across > 1 && across / 2 >= groups) across /= 2;
  return {across, kThreads / across};
}

template <int kWidth>
struct ColumnShared {
  float2 sums[kThreads][kWidth];
};

template <int kWidth, class Body>
__global__ void __launch_bounds__(kThreads)
    columnSumsKernel(Columns g, ColumnThreads threads, Body body, float *partials) {
  ColumnShared<kWidth> &shared = sharedMemory<ColumnShared<kWidth>>();
  const int64_t groups = g.c / kWidth, tiles = ceilDiv(groups, threads.across), block = blockIdx.x;
  const int across = (int)threadIdx.x % threads.across, lane = (int)threadIdx.x / threads.across;
  const int64_t group = block % tiles * threads.across + across, channel = group * kWidth;
  const int64_t chunk = block / tiles % g.chunks, sample = block / tiles / g.chunks;
  const int64_t end = imin(g.positions, (chunk + 1) * g.chunk);
  float2 sums[kWidth];
#pragma unroll
  for (int e = 0; e < kWidth; e++) sums[e] = make_float2(0, 0);
  if (group < groups) {
    for (int64_t p = chunk * g.chunk + lane; p < end; p += threads.lanes)
      body(sample, (sample * g.positions + p) * g.c + channel, channel, sums);
  }
#pragma unroll
  for (int e = 0; e < kWidth; e++) shared.sums[threadIdx.x][e] = sums[e];
  __syncthreads();
  /* One thread per column adds up the lanes. */
  for (int i = (int)threadIdx.x; i < threads.across * kWidth; i += kThreads) {
    const int64_t column = block % tiles * threads.across * kWidth + i;
    if (column >= g.c) continue;
    float2 sum = make_float2(0, 0);
    for (int l = 0; l < threads.lanes; l++) {
      const float2 part = shared.sums[l * threads.across + i / kWidth][i % kWidth];
      sum.x += part.x;
      sum.y += part.y;
    }
    float *to = partials + (sample * g.chunks + chunk) * 2 * g.c + column;
    to[0] = sum.x;
    to[g.c] = sum.y;
  }
}

/* Partial sums over positions of the two numbers per column that body(sample, index, channel, sums) adds to sums[kWidth]. */
template <int kWidth, class Body>
diffit_status columnSums(diffit_context *ctx, const Columns &g, float *partials, Body body) {
  const ColumnThreads threads = columnThreads(g.c / kWidth);
  const int64_t blocks = g.samples * g.chunks * ceilDiv(g.c / kWidth, threads.across);
  if (blocks == 0) return DIFFIT_OK;
  return launch(ctx, columnSumsKernel<kWidth, Body>, dim3((unsigned)blocks), dim3(kThreads),
                sizeof(ColumnShared<kWidth>), g, threads, body, partials);
}

/* first [c] and second [c] (either may be null): the sums over samples and chunks. */
inline diffit_status totalSums(diffit_context *ctx, const Columns &g, const float *partials, float *first,
                               float *second) {
  const int64_t c = g.c, rows = g.samples * g.chunks;
  return forEach(ctx, 2 * c, [=] __device__(int64_t i) {
    float *to = i < c ? first : second;
    if (!to) return;
    double total = 0;
    for (int64_t k = 0; k < rows; k++) total += partials[k * 2 * c + i];
    to[i % c] = (float)total;
  });
}

}  // namespace diffit

#endif
