/*
 * Operations that move elements: strided copy (permute, slice, concatenate, pad), rows by index and its gradient,
 * nearest-neighbour upsampling and its gradient.
 *
 * Memory traffic: every element read once and written once. The strided copy orders the dimensions by the strides of
 * y, merges those that lie behind each other in both tensors, and then copies runs (both contiguous), transposes tiles
 * of 32 x 32 (x contiguous along another dimension than y) or walks element by element.
 */
#ifndef DIFFIT_CPU_INDEX_H
#define DIFFIT_CPU_INDEX_H

DIFFIT_INLINE int64_t elementSize(diffit_dtype dtype) {
  switch (dtype) {
    case DIFFIT_U8:
      return 1;
    case DIFFIT_BF16:
    case DIFFIT_F16:
      return 2;
    case DIFFIT_I64:
      return 8;
    default:
      return 4;
  }
}

/* ---- strided copy ------------------------------------------------------------------------------- */

static constexpr int kMaxCopyDims = 8;

struct CopyPlan {
  int ndim;
  int64_t shape[kMaxCopyDims], xStrides[kMaxCopyDims], yStrides[kMaxCopyDims];
};

/* Whether offset + sum i_k strides_k stays in [0, limit) for all indices; overflow counts as outside. */
static bool staysInside(const diffit_ints *shape, const diffit_ints *strides, int64_t offset, int64_t limit) {
  int64_t low = offset, high = offset;
  for (int64_t d = 0; d < shape->count; d++) {
    int64_t *edge = strides->items[d] < 0 ? &low : &high, reach;
    if (__builtin_mul_overflow(shape->items[d] - 1, strides->items[d], &reach)) return false;
    if (__builtin_add_overflow(*edge, reach, edge)) return false;
  }
  return low >= 0 && high < limit;
}

/* Drops dimensions of size 1, sorts the others by the stride of y, largest first, and merges neighbours. */
static void planCopy(const diffit_ints *shape, const diffit_ints *xStrides, const diffit_ints *yStrides,
                     CopyPlan *plan) {
  int order[kMaxCopyDims], count = 0;
  const auto magnitude = [=](int d) { return yStrides->items[d] < 0 ? -yStrides->items[d] : yStrides->items[d]; };
  for (int d = 0; d < (int)shape->count; d++) {
    if (shape->items[d] == 1) continue;
    int at = count++;
    for (; at > 0 && magnitude(order[at - 1]) < magnitude(d); at--) order[at] = order[at - 1];
    order[at] = d;
  }
  plan->ndim = 0;
  for (int k = 0; k < count; k++) {
    const int64_t size = shape->items[order[k]], xs = xStrides->items[order[k]], ys = yStrides->items[order[k]];
    const int last = plan->ndim - 1;
    if (last >= 0 && plan->xStrides[last] == xs * size && plan->yStrides[last] == ys * size) {
      plan->shape[last] *= size;
      plan->xStrides[last] = xs;
      plan->yStrides[last] = ys;
    } else {
      plan->shape[plan->ndim] = size;
      plan->xStrides[plan->ndim] = xs;
      plan->yStrides[plan->ndim++] = ys;
    }
  }
  if (plan->ndim == 0) *plan = {1, {1}, {1}, {1}};
}

/* Offsets into x and y of the outer index number `index`, counting over the first `dims` dimensions. */
DIFFIT_INLINE void copyOffsets(const CopyPlan &plan, int dims, int64_t index, int64_t *xAt, int64_t *yAt) {
  for (int d = dims - 1; d >= 0; d--) {
    const int64_t i = index % plan.shape[d];
    index /= plan.shape[d];
    *xAt += i * plan.xStrides[d];
    *yAt += i * plan.yStrides[d];
  }
}

template <class T>
DIFFIT_INLINE void copyRow(const T *x, int64_t xs, T *y, int64_t ys, int64_t n) {
  if (xs == 1 && ys == 1 && n >= 16) {
    memcpy(y, x, (size_t)n * sizeof(T));
  } else {
    for (int64_t i = 0; i < n; i++) y[i * ys] = x[i * xs];
  }
}

/* Rows along the last dimension; a row may be cut, so that one long row is shared by all threads. */
template <class T>
static void copyRows(diffit_context *ctx, const CopyPlan &plan, const T *x, T *y) {
  const int inner = plan.ndim - 1;
  const int64_t n = plan.shape[inner], xs = plan.xStrides[inner], ys = plan.yStrides[inner];
  int64_t total = n;
  for (int d = 0; d < inner; d++) total *= plan.shape[d];
  parallelChunks(ctx, total, 16384, [=, &plan](int64_t begin, int64_t end, int) {
    while (begin < end) {
      const int64_t at = begin % n, length = imin(n - at, end - begin);
      int64_t xAt = at * xs, yAt = at * ys;
      copyOffsets(plan, inner, begin / n, &xAt, &yAt);
      copyRow(x + xAt, xs, y + yAt, ys, length);
      begin += length;
    }
  });
}

/* y[j, i] = x[i, j] for a block of rows x columns (4 x 4: in registers); rows of x are xs apart, rows of y ys. */
template <class T>
DIFFIT_INLINE void transposeBlock(const T *x, int64_t xs, T *y, int64_t ys, int64_t rows, int64_t columns) {
  if constexpr (sizeof(T) == 4) {
    if (rows == 4 && columns == 4) {
      typedef uint32_t v4 __attribute__((vector_size(16)));
      v4 r[4];
      for (int k = 0; k < 4; k++) memcpy(&r[k], x + k * xs, 16);
      const v4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5), b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
      const v4 c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7), d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
      r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
      r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
      r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
      r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
      for (int k = 0; k < 4; k++) memcpy(y + k * ys, &r[k], 16);
      return;
    }
  }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) y[j * ys + i] = x[i * xs + j];
}

/* A tile of blocks. The side with the larger stride is finished line by line: its lines may share one cache set. */
template <class T>
DIFFIT_INLINE void transposeTile(const T *x, int64_t xs, T *y, int64_t ys, int64_t rows, int64_t columns) {
  if (xs > ys) {
    for (int64_t i = 0; i < rows; i += 4)
      for (int64_t j = 0; j < columns; j += 4)
        transposeBlock(x + i * xs + j, xs, y + j * ys + i, ys, imin(4, rows - i), imin(4, columns - j));
  } else {
    for (int64_t j = 0; j < columns; j += 4)
      for (int64_t i = 0; i < rows; i += 4)
        transposeBlock(x + i * xs + j, xs, y + j * ys + i, ys, imin(4, rows - i), imin(4, columns - j));
  }
}

/* The last dimension is contiguous in y, the one before it in x. */
template <class T>
static void copyTransposed(diffit_context *ctx, const CopyPlan &plan, const T *x, T *y) {
  static constexpr int64_t kTile = 32;
  const int r = plan.ndim - 1, c = plan.ndim - 2; /* rows and columns of x */
  const int64_t rows = plan.shape[r], columns = plan.shape[c], rowTiles = ceilDiv(rows, kTile);
  const int64_t xs = plan.xStrides[r], ys = plan.yStrides[c], tiles = rowTiles * ceilDiv(columns, kTile);
  int64_t matrices = 1;
  for (int d = 0; d < c; d++) matrices *= plan.shape[d];
  parallelChunks(ctx, matrices * tiles, 16, [=, &plan](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t i = task % rowTiles * kTile, j = task % tiles / rowTiles * kTile;
      int64_t xAt = i * xs + j, yAt = j * ys + i;
      copyOffsets(plan, c, task / tiles, &xAt, &yAt);
      transposeTile(x + xAt, xs, y + yAt, ys, imin(kTile, rows - i), imin(kTile, columns - j));
    }
  });
}

template <class T>
static void stridedCopy(diffit_context *ctx, CopyPlan plan, const T *x, T *y) {
  const int last = plan.ndim - 1;
  if (plan.yStrides[last] == 1 && plan.xStrides[last] != 1 && plan.shape[last] > 1) {
    for (int d = 0; d < last; d++) {
      if (plan.xStrides[d] != 1) continue;
      /* the dimension along which x is contiguous becomes the last but one */
      const int64_t size = plan.shape[d], ys = plan.yStrides[d];
      for (int k = d; k < last - 1; k++) {
        plan.shape[k] = plan.shape[k + 1];
        plan.xStrides[k] = plan.xStrides[k + 1];
        plan.yStrides[k] = plan.yStrides[k + 1];
      }
      plan.shape[last - 1] = size;
      plan.xStrides[last - 1] = 1;
      plan.yStrides[last - 1] = ys;
      return copyTransposed(ctx, plan, x, y);
    }
  }
  copyRows(ctx, plan, x, y);
}

static diffit_status strided_copy_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y,
                                     const diffit_ints *shape, const diffit_ints *xStrides, const diffit_ints *yStrides,
                                     int64_t xOffset, int64_t yOffset) {
  REQUIRE(x->dtype == y->dtype);
  REQUIRE(shape->count <= kMaxCopyDims);
  REQUIRE(xStrides->count == shape->count && yStrides->count == shape->count);
  bool empty = false;
  for (int64_t d = 0; d < shape->count; d++) {
    REQUIRE(shape->items[d] >= 0);
    empty = empty || shape->items[d] == 0;
  }
  if (empty) return DIFFIT_OK;
  const bool readsInsideX = staysInside(shape, xStrides, xOffset, numel(x));
  REQUIRE(readsInsideX);
  const bool writesInsideY = staysInside(shape, yStrides, yOffset, numel(y));
  REQUIRE(writesInsideY);
  CopyPlan plan;
  planCopy(shape, xStrides, yStrides, &plan);
  switch (elementSize(x->dtype)) {
    case 1:
      stridedCopy(ctx, plan, (const uint8_t *)x->data + xOffset, (uint8_t *)y->data + yOffset);
      break;
    case 2:
      stridedCopy(ctx, plan, (const uint16_t *)x->data + xOffset, (uint16_t *)y->data + yOffset);
      break;
    case 4:
      stridedCopy(ctx, plan, (const uint32_t *)x->data + xOffset, (uint32_t *)y->data + yOffset);
      break;
    default:
      stridedCopy(ctx, plan, (const uint64_t *)x->data + xOffset, (uint64_t *)y->data + yOffset);
      break;
  }
  return DIFFIT_OK;
}

/* ---- rows by index ------------------------------------------------------------------------------ */

static diffit_status gather_rows_op(diffit_context *ctx, const diffit_tensor *table, const diffit_tensor *ids,
                                    diffit_tensor *y) {
  REQUIRE(table->dtype == y->dtype);
  REQUIRE(ids->dtype == DIFFIT_I64);
  REQUIRE(table->ndim == 2);
  const int64_t width = table->shape[1], count = numel(ids);
  REQUIRE(numel(y) == count * width);
  const diffit_status status = checkIndices(ctx, "gather_rows", ids, table->shape[0]);
  if (status != DIFFIT_OK) return status;
  const int64_t bytes = width * elementSize(table->dtype), *id = (const int64_t *)ids->data;
  if (bytes == 0) return DIFFIT_OK;
  const char *from = (const char *)table->data;
  char *to = (char *)y->data;
  parallelChunks(ctx, count, imax(1, 65536 / bytes), [=](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i++) memcpy(to + i * bytes, from + id[i] * bytes, (size_t)bytes);
  });
  return DIFFIT_OK;
}

/* Each task owns some columns and goes through all rows of dy in order. */
static diffit_status scatter_add_rows_op(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *ids,
                                         diffit_tensor *dtable) {
  REQUIRE_F32(dy);
  REQUIRE(ids->dtype == DIFFIT_I64);
  REQUIRE_F32(dtable);
  REQUIRE(dtable->ndim == 2);
  const int64_t rows = dtable->shape[0], width = dtable->shape[1], count = numel(ids);
  REQUIRE(numel(dy) == count * width);
  const diffit_status status = checkIndices(ctx, "scatter_add_rows", ids, rows);
  if (status != DIFFIT_OK) return status;
  const int64_t *id = (const int64_t *)ids->data;
  const float *from = f32(dy);
  float *to = f32(dtable);
  parallelChunks(ctx, width, 64, [=](int64_t begin, int64_t end, int) {
    const int64_t columns = end - begin;
    for (int64_t v = 0; v < rows; v++) memset(to + v * width + begin, 0, (size_t)columns * sizeof(float));
    for (int64_t i = 0; i < count; i++) {
      float *row = to + id[i] * width + begin;
      mapVectors2<1, 1>(row, from + i * width + begin, row, columns, [](vf sum, vf g) { return sum + g; });
    }
  });
  return DIFFIT_OK;
}

/* ---- upsampling --------------------------------------------------------------------------------- */

/* Copies pixels, so it knows their bytes alone. */
static diffit_status upsample2x_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y) {
  REQUIRE_FLOAT(x);
  REQUIRE(y->dtype == x->dtype);
  REQUIRE(x->ndim == 4 && y->ndim == 4);
  REQUIRE(y->shape[0] == x->shape[0] && y->shape[3] == x->shape[3]);
  REQUIRE(y->shape[1] == 2 * x->shape[1] && y->shape[2] == 2 * x->shape[2]);
  const int64_t w = x->shape[2], c = x->shape[3];
  if (numel(x) == 0) return DIFFIT_OK;
  const char *in = (const char *)x->data;
  char *out = (char *)y->data;
  const int64_t pixel = c * elementSize(x->dtype);
  parallelChunks(ctx, x->shape[0] * x->shape[1], imax(1, 8192 / (w * c)), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      char *upper = out + r * 4 * w * pixel;
      for (int64_t i = 0; i < w; i++) {
        memcpy(upper + 2 * i * pixel, in + (r * w + i) * pixel, (size_t)pixel);
        memcpy(upper + (2 * i + 1) * pixel, in + (r * w + i) * pixel, (size_t)pixel);
      }
      memcpy(upper + 2 * w * pixel, upper, (size_t)(2 * w * pixel));
    }
  });
  return DIFFIT_OK;
}

template <class P>
static void sumPixels2x2(diffit_context *ctx, P dy, P dx, int64_t lines, int64_t w, int64_t c) {
  parallelChunks(ctx, lines, imax(1, 8192 / (w * c)), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      for (int64_t i = 0; i < w; i++) {
        const P upper = dy + (r * 4 * w + 2 * i) * c, lower = upper + 2 * w * c;
        eachVector(c, [=, to = dx + (r * w + i) * c](auto get, auto put) {
          put(to, (get(upper) + get(upper + c)) + (get(lower) + get(lower + c)));
        });
      }
    }
  });
}

static diffit_status upsample2x_backward_op(diffit_context *ctx, const diffit_tensor *dy, diffit_tensor *dx) {
  REQUIRE_FLOAT(dy);
  REQUIRE(dx->dtype == dy->dtype);
  REQUIRE(dx->ndim == 4 && dy->ndim == 4);
  REQUIRE(dy->shape[0] == dx->shape[0] && dy->shape[3] == dx->shape[3]);
  REQUIRE(dy->shape[1] == 2 * dx->shape[1] && dy->shape[2] == 2 * dx->shape[2]);
  if (numel(dx) == 0) return DIFFIT_OK;
  const int64_t lines = dx->shape[0] * dx->shape[1];
  withFloats([&](auto in, auto out) { sumPixels2x2(ctx, in, out, lines, dx->shape[2], dx->shape[3]); }, dy, dx);
  return DIFFIT_OK;
}

#endif
