/*
 * The arithmetic peak of this variant: independent multiply-adds on registers, nothing from memory. What no kernel can exceed;
 * the benchmarks measure it beside the kernels, on the same threads in the same run.
 */
#ifndef DIFFIT_CPU_PEAK_H
#define DIFFIT_CPU_PEAK_H

/* Chains that do not wait for each other: two units times a latency of four or five, and registers for them. */
static constexpr int kPeakChains = kLanes >= 16 ? 20 : 10;
static constexpr int64_t kPeakSteps = 40000;

static void peakFma() {
  vf sums[kPeakChains];
#pragma GCC unroll 20
  for (int c = 0; c < kPeakChains; c++) sums[c] = set1((float)c);
  vf factor = set1(0.5f), term = set1(1.0f);
  __asm__ volatile("" : "+m"(factor), "+m"(term)); /* not known to the compiler */
  const vf f = factor, t = term;
  for (int64_t i = 0; i < kPeakSteps; i++) {
#pragma GCC unroll 20
    for (int c = 0; c < kPeakChains; c++) sums[c] = sums[c] * f + t;
  }
#pragma GCC unroll 20
  for (int c = 1; c < kPeakChains; c++) sums[0] += sums[c];
  __asm__ volatile("" : : "m"(sums[0])); /* so that it is computed */
}

#if defined(__AVX512F__)
/* The same of the bf16 dot product, which adds two products a lane. */
__attribute__((target("avx512bf16"))) static void peakDot() {
  __m512 sums[kPeakChains];
#pragma GCC unroll 20
  for (int c = 0; c < kPeakChains; c++) sums[c] = _mm512_set1_ps((float)c);
  __m512i a = _mm512_set1_epi16(0x3f00), b = _mm512_set1_epi16(0x3e80);
  __asm__ volatile("" : "+m"(a), "+m"(b));
  const __m512bh x = (__m512bh)a, y = (__m512bh)b;
  for (int64_t i = 0; i < kPeakSteps; i++) {
#pragma GCC unroll 20
    for (int c = 0; c < kPeakChains; c++) sums[c] = _mm512_dpbf16_ps(sums[c], x, y);
  }
#pragma GCC unroll 20
  for (int c = 1; c < kPeakChains; c++) sums[0] = _mm512_add_ps(sums[0], sums[c]);
  __asm__ volatile("" : : "m"(sums[0]));
}
static bool hasDot() { return __builtin_cpu_supports("avx512bf16"); }
#else
static void peakDot() {}
static bool hasDot() { return false; }
#endif

/* Runs the loop `tasks` times on all threads, or on the caller alone, and returns the operations done (a multiply-add is two); 0
   where there is no such instruction. */
static int64_t runPeak(diffit_context *ctx, int64_t tasks, bool dot, bool alone) {
  if (dot && !hasDot()) return 0;
  void (*const work)() = dot ? peakDot : peakFma;
  if (alone)
    for (int64_t i = 0; i < tasks; i++) work();
  else
    parallelChunks(ctx, tasks, 1, [&](int64_t, int64_t, int) { work(); });
  return tasks * kPeakSteps * kPeakChains * kLanes * (dot ? 4 : 2);
}

#endif
