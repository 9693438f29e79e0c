/* CUTLASS's kernels for sm_80 in bf16. Part of builds with CUTLASS alone. */
#if defined(DIFFIT_CUTLASS)
#include "cutlass_sm80.cuh"

namespace diffit {

template diffit_status cutlassSm80<bf16>(diffit_context *, const CutlassProblem &, GemmKernel, bool *);

}  // namespace diffit
#endif
