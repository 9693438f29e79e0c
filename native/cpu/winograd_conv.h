/*
 * 3x3 convolutions of unit stride with fewer products (winograd.h): y [B, OH, OW, N] from an image [B, H, W, K], forward, or
 * backward with the taps turned round.
 *
 *   U [panel of N][product][K][panel]        the transformed weights, once per call, by all threads
 *   V [product][K][panel of tiles]           the transformed tiles of a block, in the L2 cache of the thread that owns it
 *   sums [product][tile][panel of N]         their products, likewise, and from there y with bias and residual
 *
 * A block holds as many tiles as keep V in L2, and goes through U a panel of N at a time: (M + 2)^2 small products of the
 * micro-kernel, which sums kSumDepth terms before it adds them to the others, as a long sum in one go would round more often.
 *
 * Traffic: the image once and a rim of two pixels around each tile, y and residual once, U written once and read once a block.
 */
#ifndef DIFFIT_CPU_WINOGRAD_CONV_H
#define DIFFIT_CPU_WINOGRAD_CONV_H

static constexpr int64_t kTileBlockFloats = (int64_t)400 << 10; /* of V: with the sums most of a 2 MB L2 */
static constexpr int64_t kSumDepth = 64;
static constexpr int64_t kSumFetches = kSumDepth / kFetchSteps; /* of a call of the micro-kernel */
static constexpr int64_t kTileBlocks = 4; /* at least, where there are tiles for them */

/* The 3x3 weights [O, 3, 3, I] of a convolution: lines are its output channels. */
template <class T>
struct Taps {
  const T *data;
  int64_t depth, lines;
  bool reversed; /* of the gradient: data is [depth, 3, 3, lines], the last tap first */
};

/* panel[d * width + i] = rows[i * kLanes + d] for i < lines, d < depth. */
static void transposeStage(float *panel, int64_t width, const float *rows, int64_t lines, int64_t depth) {
  const int64_t whole = lines < 4 ? 0 : depth / 4 * 4;
  for (int64_t i = 0; i < lines && whole > 0; i += 4) {
    const int64_t first = imin(i, lines - 4);
    const float *row = rows + first * kLanes;
    for (int64_t d = 0; d < whole; d += 4, row += 4)
      transpose4x4(row, row + kLanes, row + 2 * kLanes, row + 3 * kLanes, panel + d * width + first, width);
  }
  for (int64_t d = whole; d < depth; d++)
    for (int64_t i = 0; i < lines; i++) panel[d * width + i] = rows[i * kLanes + d];
}

template <int M, class T>
struct WinogradConv {
  static constexpr int kSide = M + 2, kProducts = kSide * kSide;

  diffit_context *ctx;
  TileImage<T> image; /* its channels are K */
  Taps<T> taps;
  int64_t padTop, padLeft, outHeight, outWidth;
  const float *bias;
  Floats residual, y;
  TileGrid grid;

  int64_t panelRows, blockPanels; /* tiles a panel, panels a block */
  int64_t paddedCols, colPanels; /* of N */
  float *u;
  int failed;

  int64_t panelCols(int64_t panel) const { return imin(kMaxCols, paddedCols - panel * kMaxCols); }
  float *panelOfTaps(int64_t panel) const { return u + panel * kMaxCols * taps.depth * kProducts; }

  /* kLanes steps of K, from k0 on, of one panel of U. */
  void packTaps(int64_t panel, int64_t k0) const {
    const int64_t cols = panelCols(panel), step = taps.depth * cols, depth = imin(kLanes, taps.depth - k0);
    for (int64_t v = 0; v < cols; v += kLanes) {
      const int64_t line = panel * kMaxCols + v;
      float *to = panelOfTaps(panel) + k0 * cols + v;
      if (taps.reversed)
        packReversed(to, step, cols, line, k0, depth);
      else
        packForward(to, step, cols, line, k0, depth);
    }
  }
  void packReversed(float *to, int64_t step, int64_t cols, int64_t line, int64_t k0, int64_t depth) const {
    vf g[9], t[kProducts];
    for (int64_t k = 0; k < depth; k++) {
      const T *from = taps.data + (k0 + k) * 9 * taps.lines + line;
      for (int i = 0; i < 9; i++) g[i] = loadFirst(from + (8 - i) * taps.lines, taps.lines - line);
      transformTile<3, kSide>(g, t, Winograd<M>::taps);
      for (int i = 0; i < kProducts; i++) store(to + i * step + k * cols, t[i]);
    }
  }
  void packForward(float *to, int64_t step, int64_t cols, int64_t line, int64_t k0, int64_t depth) const {
    float stage[kProducts * kLanes * kLanes];
    vf g[9], t[kProducts];
    for (int64_t l = 0; l < kLanes; l++) {
      const T *from = taps.data + (line + l) * 9 * taps.depth + k0;
      for (int i = 0; i < 9; i++) g[i] = line + l < taps.lines ? loadFirst(from + i * taps.depth, depth) : vf{};
      transformTile<3, kSide>(g, t, Winograd<M>::taps);
      for (int i = 0; i < kProducts; i++) store(stage + (i * kLanes + l) * kLanes, t[i]);
    }
    for (int i = 0; i < kProducts; i++) transposeStage(to + i * step, cols, stage + i * kLanes * kLanes, kLanes, depth);
  }

  /* One panel of V, with `step` numbers between the products. Past the last tile it repeats that. */
  void packTiles(float *to, int64_t step, int64_t first) const {
    const T *pixels[kMaxRows][kProducts];
    for (int64_t r = 0; r < panelRows; r++) {
      const TileGrid::Place p = grid.at(imin(first + r, grid.count - 1));
      image.template locate<kSide>(p.item, p.y - padTop, p.x - padLeft, pixels[r]);
    }
    float stage[kProducts * kMaxRows * kLanes];
    for (int64_t k = 0; k < taps.depth; k += kLanes) {
      const int64_t depth = imin(kLanes, taps.depth - k);
      for (int64_t r = 0; r < panelRows; r++) {
        vf d[kProducts], v[kProducts];
        for (int i = 0; i < kProducts; i++) d[i] = loadFirst(pixels[r][i] + k, depth);
        transformTile<kSide, kSide>(d, v, Winograd<M>::input);
        for (int i = 0; i < kProducts; i++) store(stage + (i * panelRows + r) * kLanes, v[i]);
      }
      for (int i = 0; i < kProducts; i++)
        transposeStage(to + i * step + k * panelRows, panelRows, stage + i * panelRows * kLanes, panelRows, depth);
    }
  }

  /* The pixels of one tile, channels col .. col + cols, from its sums, which are `step` numbers apart. Y: the pointer to numbers of y. */
  template <class Y>
  void finish(const float *sums, int64_t step, int64_t tile, int64_t col, int64_t cols, Y to, Y more) const {
    const TileGrid::Place p = grid.at(tile);
    const int64_t rows = imin(M, outHeight - p.y), columns = imin(M, outWidth - p.x);
    for (int64_t c = 0; c < cols; c += kLanes) {
      const int64_t n = cols - c;
      vf m[kProducts], pixels[M * M];
      for (int i = 0; i < kProducts; i++) m[i] = load(sums + i * step + c);
      transformTile<kSide, M>(m, pixels, Winograd<M>::output);
      const vf shift = bias ? loadFirst(bias + col + c, n) : vf{};
      for (int64_t v = 0; v < rows; v++)
        for (int64_t x = 0; x < columns; x++) {
          const int64_t at = ((p.item * outHeight + p.y + v) * outWidth + p.x + x) * taps.lines + col + c;
          const vf pixel = pixels[v * M + x] + shift;
          storeFirst(to + at, more ? pixel + loadFirst(more + at, n) : pixel, n);
        }
    }
  }

  void block(int64_t index, int thread) {
    const int64_t first = index * blockPanels * panelRows, tiles = imin(blockPanels * panelRows, grid.count - first);
    const int64_t panels = ceilDiv(tiles, panelRows), depth = taps.depth, panelFloats = panelRows * depth;
    /* The odd 16 keep the products of a tile out of each other's cache sets. */
    const int64_t step = panels * panelFloats + 16, sumStep = panels * panelRows * kMaxCols + 16;
    float *v = (float *)diffit_cpu_scratch(ctx, thread, 0, (size_t)(kProducts * (step + sumStep)) * sizeof(float));
    if (!v) return __atomic_store_n(&failed, 1, __ATOMIC_RELAXED);
    float *sums = v + kProducts * step;
    for (int64_t p = 0; p < panels; p++) packTiles(v + p * panelFloats, step, first + p * panelRows);
    for (int64_t j = 0; j < colPanels; j++) {
      const int64_t cols = panelCols(j), col = j * kMaxCols;
      const MicroKernel kernel = cols == kMaxCols ? microKernelOf<2>(panelRows) : microKernelOf<1>(panelRows);
      const float *b = panelOfTaps(j);
      /* While a panel of U meets its tiles, the one behind it is fetched; where calls are too few for every cache line, every second or so. */
      const int64_t calls = panels * ceilDiv(depth, kSumDepth), bytes = depth * cols * (int64_t)sizeof(float);
      const int64_t apart = ceilDiv(ceilDiv(bytes, kCacheLine), calls * kSumFetches) * kCacheLine;
      for (int i = 0; i < kProducts; i++, b += depth * cols) {
        const char *ahead[kSumFetches], *next = (const char *)(b + depth * cols);
        for (int64_t p = 0; p < panels; p++)
          for (int64_t k = 0; k < depth; k += kSumDepth) {
            for (int64_t f = 0; f < kSumFetches; f++, next += apart) ahead[f] = next;
            kernel(imin(kSumDepth, depth - k), v + i * step + p * panelFloats + k * panelRows, b + k * cols,
                   sums + i * sumStep + p * panelRows * kMaxCols, kMaxCols, k > 0, {ahead, 1});
          }
      }
      const int64_t lines = imin(cols, taps.lines - col);
      if ((y.shift & residual.shift) == 2)
        finishAll<float *>(sums, sumStep, first, tiles, col, lines, (float *)y.data, (float *)residual.data);
      else
        finishAll<AnyFloats>(sums, sumStep, first, tiles, col, lines, y, residual);
    }
  }
  template <class Y>
  void finishAll(const float *sums, int64_t step, int64_t first, int64_t tiles, int64_t col, int64_t cols, Y to,
                 Y more) const {
    for (int64_t t = 0; t < tiles; t++) finish(sums + t * kMaxCols, step, first + t, col, cols, to, more);
  }

  diffit_status run() {
    const int64_t depth = taps.depth;
    paddedCols = roundUp(taps.lines, kLanes);
    colPanels = ceilDiv(paddedCols, kMaxCols);
    int64_t blocks = ceilDiv(grid.count, imax(kMaxRows, kTileBlockFloats / (kProducts * depth)));
    blocks = roundUp(blocks, imin(kTileBlocks, ceilDiv(grid.count, kMaxRows)));
    blockPanels = ceilDiv(ceilDiv(grid.count, blocks), kMaxRows);
    panelRows = ceilDiv(ceilDiv(grid.count, blocks), blockPanels);
    blocks = ceilDiv(grid.count, blockPanels * panelRows);
    u = (float *)diffit_cpu_shared(ctx, 0, (size_t)(kProducts * depth * paddedCols) * sizeof(float));
    T *zeros = (T *)diffit_cpu_shared(ctx, 1, (size_t)depth * sizeof(T));
    if (!u || !zeros) failed = 1;
    if (!failed) {
      memset(zeros, 0, (size_t)depth * sizeof(T));
      image.zeros = zeros;
      const int64_t steps = ceilDiv(depth, kLanes);
      parallelChunks(ctx, colPanels * steps, 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; i++) packTaps(i / steps, i % steps * kLanes);
      });
      parallelChunks(ctx, blocks, 1, [&](int64_t i, int64_t, int thread) { block(i, thread); });
    }
    if (failed)
      return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "no scratch memory for a convolution of %lld and %lld channels",
                             (long long)depth, (long long)taps.lines);
    return DIFFIT_OK;
  }
};

/* y = conv(image, taps) + bias + residual; bias and residual may be null. */
template <int M, class T>
static diffit_status winogradConv(diffit_context *ctx, const TileImage<T> &image, const Taps<T> &taps, int64_t padTop,
                                  int64_t padLeft, const float *bias, Floats residual, const diffit_tensor *y) {
  const TileGrid grid(M, y->shape[0], y->shape[1], y->shape[2]);
  WinogradConv<M, T> conv = {ctx,         image, taps, padTop, padLeft, y->shape[1], y->shape[2], bias, residual,
                             floatsOf(y), grid,  0,    0,      0,       0,           nullptr,     0};
  return conv.run();
}

#endif
