/*
 * What happens to the sums of a matrix product (gemm in ops.def): bias, activation, gate, residual, accumulation, each where
 * it is given; and the same after sums of pieces of k have been joined. y, pre, gateInput and residual are [batch, m, n].
 */
#ifndef DIFFIT_CUDA_GEMM_EPILOGUE_CUH
#define DIFFIT_CUDA_GEMM_EPILOGUE_CUH

#include "mathfun.cuh"

namespace diffit {

struct Epilogue {
  const float *bias, *gateInput, *residual;
  float *y, *pre;
  int activation, gateKind;
  bool accumulate;

  /* Writes element `at` of y, which lies in column `column`. */
  __device__ void operator()(float v, int64_t at, int64_t column) const {
    if (bias) v += bias[column];
    if (pre) pre[at] = v;
    if (activation != DIFFIT_NO_ACTIVATION) v = unaryForwardOf(activation, v);
    if (gateInput) v *= unaryDerivativeOf(gateKind, gateInput[at]);
    if (residual) v += residual[at];
    if (accumulate) v += y[at];
    y[at] = v;
  }
  __host__ __device__ bool isPlain() const {
    return !pre && !gateInput && !residual && !accumulate && activation == DIFFIT_NO_ACTIVATION;
  }
};

/* Four neighbouring sums of a row through the epilogue; what lies outside m x n is dropped. */
struct EpilogueStore {
  Epilogue e;
  int m, n;
  __device__ void four(int64_t batch, unsigned, int row, int column, float4 v) const {
    if (row >= m || column >= n) return;
    const int64_t at = (batch * m + row) * n + column;
    if (n % 4 == 0 && e.isPlain()) {
      if (e.bias) {
        v.x += e.bias[column];
        v.y += e.bias[column + 1];
        v.z += e.bias[column + 2];
        v.w += e.bias[column + 3];
      }
      *(float4 *)(e.y + at) = v;
      return;
    }
#pragma unroll 1
    for (int j = 0; j < 4 && column + j < n; j++)
      e(j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w, at + j, column + j);
  }
};

/* Sums of one piece of k to [pieces, batch, m, n]. */
struct PartialStore {
  float *partials;
  int m, n;
  int64_t size;
  __device__ void four(int64_t batch, unsigned piece, int row, int column, float4 v) const {
    if (row >= m || column >= n) return;
    float *to = partials + piece * size + (batch * m + row) * n + column;
    for (int j = 0; j < 4 && column + j < n; j++) to[j] = (&v.x)[j];
  }
};

/* The pieces in order, then the epilogue. */
inline diffit_status joinPartials(diffit_context *ctx, const float *partials, int64_t pieces, const Epilogue &e,
                                  int64_t batch, int64_t m, int64_t n) {
  const int64_t size = batch * m * n;
  return forEach(ctx, size, [=] __device__(int64_t i) {
    float sum = 0;
    for (int64_t p = 0; p < pieces; p++) sum += partials[p * size + i];
    e(sum, i, i % n);
  });
}

}  // namespace diffit

#endif
