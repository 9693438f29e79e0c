/*
 * Products of two bf16 matrices with the processor's dot product of pairs, vdpbf16ps: a lane of an accumulator takes two products
 * of bf16 numbers at once. A pair of steps of k stands where the f32 kernels have one number, 32 bits like it, so the driver, its
 * plans and its panels serve as they are; after an odd k comes a zero. A plain `a` is read where it lies.
 *
 * The instruction takes denormals for zeros and rounds each of its two additions. It is worth its while where it runs as often as
 * a multiply-add (Zen 4 and 5); at half of that rate (Intel's cores) widening to f32 is as fast and more exact. The context says which.
 */
#ifndef DIFFIT_CPU_GEMM_DOT_H
#define DIFFIT_CPU_GEMM_DOT_H

#if defined(__AVX512F__)

/* One pair of steps of k: MR pairs of A, which lie at at(r), times NV vectors of pairs of B. */
template <int MR, int NV, class At>
__attribute__((target("avx512bf16"), always_inline)) static inline void dotStep(vf (&sum)[MR][NV], const float *b,
                                                                                const At &at) {
  __m512bh bs[NV];
#pragma GCC unroll 2
  for (int v = 0; v < NV; v++) bs[v] = (__m512bh)load(b + v * kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
    int32_t pair;
    __builtin_memcpy(&pair, at(r), sizeof pair);
    const __m512bh as = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) sum[r][v] = (vf)_mm512_dpbf16_ps((__m512)sum[r][v], as, bs[v]);
  }
}

/* As stepKernel, on pairs. */
template <int MR, int NV>
__attribute__((target("avx512bf16"))) static void dotSteps(int64_t k, const float *a, int64_t stride, const float *b,
                                                           float *c, int64_t ldc, bool add, Fetches fetches) {
  vf sum[MR][NV];
  clearSums(sum);
  for (; k > 0; k--, a += stride, b += NV * kLanes) {
    if (k % kFetchSteps == 0) {
      __builtin_prefetch(*fetches.next, 0, 2);
      fetches.next += fetches.step;
    }
    dotStep(
        sum, b, [&](int r) __attribute__((always_inline)) { return a + r; });
  }
  storeSums(sum, c, ldc, add);
}

/* As lineKernel, on pairs. */
template <int MR, int NV>
__attribute__((target("avx512bf16"))) static void dotLinesOf(int64_t k, const float *a, int64_t stride, const float *b,
                                                             float *c, int64_t ldc, bool add, Fetches fetches) {
  vf sum[MR][NV];
  clearSums(sum);
  constexpr int kTriples = (MR + 2) / 3;
  const float *lines[kTriples];
#pragma GCC unroll 16
  for (int i = 0; i < kTriples; i++) lines[i] = a + 3 * i * stride;
  for (; k > 0; k--, b += NV * kLanes) {
    if (k % kFetchSteps == 0) {
      __builtin_prefetch(*fetches.next, 0, 2);
      fetches.next += fetches.step;
    }
    dotStep(
        sum, b, [&](int r) __attribute__((always_inline)) { return lines[r / 3] + r % 3 * stride; });
#pragma GCC unroll 16
    for (int i = 0; i < kTriples; i++) {
      lines[i]++;
      __asm__("" : "+r"(lines[i]));
    }
  }
  storeSums(sum, c, ldc, add);
}

struct DotKernels {
  template <int MR, int NV>
  static constexpr Kernel steps = dotSteps<MR, NV>;
  template <int MR, int NV>
  static constexpr Kernel lines = dotLinesOf<MR, NV>;
};

/* Bf16 lines as lines of pairs. Those of an odd k are copied where the last one needs its zero. */
struct PairLineMatrix {
  typedef DotKernels Kernels;
  const Bf16 *data;
  static constexpr bool kLines = true;
  int64_t stride, step; /* in numbers: to the next line, which is k; to the next matrix of the batch */
  static constexpr double kRowWork = 4;
  static constexpr int64_t kLinePad = 16;
  PairLineMatrix at(int64_t item) const { return {data + item * step, stride, step}; }
  Lines rows(int64_t line, int64_t lines, int64_t k0, int64_t depth, float *to) const {
    const Bf16 *from = data + line * stride + 2 * k0;
    if (stride % 2 == 0) return {(const float *)from, stride / 2};
    const int64_t apart = depth + kLinePad, numbers = imin(2 * depth, stride - 2 * k0);
    for (int64_t i = 0; i < lines; i++) {
      to[i * apart + depth - 1] = 0;
      memcpy(to + i * apart, from + i * stride, (size_t)numbers * sizeof(Bf16));
    }
    return {to, apart};
  }
  Region region(int64_t line, int64_t lines, int64_t k0, int64_t depth) const {
    const int64_t numbers = imin(2 * depth, stride - 2 * k0);
    return {(const char *)(data + line * stride + 2 * k0), lines, numbers * 2, stride * 2};
  }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *) const {
    const float *rows[kMaxLines];
    const Bf16 *from = data + line * stride + 2 * k0;
    for (int64_t i = 0; i < lines; i++) rows[i] = (const float *)(from + i * stride);
    const int64_t whole = imin(depth, stride / 2 - k0);
    transposeRows(panel, width, rows, lines, whole, width * stride / 2);
    if (whole == depth) return;
    float *last = panel + whole * width;
    for (int64_t i = 0; i < lines; i++) last[i] = floatOf(from[i * stride + 2 * whole].bits);
    zeroRun(last + lines, width - lines);
  }
};

/* A bf16 matrix stored step by step of k: two steps are interleaved to pairs. */
struct PairDepthMatrix {
  typedef DotKernels Kernels;
  const Bf16 *data;
  int64_t stride, step, k; /* in numbers: to the next k; to the next matrix of the batch; all of k */
  PairDepthMatrix at(int64_t item) const { return {data + item * step, stride, step, k}; }
  void pack(float *panel, int64_t width, int64_t line, int64_t lines, int64_t k0, int64_t depth, float *) const {
    const Bf16 *even = data + 2 * k0 * stride + line;
    const int64_t whole = imin(depth, k / 2 - k0), ahead = 16 * stride;
    for (int64_t d = 0; d < depth; d++, even += 2 * stride, panel += width) {
      prefetchFar(even, ahead);
      prefetchFar(even, ahead + stride);
      for (int64_t i = 0; i < width; i += kLanes) {
        const int64_t n = imax(0, imin(kLanes, lines - i));
        const vu low = (vu)loadPartial(even + i, n) >> 16;
        const vu high = d < whole ? (vu)loadPartial(even + stride + i, n) : vu{};
        storePartial(panel + i, (vf)(low | high), imin(kLanes, width - i));
      }
    }
  }
};
static constexpr double packWork(const PairDepthMatrix &) { return 20; }

static diffit_status multiplyPairs(diffit_context *ctx, const Bf16 *a, int64_t aStep, bool transA, const Bf16 *b,
                                   int64_t bStep, bool transB, const Epilogue &e, int64_t batch, int64_t m, int64_t n,
                                   int64_t k) {
  const bool oneB = bStep == 0 || batch == 1;
  const int64_t pairs = ceilDiv(k, 2);
  const PairLineMatrix aLines = {a, k, aStep}, bLines = {b, k, bStep};
  const PairDepthMatrix aDepths = {a, m, aStep, k}, bDepths = {b, n, bStep, k};
  if (transA && transB) return multiply(ctx, aDepths, bLines, e, batch, m, n, pairs, oneB);
  if (transA) return multiply(ctx, aDepths, bDepths, e, batch, m, n, pairs, oneB);
  if (transB) return multiply(ctx, aLines, bLines, e, batch, m, n, pairs, oneB);
  return multiply(ctx, aLines, bDepths, e, batch, m, n, pairs, oneB);
}

#endif

#endif
