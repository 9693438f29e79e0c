/*
 * TMSA's attention (paper Eq. 3-6): y = softmax(scale (q + q_t) k^T + B) v + v_t per sample, window and head, with B
 * read from the relative-position table and the time token's part of k left out, which a softmax cannot see.
 *
 * Flash attention (Dao et al., arXiv 2205.14135) on tiles of queries: the logits of one tile and one block of keys
 * stay in the first-level cache, the running maximum and sum of each query correct what was added before. q is read
 * once from the qkv rows, wherever a window has them, k and v once per 256 queries; y and lse are written once. Rows are
 * f32 or bf16, arithmetic is f32.
 *
 * What binds: 4 N d operations a query against 16 d bytes (f32). From 64 tokens on the arithmetic (the rows of the next head
 * are fetched meanwhile), in windows of 16 the memory.
 */
#ifndef DIFFIT_CPU_ATTENTION_H
#define DIFFIT_CPU_ATTENTION_H

/* How a call is cut into tasks: by sizes alone. */
struct AttentionTasks {
  int64_t windows, chunks; /* windows of one task, such groups in a sample */
  int64_t queries, queryBlocks; /* queries of one task, such groups in a window */
  int64_t heads, headGroups; /* heads of one task, such groups */
  int64_t total;
};
/* rowBytes: memory of one token over all tensors of the call. */
static AttentionTasks attentionTasks(const AttentionSizes &s, int64_t rowBytes, bool splitQueries) {
  AttentionTasks t;
  const bool small = s.tokens <= kSmallWindow;
  t.windows = small ? imax(1, kTaskBytes / imax(1, s.tokens * rowBytes)) : 1;
  if (t.windows > s.windowsX) t.windows -= t.windows % s.windowsX; /* whole bands of the grid lie together in memory */
  t.chunks = ceilDiv(s.windows, t.windows);
  t.queries = splitQueries ? imin(s.tokens, kTaskQueries) : s.tokens;
  t.queryBlocks = ceilDiv(s.tokens, t.queries);
  t.heads = small ? ceilDiv(s.heads, ceilDiv(kManyTasks, imax(1, s.batch * t.chunks))) : 1;
  t.headGroups = ceilDiv(s.heads, t.heads);
  t.total = s.batch * t.chunks * t.queryBlocks * t.headGroups;
  return t;
}

/* Where task `index` works. */
struct AttentionPlace {
  int64_t firstHead, lastHead, firstQuery, lastQuery, firstWindow, lastWindow, sample;
};
static AttentionPlace attentionPlace(const AttentionSizes &s, const AttentionTasks &t, int64_t index) {
  AttentionPlace p;
  p.firstHead = index % t.headGroups * t.heads;
  p.lastHead = imin(s.heads, p.firstHead + t.heads);
  index /= t.headGroups;
  p.firstQuery = index % t.queryBlocks * t.queries;
  p.lastQuery = imin(s.tokens, p.firstQuery + t.queries);
  index /= t.queryBlocks;
  p.firstWindow = index % t.chunks * t.windows;
  p.lastWindow = imin(s.windows, p.firstWindow + t.windows);
  p.sample = index / t.chunks;
  return p;
}

/* One window and head of a sample, all or some of its queries: a task goes through several. */
struct AttentionUnit {
  int64_t sample, window, head, firstQuery, lastQuery;
  int64_t token(const AttentionSizes &s) const { return sample * s.height * s.width + windowOrigin(s, window); }
};
/* work(unit, next) for every unit of task `index`, heads innermost as their rows are neighbours in memory. `next` is what the
   thread will probably do then, after its last unit the first of the task that `threads` workers leave it; NULL at the end. */
template <class Work>
static void forEachUnit(const AttentionSizes &s, const AttentionTasks &t, int64_t index, int threads,
                        const Work &work) {
  const AttentionPlace p = attentionPlace(s, t, index);
  AttentionUnit unit = {p.sample, p.firstWindow, p.firstHead, p.firstQuery, p.lastQuery};
  for (;;) {
    AttentionUnit next = unit;
    bool more = true;
    if (++next.head == p.lastHead) {
      next.head = p.firstHead;
      more = ++next.window < p.lastWindow;
    }
    if (!more && index + threads < t.total) {
      const AttentionPlace far = attentionPlace(s, t, index + threads);
      next = {far.sample, far.firstWindow, far.firstHead, far.firstQuery, far.lastQuery};
      work(unit, &next);
      return;
    }
    work(unit, more ? &next : nullptr);
    if (!more) return;
    unit = next;
  }
}

/* What both directions check before they trust a size. */
static diffit_status checkAttention(diffit_context *ctx, const char *op, const diffit_tensor *qkv,
                                    const diffit_tensor *time, const diffit_tensor *table, int64_t heads,
                                    int64_t windowH, int64_t windowW) {
#define EXPECT(condition) \
  if (!(condition)) return diffit_cpu_fail(ctx, DIFFIT_INVALID, "%s: expected %s", op, #condition)
  EXPECT((qkv->dtype == DIFFIT_F32 || qkv->dtype == DIFFIT_BF16) && qkv->ndim == 4);
  EXPECT(heads >= 1 && heads < 1 << 20 && qkv->shape[3] % (3 * heads) == 0);
  EXPECT(windowH >= 1 && windowH < 1 << 20 && windowW >= 1 && windowW < 1 << 20);
  EXPECT(qkv->shape[1] % windowH == 0 && qkv->shape[2] % windowW == 0);
  if (time) EXPECT(time->dtype == DIFFIT_F32 && numel(time) == qkv->shape[0] * qkv->shape[3]);
  if (table) EXPECT(table->dtype == DIFFIT_F32 && numel(table) == (2 * windowH - 1) * (2 * windowW - 1) * heads);
#undef EXPECT
  return DIFFIT_OK;
}

/* Row `part` (0 q, 1 k, 2 v) of the time token for one head, zeros without one; padded to whole vectors. */
static void loadTime(const AttentionSizes &s, const float *time, int64_t sample, int64_t part, int64_t head,
                     float *row) {
  const int64_t at = (sample * 3 + part) * s.channels + head * s.dim;
  for (int64_t c = 0; c < s.dim; c += kLanes) store(row + c, time ? loadColumns(time + at, c, s.dim) : set1(0.0f));
}

/* Memory of one thread. */
struct AttentionScratch {
  float *keys, *values; /* [tokens, padded] */
  float *queries, *sum; /* [padded, tile] */
  float *logits; /* [kKeyBlock, tile], then a vector of slack */
  float *timeQ, *timeV; /* [padded] */
  float *lse, *inverse; /* [tile] */
};
static int64_t carveAttention(const AttentionSizes &s, float *base, AttentionScratch *m) {
  Carver carver = {base, 0};
  m->keys = carver.take(s.tokens * s.padded);
  m->values = carver.take(s.tokens * s.padded);
  m->queries = carver.take(s.padded * kTileQueries);
  m->sum = carver.take(s.padded * kTileQueries);
  m->logits = carver.take(kKeyBlock * kTileQueries + kLanes);
  m->timeQ = carver.take(s.padded);
  m->timeV = carver.take(s.padded);
  m->lse = carver.take(kTileQueries);
  m->inverse = carver.take(kTileQueries);
  return carver.used * (int64_t)sizeof(float);
}

/* The vectors that a tile of n queries needs. */
DIFFIT_INLINE int tileVectors(int64_t n) { return (int)ceilDiv(n, kLanes); }

/* A window of one block of keys makes the gradient of q as rows [query, padded]; of more, as columns [padded, query]: then
   head dims that fill no whole vectors cost nothing, and turning it is little beside the products. y: columns, or as in
   attention_window_forward.h. */
DIFFIT_INLINE bool sumsAreRows(const AttentionSizes &s) { return s.tokens <= kKeyBlock; }

/* Blocks of `products` products of so many queries with all keys, about. */
DIFFIT_INLINE int64_t productSteps(const AttentionSizes &s, int64_t queries, int64_t products) {
  const int64_t blocks =
      ceilDiv(imin(s.tokens, kKeyBlock), blockRows(queries < kTileQueries ? tileVectors(queries) : kTileVectors));
  return products * blocks * ceilDiv(queries, kTileQueries) * ceilDiv(s.tokens, kKeyBlock);
}

/* Softmax and weighted sum of one tile: y = m.sum * m.inverse [query], and m.lse. */
template <int VECTORS>
static void attendTile(const AttentionSizes &s, const AttentionScratch &m, HeadBias bias, int64_t i0, int64_t ni,
                       RowsAhead *ahead) {
  constexpr int64_t ld = VECTORS * kLanes;
  vf top[VECTORS], total[VECTORS];
  float correction[VECTORS * kLanes];
  for (int v = 0; v < VECTORS; v++) {
    top[v] = set1(-3e38f);
    total[v] = set1(0.0f);
  }
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kKeyBlock) {
    const int64_t nj = imin(kKeyBlock, s.tokens - j0);
    tileLogits<VECTORS>(s, m.keys, m.queries, bias, i0, ni, j0, nj, m.logits, ahead);
    vf highest[VECTORS];
    for (int v = 0; v < VECTORS; v++) highest[v] = top[v];
    for (int64_t j = 0; j < nj; j++)
      for (int v = 0; v < VECTORS; v++) highest[v] = vmax(load(m.logits + j * ld + v * kLanes), highest[v]);
    for (int v = 0; v < VECTORS; v++) {
      const vf factor = vexpSoftmax(top[v] - highest[v]);
      store(correction + v * kLanes, factor);
      total[v] *= factor;
      top[v] = highest[v];
    }
    for (int64_t j = 0; j < nj; j++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) {
        float *at = m.logits + j * ld + v * kLanes;
        const vf p = vexpSoftmax(load(at) - top[v]);
        total[v] += p;
        store(at, p);
      }
    const InitRows init = {j0 ? m.sum : nullptr, ld, j0 ? correction : nullptr};
    productRows<VECTORS, true>(s.dim, nj, m.values + j0 * s.padded, s.padded, m.logits, ld, init, m.sum, ld, ahead);
  }
  for (int v = 0; v < VECTORS; v++) {
    store(m.inverse + v * kLanes, set1(1.0f) / total[v]);
    store(m.lse + v * kLanes, top[v] + vlog(total[v]));
  }
}

static void attendTileOf(int vectors, const AttentionSizes &s, const AttentionScratch &m, HeadBias bias, int64_t i0,
                         int64_t ni, RowsAhead *ahead) {
  if (vectors == 1) attendTile<1>(s, m, bias, i0, ni, ahead);
  if (vectors == 2) attendTile<2>(s, m, bias, i0, ni, ahead);
  if (kTileVectors == 4 && vectors == 3) attendTile<kTileVectors == 4 ? 3 : 1>(s, m, bias, i0, ni, ahead);
  if (kTileVectors == 4 && vectors == 4) attendTile<kTileVectors>(s, m, bias, i0, ni, ahead);
}

/* Everything of one call that a task reads or writes; T is the type of qkv and y. */
template <class T>
struct AttentionCall {
  AttentionSizes s;
  AttentionTasks tasks;
  BiasTable bias;
  const T *qkv;
  const float *time;
  T *y;
  float *lse; /* or NULL */
  const int64_t *offsets;
  float scale;
  int threads;
};

/* What a unit reads and writes. */
template <class T, class Ahead>
static void addUnit(const AttentionCall<T> &call, const AttentionUnit &unit, Ahead *ahead) {
  const AttentionSizes &s = call.s;
  const int64_t stride = 3 * s.channels, at = unit.token(s), first = unit.head * s.dim;
  for (int64_t i = 1; i < 3; i++) ahead->add(call.qkv + at * stride + first + i * s.channels, stride, 0, s.tokens);
  ahead->add(call.qkv + at * stride + first, stride, unit.firstQuery, unit.lastQuery);
  ahead->add(call.y + at * s.channels + first, s.channels, unit.firstQuery, unit.lastQuery);
}

template <class T>
static void storeLse(const AttentionCall<T> &call, const AttentionScratch &m, const AttentionUnit &unit, int64_t i0,
                     int64_t ni) {
  if (!call.lse) return;
  const AttentionSizes &s = call.s;
  float *row = call.lse + (unit.sample * s.heads + unit.head) * s.height * s.width + windowOrigin(s, unit.window);
  for (int64_t i = 0; i < ni; i++) row[call.offsets[i0 + i]] = m.lse[i];
}

/* A unit whose keys are one block. f32 keys are read where they lie if there are so many that the last unit had the time to
   fetch them, else copied, which waits for several rows at once. */
template <class T>
static void attendWindow(const AttentionCall<T> &call, const AttentionScratch &m, const AttentionUnit &unit,
                         const AttentionUnit *next) {
  const AttentionSizes &s = call.s;
  const int64_t stride = 3 * s.channels, token = unit.token(s), channel = unit.head * s.dim;
  const T *q = call.qkv + token * stride + channel;
  T *y = call.y + token * s.channels + channel;
  RowStream ahead;
  if (next) addUnit(call, *next, &ahead);
  ahead.start(s.dim * (int64_t)sizeof(T), call.offsets,
              windowSteps(s, imin(kTileQueries, s.tokens)) * ceilDiv(s.tokens, kTileQueries));

  loadTime(s, call.time, unit.sample, 0, unit.head, m.timeQ);
  loadTime(s, call.time, unit.sample, 2, unit.head, m.timeV);
  int64_t keyRows[kSmallWindow], yRows[kSmallWindow];
  const float *keys = m.keys;
  const bool inPlace = sizeof(T) == sizeof(float) && s.tokens > 16;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (inPlace) keys = q + s.channels;
  }
  for (int64_t t = 0; t < s.tokens; t++) {
    keyRows[t] = inPlace ? call.offsets[t] * stride : t * s.padded;
    yRows[t] = call.offsets[t] * s.channels;
  }
  gatherRows<T>(s, {q + 2 * s.channels, stride, call.offsets}, s.tokens, m.values);
  if (!inPlace) gatherRows<T>(s, {q + s.channels, stride, call.offsets}, s.tokens, m.keys);
  const float *bias = call.bias.head(s, unit.head).expanded;
  for (int64_t i0 = unit.firstQuery; i0 < unit.lastQuery; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, unit.lastQuery - i0);
    const int vectors = tileVectors(ni);
    packTile<T>(s, {q, stride, call.offsets + i0}, ni, m.timeQ, call.scale, vectors, m.queries, nullptr);
    windowSoftmaxOf(vectors, s, keys, keyRows, m.queries, bias ? bias + i0 * s.tokens : nullptr, m.logits, m.inverse,
                    m.lse, &ahead);
    weightedValues(s, ni, m.logits, vectors * kLanes, m.values, m.inverse, m.timeV, y, yRows + i0, &ahead);
    storeLse(call, m, unit, i0, ni);
  }
}

template <class T>
static void attendUnit(const AttentionCall<T> &call, const AttentionScratch &m, const AttentionUnit &unit,
                       const AttentionUnit *next) {
  const AttentionSizes &s = call.s;
  if (s.tokens <= kSmallWindow) {
    attendWindow(call, m, unit, next);
    return;
  }
  const int64_t stride = 3 * s.channels, token = unit.token(s), channel = unit.head * s.dim;
  const T *q = call.qkv + token * stride + channel;
  T *y = call.y + token * s.channels + channel;
  RowsAhead ahead;
  if (next) {
    addUnit(call, *next, &ahead);
    ahead.start(s.dim * (int64_t)sizeof(T), call.offsets, s.tokens,
                productSteps(s, unit.lastQuery - unit.firstQuery, 2));
  }

  loadTime(s, call.time, unit.sample, 0, unit.head, m.timeQ);
  loadTime(s, call.time, unit.sample, 2, unit.head, m.timeV);
  gatherRows<T>(s, {q + s.channels, stride, call.offsets}, s.tokens, m.keys);
  gatherRows<T>(s, {q + 2 * s.channels, stride, call.offsets}, s.tokens, m.values);
  for (int64_t i0 = unit.firstQuery; i0 < unit.lastQuery; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, unit.lastQuery - i0);
    const int64_t *offsets = call.offsets + i0;
    const int vectors = tileVectors(ni);
    packTile<T>(s, {q, stride, offsets}, ni, m.timeQ, call.scale, vectors, m.queries, nullptr);
    attendTileOf(vectors, s, m, call.bias.head(s, unit.head), i0, ni, &ahead);
    const TokenRows<T> to = {y, s.channels, offsets};
    unpackTile<T>(s, m.sum, vectors, m.inverse, m.timeV, ni, to, nullptr);
    storeLse(call, m, unit, i0, ni);
  }
}

template <class T>
static diffit_status attendIn(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                              const diffit_tensor *table, diffit_tensor *y, diffit_tensor *lse, int64_t heads,
                              int64_t windowH, int64_t windowW, double scale) {
  AttentionCall<T> call;
  const AttentionSizes &s = call.s = attentionSizes(qkv, heads, windowH, windowW);
  int64_t *offsets = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)s.tokens * sizeof(int64_t));
  AttentionScratch sizing;
  const size_t bytes = (size_t)carveAttention(s, nullptr, &sizing);
  bool enough = offsets && prepareBias(ctx, s, table ? f32(table) : nullptr, &call.bias);
  for (int t = 0; t < diffit_cpu_threads(ctx); t++) enough = enough && diffit_cpu_scratch(ctx, t, 0, bytes);
  if (!enough) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "attention: no memory for scratch");
  fillTokenOffsets(s, offsets);
  call.tasks = attentionTasks(s, 4 * s.channels * (int64_t)sizeof(float), true);
  call.qkv = (const T *)qkv->data;
  call.time = time ? f32(time) : nullptr;
  call.y = (T *)y->data;
  call.lse = lse ? f32(lse) : nullptr;
  call.offsets = offsets;
  call.scale = (float)scale;
  call.threads = diffit_cpu_threads(ctx);
  parallelChunks(ctx, call.tasks.total, 1, [&](int64_t index, int64_t, int thread) {
    AttentionScratch m;
    carveAttention(s, (float *)diffit_cpu_scratch(ctx, thread, 0, bytes), &m);
    forEachUnit(s, call.tasks, index, call.threads,
                [&](const AttentionUnit &unit, const AttentionUnit *next) { attendUnit(call, m, unit, next); });
  });
  return DIFFIT_OK;
}

static diffit_status attend(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                            const diffit_tensor *table, diffit_tensor *y, diffit_tensor *lse, int64_t heads,
                            int64_t windowH, int64_t windowW, double scale) {
  const diffit_status status = checkAttention(ctx, "attention", qkv, time, table, heads, windowH, windowW);
  if (status != DIFFIT_OK) return status;
  const int64_t tokens = qkv->shape[0] * qkv->shape[1] * qkv->shape[2];
  REQUIRE(y->dtype == qkv->dtype);
  REQUIRE(numel(y) == tokens * (qkv->shape[3] / 3));
  if (lse) {
    REQUIRE_F32(lse);
    REQUIRE(numel(lse) == tokens * heads);
  }
  if (tokens == 0) return DIFFIT_OK;
  return qkv->dtype == DIFFIT_BF16 ? attendIn<Bf16>(ctx, qkv, time, table, y, lse, heads, windowH, windowW, scale)
                                   : attendIn<float>(ctx, qkv, time, table, y, lse, heads, windowH, windowW, scale);
}

#endif
