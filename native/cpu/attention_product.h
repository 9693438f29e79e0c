/*
 * Small matrix products on tiles that live in cache: c = init + op(a) b, where rows of b and c are vectors and elements of a
 * enter as scalars, so a may have any row length and no operand is packed a second time.
 *
 * A block of c stays in registers for the whole depth. Its shape is chosen so that the fused multiply-adds, not the loads,
 * bind: with 4 vectors a step of the depth loads 4 + 6 times for 24 of them.
 */
#ifndef DIFFIT_CPU_ATTENTION_PRODUCT_H
#define DIFFIT_CPU_ATTENTION_PRODUCT_H

/* Vectors of queries in a full tile, the most vectors of a block, and the rows of a block of so many vectors. */
#if defined(__AVX512F__) || defined(__aarch64__)
static constexpr int kTileVectors = 4;
static constexpr int kBlockVectors = 5;
static constexpr int blockRows(int vectors) {
  return vectors == 1 ? 16 : vectors == 2 ? 12 : vectors == 3 ? 8 : vectors == 4 ? 6 : 5;
}
#else
static constexpr int kTileVectors = 2;
static constexpr int kBlockVectors = 3;
static constexpr int blockRows(int vectors) { return vectors == 1 ? 8 : vectors == 2 ? 6 : 4; }
#endif
static constexpr int64_t kTileQueries = kTileVectors * kLanes;

/* What the next piece of work will read and write, fetched into the second-level cache a little after every block of a
   product: heads are short pieces of rows far apart, which the hardware cannot guess, and many fetches at once would stall. */
struct RowsAhead {
  static constexpr int kMost = 8;
  struct Piece {
    const char *row; /* of the window's first token */
    int64_t stride, first, last; /* bytes; tokens wanted */
  } pieces[kMost];
  int count = 0;
  int64_t bytes = 0, token = 0, tokens = 0, perStep = 0;
  const int64_t *offsets = nullptr;

  template <class T>
  void add(const T *row, int64_t stride, int64_t first, int64_t last) {
    pieces[count++] = {(const char *)row, stride * (int64_t)sizeof(T), first, last};
  }
  /* Row pieces of `size` bytes of tokens [0, n), in `steps` calls of step(). */
  void start(int64_t size, const int64_t *of, int64_t n, int64_t steps) {
    bytes = size;
    offsets = of;
    tokens = n;
    perStep = ceilDiv(n, imax(1, steps));
  }
  void step() {
    for (const int64_t end = imin(tokens, token + perStep); token < end; token++)
      for (const Piece *p = pieces; p < pieces + count; p++) {
        if (token < p->first || token >= p->last) continue;
        const char *row = p->row + offsets[token] * p->stride;
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 2);
        __builtin_prefetch(row + bytes - 1, 0, 2);
      }
  }
};

/* What a block starts from: zeros (from NULL), or a matrix, of which each column may be scaled by a factor of its own. */
struct InitRows {
  const float *from;
  int64_t ld;
  const float *factor;
  inline __attribute__((always_inline)) vf at(int64_t row, int v) const {
    vf x = from ? load(from + row * ld + v * kLanes) : set1(0.0f);
    if (factor) x *= load(factor + v * kLanes);
    return x;
  }
};

/* Or the bias of keys (rows) and queries (columns), straight from the table's column of a head: table rows are a difference
   of what belongs to the query and what belongs to the key. For windows whose width is a multiple of kLanes: the queries of
   a vector are neighbours in a row of the window, so are their biases in the table. */
struct InitTable {
  const float *column;
  const int64_t *keyRows;
  int64_t queryRows[kTileVectors];
  inline __attribute__((always_inline)) vf at(int64_t row, int v) const {
    return load(column + (queryRows[v] - keyRows[row]));
  }
};

/* One register block: op(a) is [ROWS, depth], stored so or (TURNED) as [depth, ROWS]; b [depth, VECTORS vectors]. `row` is
   that of c's first row in `init`. */
template <int ROWS, int VECTORS, bool TURNED, class Init>
static void productBlock(int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb, const Init &init,
                         int64_t row, float *c, int64_t ldc) {
  vf acc[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) acc[r][v] = init.at(row + r, v);
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; k++) {
    vf bv[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) bv[v] = load(b + k * ldb + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const vf av = set1(TURNED ? a[k * lda + r] : a[r * lda + k]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) acc[r][v] += av * bv[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) store(c + r * ldc + v * kLanes, acc[r][v]);
}

/* The same for `rows` <= ROWS. */
template <int ROWS, int VECTORS, bool TURNED, class Init>
DIFFIT_INLINE void productUpTo(int64_t rows, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb,
                               const Init &init, int64_t row, float *c, int64_t ldc) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return productUpTo<ROWS - 1, VECTORS, TURNED>(rows, depth, a, lda, b, ldb, init, row, c, ldc);
  }
  productBlock<ROWS, VECTORS, TURNED>(depth, a, lda, b, ldb, init, row, c, ldc);
}

/* For any number of rows, in blocks of nearly one height. */
template <int VECTORS, bool TURNED, class Init>
static void productRows(int64_t rows, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb,
                        const Init &init, float *c, int64_t ldc, RowsAhead *ahead) {
  constexpr int kRows = blockRows(VECTORS);
  const int64_t height = ceilDiv(rows, imax(1, ceilDiv(rows, kRows)));
  for (int64_t row = 0; row < rows; row += height) {
    productUpTo<kRows, VECTORS, TURNED>(imin(height, rows - row), depth, a + row * (TURNED ? 1 : lda), lda, b, ldb,
                                        init, row, c + row * ldc, ldc);
    ahead->step();
  }
}

/* And for any number of columns, a multiple of kLanes; with `add`, to what c holds. */
template <bool TURNED>
static void product(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t lda, const float *b,
                    int64_t ldb, bool add, float *c, int64_t ldc, RowsAhead *ahead) {
  for (int64_t left = columns / kLanes; left > 0;) {
    const int64_t blocks = ceilDiv(left, left == kBlockVectors ? kBlockVectors : kTileVectors);
    const int64_t vectors = left == kBlockVectors ? left : ceilDiv(left, blocks);
    const InitRows init = {add ? c : nullptr, ldc, nullptr};
    if (vectors == 1) productRows<1, TURNED>(rows, depth, a, lda, b, ldb, init, c, ldc, ahead);
    if (vectors == 2) productRows<2, TURNED>(rows, depth, a, lda, b, ldb, init, c, ldc, ahead);
    if (vectors == 3) productRows<3, TURNED>(rows, depth, a, lda, b, ldb, init, c, ldc, ahead);
    if constexpr (kBlockVectors == 5) {
      if (vectors == 4) productRows<4, TURNED>(rows, depth, a, lda, b, ldb, init, c, ldc, ahead);
      if (vectors == 5) productRows<5, TURNED>(rows, depth, a, lda, b, ldb, init, c, ldc, ahead);
    }
    left -= vectors;
    b += vectors * kLanes;
    c += vectors * kLanes;
  }
}

#endif
