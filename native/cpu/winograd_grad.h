/*
 * The gradient of 3x3 weights with fewer products (winograd.h): dw [O, 3, 3, I] from x [B, H, W, I] and dy [B, OH, OW, O].
 *
 *   V = B^T x B          for each product and each kChunkTiles tiles, panels of I that the micro-kernel streams: [tile][panel]
 *   W = A dy A^T         likewise, panels of O
 *   sums = W^T V         [product][O][I], over the tiles
 *   dw = G^T sums G
 *
 * The first two lines are for as many chunks at a time as kTransformedFloats allow. A chunk's sums are made in registers and
 * then added to the others, so that none is rounded more often than need be.
 *
 * Traffic: x and dy once, V and W, which are ((M + 2) / M)^2 as large, written and read once, the sums, which fit L2 a product at
 * a time, once for each such group.
 */
#ifndef DIFFIT_CPU_WINOGRAD_GRAD_H
#define DIFFIT_CPU_WINOGRAD_GRAD_H

static constexpr int64_t kChunkTiles = 64;
static constexpr int64_t kTransformedFloats = (int64_t)10 << 20; /* of V and W together */
static constexpr int64_t kTilesAhead = 8; /* more streams are written than the hardware fetches ahead */
static constexpr int64_t kUnitPanels = 4; /* of one chunk that a task transforms */

/* Channels as panels of the micro-kernel. */
struct ChannelPanels {
  int64_t channels, width, count;
  ChannelPanels(int64_t n, int64_t panel) : channels(n), width(panel), count(ceilDiv(n, panel)) {}
  int64_t padded() const { return count * width; }
  int64_t panelFloats() const {
    return kChunkTiles * width + kLanes;
  } /* the last tile's last vector may reach further */
  int64_t chunkFloats() const { return count * panelFloats(); } /* of one product */
  int64_t units() const { return ceilDiv(count, kUnitPanels); }
};

template <int M, class T>
struct WinogradGrad {
  static constexpr int kSide = M + 2, kProducts = kSide * kSide;

  diffit_context *ctx;
  TileImage<T> x, dy;
  int64_t padTop, padLeft;
  Floats dw;
  TileGrid grid;
  ChannelPanels inputs, outputs;
  float *v, *w; /* [chunk][product][panel][tile][width] */
  float *sums; /* [product][outputs, padded to panels][inputs, likewise] */

  int64_t sumFloats() const { return outputs.padded() * inputs.padded(); }

  /* Some panels of one chunk, from pixels `From` wide around the tiles, of which the first is `top`, `left` of the output's. */
  template <int From, class Step>
  void transform(const TileImage<T> &image, const ChannelPanels &panels, int64_t unit, int64_t firstTile, int64_t tiles,
                 int64_t top, int64_t left, float *to, const Step &step) const {
    const int64_t first = unit * kUnitPanels, end = imin(first + kUnitPanels, panels.count);
    const T *pixels[kChunkTiles][From * From];
    for (int64_t t = 0; t < tiles; t++) {
      const TileGrid::Place p = grid.at(firstTile + t);
      image.template locate<From>(p.item, p.y - top, p.x - left, pixels[t]);
    }
    for (int64_t j = first; j < end; j++)
      for (int64_t t = 0; t < tiles; t++)
        /* Whole vectors: what reaches into the next tile's numbers is overwritten by them. */
        for (int64_t c = 0; c < panels.width; c += kLanes) {
          const int64_t channel = j * panels.width + c, rest = panels.channels - channel;
          vf d[From * From], products[kProducts];
          for (int i = 0; i < From * From; i++) d[i] = rest > 0 ? loadFirst(pixels[t][i] + channel, rest) : vf{};
          transformTile<From, kSide>(d, products, step);
          float *panel = to + j * panels.panelFloats() + t * panels.width + c;
          for (int i = 0; i < kProducts; i++, panel += panels.chunkFloats()) {
            store(panel, products[i]);
            __builtin_prefetch(panel + kTilesAhead * panels.width, 1);
          }
        }
  }
  void transformUnit(int64_t index, int64_t firstTile, int64_t endTile) const {
    const int64_t units = inputs.units() + outputs.units(), chunk = index / units, unit = index % units;
    const int64_t first = firstTile + chunk * kChunkTiles, tiles = imin(kChunkTiles, endTile - first);
    if (unit < inputs.units())
      transform<kSide>(x, inputs, unit, first, tiles, padTop, padLeft, v + chunk * kProducts * inputs.chunkFloats(),
                       [](const vf *d, vf *t) { Winograd<M>::input(d, t); });
    else
      transform<M>(dy, outputs, unit - inputs.units(), first, tiles, 0, 0,
                   w + chunk * kProducts * outputs.chunkFloats(),
                   [](const vf *d, vf *t) { Winograd<M>::results(d, t); });
  }

  /* Adds what the tiles give to one product's sums. */
  void multiplyTiles(int64_t product, int64_t tiles, bool add) const {
    const int64_t stride = inputs.padded();
    const MicroKernel kernel = microKernelOf<kMaxVectors>(outputs.width);
    for (int64_t t = 0, chunk = 0; t < tiles; t += kChunkTiles, chunk++, add = true) {
      const float *a = w + (chunk * kProducts + product) * outputs.chunkFloats();
      const float *b = v + (chunk * kProducts + product) * inputs.chunkFloats();
      for (int64_t j = 0; j < inputs.count; j++)
        for (int64_t i = 0; i < outputs.count; i++)
          kernel(imin(kChunkTiles, tiles - t), a + i * outputs.panelFloats(), b + j * inputs.panelFloats(),
                 sums + product * sumFloats() + i * outputs.width * stride + j * inputs.width, stride, add);
    }
  }

  /* dw of one output channel. */
  void finish(int64_t output) const {
    const float *from = sums + output * inputs.padded();
    const AnyFloats to = dw + output * 9 * inputs.channels;
    for (int64_t c = 0; c < inputs.channels; c += kLanes) {
      vf u[kProducts], g[9];
      for (int i = 0; i < kProducts; i++) u[i] = load(from + i * sumFloats() + c);
      transformTile<kSide, 3>(u, g, Winograd<M>::tapSums);
      for (int i = 0; i < 9; i++) storeFirst(to + i * inputs.channels + c, g[i], inputs.channels - c);
    }
  }

  diffit_status run() {
    const int64_t chunkFloats = kProducts * (inputs.chunkFloats() + outputs.chunkFloats());
    const int64_t chunks = imin(ceilDiv(grid.count, kChunkTiles), imax(1, kTransformedFloats / chunkFloats));
    const int64_t most = imax(inputs.channels, outputs.channels);
    T *zeros = (T *)diffit_cpu_shared(ctx, 0, (size_t)most * sizeof(T));
    v = (float *)diffit_cpu_shared(ctx, 1, (size_t)(chunks * chunkFloats) * sizeof(float));
    sums = (float *)diffit_cpu_shared(ctx, 2, (size_t)(kProducts * sumFloats()) * sizeof(float));
    if (!zeros || !v || !sums)
      return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "no scratch memory for a convolution of %lld and %lld channels",
                             (long long)inputs.channels, (long long)outputs.channels);
    w = v + chunks * kProducts * inputs.chunkFloats();
    memset(zeros, 0, (size_t)most * sizeof(T));
    x.zeros = dy.zeros = zeros;
    for (int64_t first = 0; first < grid.count; first += chunks * kChunkTiles) {
      const int64_t end = imin(first + chunks * kChunkTiles, grid.count);
      const int64_t units = ceilDiv(end - first, kChunkTiles) * (inputs.units() + outputs.units());
      parallelChunks(ctx, units, 1, [&](int64_t i, int64_t, int) { transformUnit(i, first, end); });
      parallelChunks(ctx, kProducts, 1, [&](int64_t i, int64_t, int) { multiplyTiles(i, end - first, first > 0); });
    }
    parallelChunks(ctx, outputs.channels, imax(1, 2048 / inputs.channels), [&](int64_t begin, int64_t last, int) {
      for (int64_t i = begin; i < last; i++) finish(i);
    });
    return DIFFIT_OK;
  }
};

template <int M, class T>
static diffit_status winogradGrad(diffit_context *ctx, const TileImage<T> &x, const TileImage<T> &dy, int64_t batch,
                                  Floats dw, int64_t padTop, int64_t padLeft) {
  const TileGrid grid(M, batch, dy.height, dy.width);
  const ChannelPanels inputs(x.channels, kMaxCols);
  const ChannelPanels outputs(dy.channels, ceilDiv(dy.channels, ceilDiv(dy.channels, kMaxRows)));
  WinogradGrad<M, T> grad = {ctx, x, dy, padTop, padLeft, dw, grid, inputs, outputs, nullptr, nullptr, nullptr};
  return grad.run();
}

#endif
