/*
 * The register-blocked micro-kernel under every matrix product and convolution.
 *
 * C[MR, NV kLanes] (+)= A B for MR lines of A and one panel of B, which is packed as [k][NV kLanes]. stepKernel takes A step by
 * step of k, packed as [k][MR] or where a transposed matrix has it; lineKernel takes lines that are contiguous along k where they
 * lie. So an f32 left operand is never copied.
 * All MR x NV accumulators live in registers; each step of k reads NV vectors of B and broadcasts MR numbers of A, so both
 * stream once from L1/L2 and C is touched once per call.
 *
 * The blocking is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", and of Van Zee
 * and van de Geijn, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality".
 */
#ifndef DIFFIT_CPU_GEMM_KERNEL_H
#define DIFFIT_CPU_GEMM_KERNEL_H

/* Tallest panel of A, chosen so that kMaxRows x kMaxVectors accumulators, the vectors of B and one broadcast fit the
   register file: 32 registers with AVX-512 and NEON, else 16 (SSE2 spends two more, on the broadcast and the product). */
#if defined(__AVX512F__)
static constexpr int kMaxRows = 14;
#elif defined(__aarch64__)
static constexpr int kMaxRows = 10;
#elif defined(__AVX2__)
static constexpr int kMaxRows = 6;
#else
static constexpr int kMaxRows = 5;
#endif
static constexpr int kMaxVectors = 2;
static constexpr int kMaxCols = kMaxVectors * kLanes;
static constexpr int kMaxLines = kMaxRows > kMaxCols ? kMaxRows : kMaxCols;

/* One step of k: MR numbers of A, given by at(r), times NV vectors of B. */
template <int MR, int NV, class At>
DIFFIT_INLINE void multiplyStep(vf (&sum)[MR][NV], const float *b, const At &at) {
  vf bs[NV];
#pragma GCC unroll 2
  for (int v = 0; v < NV; v++) bs[v] = load(b + v * kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++) {
    const vf as = set1(at(r));
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) sum[r][v] += as * bs[v];
  }
}

template <int MR, int NV>
DIFFIT_INLINE void clearSums(vf (&sum)[MR][NV]) {
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) sum[r][v] = vf{};
}

/* c has row stride ldc and is written whole (padded lanes too); `add` adds to what it holds. */
template <int MR, int NV>
DIFFIT_INLINE void storeSums(vf (&sum)[MR][NV], float *c, int64_t ldc, bool add) {
  if (add) {
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) sum[r][v] += load(c + r * ldc + v * kLanes);
  }
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) store(c + r * ldc + v * kLanes, sum[r][v]);
}

/* Cache lines to ask for while a kernel runs, one every kFetchSteps steps of k, so that none of its own loads waits behind them. A
   step of 0 asks for the same line again and again: for callers that have none. */
static constexpr int64_t kFetchSteps = 4;
struct Fetches {
  const char *const *next;
  int64_t step;
};

/* steps(n) does the next n steps of k. */
template <class Steps>
DIFFIT_INLINE void forSteps(int64_t k, Fetches fetches, const Steps &steps) {
  for (; k >= kFetchSteps; k -= kFetchSteps, fetches.next += fetches.step) {
    __builtin_prefetch(*fetches.next, 0, 2);
    steps(kFetchSteps);
  }
  for (; k > 0; k--) steps(1);
}

/* Both kernels: C (+)= A B over k steps. Here the numbers of a step lie next to each other, and the steps of A `stride` apart. */
template <int MR, int NV>
static void stepKernel(int64_t k, const float *a, int64_t stride, const float *b, float *c, int64_t ldc, bool add,
                       Fetches fetches) {
  vf sum[MR][NV];
  clearSums(sum);
  forSteps(
      k, fetches, [&](int64_t steps) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int64_t d = 0; d < steps; d++, a += stride, b += NV * kLanes)
          multiplyStep(
              sum, b, [&](int r) __attribute__((always_inline)) { return a[r]; });
      });
  storeSums(sum, c, ldc, add);
}

/* Here A's lines lie `stride` apart. A pointer for every three of them: x86 adds once and twice a register to an address for free. */
template <int MR, int NV>
static void lineKernel(int64_t k, const float *a, int64_t stride, const float *b, float *c, int64_t ldc, bool add,
                       Fetches fetches) {
  vf sum[MR][NV];
  clearSums(sum);
  constexpr int kTriples = (MR + 2) / 3;
  const float *lines[kTriples];
#pragma GCC unroll 16
  for (int i = 0; i < kTriples; i++) lines[i] = a + 3 * i * stride;
  forSteps(
      k, fetches, [&](int64_t steps) __attribute__((always_inline)) {
#pragma GCC unroll 4
        for (int64_t d = 0; d < steps; d++, b += NV * kLanes)
          multiplyStep(
              sum, b, [&](int r) __attribute__((always_inline)) { return lines[r / 3][r % 3 * stride + d]; });
#pragma GCC unroll 16
        for (int i = 0; i < kTriples; i++) {
          lines[i] += steps;
          __asm__("" : "+r"(lines[i])); /* else compilers keep a pointer per line, more than there are registers */
        }
      });
  storeSums(sum, c, ldc, add);
}

typedef void (*Kernel)(int64_t k, const float *a, int64_t stride, const float *b, float *c, int64_t ldc, bool add,
                       Fetches fetches);

struct FloatKernels {
  template <int MR, int NV>
  static constexpr Kernel steps = stepKernel<MR, NV>;
  template <int MR, int NV>
  static constexpr Kernel lines = lineKernel<MR, NV>;
};

/* The kernel for `rows` rows (1 .. MR) and NV vectors: of lines, or of steps. */
template <int NV, bool lines, class Kernels = FloatKernels, int MR = kMaxRows>
static Kernel kernelOf(int64_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return kernelOf<NV, lines, Kernels, MR - 1>(rows);
  }
  if constexpr (lines)
    return Kernels::template lines<MR, NV>;
  else
    return Kernels::template steps<MR, NV>;
}

/* C (+)= A B for panels of A packed as [k][rows], by itself. */
struct MicroKernel {
  Kernel steps;
  int64_t rows;
  void operator()(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool add) const {
    const char *none = (const char *)b;
    (*this)(k, a, b, c, ldc, add, {&none, 0});
  }
  void operator()(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool add, Fetches fetches) const {
    steps(k, a, rows, b, c, ldc, add, fetches);
  }
};
template <int NV>
static MicroKernel microKernelOf(int64_t rows) {
  return {kernelOf<NV, false>(rows), rows};
}

#endif
