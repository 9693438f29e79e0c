/*
 * The emulator itself: kernels with and without the barrier, the wait or the partner that they need. Prints one JSON
 * object: what each run returned.
 */
#include <stdio.h>

#include <vector>

#include "../../native/cuda/arch.cuh"

using namespace diffit;

constexpr int kSize = 64;

/* y = x reversed, through shared memory. */
template <bool kBarrier>
static void reverse(const float *x, float *y) {
  struct Shared {
    float values[kSize];
  };
  Shared &s = sharedMemory<Shared>();
  const int i = (int)threadIdx.x;
  s.values[i] = x[blockIdx.x * kSize + i];
  if (kBarrier) __syncthreads();
  y[blockIdx.x * kSize + i] = s.values[kSize - 1 - i];
}

/* y = x through asynchronous copies of 16 bytes; the first vector is replaced by zeros. */
template <bool kWait>
static void copyThrough(const float *x, float *y) {
  struct Shared {
    alignas(16) float values[4 * kSize];
  };
  Shared &s = sharedMemory<Shared>();
  const int i = 4 * (int)threadIdx.x;
  copyAsync16(&s.values[i], x + i, i > 0);
  commitCopies();
  if (kWait) waitCopies<0>();
  __syncthreads();
  for (int e = 0; e < 4; e++) y[i + e] = s.values[i + e];
}

static void halfABarrier() {
  if (threadIdx.x < 32) __syncthreads();
}
static void twoOperations(float *y) {
  if (threadIdx.x < 16)
    y[0] = shuffleXor(1.0f, 1);
  else
    syncWarp();
}

/* c (16 x 8) = a (16 x K) b (K x 8), fragments filled as the PTX ISA's figures show them; b is stored transposed, [8, K]. */
template <class T, int kK>
static void product(const T *a, const T *b, float *c) {
  const int lane = laneIndex(), g = lane / 4, q = lane % 4;
  float d[4] = {};
  auto pair = [](const T *at) {
    uint32_t bits;
    memcpy(&bits, at, 4);
    return bits;
  };
  if constexpr (kK == 16) {
    const uint32_t fa[4] = {pair(a + g * 16 + 2 * q), pair(a + (g + 8) * 16 + 2 * q), pair(a + g * 16 + 2 * q + 8),
                            pair(a + (g + 8) * 16 + 2 * q + 8)};
    const uint32_t fb[2] = {pair(b + g * 16 + 2 * q), pair(b + g * 16 + 2 * q + 8)};
    mma16816<T>(d, fa, fb);
  } else if constexpr (sizeof(T) == 2) {
    const uint32_t fa[2] = {pair(a + g * 8 + 2 * q), pair(a + (g + 8) * 8 + 2 * q)};
    const uint32_t fb[1] = {pair(b + g * 8 + 2 * q)};
    mma1688<T>(d, fa, fb);
  } else {
    const uint32_t fa[4] = {toTf32(a[g * 8 + q]), toTf32(a[(g + 8) * 8 + q]), toTf32(a[g * 8 + q + 4]),
                            toTf32(a[(g + 8) * 8 + q + 4])};
    const uint32_t fb[2] = {toTf32(b[g * 8 + q]), toTf32(b[g * 8 + q + 4])};
    mma1688Tf32(d, fa, fb);
  }
  c[g * 8 + 2 * q] = d[0];
  c[g * 8 + 2 * q + 1] = d[1];
  c[(g + 8) * 8 + 2 * q] = d[2];
  c[(g + 8) * 8 + 2 * q + 1] = d[3];
}

/* y (8 x 8) = the transpose of x, by ldmatrix. */
static void transpose(const bf16 *x, bf16 *y) {
  struct Shared {
    alignas(16) bf16 rows[8][8];
  };
  Shared &s = sharedMemory<Shared>();
  const int lane = laneIndex();
  for (int i = lane; i < 64; i += 32) s.rows[i / 8][i % 8] = x[i];
  __syncthreads();
  uint32_t r[1];
  loadMatrices<1, true>(r, s.rows[lane % 8]);
  memcpy(y + lane / 4 * 8 + 2 * (lane % 4), r, 4);
}

template <class Kernel>
static void report(const char *name, unsigned grid, unsigned block, const Kernel &kernel, const std::vector<float> &y,
                   const std::vector<float> &expected) {
  std::string why;
  const bool ran = emulator::runGrid({grid, 1, 1}, {block, 1, 1}, 4096, kernel, &why);
  size_t wrong = 0;
  for (size_t i = 0; i < expected.size(); i++) wrong += !(y[i] == expected[i]);
  printf("%s  \"%s\": {\"ran\": %s, \"wrong\": %zu, \"why\": \"%s\"}", name[0] == '!' ? "" : ",\n",
         name + (name[0] == '!'), ran ? "true" : "false", wrong, why.c_str());
}

template <class T, int kK>
static void reportProduct(const char *name) {
  std::vector<T> a(16 * kK), b(8 * kK);
  std::vector<float> c(128), expected(128);
  unsigned state = 1;
  auto next = [&] {
    return (float)((state = state * 1664525u + 1013904223u) >> 28) - 7;
  }; /* small whole numbers: exact */
  for (T &v : a) v = fromFloat<T>(next());
  for (T &v : b) v = fromFloat<T>(next());
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++)
      for (int k = 0; k < kK; k++) expected[i * 8 + j] += toFloat(a[i * kK + k]) * toFloat(b[j * kK + k]);
  report(
      name, 1, 32, [&] { product<T, kK>(a.data(), b.data(), c.data()); }, c, expected);
}

int main() {
  std::vector<float> x(2 * kSize), y(2 * kSize), reversed(2 * kSize);
  for (int i = 0; i < 2 * kSize; i++)
    x[i] = (float)(i + 1), reversed[i] = (float)(i / kSize * kSize + kSize - i % kSize);
  printf("{\n");
  report(
      "!barrier", 2, kSize, [&] { reverse<true>(x.data(), y.data()); }, y, reversed);
  report(
      "no barrier", 2, kSize, [&] { reverse<false>(x.data(), y.data()); }, y, reversed);
  std::vector<float> z(2 * kSize), copied = x;
  for (int i = 0; i < 4; i++) copied[i] = 0;
  report(
      "wait", 1, kSize / 2, [&] { copyThrough<true>(x.data(), z.data()); }, z, copied);
  report(
      "no wait", 1, kSize / 2, [&] { copyThrough<false>(x.data(), z.data()); }, z, copied);
  report("half a barrier", 1, 64, [] { halfABarrier(); }, y, {});
  report("two operations", 1, 32, [&] { twoOperations(y.data()); }, y, {});
  report("too many threads", 1, 1025, [] {}, y, {});
  reportProduct<bf16, 16>("bf16 k16");
  reportProduct<f16, 16>("f16 k16");
  reportProduct<bf16, 8>("bf16 k8");
  reportProduct<float, 8>("tf32 k8");
  std::vector<bf16> square(64), turned(64);
  std::vector<float> expected(64), got(64);
  for (int i = 0; i < 64; i++) square[i] = fromFloat<bf16>((float)i), expected[i] = (float)(i % 8 * 8 + i / 8);
  report("transpose", 1, 32,
         [&] {
           transpose(square.data(), turned.data());
           if (threadIdx.x == 31)
             for (int i = 0; i < 64; i++) got[i] = toFloat(turned[i]);
         },
         got, {});
  for (int i = 0; i < 64; i++) got[i] = toFloat(turned[i]);
  report(
      "transposed", 1, 1, [] {}, got, expected);
  printf("\n}\n");
}
