/*
 * Which kernel multiplies what. Unmeasured defaults: no GPU has timed them yet.
 *
 * DIFFIT_GEMM_TILE, read once, names a kernel to take wherever it can be taken (a benchmark's handle): one of the names below,
 * "own-128", "own-64", or "own" for the choice among these two without CUTLASS.
 */
#ifndef DIFFIT_CUDA_GEMM_TUNING_CUH
#define DIFFIT_CUDA_GEMM_TUNING_CUH

#include <stdlib.h>
#include <string.h>

#include "context.cuh"

namespace diffit {

enum class GemmKernel { kSm80Tile128x128, kSm80Tile256x128, kSm90Tile128x128, kSm90Tile128x256 };

/* A kernel of CUTLASS's, and how many of its tiles (of all pieces of k) there must be per multiprocessor. */
struct GemmRule {
  const char *name;
  GemmKernel kernel;
  int major; /* of the compute capability: 8 and newer, or exactly 9 */
  int rows, columns;
  double leastTiles;
};

/* The first rule that holds is taken; where none does, our own kernel, which has smaller tiles and cuts k as it likes. */
constexpr GemmRule kGemmRules[] = {
    {"sm90-128x256", GemmKernel::kSm90Tile128x256, 9, 128, 256, 1.0},
    {"sm90-128x128", GemmKernel::kSm90Tile128x128, 9, 128, 128, 0.5},
    {"sm80-256x128", GemmKernel::kSm80Tile256x128, 8, 256, 128, 2.0},
    {"sm80-128x128", GemmKernel::kSm80Tile128x128, 8, 128, 128, 0.75},
};

/* The kernel that DIFFIT_GEMM_TILE names, or "". */
inline const char *namedKernel() {
  static const char *const name = [] {
    const char *value = getenv("DIFFIT_GEMM_TILE");
    return value ? value : "";
  }();
  return name;
}
inline bool isNamed(const char *name) { return strcmp(namedKernel(), name) == 0; }

/* Our own tile of 128 or 64? */
inline bool takesLargeTile(const diffit_context *ctx, int64_t batch, int64_t m, int64_t n) {
  if (isNamed("own-128") || isNamed("own-64")) return isNamed("own-128");
  return ceilDiv(m, 128) * ceilDiv(n, 128) * batch >= ctx->about.multiProcessorCount && m > 64 && n > 64;
}

}  // namespace diffit

#endif
