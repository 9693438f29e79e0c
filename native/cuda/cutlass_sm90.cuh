/*
 * Matrix products by CUTLASS's kernels for sm_90a (TMA, wgmma, warp specialisation): bf16 or f16, f32 sums.
 *
 * Their epilogue is compiled in, so there is a kernel per ending, for those a transformer's block has; the others go to the
 * kernels for sm_80. Pieces of k are a batch, as in cutlass_sm80.cuh, and end plainly in f32.
 */
#ifndef DIFFIT_CUDA_CUTLASS_SM90_CUH
#define DIFFIT_CUDA_CUTLASS_SM90_CUH

/* In this order: builders of a kernel before the kernel, the adapter last. */
#include <cutlass/epilogue/collective/collective_builder.hpp>

#include <cutlass/gemm/collective/collective_builder.hpp>

#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include "cutlass_element.cuh"
#include "cutlass_gemm.cuh"

namespace diffit {
namespace sm90 {

/* How a product ends; kPlain and kPlainF32 for gradients, the rest for linear layers. */
enum class End { kPlain, kPlainF32, kBias, kBiasResidual, kBiasGelu, kBiasGeluPre };

/* CUTLASS calls it with Array<float, n>. */
template <class T>
struct GeluTanh;
template <int n>
struct GeluTanh<cutlass::Array<float, n>> {
  CUTLASS_DEVICE cutlass::Array<float, n> operator()(const cutlass::Array<float, n> &x) const {
    cutlass::Array<float, n> y;
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < n; i++) y[i] = unaryForward<DIFFIT_GELU_TANH>(x[i]);
    return y;
  }
};
template <>
struct GeluTanh<float> {
  CUTLASS_DEVICE float operator()(float x) const { return unaryForward<DIFFIT_GELU_TANH>(x); }
};

template <class Element, End kEnd>
struct Ending {
  using Output = std::conditional_t<kEnd == End::kPlainF32 || kEnd == End::kBiasResidual, float, Element>;
  using Source = std::conditional_t<kEnd == End::kBiasResidual, float, void>;
  using Fusion = std::conditional_t<
      kEnd == End::kPlain || kEnd == End::kPlainF32,
      cutlass::epilogue::fusion::LinearCombination<Output, float, Source>,
      std::conditional_t<
          kEnd == End::kBias || kEnd == End::kBiasResidual,
          cutlass::epilogue::fusion::LinCombPerColBias<Output, float, float, Source>,
          std::conditional_t<kEnd == End::kBiasGelu,
                             cutlass::epilogue::fusion::LinCombPerColBiasEltAct<GeluTanh, Output, float, float, Source>,
                             cutlass::epilogue::fusion::LinCombPerColBiasEltActAux<
                                 cutlass::layout::RowMajor, GeluTanh, Output, float, Element, float, Source>>>>;
};

/* Tiles of 128 x kColumns x 64, two neighbours in m sharing b: 256 columns by two warpgroups together, 128 by two in turns. */
template <class T, bool kTransA, bool kTransB, int kColumns, End kEnd_>
struct Kernel {
  static constexpr End kEnd = kEnd_;
  using Element = typename CutlassElement<T>::Type;
  using Row = cutlass::layout::RowMajor;
  using Column = cutlass::layout::ColumnMajor;
  using LayoutA = std::conditional_t<kTransA, Column, Row>;
  using LayoutB = std::conditional_t<kTransB, Column, Row>;
  using Tile = cute::Shape<cute::_128, cute::Int<kColumns>, cute::_64>;
  using Cluster = cute::Shape<cute::_2, cute::_1, cute::_1>;
  static constexpr bool kTogether = kColumns == 256;
  using Output = typename Ending<Element, kEnd>::Output;
  using Source = typename Ending<Element, kEnd>::Source;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Source, Row, 16 / (int)sizeof(Output), Output, Row,
      16 / (int)sizeof(Output),
      std::conditional_t<kTogether, cutlass::epilogue::TmaWarpSpecializedCooperative,
                         cutlass::epilogue::TmaWarpSpecialized>,
      typename Ending<Element, kEnd>::Fusion>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Element, LayoutA, 8, Element, LayoutB, 8, float, Tile,
      Cluster, cutlass::gemm::collective::StageCountAutoCarveout<(int)sizeof(typename Epilogue::SharedStorage)>,
      std::conditional_t<kTogether, cutlass::gemm::KernelTmaWarpSpecializedCooperative,
                         cutlass::gemm::KernelTmaWarpSpecializedPingpong>>::CollectiveOp;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<cute::Shape<int, int, int, int>, Mainloop, Epilogue>>;
};

/* A matrix of a batch: `line` numbers from one row to the next of what lies in memory, `step` from matrix to matrix. */
template <class Stride>
Stride strideOf(int64_t line, int64_t step) {
  Stride stride = {};
  if constexpr (cute::is_static<std::remove_reference_t<decltype(cute::get<0>(stride))>>::value)
    cute::get<1>(stride) = line;
  else
    cute::get<0>(stride) = line;
  cute::get<2>(stride) = step;
  return stride;
}

/* *taken says whether the kernel could be had. */
template <class Kernel>
diffit_status enqueue(diffit_context *ctx, const CutlassProblem &c, bool *taken) {
  using Gemm = typename Kernel::Gemm;
  using Element = typename Kernel::Element;
  const GemmProblem &p = c.p;
  const int64_t size = p.m * p.n;
  *taken = false;
  typename Gemm::Arguments arguments = {};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {(int)p.m, (int)p.n, (int)c.k, (int)c.batch};
  arguments.mainloop.ptr_A = (const Element *)p.a->data;
  arguments.mainloop.dA = strideOf<typename Gemm::GemmKernel::StrideA>(p.transA ? p.m : p.k, c.aStep);
  arguments.mainloop.ptr_B = (const Element *)p.b->data;
  arguments.mainloop.dB = strideOf<typename Gemm::GemmKernel::StrideB>(p.transB ? p.k : p.n, c.bStep);
  void *const y = c.finish.partials ? c.finish.partials : p.e.y.data;
  arguments.epilogue.ptr_D = (typename Kernel::Output *)y;
  arguments.epilogue.dD = strideOf<typename Gemm::GemmKernel::StrideD>(p.n, size);
  auto &end = arguments.epilogue.thread;
  if constexpr (Kernel::kEnd == End::kBiasResidual) {
    arguments.epilogue.ptr_C = (const float *)p.e.residual.data;
    arguments.epilogue.dC = strideOf<typename Gemm::GemmKernel::StrideC>(p.n, size);
    end.beta = 1;
  }
  if constexpr (Kernel::kEnd != End::kPlain && Kernel::kEnd != End::kPlainF32)
    end.bias_ptr = p.e.bias; /* null: zeros */
  if constexpr (Kernel::kEnd == End::kBiasGeluPre) {
    end.aux_ptr = (Element *)p.e.pre.data;
    end.dAux = strideOf<std::remove_reference_t<decltype(end.dAux)>>(p.n, size);
  }
  arguments.hw_info.device_id = ctx->index;
  arguments.hw_info.sm_count = ctx->about.multiProcessorCount;
  if (Gemm::can_implement(arguments) != cutlass::Status::kSuccess) return DIFFIT_OK;
  const size_t bytes = Gemm::get_workspace_size(arguments);
  void *workspace = bytes ? scratch(ctx, 1, bytes) : nullptr;
  if (bytes && !workspace) return DIFFIT_OUT_OF_MEMORY;
  cudaGetLastError(); /* run() takes any earlier error of this thread for its own */
  Gemm gemm;
  *taken = gemm.initialize(arguments, workspace, ctx->stream) == cutlass::Status::kSuccess &&
           gemm.run(ctx->stream) == cutlass::Status::kSuccess;
  if (!*taken) cudaGetLastError(); /* another kernel takes the product, without this one's error */
  return DIFFIT_OK;
}

template <class T, bool kTransA, bool kTransB, End kEnd>
diffit_status byTile(diffit_context *ctx, const CutlassProblem &c, GemmKernel kernel, bool *taken) {
  if (kernel == GemmKernel::kSm90Tile128x256) return enqueue<Kernel<T, kTransA, kTransB, 256, kEnd>>(ctx, c, taken);
  return enqueue<Kernel<T, kTransA, kTransB, 128, kEnd>>(ctx, c, taken);
}

}  // namespace sm90

template <class T>
diffit_status cutlassSm90(diffit_context *ctx, const CutlassProblem &c, GemmKernel kernel, bool *taken) {
  using sm90::End;
  *taken = false;
  const GemmProblem &p = c.p;
  const Epilogue &e = p.e;
  const diffit_dtype low = p.a->dtype;
  const bool shared = c.batch > 1 && (c.aStep == 0 || c.bStep == 0); /* a stride of 0 is none that TMA has */
  if (shared || (p.transA && p.transB)) return DIFFIT_OK;
  const bool alone = !e.bias && !e.pre.data && !e.residual.data && e.activation == DIFFIT_NO_ACTIVATION;
  const bool gated = e.gateInput.data || e.accumulate;
  if (p.transA) {
    if (!c.finish.partials && !(alone && !gated && e.y.dtype == DIFFIT_F32)) return DIFFIT_OK;
    return sm90::byTile<T, true, false, End::kPlainF32>(ctx, c, kernel, taken);
  }
  if (c.finish.partials || gated) return DIFFIT_OK;
  if (!p.transB) {
    if (!alone || e.y.dtype != low) return DIFFIT_OK;
    return sm90::byTile<T, false, false, End::kPlain>(ctx, c, kernel, taken);
  }
  if (e.activation == DIFFIT_NO_ACTIVATION) {
    if (e.pre.data) return DIFFIT_OK;
    if (!e.residual.data && e.y.dtype == low) return sm90::byTile<T, false, true, End::kBias>(ctx, c, kernel, taken);
    if (!e.residual.data || e.residual.dtype != DIFFIT_F32 || e.y.dtype != DIFFIT_F32) return DIFFIT_OK;
    return sm90::byTile<T, false, true, End::kBiasResidual>(ctx, c, kernel, taken);
  }
  if (e.residual.data || e.y.dtype != low || (e.pre.data && e.pre.dtype != low)) return DIFFIT_OK;
  if (e.pre.data) return sm90::byTile<T, false, true, End::kBiasGeluPre>(ctx, c, kernel, taken);
  return sm90::byTile<T, false, true, End::kBiasGelu>(ctx, c, kernel, taken);
}

}  // namespace diffit

#endif
