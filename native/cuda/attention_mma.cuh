/*
 * What the attention kernels on tensor cores share: bf16 or f16 tiles [token, channel] in shared memory, their fragments, and
 * products of them (m16n8k16, and one m16n8k8 where the head dimension is an odd multiple of 8: 72 costs 72, not 80 or 96).
 *
 * kDim, the head dimension of a kernel, is one of 32, 64, 72, 96 and 128; a smaller multiple of 8 is filled with zeros.
 * Rows of a tile lie an odd number of 16 bytes apart, so that the eight rows of one 8 x 8 matrix are in all 32 banks: 72 needs no padding.
 *
 * The bias over the scale is where the sums of q . k start, so that exp(logit - top) is one FMA and one exp2 of the sum. The row of the
 * table for query i and key j is queryPart(i) - keyPart(j): both parts are computed once per tile, and lanes of a
 * fragment read neighbours of the table's column without bank conflicts.
 */
#ifndef DIFFIT_CUDA_ATTENTION_MMA_CUH
#define DIFFIT_CUDA_ATTENTION_MMA_CUH

#include "attention_tile.cuh"

namespace diffit {

constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.69314718055994531f;

/* The tensors of one call; those that it does not have are null. */
template <class T>
struct LowAttention {
  AttentionSizes s;
  const T *qkv;
  const float *time, *table, *columns; /* [B, 3C]; [rows, heads]; a column per head, [heads, rows] */
  T *y;
  float *lse;
  const T *dy;
  T *dqkv;
  const float *delta; /* [B, heads, H, W] */

  __host__ __device__ float scale2() const { return s.scale * kLog2E; }
  /* The head's part of the sample's time token: q, and v 2 channels further. */
  __device__ const float *timeRow(const Problem &p) const {
    return time ? time + (int64_t)p.sample * 3 * s.channels + p.head * s.dim : nullptr;
  }
};

template <int kDim>
constexpr int kPitch = kDim / 8 % 2 ? kDim : kDim + 8;

/* ---- tiles in shared memory ---------------------------------------------------------------------------------- */

/* Calls body(element of the tile, token, channel, inside?) for this thread's pieces of 8 channels; for whole warps. */
template <int kDim, int kRows, int kBlock, class Body>
__device__ __forceinline__ void eachPiece(const AttentionSizes &s, int first, int thread, const Body &body) {
  constexpr int kPieces = kDim / 8;
#pragma unroll 1
  for (int i = thread; i < kRows * kPieces; i += kBlock) {
    const int t = i / kPieces, c = i % kPieces * 8;
    body(t * kPitch<kDim> + c, first + t, c, first + t < s.tokens && c < s.dim);
  }
  if constexpr (kRows * kPieces % 32 != 0)
    syncWarp(); /* some lanes had a piece more; fragments want the warp together */
}
/* Starts the copy of kRows tokens from `first` on, from a tensor of `width` per token at channel `at`; zeros outside. */
template <int kDim, int kRows, int kBlock, class T>
__device__ __forceinline__ void copyTile(T *to, const AttentionSizes &s, const Problem &p, const T *from, int width,
                                         int at, int first, int thread) {
  eachPiece<kDim, kRows, kBlock>(s, first, thread, [&](int element, int token, int c, bool inside) {
    copyAsync16(to + element, inside ? from + p.token(s, token) * width + at + c : from, inside);
  });
}
/* Adds the time token's q part to a tile of queries, in f32; each thread to what it copied itself. */
template <int kDim, int kRows, int kBlock, class T>
__device__ __forceinline__ void addTime(T *tile, const AttentionSizes &s, const float *time, int first, int thread) {
  eachPiece<kDim, kRows, kBlock>(s, first, thread, [&](int element, int, int c, bool inside) {
    if (!inside) return;
    uint4 *piece = (uint4 *)(tile + element);
    uint32_t pairs[4] = {piece->x, piece->y, piece->z, piece->w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float2 x = unpackPair<T>(pairs[i]);
      pairs[i] = packPair<T>(x.x + time[c + 2 * i], x.y + time[c + 2 * i + 1]);
    }
    *piece = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  });
}
/* Writes kRows tokens of a tile; kBlock threads that need no barrier among them, or have had it. */
template <int kDim, int kRows, int kBlock, class T>
__device__ __forceinline__ void storeRows(const T *tile, const AttentionSizes &s, const Problem &p, T *to, int width,
                                          int at, int first, int thread) {
  eachPiece<kDim, kRows, kBlock>(s, first, thread, [&](int element, int token, int c, bool inside) {
    if (inside) *(uint4 *)(to + p.token(s, token) * width + at + c) = *(const uint4 *)(tile + element);
  });
}

/* The part of a head's column of the table that a tile of queries, or of keys, meets with the whole window. */
struct ColumnRange {
  int first, count;

  static __device__ ColumnRange ofQueries(const AttentionSizes &s, int firstQuery, int tile) {
    const int low = firstQuery / s.windowW, high = (int)imin(firstQuery + tile, s.tokens) - 1;
    return {low * (2 * s.windowW - 1), (s.windowH + high / s.windowW - low) * (2 * s.windowW - 1)};
  }
  static __device__ ColumnRange ofKeys(const AttentionSizes &s, int firstKey, int tile) {
    const int low = firstKey / s.windowW, high = ((int)imin(firstKey + tile, s.tokens) - 1) / s.windowW;
    return {(s.windowH - 1 - high) * (2 * s.windowW - 1), (s.windowH + high - low) * (2 * s.windowW - 1)};
  }
  /* The most that any tile meets, in whole 16 bytes; nothing without a table. */
  static size_t most(const AttentionSizes &s, bool table, int tile) {
    const int64_t rows = s.windowH - 1 + imin(s.windowH, (tile - 2) / s.windowW + 2);
    return table ? (size_t)ceilDiv(rows * (2 * s.windowW - 1), 4) * 4 : 0;
  }
  /* Over the scale, as sums of q . k want it. */
  template <int kBlock, class T>
  __device__ void load(float *column, const LowAttention<T> &a, int head, int thread) const {
    const float *from = a.columns + (int64_t)head * a.s.tableRows + first;
    for (int i = thread; i < count; i += kBlock) column[i] = from[i] / a.s.scale;
  }
};

/* ---- fragments and products ---------------------------------------------------------------------------------- */

/* 16 rows of kDim channels as left factors. */
template <class T, int kDim>
struct RowFragments {
  uint32_t full[kDim / 16][4], half[2];

  __device__ __forceinline__ void load(const T *rows) {
    const T *at = rows + (laneIndex() & 15) * kPitch<kDim>;
#pragma unroll
    for (int k = 0; k < kDim / 16; k++) loadMatrices<4, false>(full[k], at + 16 * k + (laneIndex() >> 4) * 8);
    if constexpr (kDim % 16 != 0) loadMatrices<2, false>(half, at + kDim - 8);
  }
};

/* sums[m][n] += a[m] b^T: b is 8 kColumns rows of kDim channels. */
template <int kDim, int kRowTiles, int kColumns, class T>
__device__ __forceinline__ void multiplyRows(float (&sums)[kRowTiles][kColumns][4],
                                             const RowFragments<T, kDim> (&a)[kRowTiles], const T *b) {
  const int lane = laneIndex();
  const T *at = b + ((lane & 7) + (lane >> 4) * 8) * kPitch<kDim> + (lane & 8);
#pragma unroll
  for (int k = 0; k < kDim / 16; k++)
#pragma unroll
    for (int n = 0; n < kColumns; n += 2) {
      uint32_t r[4];
      loadMatrices<4, false>(r, at + 8 * n * kPitch<kDim> + 16 * k);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        mma16816<T>(sums[m][n], a[m].full[k], {r[0], r[1]});
        mma16816<T>(sums[m][n + 1], a[m].full[k], {r[2], r[3]});
      }
    }
  if constexpr (kDim % 16 != 0) {
    constexpr int kCount = kColumns % 4 == 0 ? 4 : 2;
    const T *last = b + (lane & (8 * kCount - 1)) * kPitch<kDim> + kDim - 8;
#pragma unroll
    for (int n = 0; n < kColumns; n += kCount) {
      uint32_t r[kCount];
      loadMatrices<kCount, false>(r, last + 8 * n * kPitch<kDim>);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++)
#pragma unroll
        for (int i = 0; i < kCount; i++) mma1688<T>(sums[m][n + i], a[m].half, {r[i]});
    }
  }
}

/* sums[m] += a[m] x: a is 16 by 16 kSteps in fragments, x is 16 kSteps rows of kDim channels. */
template <int kDim, int kRowTiles, int kSteps, class T>
__device__ __forceinline__ void multiplyColumns(float (&sums)[kRowTiles][kDim / 8][4],
                                                const uint32_t (&a)[kRowTiles][kSteps][4], const T *x) {
  const int lane = laneIndex();
  const T *at = x + (lane & 15) * kPitch<kDim> + (lane >> 4) * 8;
#pragma unroll
  for (int k = 0; k < kSteps; k++)
#pragma unroll
    for (int c = 0; c + 1 < kDim / 8; c += 2) {
      uint32_t r[4];
      loadMatrices<4, true>(r, at + 16 * k * kPitch<kDim> + 8 * c);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        mma16816<T>(sums[m][c], a[m][k], {r[0], r[1]});
        mma16816<T>(sums[m][c + 1], a[m][k], {r[2], r[3]});
      }
    }
  if constexpr (kDim % 16 != 0) {
    constexpr int kCount = kSteps % 2 == 0 ? 4 : 2, kLast = kDim / 8 - 1;
    const T *last = x + (lane & (8 * kCount - 1)) * kPitch<kDim> + kDim - 8;
#pragma unroll
    for (int k = 0; k < kSteps; k += kCount / 2) {
      uint32_t r[kCount];
      loadMatrices<kCount, true>(r, last + 16 * k * kPitch<kDim>);
#pragma unroll
      for (int m = 0; m < kRowTiles; m++)
#pragma unroll
        for (int i = 0; i < kCount / 2; i++) mma16816<T>(sums[m][kLast], a[m][k + i], {r[2 * i], r[2 * i + 1]});
    }
  }
}

/* Results of 16 by 8 kColumns as left factors of 16 by 8 kColumns: element (g, 2q) of a result is where a factor wants it. */
template <class T, int kColumns>
__device__ __forceinline__ void packFragments(uint32_t (&to)[kColumns / 2][4], const float (&from)[kColumns][4]) {
#pragma unroll
  for (int n = 0; n < kColumns; n++) {
    to[n / 2][n % 2 * 2] = packPair<T>(from[n][0], from[n][1]);
    to[n / 2][n % 2 * 2 + 1] = packPair<T>(from[n][2], from[n][3]);
  }
}
/* Results of 16 by 8 kColumns, times a factor per row half, to 16 rows of a tile of `pitch`. */
template <class T, int kColumns>
__device__ __forceinline__ void putRows(T *rows, int pitch, const float (&from)[kColumns][4], float low, float high) {
  T *at = rows + laneIndex() / 4 * pitch + laneIndex() % 4 * 2;
#pragma unroll
  for (int n = 0; n < kColumns; n++) {
    *(uint32_t *)(at + 8 * n) = packPair<T>(from[n][0] * low, from[n][1] * low);
    *(uint32_t *)(at + 8 * pitch + 8 * n) = packPair<T>(from[n][2] * high, from[n][3] * high);
  }
}
/* The sum, or the largest, over the four lanes that share a row of a fragment. */
__device__ __forceinline__ float quadSum(float x) {
  x += shuffleXor(x, 1);
  return x + shuffleXor(x, 2);
}
__device__ __forceinline__ float quadMax(float x) {
  x = fmaxf(x, shuffleXor(x, 1));
  return fmaxf(x, shuffleXor(x, 2));
}

/* ---- host ---------------------------------------------------------------------------------------------------- */

/* Windows of at most so many tokens lie on chip as a whole (attention_window.cu). */
constexpr int kWindowTokens = 64;

/* Does the device have the shared memory for two whole windows? (99 KB, as sm_86 and sm_89 have, hold none of 64 tokens over d = 96.) */
bool windowForwardFits(diffit_context *ctx, const AttentionSizes &s);
/* Does the device have the shared memory for the window's table, and for its gradient if that is wanted? */
bool gridForwardFits(diffit_context *ctx, const AttentionSizes &s, bool table);
bool gridBackwardFits(diffit_context *ctx, const AttentionSizes &s, bool table, bool tableGradient);
template <class T>
diffit_status gridForward(diffit_context *ctx, const LowAttention<T> &a);
template <class T>
diffit_status windowForward(diffit_context *ctx, const LowAttention<T> &a);
template <class T>
diffit_status gridBackward(diffit_context *ctx, const LowAttention<T> &a, float *dtable);
template <class T>
diffit_status windowBackward(diffit_context *ctx, const LowAttention<T> &a, float *dtime, float *dtable);

/* Calls run(integral_constant) for the smallest kDim that holds the head dimension. */
template <class Run>
diffit_status withLowDim(const AttentionSizes &s, const Run &run) {
  if (s.dim <= 32) return run(std::integral_constant<int, 32>());
  if (s.dim <= 64) return run(std::integral_constant<int, 64>());
  if (s.dim <= 72) return run(std::integral_constant<int, 72>());
  if (s.dim <= 96) return run(std::integral_constant<int, 96>());
  return run(std::integral_constant<int, 128>());
}

}  // namespace diffit

#endif
