/* CUTLASS's names of our element types. */
#ifndef DIFFIT_CUDA_CUTLASS_ELEMENT_CUH
#define DIFFIT_CUDA_CUTLASS_ELEMENT_CUH

#include <cutlass/numeric_types.h>

#include "floats.cuh"

namespace diffit {

template <class T>
struct CutlassElement;
template <>
struct CutlassElement<bf16> {
  using Type = cutlass::bfloat16_t;
};
template <>
struct CutlassElement<f16> {
  using Type = cutlass::half_t;
};

}  // namespace diffit

#endif
