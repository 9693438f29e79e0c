/*
 * The gradient of attention.h, with respect to qkv, the time token and the bias table, from y, its gradient and the
 * saved log-sum-exp. With P = exp(logits - lse) and dP = dy v^T, per sample, window and head:
 *
 *     dS = P (dP - delta), delta[i] = sum_c dy[i, c] (y - v_t)[i, c]
 *     dq = scale dS k,  dk = dS^T scale (q + q_t),  dv = P^T dy
 *     dq_t = sum of dq over the sample's tokens,  dk_t = 0,  dv_t = sum of dy,  dB = dS summed along table rows
 *
 * One unit of work is all of a window and head, a tile of queries against a block of keys at a time, as forward does;
 * nothing of size tokens x tokens leaves the cache. Small windows, whose keys are one block, have kernels of their own in
 * attention_window_backward.h. Each task keeps its part of the table's and the time token's gradient; parts are added in
 * the order of the tasks, so the bits do not depend on threads.
 *
 * What binds: 10 N d operations a query against 32 d bytes (f32), as in forward.
 */
#ifndef DIFFIT_CPU_ATTENTION_BACKWARD_H
#define DIFFIT_CPU_ATTENTION_BACKWARD_H

/* Memory of one thread beside forward's, whose m.sum holds dq here. */
struct GradientScratch {
  AttentionScratch m;
  float *dkeys, *dvalues; /* [tokens, padded] */
  float *queryRows, *dyRows; /* [tile, padded] */
  float *dyColumns; /* [padded, tile] */
  float *dlogits; /* dS [kKeyBlock, tile], then a vector of slack */
  float *delta, *scales; /* [tile] */
  TableSums sums;
};
static int64_t carveGradient(const AttentionSizes &s, float *base, GradientScratch *g) {
  const int64_t start = carveAttention(s, base, &g->m) / (int64_t)sizeof(float);
  Carver carver = {base, start};
  g->dkeys = carver.take(s.tokens * s.padded);
  g->dvalues = carver.take(s.tokens * s.padded);
  g->queryRows = carver.take(kTileQueries * s.padded);
  g->dyRows = carver.take(kTileQueries * s.padded);
  g->dyColumns = carver.take(s.padded * kTileQueries);
  g->dlogits = carver.take(kKeyBlock * kTileQueries + kLanes);
  g->delta = carver.take(kTileQueries);
  g->scales = carver.take(kTileQueries);
  const int64_t differences = tableSumsFloats(s);
  g->sums.before = roundUp(s.windowW, kLanes);
  g->sums.shiftedLength = shiftedLength(s);
  g->sums.differences = differences ? carver.take(differences) : nullptr;
  g->sums.shifted = carver.take(s.windowW * g->sums.shiftedLength);
  return carver.used * (int64_t)sizeof(float);
}

/* g.delta of a tile whose dy is in g.dyRows. */
template <class T>
static void tileDelta(const AttentionSizes &s, const GradientScratch &g, TokenRows<const T> y, int64_t ni) {
  for (int64_t first = 0; first < ni; first += kLanes) {
    vf b[kLanes];
    for (int64_t r = 0; r < kLanes; r++) {
      const int64_t t = first + r;
      b[r] = set1(0.0f);
      if (t >= ni) continue;
      const T *row = y[t];
      for (int64_t c = 0; c < s.dim; c += kLanes)
        b[r] += load(g.dyRows + t * s.padded + c) * (loadColumns(row, c, s.dim) - load(g.m.timeV + c));
    }
    transposeSquare(b);
    for (int64_t r = 1; r < kLanes; r++) b[0] += b[r];
    store(g.delta + first, b[0]);
  }
}

/* One tile of queries against all keys: g.m.sum = dq / scale [dim, query], and what it adds to dkeys,
   dvalues and the table. */
template <int VECTORS>
static void gradientTile(const AttentionSizes &s, const GradientScratch &g, HeadBias bias, float *dcolumn, int64_t i0,
                         int64_t ni, RowsAhead *ahead) {
  constexpr int64_t ld = VECTORS * kLanes;
  const AttentionScratch &m = g.m;
  float *dlogits = g.dlogits;
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kKeyBlock) {
    const int64_t nj = imin(kKeyBlock, s.tokens - j0);
    const float *keys = m.keys + j0 * s.padded, *values = m.values + j0 * s.padded;
    tileLogits<VECTORS>(s, m.keys, m.queries, bias, i0, ni, j0, nj, m.logits, ahead);
    productRows<VECTORS, false>(nj, s.dim, values, s.padded, g.dyColumns, ld, InitRows{nullptr, 0, nullptr}, dlogits,
                                ld, ahead);
    for (int64_t j = 0; j < nj; j++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) {
        float *logit = m.logits + j * ld + v * kLanes, *dlogit = dlogits + j * ld + v * kLanes;
        const vf p = vexpSoftmax(load(logit) - load(m.lse + v * kLanes));
        store(logit, p);
        store(dlogit, p * (load(dlogit) - load(g.delta + v * kLanes)));
      }
    productRows<VECTORS, true>(s.dim, nj, keys, s.padded, dlogits, ld, InitRows{j0 ? m.sum : nullptr, ld, nullptr},
                               m.sum, ld, ahead);
    product<false>(nj, s.padded, ni, m.logits, ld, g.dyRows, s.padded, i0 > 0, g.dvalues + j0 * s.padded, s.padded,
                   ahead);
    product<false>(nj, s.padded, ni, dlogits, ld, g.queryRows, s.padded, i0 > 0, g.dkeys + j0 * s.padded, s.padded,
                   ahead);
    if (!dcolumn) continue;
    if (g.sums.differences)
      addDifferences(s, g.sums, dlogits, ld, i0, ni, j0, nj);
    else
      foldRuns(s, dlogits, ld, i0, ni, j0, nj, dcolumn);
  }
}

static void gradientTileOf(int vectors, const AttentionSizes &s, const GradientScratch &g, HeadBias bias,
                           float *dcolumn, int64_t i0, int64_t ni, RowsAhead *ahead) {
  if (vectors == 1) gradientTile<1>(s, g, bias, dcolumn, i0, ni, ahead);
  if (vectors == 2) gradientTile<2>(s, g, bias, dcolumn, i0, ni, ahead);
  if (kTileVectors == 4 && vectors == 3) gradientTile<kTileVectors == 4 ? 3 : 1>(s, g, bias, dcolumn, i0, ni, ahead);
  if (kTileVectors == 4 && vectors == 4) gradientTile<kTileVectors>(s, g, bias, dcolumn, i0, ni, ahead);
}

/* Everything of one call that a task reads or writes; T is the type of qkv, y and their gradients. */
template <class T>
struct GradientCall {
  AttentionSizes s;
  AttentionTasks tasks;
  BiasTable bias;
  const T *qkv, *y, *dy;
  const float *time, *lse;
  T *dqkv;
  float *timeParts; /* [part, 2, padded]: sums of dq and of dy over a part's tokens */
  float *tableParts; /* [part, tableRows], or NULL: not wanted */
  const int64_t *offsets;
  float scale;
  bool stream; /* write dqkv past the caches */
  int threads;
  int64_t parts() const { return s.batch * tasks.chunks * s.heads; } /* a part: one group of windows and one head */
};

template <class T>
static void gradientUnit(const GradientCall<T> &call, const GradientScratch &g, const AttentionUnit &unit,
                         const AttentionUnit *next) {
  const AttentionSizes &s = call.s;
  const int64_t stride = 3 * s.channels, token = unit.token(s), channel = unit.head * s.dim;
  const T *q = call.qkv + token * stride + channel;
  T *dq = call.dqkv + token * stride + channel;
  const T *y = call.y + token * s.channels + channel, *dy = call.dy + token * s.channels + channel;
  const float *lse = call.lse + (unit.sample * s.heads + unit.head) * s.height * s.width + windowOrigin(s, unit.window);

  RowsAhead ahead;
  if (next) {
    const int64_t at = next->token(s), first = next->head * s.dim;
    for (int64_t i = 0; i < 3; i++) {
      ahead.add(call.qkv + at * stride + first + i * s.channels, stride, 0, s.tokens);
      ahead.add(call.dqkv + at * stride + first + i * s.channels, stride, 0, s.tokens);
    }
    ahead.add(call.y + at * s.channels + first, s.channels, 0, s.tokens);
    ahead.add(call.dy + at * s.channels + first, s.channels, 0, s.tokens);
    ahead.start(s.dim * (int64_t)sizeof(T), call.offsets, s.tokens, productSteps(s, s.tokens, 5));
  }

  const int64_t part = (unit.sample * call.tasks.chunks + unit.window / call.tasks.windows) * s.heads + unit.head;
  float *dqSum = call.timeParts + part * 2 * s.padded, *dySum = dqSum + s.padded;
  float *dcolumn = call.tableParts ? call.tableParts + part * s.tableRows : nullptr;
  if (unit.window % call.tasks.windows == 0) {
    zeroFloats(dqSum, 2 * s.padded);
    if (dcolumn) zeroFloats(dcolumn, s.tableRows);
  }
  if (dcolumn && g.sums.differences) zeroFloats(g.sums.differences, tableSumsFloats(s));
  for (int64_t i = 0; i < kTileQueries; i += kLanes) store(g.scales + i, set1(call.scale));
  loadTime(s, call.time, unit.sample, 0, unit.head, g.m.timeQ);
  loadTime(s, call.time, unit.sample, 2, unit.head, g.m.timeV);
  gatherRows<T>(s, {q + s.channels, stride, call.offsets}, s.tokens, g.m.keys);
  gatherRows<T>(s, {q + 2 * s.channels, stride, call.offsets}, s.tokens, g.m.values);
  for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, s.tokens - i0);
    const int64_t *offsets = call.offsets + i0;
    const int vectors = tileVectors(ni);
    packTile<T>(s, {q, stride, offsets}, ni, g.m.timeQ, call.scale, vectors, g.m.queries, g.queryRows);
    packTile<T>(s, {dy, s.channels, offsets}, ni, nullptr, 1.0f, vectors, g.dyColumns, g.dyRows);
    tileDelta<T>(s, g, {y, s.channels, offsets}, ni);
    for (int64_t i = 0; i < vectors * kLanes; i++) g.m.lse[i] = i < ni ? lse[offsets[i]] : 0.0f;
    gradientTileOf(vectors, s, g, call.bias.head(s, unit.head), dcolumn, i0, ni, &ahead);
    unpackTile<T>(s, g.m.sum, vectors, g.scales, nullptr, ni, {dq, stride, offsets}, dqSum);
    addRows(s, g.dyRows, ni, 1.0f, dySum);
  }
  scatterRows<T>(s, g.dkeys, nullptr, nullptr, s.tokens, {dq + s.channels, stride, call.offsets});
  scatterRows<T>(s, g.dvalues, nullptr, nullptr, s.tokens, {dq + 2 * s.channels, stride, call.offsets});
  if (dcolumn && g.sums.differences) foldWide(s, g.sums, dcolumn);
}

/* ---- small windows (attention_window_backward.h) ------------------------------------------------------------------ */

/* One window and head; dq, dk and dv go to `out`, each with rows of `width` and next to each other for a token. */
template <class T>
static void windowUnit(const GradientCall<T> &call, const WindowScratch &w, int64_t sample, int64_t window,
                       int64_t head, float *timeSums, float *tableSums, bool add, float *out, int64_t width,
                       RowTraffic *traffic) {
  const AttentionSizes &s = call.s;
  const int64_t token = sample * s.height * s.width + windowOrigin(s, window), stride = 3 * s.channels;
  const T *q = call.qkv + token * stride + head * s.dim;
  const float *lse = call.lse + (sample * s.heads + head) * s.height * s.width + windowOrigin(s, window);
  loadTime(s, call.time, sample, 0, head, w.timeQ);
  gatherScaled<T>(s, {q, stride, call.offsets}, w.timeQ, call.scale, w.queries);
  gatherRows<T>(s, {q + s.channels, stride, call.offsets}, s.tokens, w.keys);
  gatherRows<T>(s, {q + 2 * s.channels, stride, call.offsets}, s.tokens, w.values);
  gatherRows<T>(s, {call.dy + token * s.channels + head * s.dim, s.channels, call.offsets}, s.tokens, w.dy);
  for (int64_t i = 0; i < w.ld; i++) w.lse[i] = i < s.tokens ? lse[call.offsets[i]] : 0.0f;
  addRows(s, w.dy, s.tokens, 1.0f, timeSums + s.padded);
  for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries)
    windowTileOf(ceilDiv(imin(kTileQueries, s.tokens - i0), kLanes), s, w, call.bias.head(s, head), i0, tableSums, add,
                 traffic);
  const int64_t n = s.tokens, ld = 3 * width;
  windowProduct<false>(n, s.padded, n, w.p, w.ld, w.dy, s.padded, ToRows{out + 2 * width, ld, s.dim, 1.0f, nullptr},
                       traffic);
  windowProduct<false>(n, s.padded, n, w.dlogits, w.ld, w.queries, s.padded,
                       ToRows{out + width, ld, s.dim, 1.0f, nullptr}, traffic);
  windowProduct<true>(n, s.padded, n, w.dlogits, w.ld, w.keys, s.padded, ToRows{out, ld, s.dim, call.scale, timeSums},
                      traffic);
}

/* The rows of a task's heads in one of its windows are fetched. */
template <class T>
static int64_t fetchWindow(const GradientCall<T> &call, const AttentionPlace &place, int64_t window, RowFetch *fetch) {
  const AttentionSizes &s = call.s;
  const int64_t token = place.sample * s.height * s.width + windowOrigin(s, window);
  const int64_t channel = place.firstHead * s.dim, width = (place.lastHead - place.firstHead) * s.dim;
  for (int64_t i = 0; i < 3; i++) fetch->add(call.qkv + (token * 3 + i) * s.channels + channel, 3 * s.channels, width);
  fetch->add(call.dy + token * s.channels + channel, s.channels, width);
  return fetch->start(call.offsets, s.tokens);
}

template <class T>
static void windowTask(const GradientCall<T> &call, const WindowScratch &w, const WindowHeads &heads, int64_t index) {
  const AttentionSizes &s = call.s;
  const AttentionPlace place = attentionPlace(s, call.tasks, index);
  const int64_t part = (place.sample * call.tasks.chunks + place.firstWindow / call.tasks.windows) * s.heads;
  const int64_t steps = windowSteps(s), length = s.tokens * w.ld + kLanes; /* of a head's sum of dS */
  zeroFloats(call.timeParts + (part + place.firstHead) * 2 * s.padded,
             (place.lastHead - place.firstHead) * 2 * s.padded);
  zeroFloats(w.queries + s.tokens * s.padded, (w.ld - s.tokens) * s.padded);
  zeroFloats(w.dy + s.tokens * s.padded, (w.ld - s.tokens) * s.padded);
  RowTraffic traffic;
  int side = 0;
  for (int64_t window = place.firstWindow; window < place.lastWindow; window++) {
    int64_t lines = 0;
    traffic.fetch = RowFetch();
    if (window + 1 < place.lastWindow) {
      lines = fetchWindow(call, place, window + 1, &traffic.fetch);
    } else if (index + call.threads < call.tasks.total) {
      const AttentionPlace far = attentionPlace(s, call.tasks, index + call.threads);
      lines = fetchWindow(call, far, far.firstWindow, &traffic.fetch);
    }
    traffic.fetched = ceilDiv(lines, (place.lastHead - place.firstHead) * steps);
    const int64_t token = place.sample * s.height * s.width + windowOrigin(s, window);
    for (int64_t first = place.firstHead; first < place.lastHead; first += heads.bundle) {
      const int64_t last = imin(place.lastHead, first + heads.bundle), width = (last - first) * s.dim;
      float *rows = w.finished[side ^= 1];
      for (int64_t head = first; head < last; head++)
        windowUnit(call, w, place.sample, window, head, call.timeParts + (part + head) * 2 * s.padded,
                   call.tableParts ? w.sums + (head - place.firstHead) * length : nullptr, window > place.firstWindow,
                   rows + (head - first) * s.dim, width, &traffic);
      traffic.write.finish();
      traffic.written = ceilDiv(traffic.write.start(rows, call.dqkv + token * 3 * s.channels + first * s.dim,
                                                    call.offsets, s.tokens, s.channels, width, call.stream),
                                (last - first) * steps);
    }
  }
  traffic.write.finish();
  endStream();
  if (!call.tableParts) return;
  for (int64_t head = place.firstHead; head < place.lastHead; head++) {
    float *column = call.tableParts + (part + head) * s.tableRows;
    zeroFloats(column, s.tableRows);
    foldWindow(s, w.table, w.sums + (head - place.firstHead) * length, w.ld, column);
  }
}

/* dtime [batch, 3, channels] and dtable [tableRows, heads] from their parts, in order. */
template <class T>
static void foldTimeParts(diffit_context *ctx, const GradientCall<T> &call, float *dtime) {
  const AttentionSizes &s = call.s;
  zeroFloats(dtime, s.batch * 3 * s.channels);
  parallelChunks(ctx, s.batch * s.heads, imax(1, 4096 / (call.tasks.chunks * s.padded)),
                 [&](int64_t begin, int64_t end, int) {
                   for (int64_t at = begin; at < end; at++)
                     for (int64_t chunk = 0; chunk < call.tasks.chunks; chunk++)
                       for (int64_t i = 0; i < 2; i++) {
                         const int64_t sample = at / s.heads, head = at % s.heads;
                         const int64_t part = (sample * call.tasks.chunks + chunk) * s.heads + head;
                         const float *from = call.timeParts + (part * 2 + i) * s.padded;
                         float *to = dtime + (sample * 3 + 2 * i) * s.channels + head * s.dim;
                         for (int64_t c = 0; c < s.dim; c++) to[c] += from[c];
                       }
                 });
}
template <class T>
static void foldTableParts(diffit_context *ctx, const GradientCall<T> &call, float *dtable) {
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

template <class T>
static diffit_status attendBackwardIn(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                      const diffit_tensor *table, const diffit_tensor *y, const diffit_tensor *lse,
                                      const diffit_tensor *dy, diffit_tensor *dqkv, diffit_tensor *dtime,
                                      diffit_tensor *dtable, int64_t headCount, int64_t windowH, int64_t windowW,
                                      double scale) {
  GradientCall<T> call;
  const AttentionSizes &s = call.s = attentionSizes(qkv, headCount, windowH, windowW);
  const bool small = s.tokens <= kSmallWindow;
  const WindowHeads heads = windowHeads(s, (int64_t)sizeof(T));
  call.tasks = small ? windowTasks(s, heads) : attentionTasks(s, 8 * s.channels * (int64_t)sizeof(float), false);
  call.qkv = (const T *)qkv->data;
  call.time = time ? f32(time) : nullptr;
  call.y = (const T *)y->data;
  call.lse = f32(lse);
  call.dy = (const T *)dy->data;
  call.dqkv = (T *)dqkv->data;
  call.scale = (float)scale;
  call.stream = numel(dqkv) * (int64_t)sizeof(T) >= kStreamBytes;
  call.threads = diffit_cpu_threads(ctx);
  int64_t *offsets = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)s.tokens * sizeof(int64_t));
  call.tableParts = nullptr;
  call.timeParts = (float *)diffit_cpu_shared(ctx, 2, (size_t)(call.parts() * 2 * s.padded) * sizeof(float) + 1);
  if (dtable)
    call.tableParts = (float *)diffit_cpu_shared(ctx, 3, (size_t)(call.parts() * s.tableRows) * sizeof(float) + 1);
  GradientScratch sizing;
  WindowScratch windowSizing;
  const size_t bytes =
      (size_t)(small ? carveWindow(s, heads, nullptr, &windowSizing) : carveGradient(s, nullptr, &sizing));
  bool enough = offsets && call.timeParts && (call.tableParts || !dtable) &&
                prepareBias(ctx, s, table ? f32(table) : nullptr, &call.bias);
  for (int t = 0; t < diffit_cpu_threads(ctx); t++) enough = enough && diffit_cpu_scratch(ctx, t, 0, bytes);
  if (!enough) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "attention_backward: no memory for scratch");
  fillTokenOffsets(s, offsets);
  call.offsets = offsets;

  parallelChunks(ctx, call.tasks.total, 1, [&](int64_t index, int64_t, int thread) {
    if (small) {
      WindowScratch w;
      carveWindow(s, heads, (float *)diffit_cpu_scratch(ctx, thread, 0, bytes), &w);
      windowTask(call, w, heads, index);
      return;
    }
    GradientScratch g;
    carveGradient(s, (float *)diffit_cpu_scratch(ctx, thread, 0, bytes), &g);
    forEachUnit(s, call.tasks, index, call.threads,
                [&](const AttentionUnit &unit, const AttentionUnit *next) { gradientUnit(call, g, unit, next); });
  });
  if (dtime) foldTimeParts(ctx, call, f32(dtime));
  if (dtable) foldTableParts(ctx, call, f32(dtable));
  return DIFFIT_OK;
}

static diffit_status attendBackward(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                    const diffit_tensor *table, const diffit_tensor *y, const diffit_tensor *lse,
                                    const diffit_tensor *dy, diffit_tensor *dqkv, diffit_tensor *dtime,
                                    diffit_tensor *dtable, int64_t heads, int64_t windowH, int64_t windowW,
                                    double scale) {
  const diffit_status status = checkAttention(ctx, "attention_backward", qkv, time, table, heads, windowH, windowW);
  if (status != DIFFIT_OK) return status;
  const int64_t tokens = qkv->shape[0] * qkv->shape[1] * qkv->shape[2], channels = qkv->shape[3] / 3;
  REQUIRE(y->dtype == qkv->dtype && dy->dtype == qkv->dtype && dqkv->dtype == qkv->dtype);
  REQUIRE_F32(lse);
  REQUIRE(numel(y) == tokens * channels);
  REQUIRE(numel(lse) == tokens * heads);
  REQUIRE(numel(dy) == numel(y));
  REQUIRE(numel(dqkv) == numel(qkv));
  if (dtime) {
    REQUIRE_F32(dtime);
    REQUIRE(numel(dtime) == qkv->shape[0] * 3 * channels);
  }
  if (dtable) {
    REQUIRE_F32(dtable);
    REQUIRE(numel(dtable) == (2 * windowH - 1) * (2 * windowW - 1) * heads);
  }
  if (tokens == 0) {
    if (dtime) zeroFloats(f32(dtime), numel(dtime));
    if (dtable) zeroFloats(f32(dtable), numel(dtable));
    return DIFFIT_OK;
  }
  return qkv->dtype == DIFFIT_BF16 ? attendBackwardIn<Bf16>(ctx, qkv, time, table, y, lse, dy, dqkv, dtime, dtable,
                                                            heads, windowH, windowW, scale)
                                   : attendBackwardIn<float>(ctx, qkv, time, table, y, lse, dy, dqkv, dtime, dtable,
                                                             heads, windowH, windowW, scale);
}

#endif
