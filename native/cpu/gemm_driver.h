/*
 * The one driver of matrix products: y[i] = epilogue(A[i] B[i]), A [m, k], B [k, n], i < batch, for any packers of A and B
 * (gemm_pack.h, conv.h), blocked for the caches and spread over the threads.
 *
 * A task owns one tile of y and walks over k in blocks; a tile's sums stay in L2 between blocks and pass through the
 * epilogue as they are completed. B, which all row tiles read, is packed once by all threads when it is small enough to
 * stay in the outer caches, else by each task. Few tiles and a long k (weight gradients) split k instead: each split
 * writes partial sums, which are added in order. Blocks, tiles and splits depend on the sizes alone, and each number of y
 * is summed in the order of k within its split, so results have the same bits at any number of threads.
 *
 * Traffic: A is read n / kTileCols times, B once or m / kTileRows times, y and the epilogue's tensors once.
 */
#ifndef DIFFIT_CPU_GEMM_DRIVER_H
#define DIFFIT_CPU_GEMM_DRIVER_H

static constexpr int64_t kBlockDepth = 384; /* steps of k per packed block */
static constexpr int64_t kBlockFloats = (int64_t)1 << 17; /* of a tile's block of A: half of a usual L2 */
static constexpr int64_t kTileFloats = (int64_t)1 << 17; /* of a tile's sums, when they wait for another block of k */
static constexpr int64_t kTaskWork = (int64_t)1 << 21; /* multiply-adds worth handing to another thread */
static constexpr int64_t kMaxTasks = 32; /* tiles are not cut smaller to have more tasks than this */
static constexpr int64_t kGroupLines = 128; /* lines of A or B to pack in one go */
static constexpr int64_t kGroupPanels = kGroupLines / kMaxCols;
static constexpr int64_t kSharedFloats = (int64_t)1 << 23; /* most of B to keep packed */

/* How one product is cut; a function of its sizes. */
struct GemmPlan {
  int64_t batch, m, n, k;
  int64_t panelRows, rowPanels; /* panels of A */
  int64_t colPanels, paddedCols; /* panels of B, the last one narrower */
  int64_t depth, blocks; /* blocks of k */
  int64_t splits, splitBlocks; /* parts of k with sums of their own */
  int64_t tileRowPanels, tileColPanels; /* panels per tile */
  int64_t rowTiles, colTiles;
  bool shareB;

  int64_t tasks() const { return batch * splits * rowTiles * colTiles; }
  int64_t blockDepth(int64_t block) const { return imin(depth, k - block * depth); }
  int64_t panelCols(int64_t panel) const { return imin(kMaxCols, paddedCols - panel * kMaxCols); }
  /* Panels of B to pack together with the first: as many of the same width, before `end`. */
  int64_t groupEnd(int64_t panel, int64_t end) const {
    const int64_t whole = paddedCols / kMaxCols;
    return panel >= whole ? panel + 1 : imin(imin(whole, end), panel + kGroupPanels);
  }
  int64_t paddedRows() const { return rowPanels * panelRows; }
};

/* Chooses tiles and splits: of those that fit the caches and make `wanted` tasks, the ones that move the least. */
static void cutTiles(GemmPlan &p, int64_t wanted, bool oneB) {
  double best = -1;
  GemmPlan q = p;
  for (q.tileRowPanels = p.rowPanels;; q.tileRowPanels = ceilDiv(q.tileRowPanels, 2)) {
    q.rowTiles = ceilDiv(p.rowPanels, q.tileRowPanels);
    const int64_t tileRows = q.tileRowPanels * p.panelRows;
    for (q.tileColPanels = p.colPanels;; q.tileColPanels = ceilDiv(q.tileColPanels, 2)) {
      q.colTiles = ceilDiv(p.colPanels, q.tileColPanels);
      const int64_t tileFloats = tileRows * imin(q.tileColPanels * kMaxCols, p.paddedCols);
      for (q.splitBlocks = p.blocks;; q.splitBlocks = ceilDiv(q.splitBlocks, 2)) {
        q.splits = ceilDiv(p.blocks, q.splitBlocks);
        q.shareB = oneB && q.splits == 1 && p.batch * q.rowTiles > 1 && p.k * p.paddedCols <= kSharedFloats;
        const double aFloats = (double)(p.batch * p.m * p.k), bFloats = (double)(p.n * p.k),
                     tiles = (double)(p.batch * q.rowTiles);
        double moved = aFloats * (double)q.colTiles + bFloats * (q.shareB ? 1.5 + 0.25 * tiles : tiles);
        if (q.splits > 1) moved += 1.5 * (double)(p.batch * q.splits) * (double)(p.m * p.n);
        const bool fits =
            (tileRows * p.depth <= kBlockFloats || q.tileRowPanels == 1) &&
            (p.blocks == 1 || tileFloats <= kTileFloats || (q.tileRowPanels == 1 && q.tileColPanels == 1));
        if (!fits) moved *= 16;
        if (q.tasks() < wanted) moved *= (double)(4 * wanted) / (double)q.tasks();
        if (best < 0 || moved < best) {
          best = moved;
          p = q;
        }
        if (q.splitBlocks <= 2) break;
      }
      if (q.tileColPanels == 1) break;
    }
    if (q.tileRowPanels == 1) break;
  }
}

static GemmPlan planGemm(int64_t batch, int64_t m, int64_t n, int64_t k, bool oneB) {
  GemmPlan p = {};
  p.batch = batch, p.m = m, p.n = n, p.k = k;
  p.panelRows = ceilDiv(m, ceilDiv(m, kMaxRows));
  p.rowPanels = ceilDiv(m, p.panelRows);
  p.paddedCols = roundUp(n, kLanes);
  p.colPanels = ceilDiv(p.paddedCols, kMaxCols);
  p.depth = roundUp(ceilDiv(k, imax(1, ceilDiv(k, kBlockDepth))), 4);
  p.blocks = imax(1, ceilDiv(k, imax(1, p.depth)));
  const double tasks = (double)batch * (double)m * (double)n * (double)imax(k, 1) / (double)kTaskWork;
  cutTiles(p, tasks > (double)kMaxTasks ? kMaxTasks : imax(1, (int64_t)tasks), oneB);
  return p;
}

/* What one task works on. */
struct Tile {
  int64_t i0, i1, j0, j1; /* panels */
  int64_t firstBlock, endBlock; /* blocks of k */
  int64_t firstRow; /* of this item of the batch, in y */
  float *a, *b, *sums, *stage; /* the packed block of A, a group of panels of B, sums between blocks, for packers */
  int64_t stride; /* of the sums' rows */
};

template <class A, class B>
struct GemmCall {
  diffit_context *ctx;
  const A &a;
  const B &b;
  const Epilogue &epilogue;
  const GemmPlan &plan;
  float *sharedB; /* all of B, packed: [block][panel][depth][panelCols] */
  float *partial; /* [batch][split][paddedRows][paddedCols] when k is split */
  int failed;

  float *scratch(int thread, int64_t floats) {
    float *p = (float *)diffit_cpu_scratch(ctx, thread, 0, (size_t)floats * sizeof(float));
    if (!p) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    return p;
  }

  /* Panels begin .. end of B (a group) at one block of k. */
  void packB(const B &matrix, float *to, int64_t begin, int64_t end, int64_t block, float *stage) const {
    const int64_t col = begin * kMaxCols;
    packPanels(matrix, to, plan.panelCols(begin), col, imin(end * kMaxCols, plan.n) - col, block * plan.depth,
               plan.blockDepth(block), stage);
  }

  float *sharedPanel(int64_t panel, int64_t block) const {
    return sharedB + block * plan.depth * plan.paddedCols + panel * kMaxCols * plan.blockDepth(block);
  }

  /* One group of panels of the shared B. */
  void packShared(int64_t index, int thread) {
    const int64_t groups = ceilDiv(plan.colPanels, kGroupPanels), block = index / groups;
    const int64_t first = index % groups * kGroupPanels, last = imin(first + kGroupPanels, plan.colPanels);
    float *stage = scratch(thread, kMaxLines * plan.depth);
    for (int64_t j = first, end; stage && j < last; j = end) {
      end = plan.groupEnd(j, last);
      packB(b.at(0), sharedPanel(j, block), j, end, block, stage);
    }
  }

  /* One tile of y, over one split of k. */
  void tile(int64_t index, int thread) {
    const GemmPlan &p = plan;
    const int64_t colTile = index % p.colTiles, rowTile = index / p.colTiles % p.rowTiles;
    const int64_t part = index / (p.colTiles * p.rowTiles), split = part % p.splits, item = part / p.splits;
    Tile t;
    t.i0 = rowTile * p.tileRowPanels, t.i1 = imin(t.i0 + p.tileRowPanels, p.rowPanels);
    t.j0 = colTile * p.tileColPanels, t.j1 = imin(t.j0 + p.tileColPanels, p.colPanels);
    t.firstBlock = split * p.splitBlocks, t.endBlock = imin(t.firstBlock + p.splitBlocks, p.blocks);
    t.firstRow = item * p.m;
    t.stride = imin(t.j1 * kMaxCols, p.paddedCols) - t.j0 * kMaxCols;

    const int64_t rows = (t.i1 - t.i0) * p.panelRows;
    const int64_t aFloats = roundUp(rows * p.depth, 16), bFloats = p.shareB ? 0 : kGroupLines * p.depth;
    const int64_t sumFloats = t.firstBlock + 1 < t.endBlock && p.splits == 1 ? rows * t.stride : kMaxRows * kMaxCols;
    t.a = scratch(thread, aFloats + bFloats + sumFloats + kMaxLines * p.depth);
    if (!t.a) return;
    t.b = t.a + aFloats;
    t.sums = t.b + bFloats;
    t.stage = t.sums + sumFloats;
    if (p.splits > 1) {
      t.stride = p.paddedCols;
      t.sums = partial + (part * p.paddedRows() + t.i0 * p.panelRows) * t.stride + t.j0 * kMaxCols;
    }
    const A aItem = a.at(item);
    const B bItem = b.at(item);
    for (int64_t block = t.firstBlock; block < t.endBlock; block++)
      for (int64_t j = t.j0, end; j < t.j1; j = end) {
        end = p.groupEnd(j, t.j1);
        float *panels = p.shareB ? sharedPanel(j, block) : t.b;
        if (!p.shareB) packB(bItem, panels, j, end, block, t.stage);
        for (int64_t width = p.panelCols(j); j < end; j++, panels += width * p.blockDepth(block))
          column(t, aItem, panels, block, j);
      }
  }

  /* One panel of B against all rows of the tile, at one block of k. */
  void column(const Tile &t, const A &aItem, const float *bPanel, int64_t block, int64_t j) {
    const GemmPlan &p = plan;
    const int64_t depth = p.blockDepth(block), col = j * kMaxCols, width = p.panelCols(j),
                  cols = imin(width, p.n - col);
    const bool add = block > t.firstBlock, finish = block == t.endBlock - 1 && p.splits == 1;
    const bool single = !add && finish, straight = p.splits == 1 && cols == width && epilogue.plain();
    const int64_t group = imax(1, kGroupLines / p.panelRows);
    const MicroKernel kernel = width == kMaxCols ? microKernelOf<2>(p.panelRows) : microKernelOf<1>(p.panelRows);
    for (int64_t i = t.i0; i < t.i1; i++) {
      const int64_t row = i * p.panelRows, rows = imin(p.panelRows, p.m - row), global = t.firstRow + row;
      float *aPanel = t.a + (row - t.i0 * p.panelRows) * depth;
      if (finish) epilogue.prefetch(global, rows, col, cols);
      if (j == t.j0 && (i - t.i0) % group == 0)
        packPanels(aItem, aPanel, p.panelRows, row, imin(imin(i + group, t.i1) * p.panelRows, p.m) - row,
                   block * p.depth, depth, t.stage);
      if (straight && rows == p.panelRows) {
        kernel(depth, aPanel, bPanel, epilogue.y + global * p.n + col, p.n, add);
        continue;
      }
      const int64_t stride = single ? kMaxCols : t.stride;
      float *sums = single ? t.sums : t.sums + (i - t.i0) * p.panelRows * stride + (j - t.j0) * kMaxCols;
      kernel(depth, aPanel, bPanel, sums, stride, add);
      if (finish) finishTile(epilogue, sums, stride, global, rows, col, cols);
    }
  }

  /* y's rows begin .. end of one item from the partial sums of all splits, added in order. */
  void combine(int64_t item, int64_t begin, int64_t end) {
    const GemmPlan &p = plan;
    const int64_t step = p.paddedRows() * p.paddedCols;
    for (int64_t row = begin; row < end; row++) {
      float *first = partial + item * p.splits * step + row * p.paddedCols;
      for (int64_t col = 0; col < p.paddedCols; col += kLanes) {
        vf v = load(first + col);
        for (int64_t s = 1; s < p.splits; s++) v += load(first + s * step + col);
        store(first + col, v);
      }
      finishTile(epilogue, first, p.paddedCols, item * p.m + row, 1, 0, p.n);
    }
  }
};

template <class A, class B>
static diffit_status multiply(diffit_context *ctx, const A &a, const B &b, const Epilogue &epilogue, int64_t batch,
                              int64_t m, int64_t n, int64_t k, bool oneB) {
  if (batch == 0 || m == 0 || n == 0) return DIFFIT_OK;
  const GemmPlan plan = planGemm(batch, m, n, k, oneB);
  GemmCall<A, B> call = {ctx, a, b, epilogue, plan, nullptr, nullptr, 0};
  if (plan.shareB) {
    call.sharedB = (float *)diffit_cpu_shared(ctx, 0, (size_t)(k * plan.paddedCols) * sizeof(float));
    if (!call.sharedB) call.failed = 1;
  }
  if (plan.splits > 1) {
    const int64_t floats = batch * plan.splits * plan.paddedRows() * plan.paddedCols;
    call.partial = (float *)diffit_cpu_shared(ctx, 0, (size_t)floats * sizeof(float));
    if (!call.partial) call.failed = 1;
  }
  if (plan.shareB && !call.failed)
    parallelChunks(ctx, plan.blocks * ceilDiv(plan.colPanels, kGroupPanels), 1,
                   [&](int64_t index, int64_t, int thread) { call.packShared(index, thread); });
  if (!call.failed)
    parallelChunks(ctx, plan.tasks(), 1, [&](int64_t index, int64_t, int thread) { call.tile(index, thread); });
  if (call.failed)
    return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY,
                           "no scratch memory for a product of [%lld, %lld] and [%lld, %lld]", (long long)m,
                           (long long)k, (long long)k, (long long)n);
  if (plan.splits > 1) {
    const int64_t grain = imax(1, 16384 / plan.paddedCols);
    for (int64_t item = 0; item < batch; item++)
      parallelChunks(ctx, m, grain, [&](int64_t begin, int64_t end, int) { call.combine(item, begin, end); });
  }
  return DIFFIT_OK;
}

#endif
