/* The door to CUTLASS for convolutions, see cutlass_gemm.cuh. */
#ifndef DIFFIT_CUDA_CUTLASS_CONV_CUH
#define DIFFIT_CUDA_CUTLASS_CONV_CUH

#include "conv_tuning.cuh"
#include "gemm_problem.cuh"

namespace diffit {

enum class ConvKind { kFprop, kDgrad, kWgrad };

/* A convolution of x [B, H, W, I] with w [O, kh, kw, I] to y [B, OH, OW, O], or its gradient: one of the three is the result, e.y. */
struct ConvProblem {
  ConvKind kind;
  const diffit_tensor *x, *w, *y;
  const Epilogue &e;
  ConvPlace at;
};

#if defined(DIFFIT_CUTLASS)
/* Enqueues the convolution of bf16 or f16 when there is a kernel for it, and says whether it did. A failure is of memory or of the
   device. */
diffit_status cutlassConv(diffit_context *ctx, const ConvProblem &p, bool *taken);

/* The same with one kernel; T is bf16 or f16. */
template <class T>
diffit_status cutlassConvSm90(diffit_context *ctx, const ConvProblem &p, ConvKernel kernel, bool *taken);
#else
inline diffit_status cutlassConv(diffit_context *, const ConvProblem &, bool *taken) {
  *taken = false;
  return DIFFIT_OK;
}
#endif

}  // namespace diffit

#endif
