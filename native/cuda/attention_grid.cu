/*
 * Time-dependent attention (SPEC section 1) of more than 64 tokens on tensor cores, bf16 or f16: y = softmax((q + q_t) k^T scale + bias) v + v_t.
 *
 * qkv [B, H, W, 3C], read in place; time [B, 3C] and table f32; y [B, H, W, C]; lse [B, heads, H, W] f32. A block of four warps
 * has 64 or 128 queries of one head, a warp 16 or 32 of them in registers, and goes through the keys 64 at a time:
 * the next keys and values come by cp.async while the current ones are multiplied. Softmax is online, in f32 and base 2
 * (Milakov and Gimelshein; Dao et al., "FlashAttention-2"); the part of the head's table that the
 * queries meet lies in shared memory (128 queries: 2.9 KB for 16 x 16 tokens, 8.8 KB for 32 x 32, 33 KB for 64 x 64) and is looked up per logit.
 *
 * 32 queries per warp halve what is read from shared memory per product; where that leaves multiprocessors idle, and for
 * d > 72, whose sums fill the registers, it is 16. Blocks of one sample and its heads are neighbours, for their rows
 * share sectors of memory. Memory traffic: qkv once (keys and values again per block, from the L2 cache), y once. 4 N^2 d operations a head.
 */
#include "attention_mma.cuh"

namespace diffit {
namespace {

constexpr int kWarps = 4, kBlock = 32 * kWarps, kKeys = 64, kKeyTiles = kKeys / 8;

template <class T, int kDim, int kRowTiles>
struct GridShared {
  static constexpr int kQueries = 16 * kRowTiles * kWarps;
  T q[kQueries][kPitch<kDim>], k[2][kKeys][kPitch<kDim>], v[2][kKeys][kPitch<kDim>];
  int keyParts[2][kKeys];
  /* float column[ColumnRange::most] follows */
};

/* blockIdx.x: tiles of queries, then heads, then windows, then samples. */
template <class T, int kDim, int kRowTiles>
__global__ void __launch_bounds__(kBlock, 2) gridForwardKernel(LowAttention<T> a) {
  using Shared = GridShared<T, kDim, kRowTiles>;
  Shared &shared = sharedMemory<Shared>();
  float *column = (float *)(&shared + 1);
  const AttentionSizes &s = a.s;
  const int thread = (int)threadIdx.x, lane = laneIndex(), group = lane / 4, quad = lane % 4;
  const int tiles = (s.tokens + Shared::kQueries - 1) / Shared::kQueries;
  const int firstQuery = (int)(blockIdx.x % tiles) * Shared::kQueries;
  int rest = (int)(blockIdx.x / tiles);
  const int head = rest % s.heads;
  rest /= s.heads;
  const Problem p(head, rest / s.windows, rest % s.windows);
  const int width = 3 * s.channels, channel = head * s.dim, firstRow = thread / 32 * 16 * kRowTiles;
  const float *time = a.timeRow(p);

  auto copyKeys = [&](int buffer, int first) {
    copyTile<kDim, kKeys, kBlock>(&shared.k[buffer][0][0], s, p, a.qkv, width, s.channels + channel, first, thread);
    copyTile<kDim, kKeys, kBlock>(&shared.v[buffer][0][0], s, p, a.qkv, width, 2 * s.channels + channel, first, thread);
    commitCopies();
    if (thread < kKeys && a.columns)
      shared.keyParts[buffer][thread] = first + thread < s.tokens ? keyPart(s, first + thread) : 0;
  };
  copyTile<kDim, Shared::kQueries, kBlock>(&shared.q[0][0], s, p, a.qkv, width, channel, firstQuery, thread);
  copyKeys(0, 0);
  const ColumnRange range = ColumnRange::ofQueries(s, firstQuery, Shared::kQueries);
  if (a.columns) range.load<kBlock>(column, a, head, thread);

  int queryParts[kRowTiles][2];
  float top[kRowTiles][2], total[kRowTiles][2], sums[kRowTiles][kDim / 8][4] = {};
#pragma unroll
  for (int m = 0; m < kRowTiles; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int query = firstQuery + firstRow + 16 * m + 8 * h + group;
      queryParts[m][h] = queryPart(s, query < s.tokens ? query : s.tokens - 1) - range.first;
      top[m][h] = -INFINITY;
      total[m][h] = 0;
    }
  RowFragments<T, kDim> q[kRowTiles];
  const float scale2 = a.scale2();

  for (int first = 0, buffer = 0; first < s.tokens; first += kKeys, buffer ^= 1) {
    waitCopies<0>();
    if (first == 0 && time) addTime<kDim, Shared::kQueries, kBlock>(&shared.q[0][0], s, time, firstQuery, thread);
    __syncthreads(); /* these keys are there, and the other buffer is used up */
    if (first + kKeys < s.tokens) copyKeys(buffer ^ 1, first + kKeys);
    if (first == 0)
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) q[m].load(&shared.q[firstRow + 16 * m][0]);

    float x[kRowTiles][kKeyTiles][4];
#pragma unroll
    for (int n = 0; n < kKeyTiles; n++) {
      const int2 part = a.columns ? *(const int2 *)&shared.keyParts[buffer][8 * n + 2 * quad] : make_int2(0, 0);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          x[m][n][e] = a.columns ? column[queryParts[m][e / 2] - (e % 2 ? part.y : part.x)] : 0.0f;
    }
    multiplyRows<kDim>(x, q, &shared.k[buffer][0][0]);
    if (first + kKeys > s.tokens)
#pragma unroll
      for (int n = 0; n < kKeyTiles; n++)
#pragma unroll
        for (int e = 0; e < 4; e++)
          if (first + 8 * n + 2 * quad + e % 2 >= s.tokens)
#pragma unroll
            for (int m = 0; m < kRowTiles; m++) x[m][n][e] = -INFINITY;

    uint32_t weights[kRowTiles][kKeys / 16][4];
#pragma unroll
    for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float highest = top[m][h];
#pragma unroll
        for (int n = 0; n < kKeyTiles; n++) highest = fmaxf(highest, fmaxf(x[m][n][2 * h], x[m][n][2 * h + 1]));
        highest = quadMax(highest);
        const float factor = fastExp2((top[m][h] - highest) * scale2), shift = -highest * scale2;
        top[m][h] = highest;
        total[m][h] *= factor;
#pragma unroll
        for (int n = 0; n < kKeyTiles; n++)
#pragma unroll
          for (int e = 2 * h; e < 2 * h + 2; e++) {
            x[m][n][e] = fastExp2(fmaf(x[m][n][e], scale2, shift));
            total[m][h] += x[m][n][e];
          }
#pragma unroll
        for (int c = 0; c < kDim / 8; c++) {
          sums[m][c][2 * h] *= factor;
          sums[m][c][2 * h + 1] *= factor;
        }
      }
      packFragments<T>(weights[m], x[m]);
    }
    multiplyColumns<kDim>(sums, weights, &shared.v[buffer][0][0]);
  }

#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float all = quadSum(total[m][h]), factor = 1.0f / all;
      const int query = firstQuery + firstRow + 16 * m + 8 * h + group;
#pragma unroll
      for (int c = 0; c < kDim / 8; c++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int d = 8 * c + 2 * quad + e;
          float &sum = sums[m][c][2 * h + e];
          sum = sum * factor + (time && d < s.dim ? time[2 * s.channels + d] : 0.0f);
        }
      if (a.lse && quad == 0 && query < s.tokens) a.lse[p.row(s, query)] = top[m][h] * s.scale + log2f(all) * kLn2;
    }
    putRows<T>(&shared.q[firstRow + 16 * m][0], kPitch<kDim>, sums[m], 1.0f,
               1.0f); /* this warp's own queries, used up */
  }
  syncWarp();
  storeRows<kDim, 16 * kRowTiles, 32>(&shared.q[firstRow][0], s, p, a.y, s.channels, channel, firstQuery + firstRow,
                                      lane);
}

template <class Shared>
size_t sharedBytes(const AttentionSizes &s, bool table) {
  return sizeof(Shared) + ColumnRange::most(s, table, Shared::kQueries) * sizeof(float);
}

template <class T, int kDim, int kRowTiles>
diffit_status launchGridForward(diffit_context *ctx, const LowAttention<T> &a) {
  using Shared = GridShared<T, kDim, kRowTiles>;
  const int64_t blocks = a.s.problems * ceilDiv(a.s.tokens, Shared::kQueries);
  if (blocks >= (int64_t)1 << 31) return fail(ctx, DIFFIT_UNSUPPORTED, "attention: more than 2^31 blocks");
  return launch(ctx, gridForwardKernel<T, kDim, kRowTiles>, dim3((unsigned)blocks), dim3(kBlock),
                sharedBytes<Shared>(a.s, a.columns), a);
}

}  // namespace

bool gridForwardFits(diffit_context *ctx, const AttentionSizes &s, bool table) {
  return sharedBytes<GridShared<bf16, 128, 1>>(s, table) <= ctx->about.sharedMemPerBlockOptin;
}

template <class T>
diffit_status gridForward(diffit_context *ctx, const LowAttention<T> &a) {
  return withLowDim(a.s, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    if constexpr (kDim <= 72)
      if (a.s.problems * ceilDiv(a.s.tokens, 32 * kWarps) >= ctx->about.multiProcessorCount)
        return launchGridForward<T, kDim, 2>(ctx, a);
    return launchGridForward<T, kDim, 1>(ctx, a);
  });
}
template diffit_status gridForward(diffit_context *, const LowAttention<bf16> &);
template diffit_status gridForward(diffit_context *, const LowAttention<f16> &);

}  // namespace diffit
