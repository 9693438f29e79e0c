/* Which of CUTLASS's kernels takes a convolution of bf16 or f16, if any; see conv_tuning.cuh. Part of builds with CUTLASS alone. */
#include "cutlass_conv.cuh"

#if defined(DIFFIT_CUTLASS)
#include "conv_windows.cuh"
#include "cutlass_gemm.cuh"
#include "gemm_mma.cuh"

namespace diffit {
namespace {

/* The two factors: image and weights, or, for the weights' gradient, two images. */
const diffit_tensor *firstOf(const ConvProblem &p) { return p.kind == ConvKind::kFprop ? p.x : p.y; }
const diffit_tensor *secondOf(const ConvProblem &p) { return p.kind == ConvKind::kWgrad ? p.x : p.w; }

/* A 1x1 convolution as what it is: y = x w', dx = dy w, dw = dy' x. */
GemmProblem productOf(const ConvProblem &p) {
  GemmProblem g = {};
  const int64_t inputs = p.w->shape[3], outputs = p.w->shape[0], pixels = pixelsOf(p.x);
  g.a = firstOf(p);
  g.b = secondOf(p);
  g.e = p.e;
  g.batch = 1;
  g.m = p.kind == ConvKind::kWgrad ? outputs : pixels;
  g.n = p.kind == ConvKind::kFprop ? outputs : inputs;
  g.k = p.kind == ConvKind::kFprop ? inputs : p.kind == ConvKind::kDgrad ? outputs : pixels;
  g.transA = p.kind == ConvKind::kWgrad;
  g.transB = p.kind == ConvKind::kFprop;
  return g;
}

#if defined(DIFFIT_CUTLASS_SM90)
bool isWorthwhile(const diffit_context *ctx, const ConvProblem &p, const ConvRule &rule) {
  const int64_t inputs = p.w->shape[3], outputs = p.w->shape[0];
  if (imin(inputs, outputs) < kConvLeastChannels) return false;
  const bool weights = p.kind == ConvKind::kWgrad;
  const int64_t rows = weights ? outputs : pixelsOf(p.kind == ConvKind::kFprop ? p.y : p.x);
  const int64_t columns = p.kind == ConvKind::kFprop ? outputs : inputs;
  const int64_t across = ceilDiv(columns, rule.columns); /* of the weights: for each tap */
  if ((double)columns < rule.leastUse * (double)(across * rule.columns)) return false;
  const int64_t tiles = ceilDiv(rows, rule.rows) * across * (weights ? p.w->shape[1] * p.w->shape[2] : 1);
  return (double)tiles >= rule.leastTiles * (double)ctx->about.multiProcessorCount;
}

diffit_status bySm90(diffit_context *ctx, const ConvProblem &p, bool *taken) {
  const diffit_tensor *a = firstOf(p), *b = secondOf(p);
  if (ctx->about.major != 9 || numel(a) == 0 || numel(b) == 0) return DIFFIT_OK;
  /* What TMA asks for. */
  if (p.w->shape[0] % 8 != 0 || !p.e.inEights(p.w->shape[3]) || !isAligned(a->data, 16) || !isAligned(b->data, 16))
    return DIFFIT_OK;
  const bool named = *namedConvKernel() != 0;
  for (const ConvRule &rule : kConvRules) {
    if (named ? strcmp(namedConvKernel(), rule.name) != 0 : !isWorthwhile(ctx, p, rule)) continue;
    TRY(a->dtype == DIFFIT_BF16 ? cutlassConvSm90<bf16>(ctx, p, rule.kernel, taken)
                                : cutlassConvSm90<f16>(ctx, p, rule.kernel, taken));
    if (*taken) break;
  }
  return DIFFIT_OK;
}
#endif

}  // namespace

diffit_status cutlassConv(diffit_context *ctx, const ConvProblem &p, bool *taken) {
  *taken = false;
  const diffit_dtype low = firstOf(p)->dtype;
  if (low != DIFFIT_BF16 && low != DIFFIT_F16) return DIFFIT_OK;
  if (strcmp(namedConvKernel(), "own") == 0) return DIFFIT_OK;
  if (*namedConvKernel() == 0 && isPointwise(p.x, p.w, p.y, p.at.stride, p.at.padTop, p.at.padLeft))
    return cutlassGemm(ctx, productOf(p), taken);
#if defined(DIFFIT_CUTLASS_SM90)
  return bySm90(ctx, p, taken);
#else
  return DIFFIT_OK;
#endif
}

}  // namespace diffit
#endif
