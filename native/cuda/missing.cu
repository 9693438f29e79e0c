/* Operations whose kernels are not written yet: weak, so that a real one takes its place. Goes away with the last. */
#include "context.cuh"

namespace diffit {
#define IN(name) const diffit_tensor *
#define OPT(name) const diffit_tensor *
#define OUT(name) diffit_tensor *
#define OPT_OUT(name) diffit_tensor *
#define INOUT(name) diffit_tensor *
#define LIST(name) const diffit_list *
#define LIST_INOUT(name) const diffit_list *
#define INTS(name) const diffit_ints *
#define I64(name) int64_t
#define F64(name) double
#define DIFFIT_OP(name, ...)                                                        \
  __attribute__((weak)) diffit_status name##_op(diffit_context *ctx, __VA_ARGS__) { \
    return fail(ctx, DIFFIT_UNSUPPORTED, "%s has no CUDA kernel yet.", #name);      \
  }
#include "../abi/ops.def"
}  // namespace diffit
