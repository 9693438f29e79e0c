/*
 * Loaders of matrices in memory for gemm_tile.cuh: numbers of k along a line (LineLoader) or across (DepthLoader). Each load gives
 * four neighbours; what lies outside is zero.
 */
#ifndef DIFFIT_CUDA_GEMM_LOAD_CUH
#define DIFFIT_CUDA_GEMM_LOAD_CUH

#include "gemm_epilogue.cuh"

namespace diffit {

/* Stored [lines, k]: four neighbours along k. */
template <class T>
struct LineLoader {
  static constexpr bool kAlongDepth = true;
  const T *data;
  int lines, k;
  int64_t step;
  bool vector; /* may rows be read sixteen (bf16: eight) bytes at a time? */
  __device__ float4 load(int64_t batch, int line, int depth, int end) const {
    float v[4] = {0, 0, 0, 0};
    if (line >= lines || depth >= end) return make_float4(0, 0, 0, 0);
    const T *from = data + batch * step + (int64_t)line * k + depth;
    if (vector && depth + 4 <= end) {
      if constexpr (sizeof(T) == 4) return *(const float4 *)from;
      struct alignas(8) Four {
        T v[4];
      } four = *(const Four *)from;
      for (int i = 0; i < 4; i++) v[i] = toFloat(four.v[i]);
    } else {
      for (int i = 0; i < 4; i++)
        if (depth + i < end) v[i] = toFloat(from[i]);
    }
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

/* Stored [k, lines]: four neighbouring lines. */
struct DepthLoader {
  static constexpr bool kAlongDepth = false;
  const float *data;
  int lines;
  int64_t step;
  bool vector;
  __device__ float4 load(int64_t batch, int line, int depth, int end) const {
    if (depth >= end || line >= lines) return make_float4(0, 0, 0, 0);
    const float *from = data + batch * step + (int64_t)depth * lines + line;
    if (vector) return *(const float4 *)from; /* lines is a multiple of four */
    float v[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++)
      if (line + i < lines) v[i] = from[i];
    return make_float4(v[0], v[1], v[2], v[3]);
  }
};

template <class T>
LineLoader<T> linesOf(const diffit_tensor *t, int64_t lines, int64_t k, int64_t step) {
  return {(const T *)t->data, (int)lines, (int)k, step, k % 4 == 0 && isAligned(t->data, 4 * sizeof(T))};
}
inline DepthLoader depthsOf(const diffit_tensor *t, int64_t lines, int64_t step) {
  return {f32(t), (int)lines, step, lines % 4 == 0 && isAligned(t->data, 16)};
}

}  // namespace diffit

#endif
