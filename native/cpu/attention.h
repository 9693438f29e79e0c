/*
 * TMSA's attention (paper Eq. 3-6): y = softmax(scale (q + q_t) k^T + B) v + v_t per sample, window and head, with B
 * read from the relative-position table and the time token's part of k left out, which a softmax cannot see.
 *
 * Flash attention (Dao et al., arXiv 2205.14135) on tiles of queries: the logits of one tile and one block of keys
 * stay in the first-level cache, the running maximum and sum of each query correct what was added before. q, k and v
 * are read once from the qkv rows, wherever a window has them; y and lse are written once.
 */
#ifndef DIFFIT_CPU_ATTENTION_H
#define DIFFIT_CPU_ATTENTION_H

/* How a call is cut into tasks: by sizes alone. */
struct AttentionTasks {
  int64_t windows, chunks;         /* windows of one task, such groups in a sample */
  int64_t queries, queryBlocks;    /* queries of one task, such groups in a window */
  int64_t total;
};
static AttentionTasks attentionTasks(const AttentionSizes &s, bool splitQueries) {
  AttentionTasks t;
  t.windows = imax(1, kTokensPerTask / s.tokens);
  t.chunks = ceilDiv(s.windows, t.windows);
  t.queries = splitQueries ? imin(s.tokens, kTokensPerTask) : s.tokens;
  t.queryBlocks = ceilDiv(s.tokens, t.queries);
  t.total = s.batch * t.chunks * t.queryBlocks * s.heads;
  return t;
}

/* Where task `index` works: heads change fastest, because neighbouring heads share cache lines. */
struct AttentionPlace {
  int64_t head, firstQuery, lastQuery, firstWindow, lastWindow, sample;
};
static AttentionPlace attentionPlace(const AttentionSizes &s, const AttentionTasks &t, int64_t index) {
  AttentionPlace p;
  p.head = index % s.heads;
  index /= s.heads;
  p.firstQuery = index % t.queryBlocks * t.queries;
  p.lastQuery = imin(s.tokens, p.firstQuery + t.queries);
  index /= t.queryBlocks;
  p.firstWindow = index % t.chunks * t.windows;
  p.lastWindow = imin(s.windows, p.firstWindow + t.windows);
  p.sample = index / t.chunks;
  return p;
}

/* What both directions check before they trust a size. */
static diffit_status checkAttention(diffit_context *ctx, const char *op, const diffit_tensor *qkv,
                                    const diffit_tensor *time, const diffit_tensor *table, int64_t heads,
                                    int64_t windowH, int64_t windowW) {
#define EXPECT(condition) \
  if (!(condition)) return diffit_cpu_fail(ctx, DIFFIT_INVALID, "%s: expected %s", op, #condition)
  EXPECT(qkv->dtype == DIFFIT_F32 && qkv->ndim == 4);
  EXPECT(heads >= 1 && qkv->shape[3] % (3 * heads) == 0);
  EXPECT(windowH >= 1 && windowW >= 1);
  EXPECT(qkv->shape[1] % windowH == 0 && qkv->shape[2] % windowW == 0);
  if (time) EXPECT(time->dtype == DIFFIT_F32 && numel(time) == qkv->shape[0] * qkv->shape[3]);
  if (table) EXPECT(table->dtype == DIFFIT_F32 && numel(table) == (2 * windowH - 1) * (2 * windowW - 1) * heads);
#undef EXPECT
  return DIFFIT_OK;
}

/* Row `part` (0 q, 1 k, 2 v) of the time token for one head, zeros without one; padded to whole vectors. */
static void loadTime(const AttentionSizes &s, const float *time, int64_t sample, int64_t part, int64_t head,
                     float *row) {
  const float *from = time + (sample * 3 + part) * s.channels + head * s.dim;
  for (int64_t c = 0; c < s.dim; c += kLanes) store(row + c, time ? loadColumns(from, c, s.dim) : set1(0.0f));
}

/* Memory of one thread. */
struct AttentionScratch {
  float *keys, *values;        /* [tokens, padded] */
  float *queries, *sum;        /* [padded, tile] */
  float *logits;               /* [kKeyBlock, tile], then a vector of slack */
  float *bias;                 /* of a small window: per tile [tokens, tile], then a vector of slack */
  float *timeQ, *timeV;        /* [padded] */
  float *lse, *inverse;        /* [tile] */
};
static int64_t carveAttention(const AttentionSizes &s, float *base, AttentionScratch *m) {
  Carver carver = {base, 0};
  m->keys = carver.take(s.tokens * s.padded);
  m->values = carver.take(s.tokens * s.padded);
  m->queries = carver.take(s.padded * kTileQueries);
  m->sum = carver.take(s.padded * kTileQueries);
  m->logits = carver.take(kKeyBlock * kTileQueries + kLanes);
  m->bias = carver.take(s.tokens <= kSmallWindow ? s.tokens * roundUp(s.tokens, kTileQueries) + kLanes : 0);
  m->timeQ = carver.take(s.padded);
  m->timeV = carver.take(s.padded);
  m->lse = carver.take(kTileQueries);
  m->inverse = carver.take(kTileQueries);
  return carver.used * (int64_t)sizeof(float);
}

/* The vectors that a tile of n queries needs. */
DIFFIT_INLINE int tileVectors(int64_t n) { return (int)ceilDiv(n, kLanes); }

/* m.logits = bias + keys [j0, j0 + nj) times the tile's queries [i0, i0 + ni). `column` is the head's table or NULL. */
template <int VECTORS>
static void tileLogits(const AttentionSizes &s, const AttentionScratch &m, const float *column, int64_t i0, int64_t ni,
                       int64_t j0, int64_t nj) {
  constexpr int64_t ld = VECTORS * kLanes;
  const float *bias = nullptr;
  if (column && s.tokens <= kSmallWindow) {
    bias = m.bias + i0 * s.tokens;
  } else if (column) {
    expandBias(s, column, i0, ni, j0, nj, m.logits, ld);
    bias = m.logits;
  }
  productRows<VECTORS, false>(nj, s.dim, m.keys + j0 * s.padded, s.padded, m.queries, ld, bias, nullptr, m.logits, ld);
}

/* The bias of all tiles of a small window, where tileLogits looks for it. */
static void expandSmallBias(const AttentionSizes &s, const float *column, float *bias) {
  for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
    const int64_t ni = imin(kTileQueries, s.tokens - i0);
    expandBias(s, column, i0, ni, 0, s.tokens, bias + i0 * s.tokens, tileVectors(ni) * kLanes);
  }
}

/* Softmax and weighted sum of one tile: m.sum [dim, query] = P v before division by m.inverse's inverse; m.lse. */
template <int VECTORS>
static void attendTile(const AttentionSizes &s, const AttentionScratch &m, const float *column, int64_t i0,
                       int64_t ni) {
  constexpr int64_t ld = VECTORS * kLanes;
  vf top[VECTORS], total[VECTORS];
  float correction[VECTORS * kLanes];
  for (int v = 0; v < VECTORS; v++) {
    top[v] = set1(-3e38f);
    total[v] = set1(0.0f);
  }
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kKeyBlock) {
    const int64_t nj = imin(kKeyBlock, s.tokens - j0);
    tileLogits<VECTORS>(s, m, column, i0, ni, j0, nj);
    vf highest[VECTORS];
    for (int v = 0; v < VECTORS; v++) highest[v] = top[v];
    for (int64_t j = 0; j < nj; j++)
      for (int v = 0; v < VECTORS; v++) highest[v] = vmax(load(m.logits + j * ld + v * kLanes), highest[v]);
    for (int v = 0; v < VECTORS; v++) {
      const vf factor = vexp(top[v] - highest[v]);
      store(correction + v * kLanes, factor);
      total[v] *= factor;
      top[v] = highest[v];
    }
    for (int64_t j = 0; j < nj; j++)
      for (int v = 0; v < VECTORS; v++) {
        float *at = m.logits + j * ld + v * kLanes;
        const vf p = vexp(load(at) - top[v]);
        total[v] += p;
        store(at, p);
      }
    productRows<VECTORS, true>(s.dim, nj, m.values + j0 * s.padded, s.padded, m.logits, ld, j0 ? m.sum : nullptr,
                               j0 ? correction : nullptr, m.sum, ld);
  }
  for (int v = 0; v < VECTORS; v++) {
    store(m.inverse + v * kLanes, set1(1.0f) / total[v]);
    store(m.lse + v * kLanes, top[v] + vlog(total[v]));
  }
}

static void attendTileOf(int vectors, const AttentionSizes &s, const AttentionScratch &m, const float *column,
                         int64_t i0, int64_t ni) {
  if (vectors == 1) attendTile<1>(s, m, column, i0, ni);
  if (vectors == 2) attendTile<2>(s, m, column, i0, ni);
  if (kTileVectors == 4 && vectors == 3) attendTile<kTileVectors == 4 ? 3 : 1>(s, m, column, i0, ni);
  if (kTileVectors == 4 && vectors == 4) attendTile<kTileVectors>(s, m, column, i0, ni);
}

static diffit_status attention_op(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                  const diffit_tensor *table, diffit_tensor *y, diffit_tensor *lse, int64_t heads,
                                  int64_t windowH, int64_t windowW, double scale) {
  const diffit_status status = checkAttention(ctx, "attention", qkv, time, table, heads, windowH, windowW);
  if (status != DIFFIT_OK) return status;
  const AttentionSizes s = attentionSizes(qkv, heads, windowH, windowW);
  const int64_t gridTokens = s.height * s.width;
  REQUIRE_F32(y);
  REQUIRE(numel(y) == s.batch * gridTokens * s.channels);
  if (lse) {
    REQUIRE_F32(lse);
    REQUIRE(numel(lse) == s.batch * s.heads * gridTokens);
  }

  int64_t *offsets = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)s.tokens * sizeof(int64_t));
  float *columns = nullptr;
  if (table) columns = (float *)diffit_cpu_shared(ctx, 1, (size_t)(heads * s.tableRows + kLanes) * sizeof(float));
  AttentionScratch sizing;
  const size_t bytes = (size_t)carveAttention(s, nullptr, &sizing);
  bool enough = offsets && (columns || !table);
  for (int t = 0; t < diffit_cpu_threads(ctx); t++) enough = enough && diffit_cpu_scratch(ctx, t, 0, bytes);
  if (!enough) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "attention: no memory for scratch");
  fillTokenOffsets(s, offsets);
  if (table) splitTable(s, f32(table), columns);

  const AttentionTasks tasks = attentionTasks(s, true);
  const int64_t stride = 3 * s.channels;
  parallelChunks(ctx, tasks.total, 1, [&](int64_t index, int64_t, int thread) {
    const AttentionPlace place = attentionPlace(s, tasks, index);
    AttentionScratch m;
    carveAttention(s, (float *)diffit_cpu_scratch(ctx, thread, 0, bytes), &m);
    const float *column = table ? columns + place.head * s.tableRows : nullptr;
    if (column && s.tokens <= kSmallWindow) expandSmallBias(s, column, m.bias);
    loadTime(s, time ? f32(time) : nullptr, place.sample, 0, place.head, m.timeQ);
    loadTime(s, time ? f32(time) : nullptr, place.sample, 2, place.head, m.timeV);
    for (int64_t w = place.firstWindow; w < place.lastWindow; w++) {
      const int64_t origin = place.sample * gridTokens + windowOrigin(s, w);
      const float *q = f32(qkv) + origin * stride + place.head * s.dim;
      gatherRows(s, q + s.channels, stride, offsets, s.tokens, m.keys);
      gatherRows(s, q + 2 * s.channels, stride, offsets, s.tokens, m.values);
      for (int64_t i0 = place.firstQuery; i0 < place.lastQuery; i0 += kTileQueries) {
        const int64_t ni = imin(kTileQueries, place.lastQuery - i0);
        const int vectors = tileVectors(ni);
        packTile(s, q, stride, offsets + i0, ni, m.timeQ, (float)scale, vectors, m.queries, nullptr);
        attendTileOf(vectors, s, m, column, i0, ni);
        unpackTile(s, m.sum, vectors, m.inverse, m.timeV, ni, f32(y) + origin * s.channels + place.head * s.dim,
                   s.channels, offsets + i0, nullptr);
        if (!lse) continue;
        float *row = f32(lse) + (place.sample * heads + place.head) * gridTokens + windowOrigin(s, w);
        for (int64_t i = 0; i < ni; i++) row[offsets[i0 + i]] = m.lse[i];
      }
    }
  });
  return DIFFIT_OK;
}

#endif
