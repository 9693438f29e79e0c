/*
 * One step of a sampler in one pass: guidance, the predicted clean image, the next state with its noise, and the next
 * input of the network. DDPM, DDIM, DPM-Solver++ and both halves of EDM's Heun step are this with other coefficients.
 *
 * Works on runs of a block of random numbers (kWords) within a channel. Memory traffic: every tensor once.
 */
#ifndef DIFFIT_CPU_SAMPLER_H
#define DIFFIT_CPU_SAMPLER_H

struct SamplerStep {
  const float *x, *a, *b, *noise;
  Floats output;
  float *y, *denoised, *scaled;
  int64_t size, plane, outSize; /* of a sample, of a channel, of a sample of the output */
  int64_t guided, unguided; /* `unguided`: where the output's second half begins */
  float scale, denoisedX, denoisedF, yX, yD, yA, yB, sigma, spread, scaledBy;
  bool clip;
};

/* Elements at to at + n - 1 of a sample, all of one channel, for n <= kLanes (n = kLanes when `full`); z: their normals, where there is
   noise. */
template <bool full>
DIFFIT_INLINE void samplerVector(const SamplerStep &s, int64_t sample, int64_t at, const float *z, int64_t n) {
  const int64_t i = sample * s.size + at, from = sample * s.outSize + at;
  const auto get = [=](auto p) { return full ? load(p) : loadPartial(p, n); };
  const auto put = [=](float *p, vf v) { full ? store(p, v) : storePartial(p, v, n); };
  const vf x = get(s.x + i);
  vf f = get(s.output + from);
  if (at < s.guided * s.plane) {
    const vf u = get(s.output + s.unguided + from);
    f = u + s.scale * (f - u);
  }
  vf d = s.denoisedX * x + s.denoisedF * f;
  if (s.clip) d = vclamp(d, -1.0f, 1.0f);
  vf y = s.yX * x + s.yD * d;
  if (s.denoised) put(s.denoised + i, d);
  if (s.a) y += s.yA * get(s.a + i);
  if (s.b) y += s.yB * get(s.b + i);
  if (s.sigma != 0) {
    vf sigma = set1(s.sigma);
    if (s.spread != 0) sigma *= vexp(s.spread * get(s.output + from + s.size));
    y += sigma * get(s.noise ? s.noise + i : z);
  }
  put(s.y + i, y);
  if (s.scaled) put(s.scaled + i, s.scaledBy * y);
}

static diffit_status sampler_step_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *output,
                                     const diffit_tensor *a, const diffit_tensor *b, const diffit_tensor *noise,
                                     diffit_tensor *y, diffit_tensor *denoised, diffit_tensor *scaled, int64_t guided,
                                     double scale, double denoisedX, double denoisedF, int64_t clip, double yX,
                                     double yD, double yA, double yB, double sigma, double spread, double scaledBy,
                                     int64_t seed, int64_t stream, int64_t firstSample) {
  const int64_t n = numel(x);
  const diffit_tensor *const same[] = {a, b, noise, y, denoised, scaled};
  REQUIRE_F32(x);
  REQUIRE_FLOAT(output);
  REQUIRE(x->ndim >= 2 && output->ndim == x->ndim);
  for (const diffit_tensor *t : same) REQUIRE(!t || (t->dtype == DIFFIT_F32 && numel(t) == n));
  if (n == 0) return DIFFIT_OK;
  const int64_t batch = x->shape[0], channels = x->shape[1], size = n / batch, plane = size / channels;
  const int64_t outSize = plane * output->shape[1];
  REQUIRE(output->shape[0] == (guided > 0 ? 2 : 1) * batch && numel(output) == output->shape[0] * outSize);
  REQUIRE(output->shape[1] >= (spread != 0 ? 2 : 1) * channels);
  REQUIRE(guided >= 0 && guided <= channels);
  const auto data = [](const diffit_tensor *t) { return t ? f32(t) : nullptr; };
  const SamplerStep s = {
      f32(x),    data(a),   data(b),   data(noise), floatsOf(output), f32(y),        data(denoised),   data(scaled),
      size,      plane,     outSize,   guided,      batch * outSize,  (float)scale,  (float)denoisedX, (float)denoisedF,
      (float)yX, (float)yD, (float)yA, (float)yB,   (float)sigma,     (float)spread, (float)scaledBy,  clip != 0};
  const auto run = [=](int64_t at, const float *z, int64_t count) {
    const int64_t sample = at / size, first = at % size, last = first + count;
    for (int64_t e = first; e < last;) {
      const int64_t n = imin(kLanes, imin(last, (e / plane + 1) * plane) - e);
      if (n == kLanes)
        samplerVector<true>(s, sample, e, z + (e - first), n);
      else
        samplerVector<false>(s, sample, e, z + (e - first), n);
      e += n;
    }
  };
  if (sigma != 0 && !noise) {
    eachRandomBlock(
        ctx, x, seed, stream, firstSample, [](const auto &w, float *to) { normals(w, to); }, run);
    return DIFFIT_OK;
  }
  const int64_t pieces = ceilDiv(size, kElementGrain);
  static const float none[1] = {0};
  parallelChunks(ctx, batch * pieces, 1, [=](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t first = task % pieces * kElementGrain;
      run(task / pieces * size + first, none, imin(kElementGrain, size - first));
    }
  });
  return DIFFIT_OK;
}

#endif
