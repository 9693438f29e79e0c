/*
 * Time-dependent attention (TMSA, SPEC section 1) in f32, in whole grids and windows read in place: softmax((q + q_t) k^T scale + bias) v + v_t.
 *
 * qkv [B, H, W, 3C], time [B, 3C], table [rows, heads] or [B, rows, heads], y [B, H, W, C], lse [B, heads, H, W].
 * A block goes through the keys of a window tile by tile for one tile of queries, with running maximum and sum (Milakov
 * and Gimelshein, "Online normalizer calculation for softmax"; Dao et al., "FlashAttention"): logits never leave the
 * chip. The bias is a table lookup per logit; v_t enters once per query, for rows of softmax sum to one; k_t has no effect.
 *
 * Memory traffic: qkv once (keys and values again per tile of queries, from the L2 cache), y once.
 */
#include "attention_tile.cuh"

namespace diffit {

diffit_status attentionSizes(diffit_context *ctx, const char *op, const diffit_tensor *qkv, const diffit_tensor *time,
                             const diffit_tensor *table, int64_t heads, int64_t windowH, int64_t windowW, double scale,
                             AttentionSizes *s) {
#define EXPECT(condition) \
  if (!(condition)) return fail(ctx, DIFFIT_INVALID, "%s: expected %s", op, #condition)
  EXPECT(qkv->dtype <= DIFFIT_F16 && qkv->ndim == 4);
  EXPECT(heads >= 1 && heads < 1 << 20 && qkv->shape[3] % (3 * heads) == 0);
  EXPECT(windowH >= 1 && windowH < 1 << 14 && windowW >= 1 && windowW < 1 << 14);
  EXPECT(qkv->shape[1] % windowH == 0 && qkv->shape[2] % windowW == 0);
  const int64_t batch = qkv->shape[0], rows = (2 * windowH - 1) * (2 * windowW - 1), limit = 1 << 24;
  EXPECT(batch < limit && qkv->shape[1] < limit && qkv->shape[2] < limit && qkv->shape[3] < limit);
  EXPECT(!time || isVector(time, batch * qkv->shape[3]));
  EXPECT(!table || table->ndim != 3 || table->shape[0] == batch);
  EXPECT(!table || isVector(table, (table->ndim == 3 ? batch : 1) * rows * heads));
  s->batch = (int)batch;
  s->height = (int)qkv->shape[1];
  s->width = (int)qkv->shape[2];
  s->channels = (int)(qkv->shape[3] / 3);
  s->heads = (int)heads;
  s->dim = s->channels / s->heads;
  EXPECT(s->dim <= 256);
#undef EXPECT
  s->windowH = (int)windowH;
  s->windowW = (int)windowW;
  s->tokens = s->windowH * s->windowW;
  s->windowsX = s->width / s->windowW;
  s->windows = s->windowsX * (s->height / s->windowH);
  s->tableRows = (int)rows;
  s->problems = (int64_t)s->batch * s->windows * s->heads;
  s->tableStep = table && table->ndim == 3 ? rows * heads : 0;
  s->vector = s->dim % 4 == 0 && (uintptr_t)qkv->data % 16 == 0;
  s->scale = (float)scale;
  return DIFFIT_OK;
}

size_t tableFloats(const AttentionSizes &s, const diffit_tensor *table) {
  return table ? (size_t)(s.tableStep ? s.batch : 1) * s.tableRows * s.heads : 0;
}

diffit_status splitTable(diffit_context *ctx, const AttentionSizes &s, const diffit_tensor *table, float *columns) {
  const float *from = f32(table);
  const int64_t rows = s.tableRows, heads = s.heads;
  return forEach(ctx, (int64_t)tableFloats(s, table), [=] __device__(int64_t i) {
    const int64_t row = i % rows, rest = i / rows, head = rest % heads, sample = rest / heads;
    columns[i] = from[(sample * rows + row) * heads + head];
  });
}

diffit_status foldTables(diffit_context *ctx, const float *partials, float *dtable, int64_t samples, int64_t parts,
                         int64_t heads, int64_t rows) {
  return forEach(ctx, samples * heads * rows, [=] __device__(int64_t i) {
    const int64_t row = i % rows, head = i / rows % heads, sample = i / rows / heads;
    double sum = 0;
    for (int64_t k = 0; k < parts; k++) sum += partials[((sample * parts + k) * heads + head) * rows + row];
    dtable[(sample * rows + row) * heads + head] = (float)sum;
  });
}

namespace {

template <class Shape>
struct ForwardShared {
  struct {
    typename Shape::Rows q, k, v;
    typename Shape::Square p;
  } problem[Shape::kProblems];
};

template <class Shape>
__global__ void __launch_bounds__(kThreads)
    attentionKernel(AttentionSizes s, const float *qkv, const float *time, const float *columns, float *y, float *lse) {
  constexpr int kTile = Shape::kTile, kPer = Shape::kPer, kSide = Shape::kSide;
  const Place<Shape> at;
  auto &shared = sharedMemory<ForwardShared<Shape>>().problem[at.problem];
  const int queryTiles = (s.tokens + kTile - 1) / kTile;
  const int64_t index = (int64_t)(blockIdx.x / queryTiles) * Shape::kProblems + at.problem;
  const int firstQuery = (int)(blockIdx.x % queryTiles) * kTile;
  const Problem p(s, imin(index, s.problems - 1));
  const int width = 3 * s.channels, channel = p.head * s.dim;
  const float *timeRow = time ? time + (int64_t)p.sample * width + channel : nullptr;
  const float *column = columns ? columns + p.sample * s.tableStep + (int64_t)p.head * s.tableRows : nullptr;
  loadTile<Shape>(shared.q, s, p, qkv, width, channel, firstQuery, timeRow, s.scale, at.thread);
  float top[kPer], total[kPer];
  typename Shape::Sums sums = {};
  for (int i = 0; i < kPer; i++) {
    top[i] = -INFINITY;
    total[i] = 0;
  }
  for (int firstKey = 0; firstKey < s.tokens; firstKey += kTile) {
    __syncthreads(); /* the tiles before are used up */
    loadTile<Shape>(shared.k, s, p, qkv, width, s.channels + channel, firstKey, nullptr, 1.0f, at.thread);
    loadTile<Shape>(shared.v, s, p, qkv, width, 2 * s.channels + channel, firstKey, nullptr, 1.0f, at.thread);
    __syncthreads();
    typename Shape::Logits logits;
    dots<Shape>(logits, shared.q, shared.k, at);
    addBias<Shape>(logits, s, column, firstQuery, firstKey, at);
    for (int i = 0; i < kPer; i++) {
      float highest = top[i];
      for (int j = 0; j < kPer; j++) highest = fmaxf(highest, logits[i][j]);
      for (int mask = kSide / 2; mask > 0; mask /= 2) highest = fmaxf(highest, shuffleXor(highest, mask));
      const float factor = expf(top[i] - highest);
      top[i] = highest;
      float sum = 0;
      for (int j = 0; j < kPer; j++) {
        const float e = expf(logits[i][j] - highest);
        sum += e;
        shared.p[at.row + kSide * i][at.column + kSide * j] = e;
      }
      for (int mask = kSide / 2; mask > 0; mask /= 2) sum += shuffleXor(sum, mask);
      total[i] = total[i] * factor + sum;
      for (int c = 0; c < Shape::kColumns; c++) sums[i][c] *= factor;
    }
    __syncthreads();
    accumulate<Shape>(sums, shared.p, shared.v, at);
  }
  if (index >= s.problems) return;
  for (int i = 0; i < kPer; i++) {
    const int query = firstQuery + at.row + kSide * i;
    if (query >= s.tokens) continue;
    float *to = y + p.token(s, query) * s.channels + channel;
    for (int c = 0; c < Shape::kColumns; c++) {
      const int d = at.column + kSide * c;
      if (d < s.dim) to[d] = sums[i][c] / total[i] + (timeRow ? timeRow[2 * s.channels + d] : 0.0f);
    }
    if (lse && at.column == 0) lse[p.row(s, query)] = top[i] + logf(total[i]);
  }
}

}  // namespace

diffit_status attention_op(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                           const diffit_tensor *table, diffit_tensor *y, diffit_tensor *lse, int64_t heads,
                           int64_t windowH, int64_t windowW, double scale) {
  AttentionSizes s;
  TRY(attentionSizes(ctx, __func__, qkv, time, table, heads, windowH, windowW, scale, &s));
  const int64_t gridTokens = (int64_t)s.height * s.width;
  REQUIRE(y->dtype == qkv->dtype && numel(y) == s.batch * gridTokens * s.channels);
  REQUIRE(!lse || isVector(lse, s.batch * gridTokens * s.heads));
  if (numel(qkv) == 0) return DIFFIT_OK;
  if (qkv->dtype != DIFFIT_F32) return lowAttention(ctx, s, qkv, time, table, y, lse);
  float *columns = nullptr;
  if (table) {
    columns = (float *)scratch(ctx, 0, tableFloats(s, table) * sizeof(float));
    if (!columns) return DIFFIT_OUT_OF_MEMORY;
    TRY(splitTable(ctx, s, table, columns));
  }
  return withShape<ForwardShared>(ctx, s, [&](auto shape) {
    using Shape = decltype(shape);
    const int64_t blocks = ceilDiv(s.problems, Shape::kProblems) * ceilDiv(s.tokens, Shape::kTile);
    if (blocks >= (int64_t)1 << 31) return fail(ctx, DIFFIT_UNSUPPORTED, "attention: more than 2^31 blocks");
    return launch(ctx, attentionKernel<Shape>, dim3((unsigned)blocks), dim3(kThreads), sizeof(ForwardShared<Shape>), s,
                  f32(qkv), f32(time), columns, f32(y), f32(lse));
  });
}

}  // namespace diffit
