/*
 * Which kernel convolves what in bf16 and f16. Unmeasured defaults: no GPU has timed them yet.
 *
 * DIFFIT_CONV_TILE, read once, names a kernel to take wherever it can be taken (a benchmark's handle): one of the names below, or
 * "own" for conv_mma.cuh. 1x1 windows of unit stride are matrix products and follow gemm_tuning.cuh, unless a kernel is named here.
 */
#ifndef DIFFIT_CUDA_CONV_TUNING_CUH
#define DIFFIT_CUDA_CONV_TUNING_CUH

#include <stdlib.h>
#include <string.h>

#include "context.cuh"

namespace diffit {

enum class ConvKernel { kSm90Tile128x128, kSm90Tile128x64 };

/* A kernel of CUTLASS's for Hopper, the share of its columns that must be of use, and its tiles per multiprocessor at least. */
struct ConvRule {
  const char *name;
  ConvKernel kernel;
  int rows, columns;
  double leastUse, leastTiles;
};

/* The first rule that holds is taken; where none does, our own kernel, which has smaller tiles and cuts k as it likes. */
constexpr ConvRule kConvRules[] = {
    {"sm90-128x128", ConvKernel::kSm90Tile128x128, 128, 128, 0.875, 0.75},
    {"sm90-128x64", ConvKernel::kSm90Tile128x64, 128, 64, 0.75, 0.75},
};
/* Both images have at least so many channels: k goes by 64 channels of one tap, what is missing is multiplied as zeros. */
constexpr int64_t kConvLeastChannels = 64;

/* The kernel that DIFFIT_CONV_TILE names, or "". */
inline const char *namedConvKernel() {
  static const char *const name = [] {
    const char *value = getenv("DIFFIT_CONV_TILE");
    return value ? value : "";
  }();
  return name;
}

}  // namespace diffit

#endif
