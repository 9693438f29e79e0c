/* CUTLASS's kernels for sm_90a in bf16. Part of builds with CUTLASS alone. */
#if defined(DIFFIT_CUTLASS_SM90)
#include "cutlass_sm90.cuh"

namespace diffit {

template diffit_status cutlassSm90<bf16>(diffit_context *, const CutlassProblem &, GemmKernel, bool *);

}  // namespace diffit
#endif
