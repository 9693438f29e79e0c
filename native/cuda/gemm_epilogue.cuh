/*
 * What happens to the sums of a matrix product (gemm in ops.def): bias, activation, gate, residual, accumulation, each where
 * it is given; and the same after sums of pieces of k have been joined. y, pre, gateInput and residual are [batch, m, n], each
 * f32, bf16 or f16; everything is computed in f32 and rounded once, when it is stored.
 *
 * Kernels put their sums into shared memory and call Finish::rows, which goes over them in rows, eight neighbours per thread:
 * whole lines of memory in 16-byte pieces, and no sum is left in a register while a thread is busy with functions.
 */
#ifndef DIFFIT_CUDA_GEMM_EPILOGUE_CUH
#define DIFFIT_CUDA_GEMM_EPILOGUE_CUH

#include "floats.cuh"
#include "mathfun.cuh"

namespace diffit {

inline bool isAligned(const void *pointer, size_t bytes) { return (uintptr_t)pointer % bytes == 0; }

/* Eight neighbours of any float dtype; `at` is a multiple of eight and the data aligned to 16 bytes. */
__device__ __forceinline__ void loadEight(const Floats &t, int64_t at, float (&v)[8]) {
  if (t.dtype != DIFFIT_F32) return load(t, at, v);
  const float4 low = ((const float4 *)t.data)[at / 4], high = ((const float4 *)t.data)[at / 4 + 1];
  v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
  v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
}
__device__ __forceinline__ void storeEight(const Floats &t, int64_t at, const float (&v)[8]) {
  if (t.dtype != DIFFIT_F32) return store(t, at, v);
  ((float4 *)t.data)[at / 4] = make_float4(v[0], v[1], v[2], v[3]);
  ((float4 *)t.data)[at / 4 + 1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ __forceinline__ void storeOne(const Floats &t, int64_t at, float v) {
  const float one[1] = {v};
  store(t, at, one);
}

/* The functions of an epilogue, four at a time. Of any kind: called, not inlined, for one copy in a kernel is enough. */
struct AnyKind {
  __device__ __noinline__ static float4 activate(int kind, float4 v) {
    return make_float4(unaryForwardOf(kind, v.x), unaryForwardOf(kind, v.y), unaryForwardOf(kind, v.z),
                       unaryForwardOf(kind, v.w));
  }
  __device__ __noinline__ static float4 slope(int kind, float4 v) {
    return make_float4(unaryDerivativeOf(kind, v.x), unaryDerivativeOf(kind, v.y), unaryDerivativeOf(kind, v.z),
                       unaryDerivativeOf(kind, v.w));
  }
};

struct Epilogue {
  const float *bias;
  Floats gateInput, residual, y, pre;
  int activation, gateKind;
  bool accumulate;

  /* Writes element `at` of y, which lies in column `column`. */
  __device__ void one(float v, int64_t at, int64_t column) const {
    if (bias) v += bias[column];
    if (pre.data) storeOne(pre, at, v);
    if (activation != DIFFIT_NO_ACTIVATION) v = AnyKind::activate(activation, make_float4(v, 0, 0, 0)).x;
    if (gateInput.data) v *= AnyKind::slope(gateKind, make_float4(loadOne(gateInput, at), 0, 0, 0)).x;
    if (residual.data) v += loadOne(residual, at);
    if (accumulate) v += loadOne(y, at);
    storeOne(y, at, v);
  }
  /* The same for eight neighbours of a row, where inEights() holds. readResidual(other) is asked for theirs when it is their turn. */
  template <class Functions, class ReadResidual>
  __device__ void eight(float (&v)[8], int64_t at, int64_t column, const ReadResidual &readResidual) const {
    float other[8];
    if (bias) {
      loadEight({(void *)bias, DIFFIT_F32}, column, other);
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] += other[i];
    }
    if (pre.data) storeEight(pre, at, v);
    if (activation != DIFFIT_NO_ACTIVATION) {
      const float4 low = Functions::activate(activation, make_float4(v[0], v[1], v[2], v[3]));
      const float4 high = Functions::activate(activation, make_float4(v[4], v[5], v[6], v[7]));
      v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
      v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    }
    if (gateInput.data) {
      loadEight(gateInput, at, other);
      const float4 low = Functions::slope(gateKind, make_float4(other[0], other[1], other[2], other[3]));
      const float4 high = Functions::slope(gateKind, make_float4(other[4], other[5], other[6], other[7]));
      v[0] *= low.x, v[1] *= low.y, v[2] *= low.z, v[3] *= low.w;
      v[4] *= high.x, v[5] *= high.y, v[6] *= high.z, v[7] *= high.w;
    }
    if (residual.data) {
      readResidual(other);
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] += other[i];
    }
    if (accumulate) {
      loadEight(y, at, other);
#pragma unroll
      for (int i = 0; i < 8; i++) v[i] += other[i];
    }
    storeEight(y, at, v);
  }
  template <class Functions>
  __device__ void eight(float (&v)[8], int64_t at, int64_t column) const {
    eight<Functions>(v, at, column, [&](float(&other)[8]) { loadEight(residual, at, other); });
  }
  /* May rows of n numbers be read and written eight at a time? */
  bool inEights(int64_t n) const {
    return n % 8 == 0 && isAligned(bias, 16) && isAligned(gateInput.data, 16) && isAligned(residual.data, 16) &&
           isAligned(y.data, 16) && isAligned(pre.data, 16);
  }
};

/* Where the sums of a tile go: through the epilogue, or, where k was cut into pieces, to partials f32 [pieces, batch, m, n]. */
struct Finish {
  Epilogue e;
  float *partials;
  int m, n;
  int64_t size; /* batch m n */
  bool inEights;

  /* kRows x kColumns sums in shared memory, kPitch apart, by the kBlock threads of a block; what lies outside m x n is dropped. */
  template <int kRows, int kColumns, int kPitch, int kBlock>
  __device__ void rows(const float *sums, int64_t batch, unsigned piece, int firstRow, int firstColumn) const {
    constexpr int kEights = kColumns / 8;
    float *const partial = partials ? partials + piece * size : nullptr;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < kRows * kEights; i += kBlock) {
      const int line = i / kEights, row = firstRow + line, column = firstColumn + i % kEights * 8;
      if (row >= m || column >= n) continue;
      const float *from = sums + line * kPitch + i % kEights * 8;
      const int64_t at = (batch * m + row) * n + column;
      if (inEights) {
        const float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
        float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        if (partial)
          storeEight({partial, DIFFIT_F32}, at, v);
        else
          e.eight<AnyKind>(v, at, column);
      } else {
#pragma unroll 1
        for (int j = 0; j < 8 && column + j < n; j++) {
          if (partial)
            partial[at + j] = from[j];
          else
            e.one(from[j], at + j, column + j);
        }
      }
    }
  }
};

/* ---- pieces of k --------------------------------------------------------------------------------------------- */

/* Shortest piece of k worth a block of its own. */
constexpr int64_t kShortestPiece = 256, kMostPieces = 64;

/* Numbers of k per block for `tiles` blocks on `processors` multiprocessors, a multiple of `step`: k itself where there are tiles enough. */
inline int64_t pieceOf(int64_t k, int64_t tiles, int64_t processors, int64_t step) {
  const int64_t pieces = imin(kMostPieces, imin(k / kShortestPiece, 2 * processors / tiles));
  return pieces <= 1 ? imax(k, 1) : ceilDiv(ceilDiv(k, pieces), step) * step;
}

/* The pieces in order, then the epilogue. */
inline diffit_status joinPartials(diffit_context *ctx, const Finish &finish, int64_t pieces) {
  const Epilogue e = finish.e;
  const float *partials = finish.partials;
  const int64_t size = finish.size, n = finish.n;
  if (finish.inEights)
    return forEach(ctx, size / 8, [=] __device__(int64_t i) {
      float sums[8] = {}, part[8];
      for (int64_t p = 0; p < pieces; p++) {
        loadEight({(void *)(partials + p * size), DIFFIT_F32}, i * 8, part);
#pragma unroll
        for (int j = 0; j < 8; j++) sums[j] += part[j];
      }
      e.eight<AnyKind>(sums, i * 8, i * 8 % n);
    });
  return forEach(ctx, size, [=] __device__(int64_t i) {
    float sum = 0;
    for (int64_t p = 0; p < pieces; p++) sum += partials[p * size + i];
    e.one(sum, i, i % n);
  });
}

/* Runs a product in pieces of k: run(finish) enqueues it, the joining follows where there are several. */
template <class Run>
diffit_status inPieces(diffit_context *ctx, const Epilogue &e, int64_t batch, int64_t m, int64_t n, int64_t k,
                       int64_t piece, const Run &run) {
  const int64_t pieces = ceilDiv(k, piece), size = batch * m * n;
  Finish finish = {e, nullptr, (int)m, (int)n, size, e.inEights(n)};
  if (pieces <= 1) return run(finish);
  finish.partials = (float *)scratch(ctx, 0, (size_t)(pieces * size) * sizeof(float));
  if (!finish.partials) return DIFFIT_OUT_OF_MEMORY;
  TRY(run(finish));
  return joinPartials(ctx, finish, pieces);
}

}  // namespace diffit

#endif
