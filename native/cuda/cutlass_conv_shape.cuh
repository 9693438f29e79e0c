/*
 * A convolution in CUTLASS's terms: shapes, strides and padding of ConvProblemShape. Ours names the padding above and to the left
 * only, and the size of y says how far the window goes; CUTLASS wants the padding below and to the right and finds the size from it.
 */
#ifndef DIFFIT_CUDA_CUTLASS_CONV_SHAPE_CUH
#define DIFFIT_CUDA_CUTLASS_CONV_SHAPE_CUH

#include <cutlass/conv/convolution.h>

#include <cute/layout.hpp>

#include <cutlass/conv/convnd_problem_shape.hpp>

#include "cutlass_conv.cuh"

namespace diffit {
namespace sm90 {

constexpr cutlass::conv::Operator operatorOf(ConvKind kind) {
  return kind == ConvKind::kFprop   ? cutlass::conv::Operator::kFprop
         : kind == ConvKind::kDgrad ? cutlass::conv::Operator::kDgrad
                                    : cutlass::conv::Operator::kWgrad;
}
template <ConvKind kKind>
using ConvShape = cutlass::conv::ConvProblemShape<operatorOf(kKind), 2>;

/* False where CUTLASS has no such convolution: padding below zero, strides that TMA lacks, of gradients of an image any but one. */
template <ConvKind kKind>
bool shapeOf(const ConvProblem &p, ConvShape<kKind> *shape) {
  constexpr int64_t kMostStride = 8, kMostPadding = 255;
  const int64_t stride = p.at.stride, lower[2] = {p.at.padTop, p.at.padLeft};
  if (stride > (kKind == ConvKind::kDgrad ? 1 : kMostStride)) return false;
  int upper[2];
  for (int i = 0; i < 2; i++) {
    const int64_t seen =
        (p.y->shape[i + 1] - 1) * stride + p.w->shape[i + 1]; /* pixels that the window passes, padding too */
    const int64_t beyond = seen - lower[i] - p.x->shape[i + 1]; /* below zero: the last pixels are not seen */
    if (lower[i] < 0 || lower[i] > kMostPadding || beyond <= -stride || beyond > kMostPadding) return false;
    upper[i] = (int)imax(beyond, 0);
  }
  auto extents = [](const diffit_tensor *t) {
    return cute::array<int, 4>{(int)t->shape[0], (int)t->shape[1], (int)t->shape[2], (int)t->shape[3]};
  };
  *shape = ConvShape<kKind>(cutlass::conv::Mode::kCrossCorrelation, extents(p.x), extents(p.w),
                            cute::array<int, 2>{(int)lower[0], (int)lower[1]}, cute::array<int, 2>{upper[0], upper[1]},
                            cute::array<int, 2>{(int)stride, (int)stride}, cute::array<int, 2>{1, 1}, 1);
  return true;
}

/* Of a packed result: between neighbours in a row, between rows, between images; or between taps, rows of taps, outputs. */
template <ConvKind kKind, class Stride>
Stride resultStride(const ConvShape<kKind> &shape) {
  Stride stride = {};
  const auto &steps = shape.stride_C;
  if constexpr (kKind == ConvKind::kWgrad) {
    cute::get<0>(stride) = steps[0];
    cute::get<1, 1>(stride) = steps[2];
    cute::get<1, 2>(stride) = steps[1];
  } else {
    cute::get<0, 0>(stride) = steps[2];
    cute::get<0, 1>(stride) = steps[1];
    cute::get<0, 2>(stride) = steps[0];
  }
  return stride;
}

}  // namespace sm90
}  // namespace diffit

#endif
