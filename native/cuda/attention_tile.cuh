/*
 * What attention in f32 and its gradient share: sizes, where a window's tokens lie, the bias, and products of tiles in
 * shared memory.
 *
 * A problem is one window of one head of one sample. 256 threads work on kTile x kTile logits of one problem (kTile 64 or 32), or of
 * four (16): thread (row, column) of a square of kSide x kSide has rows row + kSide i and columns column + kSide j, so that
 * neighbours read neighbouring rows of a tile without bank conflicts. Tiles are [token, kDim + 4], kDim the head
 * dimension rounded up, zeros beyond it.
 */
#ifndef DIFFIT_CUDA_ATTENTION_TILE_CUH
#define DIFFIT_CUDA_ATTENTION_TILE_CUH

#include <type_traits>

#include "context.cuh"

namespace diffit {

struct AttentionSizes {
  int batch, height, width, channels, heads, dim, windowH, windowW;
  int tokens; /* in a window */
  int windowsX, windows; /* across the grid; in a sample */
  int tableRows; /* (2 windowH - 1)(2 windowW - 1) */
  int64_t problems; /* batch windows heads */
  int64_t tableStep; /* from one sample's table to the next; 0 when all share one */
  bool vector; /* may four channels be read at once? */
  float scale;
};

/* Window w of head h of sample b; problems count windows fastest, then samples, then heads. */
struct Problem {
  int head, sample, window;
  __device__ Problem(int head_, int sample_, int window_) : head(head_), sample(sample_), window(window_) {}
  __device__ Problem(const AttentionSizes &s, int64_t index) {
    const int64_t rest = index / s.windows;
    window = (int)(index - rest * s.windows);
    head = (int)(rest / s.batch);
    sample = (int)(rest - (int64_t)head * s.batch);
  }
  /* Index of token t of the window among all tokens of the batch. */
  __device__ int64_t token(const AttentionSizes &s, int t) const {
    const int y = window / s.windowsX * s.windowH + t / s.windowW, x = window % s.windowsX * s.windowW + t % s.windowW;
    return ((int64_t)sample * s.height + y) * s.width + x;
  }
  /* Index in lse [B, heads, H, W]. */
  __device__ int64_t row(const AttentionSizes &s, int t) const {
    const int64_t grid = (int64_t)s.height * s.width, first = (int64_t)sample * grid;
    return first * s.heads + head * grid + (token(s, t) - first);
  }
};

/* The row of the table for query i and key j is queryPart(i) - keyPart(j). */
__device__ inline int queryPart(const AttentionSizes &s, int i) {
  return (i / s.windowW + s.windowH - 1) * (2 * s.windowW - 1) + i % s.windowW + s.windowW - 1;
}
__device__ inline int keyPart(const AttentionSizes &s, int j) {
  return j / s.windowW * (2 * s.windowW - 1) + j % s.windowW;
}

template <int kTileSize, int kDimSize>
struct AttentionShape {
  static constexpr int kTile = kTileSize, kDim = kDimSize;
  static constexpr int kPer = kTile == 64 ? 4 : 2; /* rows, and columns, per thread */
  static constexpr int kSide = kTile / kPer;
  static constexpr int kProblemThreads = kSide * kSide, kProblems = kThreads / kProblemThreads;
  static constexpr int kColumns = (kDim + kSide - 1) / kSide; /* of a [kTile, kDim] result, per thread */
  using Rows = float[kTile][kDim + 4];
  using Square = float[kTile][kTile + 4];
  using Sums = float[kPer][kColumns];
  using Logits = float[kPer][kPer];
};

/* Where a thread stands: its problem within the block, and its row and column in the square. */
template <class Shape>
struct Place {
  int problem, thread, row, column;
  __device__ Place() {
    problem = (int)threadIdx.x / Shape::kProblemThreads;
    thread = (int)threadIdx.x % Shape::kProblemThreads;
    row = thread / Shape::kSide;
    column = thread % Shape::kSide;
  }
};

/* Channels of tokens first, first + 1, ... of a problem, from a tensor with `width` floats per token at offset `at`: (x + add) scale. */
template <class Shape>
__device__ void loadTile(typename Shape::Rows &to, const AttentionSizes &s, const Problem &p, const float *from,
                         int width, int at, int first, const float *add, float scale, int thread) {
  if (s.vector) {
    constexpr int kFours = Shape::kDim / 4;
    for (int i = thread; i < Shape::kTile * kFours; i += Shape::kProblemThreads) {
      const int t = i / kFours, c = i % kFours * 4;
      float4 v = make_float4(0, 0, 0, 0);
      if (first + t < s.tokens && c < s.dim) {
        v = *(const float4 *)(from + p.token(s, first + t) * width + at + c);
        if (add) v = make_float4(v.x + add[c], v.y + add[c + 1], v.z + add[c + 2], v.w + add[c + 3]);
        v = make_float4(v.x * scale, v.y * scale, v.z * scale, v.w * scale);
      }
      *(float4 *)&to[t][c] = v;
    }
    return;
  }
  for (int i = thread; i < Shape::kTile * Shape::kDim; i += Shape::kProblemThreads) {
    const int t = i / Shape::kDim, c = i % Shape::kDim;
    float v = 0;
    if (first + t < s.tokens && c < s.dim)
      v = (from[p.token(s, first + t) * width + at + c] + (add ? add[c] : 0)) * scale;
    to[t][c] = v;
  }
}

/* out[i][j] = row of a . row of b. */
template <class Shape>
__device__ void dots(typename Shape::Logits &out, const typename Shape::Rows &a, const typename Shape::Rows &b,
                     const Place<Shape> &at) {
  constexpr int kPer = Shape::kPer, kSide = Shape::kSide;
  for (int i = 0; i < kPer; i++)
    for (int j = 0; j < kPer; j++) out[i][j] = 0;
#pragma unroll 4
  for (int d = 0; d < Shape::kDim; d += 4) {
    float4 right[kPer];
    for (int j = 0; j < kPer; j++) right[j] = *(const float4 *)&b[at.column + kSide * j][d];
    for (int i = 0; i < kPer; i++) {
      const float4 left = *(const float4 *)&a[at.row + kSide * i][d];
      for (int j = 0; j < kPer; j++) {
        out[i][j] = fmaf(left.x, right[j].x, out[i][j]);
        out[i][j] = fmaf(left.y, right[j].y, out[i][j]);
        out[i][j] = fmaf(left.z, right[j].z, out[i][j]);
        out[i][j] = fmaf(left.w, right[j].w, out[i][j]);
      }
    }
  }
}

/* sums[i][c] += sum over t of weights[row i][t] x[t][column c]. */
template <class Shape>
__device__ void accumulate(typename Shape::Sums &sums, const typename Shape::Square &weights,
                           const typename Shape::Rows &x, const Place<Shape> &at) {
  constexpr int kPer = Shape::kPer, kSide = Shape::kSide;
#pragma unroll 2
  for (int t = 0; t < Shape::kTile; t += 4) {
    float4 w[kPer];
    for (int i = 0; i < kPer; i++) w[i] = *(const float4 *)&weights[at.row + kSide * i][t];
    for (int c = 0; c < Shape::kColumns; c++) {
      const int column = at.column + kSide * c;
      for (int i = 0; i < kPer; i++) {
        sums[i][c] = fmaf(w[i].x, x[t][column], sums[i][c]);
        sums[i][c] = fmaf(w[i].y, x[t + 1][column], sums[i][c]);
        sums[i][c] = fmaf(w[i].z, x[t + 2][column], sums[i][c]);
        sums[i][c] = fmaf(w[i].w, x[t + 3][column], sums[i][c]);
      }
    }
  }
}

/* logits += bias; keys beyond the window get minus infinity. `column`: the table of the problem's head, or null. */
template <class Shape>
__device__ void addBias(typename Shape::Logits &logits, const AttentionSizes &s, const float *column, int firstQuery,
                        int firstKey, const Place<Shape> &at) {
  for (int j = 0; j < Shape::kPer; j++) {
    const int key = firstKey + at.column + Shape::kSide * j;
    const int keyRow = keyPart(s, key);
    for (int i = 0; i < Shape::kPer; i++) {
      const int query = firstQuery + at.row + Shape::kSide * i;
      if (key >= s.tokens) {
        logits[i][j] = -INFINITY;
      } else if (column && query < s.tokens) {
        logits[i][j] += column[queryPart(s, query) - keyRow];
      }
    }
  }
}

/* ---- host ---------------------------------------------------------------------------------------------------- */

/* Sizes of a call whose tensors belong together, or the failure. */
diffit_status attentionSizes(diffit_context *ctx, const char *op, const diffit_tensor *qkv, const diffit_tensor *time,
                             const diffit_tensor *table, int64_t heads, int64_t windowH, int64_t windowW, double scale,
                             AttentionSizes *s);
/* The table as a contiguous column per head, [samples or 1, heads, tableRows]; null where there is none. */
diffit_status splitTable(diffit_context *ctx, const AttentionSizes &s, const diffit_tensor *table, float *columns);
size_t tableFloats(const AttentionSizes &s, const diffit_tensor *table);
/* dtable [samples, rows, heads] = the sum of its parts of `partials` [samples parts, heads, rows], in order. */
diffit_status foldTables(diffit_context *ctx, const float *partials, float *dtable, int64_t samples, int64_t parts,
                         int64_t heads, int64_t rows);

/* The same operations for bf16 and f16 (attention_low.cu), of tensors that have been checked. */
diffit_status lowAttention(diffit_context *ctx, const AttentionSizes &s, const diffit_tensor *qkv,
                           const diffit_tensor *time, const diffit_tensor *table, diffit_tensor *y, diffit_tensor *lse);
diffit_status lowAttentionBackward(diffit_context *ctx, const AttentionSizes &s, const diffit_tensor *qkv,
                                   const diffit_tensor *time, const diffit_tensor *table, const diffit_tensor *y,
                                   const diffit_tensor *lse, const diffit_tensor *dy, diffit_tensor *dqkv,
                                   diffit_tensor *dtime, diffit_tensor *dtable);

/* dtime [B, 3C] = the sums of `parts` of q and of v, [B, parts, 2C], in order; zeros for k. */
diffit_status joinTimeParts(diffit_context *ctx, const float *partials, float *dtime, const AttentionSizes &s,
                            int64_t parts);

/* Calls run(Shape) for the smallest rounded head dimension, and the largest useful tile whose shared memory the device has. */
template <template <class> class Shared, class Run>
diffit_status withShape(diffit_context *ctx, const AttentionSizes &s, const Run &run) {
  const size_t most = ctx->about.sharedMemPerBlockOptin;
  const auto pick = [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    if constexpr (kDim <= 128) {
      if (s.tokens <= 16 && sizeof(Shared<AttentionShape<16, kDim>>) <= most) return run(AttentionShape<16, kDim>());
      if (s.tokens > 32 && sizeof(Shared<AttentionShape<64, kDim>>) <= most) return run(AttentionShape<64, kDim>());
    }
    return run(AttentionShape<32, kDim>());
  };
  if (s.dim <= 32) return pick(std::integral_constant<int, 32>());
  if (s.dim <= 64) return pick(std::integral_constant<int, 64>());
  if (s.dim <= 80) return pick(std::integral_constant<int, 80>());
  if (s.dim <= 128) return pick(std::integral_constant<int, 128>());
  return pick(std::integral_constant<int, 256>());
}

}  // namespace diffit

#endif
