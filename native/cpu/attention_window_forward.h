/*
 * Attention's forward in windows of at most one block of keys: the logits of a tile of queries exist as a whole, so softmax
 * corrects nothing. Their maximum is taken while they are in registers, and weighted sums go from registers into y's rows,
 * scaled and shifted on the way.
 *
 * c = logits [key, query], then p. Keys may stay where the tensor has them: an element enters as a scalar, from any row.
 */
#ifndef DIFFIT_CPU_ATTENTION_WINDOW_FORWARD_H
#define DIFFIT_CPU_ATTENTION_WINDOW_FORWARD_H

/* The rows that the next window and head will read and write, fetched into the second-level cache one at a time, every few
   steps of a product's depth: so few fetches are under way at once that none stalls the arithmetic. */
struct RowStream {
  static constexpr int kMost = 4;
  struct Piece {
    const char *row; /* of the window's first token */
    int64_t stride, first, last; /* bytes; tokens wanted */
  } pieces[kMost];
  int count = 0, at = 0;
  int64_t bytes = 0, every = 1;
  const int64_t *offsets = nullptr;

  template <class T>
  void add(const T *row, int64_t stride, int64_t first, int64_t last) {
    pieces[count++] = {(const char *)row, stride * (int64_t)sizeof(T), first, last};
  }
  /* Row pieces of `size` bytes, spread over so many steps. */
  void start(int64_t size, const int64_t *of, int64_t steps) {
    bytes = size;
    offsets = of;
    int64_t rows = 0;
    for (int i = 0; i < count; i++) rows += pieces[i].last - pieces[i].first;
    every = count ? imax(1, steps / imax(1, rows)) : imax(1, steps);
  }
  inline __attribute__((always_inline)) void fetchRow() {
    if (at == count) return;
    Piece *p = pieces + at;
    const char *row = p->row + offsets[p->first] * p->stride;
    if (++p->first == p->last) at++;
    const char *end = row + bytes;
    row = (const char *)((uintptr_t)row & ~(uintptr_t)63);
#pragma GCC unroll 1
    for (; row < end; row += 64) __builtin_prefetch(row, 0, 2);
  }
};

/* c[r, query] = bias + rows of keys times queries [depth, query], and top[query] = the highest so far. */
template <int ROWS, int VECTORS>
static void logitsBlock(int64_t depth, const float *k, const int64_t *rows, const float *q, const float *bias, float *c,
                        float *top, RowStream *ahead) {
  constexpr int64_t ld = VECTORS * kLanes;
  vf acc[ROWS][VECTORS];
  const float *at[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) at[r] = k + rows[r];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) acc[r][v] = bias ? load(bias + r * ld + v * kLanes) : set1(0.0f);
  for (int64_t i = 0; i < depth;) {
    ahead->fetchRow();
    const int64_t end = imin(depth, i + ahead->every);
#pragma GCC unroll 1
    for (; i < end; i++) {
      vf b[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) b[v] = load(q + i * ld + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        const vf a = set1(at[r][i]);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) acc[r][v] += a * b[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; v++) {
    vf high = load(top + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      high = vmax(acc[r][v], high);
      store(c + r * ld + v * kLanes, acc[r][v]);
    }
    store(top + v * kLanes, high);
  }
}
template <int ROWS, int VECTORS>
DIFFIT_INLINE void logitsUpTo(int64_t n, int64_t depth, const float *k, const int64_t *rows, const float *q,
                              const float *bias, float *c, float *top, RowStream *ahead) {
  if constexpr (ROWS > 1) {
    if (n < ROWS) return logitsUpTo<ROWS - 1, VECTORS>(n, depth, k, rows, q, bias, c, top, ahead);
  }
  logitsBlock<ROWS, VECTORS>(depth, k, rows, q, bias, c, top, ahead);
}

/* y rows = (p^T values) inverse + shift for ROWS queries; p [depth, ldp], values [depth, ldv]. */
template <int ROWS, int VECTORS, class T>
static void valuesBlock(int64_t depth, const float *p, int64_t ldp, const float *values, int64_t ldv,
                        const float *inverse, const float *shift, T *y, const int64_t *rows, int64_t columns,
                        RowStream *ahead) {
  vf acc[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) acc[r][v] = set1(0.0f);
  for (int64_t k = 0; k < depth;) {
    ahead->fetchRow();
    const int64_t end = imin(depth, k + ahead->every);
#pragma GCC unroll 1
    for (; k < end; k++) {
      vf b[VECTORS];
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) b[v] = load(values + k * ldv + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        const vf a = set1(p[k * ldp + r]);
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v++) acc[r][v] += a * b[v];
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) {
    const vf by = set1(inverse[r]);
    T *to = y + rows[r];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++)
      if (v + 1 < VECTORS)
        store(to + v * kLanes, acc[r][v] * by + load(shift + v * kLanes));
      else
        storeColumns(to, v * kLanes, columns, acc[r][v] * by + load(shift + v * kLanes));
  }
}
template <int ROWS, int VECTORS, class T>
DIFFIT_INLINE void valuesUpTo(int64_t n, int64_t depth, const float *p, int64_t ldp, const float *values, int64_t ldv,
                              const float *inverse, const float *shift, T *y, const int64_t *rows, int64_t columns,
                              RowStream *ahead) {
  if constexpr (ROWS > 1) {
    if (n < ROWS)
      return valuesUpTo<ROWS - 1, VECTORS>(n, depth, p, ldp, values, ldv, inverse, shift, y, rows, columns, ahead);
  }
  valuesBlock<ROWS, VECTORS>(depth, p, ldp, values, ldv, inverse, shift, y, rows, columns, ahead);
}
template <int VECTORS, class T>
static void valuesRows(int64_t n, int64_t depth, const float *p, int64_t ldp, const float *values, int64_t ldv,
                       const float *inverse, const float *shift, T *y, const int64_t *rows, int64_t columns,
                       RowStream *ahead) {
  constexpr int kRows = blockRows(VECTORS);
  const int64_t height = ceilDiv(n, imax(1, ceilDiv(n, kRows)));
  for (int64_t row = 0; row < n; row += height) {
    valuesUpTo<kRows, VECTORS>(imin(height, n - row), depth, p + row, ldp, values, ldv, inverse + row, shift, y,
                               rows + row, columns, ahead);
  }
}
/* y rows = (p^T values) inverse + shift for n queries, any number of columns. */
template <class T>
static void weightedValues(const AttentionSizes &s, int64_t n, const float *p, int64_t ldp, const float *values,
                           const float *inverse, const float *shift, T *y, const int64_t *rows, RowStream *ahead) {
  for (int64_t first = 0; first < s.padded;) {
    const int64_t left = (s.padded - first) / kLanes;
    const int64_t blocks = ceilDiv(left, left == kBlockVectors ? kBlockVectors : kTileVectors);
    const int64_t vectors = left == kBlockVectors ? left : ceilDiv(left, blocks), columns = s.dim - first;
    const float *from = values + first, *add = shift + first;
    const int64_t ldv = s.padded, depth = s.tokens;
    T *to = y + first;
    if (vectors == 1) valuesRows<1>(n, depth, p, ldp, from, ldv, inverse, add, to, rows, columns, ahead);
    if (vectors == 2) valuesRows<2>(n, depth, p, ldp, from, ldv, inverse, add, to, rows, columns, ahead);
    if (vectors == 3) valuesRows<3>(n, depth, p, ldp, from, ldv, inverse, add, to, rows, columns, ahead);
    if constexpr (kBlockVectors == 5) {
      if (vectors == 4) valuesRows<4>(n, depth, p, ldp, from, ldv, inverse, add, to, rows, columns, ahead);
      if (vectors == 5) valuesRows<5>(n, depth, p, ldp, from, ldv, inverse, add, to, rows, columns, ahead);
    }
    first += vectors * kLanes;
  }
}

/* Softmax over all keys of a tile of queries [dim, tile]: p [key, query], and per query 1 / sum and log of the sum of e^logit.
   Row j of the keys begins at k + rows[j]. */
template <int VECTORS>
static void windowSoftmax(const AttentionSizes &s, const float *k, const int64_t *rows, const float *queries,
                          const float *bias, float *p, float *inverse, float *lse, RowStream *ahead) {
  constexpr int64_t ld = VECTORS * kLanes;
  constexpr int kRows = blockRows(VECTORS);
  float top[VECTORS * kLanes];
  for (int v = 0; v < VECTORS; v++) store(top + v * kLanes, set1(-3e38f));
  const int64_t height = ceilDiv(s.tokens, ceilDiv(s.tokens, kRows));
  for (int64_t j = 0; j < s.tokens; j += height)
    logitsUpTo<kRows, VECTORS>(imin(height, s.tokens - j), s.dim, k, rows + j, queries, bias ? bias + j * ld : nullptr,
                               p + j * ld, top, ahead);
  vf highest[VECTORS], total[VECTORS];
  for (int v = 0; v < VECTORS; v++) {
    highest[v] = load(top + v * kLanes);
    total[v] = set1(0.0f);
  }
  for (int64_t j = 0; j < s.tokens; j++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      float *at = p + j * ld + v * kLanes;
      const vf e = vexpSoftmax(load(at) - highest[v]);
      total[v] += e;
      store(at, e);
    }
  for (int v = 0; v < VECTORS; v++) {
    store(inverse + v * kLanes, set1(1.0f) / total[v]);
    store(lse + v * kLanes, highest[v] + vlog(total[v]));
  }
}
static void windowSoftmaxOf(int vectors, const AttentionSizes &s, const float *k, const int64_t *rows,
                            const float *queries, const float *bias, float *p, float *inverse, float *lse,
                            RowStream *ahead) {
  if (vectors == 1) windowSoftmax<1>(s, k, rows, queries, bias, p, inverse, lse, ahead);
  if (vectors == 2) windowSoftmax<2>(s, k, rows, queries, bias, p, inverse, lse, ahead);
  if constexpr (kTileVectors == 4) {
    if (vectors == 3) windowSoftmax<3>(s, k, rows, queries, bias, p, inverse, lse, ahead);
    if (vectors == 4) windowSoftmax<4>(s, k, rows, queries, bias, p, inverse, lse, ahead);
  }
}

/* Steps of the depth that a tile of n queries takes, about. */
DIFFIT_INLINE int64_t windowSteps(const AttentionSizes &s, int64_t n) {
  const int64_t vectors = imax(1, s.padded / kLanes), columns = imin(vectors, kBlockVectors);
  return s.dim * ceilDiv(s.tokens, blockRows((int)ceilDiv(n, kLanes))) +
         s.tokens * ceilDiv(n, blockRows((int)columns)) * ceilDiv(vectors, columns);
}

#endif
