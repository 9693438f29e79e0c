/*
 * The gradient of attention in small windows (attention_backward.h has the formulas): here all keys of a window are one
 * block, so P and dP of a head are known as a whole, and three things get cheaper than there.
 *
 *     delta[i] = sum_c dy[i, c] (y - v_t)[i, c] = sum_j P[i, j] dP[i, j]:  y need not be read
 *     dq, dk, dv leave the registers once, and go to memory in whole lines (attention_traffic.h)
 *     dS is summed over the windows of a task before it is summed along table rows
 *
 * A task is some windows of a sample and a group of heads that fits the second-level cache twice, as the rows of the next
 * group are fetched meanwhile.
 *
 * What binds: 10 N d operations a query against 28 d bytes (f32): in windows of 16 the memory, from 64 on the arithmetic.
 */
#ifndef DIFFIT_CPU_ATTENTION_WINDOW_BACKWARD_H
#define DIFFIT_CPU_ATTENTION_WINDOW_BACKWARD_H

static constexpr int64_t kGroupBytes = 320 << 10; /* f32 rows q, k, v and dy of a group of heads */
static constexpr int64_t kWindowTasks = 64; /* as many tasks, if there are windows for them */
static constexpr int64_t kTaskWindows = 8; /* at most */

/* ---- products whose results are used in registers ------------------------------------------------------- */

/* One register block as in attention_product.h, but out(acc, row) takes the result. */
template <int ROWS, int VECTORS, bool TURNED, class Init, class Out>
static void windowBlock(int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb, const Init &init,
                        const Out &out, int64_t row) {
  vf acc[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) acc[r][v] = init.at(row + r, v);
  const float *far = a + 8 * lda;
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; k++) {
    vf bv[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) bv[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const vf av = set1(TURNED ? a[r] : r < 8 ? a[r * lda] : far[(r - 8) * lda]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) acc[r][v] += av * bv[v];
    }
    b += ldb;
    a += TURNED ? lda : 1;
    far += 1;
    if (!TURNED && ROWS > 8) __asm__("" : "+r"(a), "+r"(far)); /* two pointers, not one for each row */
  }
  out.template take<ROWS, VECTORS>(acc, row);
}
/* The next smaller height of a block: few, as each is code of its own. */
static constexpr int lowerBlock(int rows) { return rows > 8 ? 8 : rows > 4 ? 4 : rows / 2; }
/* A block of at most `rows`; returns how many it took. */
template <int ROWS, int VECTORS, bool TURNED, class Init, class Out>
DIFFIT_INLINE int64_t windowUpTo(int64_t rows, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb,
                                 const Init &init, const Out &out, int64_t row) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) return windowUpTo<lowerBlock(ROWS), VECTORS, TURNED>(rows, depth, a, lda, b, ldb, init, out, row);
  }
  windowBlock<ROWS, VECTORS, TURNED>(depth, a, lda, b, ldb, init, out, row);
  return ROWS;
}
template <int VECTORS, bool TURNED, class Init, class Out>
static void windowRows(int64_t rows, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb,
                       const Init &init, const Out &out, RowTraffic *traffic) {
  constexpr int kRows = blockRows(VECTORS);
  const int64_t height = ceilDiv(rows, imax(1, ceilDiv(rows, kRows)));
  for (int64_t row = 0; row < rows;) {
    row += windowUpTo<kRows, VECTORS, TURNED>(imin(height, rows - row), depth, a + row * (TURNED ? 1 : lda), lda, b,
                                              ldb, init, out, row);
    traffic->step();
  }
}

/* P = exp(logits - lse), [key, query] as everything here. */
struct ToProbabilities {
  float *p;
  int64_t ld;
  const float *lse;
  template <int ROWS, int VECTORS>
  inline __attribute__((always_inline)) void take(vf (&acc)[ROWS][VECTORS], int64_t row) const {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++)
        store(p + (row + r) * ld + v * kLanes, vexpSoftmax(acc[r][v] - load(lse + v * kLanes)));
  }
};
/* dP, and delta += the sum over keys of P dP. */
struct ToDelta {
  const float *p;
  float *dp;
  int64_t ld;
  float *delta;
  template <int ROWS, int VECTORS>
  inline __attribute__((always_inline)) void take(vf (&acc)[ROWS][VECTORS], int64_t row) const {
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      vf sum = load(delta + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) {
        const int64_t at = (row + r) * ld + v * kLanes;
        sum += load(p + at) * acc[r][v];
        store(dp + at, acc[r][v]);
      }
      store(delta + v * kLanes, sum);
    }
  }
};
/* Rows times a factor, of `columns` elements at most, and, if `sums` is given, their sum. */
struct ToRows {
  float *to;
  int64_t ld, columns;
  float factor, *sums;
  template <int ROWS, int VECTORS>
  inline __attribute__((always_inline)) void take(vf (&acc)[ROWS][VECTORS], int64_t row) const {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) {
        acc[r][v] *= factor;
        storeColumns(to + (row + r) * ld, v * kLanes, columns, acc[r][v]);
      }
    if (!sums) return;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      vf sum = load(sums + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) sum += acc[r][v];
      store(sums + v * kLanes, sum);
    }
  }
};

/* rows of `out` = op(a) b for all head dims. */
template <bool TURNED>
static void windowProduct(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t lda, const float *b,
                          int64_t ldb, ToRows out, RowTraffic *traffic) {
  const InitRows zero = {nullptr, 0, nullptr};
  for (int64_t left = columns / kLanes; left > 0;) {
    const int64_t blocks = ceilDiv(left, left == kBlockVectors ? kBlockVectors : kTileVectors);
    const int64_t vectors = left == kBlockVectors ? left : ceilDiv(left, blocks);
    if (vectors == 1) windowRows<1, TURNED>(rows, depth, a, lda, b, ldb, zero, out, traffic);
    if (vectors == 2) windowRows<2, TURNED>(rows, depth, a, lda, b, ldb, zero, out, traffic);
    if (vectors == 3) windowRows<3, TURNED>(rows, depth, a, lda, b, ldb, zero, out, traffic);
    if constexpr (kBlockVectors == 5) {
      if (vectors == 4) windowRows<4, TURNED>(rows, depth, a, lda, b, ldb, zero, out, traffic);
      if (vectors == 5) windowRows<5, TURNED>(rows, depth, a, lda, b, ldb, zero, out, traffic);
    }
    left -= vectors;
    b += vectors * kLanes;
    out.to += vectors * kLanes;
    out.columns -= vectors * kLanes;
    if (out.sums) out.sums += vectors * kLanes;
  }
}

/* ---- one window and head ---------------------------------------------------------------------------------- */

/* Memory of one thread. */
struct WindowScratch {
  float *queries, *keys, *values,
      *dy; /* [tokens, padded]; those of queries end in zero rows, for whole vectors of them */
  float *columns; /* [padded, tile] */
  float *p, *dlogits; /* [tokens, ld], then a vector of slack */
  float *lse, *delta; /* [ld] */
  float *timeQ; /* [padded] */
  float *sums; /* of dS over windows, per head of a task [tokens, ld], then a vector of slack */
  float *finished[2]; /* dq, dk, dv of a bundle of heads: [tokens, 3, bundle dim] */
  TableSums table;
  int64_t ld; /* tokens rounded up to whole vectors */
};
/* How heads are taken together: a bundle is written at once, a group is a task's. */
struct WindowHeads {
  int64_t bundle, group;
};
/* Bundles fill whole lines; groups are smaller where windows are few. */
static WindowHeads windowHeads(const AttentionSizes &s, int64_t itemBytes) {
  int64_t bundle = 1;
  while (bundle * s.dim * itemBytes % kLine != 0 && bundle < s.heads) bundle++;
  const int64_t most = imax(1, kGroupBytes / imax(1, bundle * s.tokens * s.dim * 16));
  const int64_t bundles = ceilDiv(s.heads, bundle), wanted = ceilDiv(kWindowTasks, imax(1, s.batch * s.windows));
  const int64_t groups = imax(ceilDiv(bundles, most), imin(bundles, wanted));
  return {bundle, imin(s.heads, ceilDiv(bundles, groups) * bundle)};
}
static AttentionTasks windowTasks(const AttentionSizes &s, const WindowHeads &heads) {
  AttentionTasks t;
  t.heads = heads.group;
  t.headGroups = ceilDiv(s.heads, t.heads);
  const int64_t most = s.batch * s.windows * t.headGroups / kWindowTasks;
  t.windows = imin(s.windows, imax(1, imin(kTaskWindows, most)));
  t.chunks = ceilDiv(s.windows, t.windows);
  t.queries = s.tokens;
  t.queryBlocks = 1;
  t.total = s.batch * t.chunks * t.headGroups;
  return t;
}
static int64_t carveWindow(const AttentionSizes &s, const WindowHeads &heads, float *base, WindowScratch *w) {
  Carver carver = {base, 0};
  const int64_t ld = w->ld = roundUp(s.tokens, kLanes);
  w->queries = carver.take(ld * s.padded);
  w->keys = carver.take(s.tokens * s.padded);
  w->values = carver.take(s.tokens * s.padded);
  w->dy = carver.take(ld * s.padded);
  w->columns = carver.take(s.padded * kTileQueries);
  w->p = carver.take(s.tokens * ld + kLanes);
  w->dlogits = carver.take(s.tokens * ld + kLanes);
  w->lse = carver.take(ld);
  w->delta = carver.take(ld);
  w->timeQ = carver.take(s.padded);
  w->sums = carver.take(heads.group * (s.tokens * ld + kLanes));
  for (float *&rows : w->finished) rows = carver.take(s.tokens * 3 * heads.bundle * s.dim);
  w->table.differences = nullptr;
  w->table.before = roundUp(s.windowW, kLanes);
  w->table.shiftedLength = shiftedLength(s);
  w->table.shifted = carver.take(s.windowW * w->table.shiftedLength);
  return carver.used * (int64_t)sizeof(float);
}

/* rows [query, padded] of a tile -> columns [dim, query]. */
static void turnRows(const AttentionSizes &s, const float *rows, int64_t ld, float *columns) {
  for (int64_t first = 0; first < ld; first += kLanes)
    for (int64_t c = 0; c < s.dim; c += kLanes) {
      vf b[kLanes];
      for (int64_t r = 0; r < kLanes; r++) b[r] = load(rows + (first + r) * s.padded + c);
      transposeSquare(b);
      for (int64_t r = 0; r < kLanes; r++) store(columns + (c + r) * ld + first, b[r]);
    }
}

/* P and dS of a tile of queries, from rows gathered before. */
template <int VECTORS>
static void windowTile(const AttentionSizes &s, const WindowScratch &w, HeadBias bias, int64_t i0, float *sums,
                       bool add, RowTraffic *traffic) {
  constexpr int64_t ld = VECTORS * kLanes;
  float *p = w.p + i0, *dlogits = w.dlogits + i0, *delta = w.delta + i0;
  turnRows(s, w.queries + i0 * s.padded, ld, w.columns);
  windowRows<VECTORS, false>(s.tokens, s.dim, w.keys, s.padded, w.columns, ld,
                             InitRows{bias.expanded ? bias.expanded + i0 * s.tokens : nullptr, ld, nullptr},
                             ToProbabilities{p, w.ld, w.lse + i0}, traffic);
  turnRows(s, w.dy + i0 * s.padded, ld, w.columns);
  zeroFloats(delta, ld);
  windowRows<VECTORS, false>(s.tokens, s.dim, w.values, s.padded, w.columns, ld, InitRows{nullptr, 0, nullptr},
                             ToDelta{p, dlogits, w.ld, delta}, traffic);
  for (int64_t j = 0; j < s.tokens; j++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      const int64_t at = j * w.ld + v * kLanes;
      const vf ds = load(p + at) * (load(dlogits + at) - load(delta + v * kLanes));
      store(dlogits + at, ds);
      if (sums) store(sums + i0 + at, add ? load(sums + i0 + at) + ds : ds);
    }
}
static void windowTileOf(int64_t vectors, const AttentionSizes &s, const WindowScratch &w, HeadBias bias, int64_t i0,
                         float *sums, bool add, RowTraffic *traffic) {
  if (vectors == 1) windowTile<1>(s, w, bias, i0, sums, add, traffic);
  if (vectors == 2) windowTile<2>(s, w, bias, i0, sums, add, traffic);
  if (kTileVectors == 4 && vectors == 3) windowTile<kTileVectors == 4 ? 3 : 1>(s, w, bias, i0, sums, add, traffic);
  if (kTileVectors == 4 && vectors == 4) windowTile<kTileVectors>(s, w, bias, i0, sums, add, traffic);
}

/* A window's rows, (x + shift) scale, one after the other with zeros at their ends; shift has s.padded elements, or is NULL. */
template <class T>
static void gatherScaled(const AttentionSizes &s, TokenRows<const T> from, const float *shift, float scale,
                         float *rows) {
  for (int64_t t = 0; t < s.tokens; t++, rows += s.padded) {
    const T *row = from[t];
    for (int64_t c = 0; c < s.dim; c += kLanes) store(rows + c, (loadColumns(row, c, s.dim) + load(shift + c)) * scale);
  }
}

/* Blocks of the five products of one head. */
static int64_t windowSteps(const AttentionSizes &s) {
  const int64_t vectors = s.padded / kLanes;
  const int64_t tiles = ceilDiv(s.tokens, kTileQueries);
  const int tile = (int)imin(kTileVectors, ceilDiv(s.tokens, kLanes));
  const int64_t across = vectors == kBlockVectors ? 1 : ceilDiv(vectors, kTileVectors);
  const int wide = vectors == kBlockVectors ? kBlockVectors : (int)ceilDiv(vectors, across);
  return 2 * tiles * ceilDiv(s.tokens, blockRows(tile)) + 3 * across * ceilDiv(s.tokens, blockRows(wide));
}

#endif
