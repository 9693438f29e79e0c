/* The door to CUTLASS, a build-time dependency; a build without it (DIFFIT_CUTLASS not defined, the emulator) has none of it. */
#ifndef DIFFIT_CUDA_CUTLASS_GEMM_CUH
#define DIFFIT_CUDA_CUTLASS_GEMM_CUH

#include "gemm_problem.cuh"
#include "gemm_tuning.cuh"

namespace diffit {

#if defined(DIFFIT_CUTLASS)
/* Enqueues the product of bf16 or f16 when there is a kernel for it, and says whether it did. A failure is of memory or of the device. */
diffit_status cutlassGemm(diffit_context *ctx, const GemmProblem &p, bool *taken);

/* A problem as a kernel of CUTLASS's gets it: `batch` products over k, which are the batch's own or the pieces of one. */
struct CutlassProblem {
  const GemmProblem &p;
  const Finish &finish; /* partials: where pieces go */
  int64_t batch, k, aStep, bStep;
};
/* Both enqueue the problem if they have a kernel for its layout and ending; T is bf16 or f16. */
template <class T>
diffit_status cutlassSm80(diffit_context *ctx, const CutlassProblem &c, GemmKernel kernel, bool *taken);
template <class T>
diffit_status cutlassSm90(diffit_context *ctx, const CutlassProblem &c, GemmKernel kernel, bool *taken);
#else
inline diffit_status cutlassGemm(diffit_context *, const GemmProblem &, bool *taken) {
  *taken = false;
  return DIFFIT_OK;
}
#endif

}  // namespace diffit

#endif
