/*
 * The register-blocked micro-kernel under every matrix product and convolution.
 *
 * C[MR, NV kLanes] (+)= A B for MR lines of A and one panel of B, which is packed as [k][NV kLanes]. microKernel takes A packed,
 * as [k][MR]; lineKernel takes the lines where they lie, each contiguous along k, so that a plain left operand is never copied.
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

template <int MR, int NV>
static void microKernel(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool add) {
  vf sum[MR][NV];
  clearSums(sum);
  for (; k > 0; k--) {
    multiplyStep(
        sum, b, [&](int r) __attribute__((always_inline)) { return a[r]; });
    a += MR;
    b += NV * kLanes;
  }
  storeSums(sum, c, ldc, add);
}

/* A's lines lie `stride` apart. A pointer for every three of them: x86 adds once and twice a register to an address for free. */
template <int MR, int NV>
static void lineKernel(int64_t k, const float *a, int64_t stride, const float *b, float *c, int64_t ldc, bool add) {
  vf sum[MR][NV];
  clearSums(sum);
  constexpr int kTriples = (MR + 2) / 3;
  const float *lines[kTriples];
#pragma GCC unroll 16
  for (int i = 0; i < kTriples; i++) lines[i] = a + 3 * i * stride;
  const auto advance = [&](int64_t steps) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int64_t d = 0; d < steps; d++, b += NV * kLanes)
      multiplyStep(
          sum, b, [&](int r) __attribute__((always_inline)) { return lines[r / 3][r % 3 * stride + d]; });
#pragma GCC unroll 16
    for (int i = 0; i < kTriples; i++) {
      lines[i] += steps;
      __asm__("" : "+r"(lines[i])); /* else compilers keep a pointer per line, more than there are registers */
    }
  };
  for (; k > 1; k -= 2) advance(2);
  if (k > 0) advance(1);
  storeSums(sum, c, ldc, add);
}

typedef void (*MicroKernel)(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool add);
typedef void (*LineKernel)(int64_t k, const float *a, int64_t stride, const float *b, float *c, int64_t ldc, bool add);

struct FloatKernels {
  template <int MR, int NV>
  static constexpr MicroKernel packed = microKernel<MR, NV>;
  template <int MR, int NV>
  static constexpr LineKernel inPlace = lineKernel<MR, NV>;
};

/* The kernel for panels of `rows` rows (1 .. MR) and NV vectors. */
template <int NV, class Kernels = FloatKernels, int MR = kMaxRows>
static MicroKernel microKernelOf(int64_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return microKernelOf<NV, Kernels, MR - 1>(rows);
  }
  return Kernels::template packed<MR, NV>;
}
template <int NV, class Kernels = FloatKernels, int MR = kMaxRows>
static LineKernel lineKernelOf(int64_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return lineKernelOf<NV, Kernels, MR - 1>(rows);
  }
  return Kernels::template inPlace<MR, NV>;
}

#endif
