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
  float *dkeys, *dvalues; /* [tokens, padded] */
  float *queryRows, *dyRows; /* [tile, padded] */
  float *dyColumns; /* [padded, tile] */
  float *dlogits; /* [kKeyBlock, tile] */
  float *windowSum; /* dS of a small window: per tile [tokens, tile] */
  float *delta, *scales; /* [tile] */
  float *zeros; /* [padded] */
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
        b[r] +=
            load(g.dyRows + t * s.padded + c) * (loadColumns(y + offsets[t] * stride, c, s.dim) - load(g.m.timeV + c));
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
static void gradientTile(const AttentionSizes &s, const GradientScratch &g, HeadBias bias, float *dcolumn, int64_t i0,
                         int64_t ni) {
  constexpr int64_t ld = VECTORS * kLanes;
  const AttentionScratch &m = g.m;
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kKeyBlock) {
    const int64_t nj = imin(kKeyBlock, s.tokens - j0);
    tileLogits<VECTORS>(s, m, bias, i0, ni, j0, nj);
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

static void gradientTileOf(int vectors, const AttentionSizes &s, const GradientScratch &g, HeadBias bias,
                           float *dcolumn, int64_t i0, int64_t ni) {
  if (vectors == 1) gradientTile<1>(s, g, bias, dcolumn, i0, ni);
  if (vectors == 2) gradientTile<2>(s, g, bias, dcolumn, i0, ni);
  if (kTileVectors == 4 && vectors == 3) gradientTile<kTileVectors == 4 ? 3 : 1>(s, g, bias, dcolumn, i0, ni);
  if (kTileVectors == 4 && vectors == 4) gradientTile<kTileVectors>(s, g, bias, dcolumn, i0, ni);
}

/* Everything of one call that a task reads or writes. */
struct GradientCall {
  AttentionSizes s;
  AttentionTasks tasks;
  BiasTable bias;
  const float *qkv, *time, *y, *lse, *dy;
  float *dqkv;
  float *timeParts; /* [part, 2, padded]: sums of dq and of dy over a part's tokens */
  float *tableParts; /* [part, tableRows], or NULL: not wanted */
  const int64_t *offsets;
  float scale;
  int64_t parts() const { return s.batch * tasks.chunks * s.heads; } /* a part: one group of windows and one head */
};

/* The gradient of one window and head; dqSum and dySum [padded] and dcolumn [tableRows] are added to. */
static void gradientWindow(const GradientCall &call, const GradientScratch &g, int64_t sample, int64_t head,
                           int64_t window, float *dqSum, float *dySum, float *dcolumn) {
  const AttentionSizes &s = call.s;
  const int64_t stride = 3 * s.channels, gridTokens = s.height * s.width, corner = windowOrigin(s, window);
  const int64_t first = sample * gridTokens + corner, channel = head * s.dim;
  const float *q = call.qkv + first * stride + channel;
  float *dq = call.dqkv + first * stride + channel;
  const float *y = call.y + first * s.channels + channel, *dy = call.dy + first * s.channels + channel;
  const float *lse = call.lse + (sample * s.heads + head) * gridTokens + corner;

  gatherRows(s, q + s.channels, stride, call.offsets, s.tokens, g.m.keys);
  gatherRows(s, q + 2 * s.channels, stride, call.offsets, s.tokens, g.m.values);
  zeroFloats(g.dkeys, s.tokens * s.padded);
  zeroFloats(g.dvalues, s.tokens * s.padded);
  for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, s.tokens - i0);
    const int64_t *offsets = call.offsets + i0;
    const int vectors = tileVectors(ni);
    packTile(s, q, stride, offsets, ni, g.m.timeQ, call.scale, vectors, g.m.queries, g.queryRows);
    packTile(s, dy, s.channels, offsets, ni, g.zeros, 1.0f, vectors, g.dyColumns, g.dyRows);
    tileDelta(s, g, y, s.channels, offsets, ni);
    for (int64_t i = 0; i < vectors * kLanes; i++) g.m.lse[i] = i < ni ? lse[offsets[i]] : 0.0f;
    gradientTileOf(vectors, s, g, call.bias.head(s, head), dcolumn, i0, ni);
    unpackTile(s, g.m.sum, vectors, g.scales, g.zeros, ni, dq, stride, offsets, dqSum);
    for (int64_t i = 0; i < ni; i++)
      for (int64_t c = 0; c < s.padded; c += kLanes)
        store(dySum + c, load(dySum + c) + load(g.dyRows + i * s.padded + c));
  }
  scatterRows(s, g.dkeys, s.tokens, dq + s.channels, stride, call.offsets);
  scatterRows(s, g.dvalues, s.tokens, dq + 2 * s.channels, stride, call.offsets);
}

/* One group of windows and one head. */
static void gradientPart(const GradientCall &call, const GradientScratch &g, const AttentionPlace &place,
                         int64_t head) {
  const AttentionSizes &s = call.s;
  const bool small = s.tokens <= kSmallWindow;
  const int64_t part = (place.sample * call.tasks.chunks + place.chunk) * s.heads + head;
  float *dqSum = call.timeParts + part * 2 * s.padded, *dySum = dqSum + s.padded;
  float *dcolumn = call.tableParts ? call.tableParts + part * s.tableRows : nullptr;
  zeroFloats(dqSum, 2 * s.padded);
  if (dcolumn) zeroFloats(dcolumn, s.tableRows);
  if (dcolumn && small) zeroFloats(g.windowSum, s.tokens * roundUp(s.tokens, kLanes));
  loadTime(s, call.time, place.sample, 0, head, g.m.timeQ);
  loadTime(s, call.time, place.sample, 2, head, g.m.timeV);
  for (int64_t w = place.firstWindow; w < place.lastWindow; w++)
    gradientWindow(call, g, place.sample, head, w, dqSum, dySum, dcolumn);
  if (!dcolumn || !small) return;
  for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, s.tokens - i0);
    foldTable(s, g.windowSum + i0 * s.tokens, roundUp(ni, kLanes), i0, ni, 0, s.tokens, dcolumn);
  }
}

static void gradientTask(const GradientCall &call, const GradientScratch &g, int64_t index) {
  const AttentionSizes &s = call.s;
  const AttentionPlace place = attentionPlace(s, call.tasks, index);
  if (call.tasks.warm) {
    warmRows(s, place, call.qkv, 3 * s.channels);
    warmRows(s, place, call.y, s.channels);
    warmRows(s, place, call.dy, s.channels);
    warmRows(s, place, call.dqkv, 3 * s.channels);
  }
  zeroFloats(g.zeros, s.padded);
  for (int64_t i = 0; i < kTileQueries; i += kLanes) store(g.scales + i, set1(call.scale));
  for (int64_t head = place.firstHead; head < place.lastHead; head++) gradientPart(call, g, place, head);
}

/* dtime [batch, 3, channels] and dtable [tableRows, heads] from their parts, in order. */
static void foldTimeParts(const GradientCall &call, float *dtime) {
  const AttentionSizes &s = call.s;
  zeroFloats(dtime, s.batch * 3 * s.channels);
  for (int64_t part = 0; part < call.parts(); part++) {
    const int64_t sample = part / (call.tasks.chunks * s.heads), head = part % s.heads;
    for (int64_t i = 0; i < 2; i++) {
      const float *from = call.timeParts + (part * 2 + i) * s.padded;
      float *to = dtime + (sample * 3 + 2 * i) * s.channels + head * s.dim;
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
      for (int64_t part = h; part < call.parts(); part += s.heads)
        for (int64_t r = begin; r < end; r++) sum[r - begin] += call.tableParts[part * s.tableRows + r];
      for (int64_t r = begin; r < end; r++) dtable[r * s.heads + h] = sum[r - begin];
    }
  });
}

static diffit_status attendBackward(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                    const diffit_tensor *table, const diffit_tensor *y, const diffit_tensor *lse,
                                    const diffit_tensor *dy, diffit_tensor *dqkv, diffit_tensor *dtime,
                                    diffit_tensor *dtable, int64_t heads, int64_t windowH, int64_t windowW,
                                    double scale) {
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

  if (allTokens == 0) {
    if (dtime) zeroFloats(f32(dtime), numel(dtime));
    if (dtable) zeroFloats(f32(dtable), numel(dtable));
    return DIFFIT_OK;
  }

  call.tasks = attentionTasks(s, 8 * s.channels * (int64_t)sizeof(float), false);
  call.qkv = f32(qkv);
  call.time = time ? f32(time) : nullptr;
  call.y = f32(y);
  call.lse = f32(lse);
  call.dy = f32(dy);
  call.dqkv = f32(dqkv);
  call.scale = (float)scale;
  int64_t *offsets = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)s.tokens * sizeof(int64_t));
  call.tableParts = nullptr;
  call.timeParts = (float *)diffit_cpu_shared(ctx, 2, (size_t)(call.parts() * 2 * s.padded) * sizeof(float) + 1);
  if (dtable)
    call.tableParts = (float *)diffit_cpu_shared(ctx, 3, (size_t)(call.parts() * s.tableRows) * sizeof(float) + 1);
  GradientScratch sizing;
  const size_t bytes = (size_t)carveGradient(s, nullptr, &sizing);
  bool enough = offsets && call.timeParts && (call.tableParts || !dtable) &&
                prepareBias(ctx, s, table ? f32(table) : nullptr, &call.bias);
  for (int t = 0; t < diffit_cpu_threads(ctx); t++) enough = enough && diffit_cpu_scratch(ctx, t, 0, bytes);
  if (!enough) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "attention_backward: no memory for scratch");
  fillTokenOffsets(s, offsets);
  call.offsets = offsets;

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
