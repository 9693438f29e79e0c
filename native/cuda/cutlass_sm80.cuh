/*
 * Matrix products by CUTLASS's kernels for sm_80 (mma.sync, multistage): bf16 or f16, f32 sums, our epilogue at their end.
 *
 * CUTLASS 2.x hands the sums of a tile to a visitor, eight neighbours of a row at a time, out of shared memory: FinishVisitor runs
 * the same epilogue on them as gemm_epilogue.cuh does for our tiles, so one kernel per layout and tile serves every
 * combination of bias, residual and gate, and of dtypes. Functions are inlined there (sums stay in registers), so only the one the model has: the gelu of
 * tanh. Long k is cut into equal pieces, which are a batch with strides along k; the partials are joined as ours are.
 */
#ifndef DIFFIT_CUDA_CUTLASS_SM80_CUH
#define DIFFIT_CUDA_CUTLASS_SM80_CUH

/* In this order: the visitors use what the kernels declare. */
#include <cutlass/gemm/kernel/default_gemm_universal_with_visitor.h>

#include <cutlass/epilogue/threadblock/fusion/visitors.hpp>

#include "cutlass_element.cuh"
#include "cutlass_gemm.cuh"

namespace diffit {
namespace sm80 {

struct GeluTanhKind {
  __device__ static float4 activate(int, float4 v) {
    return make_float4(unaryForward<DIFFIT_GELU_TANH>(v.x), unaryForward<DIFFIT_GELU_TANH>(v.y),
                       unaryForward<DIFFIT_GELU_TANH>(v.z), unaryForward<DIFFIT_GELU_TANH>(v.w));
  }
  __device__ static float4 slope(int, float4 v) {
    return make_float4(unaryDerivative<DIFFIT_GELU_TANH>(v.x), unaryDerivative<DIFFIT_GELU_TANH>(v.y),
                       unaryDerivative<DIFFIT_GELU_TANH>(v.z), unaryDerivative<DIFFIT_GELU_TANH>(v.w));
  }
};

/* A node of CUTLASS's epilogue that takes the sums and writes what there is to write. */
template <class ThreadMap>
struct FinishVisitor {
  using Arguments = Finish;
  using Params = Finish;
  struct SharedStorage {};

  template <class Shape>
  static Params to_underlying_arguments(const Shape &, const Arguments &arguments, void *) {
    return arguments;
  }

  const Params *params;
  CUTLASS_HOST_DEVICE FinishVisitor() {}
  CUTLASS_HOST_DEVICE FinishVisitor(const Params &p, const SharedStorage &) : params(&p) {}

  template <class Coordinates>
  struct Callbacks : cutlass::epilogue::threadblock::EmptyCallbacks {
    static constexpr int kAcross = cute::size<1>(Coordinates{}), kDown = cute::size<2>(Coordinates{});
    static constexpr int kSteps = cute::size<3>(Coordinates{});
    Coordinates coordinates; /* (number, column, row, step) of this thread -> (row, column, batch) */
    const Params *params;
    float residual[2][kDown * kAcross]
                  [8]; /* of this step and the next, which is on its way while this one is written */
    CUTLASS_DEVICE Callbacks(Coordinates &&c, const Params *p) : coordinates(c), params(p) {}

    /* Of eight numbers: their place in y, or -1 outside. */
    CUTLASS_DEVICE int64_t placeOf(int step, int row, int column, int *first) const {
      const auto place = coordinates(cute::_0{}, column, row, step);
      const int line = cute::get<0>(place);
      *first = cute::get<1>(place);
      if (line >= params->m || *first >= params->n) return -1;
      return ((int64_t)cute::get<2>(place) * params->m + line) * params->n + *first;
    }
    CUTLASS_DEVICE void fetch(int step) {
      if (params->partials || !params->e.residual.data || step >= kSteps) return;
      CUTLASS_PRAGMA_UNROLL
      for (int i = 0; i < kDown * kAcross; i++) {
        int first;
        const int64_t at = placeOf(step, i / kAcross, i % kAcross, &first);
        if (at >= 0) loadEight(params->e.residual, at, residual[step % 2][i]);
      }
    }
    CUTLASS_DEVICE void begin_epilogue() { fetch(0); }
    CUTLASS_DEVICE void begin_step(int step) { fetch(step + 1); }

    template <class Element, int kCount>
    CUTLASS_DEVICE auto visit(int step, int row, int column, int, const cutlass::Array<Element, kCount> &sums) {
      static_assert(kCount == 8, "a thread holds eight neighbours");
      int first;
      const int64_t at = placeOf(step, row, column, &first);
      if (at >= 0) {
        float v[8];
        CUTLASS_PRAGMA_UNROLL
        for (int i = 0; i < 8; i++) v[i] = sums[i];
        auto held = [&](float(&other)[8]) {
          CUTLASS_PRAGMA_UNROLL
          for (int i = 0; i < 8; i++) other[i] = residual[step % 2][row * kAcross + column][i];
        };
        if (params->partials)
          storeEight({params->partials, DIFFIT_F32}, at, v);
        else
          params->e.template eight<GeluTanhKind>(v, at, first, held);
      }
      return sums;
    }
  };

  template <class Shape>
  CUTLASS_DEVICE auto get_callbacks(cutlass::gemm::GemmCoord tile, int thread, Shape shape) {
    auto all = cute::make_identity_tensor(shape);
    auto mine = cute::group_modes<3, 6>(ThreadMap::partition(all, thread, tile));
    return Callbacks<decltype(mine)>(cute::move(mine), params);
  }
};

/* A tile of kRows x kColumns x 32 by warps of 64 x 64. */
template <class T, bool kTransA, bool kTransB, int kRows, int kColumns, int kStages>
struct Kernel {
  using Element = typename CutlassElement<T>::Type;
  using Row = cutlass::layout::RowMajor;
  using Column = cutlass::layout::ColumnMajor;
  using Tile = cutlass::gemm::GemmShape<kRows, kColumns, 32>;
  using WarpTile = cutlass::gemm::GemmShape<64, 64, 32>;
  using Swizzle = cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<8>;
  using Base = typename cutlass::gemm::kernel::DefaultGemmUniversal<
      Element, std::conditional_t<kTransA, Column, Row>, cutlass::ComplexTransform::kNone, 8, Element,
      std::conditional_t<kTransB, Column, Row>, cutlass::ComplexTransform::kNone, 8, Element, Row, float,
      cutlass::arch::OpClassTensorOp, cutlass::arch::Sm80, Tile, WarpTile, cutlass::gemm::GemmShape<16, 8, 16>,
      cutlass::epilogue::thread::LinearCombination<Element, 8, float, float>, Swizzle, kStages,
      cutlass::arch::OpMultiplyAdd>::GemmKernel;
  using ThreadMap = cutlass::epilogue::threadblock::OutputTileThreadLayout<Tile, WarpTile, Element, 8, 1>;
  using Epilogue = cutlass::epilogue::threadblock::EpilogueWithVisitorCallbacks<typename Base::Epilogue,
                                                                                FinishVisitor<ThreadMap>, 1>;
  using Gemm = cutlass::gemm::kernel::GemmWithEpilogueVisitor<typename Base::Mma, Epilogue, Swizzle>;
};

template <class Kernel>
diffit_status enqueue(diffit_context *ctx, const CutlassProblem &c) {
  using Gemm = typename Kernel::Gemm;
  const GemmProblem &p = c.p;
  const int64_t lineA = p.transA ? p.m : p.k, lineB = p.transB ? p.k : p.n;
  const typename Gemm::Arguments arguments(cutlass::gemm::GemmUniversalMode::kBatched, {(int)p.m, (int)p.n, (int)c.k},
                                           (int)c.batch, c.finish, p.a->data, p.b->data, nullptr, nullptr, c.aStep,
                                           c.bStep, 0, 0, lineA, lineB, p.n, p.n);
  const typename Gemm::Params params(arguments, ctx->about.multiProcessorCount, 1);
  const dim3 grid = params.get_grid_dims();
  REQUIRE(grid.y <= 65535 && grid.z <= 65535);
  return launch(ctx, cutlass::Kernel2<Gemm>, grid, dim3(Gemm::kThreadCount), sizeof(typename Gemm::SharedStorage),
                params);
}

/* The shared memory of a block that this device has for one. */
template <class Kernel>
bool fits(const diffit_context *ctx) {
  return sizeof(typename Kernel::Gemm::SharedStorage) <= ctx->about.sharedMemPerBlockOptin;
}

template <class T, bool kTransA, bool kTransB>
diffit_status byTile(diffit_context *ctx, const CutlassProblem &c, GemmKernel kernel, bool *taken) {
  using Wide = Kernel<T, kTransA, kTransB, 256, 128, 3>;
  using Square = Kernel<T, kTransA, kTransB, 128, 128, 4>;
  *taken = kernel == GemmKernel::kSm80Tile256x128 ? fits<Wide>(ctx) : fits<Square>(ctx);
  if (!*taken) return DIFFIT_OK;
  return kernel == GemmKernel::kSm80Tile256x128 ? enqueue<Wide>(ctx, c) : enqueue<Square>(ctx, c);
}

}  // namespace sm80

template <class T>
diffit_status cutlassSm80(diffit_context *ctx, const CutlassProblem &c, GemmKernel kernel, bool *taken) {
  *taken = false;
  if (!c.p.transA && c.p.transB) return sm80::byTile<T, false, true>(ctx, c, kernel, taken);
  if (!c.p.transA) return sm80::byTile<T, false, false>(ctx, c, kernel, taken);
  return c.p.transB ? DIFFIT_OK : sm80::byTile<T, true, false>(ctx, c, kernel, taken);
}

}  // namespace diffit

#endif
