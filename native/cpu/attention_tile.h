/*
 * What attention and its gradient share: the sizes of a call, where a window's tokens lie, the relative-position bias
 * of a tile, and small matrix products on tiles that live in cache.
 *
 * A tile is a group of queries across the vector lanes: logits, probabilities and their gradients are kept as
 * [key, query], so softmax needs no sum across lanes, a key or value row enters as scalars at any head_dim, and the
 * bias of one key is a run of consecutive table rows for each row of the window.
 */
#ifndef DIFFIT_CPU_ATTENTION_TILE_H
#define DIFFIT_CPU_ATTENTION_TILE_H

/* Vectors of queries in a full tile: with the rows of a product block they fill the registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
static constexpr int kTileVectors = 4;
#else
static constexpr int kTileVectors = 2;
#endif
static constexpr int64_t kTileQueries = kTileVectors * kLanes;
static constexpr int64_t kKeyBlock = 64; /* keys whose logits are held at once */
static constexpr int64_t kSmallWindow = 64; /* up to here the bias of whole windows is expanded, once per call */
static constexpr int64_t kTaskBytes = 1 << 18; /* small windows are taken together up to this much memory */
static constexpr int64_t kTaskQueries = 256; /* large ones are cut in parts of so many queries, where they can be */
static constexpr int64_t kManyTasks = 32; /* with so many groups of windows, a task takes all heads of a group */
static_assert(kSmallWindow <= kKeyBlock, "a small window is one key block");

DIFFIT_INLINE void zeroFloats(float *p, int64_t n) {
  if (n > 0) memset(p, 0, (size_t)n * sizeof(float)); /* p may be NULL where n is 0 */
}

struct AttentionSizes {
  int64_t batch, height, width, channels, heads, dim, windowH, windowW;
  int64_t padded; /* dim rounded up to whole vectors */
  int64_t tokens; /* in a window */
  int64_t windowsX; /* windows across the grid */
  int64_t windows; /* in a sample */
  int64_t tableRows; /* (2 windowH - 1)(2 windowW - 1) */
};

static AttentionSizes attentionSizes(const diffit_tensor *qkv, int64_t heads, int64_t windowH, int64_t windowW) {
  AttentionSizes s;
  s.batch = qkv->shape[0];
  s.height = qkv->shape[1];
  s.width = qkv->shape[2];
  s.channels = qkv->shape[3] / 3;
  s.heads = heads;
  s.dim = s.channels / heads;
  s.windowH = windowH;
  s.windowW = windowW;
  s.padded = roundUp(s.dim, kLanes);
  s.tokens = windowH * windowW;
  s.windowsX = s.width / windowW;
  s.windows = s.windowsX * (s.height / windowH);
  s.tableRows = (2 * windowH - 1) * (2 * windowW - 1);
  return s;
}

/* Grid index of the first token of window w, and of token t of a window relative to that. */
DIFFIT_INLINE int64_t windowOrigin(const AttentionSizes &s, int64_t w) {
  return (w / s.windowsX * s.windowH) * s.width + w % s.windowsX * s.windowW;
}
static void fillTokenOffsets(const AttentionSizes &s, int64_t *offsets) {
  for (int64_t y = 0; y < s.windowH; y++)
    for (int64_t x = 0; x < s.windowW; x++) *offsets++ = y * s.width + x;
}

/* The table [tableRows, heads] as one contiguous column per head; a vector of slack after the last. */
static void splitTable(const AttentionSizes &s, const float *table, float *columns) {
  for (int64_t h = 0; h < s.heads; h++)
    for (int64_t r = 0; r < s.tableRows; r++) columns[h * s.tableRows + r] = table[r * s.heads + h];
  store(columns + s.heads * s.tableRows, set1(0.0f));
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

/* b[0..kLanes) as a square matrix, transposed by log2(kLanes) perfect shuffles. */
#if defined(__AVX512F__)
#define DIFFIT_ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define DIFFIT_ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif defined(__AVX2__)
#define DIFFIT_ZIP_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define DIFFIT_ZIP_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define DIFFIT_ZIP_LOW 0, 4, 1, 5
#define DIFFIT_ZIP_HIGH 2, 6, 3, 7
#endif
DIFFIT_INLINE void transposeSquare(vf *b) {
#pragma GCC unroll 4
  for (int width = 1; width < kLanes; width *= 2) {
    vf t[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; i++) {
      t[2 * i] = __builtin_shufflevector(b[i], b[i + kLanes / 2], DIFFIT_ZIP_LOW);
      t[2 * i + 1] = __builtin_shufflevector(b[i], b[i + kLanes / 2], DIFFIT_ZIP_HIGH);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; i++) b[i] = t[i];
  }
}
#undef DIFFIT_ZIP_LOW
#undef DIFFIT_ZIP_HIGH

/* Columns [c, c + kLanes) of a row of n, zeros beyond its end. */
DIFFIT_INLINE vf loadColumns(const float *row, int64_t c, int64_t n) {
  return c + kLanes <= n ? load(row + c) : loadPartial(row + c, n - c);
}
DIFFIT_INLINE void storeColumns(float *row, int64_t c, int64_t n, vf v) {
  if (c + kLanes <= n)
    store(row + c, v);
  else
    storePartial(row + c, v, n - c);
}

/* Rows of a window's tokens [0, n), `stride` apart in the grid -> contiguous rows of s.padded, zeros at their ends. */
static void gatherRows(const AttentionSizes &s, const float *from, int64_t stride, const int64_t *offsets, int64_t n,
                       float *rows) {
  for (int64_t t = 0; t < n; t++)
    for (int64_t c = 0; c < s.dim; c += kLanes)
      store(rows + t * s.padded + c, loadColumns(from + offsets[t] * stride, c, s.dim));
}
static void scatterRows(const AttentionSizes &s, const float *rows, int64_t n, float *to, int64_t stride,
                        const int64_t *offsets) {
  for (int64_t t = 0; t < n; t++)
    for (int64_t c = 0; c < s.dim; c += kLanes)
      storeColumns(to + offsets[t] * stride, c, s.dim, load(rows + t * s.padded + c));
}

/* A tile's rows, (x + shift) scale, turned: columns[c, query] with row length kLanes vectors; also kept as rows
   [query, s.padded] if `rows` is given. Lanes without a query are 0. shift has s.padded elements. */
static void packTile(const AttentionSizes &s, const float *from, int64_t stride, const int64_t *offsets, int64_t ni,
                     const float *shift, float scale, int vectors, float *columns, float *rows) {
  const int64_t ld = vectors * kLanes;
  for (int64_t first = 0; first < ld; first += kLanes)
    for (int64_t c = 0; c < s.dim; c += kLanes) {
      const vf add = load(shift + c);
      vf b[kLanes];
      for (int64_t r = 0; r < kLanes; r++) {
        const int64_t t = first + r;
        b[r] = set1(0.0f);
        if (t < ni) b[r] = (loadColumns(from + offsets[t] * stride, c, s.dim) + add) * set1(scale);
        if (rows) store(rows + t * s.padded + c, b[r]);
      }
      transposeSquare(b);
      for (int64_t r = 0; r < kLanes; r++) store(columns + (c + r) * ld + first, b[r]);
    }
}

/* The way back: columns[c, query] * scale[query] + shift[c] -> the tokens' rows. If `sums` is given, the rows are also
   added to it. */
static void unpackTile(const AttentionSizes &s, const float *columns, int vectors, const float *scale,
                       const float *shift, int64_t ni, float *to, int64_t stride, const int64_t *offsets, float *sums) {
  const int64_t ld = vectors * kLanes;
  for (int64_t c = 0; c < s.dim; c += kLanes) {
    const vf add = load(shift + c);
    vf sum = set1(0.0f);
    for (int64_t first = 0; first < ni; first += kLanes) {
      vf b[kLanes];
      const vf factor = load(scale + first);
      for (int64_t r = 0; r < kLanes; r++) b[r] = load(columns + (c + r) * ld + first) * factor;
      transposeSquare(b);
      for (int64_t r = 0; r < kLanes && first + r < ni; r++) {
        storeColumns(to + offsets[first + r] * stride, c, s.dim, b[r] + add);
        sum += b[r];
      }
    }
    if (sums) store(sums + c, load(sums + c) + sum);
  }
}

/* One register block of c = scale * init + op(a) b: op(a) is [ROWS, depth], stored so or (TURNED) as [depth, ROWS];
   b [depth, VECTORS vectors]. init absent is 0, scale (one vector per column) absent is 1. */
template <int ROWS, int VECTORS, bool TURNED>
static void productBlock(int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb, const float *init,
                         const float *scale, float *c, int64_t ldc) {
  vf acc[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      acc[r][v] = init ? load(init + r * ldc + v * kLanes) : set1(0.0f);
      if (scale) acc[r][v] *= load(scale + v * kLanes);
    }
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; k++) {
    vf bv[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) bv[v] = load(b + k * ldb + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      const vf av = set1(TURNED ? a[k * lda + r] : a[r * lda + k]);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) acc[r][v] += av * bv[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) store(c + r * ldc + v * kLanes, acc[r][v]);
}

/* The same for any number of rows. */
template <int VECTORS, bool TURNED>
static void productRows(int64_t rows, int64_t depth, const float *a, int64_t lda, const float *b, int64_t ldb,
                        const float *init, const float *scale, float *c, int64_t ldc) {
  constexpr int kRows = VECTORS == 1 || (kTileVectors == 4 && VECTORS < 4) ? 8 : 6;
  for (int64_t done = 0; done < rows;) {
    const float *ar = a + done * (TURNED ? 1 : lda);
    const float *ir = init ? init + done * ldc : nullptr;
    float *cr = c + done * ldc;
    const int64_t left = rows - done;
    if (left >= kRows) {
      productBlock<kRows, VECTORS, TURNED>(depth, ar, lda, b, ldb, ir, scale, cr, ldc);
      done += kRows;
    } else if (left >= 4) {
      productBlock<4, VECTORS, TURNED>(depth, ar, lda, b, ldb, ir, scale, cr, ldc);
      done += 4;
    } else if (left >= 2) {
      productBlock<2, VECTORS, TURNED>(depth, ar, lda, b, ldb, ir, scale, cr, ldc);
      done += 2;
    } else {
      productBlock<1, VECTORS, TURNED>(depth, ar, lda, b, ldb, ir, scale, cr, ldc);
      done += 1;
    }
  }
}

/* And for any number of columns, a multiple of kLanes: c += a b with a stored [rows, depth]. */
static void productAdd(int64_t rows, int64_t columns, int64_t depth, const float *a, int64_t lda, const float *b,
                       int64_t ldb, float *c, int64_t ldc) {
  for (int64_t left = columns / kLanes; left > 0;) {
    if (kTileVectors >= 4 && left == 4) {
      productRows<kTileVectors, false>(rows, depth, a, lda, b, ldb, c, nullptr, c, ldc);
      return;
    }
    const int64_t vectors = left >= 3 && kTileVectors >= 4 ? 3 : left >= 2 ? 2 : 1;
    if (vectors == 3)
      productRows<kTileVectors >= 4 ? 3 : 2, false>(rows, depth, a, lda, b, ldb, c, nullptr, c, ldc);
    else if (vectors == 2)
      productRows<2, false>(rows, depth, a, lda, b, ldb, c, nullptr, c, ldc);
    else
      productRows<1, false>(rows, depth, a, lda, b, ldb, c, nullptr, c, ldc);
    left -= vectors;
    b += vectors * kLanes;
    c += vectors * kLanes;
  }
}

/* Scratch memory handed out in pieces of whole cache lines: first counted (base NULL), then taken. */
struct Carver {
  float *base;
  int64_t used;
  float *take(int64_t floats) {
    float *piece = base ? base + used : nullptr;
    used += roundUp(floats, 16);
    return piece;
  }
};

#endif
