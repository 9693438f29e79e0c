/* The door to CUTLASS, a build-time dependency; a build without it (DIFFIT_CUTLASS not defined, the emulator) has none of it. */
#ifndef DIFFIT_CUDA_CUTLASS_GEMM_CUH
#define DIFFIT_CUDA_CUTLASS_GEMM_CUH

#include "gemm_problem.cuh"

namespace diffit {

#if defined(DIFFIT_CUTLASS)
/* Enqueues the product when there is a kernel for it, and says whether it did. A failure is of memory or of the device. */
diffit_status cutlassGemm(diffit_context *ctx, const GemmProblem &p, bool *taken);
#else
inline diffit_status cutlassGemm(diffit_context *, const GemmProblem &, bool *taken) {
  *taken = false;
  return DIFFIT_OK;
}
#endif

}  // namespace diffit

#endif
