/*
 * Random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), uniform and
 * normal, and dropout.
 *
 * The number for element e of sample b is a function of (seed, stream, b, e) alone, so it is the same for any batch,
 * device and number of threads. Work: 64 counters (256 words) at a time; memory traffic: the output once.
 */
#ifndef DIFFIT_CPU_RANDOM_H
#define DIFFIT_CPU_RANDOM_H

static constexpr int kCounters = 64, kWords = 4 * kCounters;

struct PhiloxKey {
  uint32_t seedLow, seedHigh, streamLow, streamHigh;
};

/* out[w][i] = word w of counter (first + i, sample, stream low, stream high) under the key (seed low, seed high), for
   `count` counters: a multiple of 16. */
static void philoxBlock(const PhiloxKey &key, uint32_t sample, uint32_t first, int count, uint32_t out[4][kCounters]) {
  uint32_t *a = out[0], *b = out[1], *c = out[2], *d = out[3];
  for (int i = 0; i < count; i++) {
    a[i] = first + (uint32_t)i;
    b[i] = sample;
    c[i] = key.streamLow;
    d[i] = key.streamHigh;
  }
  uint32_t k0 = key.seedLow, k1 = key.seedHigh;
  for (int round = 0; round < 10; round++) {
    for (int i = 0; i < count; i++) {
      const uint64_t p = (uint64_t)a[i] * 0xD2511F53u, q = (uint64_t)c[i] * 0xCD9E8D57u;
      a[i] = (uint32_t)(q >> 32) ^ b[i] ^ k0;
      b[i] = (uint32_t)q;
      c[i] = (uint32_t)(p >> 32) ^ d[i] ^ k1;
      d[i] = (uint32_t)p;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

/* 24 bits of a random word as a number in [0, 1). */
DIFFIT_INLINE vf unitInterval(const uint32_t *words) {
  vi w;
  memcpy(&w, words, sizeof w);
  return __builtin_convertvector((vi)((vu)w >> 8), vf) * 0x1p-24f;
}

/* Box-Muller on words 0, 1 and words 2, 3 of each counter. */
DIFFIT_INLINE void normalBlock(const uint32_t words[4][kCounters], int count, float out[4][kCounters]) {
  for (int pair = 0; pair < 4; pair += 2) {
    for (int i = 0; i < count; i += kLanes) {
      const vf radius = vsqrt(-2.0f * vlog(unitInterval(words[pair] + i) + 0x1p-24f));
      const SinCos angle = vsincosTurns(unitInterval(words[pair + 1] + i));
      store(out[pair] + i, radius * angle.cos);
      store(out[pair + 1] + i, radius * angle.sin);
    }
  }
}

/* emit(element offset in the tensor, values, count) for the elements of all samples of y [batch, ...], blocks of at
   most kWords in the order of the counters; fill(words, counters, values) turns the words of a block into floats. */
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
      uint32_t words[4][kCounters];
      float columns[4][kCounters], values[kWords];
      const int64_t length = imin(kWords, size - block * kWords);
      const int count = (int)roundUp(ceilDiv(length, 4), 16);
      philoxBlock(key, (uint32_t)(firstSample + sample), (uint32_t)(block * kCounters), count, words);
      fill(words, count, columns);
      for (int i = 0; i < count; i++)
        for (int w = 0; w < 4; w++) values[4 * i + w] = columns[w][i];
      emit(sample * size + block * kWords, values, length);
    }
  });
}

/* The uniform number of every word. */
DIFFIT_INLINE void uniformBlock(const uint32_t words[4][kCounters], int count, float out[4][kCounters]) {
  for (int w = 0; w < 4; w++)
    for (int i = 0; i < count; i += kLanes) store(out[w] + i, unitInterval(words[w] + i));
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
        ctx, y, seed, stream, firstSample, [](auto &w, int n, auto &v) { uniformBlock(w, n, v); }, emit);
  } else {
    eachRandomBlock(
        ctx, y, seed, stream, firstSample, [](auto &w, int n, auto &v) { normalBlock(w, n, v); }, emit);
  }
  return DIFFIT_OK;
}

static diffit_status dropout_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double p, int64_t seed,
                                int64_t stream, int64_t firstSample) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(numel(x) == numel(y));
  REQUIRE(p >= 0 && p <= 1);
  const float *in = f32(x);
  float *out = f32(y);
  const float threshold = (float)(::ceil(p * 0x1p24) * 0x1p-24); /* u >= p exactly, for every 24-bit u */
  const float scale = (float)(1.0 / (1.0 - p));
  const auto emit = [=](int64_t at, const float *values, int64_t count) {
    mapVectors2<1, 1>(in + at, values, out + at, count,
                      [=](vf v, vf u) { return vselect(u >= threshold, v * scale, vf{}); });
  };
  eachRandomBlock(
      ctx, y, seed, stream, firstSample, [](auto &w, int n, auto &v) { uniformBlock(w, n, v); }, emit);
  return DIFFIT_OK;
}

#endif
