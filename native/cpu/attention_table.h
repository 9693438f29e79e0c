/*
 * The relative-position table in attention: a head's bias for a tile of logits [key, query], and the way back, the sums of
 * a tile's gradient that belong to one table row.
 *
 * A table row is a difference: queryRow(i) - keyRow(j) with queryRow(i) = (yi + windowH - 1)(2 windowW - 1) + xi + windowW - 1
 * and keyRow(j) = yj (2 windowW - 1) + xj. For one key, the queries of a row of the window meet consecutive table rows.
 */
#ifndef DIFFIT_CPU_ATTENTION_TABLE_H
#define DIFFIT_CPU_ATTENTION_TABLE_H

static constexpr int64_t kSmallWindow = 64; /* up to here the bias of whole windows is expanded, once per call */
static constexpr int64_t kWideWindow = 64; /* up to this width dS is summed by differences of rows */
static_assert(kSmallWindow <= kKeyBlock, "a small window is one key block");

/* Are queries of one vector always neighbours in a row of the window, and keys many enough that a tile's table runs are
   read (or summed) in place? */
DIFFIT_INLINE bool rowsAreVectors(const AttentionSizes &s) {
  return s.tokens > kSmallWindow && s.windowW % kLanes == 0;
}
DIFFIT_INLINE int64_t queryRow(const AttentionSizes &s, int64_t i) {
  return (i / s.windowW + s.windowH - 1) * (2 * s.windowW - 1) + i % s.windowW + s.windowW - 1;
}

/* Calls run(key, first query, length, first table row) for every run of queries of [i0, i0 + ni) that share a row of
   the window, and every key of [j0, j0 + nj): table rows of a run are consecutive. */
template <class Run>
DIFFIT_INLINE void forEachTableRun(const AttentionSizes &s, int64_t i0, int64_t ni, int64_t j0, int64_t nj,
                                   const Run &run) {
  const int64_t rowLength = 2 * s.windowW - 1;
  for (int64_t j = j0; j < j0 + nj; j++) {
    const int64_t yj = j / s.windowW, xj = j % s.windowW;
    int64_t x = i0 % s.windowW;
    int64_t row = (i0 / s.windowW - yj + s.windowH - 1) * rowLength + s.windowW - 1 - xj;
    for (int64_t i = i0; i < i0 + ni;) {
      const int64_t length = imin(s.windowW - x, i0 + ni - i);
      run(j, i, length, row + x);
      i += length;
      row += rowLength;
      x = 0;
    }
  }
}

/* bias[j - j0, i - i0] (row length ld) from a head's table column; 0 where a tile has no query. Vectors are copied
   whole, the next run overwrites what is too much: bias needs a vector of slack. */
static void expandBias(const AttentionSizes &s, const float *column, int64_t i0, int64_t ni, int64_t j0, int64_t nj,
                       float *bias, int64_t ld) {
  forEachTableRun(s, i0, ni, j0, nj, [&](int64_t j, int64_t i, int64_t length, int64_t row) {
    float *to = bias + (j - j0) * ld + i - i0;
    for (int64_t x = 0; x < length; x += kLanes) store(to + x, load(column + row + x));
  });
  if (ni < ld)
    for (int64_t j = 0; j < nj; j++) zeroFloats(bias + j * ld + ni, ld - ni);
}

/* A head's bias as tiles use it: small windows have it expanded, per tile [tokens, tile]; others have a column of the
   table. Both NULL without a table. */
struct HeadBias {
  const float *expanded, *column;
  const int64_t *keyRows; /* of a column, [tokens] */
};
struct BiasTable {
  float *columns; /* [heads, tableRows], or NULL */
  float *expanded; /* [heads, expandedSize], or NULL */
  int64_t expandedSize;
  int64_t *keyRows;
  HeadBias head(const AttentionSizes &s, int64_t h) const {
    return {expanded ? expanded + h * expandedSize : nullptr, columns ? columns + h * s.tableRows : nullptr, keyRows};
  }
};

/* Prepares the table for all heads in shared slot 1; false when memory is out. */
static bool prepareBias(diffit_context *ctx, const AttentionSizes &s, const float *table, BiasTable *bias) {
  bias->columns = bias->expanded = nullptr;
  bias->keyRows = nullptr;
  bias->expandedSize = s.tokens * roundUp(s.tokens, kLanes);
  if (!table) return true;
  const bool small = s.tokens <= kSmallWindow;
  const int64_t columnFloats = roundUp(s.heads * s.tableRows + kLanes, 16);
  const int64_t floats = columnFloats + (small ? s.heads * bias->expandedSize + kLanes : 2 * s.tokens);
  float *memory = (float *)diffit_cpu_shared(ctx, 1, (size_t)floats * sizeof(float));
  if (!memory) return false;
  bias->columns = memory;
  for (int64_t r = 0; r < s.tableRows; r++)
    for (int64_t h = 0; h < s.heads; h++) memory[h * s.tableRows + r] = table[r * s.heads + h];
  store(memory + s.heads * s.tableRows, set1(0.0f));
  if (!small) {
    bias->keyRows = (int64_t *)(memory + columnFloats);
    for (int64_t j = 0; j < s.tokens; j++) bias->keyRows[j] = j / s.windowW * (2 * s.windowW - 1) + j % s.windowW;
    return true;
  }
  bias->expanded = memory + columnFloats;
  for (int64_t h = 0; h < s.heads; h++)
    for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
      const int64_t ni = imin(kTileQueries, s.tokens - i0);
      expandBias(s, bias->columns + h * s.tableRows, i0, ni, 0, s.tokens,
                 bias->expanded + h * bias->expandedSize + i0 * s.tokens, roundUp(ni, kLanes));
    }
  return true;
}

/* logits[key, query] = bias + keys [j0, j0 + nj) times a tile's queries [i0, i0 + ni). */
template <int VECTORS>
static void tileLogits(const AttentionSizes &s, const float *keys, const float *queries, HeadBias bias, int64_t i0,
                       int64_t ni, int64_t j0, int64_t nj, float *logits, RowsAhead *ahead) {
  constexpr int64_t ld = VECTORS * kLanes;
  const float *rows = keys + j0 * s.padded;
  if (bias.column && rowsAreVectors(s)) {
    InitTable init = {bias.column, bias.keyRows + j0, {}};
    for (int v = 0; v < VECTORS; v++) init.queryRows[v] = queryRow(s, i0 + v * kLanes);
    productRows<VECTORS, false>(nj, s.dim, rows, s.padded, queries, ld, init, logits, ld, ahead);
    return;
  }
  InitRows init = {nullptr, ld, nullptr};
  if (bias.expanded) {
    init.from = bias.expanded + i0 * s.tokens;
  } else if (bias.column) {
    expandBias(s, bias.column, i0, ni, j0, nj, logits, ld);
    init.from = logits;
  }
  productRows<VECTORS, false>(nj, s.dim, rows, s.padded, queries, ld, init, logits, ld, ahead);
}

/* Sums of dS over the pairs of tokens of one window whose table row is the same, in two steps: over keys and queries of the
   same distance in y and the same key's x (whole vectors, no shifts), then over the key's x, each shifted by its own x. */
struct TableSums {
  float *differences; /* wide windows: [2 windowH - 1, windowW of keys, windowW of queries], else NULL */
  float *shifted; /* [windowW, shiftedLength]: zeros before and after a row of the window */
  int64_t shiftedLength, before;
};
static int64_t tableSumsFloats(const AttentionSizes &s) {
  return rowsAreVectors(s) && s.windowW <= kWideWindow ? (2 * s.windowH - 1) * s.windowW * s.windowW : 0;
}
static int64_t shiftedLength(const AttentionSizes &s) {
  return roundUp(s.windowW, kLanes) + roundUp(2 * s.windowW - 1, kLanes) + kLanes;
}

/* Adds to a head's table column what rowOf(dy + windowH - 1, xj, x), vectors of queries from column x of the window, holds. */
template <class RowOf>
static void foldDifferences(const AttentionSizes &s, const TableSums &sums, float *column, const RowOf &rowOf) {
  const int64_t rowLength = 2 * s.windowW - 1;
  zeroFloats(sums.shifted, s.windowW * sums.shiftedLength);
  for (int64_t dy = 0; dy < 2 * s.windowH - 1; dy++, column += rowLength) {
    for (int64_t xj = 0; xj < s.windowW; xj++) {
      float *to = sums.shifted + xj * sums.shiftedLength + sums.before;
      for (int64_t x = 0; x < s.windowW; x += kLanes) storeColumns(to, x, s.windowW, rowOf(dy, xj, x));
    }
    for (int64_t at = 0; at < rowLength; at += kLanes) {
      vf sum = loadColumns(column, at, rowLength);
      for (int64_t xj = 0; xj < s.windowW; xj++)
        sum += load(sums.shifted + xj * sums.shiftedLength + sums.before + at - (s.windowW - 1) + xj);
      storeColumns(column, at, rowLength, sum);
    }
  }
}

/* Of a small window, from dS [key, query] (row length ld, a vector of slack). */
static void foldWindow(const AttentionSizes &s, const TableSums &sums, const float *dlogits, int64_t ld,
                       float *column) {
  foldDifferences(s, sums, column, [&](int64_t dy, int64_t xj, int64_t x) {
    const int64_t first = imax(0, s.windowH - 1 - dy), last = imin(s.windowH, 2 * s.windowH - 1 - dy);
    const float *from = dlogits + xj * ld + x;
    vf sum = set1(0.0f);
    for (int64_t yj = first; yj < last; yj++)
      sum += load(from + yj * s.windowW * ld + (yj + dy - (s.windowH - 1)) * s.windowW);
    return sum;
  });
}

/* Adds dS [key, query] (row length ld) of a tile and key block to a wide window's differences. */
static void addDifferences(const AttentionSizes &s, const TableSums &sums, const float *dlogits, int64_t ld, int64_t i0,
                           int64_t ni, int64_t j0, int64_t nj) {
  for (int64_t i = 0; i < ni; i += kLanes) {
    const int64_t yi = (i0 + i) / s.windowW, xi = (i0 + i) % s.windowW;
    int64_t xj = j0 % s.windowW, row = (yi - j0 / s.windowW + s.windowH - 1) * s.windowW;
    for (int64_t j = 0; j < nj; j++) {
      float *to = sums.differences + (row + xj) * s.windowW + xi;
      store(to, load(to) + load(dlogits + j * ld + i));
      if (++xj < s.windowW) continue;
      xj = 0;
      row -= s.windowW;
    }
  }
}

/* Of a wide window, from its differences. */
static void foldWide(const AttentionSizes &s, const TableSums &sums, float *column) {
  foldDifferences(s, sums, column, [&](int64_t dy, int64_t xj, int64_t x) {
    return load(sums.differences + (dy * s.windowW + xj) * s.windowW + x);
  });
}

/* Of any other, run by run: dS [key, query] (row length ld) of a tile and key block. */
static void foldRuns(const AttentionSizes &s, const float *dlogits, int64_t ld, int64_t i0, int64_t ni, int64_t j0,
                     int64_t nj, float *column) {
  forEachTableRun(s, i0, ni, j0, nj, [&](int64_t j, int64_t i, int64_t length, int64_t row) {
    const float *from = dlogits + (j - j0) * ld + i - i0;
    for (int64_t x = 0; x < length; x += kLanes)
      storeColumns(column + row, x, length, loadColumns(column + row, x, length) + loadColumns(from, x, length));
  });
}

#endif
