/*
 * The machine: number formats, warp operations, asynchronous copies and matrix instructions as named functions. The only
 * file with inline PTX; native/emulator/arch.h has the same functions for the host.
 *
 * Fragments (PTX ISA, mma.m16n8k16): lane l has group g = l / 4 and quad q = l % 4. Of A (16 x 16): rows g and g + 8, columns 2q, 2q + 1
 * and those + 8, registers {g, g + 8, g with columns + 8, g + 8 with columns + 8}. Of B (16 x 8): rows 2q, 2q + 1 and
 * those + 8, column g. Of D (16 x 8): (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1).
 */
#ifndef DIFFIT_CUDA_ARCH_CUH
#define DIFFIT_CUDA_ARCH_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#if defined(DIFFIT_EMULATED)
#include "../emulator/arch.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string.h>

namespace diffit {

/* ---- number formats ------------------------------------------------------------------------------------------ */

using bf16 = __nv_bfloat16;
using f16 = __half;
__device__ __forceinline__ float toFloat(float x) { return x; }
__device__ __forceinline__ float toFloat(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float toFloat(f16 x) { return __half2float(x); }
template <class T>
__device__ T fromFloat(float x);
template <>
__device__ __forceinline__ float fromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 fromFloat<bf16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ f16 fromFloat<f16>(float x) {
  return __float2half_rn(x);
}
/* Two numbers as a register of T pairs, `low` at the lower address. */
template <class T>
__device__ uint32_t packPair(float low, float high);
template <>
__device__ __forceinline__ uint32_t packPair<bf16>(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
template <>
__device__ __forceinline__ uint32_t packPair<f16>(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
/* The two numbers of such a register, in f32. */
template <class T>
__device__ float2 unpackPair(uint32_t bits);
template <>
__device__ __forceinline__ float2 unpackPair<bf16>(uint32_t bits) {
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}
template <>
__device__ __forceinline__ float2 unpackPair<f16>(uint32_t bits) {
  half2 pair;
  memcpy(&pair, &bits, 4);
  return __half22float2(pair);
}
__device__ __forceinline__ uint32_t toTf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

/* ---- warps and blocks; warp operations are for whole warps ---------------------------------------------------- */

/* For blocks of one dimension, and of others whose x is a multiple of 32. */
__device__ __forceinline__ int laneIndex() { return (int)(threadIdx.x & 31); }
template <class T>
__device__ __forceinline__ T shuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
__device__ __forceinline__ T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
__device__ __forceinline__ void syncWarp() { __syncwarp(); }
/* Barrier kId (1 to 15) among kThreads threads. */
template <int kId, int kThreads>
__device__ __forceinline__ void namedBarrier() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kThreads) : "memory");
}
/* The block's dynamic shared memory as a struct; the launch passes sizeof(T). */
template <class T>
__device__ __forceinline__ T &sharedMemory() {
  extern __shared__ __align__(128) char bytes[];
  return *reinterpret_cast<T *>(bytes);
}

/* ---- asynchronous copies: 16 bytes from global to shared memory, or zeros ------------------------------------- */

__device__ __forceinline__ uint32_t sharedAddress(const void *pointer) {
  return (uint32_t)__cvta_generic_to_shared(pointer);
}
__device__ __forceinline__ void copyAsync16(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(sharedAddress(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* Until at most kPending groups of this thread are under way; others' copies need a barrier besides. */
template <int kPending>
__device__ __forceinline__ void waitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/* ---- matrix fragments ---------------------------------------------------------------------------------------- */

/* ldmatrix: kCount (1, 2, 4) matrices of 8 x 8 16-bit numbers; lane 8 m + r gives the address of row r of matrix m. */
template <int kCount, bool kTransposed>
__device__ __forceinline__ void loadMatrices(uint32_t (&r)[kCount], const void *row) {
  const uint32_t address = sharedAddress(row);
  if constexpr (kCount == 4 && !kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
  else if constexpr (kCount == 4)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
  else if constexpr (kCount == 2 && !kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address));
  else if constexpr (kCount == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address));
  else if constexpr (!kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address));
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address));
}

/* d += a b, 16 x 16 by 16 x 8; f32 sums. */
template <class T>
__device__ void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
/* d += a b, 16 x 8 by 8 x 8. */
template <class T>
__device__ void mma1688(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]);

#define DIFFIT_MMA(type, name)                                                                                 \
  template <>                                                                                                  \
  __device__ __forceinline__ void mma16816<type>(float(&d)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { \
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                        \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                        \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                          \
  }                                                                                                            \
  template <>                                                                                                  \
  __device__ __forceinline__ void mma1688<type>(float(&d)[4], const uint32_t(&a)[2], const uint32_t(&b)[1]) {  \
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." name "." name                                         \
                 ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"                                    \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));                                                           \
  }
DIFFIT_MMA(bf16, "bf16")
DIFFIT_MMA(f16, "f16")
#undef DIFFIT_MMA

/* d += a b, 16 x 8 by 8 x 8 of tf32: rows g, g + 8 and columns q, q + 4 of A; rows q, q + 4, column g of B. */
__device__ __forceinline__ void mma1688Tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace diffit

#endif
#endif
