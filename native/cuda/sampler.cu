/*
 * One step of a sampler in one pass: guidance, the predicted clean image, the next state with its noise, and the next
 * input of the network. DDPM, DDIM, DPM-Solver++ and both halves of EDM's Heun step are this with other coefficients.
 *
 * A thread makes four neighbours of one sample, which share a Philox counter. Memory traffic: every tensor once.
 */
#include "floats.cuh"
#include "philox.cuh"

namespace diffit {
namespace {

struct Step {
  Floats x, output, a, b, noise, y, denoised, scaled;
  int64_t size, plane, outSize; /* of a sample, of a channel, of a sample of the output */
  int64_t channels, guided, unguided; /* `unguided`: where the output's second half begins */
  float scale, denoisedX, denoisedF, yX, yD, yA, yB, sigma, spread, scaledBy;
  bool clip, draws;
  PhiloxKey key;
  uint32_t firstSample;
};

/* Elements at to at + kWidth - 1 of a sample; all of one channel. z: their normals. */
template <int kWidth>
__device__ __forceinline__ void advance(const Step &s, int64_t sample, int64_t at, const float (&z)[kWidth]) {
  const int64_t i = sample * s.size + at, from = sample * s.outSize + at;
  float x[kWidth], f[kWidth], d[kWidth], y[kWidth];
  load(s.x, i, x);
  load(s.output, from, f);
  if (at < s.guided * s.plane) {
    float u[kWidth];
    load(s.output, s.unguided + from, u);
#pragma unroll
    for (int k = 0; k < kWidth; k++) f[k] = u[k] + s.scale * (f[k] - u[k]);
  }
#pragma unroll
  for (int k = 0; k < kWidth; k++) {
    d[k] = s.denoisedX * x[k] + s.denoisedF * f[k];
    if (s.clip) d[k] = d[k] < -1.0f ? -1.0f : d[k] > 1.0f ? 1.0f : d[k]; /* NaN stays */
    y[k] = s.yX * x[k] + s.yD * d[k];
  }
  if (s.denoised.data) store(s.denoised, i, d);
  const auto add = [&](const Floats &t, float by) {
    float v[kWidth];
    load(t, i, v);
#pragma unroll
    for (int k = 0; k < kWidth; k++) y[k] += by * v[k];
  };
  if (s.a.data) add(s.a, s.yA);
  if (s.b.data) add(s.b, s.yB);
  if (s.sigma != 0) {
    float noise[kWidth], sigma[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; k++) noise[k] = z[k], sigma[k] = s.sigma;
    if (s.noise.data) load(s.noise, i, noise);
    if (s.spread != 0) {
      float v[kWidth];
      load(s.output, from + s.size, v);
#pragma unroll
      for (int k = 0; k < kWidth; k++) sigma[k] = s.sigma * expf(s.spread * v[k]);
    }
#pragma unroll
    for (int k = 0; k < kWidth; k++) y[k] += sigma[k] * noise[k];
  }
  store(s.y, i, y);
  if (!s.scaled.data) return;
#pragma unroll
  for (int k = 0; k < kWidth; k++) y[k] *= s.scaledBy;
  store(s.scaled, i, y);
}

}  // namespace

diffit_status sampler_step_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *output,
                              const diffit_tensor *a, const diffit_tensor *b, const diffit_tensor *noise,
                              diffit_tensor *y, diffit_tensor *denoised, diffit_tensor *scaled, int64_t guided,
                              double scale, double denoisedX, double denoisedF, int64_t clip, double yX, double yD,
                              double yA, double yB, double sigma, double spread, double scaledBy, int64_t seed,
                              int64_t stream, int64_t firstSample) {
  const int64_t n = numel(x);
  REQUIRE_F32(x);
  REQUIRE_FLOAT(output);
  REQUIRE(x->ndim >= 2 && output->ndim == x->ndim);
  for (const diffit_tensor *t :
       {a, b, noise, (const diffit_tensor *)y, (const diffit_tensor *)denoised, (const diffit_tensor *)scaled})
    REQUIRE(!t || isVector(t, n));
  if (n == 0) return DIFFIT_OK;
  const int64_t batch = x->shape[0], channels = x->shape[1];
  REQUIRE(output->shape[0] == (guided > 0 ? 2 : 1) * batch);
  REQUIRE(output->shape[1] >= (spread != 0 ? 2 : 1) * channels);
  REQUIRE(guided >= 0 && guided <= channels);
  Step s;
  s.x = floats(x), s.output = floats(output), s.a = floats(a), s.b = floats(b), s.noise = floats(noise);
  s.y = floats(y), s.denoised = floats(denoised), s.scaled = floats(scaled);
  s.size = n / batch, s.plane = s.size / channels, s.channels = channels, s.guided = guided;
  s.outSize = s.plane * output->shape[1], s.unguided = batch * s.outSize;
  REQUIRE(numel(output) == output->shape[0] * s.outSize);
  s.scale = (float)scale, s.denoisedX = (float)denoisedX, s.denoisedF = (float)denoisedF, s.clip = clip != 0;
  s.yX = (float)yX, s.yD = (float)yD, s.yA = (float)yA, s.yB = (float)yB;
  s.sigma = (float)sigma, s.spread = (float)spread, s.scaledBy = (float)scaledBy;
  s.draws = sigma != 0 && !noise;
  s.key = keyOf(seed, stream), s.firstSample = (uint32_t)firstSample;
  const bool wide = widthOf({s.x, s.output, s.a, s.b, s.noise, s.y, s.denoised, s.scaled}, s.plane) >= 4;
  const int64_t counters = ceilDiv(s.size, 4);
  return forEach(ctx, batch * counters, [=] __device__(int64_t i) {
    const int64_t sample = i / counters, counter = i % counters;
    float z[4] = {0, 0, 0, 0};
    if (s.draws) {
      const uint4 w = philox(s.key, (uint32_t)counter, s.firstSample + (uint32_t)sample);
      const float2 p = normalPair(w.x, w.y), q = normalPair(w.z, w.w);
      z[0] = p.x, z[1] = p.y, z[2] = q.x, z[3] = q.y;
    }
    if (wide) return advance<4>(s, sample, 4 * counter, z);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      const float one[1] = {z[k]};
      if (4 * counter + k < s.size) advance<1>(s, sample, 4 * counter + k, one);
    }
  });
}

}  // namespace diffit
