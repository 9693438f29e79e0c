/*
 * Tensors of f32, bf16 or f16 as kernels of one template read and write them: kWidth neighbours at a time, in f32.
 *
 * The type is known at run time; all threads have the same one, so asking for it costs an instruction or two beside a memory access. Widths:
 * 8 where all tensors are bf16 or f16 and 4 where some are f32, so that the widest access is 16 bytes and neighbouring threads
 * touch neighbouring bytes; 1 where a pointer or a row is not aligned to that.
 */
#ifndef DIFFIT_CUDA_FLOATS_CUH
#define DIFFIT_CUDA_FLOATS_CUH

#include <initializer_list>

#include "context.cuh"

namespace diffit {

/* The data of a tensor; null: absent. */
struct Floats {
  void *data;
  diffit_dtype dtype;
};

inline bool isFloat(const diffit_tensor *t) {
  return t->dtype == DIFFIT_F32 || t->dtype == DIFFIT_BF16 || t->dtype == DIFFIT_F16;
}
#define REQUIRE_FLOAT(t) REQUIRE(isFloat(t))
inline bool isFloatVector(const diffit_tensor *t, int64_t n) { return isFloat(t) && numel(t) == n; }
inline Floats floats(const diffit_tensor *t) { return t ? Floats{t->data, t->dtype} : Floats{nullptr, DIFFIT_F32}; }

/* ---- access, on the device ----------------------------------------------------------------------------------- */

/* Bits of kWidth numbers; separate from their conversion, so that all loads can be under way before one is waited for. */
template <int kWidth>
struct Bits {
  uint4 words; /* a narrower access fills the first ones */
};

/* Numbers i to i + kWidth - 1; i is a multiple of kWidth. */
template <int kWidth>
__device__ __forceinline__ Bits<kWidth> loadBits(const Floats &t, int64_t i) {
  Bits<kWidth> bits;
  bits.words = make_uint4(0, 0, 0, 0);
  if constexpr (kWidth == 1) {
    if (t.dtype == DIFFIT_F32)
      bits.words.x = ((const uint32_t *)t.data)[i];
    else
      bits.words.x = ((const uint16_t *)t.data)[i];
  } else if constexpr (kWidth == 4) {
    if (t.dtype == DIFFIT_F32) {
      bits.words = ((const uint4 *)t.data)[i / 4];
    } else {
      const uint2 two = ((const uint2 *)t.data)[i / 4];
      bits.words.x = two.x, bits.words.y = two.y;
    }
  } else {
    bits.words = ((const uint4 *)t.data)[i / 8];
  }
  return bits;
}

__device__ __forceinline__ float asFloat(uint32_t bits) { return __int_as_float((int)bits); }
__device__ __forceinline__ uint32_t asBits(float x) { return (uint32_t)__float_as_int(x); }

template <class T, int kWidth>
__device__ __forceinline__ void unpackLow(const Bits<kWidth> &bits, float (&v)[kWidth]) {
  const uint32_t words[4] = {bits.words.x, bits.words.y, bits.words.z, bits.words.w};
#pragma unroll
  for (int k = 0; k < kWidth; k += 2) {
    const float2 pair = unpackPair<T>(words[k / 2]);
    v[k] = pair.x;
    if constexpr (kWidth > 1) v[k + 1] = pair.y;
  }
}

template <int kWidth>
__device__ __forceinline__ void unpack(const Floats &t, const Bits<kWidth> &bits, float (&v)[kWidth]) {
  if constexpr (kWidth < 8) {
    if (t.dtype == DIFFIT_F32) {
      v[0] = asFloat(bits.words.x);
      if constexpr (kWidth == 4) {
        v[1] = asFloat(bits.words.y);
        v[2] = asFloat(bits.words.z);
        v[3] = asFloat(bits.words.w);
      }
      return;
    }
  }
  if (t.dtype == DIFFIT_BF16)
    unpackLow<bf16>(bits, v);
  else
    unpackLow<f16>(bits, v);
}

template <int kWidth>
__device__ __forceinline__ void load(const Floats &t, int64_t i, float (&v)[kWidth]) {
  unpack(t, loadBits<kWidth>(t, i), v);
}
__device__ __forceinline__ float loadOne(const Floats &t, int64_t i) {
  float v[1];
  load(t, i, v);
  return v[0];
}

/* kWidth numbers of a vector of f32 that may be absent: then `otherwise`. (At width 8 it is: no tensor is f32 then.) */
template <int kWidth>
__device__ __forceinline__ void loadOr(const float *p, int64_t i, float otherwise, float (&v)[kWidth]) {
  if (p) {
    load(Floats{(void *)p, DIFFIT_F32}, i, v);
    return;
  }
#pragma unroll
  for (int e = 0; e < kWidth; e++) v[e] = otherwise;
}

template <class T, int kWidth>
__device__ __forceinline__ void storeLow(void *data, int64_t i, const float (&v)[kWidth]) {
  if constexpr (kWidth == 1) {
    ((T *)data)[i] = fromFloat<T>(v[0]);
  } else {
    uint32_t words[kWidth / 2];
#pragma unroll
    for (int k = 0; k < kWidth; k += 2) words[k / 2] = packPair<T>(v[k], v[k + 1]);
    if constexpr (kWidth == 4)
      ((uint2 *)data)[i / 4] = make_uint2(words[0], words[1]);
    else
      ((uint4 *)data)[i / 8] = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

/* Rounds to nearest, ties to even. */
template <int kWidth>
__device__ __forceinline__ void store(const Floats &t, int64_t i, const float (&v)[kWidth]) {
  if constexpr (kWidth < 8) {
    if (t.dtype == DIFFIT_F32) {
      if constexpr (kWidth == 1)
        ((float *)t.data)[i] = v[0];
      else
        ((float4 *)t.data)[i / 4] = make_float4(v[0], v[1], v[2], v[3]);
      return;
    }
  }
  if (t.dtype == DIFFIT_BF16)
    storeLow<bf16>(t.data, i, v);
  else
    storeLow<f16>(t.data, i, v);
}

/* ---- choice of the width, on the host ------------------------------------------------------------------------ */

/* The width for these tensors (absent ones do not count) and runs of `length` elements. */
inline int widthOf(std::initializer_list<Floats> tensors, int64_t length) {
  int width = 8;
  for (const Floats &t : tensors)
    if (t.data && t.dtype == DIFFIT_F32) width = 4;
  if (length % width != 0 && width == 8 && length % 4 == 0) width = 4;
  if (length % width != 0) return 1;
  for (const Floats &t : tensors) {
    const uintptr_t bytes = (uintptr_t)width * (t.dtype == DIFFIT_F32 ? 4 : 2);
    if (t.data && (uintptr_t)t.data % bytes != 0) return 1;
  }
  return width;
}

template <int kWidth>
struct Width {
  static constexpr int value = kWidth;
};
/* f(Width<width>) */
template <class F>
diffit_status withWidth(int width, const F &f) {
  return width == 8 ? f(Width<8>{}) : width == 4 ? f(Width<4>{}) : f(Width<1>{});
}

}  // namespace diffit

#endif
