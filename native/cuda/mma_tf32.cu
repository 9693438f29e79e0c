/* Matrix products and convolutions on tensor cores in TF32 (f32 operands, rounded as they enter): gemm_mma.cuh, conv_mma.cuh. */
#include "conv_mma.cuh"

namespace diffit {

template diffit_status mmaGemm<float>(diffit_context *, const GemmProblem &);
template diffit_status mmaConv<float>(diffit_context *, const diffit_tensor *, const diffit_tensor *,
                                      const diffit_tensor *, const Epilogue &, const ConvPlace &);
template diffit_status mmaConvDgrad<float>(diffit_context *, const diffit_tensor *, const diffit_tensor *,
                                           const diffit_tensor *, const Epilogue &, const ConvPlace &);
template diffit_status mmaConvWgrad<float>(diffit_context *, const diffit_tensor *, const diffit_tensor *,
                                           const diffit_tensor *, const Epilogue &, const ConvPlace &);

}  // namespace diffit
