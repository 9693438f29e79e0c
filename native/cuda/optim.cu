/*
 * The optimiser's operations over all parameters: Adam and AdamW (Kingma and Ba, arXiv 1412.6980; Loshchilov and Hutter,
 * arXiv 1711.05101), the moving average of weights, and the sum of squares for gradient clipping.
 *
 * A launch takes up to kTensors tensors, cut into chunks of fixed size that the blocks share; a thread takes four neighbours. Memory traffic of
 * Adam: reads p, g, m, v and writes p, m, v once: 28 bytes an element; with the moving average 36, with the bf16 or f16 copy 2
 * more. (In passes of their own these would be 46.)
 */
#include "floats.cuh"

namespace diffit {
namespace {

constexpr int kTensors = 48, kPointers = 6;
constexpr int64_t kChunk = 8192;

/* Some tensors of up to six lists, as a kernel's argument (3.1 KiB); `first` numbers their chunks through. The last list may be in
   low precision, and all elements of a tensor can be had by fours where it is `aligned`. */
struct Tensors {
  float *data[kTensors][kPointers];
  bool aligned[kTensors];
  int64_t size[kTensors];
  int64_t first[kTensors + 1];
  int count;
};

/* Whether two lists hold f32 tensors of the same sizes. */
bool sameLists(const diffit_list *a, const diffit_list *b) {
  if (a->count != b->count) return false;
  for (int64_t t = 0; t < a->count; t++) {
    const diffit_tensor *u = &a->items[t], *v = &b->items[t];
    if (u->dtype != DIFFIT_F32 || v->dtype != DIFFIT_F32 || numel(u) != numel(v)) return false;
  }
  return true;
}

/* Whether a list holds tensors of one dtype, bf16 or f16, and of the sizes of another's. */
bool sameLowLists(const diffit_list *a, const diffit_list *b) {
  if (a->count != b->count) return false;
  for (int64_t t = 0; t < a->count; t++) {
    const diffit_tensor *u = &a->items[t];
    if (u->dtype != a->items[0].dtype || numel(u) != numel(&b->items[t])) return false;
    if (u->dtype != DIFFIT_BF16 && u->dtype != DIFFIT_F16) return false;
  }
  return true;
}

/* Calls step(tensors, chunks before these, tensors before these) for groups of at most kTensors; the lists are as long as the first, or empty. */
template <class Step>
diffit_status eachGroup(const diffit_list *const *lists, int pointers, const Step &step) {
  int64_t before = 0;
  for (int64_t at = 0; at < lists[0]->count; at += kTensors) {
    Tensors group;
    group.count = (int)imin(kTensors, lists[0]->count - at);
    group.first[0] = 0;
    for (int t = 0; t < group.count; t++) {
      group.aligned[t] = true;
      for (int k = 0; k < pointers; k++) {
        const diffit_tensor *item = lists[k]->count ? &lists[k]->items[at + t] : nullptr;
        group.data[t][k] = f32(item);
        if (item && (uintptr_t)item->data % (item->dtype == DIFFIT_F32 ? 16 : 8) != 0) group.aligned[t] = false;
      }
      group.size[t] = numel(&lists[0]->items[at + t]);
      group.first[t + 1] = group.first[t] + ceilDiv(group.size[t], kChunk);
    }
    TRY(step(group, before, at));
    before += group.first[group.count];
  }
  return DIFFIT_OK;
}

/* The tensor of a chunk. */
__device__ inline int tensorOf(const Tensors &group, int64_t chunk) {
  int low = 0, high = group.count; /* first[low] <= chunk < first[high] */
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (group.first[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

template <class Body>
__global__ void __launch_bounds__(kThreads) listKernel(Tensors group, Body body) {
  const int t = tensorOf(group, blockIdx.x);
  const int64_t begin = ((int64_t)blockIdx.x - group.first[t]) * kChunk, end = imin(group.size[t], begin + kChunk);
  const int64_t packed = group.aligned[t] ? begin + (end - begin) / 4 * 4 : begin;
  for (int64_t i = begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads) body(group.data[t], i, Width<4>{});
  for (int64_t i = packed + threadIdx.x; i < end; i += kThreads) body(group.data[t], i, Width<1>{});
}

/* body(pointers of a tensor, first element, Width<4 or 1>) for all elements of all tensors. */
template <class Body>
diffit_status forEachOfLists(diffit_context *ctx, const diffit_list *const *lists, int pointers, Body body) {
  return eachGroup(lists, pointers, [&](const Tensors &group, int64_t, int64_t) -> diffit_status {
    if (group.first[group.count] == 0) return DIFFIT_OK;
    return launch(ctx, listKernel<Body>, dim3((unsigned)group.first[group.count]), dim3(kThreads), 0, group, body);
  });
}

/* Elements i to i + kWidth - 1 of an f32 tensor. */
template <int kWidth>
__device__ __forceinline__ void get(const float *p, int64_t i, float (&v)[kWidth]) {
  load(Floats{(void *)p, DIFFIT_F32}, i, v);
}
template <int kWidth>
__device__ __forceinline__ void put(float *p, int64_t i, const float (&v)[kWidth]) {
  store(Floats{p, DIFFIT_F32}, i, v);
}

struct AdamStep {
  const float *gradScale;
  float b1, c1, b2, c2, stepSize, correction, eps, shrink, decay, emaDecay;
  bool masked;
  diffit_dtype copyType;

  /* t: p, grad, m, v, average or null, copy or null */
  template <int kWidth>
  __device__ void operator()(float *const *t, int64_t i, Width<kWidth>) const {
    const float scale = gradScale ? *gradScale : 1.0f;
    if (scale != scale) return;
    float w[kWidth], g[kWidth], m[kWidth], v[kWidth], average[kWidth];
    get(t[0], i, w);
    get(t[1], i, g);
    get(t[2], i, m);
    get(t[3], i, v);
    if (t[4]) get(t[4], i, average);
#pragma unroll
    for (int e = 0; e < kWidth; e++) {
      if (masked && !(fabsf(g[e]) < INFINITY)) g[e] = 0;
      g[e] *= scale;
      if (decay != 0.0f) g[e] += w[e] * decay;
      m[e] = m[e] * b1 + g[e] * c1;
      v[e] = v[e] * b2 + g[e] * g[e] * c2;
      w[e] = w[e] * shrink - stepSize * (m[e] / (sqrtf(v[e]) * correction + eps));
      if (t[4]) average[e] = w[e] + (average[e] - w[e]) * emaDecay;
    }
    put(t[2], i, m);
    put(t[3], i, v);
    put(t[0], i, w);
    if (t[4]) put(t[4], i, average);
    if (t[5]) store(Floats{t[5], copyType}, i, w);
  }
};

struct AverageStep {
  float decay;
  template <int kWidth>
  __device__ void operator()(float *const *t, int64_t i, Width<kWidth>) const {
    float average[kWidth], w[kWidth];
    get(t[0], i, average);
    get(t[1], i, w);
#pragma unroll
    for (int e = 0; e < kWidth; e++) average[e] = w[e] + (average[e] - w[e]) * decay;
    put(t[0], i, average);
  }
};

struct SumShared {
  double sums[kThreads / 32];
};

__global__ void __launch_bounds__(kThreads) squareSumKernel(Tensors group, double *partials) {
  const int t = tensorOf(group, blockIdx.x);
  const int64_t begin = ((int64_t)blockIdx.x - group.first[t]) * kChunk, end = imin(group.size[t], begin + kChunk);
  const int64_t packed = group.aligned[t] ? begin + (end - begin) / 4 * 4 : begin;
  const float *x = group.data[t][0];
  double sum = 0;
  for (int64_t i = begin + 4 * threadIdx.x; i < packed; i += 4 * kThreads) {
    float v[4];
    get(x, i, v);
    sum += ((double)v[0] * v[0] + (double)v[1] * v[1]) + ((double)v[2] * v[2] + (double)v[3] * v[3]);
  }
  for (int64_t i = packed + threadIdx.x; i < end; i += kThreads) sum += (double)x[i] * x[i];
  sum = blockSum<kThreads>(sum, sharedMemory<SumShared>().sums);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) totalKernel(const double *partials, int64_t n, float *y) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += partials[i];
  sum = blockSum<kThreads>(sum, sharedMemory<SumShared>().sums);
  if (threadIdx.x == 0) *y = (float)sum;
}

/* A block per tensor of the group: the sum of its partials. */
__global__ void __launch_bounds__(kThreads) eachTotalKernel(Tensors group, const double *partials, float *y) {
  const int t = blockIdx.x;
  double sum = 0;
  for (int64_t i = group.first[t] + threadIdx.x; i < group.first[t + 1]; i += kThreads) sum += partials[i];
  sum = blockSum<kThreads>(sum, sharedMemory<SumShared>().sums);
  if (threadIdx.x == 0) y[t] = (float)sum;
}

}  // namespace

diffit_status adam_op(diffit_context *ctx, const diffit_list *params, const diffit_list *grads, const diffit_list *m,
                      const diffit_list *v, const diffit_list *averages, const diffit_list *copies,
                      const diffit_tensor *scale, int64_t step, double lr, double beta1, double beta2, double eps,
                      double weightDecay, int64_t decoupled, int64_t finiteOnly, double emaDecay) {
  REQUIRE(sameLists(params, grads));
  REQUIRE(sameLists(params, m));
  REQUIRE(sameLists(params, v));
  REQUIRE(averages->count == 0 || sameLists(averages, params));
  REQUIRE(copies->count == 0 || sameLowLists(copies, params));
  REQUIRE(!scale || (scale->dtype == DIFFIT_F32 && numel(scale) == 1));
  REQUIRE(step >= 1);
  REQUIRE(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1);
  AdamStep body;
  body.gradScale = f32(scale);
  body.b1 = (float)beta1, body.c1 = (float)(1 - beta1), body.b2 = (float)beta2, body.c2 = (float)(1 - beta2);
  body.stepSize = (float)(lr / (1 - pow(beta1, (double)step)));
  body.correction = (float)(1 / sqrt(1 - pow(beta2, (double)step)));
  body.eps = (float)eps;
  body.shrink = decoupled ? (float)(1 - lr * weightDecay) : 1.0f;
  body.decay = decoupled ? 0.0f : (float)weightDecay;
  body.emaDecay = (float)emaDecay;
  body.masked = finiteOnly != 0;
  body.copyType = copies->count ? copies->items[0].dtype : DIFFIT_F32;
  const diffit_list *lists[] = {params, grads, m, v, averages, copies};
  return forEachOfLists(ctx, lists, kPointers, body);
}

diffit_status ema_op(diffit_context *ctx, const diffit_list *averages, const diffit_list *params, double decay) {
  REQUIRE(sameLists(averages, params));
  const diffit_list *lists[] = {averages, params};
  return forEachOfLists(ctx, lists, 2, AverageStep{(float)decay});
}

diffit_status square_sum_op(diffit_context *ctx, const diffit_list *xs, diffit_tensor *y) {
  REQUIRE(sameLists(xs, xs));
  REQUIRE_F32(y);
  REQUIRE(numel(y) == 1 || numel(y) == 1 + xs->count);
  int64_t chunks = 0;
  for (int64_t t = 0; t < xs->count; t++) chunks += ceilDiv(numel(&xs->items[t]), kChunk);
  double *partials = (double *)scratch(ctx, 0, (size_t)imax(chunks, 1) * sizeof(double));
  if (!partials) return DIFFIT_OUT_OF_MEMORY;
  TRY(eachGroup(&xs, 1, [&](const Tensors &group, int64_t before, int64_t at) -> diffit_status {
    const unsigned blocks = (unsigned)group.first[group.count];
    if (blocks > 0)
      TRY(launch(ctx, squareSumKernel, dim3(blocks), dim3(kThreads), sizeof(SumShared), group, partials + before));
    if (numel(y) == 1) return DIFFIT_OK;
    return launch(ctx, eachTotalKernel, dim3((unsigned)group.count), dim3(kThreads), sizeof(SumShared), group,
                  (const double *)(partials + before), f32(y) + 1 + at);
  }));
  return launch(ctx, totalKernel, dim3(1), dim3(kThreads), sizeof(SumShared), (const double *)partials, chunks, f32(y));
}

}  // namespace diffit
