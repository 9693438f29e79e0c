/*
 * Statistics of features for lib/metrics, in f64: means and covariances of a stream, and distances between sets.
 *
 * merge_rows: of rows [n, d], mean m and scatter S = sum (x - m)(x - m)^T join those of `count` rows before them (Chan, Golub and LeVeque,
 * 1979). n d^2 / 2 multiply-adds; centred by their own mean, so that large means cost no digits.
 * nearest, within: squared distances |a|^2 + |b|^2 - 2 a.b in tiles that never leave the cache, each used for both sets. n m d multiply-adds.
 */
#ifndef DIFFIT_CPU_STATISTICS_H
#define DIFFIT_CPU_STATISTICS_H

static diffit_status merge_rows(diffit_context *ctx, const diffit_rows *rows, int64_t count, double *mean,
                                double *scatter) {
  const int64_t n = rows->count, d = rows->width;
  double *centred = (double *)diffit_cpu_shared(ctx, 0, (size_t)(n * d + d) * sizeof(double));
  if (!centred) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for the covariance of rows.");
  double *difference = centred + n * d;
  const float *x32 = (const float *)rows->data;
  const double *x64 = (const double *)rows->data;
  const bool isF32 = rows->isF32;
  parallelChunks(ctx, d, 64, [=](int64_t begin, int64_t end, int) {
    for (int64_t j = begin; j < end; j++) difference[j] = 0;
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = begin; j < end; j++) difference[j] += isF32 ? (double)x32[i * d + j] : x64[i * d + j];
    for (int64_t j = begin; j < end; j++) difference[j] /= (double)n;
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = begin; j < end; j++)
        centred[i * d + j] = (isF32 ? (double)x32[i * d + j] : x64[i * d + j]) - difference[j];
    for (int64_t j = begin; j < end; j++) {
      difference[j] -= mean[j];
      mean[j] += difference[j] * ((double)n / (double)(count + n));
    }
  });
  const Matrix64 columns = {centred, 1, d, false}, apart = {difference, 1, d, false};
  diffit_status status = product64(ctx, columns, columns, d, d, n, scatter, d, 1, true);
  if (status == DIFFIT_OK && count > 0) {
    const double weight = (double)count * (double)n / (double)(count + n);
    status = product64(ctx, apart, apart, d, d, 1, scatter, d, weight, true);
  }
  return status;
}

/* |x|^2 of each row. */
static void squareNorms64(diffit_context *ctx, const diffit_rows *rows, double *out) {
  const int64_t d = rows->width;
  parallelChunks(ctx, rows->count, 64, [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) {
      double sum = 0;
      for (int64_t j = 0; j < d; j++) {
        const double x =
            rows->isF32 ? (double)((const float *)rows->data)[i * d + j] : ((const double *)rows->data)[i * d + j];
        sum += x * x;
      }
      out[i] = sum;
    }
  });
}

/* each(row, rows, column, columns, distances) for every tile of squared distances, row after row kTile apart; the tiles go to the threads. */
template <class Each>
static diffit_status eachDistance(diffit_context *ctx, const diffit_rows *a, const diffit_rows *b, const Each &each) {
  const int64_t n = a->count, m = b->count, d = a->width, across = ceilDiv(m, kTile);
  static constexpr int64_t kNeeded = kTileScratch + kTile * kTile;
  double *norms = (double *)diffit_cpu_shared(ctx, 0, (size_t)(n + m) * sizeof(double));
  if (!norms || !prepareScratch64(ctx, 0, kNeeded))
    return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for the distances between rows.");
  squareNorms64(ctx, a, norms);
  squareNorms64(ctx, b, norms + n);
  const Matrix64 left = {a->data, d, 1, a->isF32 != 0}, right = {b->data, d, 1, b->isF32 != 0};
  parallelChunks(ctx, ceilDiv(n, kTile) * across, 1, [&](int64_t index, int64_t, int thread) {
    const int64_t row = index / across * kTile, rows = imin(kTile, n - row);
    const int64_t column = index % across * kTile, columns = imin(kTile, m - column);
    double *scratch = (double *)diffit_cpu_scratch(ctx, thread, 0, kNeeded * sizeof(double));
    double *tile = scratch + kTileScratch;
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++) tile[i * kTile + j] = 0.5 * (norms[row + i] + norms[n + column + j]);
    tile64(left, row, rows, right, column, columns, d, tile, kTile, -1, scratch);
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++) {
        const double half = tile[i * kTile + j];
        tile[i * kTile + j] = half > 0 ? 2 * half : 0;
      }
    each(row, rows, column, columns, tile);
  });
  return DIFFIT_OK;
}

/* A flag for each block of kTile rows, held while a thread writes their results: several tiles have them in common. */
DIFFIT_INLINE void lockRows(uint8_t *flag) {
  while (__atomic_test_and_set(flag, __ATOMIC_ACQUIRE)) {
  }
}
DIFFIT_INLINE void unlockRows(uint8_t *flag) { __atomic_clear(flag, __ATOMIC_RELEASE); }
static uint8_t *rowLocks(diffit_context *ctx, int slot, int64_t rows) {
  const int64_t blocks = ceilDiv(rows, kTile);
  uint8_t *flags = (uint8_t *)diffit_cpu_shared(ctx, slot, (size_t)blocks);
  if (flags) memset(flags, 0, (size_t)blocks);
  return flags;
}

/* The distances at `from`, `stride` apart, join the k smallest, which are in order; `skip` is left out. */
static void joinNearest(double *best, int64_t k, const double *from, int64_t stride, int64_t count, int64_t skip) {
  for (int64_t j = 0; j < count; j++) {
    const double distance = from[j * stride];
    if (!(distance < best[k - 1]) || j == skip) continue;
    int64_t at = k - 1;
    for (; at > 0 && distance < best[at - 1]; at--) best[at] = best[at - 1];
    best[at] = distance;
  }
}

static diffit_status nearest(diffit_context *ctx, const diffit_rows *a, const diffit_rows *b, int64_t k,
                             double *nearestA, double *nearestB) {
  uint8_t *locksA = rowLocks(ctx, 1, a->count), *locksB = rowLocks(ctx, 2, b->count);
  if (!locksA || !locksB) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for the nearest rows.");
  return eachDistance(ctx, a, b, [=](int64_t row, int64_t rows, int64_t column, int64_t columns, const double *tile) {
    lockRows(locksA + row / kTile);
    for (int64_t i = 0; i < rows; i++)
      joinNearest(nearestA + (row + i) * k, k, tile + i * kTile, 1, columns, nearestB ? -1 : row + i - column);
    unlockRows(locksA + row / kTile);
    if (!nearestB) return;
    lockRows(locksB + column / kTile);
    for (int64_t j = 0; j < columns; j++) joinNearest(nearestB + (column + j) * k, k, tile + j, kTile, rows, -1);
    unlockRows(locksB + column / kTile);
  });
}

static diffit_status within(diffit_context *ctx, const diffit_rows *a, const diffit_rows *b, const double *radiiA,
                            const double *radiiB, uint8_t *aInB, uint8_t *bInA) {
  uint8_t *locksA = rowLocks(ctx, 1, a->count), *locksB = rowLocks(ctx, 2, b->count);
  if (!locksA || !locksB) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for the nearest rows.");
  return eachDistance(ctx, a, b, [=](int64_t row, int64_t rows, int64_t column, int64_t columns, const double *tile) {
    uint8_t rowsInside[kTile] = {0}, columnsInside[kTile] = {0};
    for (int64_t i = 0; i < rows; i++) {
      const double radius = radiiA[row + i];
      uint8_t inside = 0;
      for (int64_t j = 0; j < columns; j++) {
        const double distance = tile[i * kTile + j];
        inside |= distance <= radiiB[column + j];
        columnsInside[j] |= distance <= radius;
      }
      rowsInside[i] = inside;
    }
    lockRows(locksA + row / kTile);
    for (int64_t i = 0; i < rows; i++) aInB[row + i] |= rowsInside[i];
    unlockRows(locksA + row / kTile);
    lockRows(locksB + column / kTile);
    for (int64_t j = 0; j < columns; j++) bInA[column + j] |= columnsInside[j];
    unlockRows(locksB + column / kTile);
  });
}

#endif
