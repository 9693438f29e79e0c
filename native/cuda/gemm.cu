/*
 * The operation gemm: batched matrix products in all four transpositions, f32, b also in bf16 (a linear layer with
 * half-size weights). Shapes: op(a) [batch or 1, m, k], op(b) [batch or 1, k, n], y [batch, m, n]. How it works: gemm_tile.cuh.
 */
#include "gemm_tile.cuh"

namespace diffit {
namespace {

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

bool isAligned(const void *pointer, size_t bytes) { return (uintptr_t)pointer % bytes == 0; }

template <class T>
LineLoader<T> linesOf(const diffit_tensor *t, int64_t lines, int64_t k, int64_t step) {
  return {(const T *)t->data, (int)lines, (int)k, step, k % 4 == 0 && isAligned(t->data, 4 * sizeof(T))};
}
DepthLoader depthsOf(const diffit_tensor *t, int64_t lines, int64_t step) {
  return {f32(t), (int)lines, step, lines % 4 == 0 && isAligned(t->data, 16)};
}

}  // namespace

diffit_status gemm_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b, const diffit_tensor *bias,
                      const diffit_tensor *gateInput, const diffit_tensor *residual, diffit_tensor *y,
                      diffit_tensor *pre, int64_t batch, int64_t m, int64_t n, int64_t k, int64_t transA,
                      int64_t transB, int64_t activation, int64_t gateKind, int64_t accumulate) {
  REQUIRE_F32(a);
  REQUIRE(b->dtype == DIFFIT_F32 || (b->dtype == DIFFIT_BF16 && !transA && transB));
  REQUIRE_F32(y);
  const int64_t limit = (int64_t)1 << 31;
  REQUIRE(batch >= 0 && m >= 0 && n >= 0 && k >= 0 && batch < limit && m < limit && n < limit && k < limit);
  int64_t size = 0;
  REQUIRE(!__builtin_mul_overflow(m * n, batch, &size) && numel(y) == size);
  REQUIRE(!__builtin_mul_overflow(m * k, batch, &size) && (numel(a) == size || numel(a) == m * k));
  REQUIRE(!__builtin_mul_overflow(k * n, batch, &size) && (numel(b) == size || numel(b) == k * n));
  REQUIRE(!bias || isVector(bias, n));
  REQUIRE(!gateInput || isVector(gateInput, numel(y)));
  REQUIRE(!residual || isVector(residual, numel(y)));
  REQUIRE(!pre || isVector(pre, numel(y)));
  REQUIRE(activation == DIFFIT_NO_ACTIVATION || isActivation(activation));
  REQUIRE(!gateInput || isActivation(gateKind));
  const Epilogue e = {f32(bias), f32(gateInput),  f32(residual),  f32(y),
                      f32(pre),  (int)activation, (int)gateKind, accumulate != 0};
  const int64_t aStep = numel(a) == m * k ? 0 : m * k, bStep = numel(b) == k * n ? 0 : k * n;
  if (bStep == 0 && aStep != 0 && !transA) { /* one tall matrix */
    m *= batch;
    batch = 1;
  }
  if (b->dtype == DIFFIT_BF16)
    return multiply(ctx, linesOf<float>(a, m, k, aStep), linesOf<bf16>(b, n, k, bStep), e, batch, m, n, k);
  if (transA && transB)
    return multiply(ctx, depthsOf(a, m, aStep), linesOf<float>(b, n, k, bStep), e, batch, m, n, k);
  if (transA) return multiply(ctx, depthsOf(a, m, aStep), depthsOf(b, n, bStep), e, batch, m, n, k);
  if (transB) return multiply(ctx, linesOf<float>(a, m, k, aStep), linesOf<float>(b, n, k, bStep), e, batch, m, n, k);
  return multiply(ctx, linesOf<float>(a, m, k, aStep), depthsOf(b, n, bStep), e, batch, m, n, k);
}

}  // namespace diffit
