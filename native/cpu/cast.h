/*
 * Conversions between the element types, and fill.
 *
 * f32 to bf16 and f16 rounds to nearest, ties to even; NaN stays NaN; too large becomes infinite. To integers: truncates
 * toward zero, saturates, NaN gives 0. The bodies have no branches, so the compiler turns the loops into vector code.
 * Memory traffic: each element read once and written once.
 */
#ifndef DIFFIT_CPU_CAST_H
#define DIFFIT_CPU_CAST_H

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

DIFFIT_INLINE uint32_t bitsOf(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
DIFFIT_INLINE float floatOf(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

/* Every type reads as f32 or, the integers, as i64. */
DIFFIT_INLINE float widen(float x) { return x; }
DIFFIT_INLINE float widen(Bf16 x) { return floatOf((uint32_t)x.bits << 16); }
DIFFIT_INLINE float widen(F16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  const uint32_t rebias = magnitude >= 0x7c00 ? 224u << 23 : 112u << 23; /* inf and NaN keep the largest exponent */
  const uint32_t normal = (magnitude << 13) + rebias;
  const uint32_t denormal = bitsOf((float)(int32_t)magnitude * 0x1p-24f);
  return floatOf(sign | (magnitude < 0x0400 ? denormal : normal));
}
DIFFIT_INLINE int64_t widen(int32_t x) { return x; }
DIFFIT_INLINE int64_t widen(int64_t x) { return x; }
DIFFIT_INLINE int64_t widen(uint8_t x) { return x; }

DIFFIT_INLINE void narrow(float x, float *y) { *y = x; }
DIFFIT_INLINE void narrow(float x, Bf16 *y) {
  const uint32_t u = bitsOf(x);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  y->bits = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? (u >> 16) | 0x40 : rounded);
}
DIFFIT_INLINE void narrow(float x, F16 *y) {
  const uint32_t u = bitsOf(x), magnitude = u & 0x7fffffff;
  const uint32_t normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  /* next to 0.5 an f32 has the spacing of f16's denormals, so this addition rounds to them */
  const uint32_t denormal = bitsOf(floatOf(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000 ? denormal : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 : half;
  half = magnitude > 0x7f800000 ? 0x7e00 : half;
  y->bits = (uint16_t)(half | (u >> 16 & 0x8000));
}
DIFFIT_INLINE void narrow(float x, int32_t *y) {
  *y = x != x ? 0 : x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : (int32_t)x;
}
DIFFIT_INLINE void narrow(float x, int64_t *y) {
  *y = x != x ? 0 : x >= 0x1p63f ? INT64_MAX : x < -0x1p63f ? INT64_MIN : (int64_t)x;
}
DIFFIT_INLINE void narrow(float x, uint8_t *y) {
  const float low = x > 0.0f ? x : 0.0f; /* NaN gives 0 */
  *y = (uint8_t)(int32_t)(low < 255.0f ? low : 255.0f);
}
DIFFIT_INLINE void narrow(int64_t x, float *y) { *y = (float)x; }
DIFFIT_INLINE void narrow(int64_t x, Bf16 *y) { narrow((float)x, y); }
DIFFIT_INLINE void narrow(int64_t x, F16 *y) { narrow((float)x, y); }
DIFFIT_INLINE void narrow(int64_t x, int32_t *y) {
  *y = (int32_t)(x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : x);
}
DIFFIT_INLINE void narrow(int64_t x, int64_t *y) { *y = x; }
DIFFIT_INLINE void narrow(int64_t x, uint8_t *y) { *y = (uint8_t)(x > 255 ? 255 : x < 0 ? 0 : x); }

/* ---- vectors of bf16, and of either type --------------------------------------------------------------- */

typedef uint16_t vuHalf __attribute__((vector_size(kLanes * 2)));

DIFFIT_INLINE vf widenVector(vuHalf bits) { return (vf)(__builtin_convertvector(bits, vu) << 16); }
DIFFIT_INLINE vuHalf narrowVector(vf x) {
  const vu u = (vu)x;
  const vu rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16, quiet = (u >> 16) | 0x40;
  return __builtin_convertvector(x != x ? quiet : rounded, vuHalf);
}

DIFFIT_INLINE vf load(const Bf16 *p) {
  vuHalf bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return widenVector(bits);
}
DIFFIT_INLINE void store(Bf16 *p, vf v) {
  const vuHalf bits = narrowVector(v);
  __builtin_memcpy(p, &bits, sizeof bits);
}
DIFFIT_INLINE vf loadPartial(const Bf16 *p, int64_t n) {
#if defined(__AVX512F__)
  return widenVector((vuHalf)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1u), p));
#else
  Bf16 t[kLanes] = {};
  for (int64_t i = 0; i < n; i++) t[i] = p[i];
  return load(t);
#endif
}
DIFFIT_INLINE void storePartial(Bf16 *p, vf v, int64_t n) {
#if defined(__AVX512F__)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1u), (__m256i)narrowVector(v));
#else
  Bf16 t[kLanes];
  store(t, v);
  for (int64_t i = 0; i < n; i++) p[i] = t[i];
#endif
}

/* A pointer to elements of f32 or bf16, known at run time only: a branch a vector, always taken the same way. Kernels are templates over
   `float *` and this, so that f32 alone pays nothing and every mixture has one body. */
struct AnyFloats {
  char *data;
  int shift; /* log2 of an element's size */
  AnyFloats operator+(int64_t n) const { return {data + (n << shift), shift}; }
  explicit operator bool() const { return data != nullptr; }
};

DIFFIT_INLINE vf load(AnyFloats p) { return p.shift == 1 ? load((const Bf16 *)p.data) : load((const float *)p.data); }
DIFFIT_INLINE void store(AnyFloats p, vf v) { p.shift == 1 ? store((Bf16 *)p.data, v) : store((float *)p.data, v); }
DIFFIT_INLINE vf loadPartial(AnyFloats p, int64_t n) {
  return p.shift == 1 ? loadPartial((const Bf16 *)p.data, n) : loadPartial((const float *)p.data, n);
}
DIFFIT_INLINE void storePartial(AnyFloats p, vf v, int64_t n) {
  p.shift == 1 ? storePartial((Bf16 *)p.data, v, n) : storePartial((float *)p.data, v, n);
}

/* The first element. */
DIFFIT_INLINE float element(const float *p) { return *p; }
DIFFIT_INLINE float element(AnyFloats p) {
  return p.shift == 1 ? widen(*(const Bf16 *)p.data) : *(const float *)p.data;
}

DIFFIT_INLINE bool isFloat(const diffit_tensor *t) { return t->dtype == DIFFIT_F32 || t->dtype == DIFFIT_BF16; }

/* f(data...) of the tensors, as `float *` where all are f32, else as AnyFloats; absent ones give a null pointer. */
template <class F, class... Tensors>
DIFFIT_INLINE void withFloats(const F &f, const Tensors *...tensors) {
  if (((!tensors || tensors->dtype == DIFFIT_F32) && ...)) {
    f((tensors ? (float *)tensors->data : nullptr)...);
  } else {
    f((tensors ? AnyFloats{(char *)tensors->data, tensors->dtype == DIFFIT_BF16 ? 1 : 2} : AnyFloats{nullptr, 2})...);
  }
}

/* ---- conversions ---------------------------------------------------------------------------------------- */

/* By vectors, where the processor or narrowVector has a faster way than the compiler finds for the loop below. */
#if defined(__AVX512F__)
DIFFIT_INLINE vf load(const F16 *p) {
  return (vf)_mm512_maskz_cvtph_ps((__mmask16)-1, _mm256_loadu_si256((const __m256i *)p));
}
DIFFIT_INLINE void store(F16 *p, vf v) {
  _mm256_storeu_si256((__m256i *)p,
                      _mm512_maskz_cvtps_ph((__mmask16)-1, (__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
DIFFIT_INLINE vf load(const F16 *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
DIFFIT_INLINE void store(F16 *p, vf v) {
  _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
#else
DIFFIT_INLINE vf load(const F16 *p) {
  vf v;
  for (int i = 0; i < kLanes; i++) v[i] = widen(p[i]);
  return v;
}
DIFFIT_INLINE void store(F16 *p, vf v) {
  for (int i = 0; i < kLanes; i++) narrow(v[i], &p[i]);
}
#endif

/* Whether elements are converted by way of a vector of f32. */
template <class From, class To>
static constexpr bool kByVectors = false;
template <>
constexpr bool kByVectors<float, F16> = true;
template <>
constexpr bool kByVectors<F16, float> = true;
template <>
constexpr bool kByVectors<float, Bf16> = true;
template <>
constexpr bool kByVectors<Bf16, float> = true;

/* Pointers are parameters here, not captures: bytes written may alias a captured pointer, and the loop stays scalar. */
template <class From, class To>
static void castRange(const From *x, To *y, int64_t n) {
  int64_t i = 0;
  if constexpr (kByVectors<From, To>)
    for (; i + kLanes <= n; i += kLanes) store(y + i, load(x + i));
  for (; i < n; i++) narrow(widen(x[i]), &y[i]);
}

template <class From, class To>
static void castLoop(diffit_context *ctx, const From *x, To *y, int64_t n) {
  parallelChunks(ctx, n, 16384, [=](int64_t begin, int64_t end, int) { castRange(x + begin, y + begin, end - begin); });
}

template <class From>
static void castFrom(diffit_context *ctx, const From *x, diffit_tensor *y, int64_t n) {
  switch (y->dtype) {
    case DIFFIT_F32:
      return castLoop(ctx, x, (float *)y->data, n);
    case DIFFIT_BF16:
      return castLoop(ctx, x, (Bf16 *)y->data, n);
    case DIFFIT_F16:
      return castLoop(ctx, x, (F16 *)y->data, n);
    case DIFFIT_I32:
      return castLoop(ctx, x, (int32_t *)y->data, n);
    case DIFFIT_I64:
      return castLoop(ctx, x, (int64_t *)y->data, n);
    case DIFFIT_U8:
      return castLoop(ctx, x, (uint8_t *)y->data, n);
  }
}

static diffit_status cast_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y) {
  const int64_t n = numel(x);
  REQUIRE(numel(y) == n);
  REQUIRE(y->dtype >= DIFFIT_F32 && y->dtype <= DIFFIT_U8);
  switch (x->dtype) {
    case DIFFIT_F32:
      castFrom(ctx, (const float *)x->data, y, n);
      break;
    case DIFFIT_BF16:
      castFrom(ctx, (const Bf16 *)x->data, y, n);
      break;
    case DIFFIT_F16:
      castFrom(ctx, (const F16 *)x->data, y, n);
      break;
    case DIFFIT_I32:
      castFrom(ctx, (const int32_t *)x->data, y, n);
      break;
    case DIFFIT_I64:
      castFrom(ctx, (const int64_t *)x->data, y, n);
      break;
    case DIFFIT_U8:
      castFrom(ctx, (const uint8_t *)x->data, y, n);
      break;
    default:
      return diffit_cpu_fail(ctx, DIFFIT_INVALID, "cast: %d is no element type", (int)x->dtype);
  }
  return DIFFIT_OK;
}

template <class T>
static void fillRange(T *y, int64_t n, T value) {
  for (int64_t i = 0; i < n; i++) y[i] = value;
}

template <class T>
static void fillLoop(diffit_context *ctx, T *y, int64_t n, T value) {
  parallelChunks(ctx, n, 65536, [=](int64_t begin, int64_t end, int) { fillRange(y + begin, end - begin, value); });
}

/* Integers are filled with `value` truncated and saturated as in cast, but from f64. */
template <class T>
static void fillInteger(diffit_context *ctx, T *y, int64_t n, double value) {
  T element;
  narrow(value != value    ? (int64_t)0
         : value >= 0x1p63 ? INT64_MAX
         : value < -0x1p63 ? INT64_MIN
                           : (int64_t)value,
         &element);
  fillLoop(ctx, y, n, element);
}

template <class T>
static void fillFloat(diffit_context *ctx, T *y, int64_t n, double value) {
  T element;
  narrow((float)value, &element);
  fillLoop(ctx, y, n, element);
}

static diffit_status fill_op(diffit_context *ctx, diffit_tensor *y, double value) {
  const int64_t n = numel(y);
  switch (y->dtype) {
    case DIFFIT_F32:
      fillFloat(ctx, (float *)y->data, n, value);
      break;
    case DIFFIT_BF16:
      fillFloat(ctx, (Bf16 *)y->data, n, value);
      break;
    case DIFFIT_F16:
      fillFloat(ctx, (F16 *)y->data, n, value);
      break;
    case DIFFIT_I32:
      fillInteger(ctx, (int32_t *)y->data, n, value);
      break;
    case DIFFIT_I64:
      fillInteger(ctx, (int64_t *)y->data, n, value);
      break;
    case DIFFIT_U8:
      fillInteger(ctx, (uint8_t *)y->data, n, value);
      break;
    default:
      return diffit_cpu_fail(ctx, DIFFIT_INVALID, "fill: %d is no element type", (int)y->dtype);
  }
  return DIFFIT_OK;
}

#endif
