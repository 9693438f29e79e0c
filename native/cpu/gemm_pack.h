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
 *
 * A packer may have, too: rows(), a left operand's for the kernels, as they lie or copied, with kLines, whether for lineKernel or
 * stepKernel, and kRowWork, what that costs an element (as packWork); and region(), the memory that packing some lines reads.
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
template <class T>
DIFFIT_INLINE void prefetchFar(const T *p, int64_t offset) {
  __builtin_prefetch((const char *)((uintptr_t)p + (uintptr_t)offset * sizeof(T)), 0, 2);
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

#if defined(__AVX512F__)
/* Sixteen lines by four steps of k. Each register takes four lines, a quarter each; the same four-by-four transpose in all quarters
   then leaves the lines in order. */
DIFFIT_INLINE void transpose16x4(const float *const *rows, int64_t d, float *panel, int64_t width) {
  __m512 q[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    q[i] = _mm512_castps128_ps512(_mm_loadu_ps(rows[i] + d));
    q[i] = _mm512_mask_broadcast_f32x4(q[i], 0x00f0, _mm_loadu_ps(rows[i + 4] + d));
    q[i] = _mm512_mask_broadcast_f32x4(q[i], 0x0f00, _mm_loadu_ps(rows[i + 8] + d));
    q[i] = _mm512_mask_broadcast_f32x4(q[i], 0xf000, _mm_loadu_ps(rows[i + 12] + d));
  }
  const __m512 a = _mm512_unpacklo_ps(q[0], q[1]), b = _mm512_unpackhi_ps(q[0], q[1]);
  const __m512 c = _mm512_unpacklo_ps(q[2], q[3]), e = _mm512_unpackhi_ps(q[2], q[3]);
  _mm512_storeu_ps(panel, (__m512)_mm512_unpacklo_pd((__m512d)a, (__m512d)c));
  _mm512_storeu_ps(panel + width, (__m512)_mm512_unpackhi_pd((__m512d)a, (__m512d)c));
  _mm512_storeu_ps(panel + 2 * width, (__m512)_mm512_unpacklo_pd((__m512d)b, (__m512d)e));
  _mm512_storeu_ps(panel + 3 * width, (__m512)_mm512_unpackhi_pd((__m512d)b, (__m512d)e));
}
#endif

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
    for (int64_t i = 0; ahead > 0 && i < lines; i++) {
      prefetchFar(rows[i], ahead + d0);
      prefetchFar(rows[i], ahead + d0 + 16);
    }
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= lines; i += 16)
      for (int64_t d = d0; d < d1; d += 4) transpose16x4(rows + i, d, panel + d * width + i, width);
#endif
    for (; i < lines; i += 4) {
      const int64_t first = imin(i, lines - 4);
      const float *row0 = rows[first], *row1 = rows[first + 1], *row2 = rows[first + 2], *row3 = rows[first + 3];
      for (int64_t d = d0; d < d1; d += 4)
        transpose4x4(row0 + d, row1 + d, row2 + d, row3 + d, panel + d * width + first, width);
    }
  }
  for (int64_t d = whole; d < depth; d++)
    for (int64_t i = 0; i < lines; i++)
      memcpy(panel + d * width + i, rows[i] + d, sizeof(float)); /* bf16 pairs lie anywhere */
}

/* Some rows of A at one block of k, for the kernels: lines, or steps of k, `stride` apart. */
struct Lines {
  const float *data;
  int64_t stride;
};

/* A matrix stored line by line: rows of a plain `a`, columns of a transposed `b`. */
struct LineMatrix {
  const float *data;
  int64_t stride, step; /* to the next line; to the next matrix of the batch */
  static constexpr bool kLines = true;
  static constexpr double kRowWork = 4;
  LineMatrix at(int64_t item) const { return {data + item * step, stride, step}; }
  const float *line(int64_t index, float *) const { return data + index * stride; }
  Lines rows(int64_t line, int64_t, int64_t k0, int64_t, float *) const { return {data + line * stride + k0, stride}; }
  Region region(int64_t line, int64_t lines, int64_t k0, int64_t depth) const {
    return {(const char *)(data + line * stride + k0), lines, depth * 4, stride * 4};
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *,
            bool last) const {
    const float *rows[kMaxLines];
    for (int64_t i = 0; i < lines; i++) rows[i] = data + (line + i) * stride + k0;
    transposeRows(panel, width, rows, lines, depth, last ? 0 : width * stride);
  }
};

static void widenRun(const Bf16 *from, float *to, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  if (i < n) storePartial(to + i, loadPartial(from + i, n - i), n - i);
}
/* A short one, as that of f32. */
DIFFIT_INLINE void copyRun(float *to, const Bf16 *from, int64_t n) {
  if (n < kLanes) return storePartial(to, loadPartial(from, n), n);
  for (int64_t i = 0; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  store(to + n - kLanes, load(from + n - kLanes));
}

/* The same in bf16: half the bytes from memory, widened on the way. As a left operand its lines are copied, kLinePad numbers apart so
   that they do not all fall on the same sets of the cache; a panel is transposed in pairs of steps of k, which are then
   taken apart. */
struct Bf16LineMatrix {
  const Bf16 *data;
  int64_t stride, step;
  static constexpr bool kLines = true;
  static constexpr double kRowWork = 8;
  static constexpr int64_t kLinePad = 16;
  Bf16LineMatrix at(int64_t item) const { return {data + item * step, stride, step}; }
  const float *line(int64_t index, float *stage) const {
    widenRun(data + index * stride, stage, stride);
    return stage;
  }
  Lines rows(int64_t line, int64_t lines, int64_t k0, int64_t depth, float *to) const {
    const int64_t apart = depth + kLinePad;
    for (int64_t i = 0; i < lines; i++) widenRun(data + (line + i) * stride + k0, to + i * apart, depth);
    return {to, apart};
  }
  Region region(int64_t line, int64_t lines, int64_t k0, int64_t depth) const {
    return {(const char *)(data + line * stride + k0), lines, depth * 2, stride * 2};
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *stage,
            bool last) const {
    const float *rows[kMaxLines];
    const Bf16 *from = data + line * stride + k0;
    for (int64_t i = 0; i < lines; i++) rows[i] = (const float *)(from + i * stride);
    const int64_t pairs = depth / 2;
    transposeRows(stage, width, rows, lines, pairs, last ? 0 : width * stride / 2);
    for (int64_t d = 0; d < pairs; d++) {
      float *even = panel + 2 * d * width, *odd = even + width;
      int64_t i = 0;
      for (; i + kLanes <= width; i += kLanes) {
        const vu pair = (vu)load(stage + d * width + i);
        store(even + i, (vf)(pair << 16));
        store(odd + i, (vf)(pair & 0xffff0000u));
      }
      for (; i < width; i++) {
        const uint32_t pair = bitsOf(stage[d * width + i]);
        even[i] = floatOf(pair << 16);
        odd[i] = floatOf(pair & 0xffff0000u);
      }
    }
    if (depth % 2 == 0) return;
    float *odd = panel + (depth - 1) * width;
    for (int64_t i = 0; i < lines; i++) odd[i] = widen(from[i * stride + depth - 1]);
    zeroRun(odd + lines, width - lines);
  }
};

/* A matrix stored step by step of k, in f32 or bf16: rows of a transposed `a`, columns of a plain `b`. */
template <class T>
struct DepthMatrixOf {
  const T *data;
  int64_t stride, step; /* to the next k; to the next matrix of the batch */
  DepthMatrixOf at(int64_t item) const { return {data + item * step, stride, step}; }
  Region region(int64_t line, int64_t lines, int64_t k0, int64_t depth) const {
    const int64_t size = (int64_t)sizeof(T);
    return {(const char *)(data + k0 * stride + line), depth, lines * size, stride * size};
  }
};
typedef DepthMatrixOf<float> DepthMatrix;
typedef DepthMatrixOf<Bf16> Bf16DepthMatrix;

/* The same in f32 as a left operand, which stepKernel reads where it lies. */
struct DepthRows {
  const float *data;
  int64_t stride, step;
  static constexpr bool kLines = false;
  static constexpr double kRowWork = 10;
  DepthRows at(int64_t item) const { return {data + item * step, stride, step}; }
  Lines rows(int64_t line, int64_t, int64_t k0, int64_t, float *) const { return {data + k0 * stride + line, stride}; }
  Region region(int64_t line, int64_t lines, int64_t k0, int64_t depth) const {
    return {(const char *)(data + k0 * stride + line), depth, lines * 4, stride * 4};
  }
};

/* Panels of `width` lines, one after the other, from `line` on until `lines` are packed. */
template <class Packer>
static void packPanels(const Packer &packer, float *panels, int64_t width, int64_t line, int64_t lines, int64_t k0,
                       int64_t depth, float *stage) {
  for (; lines > 0; panels += width * depth, line += width, lines -= width)
    packer.pack(panels, width, line, imin(width, lines), k0, depth, stage);
}

/* So that lines do not ask for memory beyond the last panel, which may be fetched already, or not be wanted. */
template <class Packer>
static void packLines(const Packer &packer, float *panels, int64_t width, int64_t line, int64_t lines, int64_t k0,
                      int64_t depth, float *stage) {
  for (; lines > 0; panels += width * depth, line += width, lines -= width)
    packer.pack(panels, width, line, imin(width, lines), k0, depth, stage, lines <= width);
}
static void packPanels(const LineMatrix &packer, float *panels, int64_t width, int64_t line, int64_t lines, int64_t k0,
                       int64_t depth, float *stage) {
  packLines(packer, panels, width, line, lines, k0, depth, stage);
}
static void packPanels(const Bf16LineMatrix &packer, float *panels, int64_t width, int64_t line, int64_t lines,
                       int64_t k0, int64_t depth, float *stage) {
  packLines(packer, panels, width, line, lines, k0, depth, stage);
}

/* A run of a panel's width, known to be kMaxCols or at most a vector. */
struct WholeRun {
  template <class T>
  void operator()(float *to, const T *from) const {
#pragma GCC unroll 2
    for (int i = 0; i < kMaxCols; i += kLanes) store(to + i, load(from + i));
  }
};
struct ShortRun {
  int64_t n;
  void operator()(float *to, const float *from) const {
#if defined(__AVX512F__)
    storePartial(to, loadPartial(from, n), n);
#else
    copyRun(to, from, n);
#endif
  }
  void operator()(float *to, const Bf16 *from) const { widenRun(from, to, n); }
};

/* All panels in one pass over k, so that each step reads one long run, and the runs of later steps are on their way. */
template <class T, class Run>
static void packRuns(const DepthMatrixOf<T> &matrix, float *panels, int64_t width, int64_t line, int64_t lines,
                     int64_t k0, int64_t depth, const Run &copy) {
  const int64_t whole = lines / width, rest = lines % width, perLine = 64 / (int64_t)sizeof(T);
  const int64_t ahead = 24 * matrix.stride;
  const T *from = matrix.data + k0 * matrix.stride + line;
  for (int64_t d = 0; d < depth; d++, from += matrix.stride) {
    for (int64_t i = 0; i < lines; i += perLine) prefetchFar(from, ahead + i);
    float *to = panels + d * width;
    for (int64_t q = 0; q < whole; q++, to += width * depth) copy(to, from + q * width);
    if (rest > 0) {
      for (int64_t i = 0; i < rest; i++) to[i] = widen(from[whole * width + i]);
      zeroRun(to + rest, width - rest);
    }
  }
}
template <class T>
static void packPanels(const DepthMatrixOf<T> &matrix, float *panels, int64_t width, int64_t line, int64_t lines,
                       int64_t k0, int64_t depth, float *) {
  if (width == kMaxCols) return packRuns(matrix, panels, width, line, lines, k0, depth, WholeRun{});
  packRuns(matrix, panels, width, line, lines, k0, depth, ShortRun{width});
}

/* Estimated work of packing a number, in multiply-adds: copies of runs, or transposes and windows of images. */
template <class Packer>
static constexpr double packWork(const Packer &) {
  return 40;
}
template <class T>
static constexpr double packWork(const DepthMatrixOf<T> &) {
  return 15;
}

#endif
