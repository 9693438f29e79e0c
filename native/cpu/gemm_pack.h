/*
 * Packing for the matrix product: operands copied into the panels that the micro-kernel streams through.
 *
 * A panel holds `width` lines (rows of op(a), or columns of op(b)) over a range of k, stored [k][width]. What differs
 * between a matrix, its transpose and a convolution is only where element (line, k) lies, so each is a packer: a struct
 *
 *   void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *stage) const
 *
 * that fills panel[d * width + i] = element(line + i, k0 + d) for i < lines, d < depth, and 0 for lines <= i < width.
 * `stage` is scratch of kMaxLines * depth floats. Traffic: each element is read once and written once.
 */
#ifndef DIFFIT_CPU_GEMM_PACK_H
#define DIFFIT_CPU_GEMM_PACK_H

typedef float v4 __attribute__((vector_size(16)));
DIFFIT_INLINE v4 load4(const float *p) {
  v4 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
DIFFIT_INLINE void store4(float *p, v4 v) { __builtin_memcpy(p, &v, sizeof v); }

/* A short copy: whole vectors, the last one overlapping its neighbour. */
DIFFIT_INLINE void copyRun(float *to, const float *from, int64_t n) {
  if (n >= kLanes) {
    for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
    store(to + n - kLanes, load(from + n - kLanes));
  } else if (n >= 4) {
    for (int64_t i = 0; i + 4 <= n; i += 4) store4(to + i, load4(from + i));
    store4(to + n - 4, load4(from + n - 4));
  } else {
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
  }
}

/* Brings p[offset] to L2; it may lie outside the array. */
DIFFIT_INLINE void prefetchFar(const float *p, int64_t offset) {
  __builtin_prefetch((const char *)((uintptr_t)p + (uintptr_t)offset * sizeof(float)), 0, 2);
}

DIFFIT_INLINE void zeroRun(float *to, int64_t n) {
  for (int64_t i = 0; i < n; i++) to[i] = 0;
}

/* Lanes i, j of a, then k, l (counted from 4) of b. */
#if defined(__clang__)
#define DIFFIT_SHUFFLE4(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t i4 __attribute__((vector_size(16)));
#define DIFFIT_SHUFFLE4(a, b, i, j, k, l) __builtin_shuffle(a, b, i4{i, j, k, l})
#endif

/* Four lines by four steps of k: rows[i][d] -> panel[d * width + i]. */
DIFFIT_INLINE void transpose4x4(const float *row0, const float *row1, const float *row2, const float *row3,
                                float *panel, int64_t width) {
  const v4 a = load4(row0), b = load4(row1), c = load4(row2), d = load4(row3);
  const v4 ab0 = DIFFIT_SHUFFLE4(a, b, 0, 4, 1, 5), ab1 = DIFFIT_SHUFFLE4(a, b, 2, 6, 3, 7);
  const v4 cd0 = DIFFIT_SHUFFLE4(c, d, 0, 4, 1, 5), cd1 = DIFFIT_SHUFFLE4(c, d, 2, 6, 3, 7);
  store4(panel, DIFFIT_SHUFFLE4(ab0, cd0, 0, 1, 4, 5));
  store4(panel + width, DIFFIT_SHUFFLE4(ab0, cd0, 2, 3, 6, 7));
  store4(panel + 2 * width, DIFFIT_SHUFFLE4(ab1, cd1, 0, 1, 4, 5));
  store4(panel + 3 * width, DIFFIT_SHUFFLE4(ab1, cd1, 2, 3, 6, 7));
}
#undef DIFFIT_SHUFFLE4

/* Lines that are contiguous along k: panel[d * width + i] = rows[i][d]. Works on 32 steps of k (two cache lines of
   each row) at a time, four rows by four steps; the last group of rows overlaps its neighbour. Meanwhile it fetches the
   same part of the next panel, `ahead` numbers further in every row: many short streams defeat the hardware's prefetch. */
static void transposeRows(float *panel, int64_t width, const float *const *rows, int64_t lines, int64_t depth,
                          int64_t ahead) {
  if (lines < width)
    for (int64_t d = 0; d < depth; d++) zeroRun(panel + d * width + lines, width - lines);
  const int64_t whole = lines < 4 ? 0 : depth / 4 * 4;
  for (int64_t d0 = 0; d0 < whole; d0 += 32) {
    const int64_t d1 = imin(d0 + 32, whole);
    for (int64_t i = 0; i < lines; i++) {
      prefetchFar(rows[i], ahead + d0);
      prefetchFar(rows[i], ahead + d0 + 16);
    }
    for (int64_t i = 0; i < lines; i += 4) {
      const int64_t first = imin(i, lines - 4);
      const float *row0 = rows[first], *row1 = rows[first + 1], *row2 = rows[first + 2], *row3 = rows[first + 3];
      for (int64_t d = d0; d < d1; d += 4)
        transpose4x4(row0 + d, row1 + d, row2 + d, row3 + d, panel + d * width + first, width);
    }
  }
  for (int64_t d = whole; d < depth; d++)
    for (int64_t i = 0; i < lines; i++) panel[d * width + i] = rows[i][d];
}

/* A matrix stored line by line: rows of a plain `a`, columns of a transposed `b`. */
struct LineMatrix {
  const float *data;
  int64_t stride, step; /* to the next line; to the next matrix of the batch */
  LineMatrix at(int64_t item) const { return {data + item * step, stride, step}; }
  const float *line(int64_t index, float *) const { return data + index * stride; }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *) const {
    const float *rows[kMaxLines];
    for (int64_t i = 0; i < lines; i++) rows[i] = data + (line + i) * stride + k0;
    transposeRows(panel, width, rows, lines, depth, width * stride);
  }
};

/* The same in bf16: half the bytes from memory, widened on the way into the panels. */
struct Bf16LineMatrix {
  const Bf16 *data;
  int64_t stride, step;
  Bf16LineMatrix at(int64_t item) const { return {data + item * step, stride, step}; }
  static const float *widenRun(const Bf16 *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i++) to[i] = widen(from[i]);
    return to;
  }
  const float *line(int64_t index, float *stage) const { return widenRun(data + index * stride, stride, stage); }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *stage) const {
    const float *rows[kMaxLines];
    for (int64_t i = 0; i < lines; i++) rows[i] = widenRun(data + (line + i) * stride + k0, depth, stage + i * depth);
    transposeRows(panel, width, rows, lines, depth, 0);
  }
};

/* A matrix stored step by step of k: rows of a transposed `a`, columns of a plain `b`. */
struct DepthMatrix {
  const float *data;
  int64_t stride, step; /* to the next k; to the next matrix of the batch */
  DepthMatrix at(int64_t item) const { return {data + item * step, stride, step}; }
};

/* Panels of `width` lines, one after the other, from `line` on until `lines` are packed. */
template <class Packer>
static void packPanels(const Packer &packer, float *panels, int64_t width, int64_t line, int64_t lines, int64_t k0,
                       int64_t depth, float *stage) {
  for (; lines > 0; panels += width * depth, line += width, lines -= width)
    packer.pack(panels, width, line, imin(width, lines), k0, depth, stage);
}

/* All panels in one pass over k, so that each step reads one long run, and the runs of later steps are on their way. */
static void packPanels(const DepthMatrix &matrix, float *panels, int64_t width, int64_t line, int64_t lines, int64_t k0,
                       int64_t depth, float *) {
  const int64_t whole = lines / width, rest = lines % width, ahead = 24 * matrix.stride;
  const float *from = matrix.data + k0 * matrix.stride + line;
  for (int64_t d = 0; d < depth; d++, from += matrix.stride) {
    for (int64_t i = 0; i < lines; i += 16) prefetchFar(from, ahead + i);
    float *to = panels + d * width;
    for (int64_t q = 0; q < whole; q++, to += width * depth) copyRun(to, from + q * width, width);
    if (rest > 0) {
      copyRun(to, from + whole * width, rest);
      zeroRun(to + rest, width - rest);
    }
  }
}

#endif
