/*
 * All CPU kernels of one instruction-set variant, in a namespace of its own, and the table of them.
 * Included by exactly one file per variant (variants/NAME.cc) after it defines DIFFIT_VARIANT.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "context.h"
#include "../abi/statistics.h"

#define DIFFIT_CONCAT2(a, b) a##b
#define DIFFIT_CONCAT(a, b) DIFFIT_CONCAT2(a, b)

namespace diffit {
namespace DIFFIT_VARIANT {

#include "simd.h"
#include "common.h"
#include "mathfun.h"
#include "cast.h"
#include "elementwise.h"
#include "reduce.h"
#include "index.h"
#include "pool.h"
#include "gemm_kernel.h"
#include "gemm_plan.h"
#include "gemm_fetch.h"
#include "gemm_pack.h"
#include "gemm_epilogue.h"
#include "gemm_driver.h"
#include "gemm_thin.h"
#include "gemm_dot.h"
#include "gemm.h"
#include "winograd.h"
#include "winograd_conv.h"
#include "winograd_grad.h"
#include "conv.h"
#include "norm.h"
#include "group_norm.h"
#include "attention_product.h"
#include "attention_tile.h"
#include "attention_table.h"
#include "attention_window_forward.h"
#include "attention.h"
#include "attention_traffic.h"
#include "attention_window_backward.h"
#include "attention_backward.h"
#include "attention_ops.h"
#include "random.h"
#include "sampler.h"
#include "optim.h"
#include "peak.h"
#include "product64.h"
#include "statistics.h"
#include "singular.h"

}  // namespace DIFFIT_VARIANT
}  // namespace diffit

/* The one symbol of this variant: diffit_cpu_ops_avx512, ... */
extern "C" const diffit_ops DIFFIT_CONCAT(diffit_cpu_ops_, DIFFIT_VARIANT) = {
#define DIFFIT_OP(name, ...) diffit::DIFFIT_VARIANT::name##_op,
#include "../abi/ops.def"
#undef DIFFIT_OP
};

/* Beside the table, for the benchmarks: diffit_cpu_peak_avx512, ... (peak.h). */
extern "C" int64_t DIFFIT_CONCAT(diffit_cpu_peak_, DIFFIT_VARIANT)(diffit_context *ctx, int64_t tasks, bool dot,
                                                                   bool alone) {
  return diffit::DIFFIT_VARIANT::runPeak(ctx, tasks, dot, alone);
}

/* Likewise, for the metrics: diffit_cpu_statistics_avx512, ... (abi/statistics.h). */
extern "C" const diffit_statistics DIFFIT_CONCAT(diffit_cpu_statistics_, DIFFIT_VARIANT) = {
    diffit::DIFFIT_VARIANT::merge_rows, diffit::DIFFIT_VARIANT::nearest, diffit::DIFFIT_VARIANT::within,
    diffit::DIFFIT_VARIANT::trace_sqrt};
