/*
 * TMSA's attention (paper Eq. 3-6): y = softmax(scale (q + q_t) k^T + B) v + v_t per sample, window and head, with B
 * read from the relative-position table and the time token's part of k left out, which a softmax cannot see.
 *
 * Flash attention (Dao et al., arXiv 2205.14135) on tiles of queries: the logits of one tile and one block of keys
 * stay in the first-level cache, the running maximum and sum of each query correct what was added before. q is read
 * once from the qkv rows, wherever a window has them, k and v once per 256 queries; y and lse are written once.
 */
#ifndef DIFFIT_CPU_ATTENTION_H
#define DIFFIT_CPU_ATTENTION_H

/* How a call is cut into tasks: by sizes alone. */
struct AttentionTasks {
  int64_t windows, chunks; /* windows of one task, such groups in a sample */
  int64_t queries, queryBlocks; /* queries of one task, such groups in a window */
  int64_t heads, headGroups; /* heads of one task (all of them or one), such groups */
  bool warm; /* a task uses whole rows, and they fit a cache */
  int64_t total;
};
/* rowBytes: memory of one token over all tensors of the call. */
static AttentionTasks attentionTasks(const AttentionSizes &s, int64_t rowBytes, bool splitQueries) {
  AttentionTasks t;
  t.windows = s.tokens <= kSmallWindow ? imax(1, kTaskBytes / imax(1, s.tokens * rowBytes)) : 1;
  if (t.windows > s.windowsX) t.windows -= t.windows % s.windowsX; /* whole bands of the grid lie together in memory */
  t.chunks = ceilDiv(s.windows, t.windows);
  t.queries = splitQueries ? imin(s.tokens, kTaskQueries) : s.tokens;
  t.queryBlocks = ceilDiv(s.tokens, t.queries);
  t.warm = t.windows * s.tokens * rowBytes <= 2 * kTaskBytes && (s.heads == 1 || s.batch * t.chunks >= kManyTasks);
  t.heads = t.warm ? s.heads : 1;
  t.headGroups = ceilDiv(s.heads, t.heads);
  t.total = s.batch * t.chunks * t.queryBlocks * t.headGroups;
  return t;
}

/* Where task `index` works. */
struct AttentionPlace {
  int64_t firstHead, lastHead, firstQuery, lastQuery, firstWindow, lastWindow, chunk, sample;
};
static AttentionPlace attentionPlace(const AttentionSizes &s, const AttentionTasks &t, int64_t index) {
  AttentionPlace p;
  p.firstHead = index % t.headGroups * t.heads;
  p.lastHead = p.firstHead + t.heads;
  index /= t.headGroups;
  p.firstQuery = index % t.queryBlocks * t.queries;
  p.lastQuery = imin(s.tokens, p.firstQuery + t.queries);
  index /= t.queryBlocks;
  p.chunk = index % t.chunks;
  p.firstWindow = p.chunk * t.windows;
  p.lastWindow = imin(s.windows, p.firstWindow + t.windows);
  p.sample = index / t.chunks;
  return p;
}

/* Brings the rows (`width` floats a token) of a task's windows into the cache in the order of memory. Heads use short
   pieces of rows far apart, which is many times slower where the hardware cannot guess the next. */
static void warmRows(const AttentionSizes &s, const AttentionPlace &p, const float *from, int64_t width) {
  vf sum = set1(0.0f);
  for (int64_t w = p.firstWindow; w < p.lastWindow;) {
    const int64_t windows = imin(p.lastWindow - w, s.windowsX - w % s.windowsX);
    const float *corner = from + (p.sample * s.height * s.width + windowOrigin(s, w)) * width;
    for (int64_t y = 0; y < s.windowH; y++)
      for (int64_t i = 0; i + kLanes <= windows * s.windowW * width; i += 16)
        sum += load(corner + y * s.width * width + i);
    w += windows;
  }
  __asm__ volatile("" : : "m"(sum)); /* the loads are the purpose */
}

/* What both directions check before they trust a size. */
static diffit_status checkAttention(diffit_context *ctx, const char *op, const diffit_tensor *qkv,
                                    const diffit_tensor *time, const diffit_tensor *table, int64_t heads,
                                    int64_t windowH, int64_t windowW) {
#define EXPECT(condition) \
  if (!(condition)) return diffit_cpu_fail(ctx, DIFFIT_INVALID, "%s: expected %s", op, #condition)
  EXPECT(qkv->dtype == DIFFIT_F32 && qkv->ndim == 4);
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

/* A head's bias as tiles use it: small windows have it expanded, per tile [tokens, tile]; others have a column of the
   table. Both NULL without a table. */
struct HeadBias {
  const float *expanded, *column;
};
struct BiasTable {
  float *columns; /* [heads, tableRows], or NULL */
  float *expanded; /* [heads, expandedSize], or NULL */
  int64_t expandedSize;
  HeadBias head(const AttentionSizes &s, int64_t h) const {
    return {expanded ? expanded + h * expandedSize : nullptr, columns ? columns + h * s.tableRows : nullptr};
  }
};

/* Prepares the table for all heads in shared slot 1; false when memory is out. */
static bool prepareBias(diffit_context *ctx, const AttentionSizes &s, const float *table, BiasTable *bias) {
  bias->columns = bias->expanded = nullptr;
  bias->expandedSize = s.tokens * roundUp(s.tokens, kLanes);
  if (!table) return true;
  const bool small = s.tokens <= kSmallWindow;
  const int64_t columnFloats = roundUp(s.heads * s.tableRows + kLanes, 16);
  const int64_t floats = columnFloats + (small ? s.heads * bias->expandedSize + kLanes : 0);
  float *memory = (float *)diffit_cpu_shared(ctx, 1, (size_t)floats * sizeof(float));
  if (!memory) return false;
  bias->columns = memory;
  splitTable(s, table, bias->columns);
  if (!small) return true;
  bias->expanded = memory + columnFloats;
  for (int64_t h = 0; h < s.heads; h++)
    for (int64_t i0 = 0; i0 < s.tokens; i0 += kTileQueries) {
      const int64_t ni = imin(kTileQueries, s.tokens - i0);
      expandBias(s, bias->columns + h * s.tableRows, i0, ni, 0, s.tokens,
                 bias->expanded + h * bias->expandedSize + i0 * s.tokens, roundUp(ni, kLanes));
    }
  return true;
}

/* m.logits = bias + keys [j0, j0 + nj) times the tile's queries [i0, i0 + ni). */
template <int VECTORS>
static void tileLogits(const AttentionSizes &s, const AttentionScratch &m, HeadBias bias, int64_t i0, int64_t ni,
                       int64_t j0, int64_t nj) {
  constexpr int64_t ld = VECTORS * kLanes;
  const float *init = nullptr;
  if (bias.expanded) {
    init = bias.expanded + i0 * s.tokens;
  } else if (bias.column) {
    expandBias(s, bias.column, i0, ni, j0, nj, m.logits, ld);
    init = m.logits;
  }
  productRows<VECTORS, false>(nj, s.dim, m.keys + j0 * s.padded, s.padded, m.queries, ld, init, nullptr, m.logits, ld);
}

/* Softmax and weighted sum of one tile: y = m.sum [dim, query] * m.inverse [query], and m.lse. */
template <int VECTORS>
static void attendTile(const AttentionSizes &s, const AttentionScratch &m, HeadBias bias, int64_t i0, int64_t ni) {
  constexpr int64_t ld = VECTORS * kLanes;
  vf top[VECTORS], total[VECTORS];
  float correction[VECTORS * kLanes];
  for (int v = 0; v < VECTORS; v++) {
    top[v] = set1(-3e38f);
    total[v] = set1(0.0f);
  }
  for (int64_t j0 = 0; j0 < s.tokens; j0 += kKeyBlock) {
    const int64_t nj = imin(kKeyBlock, s.tokens - j0);
    tileLogits<VECTORS>(s, m, bias, i0, ni, j0, nj);
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

static void attendTileOf(int vectors, const AttentionSizes &s, const AttentionScratch &m, HeadBias bias, int64_t i0,
                         int64_t ni) {
  if (vectors == 1) attendTile<1>(s, m, bias, i0, ni);
  if (vectors == 2) attendTile<2>(s, m, bias, i0, ni);
  if (kTileVectors == 4 && vectors == 3) attendTile<kTileVectors == 4 ? 3 : 1>(s, m, bias, i0, ni);
  if (kTileVectors == 4 && vectors == 4) attendTile<kTileVectors>(s, m, bias, i0, ni);
}

static diffit_status attend(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
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

  if (s.batch * gridTokens == 0) return DIFFIT_OK;

  int64_t *offsets = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)s.tokens * sizeof(int64_t));
  BiasTable bias;
  AttentionScratch sizing;
  const size_t bytes = (size_t)carveAttention(s, nullptr, &sizing);
  bool enough = offsets && prepareBias(ctx, s, table ? f32(table) : nullptr, &bias);
  for (int t = 0; t < diffit_cpu_threads(ctx); t++) enough = enough && diffit_cpu_scratch(ctx, t, 0, bytes);
  if (!enough) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "attention: no memory for scratch");
  fillTokenOffsets(s, offsets);

  const int64_t stride = 3 * s.channels;
  const AttentionTasks tasks = attentionTasks(s, (stride + s.channels) * (int64_t)sizeof(float), true);
  parallelChunks(ctx, tasks.total, 1, [&](int64_t index, int64_t, int thread) {
    const AttentionPlace place = attentionPlace(s, tasks, index);
    AttentionScratch m;
    carveAttention(s, (float *)diffit_cpu_scratch(ctx, thread, 0, bytes), &m);
    if (tasks.warm) {
      warmRows(s, place, f32(qkv), stride);
      warmRows(s, place, f32(y), s.channels);
    }
    for (int64_t head = place.firstHead; head < place.lastHead; head++) {
      loadTime(s, time ? f32(time) : nullptr, place.sample, 0, head, m.timeQ);
      loadTime(s, time ? f32(time) : nullptr, place.sample, 2, head, m.timeV);
      for (int64_t w = place.firstWindow; w < place.lastWindow; w++) {
        const int64_t corner = windowOrigin(s, w), origin = place.sample * gridTokens + corner;
        const float *q = f32(qkv) + origin * stride + head * s.dim;
        float *to = f32(y) + origin * s.channels + head * s.dim;
        gatherRows(s, q + s.channels, stride, offsets, s.tokens, m.keys);
        gatherRows(s, q + 2 * s.channels, stride, offsets, s.tokens, m.values);
        for (int64_t i0 = place.firstQuery; i0 < place.lastQuery; i0 += kTileQueries) {
          const int64_t ni = imin(kTileQueries, place.lastQuery - i0);
          const int vectors = tileVectors(ni);
          packTile(s, q, stride, offsets + i0, ni, m.timeQ, (float)scale, vectors, m.queries, nullptr);
          attendTileOf(vectors, s, m, bias.head(s, head), i0, ni);
          unpackTile(s, m.sum, vectors, m.inverse, m.timeV, ni, to, s.channels, offsets + i0, nullptr);
          if (!lse) continue;
          float *row = f32(lse) + (place.sample * heads + head) * gridTokens + corner;
          for (int64_t i = 0; i < ni; i++) row[offsets[i0 + i]] = m.lse[i];
        }
      }
    }
  });
  return DIFFIT_OK;
}

#endif
