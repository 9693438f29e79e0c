/*
 * Attention in bf16 and f16: which kernel for which call, and the small kernels around the gradient's large ones.
 *
 *   at most 64 tokens in a window       attention_window.cu, everything on chip
 *   more                                attention_grid.cu, attention_grid_backward.cu
 *   the rest                            f32 copies in scratch memory through the f32 kernels, and back
 *
 * The rest: head dimensions over 128 or not a multiple of 8, tensors that do not begin at a multiple of 16 bytes, a table per sample, a
 * scale that is not positive, tables larger than shared memory, 2^31 problems, and the table's gradient in windows of more than 64 tokens whose
 * width is not a multiple of 16.
 */
#include "attention_mma.cuh"

namespace diffit {

diffit_status cast_op(diffit_context *, const diffit_tensor *x, diffit_tensor *y);
diffit_status attention_op(diffit_context *, const diffit_tensor *qkv, const diffit_tensor *time,
                           const diffit_tensor *table, diffit_tensor *y, diffit_tensor *lse, int64_t heads,
                           int64_t windowH, int64_t windowW, double scale);
diffit_status attention_backward_op(diffit_context *, const diffit_tensor *qkv, const diffit_tensor *time,
                                    const diffit_tensor *table, const diffit_tensor *y, const diffit_tensor *lse,
                                    const diffit_tensor *dy, diffit_tensor *dqkv, diffit_tensor *dtime,
                                    diffit_tensor *dtable, int64_t heads, int64_t windowH, int64_t windowW,
                                    double scale);

namespace {

constexpr int kScratchWide = 3;

bool isAligned(const diffit_tensor *t) { return (uintptr_t)t->data % 16 == 0; }

bool hasKernels(const AttentionSizes &s) {
  return s.dim % 8 == 0 && s.dim <= 128 && !s.tableStep && s.scale > 0 && s.problems < (int64_t)1 << 31;
}

/* Does a window lie on chip as a whole? */
bool isWindow(const AttentionSizes &s) { return s.tokens <= kWindowTokens; }

/* The same tensor in f32, its data at *free, which moves on. */
diffit_tensor wide(const diffit_tensor *t, float **free) {
  diffit_tensor w = *t;
  w.dtype = DIFFIT_F32;
  w.data = *free;
  *free += (numel(t) + 3) / 4 * 4;
  return w;
}

template <class T>
LowAttention<T> arguments(const AttentionSizes &s, const diffit_tensor *qkv, const diffit_tensor *time,
                          const diffit_tensor *table, const diffit_tensor *y, const diffit_tensor *lse) {
  LowAttention<T> a = {};
  a.s = s;
  a.qkv = (const T *)qkv->data;
  a.time = f32(time);
  a.table = f32(table);
  a.y = (T *)y->data;
  a.lse = f32(lse);
  return a;
}

/* Grid kernels read the table by columns. */
template <class T>
diffit_status splitColumns(diffit_context *ctx, LowAttention<T> &a, const diffit_tensor *table) {
  if (!table) return DIFFIT_OK;
  float *columns = (float *)scratch(ctx, 0, tableFloats(a.s, table) * sizeof(float));
  if (!columns) return DIFFIT_OUT_OF_MEMORY;
  a.columns = columns;
  return splitTable(ctx, a.s, table, columns);
}

template <class T>
diffit_status forward(diffit_context *ctx, LowAttention<T> a, const diffit_tensor *table) {
  if (isWindow(a.s) && windowForwardFits(ctx, a.s)) return windowForward(ctx, a);
  TRY(splitColumns(ctx, a, table));
  return gridForward(ctx, a);
}

/* delta [B, heads, H, W] = dy . (y - v_t) per head: a thread per token and head. */
template <class T>
diffit_status deltas(diffit_context *ctx, const LowAttention<T> &a, float *delta) {
  const int64_t tokens = (int64_t)a.s.height * a.s.width, heads = a.s.heads;
  const int dim = a.s.dim;
  const T *y = a.y, *dy = a.dy;
  const float *time = a.time;
  return forEach(ctx, a.s.batch * tokens * heads, [=] __device__(int64_t i) {
    const int64_t head = i % heads, token = i / heads, sample = token / tokens;
    const float *v = time ? time + (sample * 3 + 2) * heads * dim + head * dim : nullptr;
    float sum = 0;
    for (int d = 0; d < dim; d += 8) {
      const uint4 left = *(const uint4 *)(dy + i * dim + d), right = *(const uint4 *)(y + i * dim + d);
      const uint32_t l[4] = {left.x, left.y, left.z, left.w}, r[4] = {right.x, right.y, right.z, right.w};
      for (int e = 0; e < 4; e++) {
        const float2 g = unpackPair<T>(l[e]), out = unpackPair<T>(r[e]);
        sum = fmaf(g.x, out.x - (v ? v[d + 2 * e] : 0.0f), sum);
        sum = fmaf(g.y, out.y - (v ? v[d + 2 * e + 1] : 0.0f), sum);
      }
    }
    delta[(sample * heads + head) * tokens + token - sample * tokens] = sum;
  });
}

constexpr int64_t kTokensPerPart = 64;

/* dtime [B, 3C]: sums over tokens of dq and of dy, zeros for k. Eight channels a thread over 64 tokens, then the parts in order. */
template <class T>
diffit_status timeGradient(diffit_context *ctx, const LowAttention<T> &a, float *dtime) {
  const int64_t c = a.s.channels, tokens = (int64_t)a.s.height * a.s.width, batch = a.s.batch, pieces = c / 4;
  const int64_t parts = ceilDiv(tokens, kTokensPerPart);
  float *partials = (float *)scratch(ctx, 2, (size_t)(batch * parts * 2 * c) * sizeof(float));
  if (!partials) return DIFFIT_OUT_OF_MEMORY;
  const T *dqkv = a.dqkv, *dy = a.dy;
  TRY(forEach(ctx, batch * parts * pieces, [=] __device__(int64_t i) {
    const int64_t column = i % pieces * 8, part = i / pieces % parts, sample = i / pieces / parts;
    const int64_t begin = part * kTokensPerPart, end = imin(tokens, begin + kTokensPerPart);
    const int64_t step = column < c ? 3 * c : c;
    const T *from = (column < c ? dqkv + column : dy + column - c) + sample * tokens * step;
    float sums[8] = {};
    for (int64_t t = begin; t < end; t++) {
      const uint4 piece = *(const uint4 *)(from + t * step);
      const uint32_t pairs[4] = {piece.x, piece.y, piece.z, piece.w};
      for (int e = 0; e < 4; e++) {
        const float2 x = unpackPair<T>(pairs[e]);
        sums[2 * e] += x.x;
        sums[2 * e + 1] += x.y;
      }
    }
    for (int e = 0; e < 8; e++) partials[(sample * parts + part) * 2 * c + column + e] = sums[e];
  }));
  return joinTimeParts(ctx, partials, dtime, a.s, parts);
}

template <class T>
diffit_status backward(diffit_context *ctx, LowAttention<T> a, const diffit_tensor *table, float *dtime,
                       float *dtable) {
  if (isWindow(a.s)) return windowBackward(ctx, a, dtime, dtable);
  float *delta = (float *)scratch(ctx, 1, (size_t)(a.s.problems * a.s.tokens) * sizeof(float));
  if (!delta) return DIFFIT_OUT_OF_MEMORY;
  TRY(splitColumns(ctx, a, table));
  TRY(deltas(ctx, a, delta));
  a.delta = delta;
  TRY(gridBackward(ctx, a, dtable));
  return dtime ? timeGradient(ctx, a, dtime) : DIFFIT_OK;
}

}  // namespace

diffit_status joinTimeParts(diffit_context *ctx, const float *partials, float *dtime, const AttentionSizes &s,
                            int64_t parts) {
  const int64_t c = s.channels;
  return forEach(ctx, s.batch * 3 * c, [=] __device__(int64_t i) {
    const int64_t sample = i / (3 * c), column = i % (3 * c);
    double sum = 0;
    if (column < c || column >= 2 * c) {
      const float *from = partials + sample * parts * 2 * c + (column < c ? column : column - c);
      for (int64_t k = 0; k < parts; k++) sum += from[k * 2 * c];
    }
    dtime[i] = (float)sum;
  });
}

diffit_status lowAttention(diffit_context *ctx, const AttentionSizes &s, const diffit_tensor *qkv,
                           const diffit_tensor *time, const diffit_tensor *table, diffit_tensor *y,
                           diffit_tensor *lse) {
  const bool fits = (isWindow(s) && windowForwardFits(ctx, s)) || gridForwardFits(ctx, s, table);
  if (hasKernels(s) && isAligned(qkv) && isAligned(y) && fits)
    return qkv->dtype == DIFFIT_BF16 ? forward(ctx, arguments<bf16>(s, qkv, time, table, y, lse), table)
                                     : forward(ctx, arguments<f16>(s, qkv, time, table, y, lse), table);
  float *free = (float *)scratch(ctx, kScratchWide, (size_t)(numel(qkv) + numel(y) + 8) * sizeof(float));
  if (!free) return DIFFIT_OUT_OF_MEMORY;
  diffit_tensor wideQkv = wide(qkv, &free), wideY = wide(y, &free);
  TRY(cast_op(ctx, qkv, &wideQkv));
  TRY(attention_op(ctx, &wideQkv, time, table, &wideY, lse, s.heads, s.windowH, s.windowW, s.scale));
  return cast_op(ctx, &wideY, y);
}

diffit_status lowAttentionBackward(diffit_context *ctx, const AttentionSizes &s, const diffit_tensor *qkv,
                                   const diffit_tensor *time, const diffit_tensor *table, const diffit_tensor *y,
                                   const diffit_tensor *lse, const diffit_tensor *dy, diffit_tensor *dqkv,
                                   diffit_tensor *dtime, diffit_tensor *dtable) {
  const bool fits = isWindow(s) || gridBackwardFits(ctx, s, table, dtable);
  if (hasKernels(s) && fits && isAligned(qkv) && isAligned(y) && isAligned(dy) && isAligned(dqkv)) {
    const auto run = [&](auto a) {
      a.dy = (decltype(a.dy))dy->data;
      a.dqkv = (decltype(a.dqkv))dqkv->data;
      return backward(ctx, a, table, f32(dtime), f32(dtable));
    };
    return qkv->dtype == DIFFIT_BF16 ? run(arguments<bf16>(s, qkv, time, table, y, lse))
                                     : run(arguments<f16>(s, qkv, time, table, y, lse));
  }
  float *free = (float *)scratch(ctx, kScratchWide, (size_t)(2 * numel(qkv) + 2 * numel(y) + 16) * sizeof(float));
  if (!free) return DIFFIT_OUT_OF_MEMORY;
  diffit_tensor wideQkv = wide(qkv, &free), wideY = wide(y, &free), wideDy = wide(dy, &free),
                wideDqkv = wide(dqkv, &free);
  TRY(cast_op(ctx, qkv, &wideQkv));
  TRY(cast_op(ctx, y, &wideY));
  TRY(cast_op(ctx, dy, &wideDy));
  TRY(attention_backward_op(ctx, &wideQkv, time, table, &wideY, lse, &wideDy, &wideDqkv, dtime, dtable, s.heads,
                            s.windowH, s.windowW, s.scale));
  return cast_op(ctx, &wideDqkv, dqkv);
}

}  // namespace diffit
