/*
 * The operation gemm: batched matrix products in all four transpositions, with the fused epilogue of ops.def.
 * Shapes: op(a) [batch or 1, m, k], op(b) [batch or 1, k, n], y [batch, m, n]. How it works: gemm_driver.h.
 */
#ifndef DIFFIT_CPU_GEMM_H
#define DIFFIT_CPU_GEMM_H

/* Runs multiply with the packers that the transpositions and types ask for. */
template <class LinesA, class DepthsA, class LinesB, class DepthsB, class T, class U>
static diffit_status multiplyMatrices(diffit_context *ctx, const T *a, int64_t aStep, bool transA, const U *b,
                                      int64_t bStep, bool transB, const Epilogue &e, int64_t batch, int64_t m,
                                      int64_t n, int64_t k) {
  const bool oneB = bStep == 0 || batch == 1;
  const LinesA aLines = {a, k, aStep};
  const LinesB bLines = {b, k, bStep};
  const DepthsA aDepths = {a, m, aStep};
  const DepthsB bDepths = {b, n, bStep};
  if (transA && transB) return multiply(ctx, aDepths, bLines, e, batch, m, n, k, oneB);
  if (transA) return multiply(ctx, aDepths, bDepths, e, batch, m, n, k, oneB);
  if (transB && isThin(m, n, k)) return multiplyThin(ctx, aLines, bLines, e, batch, m, n, k);
  if (transB) return multiply(ctx, aLines, bLines, e, batch, m, n, k, oneB);
  return multiply(ctx, aLines, bDepths, e, batch, m, n, k, oneB);
}

/* y = epilogue(a b^T) with b in bf16 beside an f32 a: a linear layer with half-size weights. */
static diffit_status multiplyMixed(diffit_context *ctx, const float *a, int64_t aStep, const Bf16 *b, int64_t bStep,
                                   const Epilogue &e, int64_t batch, int64_t m, int64_t n, int64_t k) {
  const LineMatrix aLines = {a, k, aStep};
  const Bf16LineMatrix bLines = {b, k, bStep};
  if (isThin(m, n, k)) return multiplyThin(ctx, aLines, bLines, e, batch, m, n, k);
  return multiply(ctx, aLines, bLines, e, batch, m, n, k, bStep == 0 || batch == 1);
}

/* Most lines of a bf16 `a` to widen at once, before the product: where lines are few, the columns are cut into many tiles, each of
   which would widen them again. And how many numbers a task takes. */
static constexpr int64_t kWidenedLines = 512, kWidenedChunk = 32768;

/* The same with both operands in bf16: by dot products where the context says so, else widened. */
static diffit_status multiplyBf16(diffit_context *ctx, const Bf16 *a, int64_t aStep, bool transA, const Bf16 *b,
                                  int64_t bStep, bool transB, const Epilogue &e, int64_t batch, int64_t m, int64_t n,
                                  int64_t k) {
#if defined(__AVX512F__)
  const bool thin = !transA && transB && isThin(m, n, k);
  if (diffit_cpu_dots(ctx) && !thin) return multiplyPairs(ctx, a, aStep, transA, b, bStep, transB, e, batch, m, n, k);
#endif
  const int64_t lines = (aStep == 0 ? 1 : batch) * m;
  if (transA || (transB && isThin(m, n, k)) || lines > kWidenedLines)
    return multiplyMatrices<Bf16LineMatrix, Bf16DepthMatrix, Bf16LineMatrix, Bf16DepthMatrix>(
        ctx, a, aStep, transA, b, bStep, transB, e, batch, m, n, k);
  const int64_t stride = roundUp(k, kLanes) + Bf16LineMatrix::kLinePad;
  float *wide = (float *)diffit_cpu_shared(ctx, 1, (size_t)(lines * stride) * sizeof(float));
  if (!wide)
    return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "no scratch memory for %lld numbers", (long long)(lines * k));
  parallelChunks(ctx, lines, imax(1, kWidenedChunk / imax(1, k)), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) widenRun(a + i * k, wide + i * stride, k);
  });
  const LineMatrix left = {wide, stride, aStep == 0 ? 0 : m * stride};
  const bool oneB = bStep == 0 || batch == 1;
  if (transB) return multiply(ctx, left, Bf16LineMatrix{b, k, bStep}, e, batch, m, n, k, oneB);
  return multiply(ctx, left, Bf16DepthMatrix{b, n, bStep}, e, batch, m, n, k, oneB);
}

/* Whether a transposed `a` of m columns is packed. Its steps are m numbers apart: of those that all fall on one or two sets of an L1 cache
   it holds a dozen or two, and the kernels fetch the others anew for every panel of columns. With two sets, packing pays where such panels
   are many. */
static bool sharesSets(int64_t m, int64_t n) {
  const int64_t bytes = m * (int64_t)sizeof(float);
  return bytes % 4096 == 0 || (bytes % 2048 == 0 && n >= 1024);
}

static diffit_status gemm_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b,
                             const diffit_tensor *bias, const diffit_tensor *gateInput, const diffit_tensor *residual,
                             diffit_tensor *y, diffit_tensor *pre, int64_t batch, int64_t m, int64_t n, int64_t k,
                             int64_t transA, int64_t transB, int64_t activation, int64_t gateKind, int64_t accumulate) {
  REQUIRE_FLOAT(a);
  REQUIRE(b->dtype == a->dtype || (b->dtype == DIFFIT_BF16 && !transA && transB));
  REQUIRE_FLOAT(y);
  const int64_t limit = (int64_t)1 << 31;
  REQUIRE(batch >= 0 && m >= 0 && n >= 0 && k >= 0 && batch < limit && m < limit && n < limit && k < limit);
  int64_t size = 0;
  REQUIRE(!__builtin_mul_overflow(m * n, batch, &size) && numel(y) == size);
  REQUIRE(!__builtin_mul_overflow(m * k, batch, &size) && (numel(a) == size || numel(a) == m * k));
  REQUIRE(!__builtin_mul_overflow(k * n, batch, &size) && (numel(b) == size || numel(b) == k * n));
  REQUIRE(!bias || (bias->dtype == DIFFIT_F32 && numel(bias) == n));
  REQUIRE(!gateInput || (isFloat(gateInput) && numel(gateInput) == numel(y)));
  REQUIRE(!residual || (isFloat(residual) && numel(residual) == numel(y)));
  REQUIRE(!pre || (isFloat(pre) && numel(pre) == numel(y)));
  REQUIRE(activation >= DIFFIT_NO_ACTIVATION && activation <= DIFFIT_IS_FINITE);
  REQUIRE(!gateInput || (gateKind >= DIFFIT_NEG && gateKind <= DIFFIT_IS_FINITE));

  Epilogue e = {};
  e.bias = bias ? f32(bias) : nullptr;
  /* A gate that comes last is a pass of its own: its functions keep a processor busy, and in long rows they overlap with the
     memory they wait for, which after a small tile they do not. */
  const bool allF32 = gateInput && gateInput->dtype == DIFFIT_F32 && y->dtype == DIFFIT_F32;
  const bool gateLater = allF32 && !residual && !accumulate && gateKind <= DIFFIT_SQUARE;
  e.gateInput = gateInput && !gateLater ? floatsOf(gateInput) : Floats();
  e.residual = floatsOf(residual);
  e.y = floatsOf(y);
  e.pre = floatsOf(pre);
  e.n = n;
  e.activation = (int)activation, e.gateKind = (int)gateKind;
  e.accumulate = accumulate != 0;

  const int64_t aStep = numel(a) == m * k ? 0 : m * k, bStep = numel(b) == k * n ? 0 : k * n;
  if (bStep == 0 && aStep != 0 && !transA) { /* one tall matrix */
    m *= batch;
    batch = 1;
  }
  const bool left = transA != 0, right = transB != 0;
  const Bf16 *lowA = (const Bf16 *)a->data, *lowB = (const Bf16 *)b->data;
  diffit_status status;
  if (a->dtype == DIFFIT_BF16)
    status = multiplyBf16(ctx, lowA, aStep, left, lowB, bStep, right, e, batch, m, n, k);
  else if (b->dtype == DIFFIT_BF16)
    status = multiplyMixed(ctx, f32(a), aStep, lowB, bStep, e, batch, m, n, k);
  else if (left && sharesSets(m, n))
    status = multiplyMatrices<LineMatrix, DepthMatrix, LineMatrix, DepthMatrix>(ctx, f32(a), aStep, left, f32(b), bStep,
                                                                                right, e, batch, m, n, k);
  else
    status = multiplyMatrices<LineMatrix, DepthRows, LineMatrix, DepthMatrix>(ctx, f32(a), aStep, left, f32(b), bStep,
                                                                              right, e, batch, m, n, k);
  if (status != DIFFIT_OK || !gateLater) return status;
  return unary_backward_op(ctx, gateInput, y, y, gateKind);
}

#endif
