/* A matrix product as the operation gemm asks for it, checked: what the kernels for one kind of operands take (gemm_mma.cuh). */
#ifndef DIFFIT_CUDA_GEMM_PROBLEM_CUH
#define DIFFIT_CUDA_GEMM_PROBLEM_CUH

#include "gemm_epilogue.cuh"

namespace diffit {

/* y[i] = epilogue(op(a[i]) op(b[i])), see ops.def. */
struct GemmProblem {
  const diffit_tensor *a, *b;
  Epilogue e;
  int64_t batch, m, n, k;
  int64_t aStep, bStep; /* from one matrix of the batch to the next; 0: shared */
  bool transA, transB;
};

/* Where a convolution's window stands. */
struct ConvPlace {
  int64_t stride, padTop, padLeft;
};

/* The products on tensor cores: bf16, f16 as they are, and f32 rounded to TF32. One file for each T: mma_bf16.cu and so on. */
template <class T>
diffit_status mmaGemm(diffit_context *ctx, const GemmProblem &p);
template <class T>
diffit_status mmaConv(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w, const diffit_tensor *y,
                      const Epilogue &e, const ConvPlace &at);
template <class T>
diffit_status mmaConvDgrad(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *w,
                           const diffit_tensor *dx, const Epilogue &e, const ConvPlace &at);
template <class T>
diffit_status mmaConvWgrad(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy,
                           const diffit_tensor *dw, const Epilogue &e, const ConvPlace &at);

/* Are products of f32 tensors to run on tensor cores in TF32 (10 bits of mantissa)? Only when DIFFIT_TF32=1 was set when the
   first one came; otherwise f32 is f32. */
bool useTf32();

}  // namespace diffit

#endif
