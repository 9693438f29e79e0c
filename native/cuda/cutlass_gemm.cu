/* Which of CUTLASS's kernels takes a product of bf16 or f16, if any; see gemm_tuning.cuh. Part of builds with CUTLASS alone. */
#include "cutlass_gemm.cuh"

#if defined(DIFFIT_CUTLASS)
#include "gemm_mma.cuh"

namespace diffit {
namespace {

/* The share of the device that `tiles` equal tiles keep busy until the last is done. */
double busyShare(int64_t tiles, int64_t processors) {
  return (double)tiles / (double)(ceilDiv(tiles, processors) * processors);
}
/* Pieces of a long k, equal ones of whole steps, that keep the device busier by enough to pay for joining them; 1: k stays whole. */
int64_t equalPieces(int64_t k, int64_t tiles, int64_t processors) {
  constexpr int64_t kStep = 64, kLeast = 2048, kMost = 8;
  constexpr double kGain = 0.05;
  int64_t best = 1;
  for (int64_t pieces = 2; pieces <= imin(kMost, k / kLeast); pieces++)
    if (k % (pieces * kStep) == 0 &&
        busyShare(tiles * pieces, processors) > busyShare(tiles * best, processors) + kGain)
      best = pieces;
  return best;
}

bool isRunnable(const diffit_context *ctx, const GemmRule &rule) {
#if defined(DIFFIT_CUTLASS_SM90)
  if (rule.major == 9) return ctx->about.major == 9;
#else
  if (rule.major == 9) return false;
#endif
  return ctx->about.major >= rule.major;
}

template <class T>
diffit_status byRule(diffit_context *ctx, const GemmProblem &p, const GemmRule &rule, bool *taken) {
  const int64_t processors = ctx->about.multiProcessorCount;
  const int64_t tiles = ceilDiv(p.m, rule.rows) * ceilDiv(p.n, rule.columns) * p.batch;
  const bool divisible = p.batch == 1 && (rule.major < 9 || p.transA); /* endings of sm_90's are compiled in */
  const int64_t pieces = divisible ? equalPieces(p.k, tiles, processors) : 1;
  const bool named = isNamed(rule.name);
  if (!named && (double)(tiles * pieces) < rule.leastTiles * (double)processors) return DIFFIT_OK;
  Finish finish = {p.e, nullptr, (int)p.m, (int)p.n, p.batch * p.m * p.n, true};
  const int64_t k = p.k / pieces;
  int64_t batch = p.batch, aStep = p.aStep, bStep = p.bStep;
  if (pieces > 1) {
    finish.partials = (float *)scratch(ctx, 0, (size_t)(pieces * finish.size) * sizeof(float));
    if (!finish.partials) return DIFFIT_OUT_OF_MEMORY;
    batch = pieces;
    aStep = p.transA ? k * p.m : k;
    bStep = p.transB ? k : k * p.n;
  }
  const CutlassProblem c = {p, finish, batch, k, aStep, bStep};
#if defined(DIFFIT_CUTLASS_SM90)
  if (rule.major == 9)
    TRY(cutlassSm90<T>(ctx, c, rule.kernel, taken));
  else
#endif
    TRY(cutlassSm80<T>(ctx, c, rule.kernel, taken));
  return *taken && pieces > 1 ? joinPartials(ctx, finish, pieces) : DIFFIT_OK;
}

}  // namespace

diffit_status cutlassGemm(diffit_context *ctx, const GemmProblem &p, bool *taken) {
  *taken = false;
  const bool low = p.a->dtype == DIFFIT_BF16;
  if (strncmp(namedKernel(), "own", 3) == 0) return DIFFIT_OK;
  if (p.batch < 1 || p.m < 1 || p.n < 1 || p.k < 1 || p.batch > 65535 || p.m > kMmaSizeLimit || p.n > kMmaSizeLimit)
    return DIFFIT_OK;
  /* The functions that are compiled in, and rows of whole 16-byte chunks. */
  const bool functions = (p.e.activation == DIFFIT_NO_ACTIVATION || p.e.activation == DIFFIT_GELU_TANH) &&
                         (!p.e.gateInput.data || p.e.gateKind == DIFFIT_GELU_TANH);
  const int64_t innerA = p.transA ? p.m : p.k, innerB = p.transB ? p.k : p.n;
  if (!functions || !p.e.inEights(p.n) || !hasWholeChunks<bf16>(p.a, innerA) || !hasWholeChunks<bf16>(p.b, innerB))
    return DIFFIT_OK;
  const bool named = *namedKernel() != 0;
  for (const GemmRule &rule : kGemmRules) {
    if (!isRunnable(ctx, rule) || (named && !isNamed(rule.name))) continue;
    TRY(low ? byRule<bf16>(ctx, p, rule, taken) : byRule<f16>(ctx, p, rule, taken));
    if (*taken) break;
  }
  return DIFFIT_OK;
}

}  // namespace diffit
#endif
