/*
 * How a matrix product is cut into tasks and blocks.
 *
 * The cut with the least estimated time wins. The estimate counts multiply-adds: those of the product, what packing, partial sums,
 * reads beyond L2 and tasks cost in their stead, and a tail, in which threads wait for the last task.
 *
 * The order in which a number of y is summed follows from the blocks and splits of k, and these from the sizes alone. Which tile it
 * lies in changes no bit of it, so tiles may be cut for the threads at hand.
 */
#ifndef DIFFIT_CPU_GEMM_PLAN_H
#define DIFFIT_CPU_GEMM_PLAN_H

static constexpr int64_t kBlockDepth = 384; /* steps of k per packed block */
static constexpr int64_t kBlockFloats = kBlockDepth * 384; /* of a tile's block of B: about half of a small L2 */
static constexpr int64_t kTileFloats = (int64_t)1 << 17; /* of a tile's sums, when they wait for another block of k */
static constexpr int64_t kSharedFloats = (int64_t)1 << 23; /* most of B to keep packed */
static constexpr int64_t kGroupLines = 128; /* lines of A or B to pack in one go */
static constexpr int64_t kGroupPanels = kGroupLines / kMaxCols;

/* Estimates, in multiply-adds: of packing a number of B that was fetched before, of reading one that others packed, of a number of
   a partial sum, of one of a sum that left L2 between two blocks, of a task, and of starting the threads. */
static constexpr double kFetchedWork = 14, kSharedWork = 10, kPartialWork = 32, kOuterSumWork = 8;
static constexpr double kLeftPacks = 4; /* to pack a number of A, which interrupts the products, in packs of one of B */
static constexpr double kTaskWork = 1 << 17, kForkWork = 1 << 18;
static constexpr double kTail = 0.1; /* of a task, which the threads do not share evenly */
static constexpr int64_t kUsualThreads = 16; /* for which k is split, whatever their number */

/* Which tile of which item of the batch, over which split of k. */
struct TileIndex {
  int64_t item, split, row, col;
};

struct GemmPlan {
  int64_t batch, m, n, k;
  int64_t panelRows, rowPanels,
      tallPanels; /* panels of A: tallPanels of panelRows lines, then those of one line less */
  int64_t colPanels, paddedCols; /* panels of B, the last one narrower */
  int64_t depth, blocks; /* blocks of k */
  int64_t splits, splitBlocks; /* parts of k with sums of their own */
  int64_t tileRowPanels, tileColPanels; /* panels per tile */
  int64_t rowTiles, colTiles;
  bool shareB;

  int64_t tasks() const { return batch * splits * rowTiles * colTiles; }
  TileIndex tileAt(int64_t index) const {
    const int64_t part = index / (colTiles * rowTiles);
    return {part / splits, part % splits, index / colTiles % rowTiles, index % colTiles};
  }
  int64_t blockDepth(int64_t block) const { return imin(depth, k - block * depth); }
  /* The first row of a panel of A, and how many it has. */
  int64_t rowOf(int64_t panel) const { return panel * panelRows - imax(0, panel - tallPanels); }
  int64_t rowsOf(int64_t panel) const { return panelRows - (panel >= tallPanels); }
  /* Panels of A to pack together with the first: as many of the same height, before `end`. */
  int64_t rowGroupEnd(int64_t panel, int64_t end) const {
    const int64_t last = panel < tallPanels ? imin(end, tallPanels) : end;
    return imin(last, panel + imax(1, kGroupLines / panelRows));
  }
  int64_t panelCols(int64_t panel) const { return imin(kMaxCols, paddedCols - panel * kMaxCols); }
  /* Panels of B to pack together with the first: as many of the same width, before `end`. */
  int64_t groupEnd(int64_t panel, int64_t end) const {
    const int64_t whole = paddedCols / kMaxCols;
    return panel >= whole ? panel + 1 : imin(imin(whole, end), panel + kGroupPanels);
  }
};

/* The estimate for the cut in p; workA: of reading or packing a number of A once for every tile of columns, workB: of packing one of
   B. */
static double estimateWork(const GemmPlan &p, double workA, double workB, int64_t threads) {
  const double m = (double)p.m, n = (double)p.n, k = (double)p.k, batch = (double)p.batch;
  const int64_t tileRows = p.tileRowPanels * p.panelRows, tileCols = p.tileColPanels * kMaxCols;
  const double runs = 1 + 64.0 / (double)imin(tileRows, kGroupLines); /* short runs of A waste cache lines */
  const double tasks = (double)p.tasks(), fetched = workB < kFetchedWork ? workB : kFetchedWork;
  double work = batch * m * n * k + workA * runs * batch * m * k * (double)p.colTiles;
  if (p.shareB)
    work += kForkWork + n * k * (workB + kSharedWork * batch * (double)p.rowTiles);
  else
    work += n * k * fetched * batch * (double)p.rowTiles;
  if (!p.shareB) /* nobody fetched a thread's first block */
    work += (workB - fetched) * (double)(tileCols * p.depth * imin(threads, p.tasks()));
  if (p.splits > 1) work += kForkWork + kPartialWork * batch * (double)p.splits * m * n;
  if (tileCols * p.depth > kBlockFloats && p.tileColPanels > 1) work *= 2;
  if (p.splitBlocks > 1 && p.splits == 1 && tileRows * tileCols > kTileFloats)
    work += kOuterSumWork * batch * m * n * (double)(p.blocks - 1);
  work += kTaskWork * tasks;
  return work * (double)(ceilDiv(p.tasks(), threads) * threads) / tasks + kTail * work / tasks;
}

/* The best cut of p's rows and columns, with k in splits of p.splitBlocks blocks; how much work it is. */
static double cutTiles(GemmPlan *p, bool oneB, double workA, double workB, int64_t threads) {
  static constexpr int64_t kMostCuts = 64; /* of rows, of columns */
  double best = -1;
  GemmPlan q = *p;
  q.splits = ceilDiv(p->blocks, p->splitBlocks);
  for (int64_t rowTiles = 1; rowTiles <= imin(p->rowPanels, kMostCuts); rowTiles++) {
    q.tileRowPanels = ceilDiv(p->rowPanels, rowTiles);
    q.rowTiles = ceilDiv(p->rowPanels, q.tileRowPanels);
    if (q.rowTiles != rowTiles) continue;
    for (int64_t colTiles = 1; colTiles <= imin(p->colPanels, kMostCuts); colTiles++) {
      q.tileColPanels = ceilDiv(p->colPanels, colTiles);
      q.colTiles = ceilDiv(p->colPanels, q.tileColPanels);
      if (q.colTiles != colTiles) continue;
      for (int share = 0; share < 2; share++) {
        q.shareB = share != 0;
        if (q.shareB && !(oneB && q.splits == 1 && p->batch * q.rowTiles > 1 && p->k * p->paddedCols <= kSharedFloats))
          break;
        const double work = estimateWork(q, workA, workB, threads);
        if (best >= 0 && work >= best) continue;
        best = work;
        *p = q;
      }
    }
  }
  return best;
}

static GemmPlan planGemm(int64_t batch, int64_t m, int64_t n, int64_t k, bool oneB, double workA, double workB,
                         int64_t threads) {
  GemmPlan p = {};
  p.batch = batch, p.m = m, p.n = n, p.k = k;
  p.rowPanels = ceilDiv(m, kMaxRows);
  p.panelRows = ceilDiv(m, p.rowPanels);
  p.tallPanels = m - p.rowPanels * (p.panelRows - 1);
  p.paddedCols = roundUp(n, kLanes);
  p.colPanels = ceilDiv(p.paddedCols, kMaxCols);
  p.depth = roundUp(ceilDiv(k, imax(1, ceilDiv(k, kBlockDepth))), 4);
  p.blocks = imax(1, ceilDiv(k, imax(1, p.depth)));
  p.splitBlocks = p.blocks;
  if (p.blocks > 1) { /* into how many splits, by the sizes alone */
    double best = -1;
    int64_t splitBlocks = p.blocks;
    for (GemmPlan q = p;; q.splitBlocks = ceilDiv(q.splitBlocks, 2)) {
      const double work = cutTiles(&q, oneB, workA, workB, kUsualThreads);
      if (best < 0 || work < best) best = work, splitBlocks = q.splitBlocks;
      if (q.splitBlocks <= 2) break;
    }
    p.splitBlocks = splitBlocks;
  }
  cutTiles(&p, oneB, workA, workB, threads);
  return p;
}

#endif
