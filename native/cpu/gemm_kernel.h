/*
 * The register-blocked micro-kernel under every matrix product and convolution.
 *
 * microKernel<MR, NV>: C[MR, NV kLanes] (+)= A B for one panel of A and one of B, both packed k-major: A as [k][MR], B as
 * [k][NV kLanes]. All MR x NV accumulators live in registers; each step of k reads NV vectors of B and broadcasts MR
 * numbers of A, so the panels stream once from L1/L2 and C is touched once per call.
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

/* c has row stride ldc and is written whole (padded lanes too); `add` adds to what it holds. */
template <int MR, int NV>
static void microKernel(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool add) {
  vf sum[MR][NV];
#pragma GCC unroll 16
  for (int r = 0; r < MR; r++)
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) sum[r][v] = vf{};
  for (; k > 0; k--) {
    vf bs[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; v++) bs[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++) {
      const vf as = set1(a[r]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; v++) sum[r][v] += as * bs[v];
    }
    a += MR;
    b += NV * kLanes;
  }
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

typedef void (*MicroKernel)(int64_t k, const float *a, const float *b, float *c, int64_t ldc, bool add);

/* The kernel for panels of `rows` rows (1 .. MR) and NV vectors. */
template <int NV, int MR = kMaxRows>
static MicroKernel microKernelOf(int64_t rows) {
  if constexpr (MR > 1) {
    if (rows < MR) return microKernelOf<NV, MR - 1>(rows);
  }
  return microKernel<MR, NV>;
}

#endif
