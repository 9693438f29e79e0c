/*
 * The operation gemm: batched matrix products in all four transpositions, with the fused epilogue of ops.def.
 * Shapes: op(a) [batch or 1, m, k], op(b) [batch or 1, k, n], y [batch, m, n]. How it works: gemm_driver.h.
 */
#ifndef DIFFIT_CPU_GEMM_H
#define DIFFIT_CPU_GEMM_H

/* Runs multiply with the packers that the transpositions ask for. */
static diffit_status multiplyMatrices(diffit_context *ctx, const float *a, int64_t aStep, bool transA, const float *b,
                                      int64_t bStep, bool transB, const Epilogue &e, int64_t batch, int64_t m,
                                      int64_t n, int64_t k) {
  const bool oneB = bStep == 0 || batch == 1;
  const LineMatrix aLines = {a, k, aStep}, bLines = {b, k, bStep};
  const DepthMatrix aDepths = {a, m, aStep}, bDepths = {b, n, bStep};
  if (transA && transB) return multiply(ctx, aDepths, bLines, e, batch, m, n, k, oneB);
  if (transA) return multiply(ctx, aDepths, bDepths, e, batch, m, n, k, oneB);
  if (transB && isThin(m, n, k)) return multiplyThin(ctx, aLines, bLines, e, batch, m, n, k);
  if (transB) return multiply(ctx, aLines, bLines, e, batch, m, n, k, oneB);
  return multiply(ctx, aLines, bDepths, e, batch, m, n, k, oneB);
}

/* y = epilogue(a b^T) with b in bf16: a linear layer with half-size weights. */
static diffit_status multiplyBf16(diffit_context *ctx, const float *a, int64_t aStep, const Bf16 *b, int64_t bStep,
                                  const Epilogue &e, int64_t batch, int64_t m, int64_t n, int64_t k) {
  const LineMatrix aLines = {a, k, aStep};
  const Bf16LineMatrix bLines = {b, k, bStep};
  if (isThin(m, n, k)) return multiplyThin(ctx, aLines, bLines, e, batch, m, n, k);
  return multiply(ctx, aLines, bLines, e, batch, m, n, k, bStep == 0 || batch == 1);
}

static diffit_status gemm_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b,
                             const diffit_tensor *bias, const diffit_tensor *gateInput, const diffit_tensor *residual,
                             diffit_tensor *y, diffit_tensor *pre, int64_t batch, int64_t m, int64_t n, int64_t k,
                             int64_t transA, int64_t transB, int64_t activation, int64_t gateKind, int64_t accumulate) {
  REQUIRE_F32(a);
  REQUIRE(b->dtype == DIFFIT_F32 || (b->dtype == DIFFIT_BF16 && !transA && transB));
  REQUIRE_F32(y);
  const int64_t limit = (int64_t)1 << 31;
  REQUIRE(batch >= 0 && m >= 0 && n >= 0 && k >= 0 && batch < limit && m < limit && n < limit && k < limit);
  int64_t size = 0;
  REQUIRE(!__builtin_mul_overflow(m * n, batch, &size) && numel(y) == size);
  REQUIRE(!__builtin_mul_overflow(m * k, batch, &size) && (numel(a) == size || numel(a) == m * k));
  REQUIRE(!__builtin_mul_overflow(k * n, batch, &size) && (numel(b) == size || numel(b) == k * n));
  REQUIRE(!bias || (bias->dtype == DIFFIT_F32 && numel(bias) == n));
  REQUIRE(!gateInput || (gateInput->dtype == DIFFIT_F32 && numel(gateInput) == numel(y)));
  REQUIRE(!residual || (residual->dtype == DIFFIT_F32 && numel(residual) == numel(y)));
  REQUIRE(!pre || (pre->dtype == DIFFIT_F32 && numel(pre) == numel(y)));
  REQUIRE(activation >= DIFFIT_NO_ACTIVATION && activation <= DIFFIT_IS_FINITE);
  REQUIRE(!gateInput || (gateKind >= DIFFIT_NEG && gateKind <= DIFFIT_IS_FINITE));

  Epilogue e = {};
  e.bias = bias ? f32(bias) : nullptr;
  /* A gate that comes last is a pass of its own: its functions keep a processor busy, and in long rows they overlap with the
     memory they wait for, which after a small tile they do not. */
  const bool gateLater = gateInput && !residual && !accumulate && gateKind <= DIFFIT_SQUARE;
  e.gateInput = gateInput && !gateLater ? f32(gateInput) : nullptr;
  e.residual = residual ? f32(residual) : nullptr;
  e.y = f32(y);
  e.pre = pre ? f32(pre) : nullptr;
  e.n = n;
  e.activation = (int)activation, e.gateKind = (int)gateKind;
  e.accumulate = accumulate != 0;

  const int64_t aStep = numel(a) == m * k ? 0 : m * k, bStep = numel(b) == k * n ? 0 : k * n;
  if (bStep == 0 && aStep != 0 && !transA) { /* one tall matrix */
    m *= batch;
    batch = 1;
  }
  const diffit_status status =
      b->dtype == DIFFIT_BF16
          ? multiplyBf16(ctx, f32(a), aStep, (const Bf16 *)b->data, bStep, e, batch, m, n, k)
          : multiplyMatrices(ctx, f32(a), aStep, transA != 0, f32(b), bStep, transB != 0, e, batch, m, n, k);
  if (status != DIFFIT_OK || !gateLater) return status;
  return unary_backward_op(ctx, gateInput, y, y, gateKind);
}

#endif
