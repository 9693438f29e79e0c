/* Matrix products and convolutions on tensor cores in f16: gemm_mma.cuh, conv_mma.cuh. */
#include "conv_mma.cuh"

namespace diffit {

template diffit_status mmaGemm<f16>(diffit_context *, const GemmProblem &);
template diffit_status mmaConv<f16>(diffit_context *, const diffit_tensor *, const diffit_tensor *,
                                    const diffit_tensor *, const Epilogue &, const ConvPlace &);
template diffit_status mmaConvDgrad<f16>(diffit_context *, const diffit_tensor *, const diffit_tensor *,
                                         const diffit_tensor *, const Epilogue &, const ConvPlace &);
template diffit_status mmaConvWgrad<f16>(diffit_context *, const diffit_tensor *, const diffit_tensor *,
                                         const diffit_tensor *, const Epilogue &, const ConvPlace &);

}  // namespace diffit
