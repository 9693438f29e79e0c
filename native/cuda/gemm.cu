/*
 * The operation gemm: batched matrix products in all four transpositions, f32, b also in bf16 (a linear layer with
 * half-size weights). Shapes: op(a) [batch or 1, m, k], op(b) [batch or 1, k, n], y [batch, m, n]. How it works: gemm_tile.cuh.
 */
#include "gemm_load.cuh"
#include "gemm_tile.cuh"

namespace diffit {
diffit_status gemm_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b, const diffit_tensor *bias,
                      const diffit_tensor *gateInput, const diffit_tensor *residual, diffit_tensor *y,
                      diffit_tensor *pre, int64_t batch, int64_t m, int64_t n, int64_t k, int64_t transA,
                      int64_t transB, int64_t activation, int64_t gateKind, int64_t accumulate) {
  REQUIRE_F32(a);
  REQUIRE(b->dtype == DIFFIT_F32 || (b->dtype == DIFFIT_BF16 && !transA && transB));
  REQUIRE_F32(y);
  const int64_t limit = (int64_t)1 << 31;
  REQUIRE(batch >= 0 && m >= 0 && n >= 0 && k >= 0 && batch < limit && m < limit && n < limit && k < limit);
  int64_t size = 0;
  REQUIRE(!__builtin_mul_overflow(m * n, batch, &size) && numel(y) == size);
  REQUIRE(!__builtin_mul_overflow(m * k, batch, &size) && (numel(a) == size || numel(a) == m * k));
  REQUIRE(!__builtin_mul_overflow(k * n, batch, &size) && (numel(b) == size || numel(b) == k * n));
  REQUIRE(!bias || isVector(bias, n));
  REQUIRE(!gateInput || isVector(gateInput, numel(y)));
  REQUIRE(!residual || isVector(residual, numel(y)));
  REQUIRE(!pre || isVector(pre, numel(y)));
  REQUIRE(activation == DIFFIT_NO_ACTIVATION || isActivation(activation));
  REQUIRE(!gateInput || isActivation(gateKind));
  const Epilogue e = {f32(bias), f32(gateInput),  f32(residual), f32(y),
                      f32(pre),  (int)activation, (int)gateKind, accumulate != 0};
  const int64_t aStep = numel(a) == m * k ? 0 : m * k, bStep = numel(b) == k * n ? 0 : k * n;
  if (bStep == 0 && aStep != 0 && !transA) { /* one tall matrix */
    m *= batch;
    batch = 1;
  }
  if (b->dtype == DIFFIT_BF16)
    return multiply(ctx, linesOf<float>(a, m, k, aStep), linesOf<bf16>(b, n, k, bStep), e, batch, m, n, k);
  if (transA && transB) return multiply(ctx, depthsOf(a, m, aStep), linesOf<float>(b, n, k, bStep), e, batch, m, n, k);
  if (transA) return multiply(ctx, depthsOf(a, m, aStep), depthsOf(b, n, bStep), e, batch, m, n, k);
  if (transB) return multiply(ctx, linesOf<float>(a, m, k, aStep), linesOf<float>(b, n, k, bStep), e, batch, m, n, k);
  return multiply(ctx, linesOf<float>(a, m, k, aStep), depthsOf(b, n, bStep), e, batch, m, n, k);
}

}  // namespace diffit
