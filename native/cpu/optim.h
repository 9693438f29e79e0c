/*
 * The optimiser's operations over all parameters in one call: Adam and AdamW (Kingma and Ba, arXiv 1412.6980; Loshchilov
 * and Hutter, arXiv 1711.05101), the moving average of weights, and the sum of squares for gradient clipping.
 *
 * Tensors are cut into chunks of fixed size that all threads share. Memory traffic of Adam: reads p, g, m, v and writes
 * p, m, v once: 28 bytes an element; with the moving average 36, with the bf16 or f16 copy 2 more.
 */
#ifndef DIFFIT_CPU_OPTIM_H
#define DIFFIT_CPU_OPTIM_H

static constexpr int64_t kListChunk = 16384;

/* body(tensor, begin, end, chunk) over chunks of all tensors of the list, numbered through. Returns the number of
   chunks, or -1 where there is no memory for their table. */
template <class Body>
static int64_t eachListChunk(diffit_context *ctx, const diffit_list *list, const Body &body) {
  int64_t *first = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)(list->count + 1) * sizeof(int64_t));
  if (!first) return -1;
  first[0] = 0;
  for (int64_t t = 0; t < list->count; t++) first[t + 1] = first[t] + ceilDiv(numel(&list->items[t]), kListChunk);
  const int64_t chunks = first[list->count];
  parallelChunks(ctx, chunks, 1, [=, &body](int64_t chunk, int64_t, int) {
    int64_t low = 0, high = list->count; /* first[low] <= chunk < first[high] */
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (first[middle] <= chunk) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const int64_t begin = (chunk - first[low]) * kListChunk;
    body(low, begin, imin(numel(&list->items[low]), begin + kListChunk), chunk);
  });
  return chunks;
}

/* Whether two lists hold f32 tensors of the same sizes. */
static bool sameLists(const diffit_list *a, const diffit_list *b) {
  if (a->count != b->count) return false;
  for (int64_t t = 0; t < a->count; t++) {
    const diffit_tensor *u = &a->items[t], *v = &b->items[t];
    if (u->dtype != DIFFIT_F32 || v->dtype != DIFFIT_F32 || numel(u) != numel(v)) return false;
  }
  return true;
}

/* Whether a list holds tensors of one dtype, bf16 or f16, and of the sizes of another's. */
static bool sameLowLists(const diffit_list *a, const diffit_list *b) {
  if (a->count != b->count) return false;
  for (int64_t t = 0; t < a->count; t++) {
    const diffit_tensor *u = &a->items[t];
    if (u->dtype != a->items[0].dtype || numel(u) != numel(&b->items[t])) return false;
    if (u->dtype != DIFFIT_BF16 && u->dtype != DIFFIT_F16) return false;
  }
  return true;
}

static diffit_status adam_op(diffit_context *ctx, const diffit_list *params, const diffit_list *grads,
                             const diffit_list *m, const diffit_list *v, const diffit_list *averages,
                             const diffit_list *copies, const diffit_tensor *scale, int64_t step, double lr,
                             double beta1, double beta2, double eps, double weightDecay, int64_t decoupled,
                             int64_t finiteOnly, double emaDecay) {
  REQUIRE(sameLists(params, grads));
  REQUIRE(sameLists(params, m));
  REQUIRE(sameLists(params, v));
  REQUIRE(averages->count == 0 || sameLists(averages, params));
  REQUIRE(copies->count == 0 || sameLowLists(copies, params));
  REQUIRE(!scale || (scale->dtype == DIFFIT_F32 && numel(scale) == 1));
  REQUIRE(step >= 1);
  REQUIRE(beta1 >= 0 && beta1 < 1 && beta2 >= 0 && beta2 < 1);
  const float gradScale = scale ? f32(scale)[0] : 1.0f;
  if (gradScale != gradScale) return DIFFIT_OK;
  const float b1 = (float)beta1, c1 = (float)(1 - beta1), b2 = (float)beta2, c2 = (float)(1 - beta2);
  const float stepSize = (float)(lr / (1 - ::pow(beta1, (double)step)));
  const float correction = (float)(1 / ::sqrt(1 - ::pow(beta2, (double)step))), e = (float)eps;
  const float shrink = decoupled ? (float)(1 - lr * weightDecay) : 1.0f, decay = decoupled ? 0.0f : (float)weightDecay;
  const float d = (float)emaDecay;
  const bool masked = finiteOnly != 0, coupled = decay != 0.0f;
  const int64_t chunks = eachListChunk(ctx, params, [=](int64_t t, int64_t begin, int64_t end, int64_t) {
    float *p = f32(&params->items[t]) + begin, *pm = f32(&m->items[t]) + begin, *pv = f32(&v->items[t]) + begin;
    const float *pg = f32(&grads->items[t]) + begin;
    float *average = averages->count ? f32(&averages->items[t]) + begin : nullptr;
    eachVector(end - begin, [=](auto get, auto put) {
      vf g = get(pg), w = get(p);
      if (masked) g = vselect(vabs(g) < __builtin_inff(), g, vf{});
      g = g * gradScale;
      if (coupled) g = g + w * decay;
      const vf mean = get(pm) * b1 + g * c1, square = get(pv) * b2 + g * g * c2;
      put(pm, mean);
      put(pv, square);
      w = w * shrink - stepSize * (mean / (vsqrt(square) * correction + e));
      put(p, w);
      if (average) put(average, w + (get(average) - w) * d);
    });
    if (copies->count == 0) return;
    const diffit_tensor *copy = &copies->items[t];
    if (copy->dtype == DIFFIT_BF16) castRange(p, (Bf16 *)copy->data + begin, end - begin);
    if (copy->dtype == DIFFIT_F16) castRange(p, (F16 *)copy->data + begin, end - begin);
  });
  return chunks < 0 ? diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "adam: no memory for the table of chunks") : DIFFIT_OK;
}

static diffit_status ema_op(diffit_context *ctx, const diffit_list *averages, const diffit_list *params, double decay) {
  REQUIRE(sameLists(averages, params));
  const float d = (float)decay;
  const int64_t chunks = eachListChunk(ctx, params, [=](int64_t t, int64_t begin, int64_t end, int64_t) {
    float *average = f32(&averages->items[t]) + begin;
    const float *p = f32(&params->items[t]) + begin;
    mapVectors2<1, 1>(average, p, average, end - begin, [=](vf a, vf w) { return w + (a - w) * d; });
  });
  return chunks < 0 ? diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "ema: no memory for the table of chunks") : DIFFIT_OK;
}

/* Sum of squares in f64: the square of an f32 is exact there. */
static double squareSumRow(const float *x, int64_t n) {
  typedef double vd __attribute__((vector_size(kLanes * 4)));
  typedef float vh __attribute__((vector_size(kLanes * 2)));
  vd a = {}, b = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    vh low, high;
    memcpy(&low, x + i, sizeof low);
    memcpy(&high, x + i + kLanes / 2, sizeof high);
    const vd u = __builtin_convertvector(low, vd), v = __builtin_convertvector(high, vd);
    a += u * u;
    b += v * v;
  }
  double total = 0;
  for (int l = 0; l < kLanes / 2; l++) total += a[l] + b[l];
  for (; i < n; i++) total += (double)x[i] * x[i];
  return total;
}

static diffit_status square_sum_op(diffit_context *ctx, const diffit_list *xs, diffit_tensor *y) {
  REQUIRE(sameLists(xs, xs));
  REQUIRE_F32(y);
  REQUIRE(numel(y) == 1 || numel(y) == 1 + xs->count);
  int64_t capacity = 1;
  for (int64_t t = 0; t < xs->count; t++) capacity += ceilDiv(numel(&xs->items[t]), kListChunk);
  double *partials = (double *)diffit_cpu_shared(ctx, 1, (size_t)capacity * sizeof(double));
  const int64_t chunks =
      !partials ? -1 : eachListChunk(ctx, xs, [=](int64_t t, int64_t begin, int64_t end, int64_t chunk) {
        partials[chunk] = squareSumRow(f32(&xs->items[t]) + begin, end - begin);
      });
  if (chunks < 0) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "square_sum: no memory for partial sums");
  double total = 0;
  for (int64_t c = 0; c < chunks; c++) total += partials[c];
  f32(y)[0] = (float)total;
  if (numel(y) == 1) return DIFFIT_OK;
  for (int64_t t = 0; t < xs->count; t++) {
    double sum = 0;
    for (const double *end = partials + ceilDiv(numel(&xs->items[t]), kListChunk); partials < end; partials++) {
      sum += *partials;
    }
    f32(y)[1 + t] = (float)sum;
  }
  return DIFFIT_OK;
}

#endif
