/*
 * The gradient of attention.h, with respect to qkv, the time token and the bias table, from y, its gradient and the
 * saved log-sum-exp. With P = exp(logits - lse) and dP = dy v^T, per sample, window and head:
 *
 *     dS = P (dP - delta), delta[i] = sum_c dy[i, c] (y - v_t)[i, c]
 *     dq = scale dS k,  dk = dS^T scale (q + q_t),  dv = P^T dy
 *     dq_t = sum of dq over the sample's tokens,  dk_t = 0,  dv_t = sum of dy,  dB = dS summed along table rows
 *
 * One task takes all of a window and head (several small windows of a sample), a tile of queries against a block of
 * keys at a time, as forward does; nothing of size tokens x tokens leaves the cache. Each task keeps its part of the
 * table's and the time token's gradient; parts are added in the order of the tasks, so the bits do not depend on
 * threads. Of a small window dS is summed over the task's windows and folded into table rows once.
 */
#ifndef DIFFIT_CPU_ATTENTION_BACKWARD_H
#define DIFFIT_CPU_ATTENTION_BACKWARD_H

/* Memory of one thread beside forward's, whose m.sum holds dq here. */
struct GradientScratch {
  AttentionScratch m;
  float *dkeys, *dvalues;     /* [tokens, padded] */
  float *queryRows, *dyRows;  /* [tile, padded] */
  float *dyColumns;           /* [padded, tile] */
  float *dlogits;             /* [kKeyBlock, tile] */
  float *windowSum;           /* dS of a small window: per tile [tokens, tile] */
  float *delta, *scales;      /* [tile] */
  float *zeros;               /* [padded] */
};
static int64_t carveGradient(const AttentionSizes &s, float *base, GradientScratch *g) {
  const int64_t start = carveAttention(s, base, &g->m) / (int64_t)sizeof(float);
  Carver carver = {base, start};
  g->dkeys = carver.take(s.tokens * s.padded);
  g->dvalues = carver.take(s.tokens * s.padded);
  g->queryRows = carver.take(kTileQueries * s.padded);
  g->dyRows = carver.take(kTileQueries * s.padded);
  g->dyColumns = carver.take(s.padded * kTileQueries);
  g->dlogits = carver.take(kKeyBlock * kTileQueries);
  g->windowSum = carver.take(s.tokens <= kSmallWindow ? s.tokens * roundUp(s.tokens, kTileQueries) : 0);
  g->delta = carver.take(kTileQueries);
  g->scales = carver.take(kTileQueries);
  g->zeros = carver.take(s.padded);
  return carver.used * (int64_t)sizeof(float);
}

/* g.delta of a tile whose dy is in g.dyRows; y rows lie `stride` apart. */
static void tileDelta(const AttentionSizes &s, const GradientScratch &g, const float *y, int64_t stride,
                      const int64_t *offsets, int64_t ni) {
  for (int64_t first = 0; first < ni; first += kLanes) {
    vf b[kLanes];
    for (int64_t r = 0; r < kLanes; r++) {
      const int64_t t = first + r;
      b[r] = set1(0.0f);
      if (t >= ni) continue;
      for (int64_t c = 0; c < s.dim; c += kLanes)
        b[r] += load(g.dyRows + t * s.padded + c) *
                (loadColumns(y + offsets[t] * stride, c, s.dim) - load(g.m.timeV + c));
    }
    transposeSquare(b);
    for (int64_t r = 1; r < kLanes; r++) b[0] += b[r];
    store(g.delta + first, b[0]);
  }
}

/* Adds dS[key, query] (row length ld) of a tile and key block to a head's table column. */
static void foldTable(const AttentionSizes &s, const float *dlogits, int64_t ld, int64_t i0, int64_t ni, int64_t j0,
                      int64_t nj, float *column) {
  forEachTableRun(s, i0, ni, j0, nj, [&](int64_t j, int64_t i, int64_t length, int64_t row) {
    const float *from = dlogits + (j - j0) * ld + i - i0;
    for (int64_t x = 0; x < length; x += kLanes)
      storeColumns(column + row, x, length, loadColumns(column + row, x, length) + loadColumns(from, x, length));
  });
}

/* One tile of queries against all keys: g.m.sum = dq^T / scale, and what it adds to dkeys, dvalues and the bias. */
template <int VECTORS>
static void gradientTile(const AttentionSizes &s, const GradientScratch &g, const float *column, float *dcolumn,
                         int64_t i0, int64_t ni) {
  constexpr int64_t ld = VECTORS * kLanes;
  const AttentionScratch &m = g.m;
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kKeyBlock) {
    const int64_t nj = imin(kKeyBlock, s.tokens - j0);
    tileLogits<VECTORS>(s, m, column, i0, ni, j0, nj);
    productRows<VECTORS, false>(nj, s.dim, m.values + j0 * s.padded, s.padded, g.dyColumns, ld, nullptr, nullptr,
                                g.dlogits, ld);
    for (int64_t j = 0; j < nj; j++)
      for (int v = 0; v < VECTORS; v++) {
        const int64_t at = j * ld + v * kLanes;
        const vf p = vexp(load(m.logits + at) - load(m.lse + v * kLanes));
        store(m.logits + at, p);
        store(g.dlogits + at, p * (load(g.dlogits + at) - load(g.delta + v * kLanes)));
      }
    productRows<VECTORS, true>(s.dim, nj, m.keys + j0 * s.padded, s.padded, g.dlogits, ld, j0 ? m.sum : nullptr,
                               nullptr, m.sum, ld);
    productAdd(nj, s.padded, ni, m.logits, ld, g.dyRows, s.padded, g.dvalues + j0 * s.padded, s.padded);
    productAdd(nj, s.padded, ni, g.dlogits, ld, g.queryRows, s.padded, g.dkeys + j0 * s.padded, s.padded);
    if (!dcolumn) continue;
    if (s.tokens > kSmallWindow) {
      foldTable(s, g.dlogits, ld, i0, ni, j0, nj, dcolumn);
    } else {
      float *sum = g.windowSum + i0 * s.tokens;
      for (int64_t at = 0; at < nj * ld; at += kLanes) store(sum + at, load(sum + at) + load(g.dlogits + at));
    }
  }
}

static void gradientTileOf(int vectors, const AttentionSizes &s, const GradientScratch &g, const float *column,
                           float *dcolumn, int64_t i0, int64_t ni) {
  if (vectors == 1) gradientTile<1>(s, g, column, dcolumn, i0, ni);
  if (vectors == 2) gradientTile<2>(s, g, column, dcolumn, i0, ni);
  if (kTileVectors == 4 && vectors == 3) gradientTile<kTileVectors == 4 ? 3 : 1>(s, g, column, dcolumn, i0, ni);
  if (kTileVectors == 4 && vectors == 4) gradientTile<kTileVectors>(s, g, column, dcolumn, i0, ni);
}

/* Everything of one call that a task reads or writes. */
struct GradientCall {
  AttentionSizes s;
  AttentionTasks tasks;
  const float *qkv, *time, *columns, *y, *lse, *dy;
  float *dqkv;
  float *timeParts;  /* [task, 2, padded]: sums of dq and of dy over the task's tokens */
  float *tableParts; /* [task, tableRows], or NULL: not wanted */
  const int64_t *offsets;
  float scale;
};

/* The gradient of one window and head; dqSum and dySum [padded] and dcolumn [tableRows] are added to. */
static void gradientWindow(const GradientCall &call, const GradientScratch &g, const AttentionPlace &place,
                           int64_t window, float *dqSum, float *dySum, float *dcolumn) {
  const AttentionSizes &s = call.s;
  const int64_t stride = 3 * s.channels, gridTokens = s.height * s.width, corner = windowOrigin(s, window);
  const int64_t first = place.sample * gridTokens + corner, channel = place.head * s.dim;
  const float *q = call.qkv + first * stride + channel;
  float *dq = call.dqkv + first * stride + channel;
  const float *y = call.y + first * s.channels + channel, *dy = call.dy + first * s.channels + channel;
  const float *lse = call.lse + (place.sample * s.heads + place.head) * gridTokens + corner;
  const float *column = call.columns ? call.columns + place.head * s.tableRows : nullptr;

  gatherRows(s, q + s.channels, stride, call.offsets, s.tokens, g.m.keys);
  gatherRows(s, q + 2 * s.channels, stride, call.offsets, s.tokens, g.m.values);
  memset(g.dkeys, 0, (size_t)(s.tokens * s.padded) * sizeof(float));
  memset(g.dvalues, 0, (size_t)(s.tokens * s.padded) * sizeof(float));
  for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, s.tokens - i0);
    const int64_t *offsets = call.offsets + i0;
    const int vectors = tileVectors(ni);
    packTile(s, q, stride, offsets, ni, g.m.timeQ, call.scale, vectors, g.m.queries, g.queryRows);
    packTile(s, dy, s.channels, offsets, ni, g.zeros, 1.0f, vectors, g.dyColumns, g.dyRows);
    tileDelta(s, g, y, s.channels, offsets, ni);
    for (int64_t i = 0; i < vectors * kLanes; i++) g.m.lse[i] = i < ni ? lse[offsets[i]] : 0.0f;
    gradientTileOf(vectors, s, g, column, dcolumn, i0, ni);
    unpackTile(s, g.m.sum, vectors, g.scales, g.zeros, ni, dq, stride, offsets, dqSum);
    for (int64_t i = 0; i < ni; i++)
      for (int64_t c = 0; c < s.padded; c += kLanes)
        store(dySum + c, load(dySum + c) + load(g.dyRows + i * s.padded + c));
  }
  scatterRows(s, g.dkeys, s.tokens, dq + s.channels, stride, call.offsets);
  scatterRows(s, g.dvalues, s.tokens, dq + 2 * s.channels, stride, call.offsets);
}

static void gradientTask(const GradientCall &call, const GradientScratch &g, int64_t index) {
  const AttentionSizes &s = call.s;
  const AttentionPlace place = attentionPlace(s, call.tasks, index);
  const bool small = s.tokens <= kSmallWindow;
  const int64_t windowSumSize = s.tokens * roundUp(s.tokens, kLanes);
  float *dqSum = call.timeParts + index * 2 * s.padded, *dySum = dqSum + s.padded;
  float *dcolumn = call.tableParts ? call.tableParts + index * s.tableRows : nullptr;
  memset(dqSum, 0, (size_t)(2 * s.padded) * sizeof(float));
  memset(g.zeros, 0, (size_t)s.padded * sizeof(float));
  for (int64_t i = 0; i < kTileQueries; i += kLanes) store(g.scales + i, set1(call.scale));
  loadTime(s, call.time, place.sample, 0, place.head, g.m.timeQ);
  loadTime(s, call.time, place.sample, 2, place.head, g.m.timeV);
  if (call.columns && small) expandSmallBias(s, call.columns + place.head * s.tableRows, g.m.bias);
  if (dcolumn) memset(dcolumn, 0, (size_t)s.tableRows * sizeof(float));
  if (dcolumn && small) memset(g.windowSum, 0, (size_t)windowSumSize * sizeof(float));

  for (int64_t w = place.firstWindow; w < place.lastWindow; w++)
    gradientWindow(call, g, place, w, dqSum, dySum, dcolumn);

  if (!dcolumn || !small) return;
  for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, s.tokens - i0);
    foldTable(s, g.windowSum + i0 * s.tokens, tileVectors(ni) * kLanes, i0, ni, 0, s.tokens, dcolumn);
  }
}

/* dtime [batch, 3, channels] and dtable [tableRows, heads] from the parts of all tasks, in their order. */
static void foldTimeParts(const GradientCall &call, float *dtime) {
  const AttentionSizes &s = call.s;
  memset(dtime, 0, (size_t)(s.batch * 3 * s.channels) * sizeof(float));
  for (int64_t task = 0; task < call.tasks.total; task++) {
    const AttentionPlace place = attentionPlace(s, call.tasks, task);
    for (int64_t part = 0; part < 2; part++) {
      const float *from = call.timeParts + (task * 2 + part) * s.padded;
      float *to = dtime + (place.sample * 3 + 2 * part) * s.channels + place.head * s.dim;
      for (int64_t c = 0; c < s.dim; c++) to[c] += from[c];
    }
  }
}
static void foldTableParts(diffit_context *ctx, const GradientCall &call, float *dtable) {
  const AttentionSizes &s = call.s;
  parallelChunks(ctx, s.tableRows, 64, [&](int64_t begin, int64_t end, int) {
    float sum[64];
    for (int64_t h = 0; h < s.heads; h++) {
      memset(sum, 0, sizeof sum);
      for (int64_t task = h; task < call.tasks.total; task += s.heads)
        for (int64_t r = begin; r < end; r++) sum[r - begin] += call.tableParts[task * s.tableRows + r];
      for (int64_t r = begin; r < end; r++) dtable[r * s.heads + h] = sum[r - begin];
    }
  });
}

static diffit_status attention_backward_op(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                           const diffit_tensor *table, const diffit_tensor *y,
                                           const diffit_tensor *lse, const diffit_tensor *dy, diffit_tensor *dqkv,
                                           diffit_tensor *dtime, diffit_tensor *dtable, int64_t heads, int64_t windowH,
                                           int64_t windowW, double scale) {
  const diffit_status status = checkAttention(ctx, "attention_backward", qkv, time, table, heads, windowH, windowW);
  if (status != DIFFIT_OK) return status;
  GradientCall call;
  const AttentionSizes &s = call.s = attentionSizes(qkv, heads, windowH, windowW);
  const int64_t allTokens = s.batch * s.height * s.width;
  REQUIRE_F32(y);
  REQUIRE_F32(lse);
  REQUIRE_F32(dy);
  REQUIRE_F32(dqkv);
  REQUIRE(numel(y) == allTokens * s.channels);
  REQUIRE(numel(lse) == allTokens * s.heads);
  REQUIRE(numel(dy) == numel(y));
  REQUIRE(numel(dqkv) == numel(qkv));
  if (dtime) {
    REQUIRE_F32(dtime);
    REQUIRE(numel(dtime) == s.batch * 3 * s.channels);
  }
  if (dtable) {
    REQUIRE_F32(dtable);
    REQUIRE(numel(dtable) == s.tableRows * s.heads);
  }

  call.tasks = attentionTasks(s, false);
  call.qkv = f32(qkv);
  call.time = time ? f32(time) : nullptr;
  call.y = f32(y);
  call.lse = f32(lse);
  call.dy = f32(dy);
  call.dqkv = f32(dqkv);
  call.scale = (float)scale;
  int64_t *offsets = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)s.tokens * sizeof(int64_t));
  float *columns = nullptr;
  call.tableParts = nullptr;
  if (table) columns = (float *)diffit_cpu_shared(ctx, 1, (size_t)(heads * s.tableRows + kLanes) * sizeof(float));
  call.timeParts = (float *)diffit_cpu_shared(ctx, 2, (size_t)(call.tasks.total * 2 * s.padded) * sizeof(float) + 1);
  if (dtable)
    call.tableParts = (float *)diffit_cpu_shared(ctx, 3, (size_t)(call.tasks.total * s.tableRows) * sizeof(float) + 1);
  GradientScratch sizing;
  const size_t bytes = (size_t)carveGradient(s, nullptr, &sizing);
  bool enough = offsets && (columns || !table) && call.timeParts && (call.tableParts || !dtable);
  for (int t = 0; t < diffit_cpu_threads(ctx); t++) enough = enough && diffit_cpu_scratch(ctx, t, 0, bytes);
  if (!enough) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "attention_backward: no memory for scratch");
  fillTokenOffsets(s, offsets);
  if (table) splitTable(s, f32(table), columns);
  call.offsets = offsets;
  call.columns = columns;

  parallelChunks(ctx, call.tasks.total, 1, [&](int64_t index, int64_t, int thread) {
    GradientScratch g;
    carveGradient(s, (float *)diffit_cpu_scratch(ctx, thread, 0, bytes), &g);
    gradientTask(call, g, index);
  });
  if (dtime) foldTimeParts(call, f32(dtime));
  if (dtable) foldTableParts(ctx, call, f32(dtable));
  return DIFFIT_OK;
}

#endif
