/*
 * Operations that move elements: strided copy (permute, slice, concatenate, pad), rows by index and its gradient,
 * nearest-neighbour upsampling and its gradient.
 *
 * Memory traffic: every element is read once and written once. The strided copy orders the dimensions by the strides of y and merges
 * those that lie behind each other in both tensors; where x runs along another dimension than y, tiles of 32 x 32 go through shared
 * memory, so that both sides are coalesced. scatter_add_rows: a warp per row of the table looks through all ids and
 * adds the rows that are its own, in order: no atomics.
 */
#include "floats.cuh"

namespace diffit {
namespace {

int64_t elementSize(diffit_dtype dtype) {
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

/* ---- strided copy -------------------------------------------------------------------------------------------- */

constexpr int kMaxCopyDims = 8;

struct CopyPlan {
  int ndim;
  int64_t shape[kMaxCopyDims], xStrides[kMaxCopyDims], yStrides[kMaxCopyDims];
};

/* Whether offset + sum i_k strides_k stays in [0, limit) for all indices; overflow counts as outside. */
bool staysInside(const diffit_ints *shape, const diffit_ints *strides, int64_t offset, int64_t limit) {
  int64_t low = offset, high = offset;
  for (int64_t d = 0; d < shape->count; d++) {
    int64_t *edge = strides->items[d] < 0 ? &low : &high, reach;
    if (__builtin_mul_overflow(shape->items[d] - 1, strides->items[d], &reach)) return false;
    if (__builtin_add_overflow(*edge, reach, edge)) return false;
  }
  return low >= 0 && high < limit;
}

/* Drops dimensions of size 1, sorts the others by the stride of y, largest first, and merges neighbours. */
void planCopy(const diffit_ints *shape, const diffit_ints *xStrides, const diffit_ints *yStrides, CopyPlan *plan) {
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

/* Offsets into x and y of index number `index`, counting over the first `dims` dimensions. */
__device__ inline void copyOffsets(const CopyPlan &plan, int dims, int64_t index, int64_t *xAt, int64_t *yAt) {
  for (int d = dims - 1; d >= 0; d--) {
    const int64_t next = d == 0 ? 0 : index / plan.shape[d];
    const int64_t i = index - next * plan.shape[d];
    index = next;
    *xAt += i * plan.xStrides[d];
    *yAt += i * plan.yStrides[d];
  }
}

constexpr int kTile = 32, kTileRows = kThreads / kTile;
template <class T>
struct TransposeShared {
  T tile[kTile][kTile + 1];
};

/* The last dimension is contiguous in y, the one before it in x; a block per tile of both. */
template <class T>
__global__ void __launch_bounds__(kThreads) transposeKernel(CopyPlan plan, int64_t tiles, const T *x, T *y) {
  TransposeShared<T> &shared = sharedMemory<TransposeShared<T>>();
  const int r = plan.ndim - 1, c = plan.ndim - 2; /* rows and columns of x */
  const int64_t rows = plan.shape[r], columns = plan.shape[c], rowTiles = ceilDiv(rows, kTile);
  const int64_t perMatrix = rowTiles * ceilDiv(columns, kTile);
  const int lane = (int)threadIdx.x % kTile, line = (int)threadIdx.x / kTile;
  for (int64_t task = blockIdx.x; task < tiles; task += gridDim.x) {
    const int64_t within = task % perMatrix, i = within % rowTiles * kTile, j = within / rowTiles * kTile;
    int64_t xAt = 0, yAt = 0;
    copyOffsets(plan, c, task / perMatrix, &xAt, &yAt);
    for (int k = line; k < kTile; k += kTileRows)
      if (i + k < rows && j + lane < columns) shared.tile[k][lane] = x[xAt + (i + k) * plan.xStrides[r] + j + lane];
    __syncthreads();
    for (int k = line; k < kTile; k += kTileRows)
      if (j + k < columns && i + lane < rows) y[yAt + (j + k) * plan.yStrides[c] + i + lane] = shared.tile[lane][k];
    __syncthreads();
  }
}

/* Brings the dimension along which x is contiguous to the last but one place; false where there is nothing to transpose. */
bool planTranspose(CopyPlan *plan) {
  const int last = plan->ndim - 1;
  if (plan->yStrides[last] != 1 || plan->xStrides[last] == 1 || plan->shape[last] < 8) return false;
  for (int d = 0; d < last; d++) {
    if (plan->xStrides[d] != 1 || plan->shape[d] < 8) continue;
    const int64_t size = plan->shape[d], ys = plan->yStrides[d];
    for (int k = d; k < last - 1; k++) {
      plan->shape[k] = plan->shape[k + 1];
      plan->xStrides[k] = plan->xStrides[k + 1];
      plan->yStrides[k] = plan->yStrides[k + 1];
    }
    plan->shape[last - 1] = size;
    plan->xStrides[last - 1] = 1;
    plan->yStrides[last - 1] = ys;
    return true;
  }
  return false;
}

template <class T>
diffit_status stridedCopy(diffit_context *ctx, CopyPlan plan, const void *from, int64_t xOffset, void *to,
                          int64_t yOffset) {
  const T *x = (const T *)from + xOffset;
  T *y = (T *)to + yOffset;
  if (planTranspose(&plan)) {
    int64_t tiles = ceilDiv(plan.shape[plan.ndim - 1], kTile) * ceilDiv(plan.shape[plan.ndim - 2], kTile);
    for (int d = 0; d < plan.ndim - 2; d++) tiles *= plan.shape[d];
    const int64_t blocks = imin(tiles, (int64_t)ctx->about.multiProcessorCount * 32);
    return launch(ctx, transposeKernel<T>, dim3((unsigned)blocks), dim3(kThreads), sizeof(TransposeShared<T>), plan,
                  tiles, x, y);
  }
  int64_t total = 1;
  for (int d = 0; d < plan.ndim; d++) total *= plan.shape[d];
  return forEach(ctx, total, [=] __device__(int64_t i) {
    int64_t xAt = 0, yAt = 0;
    copyOffsets(plan, plan.ndim, i, &xAt, &yAt);
    y[yAt] = x[xAt];
  });
}

/* Copies rows of `width` elements of T. */
template <class T>
diffit_status gatherRows(diffit_context *ctx, const void *table, const int64_t *ids, void *y, int64_t count,
                         int64_t width, int64_t limit) {
  const T *from = (const T *)table;
  T *to = (T *)y;
  const IndexReport report(ctx, "gather_rows");
  return forEach(ctx, count * width, [=] __device__(int64_t i) {
    const int64_t position = i / width;
    if (isIndex(report, ids, position, limit))
      to[i] = from[ids[position] * width + (i - position * width)];
    else
      to[i] = T();
  });
}

}  // namespace

diffit_status strided_copy_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, const diffit_ints *shape,
                              const diffit_ints *xStrides, const diffit_ints *yStrides, int64_t xOffset,
                              int64_t yOffset) {
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
      return stridedCopy<uint8_t>(ctx, plan, x->data, xOffset, y->data, yOffset);
    case 2:
      return stridedCopy<uint16_t>(ctx, plan, x->data, xOffset, y->data, yOffset);
    case 4:
      return stridedCopy<uint32_t>(ctx, plan, x->data, xOffset, y->data, yOffset);
    default:
      return stridedCopy<uint64_t>(ctx, plan, x->data, xOffset, y->data, yOffset);
  }
}

/* ---- rows by index ------------------------------------------------------------------------------------------- */

diffit_status gather_rows_op(diffit_context *ctx, const diffit_tensor *table, const diffit_tensor *ids,
                             diffit_tensor *y) {
  REQUIRE(table->dtype == y->dtype);
  REQUIRE(ids->dtype == DIFFIT_I64);
  REQUIRE(table->ndim == 2);
  const int64_t limit = table->shape[0], width = table->shape[1], count = numel(ids);
  REQUIRE(numel(y) == count * width);
  const int64_t *id = (const int64_t *)ids->data;
  switch (elementSize(table->dtype)) {
    case 1:
      return gatherRows<uint8_t>(ctx, table->data, id, y->data, count, width, limit);
    case 2:
      return gatherRows<uint16_t>(ctx, table->data, id, y->data, count, width, limit);
    case 4:
      return gatherRows<uint32_t>(ctx, table->data, id, y->data, count, width, limit);
    default:
      return gatherRows<uint64_t>(ctx, table->data, id, y->data, count, width, limit);
  }
}

diffit_status scatter_add_rows_op(diffit_context *ctx, const diffit_tensor *dy, const diffit_tensor *ids,
                                  diffit_tensor *dtable) {
  REQUIRE_F32(dy);
  REQUIRE(ids->dtype == DIFFIT_I64);
  REQUIRE_F32(dtable);
  REQUIRE(dtable->ndim == 2);
  const int64_t rows = dtable->shape[0], width = dtable->shape[1], count = numel(ids);
  REQUIRE(numel(dy) == count * width);
  const int64_t *id = (const int64_t *)ids->data, strips = ceilDiv(width, 32);
  const float *from = f32(dy);
  float *to = f32(dtable);
  const IndexReport report(ctx, "scatter_add_rows");
  return eachRow(ctx, rows * strips, [=] __device__(int64_t task, int lane) {
    const int64_t v = task / strips, column = task % strips * 32 + lane;
    float sum = 0;
    for (int64_t i = 0; i < count; i++) {
      if (task == 0 && lane == 0) isIndex(report, id, i, rows);
      if (id[i] == v && column < width) sum += from[i * width + column];
    }
    if (column < width) to[v * width + column] = sum;
  });
}

/* ---- upsampling ---------------------------------------------------------------------------------------------- */

/* kWidth neighbouring channels a thread. */
template <int kWidth>
static diffit_status upsample(diffit_context *ctx, const Floats &x, const Floats &y, int64_t n, int64_t w, int64_t c) {
  return forEach(ctx, n / kWidth, [=] __device__(int64_t i) {
    const int64_t at = i * kWidth, pixel = at / c, row = pixel / w; /* of all samples */
    const int64_t to = (row * 4 * w + (pixel - row * w) * 2) * c + (at - pixel * c);
    float v[kWidth];
    load(x, at, v);
    store(y, to, v);
    store(y, to + c, v);
    store(y, to + 2 * w * c, v);
    store(y, to + (2 * w + 1) * c, v);
  });
}

template <int kWidth>
static diffit_status upsampleBackward(diffit_context *ctx, const Floats &dy, const Floats &dx, int64_t n, int64_t w,
                                      int64_t c) {
  return forEach(ctx, n / kWidth, [=] __device__(int64_t i) {
    const int64_t at = i * kWidth, pixel = at / c, row = pixel / w;
    const int64_t from = (row * 4 * w + (pixel - row * w) * 2) * c + (at - pixel * c);
    float u[kWidth], v[kWidth], top[kWidth];
    load(dy, from, u);
    load(dy, from + c, v);
#pragma unroll
    for (int e = 0; e < kWidth; e++) top[e] = u[e] + v[e];
    load(dy, from + 2 * w * c, u);
    load(dy, from + (2 * w + 1) * c, v);
#pragma unroll
    for (int e = 0; e < kWidth; e++) top[e] += u[e] + v[e];
    store(dx, at, top);
  });
}

diffit_status upsample2x_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y) {
  REQUIRE_FLOAT(x);
  REQUIRE(y->dtype == x->dtype);
  REQUIRE(x->ndim == 4 && y->ndim == 4);
  REQUIRE(y->shape[0] == x->shape[0] && y->shape[3] == x->shape[3]);
  REQUIRE(y->shape[1] == 2 * x->shape[1] && y->shape[2] == 2 * x->shape[2]);
  const Floats in = floats(x), out = floats(y);
  return withWidth(widthOf({in, out}, x->shape[3]), [&](auto k) {
    return upsample<decltype(k)::value>(ctx, in, out, numel(x), x->shape[2], x->shape[3]);
  });
}

diffit_status upsample2x_backward_op(diffit_context *ctx, const diffit_tensor *dy, diffit_tensor *dx) {
  REQUIRE_FLOAT(dy);
  REQUIRE(dx->dtype == dy->dtype);
  REQUIRE(dx->ndim == 4 && dy->ndim == 4);
  REQUIRE(dy->shape[0] == dx->shape[0] && dy->shape[3] == dx->shape[3]);
  REQUIRE(dy->shape[1] == 2 * dx->shape[1] && dy->shape[2] == 2 * dx->shape[2]);
  const Floats in = floats(dy), out = floats(dx);
  return withWidth(widthOf({in, out}, dx->shape[3]), [&](auto k) {
    return upsampleBackward<decltype(k)::value>(ctx, in, out, numel(dx), dx->shape[2], dx->shape[3]);
  });
}

}  // namespace diffit
