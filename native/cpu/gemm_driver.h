/*
 * The one driver of matrix products: y[i] = epilogue(A[i] B[i]), A [m, k], B [k, n], i < batch, for any packers of A and B
 * (gemm_pack.h, conv.h), blocked for the caches and spread over the threads.
 *
 * A task owns one tile of y and walks over k in blocks; a tile's sums stay in L2 between blocks and pass through the
 * epilogue as they are completed. A tile's columns of B are packed a block at a time and stay in L2, while a few rows of A after the
 * other, read where they lie or packed, stay in L1 and meet all of them. Where rows are many and B is small enough for the outer
 * caches, it is packed once by all threads. Few tiles and a long k (weight gradients) split k instead: each split
 * writes partial sums, which are added in order. gemm_plan.h chooses; each number of y is summed in the order of k within its
 * split, so results have the same bits at any number of threads.
 *
 * Traffic: A is read once for every tile of columns, B once for every tile of rows, y and the epilogue's tensors once.
 */
#ifndef DIFFIT_CPU_GEMM_DRIVER_H
#define DIFFIT_CPU_GEMM_DRIVER_H

/* Packers may have rows(). */
template <class A>
static constexpr auto rowWork(int) -> decltype(A::kRowWork) {
  return A::kRowWork;
}
template <class A>
static constexpr double rowWork(...) {
  return 0;
}
template <class A>
static constexpr bool hasRows() {
  return rowWork<A>(0) > 0;
}
template <class A>
static constexpr bool givesLines() {
  if constexpr (hasRows<A>())
    return A::kLines;
  else
    return false;
}

/* Packers may name the Kernels that multiply their panels. */
template <class A>
static auto kernelsOf(int) -> typename A::Kernels;
template <class A>
static auto kernelsOf(...) -> FloatKernels;

/* Packers may have region(). */
template <class P>
static auto regionOf(const P &packer, int64_t line, int64_t lines, int64_t k0, int64_t depth, int)
    -> decltype(packer.region(line, lines, k0, depth)) {
  return packer.region(line, lines, k0, depth);
}
template <class P>
static Region regionOf(const P &, int64_t, int64_t, int64_t, int64_t, ...) {
  return {};
}

/* What one task works on. */
struct Tile {
  int64_t i0, i1, j0, j1; /* panels */
  int64_t firstBlock, endBlock; /* blocks of k */
  int64_t firstRow; /* of this item of the batch, in y */
  float *a, *b, *sums, *stage; /* packed rows of A, the packed block of B, sums between blocks, for packers */
  int64_t stride; /* of the sums' rows */
  FetchList fetches;
  Walk nextA, nextB;
};

template <class A, class B>
struct GemmCall {
  typedef decltype(kernelsOf<A>(0)) Kernels;
  diffit_context *ctx;
  const A &a;
  const B &b;
  const Epilogue &epilogue;
  const GemmPlan &plan;
  float *sharedB; /* all of B, packed: [block][panel][depth][panelCols] */
  float *partial; /* [batch][split][m][paddedCols] when k is split */
  int failed;
  int64_t claimed; /* tiles */

  float *scratch(int thread, int64_t floats) {
    float *p = (float *)diffit_cpu_scratch(ctx, thread, 0, (size_t)floats * sizeof(float));
    if (!p) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    return p;
  }

  /* Panels begin .. end of B at one block of k, one after the other. */
  void packB(const B &matrix, float *to, int64_t begin, int64_t end, int64_t block, float *stage) const {
    const int64_t depth = plan.blockDepth(block);
    for (int64_t j = begin, next; j < end; j = next) {
      next = plan.groupEnd(j, end);
      const int64_t col = j * kMaxCols;
      packPanels(matrix, to, plan.panelCols(j), col, imin(next * kMaxCols, plan.n) - col, block * plan.depth, depth,
                 stage);
      to += (next - j) * kMaxCols * depth;
    }
  }

  float *sharedPanel(int64_t panel, int64_t block) const {
    return sharedB + block * plan.depth * plan.paddedCols + panel * kMaxCols * plan.blockDepth(block);
  }

  /* One group of panels of the shared B. */
  void packShared(int64_t index, int thread) {
    const int64_t groups = ceilDiv(plan.colPanels, kGroupPanels), block = index / groups;
    const int64_t first = index % groups * kGroupPanels, last = imin(first + kGroupPanels, plan.colPanels);
    float *stage = scratch(thread, kMaxLines * plan.depth);
    if (stage) packB(b.at(0), sharedPanel(first, block), first, last, block, stage);
  }

  int64_t claim() { return __atomic_fetch_add(&claimed, 1, __ATOMIC_RELAXED); }

  /* Tiles until there are no more. Which one comes next is known while a thread is at work, so that it can be fetched. */
  void tiles(int thread) {
    for (int64_t index = claim(); index < plan.tasks() && !failed;) index = tile(index, thread);
  }

  /* One tile of y, over one split of k. Returns the next tile. */
  int64_t tile(int64_t index, int thread) {
    const GemmPlan &p = plan;
    const TileIndex at = p.tileAt(index);
    Tile t;
    t.i0 = at.row * p.tileRowPanels, t.i1 = imin(t.i0 + p.tileRowPanels, p.rowPanels);
    t.j0 = at.col * p.tileColPanels, t.j1 = imin(t.j0 + p.tileColPanels, p.colPanels);
    t.firstBlock = at.split * p.splitBlocks, t.endBlock = imin(t.firstBlock + p.splitBlocks, p.blocks);
    t.firstRow = at.item * p.m;
    t.stride = imin(t.j1 * kMaxCols, p.paddedCols) - t.j0 * kMaxCols;
    t.fetches.clear();

    const int64_t rows = p.rowOf(t.i1) - p.rowOf(t.i0);
    const int64_t aFloats = imax(kGroupLines, p.panelRows) * p.depth + kMaxCols;
    const int64_t bFloats = p.shareB ? 0 : t.stride * p.depth;
    const int64_t sumFloats = t.firstBlock + 1 < t.endBlock && p.splits == 1 ? rows * t.stride : kMaxRows * kMaxCols;
    t.b = scratch(thread, bFloats + sumFloats + kMaxLines * p.depth + aFloats);
    if (!t.b) return p.tasks();
    t.sums = t.b + bFloats;
    t.stage = t.sums + roundUp(sumFloats, 16);
    t.a = t.stage + roundUp(kMaxLines * p.depth, 16);
    if (p.splits > 1) {
      t.stride = p.paddedCols;
      t.sums = partial + ((at.item * p.splits + at.split) * p.m + p.rowOf(t.i0)) * t.stride + t.j0 * kMaxCols;
    }
    const A aItem = a.at(at.item);
    const B bItem = b.at(at.item);
    int64_t next = 0;
    for (int64_t block = t.firstBlock; block < t.endBlock; block++) {
      const float *panels = p.shareB ? sharedPanel(t.j0, block) : t.b;
      if (!p.shareB) packB(bItem, t.b, t.j0, t.j1, block, t.stage);
      if (block == t.endBlock - 1)
        lookAhead(t, next = claim());
      else
        lookAhead(t, bItem, t.j0, t.j1, block + 1);
      const int64_t depth = p.blockDepth(block), k0 = block * p.depth;
      for (int64_t i = t.i0, end; i < t.i1; i = end) {
        end = p.rowGroupEnd(i, t.i1);
        if constexpr (hasRows<A>()) {
          for (; i < end; i++) {
            const Lines lines = aItem.rows(p.rowOf(i), p.rowsOf(i), k0, depth, t.a);
            t.nextA = Walk();
            if (i + 1 < t.i1)
              t.nextA = Walk(regionOf(aItem, p.rowOf(i + 1), p.rowsOf(i + 1), k0, depth, 0), t.j1 - t.j0);
            row(t, lines, panels, block, i);
          }
        } else {
          packPanels(aItem, t.a, p.rowsOf(i), p.rowOf(i), p.rowOf(end) - p.rowOf(i), k0, depth, t.stage);
          const float *lines = t.a;
          for (const int64_t step = p.rowsOf(i) * depth; i < end; i++, lines += step)
            row(t, {lines, p.rowsOf(i)}, panels, block, i);
        }
      }
    }
    return next;
  }

  /* While one block is multiplied, the next one to pack is fetched: panels begin .. end of B. */
  void lookAhead(Tile &t, const B &matrix, int64_t begin, int64_t end, int64_t block) const {
    const GemmPlan &p = plan;
    const int64_t line = begin * kMaxCols, lines = imin(end * kMaxCols, p.n) - line;
    t.nextB = Walk();
    if (!p.shareB)
      t.nextB =
          Walk(regionOf(matrix, line, lines, block * p.depth, p.blockDepth(block), 0), (t.i1 - t.i0) * (t.j1 - t.j0));
  }
  void lookAhead(Tile &t, int64_t index) const {
    const GemmPlan &p = plan;
    t.nextB = Walk();
    if (index >= p.tasks()) return;
    const TileIndex at = p.tileAt(index);
    const int64_t begin = at.col * p.tileColPanels, end = imin(begin + p.tileColPanels, p.colPanels);
    lookAhead(t, b.at(at.item), begin, end, at.split * p.splitBlocks);
  }

  /* One panel of A against all columns of the tile, at one block of k. */
  void row(Tile &t, const Lines &lines, const float *bPanel, int64_t block, int64_t i) {
    const GemmPlan &p = plan;
    const int64_t depth = p.blockDepth(block), row = p.rowOf(i), rows = p.rowsOf(i), global = t.firstRow + row;
    const bool add = block > t.firstBlock, finish = block == t.endBlock - 1 && p.splits == 1;
    const bool single = !add && finish, plain = p.splits == 1 && epilogue.plain();
    for (int64_t j = t.j0; j < t.j1; j++) {
      const int64_t col = j * kMaxCols, width = p.panelCols(j), cols = imin(width, p.n - col);
      const bool straight = plain && cols == width;
      const int64_t stride = straight ? p.n : single ? kMaxCols : t.stride;
      float *sums = straight ? (float *)epilogue.y.data + global * p.n + col
                    : single ? t.sums
                             : t.sums + (row - p.rowOf(t.i0)) * stride + col - t.j0 * kMaxCols;
      t.fetches.used = 0;
      if (straight || !single) t.fetches.spans({(const char *)sums, rows, width * 4, stride * 4});
      if (finish && !straight) epilogue.fetch(&t.fetches, global, rows, col, cols);
      t.nextB.take(&t.fetches);
      t.nextA.take(&t.fetches);
      const Kernel kernel =
          width == kMaxCols ? kernelOf<2, givesLines<A>(), Kernels>(rows) : kernelOf<1, givesLines<A>(), Kernels>(rows);
      kernel(depth, lines.data, lines.stride, bPanel, sums, stride, add, {t.fetches.at, 1});
      if (finish && !straight) finishTile(epilogue, sums, stride, global, rows, col, cols);
      bPanel += width * depth;
    }
  }

  /* y's rows begin .. end of one item from the partial sums of all splits, added in order. */
  void combine(int64_t item, int64_t begin, int64_t end) {
    const GemmPlan &p = plan;
    const int64_t step = p.m * p.paddedCols;
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
  const GemmPlan plan = planGemm(batch, m, n, k, oneB, hasRows<A>() ? rowWork<A>(0) : kLeftPacks * packWork(a),
                                 packWork(b), diffit_cpu_threads(ctx));
  GemmCall<A, B> call = {ctx, a, b, epilogue, plan, nullptr, nullptr, 0, 0};
  if (plan.shareB) {
    call.sharedB = (float *)diffit_cpu_shared(ctx, 0, (size_t)(k * plan.paddedCols) * sizeof(float));
    if (!call.sharedB) call.failed = 1;
  }
  if (plan.splits > 1) {
    const int64_t floats = batch * plan.splits * m * plan.paddedCols;
    call.partial = (float *)diffit_cpu_shared(ctx, 0, (size_t)floats * sizeof(float));
    if (!call.partial) call.failed = 1;
  }
  if (plan.shareB && !call.failed)
    parallelChunks(ctx, plan.blocks * ceilDiv(plan.colPanels, kGroupPanels), 1,
                   [&](int64_t index, int64_t, int thread) { call.packShared(index, thread); });
  if (!call.failed)
    parallelChunks(ctx, imin(plan.tasks(), diffit_cpu_threads(ctx)), 1,
                   [&](int64_t, int64_t, int thread) { call.tiles(thread); });
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
