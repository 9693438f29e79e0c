/*
 * Matrix products in f64, for statistics (lib/metrics): covariances, Cholesky factors and distances, whose 1e-12 no product in f32 gives.
 *
 * C [m, n] += sign A B^T: A and B are given by two strides, so that either may lie transposed, and are f32 or f64. One tile of C at a time and
 * on one thread: kTile x kTile stays in the cache beside its two panels of kDepth columns, which are packed for each tile (a load for
 * kTile multiply-adds). The order of every sum follows from the sizes alone.
 */
#ifndef DIFFIT_CPU_PRODUCT64_H
#define DIFFIT_CPU_PRODUCT64_H

static constexpr int kLanes64 = kLanes / 2;
typedef double vd __attribute__((vector_size(kLanes64 * 8)));

DIFFIT_INLINE vd load64(const double *p) {
  vd v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
DIFFIT_INLINE void store64(double *p, vd v) { __builtin_memcpy(p, &v, sizeof v); }

/* What the registers hold of C: kRows64 rows of three vectors, which leaves room for three of B and one of A. */
static constexpr int kRows64 = kLanes >= 16 ? 8 : 4;
static constexpr int kColumns64 = 3 * kLanes64;
static constexpr int64_t kTile = 192; /* a multiple of both */
static constexpr int64_t kDepth = 256;
static_assert(kTile % kRows64 == 0 && kTile % kColumns64 == 0, "whole register blocks in a tile");

/* A matrix [rows, depth] in memory: element (r, k) at r * row + k * column. */
struct Matrix64 {
  const void *data;
  int64_t row, column;
  bool isF32;
};

/* Rows [r0, r0 + rows) and columns [k0, k0 + depth) into blocks of kBlock rows, column after column; missing rows are 0. */
template <int kBlock, class T>
static void pack64(const T *data, int64_t rowStride, int64_t columnStride, int64_t rows, int64_t depth, double *out) {
  for (int64_t r = 0; r < rows; r += kBlock, out += kBlock * depth) {
    const int64_t some = imin(kBlock, rows - r);
    const T *from = data + r * rowStride;
    if (some < kBlock) {
      for (int64_t k = 0; k < depth; k++)
        for (int64_t i = 0; i < kBlock; i++)
          out[k * kBlock + i] = i < some ? (double)from[i * rowStride + k * columnStride] : 0;
    } else if (rowStride == 1) {
      for (int64_t k = 0; k < depth; k++)
        for (int64_t i = 0; i < kBlock; i++) out[k * kBlock + i] = (double)from[k * columnStride + i];
    } else {
      for (int64_t i = 0; i < kBlock; i++)
        for (int64_t k = 0; k < depth; k++) out[k * kBlock + i] = (double)from[i * rowStride + k * columnStride];
    }
  }
}

template <int kBlock>
static void packMatrix64(const Matrix64 &m, int64_t row, int64_t column, int64_t rows, int64_t depth, double *out) {
  const int64_t at = row * m.row + column * m.column;
  if (m.isF32)
    pack64<kBlock>((const float *)m.data + at, m.row, m.column, rows, depth, out);
  else
    pack64<kBlock>((const double *)m.data + at, m.row, m.column, rows, depth, out);
}

/* c [rows <= kRows64, columns <= kColumns64] += sign a b over `depth` packed columns. */
static void block64(const double *a, const double *b, int64_t depth, double *c, int64_t ldc, int64_t rows,
                    int64_t columns, double sign) {
  vd sum[kRows64][3] = {};
  for (int64_t k = 0; k < depth; k++, a += kRows64, b += kColumns64) {
    const vd b0 = load64(b), b1 = load64(b + kLanes64), b2 = load64(b + 2 * kLanes64);
#pragma GCC unroll 8
    for (int i = 0; i < kRows64; i++) {
      const vd x = a[i] - vd{};
      sum[i][0] += x * b0;
      sum[i][1] += x * b1;
      sum[i][2] += x * b2;
    }
  }
  if (columns == kColumns64) {
#pragma GCC unroll 8
    for (int i = 0; i < kRows64; i++) {
      if (i >= rows) break;
      double *to = c + i * ldc;
      for (int v = 0; v < 3; v++) store64(to + v * kLanes64, load64(to + v * kLanes64) + sign * sum[i][v]);
    }
    return;
  }
  double whole[kRows64 * kColumns64];
#pragma GCC unroll 8
  for (int i = 0; i < kRows64; i++)
    for (int v = 0; v < 3; v++) store64(whole + i * kColumns64 + v * kLanes64, sum[i][v]);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) c[i * ldc + j] += sign * whole[i * kColumns64 + j];
}

/* Doubles of scratch memory that tile64 needs. */
static constexpr int64_t kTileScratch = 2 * kTile * kDepth;

/* c [rows, columns], at most a tile, += sign a[row .. row + rows] b[column .. column + columns]^T over `depth`. */
static void tile64(const Matrix64 &a, int64_t row, int64_t rows, const Matrix64 &b, int64_t column, int64_t columns,
                   int64_t depth, double *c, int64_t ldc, double sign, double *scratch) {
  double *left = scratch, *right = scratch + kTile * kDepth;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t deep = imin(kDepth, depth - k);
    packMatrix64<kRows64>(a, row, k, rows, deep, left);
    packMatrix64<kColumns64>(b, column, k, columns, deep, right);
    for (int64_t j = 0; j < columns; j += kColumns64)
      for (int64_t i = 0; i < rows; i += kRows64)
        block64(left + i * deep, right + j * deep, deep, c + i * ldc + j, ldc, imin(kRows64, rows - i),
                imin(kColumns64, columns - j), sign);
  }
}

/* Scratch memory of every thread before a parallel loop, whose tasks then find it; false when memory is out. */
static bool prepareScratch64(diffit_context *ctx, int slot, int64_t doubles) {
  for (int thread = 0; thread < diffit_cpu_threads(ctx); thread++)
    if (!diffit_cpu_scratch(ctx, thread, slot, (size_t)doubles * sizeof(double))) return false;
  return true;
}

/* C [m, n] += sign A B^T on all threads; with `symmetric` only the tiles that reach the lower triangle. */
static diffit_status product64(diffit_context *ctx, const Matrix64 &a, const Matrix64 &b, int64_t m, int64_t n,
                               int64_t depth, double *c, int64_t ldc, double sign, bool symmetric) {
  if (!prepareScratch64(ctx, 0, kTileScratch))
    return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for a product in f64.");
  const int64_t across = ceilDiv(n, kTile), down = ceilDiv(m, kTile);
  parallelChunks(ctx, across * down, 1, [&](int64_t index, int64_t, int thread) {
    const int64_t row = index / across * kTile, column = index % across * kTile;
    if (symmetric && column > row) return;
    double *scratch = (double *)diffit_cpu_scratch(ctx, thread, 0, kTileScratch * sizeof(double));
    tile64(a, row, imin(kTile, m - row), b, column, imin(kTile, n - column), depth, c + row * ldc + column, ldc, sign,
           scratch);
  });
  return DIFFIT_OK;
}

#endif
