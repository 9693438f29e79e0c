/*
 * The gradient of attention in f32 (SPEC section 1), without atomics: the same bits on every run.
 *
 *   P = exp(S - lse), dP = dy v^T, dS = P (dP - delta), delta = row sums of dy (y - v_t)
 *   dq = scale dS k, dk = scale dS^T (q + q_t), dv = P^T dy, dbias = dS, dq_t = sum of dq, dv_t = sum of dy over tokens
 *
 * Logits are computed again in each of three kernels, which is cheaper than storing them: one block per tile of queries (dq), one
 * per tile of keys (dk, dv), and one per pair of tiles of a head that keeps its sum of dS in registers while it goes
 * through samples and windows, then folds it onto table rows once (dtable). Partial tables are added in order in f64.
 *
 * Memory traffic: qkv, y, dy once per kernel (more per tile, from the L2 cache), dqkv once.
 */
#include "attention_tile.cuh"

namespace diffit {
namespace {

struct Gradient {
  AttentionSizes s;
  const float *qkv, *time, *columns, *y, *lse, *dy, *delta;
  float *dqkv;

  __device__ int width() const { return 3 * s.channels; }
  __device__ const float *timeRow(const Problem &p) const {
    return time ? time + (int64_t)p.sample * 3 * s.channels + p.head * s.dim : nullptr;
  }
  __device__ const float *column(const Problem &p) const {
    return columns ? columns + p.sample * s.tableStep + (int64_t)p.head * s.tableRows : nullptr;
  }
};

/* The rows of one problem that a block works on. */
template <class Shape>
struct GradientTiles {
  typename Shape::Rows q, k, v, dy;
  typename Shape::Square square;
};
template <class Shape>
struct GradientShared {
  GradientTiles<Shape> problem[Shape::kProblems];
};

template <class Shape>
__device__ void loadQueries(GradientTiles<Shape> &to, const Gradient &g, const Problem &p, int first, int thread) {
  const int channel = p.head * g.s.dim;
  loadTile<Shape>(to.q, g.s, p, g.qkv, g.width(), channel, first, g.timeRow(p), g.s.scale, thread);
  loadTile<Shape>(to.dy, g.s, p, g.dy, g.s.channels, channel, first, nullptr, 1.0f, thread);
}
template <class Shape>
__device__ void loadKeys(GradientTiles<Shape> &to, const Gradient &g, const Problem &p, int first, int thread) {
  const int channel = p.head * g.s.dim;
  loadTile<Shape>(to.k, g.s, p, g.qkv, g.width(), g.s.channels + channel, first, nullptr, 1.0f, thread);
  loadTile<Shape>(to.v, g.s, p, g.qkv, g.width(), 2 * g.s.channels + channel, first, nullptr, 1.0f, thread);
}

/* p = P and ds = dS of a pair of tiles; zeros outside the window. */
template <class Shape>
__device__ void slopes(const GradientTiles<Shape> &tiles, const Gradient &g, const Problem &problem, int firstQuery,
                       int firstKey, const Place<Shape> &at, typename Shape::Logits &p, typename Shape::Logits &ds) {
  dots<Shape>(p, tiles.q, tiles.k, at);
  addBias<Shape>(p, g.s, g.column(problem), firstQuery, firstKey, at);
  dots<Shape>(ds, tiles.dy, tiles.v, at);
  for (int i = 0; i < Shape::kPer; i++) {
    const int query = firstQuery + at.row + Shape::kSide * i;
    const bool inside = query < g.s.tokens;
    const int64_t row = inside ? problem.row(g.s, query) : 0;
    const float lse = inside ? g.lse[row] : INFINITY, delta = inside ? g.delta[row] : 0.0f;
    for (int j = 0; j < Shape::kPer; j++) {
      p[i][j] = expf(p[i][j] - lse);
      ds[i][j] = p[i][j] * (ds[i][j] - delta);
    }
  }
}

/* Sums of a tile of tokens to part (0 q, 1 k, 2 v) of dqkv. */
template <class Shape>
__device__ void storeTile(const Gradient &g, const Problem &p, int part, int first, const typename Shape::Sums &sums,
                          float scale, const Place<Shape> &at) {
  for (int i = 0; i < Shape::kPer; i++) {
    const int token = first + at.row + Shape::kSide * i;
    if (token >= g.s.tokens) continue;
    float *to = g.dqkv + p.token(g.s, token) * g.width() + part * g.s.channels + p.head * g.s.dim;
    for (int c = 0; c < Shape::kColumns; c++) {
      const int d = at.column + Shape::kSide * c;
      if (d < g.s.dim) to[d] = sums[i][c] * scale;
    }
  }
}

/* blockIdx.x: tiles of queries, then groups of problems. */
template <class Shape>
__global__ void __launch_bounds__(kThreads) queryGradientKernel(Gradient g) {
  constexpr int kTile = Shape::kTile;
  const Place<Shape> at;
  GradientTiles<Shape> &tiles = sharedMemory<GradientShared<Shape>>().problem[at.problem];
  const int queryTiles = (g.s.tokens + kTile - 1) / kTile;
  const int64_t index = (int64_t)(blockIdx.x / queryTiles) * Shape::kProblems + at.problem;
  const int firstQuery = (int)(blockIdx.x % queryTiles) * kTile;
  const Problem problem(g.s, imin(index, g.s.problems - 1));
  loadQueries<Shape>(tiles, g, problem, firstQuery, at.thread);
  typename Shape::Sums dq = {};
  for (int firstKey = 0; firstKey < g.s.tokens; firstKey += kTile) {
    __syncthreads();
    loadKeys<Shape>(tiles, g, problem, firstKey, at.thread);
    __syncthreads();
    typename Shape::Logits p, ds;
    slopes<Shape>(tiles, g, problem, firstQuery, firstKey, at, p, ds);
    for (int i = 0; i < Shape::kPer; i++)
      for (int j = 0; j < Shape::kPer; j++)
        tiles.square[at.row + Shape::kSide * i][at.column + Shape::kSide * j] = ds[i][j];
    __syncthreads();
    accumulate<Shape>(dq, tiles.square, tiles.k, at);
  }
  if (index < g.s.problems) storeTile<Shape>(g, problem, 0, firstQuery, dq, g.s.scale, at);
}

/* blockIdx.x: tiles of keys, then groups of problems. */
template <class Shape>
__global__ void __launch_bounds__(kThreads) keyGradientKernel(Gradient g) {
  constexpr int kTile = Shape::kTile;
  const Place<Shape> at;
  GradientTiles<Shape> &tiles = sharedMemory<GradientShared<Shape>>().problem[at.problem];
  const int keyTiles = (g.s.tokens + kTile - 1) / kTile;
  const int64_t index = (int64_t)(blockIdx.x / keyTiles) * Shape::kProblems + at.problem;
  const int firstKey = (int)(blockIdx.x % keyTiles) * kTile;
  const Problem problem(g.s, imin(index, g.s.problems - 1));
  loadKeys<Shape>(tiles, g, problem, firstKey, at.thread);
  typename Shape::Sums dk = {}, dv = {};
  for (int firstQuery = 0; firstQuery < g.s.tokens; firstQuery += kTile) {
    __syncthreads();
    loadQueries<Shape>(tiles, g, problem, firstQuery, at.thread);
    __syncthreads();
    typename Shape::Logits p, ds;
    slopes<Shape>(tiles, g, problem, firstQuery, firstKey, at, p, ds);
    for (int i = 0; i < Shape::kPer; i++)
      for (int j = 0; j < Shape::kPer; j++)
        tiles.square[at.column + Shape::kSide * j][at.row + Shape::kSide * i] = p[i][j];
    __syncthreads();
    accumulate<Shape>(dv, tiles.square, tiles.dy, at);
    __syncthreads();
    for (int i = 0; i < Shape::kPer; i++)
      for (int j = 0; j < Shape::kPer; j++)
        tiles.square[at.column + Shape::kSide * j][at.row + Shape::kSide * i] = ds[i][j];
    __syncthreads();
    accumulate<Shape>(dk, tiles.square, tiles.q, at);
  }
  if (index >= g.s.problems) return;
  storeTile<Shape>(g, problem, 1, firstKey, dk, 1.0f, at); /* the scale is in q */
  storeTile<Shape>(g, problem, 2, firstKey, dv, 1.0f, at);
}

/* ---- the table's gradient ------------------------------------------------------------------------------------ */

/* Chunks of (sample, window) that one block goes through; with a table per sample a chunk is (part of) one sample. */
struct Chunks {
  int tiles; /* along one side */
  int64_t perHead, size, count; /* (sample, window) pairs of a head; of a chunk; chunks */
};

/* Rows of the table that a pair of tiles meets, for a fold that looks at no others: dy in [first, last] of whole rows of dx. */
struct RowRange {
  int first, last;
  __device__ RowRange(const AttentionSizes &s, int tile, int firstQuery, int firstKey) {
    const int lastQuery = (int)imin(s.tokens, firstQuery + tile) - 1,
              lastKey = (int)imin(s.tokens, firstKey + tile) - 1;
    const int length = 2 * s.windowW - 1;
    first = (firstQuery / s.windowW - lastKey / s.windowW + s.windowH - 1) * length;
    last = (lastQuery / s.windowW - firstKey / s.windowW + s.windowH) * length;
  }
};

/* partials [chunks, tiles of queries, heads, tableRows]: blockIdx.x tiles of queries, y heads, z chunks. A block takes the
   tiles of keys one after another. */
template <class Shape>
__global__ void __launch_bounds__(kThreads) tableGradientKernel(Gradient g, Chunks chunks, float *partials) {
  constexpr int kTile = Shape::kTile, kPer = Shape::kPer, kSide = Shape::kSide;
  const Place<Shape> at;
  GradientShared<Shape> &shared = sharedMemory<GradientShared<Shape>>();
  GradientTiles<Shape> &tiles = shared.problem[at.problem];
  const int firstQuery = (int)blockIdx.x * kTile, head = (int)blockIdx.y;
  const int64_t begin = (int64_t)blockIdx.z * chunks.size, end = imin(chunks.perHead, begin + chunks.size);
  float *to = partials + (((int64_t)blockIdx.z * chunks.tiles + blockIdx.x) * g.s.heads + head) * g.s.tableRows;
  for (int row = (int)threadIdx.x; row < g.s.tableRows; row += kThreads) to[row] = 0;
  for (int firstKey = 0; firstKey < g.s.tokens; firstKey += kTile) {
    typename Shape::Logits sums = {};
    for (int64_t group = begin; group < end; group += Shape::kProblems) {
      const int64_t index = group + at.problem;
      const Problem problem(g.s, head * chunks.perHead + imin(index, end - 1));
      __syncthreads();
      loadQueries<Shape>(tiles, g, problem, firstQuery, at.thread);
      loadKeys<Shape>(tiles, g, problem, firstKey, at.thread);
      __syncthreads();
      typename Shape::Logits p, ds;
      slopes<Shape>(tiles, g, problem, firstQuery, firstKey, at, p, ds);
      if (index < end)
        for (int i = 0; i < kPer; i++)
          for (int j = 0; j < kPer; j++) sums[i][j] += ds[i][j];
    }
    __syncthreads();
    for (int i = 0; i < kPer; i++)
      for (int j = 0; j < kPer; j++) tiles.square[at.row + kSide * i][at.column + kSide * j] = sums[i][j];
    __syncthreads();
    const RowRange range(g.s, kTile, firstQuery, firstKey);
    for (int row = range.first + (int)threadIdx.x; row < range.last; row += kThreads) {
      const int dy = row / (2 * g.s.windowW - 1) - g.s.windowH + 1, dx = row % (2 * g.s.windowW - 1) - g.s.windowW + 1;
      float sum = 0;
      for (int i = 0; i < kTile && firstQuery + i < g.s.tokens; i++) {
        const int y = (firstQuery + i) / g.s.windowW - dy, x = (firstQuery + i) % g.s.windowW - dx;
        const int j = y * g.s.windowW + x - firstKey;
        if (x < 0 || x >= g.s.windowW || j < 0 || j >= kTile || firstKey + j >= g.s.tokens) continue;
        for (int k = 0; k < Shape::kProblems; k++) sum += shared.problem[k].square[i][j];
      }
      to[row] += sum;
    }
  }
}

template <class Shape>
diffit_status tableGradient(diffit_context *ctx, const Gradient &g, float *dtable) {
  const AttentionSizes &s = g.s;
  Chunks chunks;
  chunks.tiles = (int)ceilDiv(s.tokens, Shape::kTile);
  chunks.perHead = (int64_t)s.windows * s.batch;
  chunks.size =
      s.windows; /* a chunk per sample, where each has its own table; else enough for two blocks per multiprocessor */
  if (!s.tableStep) {
    const int64_t wanted = ceilDiv(2 * (int64_t)ctx->about.multiProcessorCount, (int64_t)s.heads * chunks.tiles);
    chunks.size = ceilDiv(chunks.perHead, imin(wanted, ceilDiv(chunks.perHead, Shape::kProblems)));
  }
  chunks.count = ceilDiv(chunks.perHead, chunks.size);
  if (s.heads > 65535 || chunks.count > 65535)
    return fail(ctx, DIFFIT_UNSUPPORTED, "attention_backward: more than 65535 heads, or samples with a table each");
  const int64_t samples = s.tableStep ? s.batch : 1, parts = chunks.count * chunks.tiles;
  float *partials = (float *)scratch(ctx, 2, (size_t)(parts * s.heads * s.tableRows) * sizeof(float));
  if (!partials) return DIFFIT_OUT_OF_MEMORY;
  const dim3 grid((unsigned)chunks.tiles, (unsigned)s.heads, (unsigned)chunks.count);
  TRY(launch(ctx, tableGradientKernel<Shape>, grid, dim3(kThreads), sizeof(GradientShared<Shape>), g, chunks,
             partials));
  return foldTables(ctx, partials, dtable, samples, parts / samples, s.heads, s.tableRows);
}

/* ---- the time token's gradient ------------------------------------------------------------------------------- */

constexpr int64_t kTokensPerPart = 64;

/* dtime [B, 3C]: sums over tokens of dq and of dy; zeros for k. */
diffit_status timeGradient(diffit_context *ctx, const Gradient &g, float *dtime) {
  const int64_t c = g.s.channels, tokens = (int64_t)g.s.height * g.s.width, batch = g.s.batch;
  const int64_t parts = ceilDiv(tokens, kTokensPerPart);
  float *partials = (float *)scratch(ctx, 2, (size_t)(batch * parts * 2 * c) * sizeof(float));
  if (!partials) return DIFFIT_OUT_OF_MEMORY;
  const float *dqkv = g.dqkv, *dy = g.dy;
  TRY(forEach(ctx, batch * parts * 2 * c, [=] __device__(int64_t i) {
    const int64_t column = i % (2 * c), part = i / (2 * c) % parts, sample = i / (2 * c) / parts;
    const int64_t begin = part * kTokensPerPart, end = imin(tokens, begin + kTokensPerPart);
    const int64_t step = column < c ? 3 * c : c;
    const float *from = (column < c ? dqkv + column : dy + column - c) + sample * tokens * step;
    float sum = 0;
    for (int64_t t = begin; t < end; t++) sum += from[t * step];
    partials[i] = sum;
  }));
  return joinTimeParts(ctx, partials, dtime, g.s, parts);
}

/* delta [B, heads, H, W] = dy . (y - v_t) per head: a warp per token and head. */
diffit_status deltas(diffit_context *ctx, const Gradient &g, float *delta) {
  const int64_t tokens = (int64_t)g.s.height * g.s.width, heads = g.s.heads, dim = g.s.dim;
  const float *y = g.y, *dy = g.dy, *time = g.time;
  return eachRow(ctx, g.s.batch * tokens * heads, [=] __device__(int64_t row, int lane) {
    const int64_t head = row % heads, token = row / heads, sample = token / tokens;
    const float *v = time ? time + (sample * 3 + 2) * heads * dim + head * dim : nullptr;
    float sum = 0;
    for (int64_t d = lane; d < dim; d += 32) sum += dy[row * dim + d] * (y[row * dim + d] - (v ? v[d] : 0.0f));
    sum = warpSum(sum);
    if (lane == 0) delta[(sample * heads + head) * tokens + (token - sample * tokens)] = sum;
  });
}

template <class Shape>
diffit_status gradient(diffit_context *ctx, const Gradient &g, float *dtime, float *dtable) {
  const int64_t blocks = ceilDiv(g.s.problems, Shape::kProblems) * ceilDiv(g.s.tokens, Shape::kTile);
  if (blocks >= (int64_t)1 << 31) return fail(ctx, DIFFIT_UNSUPPORTED, "attention_backward: more than 2^31 blocks");
  const dim3 grid((unsigned)blocks);
  TRY(launch(ctx, queryGradientKernel<Shape>, grid, dim3(kThreads), sizeof(GradientShared<Shape>), g));
  TRY(launch(ctx, keyGradientKernel<Shape>, grid, dim3(kThreads), sizeof(GradientShared<Shape>), g));
  if (dtable) TRY(tableGradient<Shape>(ctx, g, dtable));
  return dtime ? timeGradient(ctx, g, dtime) : DIFFIT_OK;
}

}  // namespace

diffit_status attention_backward_op(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                    const diffit_tensor *table, const diffit_tensor *y, const diffit_tensor *lse,
                                    const diffit_tensor *dy, diffit_tensor *dqkv, diffit_tensor *dtime,
                                    diffit_tensor *dtable, int64_t heads, int64_t windowH, int64_t windowW,
                                    double scale) {
  Gradient g;
  AttentionSizes &s = g.s;
  TRY(attentionSizes(ctx, __func__, qkv, time, table, heads, windowH, windowW, scale, &s));
  const int64_t allTokens = (int64_t)s.batch * s.height * s.width;
  REQUIRE(y->dtype == qkv->dtype && numel(y) == allTokens * s.channels);
  REQUIRE(isVector(lse, allTokens * s.heads));
  REQUIRE(dy->dtype == qkv->dtype && numel(dy) == numel(y));
  REQUIRE(dqkv->dtype == qkv->dtype && numel(dqkv) == numel(qkv));
  REQUIRE(!dtime || isVector(dtime, (int64_t)s.batch * 3 * s.channels));
  REQUIRE(!dtable || isVector(dtable, (s.tableStep ? s.batch : 1) * (int64_t)s.tableRows * s.heads));
  if (numel(qkv) == 0) {
    for (const diffit_tensor *t : {dtime, dtable})
      if (t) TRY(check(ctx, cudaMemsetAsync(t->data, 0, (size_t)numel(t) * sizeof(float), ctx->stream), "Zeros"));
    return DIFFIT_OK;
  }
  if (qkv->dtype != DIFFIT_F32) return lowAttentionBackward(ctx, s, qkv, time, table, y, lse, dy, dqkv, dtime, dtable);
  float *columns = nullptr, *delta = (float *)scratch(ctx, 1, (size_t)(allTokens * s.heads) * sizeof(float));
  if (table) {
    columns = (float *)scratch(ctx, 0, tableFloats(s, table) * sizeof(float));
    if (!columns) return DIFFIT_OUT_OF_MEMORY;
    TRY(splitTable(ctx, s, table, columns));
  }
  if (!delta) return DIFFIT_OUT_OF_MEMORY;
  s.vector = s.vector && (uintptr_t)dy->data % 16 == 0;
  g.qkv = f32(qkv);
  g.time = f32(time);
  g.columns = columns;
  g.y = f32(y);
  g.lse = f32(lse);
  g.dy = f32(dy);
  g.delta = delta;
  g.dqkv = f32(dqkv);
  TRY(deltas(ctx, g, delta));
  return withShape<GradientShared>(
      ctx, s, [&](auto shape) { return gradient<decltype(shape)>(ctx, g, f32(dtime), f32(dtable)); });
}

}  // namespace diffit
