/*
 * Products with very few rows or columns (a time embedding of one sample, an RGB head): y = epilogue(A B) with m or n at
 * most kThinLines, where the rows of A and the columns of B are contiguous along k. Each number of y is a dot product over
 * vectors of k, so nothing is packed: the long operand is read once, straight from memory, and the thin one from L1.
 */
#ifndef DIFFIT_CPU_GEMM_THIN_H
#define DIFFIT_CPU_GEMM_THIN_H

static constexpr int kThinLines = kMaxRows >= 10 ? 4 : 3; /* kDotLines x kThinLines sums stay in registers */
static constexpr int kDotLines = 4;
static constexpr int kThinChunk = 4 * kMaxCols; /* lines of the long operand per tile of y */

static constexpr int64_t kThinWork = (int64_t)1 << 18; /* multiply-adds worth handing to another thread */

static bool isThin(int64_t m, int64_t n, int64_t k) { return imin(m, n) <= kThinLines && k >= 4 * kLanes; }

/* out[l * lineStride + t * thinStride] = lines[l] . thin[t] */
template <int T>
static void dotLines(int64_t k, const float *const *lines, const float *const *thin, float *out, int64_t lineStride,
                     int64_t thinStride) {
  vf sum[kDotLines][T] = {};
  const auto step = [&](int64_t i, auto take) {
    vf ts[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) ts[t] = take(thin[t] + i);
#pragma GCC unroll 4
    for (int l = 0; l < kDotLines; l++) {
      const vf x = take(lines[l] + i);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) sum[l][t] += x * ts[t];
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) step(i, WholeVector{});
  if (i < k) step(i, PartialVector{k - i});
  for (int l = 0; l < kDotLines; l++)
    for (int t = 0; t < T; t++) out[l * lineStride + t * thinStride] = hsum(sum[l][t]);
}

/* Both packers have line(i, stage): where line i lies, contiguous along k; `stage` has room for it (k numbers). */
template <class A, class B>
struct ThinCall {
  const A &a;
  const B &b;
  const Epilogue &epilogue;
  int64_t m, n, k;

  /* The tile of y that belongs to lines begin .. end of the long operand. `stage`: kDotLines + kThinLines lines. */
  template <int T>
  void chunk(int64_t item, int64_t begin, int64_t end, float *stage) const {
    const bool longA = n <= kThinLines;
    const A aItem = a.at(item);
    const B bItem = b.at(item);
    const float *thin[T], *lines[kDotLines];
    for (int t = 0; t < T; t++, stage += k) thin[t] = longA ? bItem.line(t, stage) : aItem.line(t, stage);
    float tile[kThinChunk * kLanes];
    const int64_t lineStride = longA ? kLanes : 1, thinStride = longA ? 1 : kThinChunk;
    for (int64_t first = begin; first < end; first += kDotLines) {
      for (int64_t l = 0; l < kDotLines; l++) {
        const int64_t line = imin(first + l, end - 1);
        lines[l] = longA ? aItem.line(line, stage + l * k) : bItem.line(line, stage + l * k);
      }
      dotLines<T>(k, lines, thin, tile + (first - begin) * lineStride, lineStride, thinStride);
    }
    if (longA)
      finishTile(epilogue, tile, kLanes, item * m + begin, end - begin, 0, n);
    else
      finishTile(epilogue, tile, kThinChunk, item * m, m, begin, end - begin);
  }
};

template <class A, class B>
static diffit_status multiplyThin(diffit_context *ctx, const A &a, const B &b, const Epilogue &epilogue, int64_t batch,
                                  int64_t m, int64_t n, int64_t k) {
  if (batch == 0 || m == 0 || n == 0) return DIFFIT_OK;
  const ThinCall<A, B> call = {a, b, epilogue, m, n, k};
  const int64_t lines = n <= kThinLines ? m : n, thin = n <= kThinLines ? n : m, chunks = ceilDiv(lines, kThinChunk);
  int failed = 0;
  const int64_t grain = imax(1, kThinWork / (kThinChunk * thin * k));
  parallelChunks(ctx, batch * chunks, grain, [&](int64_t begin, int64_t end, int thread) {
    const int64_t floats = (kDotLines + kThinLines) * k;
    float *stage = (float *)diffit_cpu_scratch(ctx, thread, 0, (size_t)floats * sizeof(float));
    if (!stage) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    for (int64_t i = begin; stage && i < end; i++) {
      const int64_t first = i % chunks * kThinChunk, last = imin(first + kThinChunk, lines);
      if (thin == 1) call.template chunk<1>(i / chunks, first, last, stage);
      if (thin == 2) call.template chunk<2>(i / chunks, first, last, stage);
      if (thin == 3) call.template chunk<3>(i / chunks, first, last, stage);
      if constexpr (kThinLines > 3)
        if (thin == 4) call.template chunk<4>(i / chunks, first, last, stage);
    }
  });
  if (failed) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "no scratch memory for %lld numbers", (long long)k);
  return DIFFIT_OK;
}

#endif
