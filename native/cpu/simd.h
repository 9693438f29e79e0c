/*
 * The SIMD layer: one vector type `vf` of kLanes floats, written with GCC/Clang vector extensions so that each
 * instruction-set variant compiles the same source to its own registers. Included by kernel files inside
 * `namespace diffit::DIFFIT_VARIANT` by way of kernels.h; a * b + c contracts to a fused multiply-add
 * (-ffp-contract=fast). No standard library templates here: see context.h for why.
 */
#ifndef DIFFIT_CPU_SIMD_H
#define DIFFIT_CPU_SIMD_H

#if defined(__AVX512F__)
static constexpr int kLanes = 16;
#elif defined(__AVX2__)
static constexpr int kLanes = 8;
#else
static constexpr int kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(kLanes * 4)));
typedef int32_t vi __attribute__((vector_size(kLanes * 4)));
typedef uint32_t vu __attribute__((vector_size(kLanes * 4)));

#define DIFFIT_INLINE static inline __attribute__((always_inline))

DIFFIT_INLINE vf load(const float *p) {
  vf v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
DIFFIT_INLINE void store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
DIFFIT_INLINE vf set1(float x) { return x - vf{}; }
DIFFIT_INLINE vi set1i(int32_t x) { return x - vi{}; }

/* The first n lanes of memory, the others 0; n in [0, kLanes]. */
DIFFIT_INLINE vf loadPartial(const float *p, int64_t n) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#else
  float t[kLanes] = {0};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load(t);
#endif
}
DIFFIT_INLINE void storePartial(float *p, vf v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#else
  float t[kLanes];
  store(t, v);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
#endif
}

DIFFIT_INLINE vf vmax(vf a, vf b) { return a > b ? a : b; }
DIFFIT_INLINE vf vmin(vf a, vf b) { return a < b ? a : b; }
DIFFIT_INLINE vf vabs(vf a) { return (vf)((vi)a & 0x7fffffff); }
DIFFIT_INLINE vf vsqrt(vf a) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_sqrt_ps((__mmask16)-1, (__m512)a);
#elif defined(__AVX2__)
  return (vf)_mm256_sqrt_ps((__m256)a);
#else
  vf r;
  for (int i = 0; i < kLanes; i++) r[i] = __builtin_sqrtf(a[i]);
  return r;
#endif
}
/* Nearest integer; |a| < 2^22. */
DIFFIT_INLINE vf vround(vf a) {
  const vf magic = set1(12582912.0f); /* 1.5 * 2^23 */
  const vf shifted = a + magic; /* without -ffast-math no compiler may cancel the two */
  return shifted - magic;
}

/* Sum of the lanes, halves onto halves: the same order in both ways of writing it. */
DIFFIT_INLINE float hsum(vf v) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps((__m256)_mm512_maskz_extractf32x8_ps((__mmask8)-1, (__m512)v, 0),
                                     (__m256)_mm512_maskz_extractf32x8_ps((__mmask8)-1, (__m512)v, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#else
  float t[kLanes];
  store(t, v);
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) t[i] += t[i + w];
  return t[0];
#endif
}
DIFFIT_INLINE float hmax(vf v) {
  float t[kLanes];
  store(t, v);
  for (int w = kLanes / 2; w > 0; w /= 2)
    for (int i = 0; i < w; i++) t[i] = t[i] > t[i + w] ? t[i] : t[i + w];
  return t[0];
}

#endif
