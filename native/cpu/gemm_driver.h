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

static constexpr int64_t kBlockDepth = 256; /* steps of k per packed block */
static constexpr int64_t kBlockFloats = (int64_t)1 << 17; /* of a tile's block of A: half of a usual L2 */
static constexpr int64_t kTileFloats = (int64_t)1 << 17; /* of a tile's sums, when they wait for another block of k */
static constexpr int64_t kTaskWork = (int64_t)1 << 21; /* multiply-adds worth handing to another thread */
static constexpr int64_t kMaxTasks = 32; /* tiles are not cut smaller to have more tasks than this */
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

  void packB(const B &matrix, float *to, int64_t panel, int64_t block, float *stage) const {
    const int64_t col = panel * kMaxCols;
    matrix.pack(to, plan.panelCols(panel), col, imin(kMaxCols, plan.n - col), block * plan.depth,
                plan.blockDepth(block), stage);
  }

  void packShared(int64_t index, int thread) {
    float *stage = scratch(thread, kMaxLines * plan.depth);
    if (!stage) return;
    const int64_t block = index / plan.colPanels, panel = index % plan.colPanels;
    packB(b.at(0), sharedB + block * plan.depth * plan.paddedCols + panel * kMaxCols * plan.blockDepth(block), panel,
          block, stage);
  }

  /* One tile of y, over one split of k. */
  void tile(int64_t index, int thread) {
    const GemmPlan &p = plan;
    const int64_t colTile = index % p.colTiles, rowTile = index / p.colTiles % p.rowTiles;
    const int64_t split = index / (p.colTiles * p.rowTiles) % p.splits,
                  item = index / (p.colTiles * p.rowTiles * p.splits);
    const int64_t i0 = rowTile * p.tileRowPanels, i1 = imin(i0 + p.tileRowPanels, p.rowPanels);
    const int64_t j0 = colTile * p.tileColPanels, j1 = imin(j0 + p.tileColPanels, p.colPanels);
    const int64_t row0 = i0 * p.panelRows, col0 = j0 * kMaxCols;
    const int64_t tileCols = imin(j1 * kMaxCols, p.paddedCols) - col0;
    const int64_t firstBlock = split * p.splitBlocks, endBlock = imin(firstBlock + p.splitBlocks, p.blocks);
    const bool single = endBlock - firstBlock == 1 && p.splits == 1;

    const int64_t aFloats = roundUp((i1 - i0) * p.panelRows * p.depth, 16), bFloats = p.shareB ? 0 : kMaxCols * p.depth;
    const int64_t sumFloats = single || p.splits > 1 ? kMaxRows * kMaxCols : (i1 - i0) * p.panelRows * tileCols;
    float *aBlock = scratch(thread, aFloats + bFloats + roundUp(sumFloats, 16) + kMaxLines * p.depth);
    if (!aBlock) return;
    float *bBlock = aBlock + aFloats, *sums = bBlock + bFloats, *stage = sums + roundUp(sumFloats, 16);
    /* Where the sums of the tile's row 0, column 0 lie between blocks. */
    int64_t stride = tileCols;
    if (p.splits > 1) {
      stride = p.paddedCols;
      sums = partial + ((item * p.splits + split) * p.paddedRows() + row0) * stride + col0;
    }
    const A aItem = a.at(item);
    const B bItem = b.at(item);
    const bool straight = p.splits == 1 && epilogue.plain();

    for (int64_t block = firstBlock; block < endBlock; block++) {
      const int64_t depth = p.blockDepth(block);
      const bool add = block > firstBlock, finish = block == endBlock - 1 && p.splits == 1;
      for (int64_t j = j0; j < j1; j++) {
        const int64_t col = j * kMaxCols, width = p.panelCols(j), cols = imin(width, p.n - col);
        const float *bPanel;
        if (p.shareB) {
          bPanel = sharedB + block * p.depth * p.paddedCols + col * depth;
        } else {
          packB(bItem, bBlock, j, block, stage);
          bPanel = bBlock;
        }
        const MicroKernel kernel = kMicroKernels[width / kLanes - 1][p.panelRows - 1];
        for (int64_t i = i0; i < i1; i++) {
          const int64_t row = i * p.panelRows, rows = imin(p.panelRows, p.m - row), global = item * p.m + row;
          float *aPanel = aBlock + (i - i0) * p.panelRows * depth;
          if (block == endBlock - 1 && p.splits == 1) epilogue.prefetch(global, rows, col, cols);
          if (j == j0) aItem.pack(aPanel, p.panelRows, row, rows, block * p.depth, depth, stage);
          if (straight && rows == p.panelRows && cols == width) {
            kernel(depth, aPanel, bPanel, epilogue.y + global * p.n + col, p.n, add);
            continue;
          }
          float *c = single ? sums : sums + (row - row0) * stride + col - col0;
          const int64_t cStride = single ? kMaxCols : stride;
          kernel(depth, aPanel, bPanel, c, cStride, add);
          if (finish) finishTile(epilogue, c, cStride, global, rows, col, cols);
        }
      }
    }
  }

  /* y's rows begin .. end of one item from the partial sums of all splits, added in order. */
  void combine(int64_t item, int64_t begin, int64_t end) {
    const GemmPlan &p = plan;
    const int64_t step = p.paddedRows() * p.paddedCols;
    float *sums = partial + item * p.splits * step;
    for (int64_t row = begin; row < end; row++) {
      float *first = sums + row * p.paddedCols;
      for (int64_t col = 0; col < p.paddedCols; col += kLanes) {
        vf v = load(first + col);
        for (int64_t s = 1; s < p.splits; s++) v += load(first + s * step + col);
        store(first + col, v);
      }
      finishTile(epilogue, first, p.paddedCols, item * p.m + row, 1, 0, p.n);
    }
  }
};

/* Both packers have at(item): the packer of that item of the batch. `oneB`: B is the same for all of them. */
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
    parallelChunks(ctx, plan.blocks * plan.colPanels, 1,
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
