/*
 * Reductions: sum, mean, maximum and argmax over one dimension; softmax and cross entropy with their gradients.
 *
 * x is seen as [outer, n, inner]. Long sums are cut into blocks of fixed size; within a block f32 vectors are added,
 * across blocks the order is fixed and the sum f64, so the result is accurate and the same for any number of threads.
 * Memory traffic: x is read once (softmax: once from memory, then from the cache).
 */
#ifndef DIFFIT_CPU_REDUCE_H
#define DIFFIT_CPU_REDUCE_H

/* ---- building blocks (norm.h uses them, too) --------------------------------------------------- */

static constexpr int64_t kSumBlock = 1024;

/* Sum of n floats: blocks in f32, the whole in f64. */
template <class X>
static double sumRow(X x, int64_t n) {
  double total = 0;
  for (int64_t at = 0; at < n; at += kSumBlock) {
    const int64_t end = imin(n, at + kSumBlock);
    vf a = {}, b = {}, c = {}, d = {};
    int64_t i = at;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes) {
      a += load(x + i);
      b += load(x + i + kLanes);
      c += load(x + i + 2 * kLanes);
      d += load(x + i + 3 * kLanes);
    }
    for (; i + kLanes <= end; i += kLanes) a += load(x + i);
    if (i < end) b += loadPartial(x + i, end - i);
    total += hsum((a + b) + (c + d));
  }
  return total;
}

/* The larger one, NaN if there is one. */
DIFFIT_INLINE float maxOrNan(float a, float b) { return b > a || b != b ? b : a; }

template <class X>
static float maxRow(X x, int64_t n) {
  float best = element(x);
  int64_t i = 0;
  if (n >= kLanes) {
    vf a = load(x);
    for (i = kLanes; i + kLanes <= n; i += kLanes) {
      const vf v = load(x + i);
      a = vselect((v > a) | (v != v), v, a);
    }
    float lanes[kLanes];
    store(lanes, a);
    for (int l = 0; l < kLanes; l++) best = maxOrNan(best, lanes[l]);
  }
  for (; i < n; i++) best = maxOrNan(best, element(x + i));
  return best;
}

/* sums[j] = sum of x[i, j] over `rows` rows that lie `stride` apart, four rows at a time. */
template <class X>
static void sumColumns(X x, int64_t rows, int64_t columns, int64_t stride, float *sums) {
  memset(sums, 0, (size_t)columns * sizeof(float));
  int64_t i = 0;
  for (; i + 4 <= rows; i += 4, x = x + 4 * stride) {
    eachVector(columns, [=](auto get, auto put) {
      put(sums, get(sums) + ((get(x) + get(x + stride)) + (get(x + 2 * stride) + get(x + 3 * stride))));
    });
  }
  for (; i < rows; i++, x = x + stride) {
    eachVector(columns, [=](auto get, auto put) { put(sums, get(sums) + get(x)); });
  }
}

template <class X>
static void maxColumns(X x, int64_t rows, int64_t columns, int64_t stride, float *best) {
  eachVector(columns, [=](auto get, auto put) { put(best, get(x)); });
  for (int64_t i = 1; i < rows; i++) {
    eachVector(columns, [=](auto get, auto put) {
      const vf v = get(x + i * stride), old = get(best);
      put(best, vselect((v > old) | (v != v), v, old));
    });
  }
}

/* out[j] = scale * sum over k of partials[k, j], in order of k. */
static void addPartials(diffit_context *ctx, const float *partials, int64_t count, int64_t columns, double scale,
                        float *out) {
  parallelChunks(ctx, columns, 256, [=](int64_t begin, int64_t end, int) {
    double sums[256] = {0};
    for (int64_t k = 0; k < count; k++)
      for (int64_t j = begin; j < end; j++) sums[j - begin] += partials[k * columns + j];
    for (int64_t j = begin; j < end; j++) out[j] = (float)(sums[j - begin] * scale);
  });
}

/* ---- reduce ------------------------------------------------------------------------------------ */

/* inner = 1, sum: y[o] = scale * sum of row o. */
template <class X>
static diffit_status sumRows(diffit_context *ctx, X x, float *y, int64_t outer, int64_t n, double scale) {
  static constexpr int64_t kBlock = 32 * kSumBlock;
  if (n <= kBlock) {
    parallelChunks(ctx, outer, imax(1, kBlock / imax(n, 1)), [=](int64_t begin, int64_t end, int) {
      for (int64_t o = begin; o < end; o++) y[o] = (float)(sumRow(x + o * n, n) * scale);
    });
    return DIFFIT_OK;
  }
  const int64_t blocks = ceilDiv(n, kBlock);
  double *partials = (double *)diffit_cpu_shared(ctx, 0, (size_t)(outer * blocks) * sizeof(double));
  if (!partials) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "reduce: no memory for partial sums");
  parallelChunks(ctx, outer * blocks, 1, [=](int64_t task, int64_t, int) {
    const int64_t o = task / blocks, begin = task % blocks * kBlock;
    partials[task] = sumRow(x + o * n + begin, imin(kBlock, n - begin));
  });
  for (int64_t o = 0; o < outer; o++) {
    double total = 0;
    for (int64_t b = 0; b < blocks; b++) total += partials[o * blocks + b];
    y[o] = (float)(total * scale);
  }
  return DIFFIT_OK;
}

/* inner > 1, sum and maximum: blocks of rows by strips of columns, then the blocks in order. */
template <class X>
static diffit_status reduceColumns(diffit_context *ctx, X x, float *y, int64_t outer, int64_t n, int64_t inner,
                                   bool maximum, double scale) {
  static constexpr int64_t kRows = 256, kColumns = 1024, kElements = 65536;
  const int64_t blocks = ceilDiv(n, kRows), strips = ceilDiv(inner, kColumns);
  float *partials = y;
  if (blocks > 1) partials = (float *)diffit_cpu_shared(ctx, 0, (size_t)(outer * blocks * inner) * sizeof(float));
  if (!partials) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "reduce: no memory for partial sums");
  const int64_t grain = imax(1, kElements / (imin(n, kRows) * imin(inner, kColumns)));
  parallelChunks(ctx, outer * blocks * strips, grain, [=](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t strip = task % strips * kColumns, row = task / strips; /* of the partials: outer, block */
      const int64_t first = row % blocks * kRows, rows = imin(kRows, n - first),
                    columns = imin(kColumns, inner - strip);
      const X from = x + ((row / blocks * n + first) * inner + strip);
      (maximum ? maxColumns<X> : sumColumns<X>)(from, rows, columns, inner, partials + row * inner + strip);
    }
  });
  if (blocks == 1) {
    const float factor = (float)scale;
    if (factor != 1.0f) {
      parallelChunks(ctx, outer * inner, kElements, [=](int64_t begin, int64_t end, int) {
        mapVectors(y, y, begin, end, [=](vf v) { return v * factor; });
      });
    }
    return DIFFIT_OK;
  }
  for (int64_t o = 0; o < outer; o++) {
    const float *own = partials + o * blocks * inner;
    if (maximum) {
      maxColumns(own, blocks, inner, inner, y + o * inner);
    } else {
      addPartials(ctx, own, blocks, inner, scale, y + o * inner);
    }
  }
  return DIFFIT_OK;
}

/* First index of the largest element; a NaN counts as larger than all numbers. */
template <class X>
static void argmaxColumns(diffit_context *ctx, X x, int64_t *y, int64_t outer, int64_t n, int64_t inner) {
  parallelChunks(ctx, outer * inner, imax(1, 4096 / n), [=](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; task++) {
      const X from = x + (task / inner * n * inner + task % inner);
      int64_t best = 0;
      for (int64_t i = 1; i < n; i++) {
        const float v = element(from + i * inner), top = element(from + best * inner);
        if (top == top && (v > top || v != v)) best = i;
      }
      y[task] = best;
    }
  });
}

template <class X>
static diffit_status reduceFrom(diffit_context *ctx, X x, diffit_tensor *y, int64_t kind, int64_t outer, int64_t n,
                                int64_t inner) {
  if (kind == DIFFIT_ARGMAX) {
    argmaxColumns(ctx, x, (int64_t *)y->data, outer, n, inner);
    return DIFFIT_OK;
  }
  const double scale = kind == DIFFIT_MEAN ? 1.0 / (double)n : 1.0;
  float *out = f32(y);
  if (inner > 1) return reduceColumns(ctx, x, out, outer, n, inner, kind == DIFFIT_MAX, scale);
  if (kind != DIFFIT_MAX) return sumRows(ctx, x, out, outer, n, scale);
  parallelChunks(ctx, outer, imax(1, 16384 / n), [=](int64_t begin, int64_t end, int) {
    for (int64_t o = begin; o < end; o++) out[o] = maxRow(x + o * n, n);
  });
  return DIFFIT_OK;
}

static diffit_status reduce_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, int64_t kind,
                               int64_t outer, int64_t n, int64_t inner) {
  REQUIRE_FLOAT(x);
  REQUIRE(outer >= 0 && n >= 0 && inner >= 0);
  int64_t results, elements;
  REQUIRE(!__builtin_mul_overflow(outer, inner, &results) && numel(y) == results);
  REQUIRE(!__builtin_mul_overflow(results, n, &elements) && numel(x) == elements);
  REQUIRE(kind >= DIFFIT_SUM && kind <= DIFFIT_ARGMAX);
  REQUIRE(y->dtype == (kind == DIFFIT_ARGMAX ? DIFFIT_I64 : DIFFIT_F32));
  if (outer * inner == 0) return DIFFIT_OK;
  if (n == 0) {
    REQUIRE(kind == DIFFIT_SUM); /* only the empty sum is defined */
    memset(y->data, 0, (size_t)(outer * inner) * sizeof(float));
    return DIFFIT_OK;
  }
  diffit_status status = DIFFIT_OK;
  withFloats([&](auto in) { status = reduceFrom(ctx, in, y, kind, outer, n, inner); }, x);
  return status;
}

/* ---- softmax and cross entropy ------------------------------------------------------------------ */

/* Rows per task for rows of n elements that need an exponential each. */
DIFFIT_INLINE int64_t softmaxGrain(int64_t n) { return imax(1, 4096 / imax(n, 1)); }

/* y = e^(x - top) unless y is null; returns the sum, in f64 over blocks of f32. */
static double expRow(const float *x, float *y, int64_t n, float top) {
  double total = 0;
  for (int64_t at = 0; at < n; at += kSumBlock) {
    const int64_t length = imin(kSumBlock, n - at), whole = length / kLanes * kLanes;
    vf sum = {};
    eachVector(whole, [=, &sum](auto get, auto put) {
      const vf e = vexp(get(x + at) - top);
      if (y) put(y + at, e);
      sum += e;
    });
    if (whole < length) {
      float last[kLanes] = {0};
      storePartial(last, vexp(loadPartial(x + at + whole, length - whole) - top), length - whole);
      if (y) memcpy(y + at + whole, last, (size_t)(length - whole) * sizeof(float));
      sum += load(last);
    }
    total += hsum(sum);
  }
  return total;
}

static diffit_status softmax_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(numel(x) == numel(y));
  const int64_t n = lastDim(x);
  if (numel(x) == 0) return DIFFIT_OK;
  const float *in = f32(x);
  float *out = f32(y);
  parallelChunks(ctx, numel(x) / n, softmaxGrain(n), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      float *row = out + r * n;
      const float scale = (float)(1.0 / expRow(in + r * n, row, n, maxRow(in + r * n, n)));
      mapVectors(row, row, 0, n, [=](vf v) { return v * scale; });
    }
  });
  return DIFFIT_OK;
}

static diffit_status softmax_backward_op(diffit_context *ctx, const diffit_tensor *y, const diffit_tensor *dy,
                                         diffit_tensor *dx) {
  REQUIRE_F32(y);
  REQUIRE_F32(dy);
  REQUIRE_F32(dx);
  REQUIRE(numel(y) == numel(dy) && numel(y) == numel(dx));
  const int64_t n = lastDim(y);
  if (numel(y) == 0) return DIFFIT_OK;
  const float *py = f32(y), *pdy = f32(dy);
  float *out = f32(dx);
  parallelChunks(ctx, numel(y) / n, imax(1, 16384 / n), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const float *p = py + r * n, *g = pdy + r * n;
      vf products = {};
      eachVector(n, [=, &products](auto get, auto) { products += get(p) * get(g); });
      const float dot = hsum(products);
      mapVectors2<1, 1>(p, g, out + r * n, n, [=](vf v, vf w) { return v * (w - dot); });
    }
  });
  return DIFFIT_OK;
}

/* Every index must lie in [0, limit). */
static diffit_status checkIndices(diffit_context *ctx, const char *op, const diffit_tensor *indices, int64_t limit) {
  const int64_t *values = (const int64_t *)indices->data, n = numel(indices);
  for (int64_t i = 0; i < n; i++) {
    if (values[i] < 0 || values[i] >= limit)
      return diffit_cpu_fail(ctx, DIFFIT_INVALID, "%s: index %lld at position %lld; expected 0 to %lld", op,
                             (long long)values[i], (long long)i, (long long)limit - 1);
  }
  return DIFFIT_OK;
}

static diffit_status cross_entropy_op(diffit_context *ctx, const diffit_tensor *logits, const diffit_tensor *labels,
                                      diffit_tensor *loss) {
  REQUIRE_F32(logits);
  REQUIRE(labels->dtype == DIFFIT_I64);
  REQUIRE_F32(loss);
  REQUIRE(logits->ndim >= 1);
  const int64_t n = lastDim(logits), rows = numel(labels);
  REQUIRE(numel(logits) == rows * n && numel(loss) == rows);
  const diffit_status status = checkIndices(ctx, "cross_entropy", labels, n);
  if (status != DIFFIT_OK) return status;
  const float *in = f32(logits);
  const int64_t *label = (const int64_t *)labels->data;
  float *out = f32(loss);
  parallelChunks(ctx, rows, softmaxGrain(n), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const float *row = in + r * n, top = maxRow(row, n);
      out[r] = (float)::log(expRow(row, nullptr, n, top)) + (top - row[label[r]]);
    }
  });
  return DIFFIT_OK;
}

static diffit_status cross_entropy_backward_op(diffit_context *ctx, const diffit_tensor *logits,
                                               const diffit_tensor *labels, const diffit_tensor *dloss,
                                               diffit_tensor *dlogits) {
  REQUIRE_F32(logits);
  REQUIRE(labels->dtype == DIFFIT_I64);
  REQUIRE_F32(dloss);
  REQUIRE_F32(dlogits);
  REQUIRE(logits->ndim >= 1);
  const int64_t n = lastDim(logits), rows = numel(labels);
  REQUIRE(numel(logits) == rows * n && numel(dlogits) == rows * n && numel(dloss) == rows);
  const diffit_status status = checkIndices(ctx, "cross_entropy_backward", labels, n);
  if (status != DIFFIT_OK) return status;
  const float *in = f32(logits), *upstream = f32(dloss);
  const int64_t *label = (const int64_t *)labels->data;
  float *out = f32(dlogits);
  parallelChunks(ctx, rows, softmaxGrain(n), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      float *row = out + r * n;
      const float g = upstream[r], scale = (float)(g / expRow(in + r * n, row, n, maxRow(in + r * n, n)));
      mapVectors(row, row, 0, n, [=](vf v) { return v * scale; });
      row[label[r]] -= g;
    }
  });
  return DIFFIT_OK;
}

#endif
