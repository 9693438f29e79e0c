/*
 * Host twins of native/cuda/arch.cuh: the same functions, with the fragment layouts of the PTX ISA (sections on
 * mma.m16n8k8 and mma.m16n8k16, ldmatrix, cp.async). Included by arch.cuh alone.
 */
#ifndef DIFFIT_EMULATOR_ARCH_H
#define DIFFIT_EMULATOR_ARCH_H

#include "block.h"

namespace diffit {

/* ---- number formats ------------------------------------------------------------------------------------------ */

struct bf16 {
  uint16_t bits;
};
struct f16 {
  _Float16 value;
};
inline float toFloat(float x) { return x; }
inline float toFloat(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
inline float toFloat(f16 x) { return (float)x.value; }
template <class T>
T fromFloat(float x);
template <>
inline float fromFloat<float>(float x) {
  return x;
}
template <>
inline bf16 fromFloat<bf16>(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return {0x7fff};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline f16 fromFloat<f16>(float x) {
  return {(_Float16)x};
}
template <class T>
uint32_t packPair(float low, float high) {
  const T pair[2] = {fromFloat<T>(low), fromFloat<T>(high)};
  uint32_t bits;
  memcpy(&bits, pair, 4);
  return bits;
}
template <class T>
float2 unpackPair(uint32_t bits) {
  T pair[2];
  memcpy(pair, &bits, 4);
  return {toFloat(pair[0]), toFloat(pair[1])};
}
inline float fastExp2(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
/* Rounded to nearest, ties away, 10 bits of mantissa: cvt.rna.tf32. */
inline uint32_t toTf32(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return (bits + 0x1000) & 0xffffe000u;
}

/* ---- warps and blocks ---------------------------------------------------------------------------------------- */

inline int laneIndex() { return emulator::lane(); }
template <class T>
T slotOf(const char *slots, int lane) {
  T value;
  memcpy(&value, slots + (lane & 31) * emulator::kSlotBytes, sizeof value);
  return value;
}
template <class T>
T shuffleXor(T value, int mask) {
  return slotOf<T>(emulator::exchange("shuffleXor", &value, sizeof value), emulator::lane() ^ mask);
}
template <class T>
T shuffle(T value, int lane) {
  return slotOf<T>(emulator::exchange("shuffle", &value, sizeof value), lane);
}
inline void syncWarp() {
  const char nothing = 0;
  emulator::exchange("syncWarp", &nothing, 1);
}
template <int kId, int kThreads>
void namedBarrier() {
  emulator::barrier(kId, kThreads);
}
template <class T>
T &sharedMemory() {
  return *(T *)emulator::sharedBytes();
}

/* ---- asynchronous copies ------------------------------------------------------------------------------------- */

inline void copyAsync16(void *shared, const void *global, bool valid) {
  if (((uintptr_t)shared | (uintptr_t)global) % 16 != 0)
    emulator::fault("copyAsync16: an address is not aligned to 16 bytes");
  emulator::copyLater(shared, global, valid ? 16 : 0, valid ? 0 : 16);
}
inline void commitCopies() { emulator::commitCopies(); }
template <int kPending>
void waitCopies() {
  emulator::waitCopies(kPending);
}

/* ---- matrix fragments ---------------------------------------------------------------------------------------- */

/* Row r of matrix m is at the address of lane 8 m + r; register m of lane l gets elements 2 (l % 4) and the next of row l / 4. */
template <int kCount, bool kTransposed>
void loadMatrices(uint32_t (&registers)[kCount], const void *row) {
  const char *slots = emulator::exchange(kTransposed ? "loadMatrices transposed" : "loadMatrices", &row, sizeof row);
  const int lane = emulator::lane();
  for (int m = 0; m < kCount; m++) {
    uint16_t pair[2];
    for (int e = 0; e < 2; e++) {
      const int r = kTransposed ? 2 * (lane % 4) + e : lane / 4, c = kTransposed ? lane / 4 : 2 * (lane % 4) + e;
      const char *address = slotOf<const char *>(slots, 8 * m + r);
      if ((uintptr_t)address % 16 != 0) emulator::fault("loadMatrices: a row is not aligned to 16 bytes");
      memcpy(&pair[e], address + 2 * c, 2);
    }
    memcpy(&registers[m], pair, 4);
  }
}

/* d += a b of 16 x K by K x 8, from every lane's fragments; element (i, j) of lane l as the PTX ISA numbers them. */
template <class T, int kK, int kA, int kB>
void emulateMma(float (&d)[4], const uint32_t (&a)[kA], const uint32_t (&b)[kB]) {
  constexpr int kPer = (int)(4 / sizeof(T)); /* elements in a register */
  T elements[(kA + kB) * kPer];
  memcpy(elements, a, sizeof a);
  memcpy(elements + kA * kPer, b, sizeof b);
  float mine[(kA + kB) * kPer]; /* a, then b */
  for (int i = 0; i < (kA + kB) * kPer; i++) mine[i] = toFloat(elements[i]);
  const char *slots = emulator::exchange(kK == 16 ? "mma k16" : "mma k8", mine, sizeof mine);
  const int lane = emulator::lane(), group = lane / 4, quad = lane % 4;
  for (int out = 0; out < 4; out++) {
    const int row = group + (out / 2) * 8, column = 2 * quad + out % 2;
    float sum = d[out];
    for (int k = 0; k < kK; k++) {
      /* a: register = half of rows + 2 (half of k); lane = 4 (row % 8) + place of k. b: register = half of k; lane = 4 column + place. */
      const int half = k / (4 * kPer), place = k % (4 * kPer) / kPer, e = k % kPer;
      const float *from = (const float *)(slots + (4 * (row % 8) + place) * emulator::kSlotBytes);
      const float *other = (const float *)(slots + (4 * column + place) * emulator::kSlotBytes);
      sum += from[(row / 8 + 2 * half) * kPer + e] * other[kA * kPer + half * kPer + e];
    }
    d[out] = sum;
  }
}
template <class T>
void mma16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulateMma<T, 16>(d, a, b);
}
template <class T>
void mma1688(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1]) {
  emulateMma<T, 8>(d, a, b);
}
/* tf32, in f32 registers whose low 13 bits are 0. */
inline void mma1688Tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  emulateMma<float, 8>(d, a, b);
}

}  // namespace diffit

#endif
