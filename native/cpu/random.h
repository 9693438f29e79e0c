/*
 * Random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), uniform and
 * normal, and dropout.
 *
 * The number for element e of sample b is a function of (seed, stream, b, e) alone, so it is the same for any batch,
 * device and number of threads. Each 64-bit lane computes one counter: the product of 32-bit words fills the lane, and only the low
 * halves of lanes are ever read, so what the upper ones hold does not matter. Memory traffic: the output once.
 */
#ifndef DIFFIT_CPU_RANDOM_H
#define DIFFIT_CPU_RANDOM_H

typedef uint64_t vq __attribute__((vector_size(kLanes * 4)));
static constexpr int kCounters = kLanes / 2; /* of one vector */
static constexpr int kWords = 256; /* of a block */

/* Products of the low halves of the lanes with m. */
DIFFIT_INLINE vq mulWords(vq a, uint32_t m) {
#if defined(__AVX512F__)
  return (vq)_mm512_maskz_mul_epu32((__mmask8)-1, (__m512i)a, _mm512_set1_epi32((int)m));
#elif defined(__AVX2__)
  return (vq)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi32((int)m));
#elif defined(__SSE2__)
  return (vq)_mm_mul_epu32((__m128i)a, _mm_set1_epi32((int)m));
#else
  return (a & 0xffffffffu) * m;
#endif
}

/* Lanes of a and b in turn, from the lower or the upper lane of each 128 bits. */
DIFFIT_INLINE vq zipLower(vq a, vq b) {
#if defined(__AVX512F__)
  return (vq)_mm512_maskz_unpacklo_epi64((__mmask8)-1, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vq)_mm256_unpacklo_epi64((__m256i)a, (__m256i)b);
#else
  return vq{a[0], b[0]};
#endif
}
DIFFIT_INLINE vq zipUpper(vq a, vq b) {
#if defined(__AVX512F__)
  return (vq)_mm512_maskz_unpackhi_epi64((__mmask8)-1, (__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vq)_mm256_unpackhi_epi64((__m256i)a, (__m256i)b);
#else
  return vq{a[1], b[1]};
#endif
}

struct PhiloxKey {
  uint32_t seedLow, seedHigh, streamLow, streamHigh;
};

/* The four words of kCounters counters, in the low halves of the lanes. */
struct PhiloxWords {
  vq w0, w1, w2, w3;
};

/* Words of the counters (first + i, sample, stream low, stream high) under the key (seed low, seed high). The lower lanes of all 128 bits
   have the first half of the counters, the upper ones the second: zipping then gives their order in memory. */
DIFFIT_INLINE PhiloxWords philoxVector(const PhiloxKey &key, uint32_t sample, uint32_t first) {
  vq order;
  for (int i = 0; i < kCounters; i++) order[i] = (uint64_t)(i / 2 + i % 2 * (kCounters / 2));
  vq a = order + first;
  vq b = sample - vq{}, c = key.streamLow - vq{}, d = key.streamHigh - vq{};
  uint32_t k0 = key.seedLow, k1 = key.seedHigh;
  for (int round = 0; round < 10; round++) {
    const vq p = mulWords(a, 0xD2511F53u), q = mulWords(c, 0xCD9E8D57u);
    a = (q >> 32) ^ b ^ k0;
    b = q;
    c = (p >> 32) ^ d ^ k1;
    d = p;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {a, b, c, d};
}

static constexpr uint64_t kLowWord = 0xffffffffu;
/* One word from each, the first below the second. */
DIFFIT_INLINE vq pairWords(vq low, vq high) { return (low & kLowWord) | (high << 32); }

/* 24 bits of random words as numbers in [0, 1). */
DIFFIT_INLINE vf unitInterval(vq words) { return __builtin_convertvector((vi)((vu)words >> 8), vf) * 0x1p-24f; }

/* The uniform numbers of all words: 4 kCounters elements. */
DIFFIT_INLINE void uniforms(const PhiloxWords &w, float *out) {
  const vq front = pairWords(w.w0, w.w1), back = pairWords(w.w2, w.w3);
  store(out, unitInterval(zipLower(front, back)));
  store(out + kLanes, unitInterval(zipUpper(front, back)));
}

/* Box-Muller on words 0, 1 and words 2, 3 of each counter. */
DIFFIT_INLINE void normals(const PhiloxWords &w, float *out) {
  const vf radius = vsqrt(-2.0f * vlog(unitInterval(pairWords(w.w0, w.w2)) + 0x1p-24f));
  const SinCos angle = vsincosTurns(unitInterval(pairWords(w.w1, w.w3)));
  const vq cosines = (vq)(radius * angle.cos), sines = (vq)(radius * angle.sin);
  const vq front = pairWords(cosines, sines), back = (cosines >> 32) | (sines & ~kLowWord);
  store(out, (vf)zipLower(front, back));
  store(out + kLanes, (vf)zipUpper(front, back));
}

/* emit(element offset in the tensor, values, count) for the elements of all samples of y [batch, ...], blocks of at
   most kWords in the order of the counters; fill is uniforms or normals. */
template <class Fill, class Emit>
static void eachRandomBlock(diffit_context *ctx, const diffit_tensor *y, int64_t seed, int64_t stream,
                            int64_t firstSample, const Fill &fill, const Emit &emit) {
  const int64_t batch = y->ndim > 0 ? y->shape[0] : 1;
  if (numel(y) == 0) return;
  const int64_t size = numel(y) / batch, blocks = ceilDiv(size, kWords);
  const PhiloxKey key = {(uint32_t)seed, (uint32_t)((uint64_t)seed >> 32), (uint32_t)stream,
                         (uint32_t)((uint64_t)stream >> 32)};
  parallelChunks(ctx, batch * blocks, 16, [=, &fill, &emit](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t sample = task / blocks, block = task % blocks;
      float values[kWords];
      const int64_t length = imin(kWords, size - block * kWords);
      for (int64_t i = 0; i < length; i += 4 * kCounters)
        fill(philoxVector(key, (uint32_t)(firstSample + sample), (uint32_t)block * (kWords / 4) + (uint32_t)i / 4),
             values + i);
      emit(sample * size + block * kWords, values, length);
    }
  });
}

static diffit_status philox_op(diffit_context *ctx, diffit_tensor *y, int64_t kind, int64_t seed, int64_t stream,
                               int64_t firstSample) {
  REQUIRE_F32(y);
  REQUIRE(kind == DIFFIT_UNIFORM || kind == DIFFIT_NORMAL);
  float *out = f32(y);
  const auto emit = [=](int64_t at, const float *values, int64_t count) {
    memcpy(out + at, values, (size_t)count * sizeof(float));
  };
  if (kind == DIFFIT_UNIFORM) {
    eachRandomBlock(
        ctx, y, seed, stream, firstSample, [](const auto &w, float *to) { uniforms(w, to); }, emit);
  } else {
    eachRandomBlock(
        ctx, y, seed, stream, firstSample, [](const auto &w, float *to) { normals(w, to); }, emit);
  }
  return DIFFIT_OK;
}

static diffit_status dropout_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double p, int64_t seed,
                                int64_t stream, int64_t firstSample) {
  REQUIRE_FLOAT(x);
  REQUIRE(y->dtype == x->dtype);
  REQUIRE(numel(x) == numel(y));
  REQUIRE(p >= 0 && p <= 1);
  const float threshold = (float)(::ceil(p * 0x1p24) * 0x1p-24); /* u >= p exactly, for every 24-bit u */
  const float scale = (float)(1.0 / (1.0 - p));
  withFloats(
      [&](auto in, auto out) {
        const auto emit = [=](int64_t at, const float *values, int64_t count) {
          mapVectors2<1, 1>(in + at, values, out + at, count,
                            [=](vf v, vf u) { return vselect(u >= threshold, v * scale, vf{}); });
        };
        eachRandomBlock(
            ctx, y, seed, stream, firstSample, [](const auto &w, float *to) { uniforms(w, to); }, emit);
      },
      x, y);
  return DIFFIT_OK;
}

#endif
