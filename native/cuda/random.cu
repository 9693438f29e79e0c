/*
 * Random numbers: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), uniform and
 * normal, and dropout.
 *
 * The number for element e of sample b is a function of (seed, stream, b, e) alone: the same on any device and for any batch. A
 * thread makes the four numbers of one counter. Memory traffic: the output once.
 */
#include "floats.cuh"
#include "philox.cuh"

namespace diffit {
namespace {

/* emit(place of the element in the tensor, its number among four, the counter's words or their normals) for all samples. */
template <class Emit>
diffit_status eachCounter(diffit_context *ctx, const diffit_tensor *y, Emit emit) {
  const int64_t batch = y->ndim > 0 ? y->shape[0] : 1;
  if (numel(y) == 0) return DIFFIT_OK;
  const int64_t size = numel(y) / batch, counters = ceilDiv(size, 4);
  return forEach(ctx, batch * counters, [=] __device__(int64_t i) {
    const int64_t sample = i / counters, counter = i % counters;
    emit(sample, counter, sample * size + 4 * counter, (int)imin(4, size - 4 * counter));
  });
}

bool fourAligned(const Floats &t) { return (uintptr_t)t.data % (t.dtype == DIFFIT_F32 ? 16 : 8) == 0; }

}  // namespace

diffit_status philox_op(diffit_context *ctx, diffit_tensor *y, int64_t kind, int64_t seed, int64_t stream,
                        int64_t firstSample) {
  REQUIRE_F32(y);
  REQUIRE(kind == DIFFIT_UNIFORM || kind == DIFFIT_NORMAL);
  float *out = f32(y);
  const PhiloxKey key = keyOf(seed, stream);
  const bool normal = kind == DIFFIT_NORMAL;
  return eachCounter(ctx, y, [=] __device__(int64_t sample, int64_t counter, int64_t at, int count) {
    const uint4 w = philox(key, (uint32_t)counter, (uint32_t)(firstSample + sample));
    float v[4] = {unitInterval(w.x), unitInterval(w.y), unitInterval(w.z), unitInterval(w.w)};
    if (normal) {
      const float2 a = normalPair(w.x, w.y), b = normalPair(w.z, w.w);
      v[0] = a.x, v[1] = a.y, v[2] = b.x, v[3] = b.y;
    }
#pragma unroll
    for (int k = 0; k < 4; k++)
      if (k < count) out[at + k] = v[k];
  });
}

diffit_status dropout_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double p, int64_t seed,
                         int64_t stream, int64_t firstSample) {
  REQUIRE_FLOAT(x);
  REQUIRE(y->dtype == x->dtype);
  REQUIRE(numel(x) == numel(y));
  REQUIRE(p >= 0 && p <= 1);
  const Floats in = floats(x), out = floats(y);
  /* A counter's four numbers are one access where every sample begins aligned. */
  const int64_t batch = y->ndim > 0 ? y->shape[0] : 1;
  const bool packed = batch > 0 && numel(y) / batch % 4 == 0 && fourAligned(in) && fourAligned(out);
  const PhiloxKey key = keyOf(seed, stream);
  const float threshold = (float)(ceil(p * 0x1p24) * 0x1p-24); /* u >= p exactly, for every 24-bit u */
  const float scale = (float)(1.0 / (1.0 - p));
  return eachCounter(ctx, y, [=] __device__(int64_t sample, int64_t counter, int64_t at, int count) {
    const uint4 w = philox(key, (uint32_t)counter, (uint32_t)(firstSample + sample));
    const float u[4] = {unitInterval(w.x), unitInterval(w.y), unitInterval(w.z), unitInterval(w.w)};
    if (packed) {
      float v[4];
      load(in, at, v);
#pragma unroll
      for (int k = 0; k < 4; k++) v[k] = u[k] >= threshold ? v[k] * scale : 0.0f;
      store(out, at, v);
      return;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (k >= count) continue;
      const float v[1] = {u[k] >= threshold ? loadOne(in, at + k) * scale : 0.0f};
      store(out, at + k, v);
    }
  });
}

}  // namespace diffit
