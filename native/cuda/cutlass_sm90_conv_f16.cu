/* CUTLASS's convolutions for sm_90a in f16. Part of builds with CUTLASS alone. */
#if defined(DIFFIT_CUTLASS_SM90)
#include "cutlass_sm90_conv.cuh"

namespace diffit {

template diffit_status cutlassConvSm90<f16>(diffit_context *, const ConvProblem &, ConvKernel, bool *);

}  // namespace diffit
#endif
