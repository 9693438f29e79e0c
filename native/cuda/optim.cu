/*
 * The optimiser's operations over all parameters: Adam and AdamW (Kingma and Ba, arXiv 1412.6980; Loshchilov and Hutter,
 * arXiv 1711.05101), the moving average of weights, and the sum of squares for gradient clipping.
 *
 * A launch takes up to kTensors tensors, cut into chunks of fixed size that the blocks share. Memory traffic of Adam: reads p, g, m, v and
 * writes p, m, v once: 28 bytes an element.
 */
#include "context.cuh"

namespace diffit {
namespace {

constexpr int kTensors = 48, kPointers = 4;
constexpr int64_t kChunk = 8192;

/* Some tensors of up to four lists, as a kernel's argument (2.3 KiB); `first` numbers their chunks through. */
struct Tensors {
  float *data[kTensors][kPointers];
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

/* Calls step(tensors, chunks before these) for groups of at most kTensors; the lists are as long as the first. */
template <class Step>
diffit_status eachGroup(const diffit_list *const *lists, int pointers, const Step &step) {
  int64_t before = 0;
  for (int64_t at = 0; at < lists[0]->count; at += kTensors) {
    Tensors group;
    group.count = (int)imin(kTensors, lists[0]->count - at);
    group.first[0] = 0;
    for (int t = 0; t < group.count; t++) {
      for (int k = 0; k < pointers; k++) group.data[t][k] = f32(&lists[k]->items[at + t]);
      group.size[t] = numel(&lists[0]->items[at + t]);
      group.first[t + 1] = group.first[t] + ceilDiv(group.size[t], kChunk);
    }
    if (group.first[group.count] > 0) TRY(step(group, before));
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
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) body(group.data[t], i);
}

/* body(pointers of a tensor, element) for all elements of all tensors. */
template <class Body>
diffit_status forEachOfLists(diffit_context *ctx, const diffit_list *const *lists, int pointers, Body body) {
  return eachGroup(lists, pointers, [&](const Tensors &group, int64_t) {
    return launch(ctx, listKernel<Body>, dim3((unsigned)group.first[group.count]), dim3(kThreads), 0, group, body);
  });
}

struct SumShared {
  double sums[kThreads / 32];
};

__global__ void __launch_bounds__(kThreads) squareSumKernel(Tensors group, double *partials) {
  const int t = tensorOf(group, blockIdx.x);
  const int64_t begin = ((int64_t)blockIdx.x - group.first[t]) * kChunk, end = imin(group.size[t], begin + kChunk);
  double sum = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads)
    sum += (double)group.data[t][0][i] * group.data[t][0][i];
  sum = blockSum<kThreads>(sum, sharedMemory<SumShared>().sums);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads) totalKernel(const double *partials, int64_t n, float *y) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += partials[i];
  sum = blockSum<kThreads>(sum, sharedMemory<SumShared>().sums);
  if (threadIdx.x == 0) *y = (float)sum;
}

}  // namespace

diffit_status adam_op(diffit_context *ctx, const diffit_list *params, const diffit_list *grads, const diffit_list *m,
                      const diffit_list *v, const diffit_tensor *scale, int64_t step, double lr, double beta1,
                      double beta2, double eps, double weightDecay, int64_t decoupled, int64_t finiteOnly) {
  REQUIRE(sameLists(params, grads));
  REQUIRE(sameLists(params, m));
  REQUIRE(sameLists(params, v));
  REQUIRE(!scale || (scale->dtype == DIFFIT_F32 && numel(scale) == 1));
  REQUIRE(step >= 1);
  REQUIRE(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1);
  const float *gradScale = f32(scale);
  const float b1 = (float)beta1, c1 = (float)(1 - beta1), b2 = (float)beta2, c2 = (float)(1 - beta2);
  const float stepSize = (float)(lr / (1 - pow(beta1, (double)step)));
  const float correction = (float)(1 / sqrt(1 - pow(beta2, (double)step))), e = (float)eps;
  const float shrink = decoupled ? (float)(1 - lr * weightDecay) : 1.0f, decay = decoupled ? 0.0f : (float)weightDecay;
  const bool masked = finiteOnly != 0;
  const diffit_list *lists[] = {params, grads, m, v};
  return forEachOfLists(ctx, lists, 4, [=] __device__(float *const *t, int64_t i) {
    const float w = t[0][i];
    float g = t[1][i];
    if (masked && !(fabsf(g) < INFINITY)) g = 0;
    if (gradScale) g *= *gradScale;
    if (decay != 0.0f) g += w * decay;
    const float mean = t[2][i] * b1 + g * c1, square = t[3][i] * b2 + g * g * c2;
    t[2][i] = mean;
    t[3][i] = square;
    t[0][i] = w * shrink - stepSize * (mean / (sqrtf(square) * correction + e));
  });
}

diffit_status ema_op(diffit_context *ctx, const diffit_list *averages, const diffit_list *params, double decay) {
  REQUIRE(sameLists(averages, params));
  const float d = (float)decay;
  const diffit_list *lists[] = {averages, params};
  return forEachOfLists(ctx, lists, 2, [=] __device__(float *const *t, int64_t i) {
    const float w = t[1][i];
    t[0][i] = w + (t[0][i] - w) * d;
  });
}

diffit_status square_sum_op(diffit_context *ctx, const diffit_list *xs, diffit_tensor *y) {
  REQUIRE(sameLists(xs, xs));
  REQUIRE_F32(y);
  REQUIRE(numel(y) == 1);
  int64_t chunks = 0;
  for (int64_t t = 0; t < xs->count; t++) chunks += ceilDiv(numel(&xs->items[t]), kChunk);
  double *partials = (double *)scratch(ctx, 0, (size_t)imax(chunks, 1) * sizeof(double));
  if (!partials) return DIFFIT_OUT_OF_MEMORY;
  TRY(eachGroup(&xs, 1, [&](const Tensors &group, int64_t before) {
    return launch(ctx, squareSumKernel, dim3((unsigned)group.first[group.count]), dim3(kThreads), sizeof(SumShared),
                  group, partials + before);
  }));
  return launch(ctx, totalKernel, dim3(1), dim3(kThreads), sizeof(SumShared), (const double *)partials, chunks, f32(y));
}

}  // namespace diffit
