/*
 * The operation gemm: batched matrix products in all four transpositions. Shapes: op(a) [batch or 1, m, k], op(b) [batch or 1, k, n], y
 * [batch, m, n]. f32 operands (b also bf16: a linear layer with half-size weights) are multiplied in f32 by gemm_tile.cuh; bf16
 * and f16 on tensor cores, by CUTLASS where it is built in and has the case (cutlass_gemm.cuh), else by gemm_mma.cuh.
 */
#include <stdlib.h>
#include <string.h>

#include "cutlass_gemm.cuh"
#include "gemm_load.cuh"
#include "gemm_problem.cuh"
#include "gemm_tile.cuh"

namespace diffit {
namespace {

/* f32 in full: a x b on the ordinary units. */
diffit_status exactGemm(diffit_context *ctx, const GemmProblem &p) {
  auto run = [&](const auto &a, const auto &b) { return multiply(ctx, a, b, p.e, p.batch, p.m, p.n, p.k); };
  if (p.b->dtype == DIFFIT_BF16)
    return run(linesOf<float>(p.a, p.m, p.k, p.aStep), linesOf<bf16>(p.b, p.n, p.k, p.bStep));
  const LineLoader<float> a = linesOf<float>(p.a, p.m, p.k, p.aStep), b = linesOf<float>(p.b, p.n, p.k, p.bStep);
  const DepthLoader acrossA = depthsOf(p.a, p.m, p.aStep), acrossB = depthsOf(p.b, p.n, p.bStep);
  if (p.transA && p.transB) return run(acrossA, b);
  if (p.transA) return run(acrossA, acrossB);
  return p.transB ? run(a, b) : run(a, acrossB);
}

}  // namespace

bool useTf32() {
  static const bool asked = [] {
    const char *value = getenv("DIFFIT_TF32");
    return value && strcmp(value, "1") == 0;
  }();
  return asked;
}

diffit_status gemm_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b, const diffit_tensor *bias,
                      const diffit_tensor *gateInput, const diffit_tensor *residual, diffit_tensor *y,
                      diffit_tensor *pre, int64_t batch, int64_t m, int64_t n, int64_t k, int64_t transA,
                      int64_t transB, int64_t activation, int64_t gateKind, int64_t accumulate) {
  REQUIRE(isFloat(a));
  REQUIRE(b->dtype == a->dtype || (a->dtype == DIFFIT_F32 && b->dtype == DIFFIT_BF16 && !transA && transB));
  const int64_t limit = (int64_t)1 << 31;
  REQUIRE(batch >= 0 && m >= 0 && n >= 0 && k >= 0 && batch < limit && m < limit && n < limit && k < limit);
  int64_t size = 0;
  REQUIRE(!__builtin_mul_overflow(m * k, batch, &size) && (numel(a) == size || numel(a) == m * k));
  REQUIRE(!__builtin_mul_overflow(k * n, batch, &size) && (numel(b) == size || numel(b) == k * n));
  REQUIRE(!__builtin_mul_overflow(m * n, batch, &size) && isFloatVector(y, size));
  REQUIRE(!bias || isVector(bias, n));
  REQUIRE(!gateInput || isFloatVector(gateInput, size));
  REQUIRE(!residual || isFloatVector(residual, size));
  REQUIRE(!pre || isFloatVector(pre, size));
  REQUIRE(activation == DIFFIT_NO_ACTIVATION || isActivation(activation));
  REQUIRE(!gateInput || isActivation(gateKind));
  GemmProblem p = {};
  p.a = a;
  p.b = b;
  p.e = {f32(bias),   floats(gateInput), floats(residual), floats(y),
         floats(pre), (int)activation,   (int)gateKind,    accumulate != 0};
  p.aStep = numel(a) == m * k ? 0 : m * k;
  p.bStep = numel(b) == k * n ? 0 : k * n;
  p.transA = transA != 0;
  p.transB = transB != 0;
  const bool tall = p.bStep == 0 && p.aStep != 0 && !transA; /* one tall matrix */
  p.batch = tall ? 1 : batch;
  p.m = tall ? m * batch : m;
  p.n = n;
  p.k = k;
  if (a->dtype == DIFFIT_F32) return useTf32() && b->dtype == DIFFIT_F32 ? mmaGemm<float>(ctx, p) : exactGemm(ctx, p);
  bool taken = false;
  TRY(cutlassGemm(ctx, p, &taken));
  if (taken) return DIFFIT_OK;
  return a->dtype == DIFFIT_BF16 ? mmaGemm<bf16>(ctx, p) : mmaGemm<f16>(ctx, p);
}

}  // namespace diffit
