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

static constexpr int64_t kKeyBlock = 64; /* keys whose logits are held at once */
static constexpr int64_t kTaskBytes = 1 << 18; /* small windows are taken together up to this much memory */
static constexpr int64_t kTaskQueries = 256; /* large ones are cut in parts of so many queries, where they can be */
static constexpr int64_t kManyTasks = 32; /* with so many groups of windows, a task takes all heads of a group */

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
template <class T>
DIFFIT_INLINE vf loadColumns(const T *row, int64_t c, int64_t n) {
  return c + kLanes <= n ? load(row + c) : loadPartial(row + c, n - c);
}
template <class T>
DIFFIT_INLINE void storeColumns(T *row, int64_t c, int64_t n, vf v) {
  if (c + kLanes <= n)
    store(row + c, v);
  else
    storePartial(row + c, v, n - c);
}

/* The rows of n tokens in a tensor: `offsets` of them, in rows of `stride` elements. */
template <class T>
struct TokenRows {
  T *first;
  int64_t stride;
  const int64_t *offsets;
  inline __attribute__((always_inline)) T *operator[](int64_t t) const { return first + offsets[t] * stride; }
};

/* A window's rows -> contiguous rows of s.padded, zeros at their ends. */
template <class T>
static void gatherRows(const AttentionSizes &s, TokenRows<const T> from, int64_t n, float *rows) {
  for (int64_t t = 0; t < n; t++, rows += s.padded) {
    const T *row = from[t];
    int64_t c = 0;
    for (; c + kLanes <= s.dim; c += kLanes) store(rows + c, load(row + c));
    if (c < s.dim) store(rows + c, loadPartial(row + c, s.dim - c));
  }
}
/* rows[t] * factor[t] + shift -> a window's rows; factor absent is 1, shift absent is 0. */
template <class T>
static void scatterRows(const AttentionSizes &s, const float *rows, const float *factor, const float *shift, int64_t n,
                        TokenRows<T> to) {
  for (int64_t t = 0; t < n; t++, rows += s.padded) {
    T *row = to[t];
    const vf by = set1(factor ? factor[t] : 1.0f);
    for (int64_t c = 0; c < s.dim; c += kLanes)
      storeColumns(row, c, s.dim, load(rows + c) * by + (shift ? load(shift + c) : set1(0.0f)));
  }
}

/* sums[c] += factor times the sum of n rows; four sums at a time hide the latency of an addition. */
static void addRows(const AttentionSizes &s, const float *rows, int64_t n, float factor, float *sums) {
  for (int64_t c = 0; c < s.padded; c += kLanes) {
    vf sum[4] = {};
    int64_t t = 0;
    for (; t + 4 <= n; t += 4)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) sum[i] += load(rows + (t + i) * s.padded + c);
    for (; t < n; t++) sum[0] += load(rows + t * s.padded + c);
    store(sums + c, load(sums + c) + ((sum[0] + sum[1]) + (sum[2] + sum[3])) * factor);
  }
}

/* A tile's rows, (x + shift) scale, turned: columns[c, query] with row length kLanes vectors; also kept as rows
   [query, s.padded] if `rows` is given. Lanes without a query are 0. shift has s.padded elements, or is NULL for 0. */
template <class T>
static void packTile(const AttentionSizes &s, TokenRows<const T> from, int64_t ni, const float *shift, float scale,
                     int vectors, float *columns, float *rows) {
  const int64_t ld = vectors * kLanes;
  for (int64_t first = 0; first < ld; first += kLanes)
    for (int64_t c = 0; c < s.dim; c += kLanes) {
      const vf add = shift ? load(shift + c) : set1(0.0f);
      vf b[kLanes];
      for (int64_t r = 0; r < kLanes; r++) {
        const int64_t t = first + r;
        b[r] = set1(0.0f);
        if (t < ni) b[r] = (loadColumns(from[t], c, s.dim) + add) * scale;
        if (rows) store(rows + t * s.padded + c, b[r]);
      }
      transposeSquare(b);
      for (int64_t r = 0; r < kLanes; r++) store(columns + (c + r) * ld + first, b[r]);
    }
}

/* The way back: columns[c, query] * factor[query] + shift[c] -> rows[query, s.padded]; factor and shift as in scatterRows. */
template <class T>
static void unpackTile(const AttentionSizes &s, const float *columns, int vectors, const float *factor,
                       const float *shift, int64_t ni, TokenRows<T> to, float *sums) {
  const int64_t ld = vectors * kLanes;
  for (int64_t c = 0; c < s.dim; c += kLanes) {
    const vf add = shift ? load(shift + c) : set1(0.0f);
    vf sum = set1(0.0f);
    for (int64_t first = 0; first < ni; first += kLanes) {
      vf b[kLanes];
      const vf by = load(factor + first);
      for (int64_t r = 0; r < kLanes; r++) b[r] = load(columns + (c + r) * ld + first) * by;
      transposeSquare(b);
      for (int64_t r = 0; r < kLanes && first + r < ni; r++) {
        storeColumns(to[first + r], c, s.dim, b[r] + add);
        sum += b[r];
      }
    }
    if (sums) store(sums + c, load(sums + c) + sum);
  }
}

/* e^x for softmax, x <= 0 but for rounding, with fewer instructions than vexp: at most 1.2 ulp (1 + |x|); 0 where that is no
   normal number (with AVX-512, no number at all). */
DIFFIT_INLINE vf vexpSoftmax(vf x) {
  vf t = x * 0x1.715476p+0f;
#if defined(__AVX512F__)
  const vf r = (vf)_mm512_maskz_reduce_ps((__mmask16)-1, (__m512)t, 0x09); /* t - floor(t) */
#else
  const vf magic = set1(12582912.0f); /* 1.5 * 2^23 */
  t = vclamp(t, -126.5f, 127.5f);
  const vf shifted = (t - 0.5f) + magic;
  const vf r = t - (shifted - magic);
#endif
  /* 2^r for r in [0, 1], own minimax fit of the relative error, 2e-9 before rounding */
  vf p = r * 0x1.c54156p-13f + 0x1.46d64ep-10f;
  p = p * r + 0x1.3d0b92p-7f;
  p = p * r + 0x1.c68912p-5f;
  p = p * r + 0x1.ebfd58p-3f;
  p = p * r + 0x1.62e42cp-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)t);
#else
  return p * vpow2((vi)((vu)shifted - (vu)magic));
#endif
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
