/*
 * Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and what kernels make of its words.
 */
#ifndef DIFFIT_CUDA_PHILOX_CUH
#define DIFFIT_CUDA_PHILOX_CUH

#include "context.cuh"

namespace diffit {

struct PhiloxKey {
  uint32_t seedLow, seedHigh, streamLow, streamHigh;
};

inline PhiloxKey keyOf(int64_t seed, int64_t stream) {
  return {(uint32_t)seed, (uint32_t)((uint64_t)seed >> 32), (uint32_t)stream, (uint32_t)((uint64_t)stream >> 32)};
}

__device__ inline uint4 philox(const PhiloxKey &key, uint32_t counter, uint32_t sample) {
  uint4 c = make_uint4(counter, sample, key.streamLow, key.streamHigh);
  uint32_t k0 = key.seedLow, k1 = key.seedHigh;
  for (int round = 0; round < 10; round++) {
    const uint32_t pHigh = __umulhi(c.x, 0xD2511F53u), pLow = c.x * 0xD2511F53u;
    const uint32_t qHigh = __umulhi(c.z, 0xCD9E8D57u), qLow = c.z * 0xCD9E8D57u;
    c = make_uint4(qHigh ^ c.y ^ k0, qLow, pHigh ^ c.w ^ k1, pLow);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

/* 24 bits of a random word as a number in [0, 1). */
__device__ inline float unitInterval(uint32_t word) { return (float)(word >> 8) * 0x1p-24f; }

/* Box-Muller on two words. */
__device__ inline float2 normalPair(uint32_t a, uint32_t b) {
  const float radius = sqrtf(-2.0f * logf(unitInterval(a) + 0x1p-24f));
  float sine, cosine;
  sincospif(2.0f * unitInterval(b), &sine, &cosine);
  return make_float2(radius * cosine, radius * sine);
}

}  // namespace diffit

#endif
