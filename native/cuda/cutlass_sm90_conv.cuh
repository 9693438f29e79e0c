/*
 * Convolutions by CUTLASS's kernels for sm_90a: TMA forms the im2col matrix on its way to shared memory, wgmma multiplies; bf16 or f16,
 * f32 sums.
 *
 *   fprop  y [B OH OW, O]   = im2col(x) w'          + bias, + residual
 *   dgrad  dx [B H W, I]    = im2col(dy) w          unit stride alone: CUTLASS's kernel has no other
 *   wgrad  dw [O, (tap, I)] = dy' im2col(x)         f32
 *
 * Endings are compiled in: those that the library asks for, where y has the residual's dtype, or the operands' where there is none.
 * Each tile is a block's one task; k is not cut, so a convolution needs tiles for the whole device (conv_tuning.cuh).
 */
#ifndef DIFFIT_CUDA_CUTLASS_SM90_CONV_CUH
#define DIFFIT_CUDA_CUTLASS_SM90_CONV_CUH

/* In this order: builders of a kernel before the kernel, the adapter last. That of the products may not be among them: it brings a
   kernel for anything whose shape is not a tuple, convolutions too. */
#include <cutlass/epilogue/collective/collective_builder.hpp>

#include <cutlass/conv/collective/collective_builder.hpp>

#include <cutlass/conv/kernel/conv_universal.hpp>

#include <cutlass/conv/device/conv_universal_adapter.hpp>

#include "cutlass_conv_shape.cuh"
#include "cutlass_element.cuh"

namespace diffit {
namespace sm90 {

/*
 * Tiles of 128 x kColumns x 64: 64 channels of one tap. Two neighbours share what is not im2col. One warpgroup multiplies; with 64
 * columns two blocks of four stages fit on a multiprocessor, so one can multiply while the other ends.
 */
template <class T, ConvKind kKind_, int kColumns, class Output_, class Source_>
struct ConvOf {
  static constexpr ConvKind kKind = kKind_;
  static constexpr bool kWeights = kKind == ConvKind::kWgrad, kBias = kKind == ConvKind::kFprop;
  static_assert(!kWeights || kColumns == 64, "im2col of the second factor comes by 64 channels");
  using Element = typename CutlassElement<T>::Type;
  using Output = Output_;
  using Source = Source_;
  using Image = cutlass::layout::TensorNHWC; /* weights [O, kh, kw, I] go by this name as well */
  using Result = std::conditional_t<kWeights, cutlass::layout::TensorKCSR, Image>;
  using Channels = cute::Shape<cute::Int<kColumns>>;
  using Tile =
      cute::Shape<cute::_128, std::conditional_t<kWeights, Channels, cute::Int<kColumns>>, cute::Shape<cute::_64>>;
  using Cluster = std::conditional_t<kWeights, cute::Shape<cute::_1, cute::_2, cute::_1>,
                                     cute::Shape<cute::_2, cute::_1, cute::_1>>;
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Source, Result, 16 / (int)sizeof(Output), Output,
      Result, 16 / (int)sizeof(Output),
      std::conditional_t<kWeights, cutlass::epilogue::NoSmemWarpSpecialized, cutlass::epilogue::TmaWarpSpecialized>,
      std::conditional_t<kBias, cutlass::epilogue::fusion::LinCombPerColBias<Output, float, float, Source>,
                         cutlass::epilogue::fusion::LinearCombination<Output, float, Source>>>::CollectiveOp;
  using Stages = std::conditional_t<
      kColumns == 64, cutlass::conv::collective::StageCount<4>,
      cutlass::conv::collective::StageCountAutoCarveout<(int)sizeof(typename Epilogue::SharedStorage)>>;
  using Mainloop = typename cutlass::conv::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, operatorOf(kKind), Element, Image, 8, Element, Image, 8,
      float, Tile, Cluster, Stages, cutlass::conv::KernelImplicitTmaWarpSpecializedSm90>::CollectiveOp;
  using Conv = cutlass::conv::device::ConvUniversalAdapter<
      cutlass::conv::kernel::ConvUniversal<ConvShape<kKind>, Mainloop, Epilogue>>;
  static_assert(kColumns > 64 || Conv::ConvKernel::SharedStorageSize <= (228 / 2 - 1) << 10, "two blocks");
};

/* *taken says whether the kernel could be had. */
template <class Of>
diffit_status enqueue(diffit_context *ctx, const ConvProblem &p, bool *taken) {
  using Conv = typename Of::Conv;
  using Element = typename Of::Element;
  constexpr ConvKind kKind = Of::kKind;
  *taken = false;
  typename Conv::Arguments arguments = {};
  if (!shapeOf<kKind>(p, &arguments.problem_shape)) return DIFFIT_OK;
  arguments.mainloop.ptr_A = (const Element *)(kKind == ConvKind::kFprop ? p.x : p.y)->data;
  arguments.mainloop.ptr_B = (const Element *)(kKind == ConvKind::kWgrad ? p.x : p.w)->data;
  arguments.epilogue.ptr_D = (typename Of::Output *)p.e.y.data;
  arguments.epilogue.dD = resultStride<kKind, typename Conv::ConvKernel::StrideD>(arguments.problem_shape);
  if constexpr (!std::is_void_v<typename Of::Source>) {
    arguments.epilogue.ptr_C = (const typename Of::Source *)p.e.residual.data;
    arguments.epilogue.dC = resultStride<kKind, typename Conv::ConvKernel::StrideC>(arguments.problem_shape);
    arguments.epilogue.thread.beta = 1;
  }
  if constexpr (Of::kBias) arguments.epilogue.thread.bias_ptr = p.e.bias; /* null: zeros */
  arguments.hw_info.device_id = ctx->index;
  arguments.hw_info.sm_count = ctx->about.multiProcessorCount;
  if (Conv::can_implement(arguments) != cutlass::Status::kSuccess) return DIFFIT_OK;
  const size_t bytes = Conv::get_workspace_size(arguments);
  void *workspace = bytes ? scratch(ctx, 1, bytes) : nullptr;
  if (bytes && !workspace) return DIFFIT_OUT_OF_MEMORY;
  Conv conv;
  *taken = conv.initialize(arguments, workspace, ctx->stream) == cutlass::Status::kSuccess &&
           conv.run(ctx->stream) == cutlass::Status::kSuccess;
  if (!*taken) cudaGetLastError(); /* another kernel takes the convolution, without this one's error */
  return DIFFIT_OK;
}

template <class T, ConvKind kKind, class Output, class Source>
diffit_status byTile(diffit_context *ctx, const ConvProblem &p, ConvKernel kernel, bool *taken) {
  if (kernel == ConvKernel::kSm90Tile128x128) return enqueue<ConvOf<T, kKind, 128, Output, Source>>(ctx, p, taken);
  return enqueue<ConvOf<T, kKind, 64, Output, Source>>(ctx, p, taken);
}

}  // namespace sm90

template <class T>
diffit_status cutlassConvSm90(diffit_context *ctx, const ConvProblem &p, ConvKernel kernel, bool *taken) {
  using Element = typename CutlassElement<T>::Type;
  *taken = false;
  const Floats &residual = p.e.residual, &y = p.e.y;
  if (p.kind == ConvKind::kWgrad) {
    if (y.dtype != DIFFIT_F32 || kernel != ConvKernel::kSm90Tile128x64) return DIFFIT_OK;
    return sm90::enqueue<sm90::ConvOf<T, ConvKind::kWgrad, 64, float, void>>(ctx, p, taken);
  }
  const bool isLow = y.dtype == (p.kind == ConvKind::kFprop ? p.x : p.y)->dtype;
  if (p.kind == ConvKind::kDgrad)
    return isLow ? sm90::byTile<T, ConvKind::kDgrad, Element, void>(ctx, p, kernel, taken) : DIFFIT_OK;
  if (!residual.data)
    return isLow ? sm90::byTile<T, ConvKind::kFprop, Element, void>(ctx, p, kernel, taken) : DIFFIT_OK;
  if (residual.dtype != y.dtype) return DIFFIT_OK;
  if (isLow) return sm90::byTile<T, ConvKind::kFprop, Element, Element>(ctx, p, kernel, taken);
  return y.dtype == DIFFIT_F32 ? sm90::byTile<T, ConvKind::kFprop, float, float>(ctx, p, kernel, taken) : DIFFIT_OK;
}

}  // namespace diffit

#endif
