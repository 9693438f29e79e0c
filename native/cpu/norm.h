/*
 * Layer norm over the last axis and group norm on NHWC (SiLU fused), with their gradients.
 *
 * Statistics take two passes over a piece that lies in the L1 cache (mean, then squared distance to it), and pieces are
 * joined in f64 (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983), so large means do no
 * harm. Gradients of w and b are kept per block of rows and added in order: the same for any number of threads.
 *
 * Memory traffic: layer_norm x once, y once, its gradient x, dy, dx once; group_norm reads x twice, its gradient reads
 * x and dy twice.
 */
#ifndef DIFFIT_CPU_NORM_H
#define DIFFIT_CPU_NORM_H

/* Sum of (x - mean)^2 over n elements. */
template <class X>
static double sumSquaredDistance(X x, int64_t n, float mean) {
  double total = 0;
  for (int64_t at = 0; at < n; at += kSumBlock) {
    const int64_t end = imin(n, at + kSumBlock);
    vf a = {}, b = {};
    int64_t i = at;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const vf u = load(x + i) - mean, v = load(x + i + kLanes) - mean;
      a += u * u;
      b += v * v;
    }
    total += hsum(a + b);
    for (; i < end; i++) {
      const float distance = element(x + i) - mean;
      total += (double)distance * distance;
    }
  }
  return total;
}

static bool isVector(const diffit_tensor *t, int64_t n) { return t->dtype == DIFFIT_F32 && numel(t) == n; }
static bool isFloats(const diffit_tensor *t, int64_t n) { return isFloat(t) && numel(t) == n; }
static float *optional(const diffit_tensor *t) { return t ? f32(t) : nullptr; }

/* Number of rows: all dimensions but the last. */
static int64_t leadingRows(const diffit_tensor *t) {
  int64_t rows = 1;
  for (int d = 0; d < t->ndim - 1; d++) rows *= t->shape[d];
  return rows;
}

/* ---- layer norm --------------------------------------------------------------------------------- */

template <class P>
static void layerNorm(diffit_context *ctx, P x, const float *w, const float *b, P y, float *mean, float *rstd,
                      int64_t rows, int64_t n, double eps) {
  parallelChunks(ctx, rows, imax(1, 8192 / imax(n, 1)), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const P from = x + r * n, to = y + r * n;
      const float m = (float)(sumRow(from, n) / (double)n);
      const float s = (float)(1.0 / ::sqrt(sumSquaredDistance(from, n, m) / (double)n + eps));
      if (mean) mean[r] = m;
      if (rstd) rstd[r] = s;
      eachVector(n, [=](auto get, auto put) {
        vf v = (get(from) - m) * s;
        if (w) v = v * get(w);
        if (b) v = v + get(b);
        put(to, v);
      });
    }
  });
}

static diffit_status layer_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                   const diffit_tensor *b, diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd,
                                   double eps) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(y);
  REQUIRE(x->ndim >= 1 && numel(y) == numel(x));
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(!b || isVector(b, n));
  REQUIRE(!mean || isVector(mean, rows));
  REQUIRE(!rstd || isVector(rstd, rows));
  withFloats(
      [&](auto in, auto out) {
        layerNorm(ctx, in, optional(w), optional(b), out, optional(mean), optional(rstd), rows, n, eps);
      },
      x, y);
  return DIFFIT_OK;
}

/* sums, where wanted: partial gradients [blocks][w, b][n]. */
template <class P>
static void layerNormBackward(diffit_context *ctx, P x, const float *w, const float *means, const float *rstds, P dy,
                              P dresidual, P dx, float *partials, int64_t rows, int64_t n, int64_t block) {
  parallelChunks(ctx, rows, block, [=](int64_t begin, int64_t end, int) {
    float *sumW = partials ? partials + begin / block * 2 * n : nullptr, *sumB = partials ? sumW + n : nullptr;
    if (partials) memset(sumW, 0, (size_t)(2 * n) * sizeof(float));
    for (int64_t r = begin; r < end; r++) {
      const P from = x + r * n, g = dy + r * n, to = dx + r * n;
      const float m = means[r], s = rstds[r];
      vf sum = {}, product = {};
      eachVector(n, [=, &sum, &product](auto get, auto put) {
        const vf h = (get(from) - m) * s;
        vf d = get(g);
        if (sumW) {
          put(sumW, get(sumW) + d * h);
          put(sumB, get(sumB) + d);
        }
        if (w) d = d * get(w);
        sum += d;
        product += d * h; /* 0 beyond the end, as d is */
      });
      const float meanD = hsum(sum) / (float)n, meanDH = hsum(product) / (float)n;
      eachVector(n, [=](auto get, auto put) {
        const vf h = (get(from) - m) * s;
        vf d = get(g);
        if (w) d = d * get(w);
        d = ((d - meanD) - h * meanDH) * s;
        if (dresidual) d = d + get(dresidual + r * n);
        put(to, d);
      });
    }
  });
}

static diffit_status layer_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                            const diffit_tensor *mean, const diffit_tensor *rstd,
                                            const diffit_tensor *dy, const diffit_tensor *dresidual, diffit_tensor *dx,
                                            diffit_tensor *dw, diffit_tensor *db) {
  REQUIRE_FLOAT(x);
  REQUIRE(x->ndim >= 1);
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(isVector(mean, rows));
  REQUIRE(isVector(rstd, rows));
  REQUIRE(isFloats(dy, rows * n));
  REQUIRE(!dresidual || isFloats(dresidual, rows * n));
  REQUIRE(isFloats(dx, rows * n));
  REQUIRE(!dw || isVector(dw, n));
  REQUIRE(!db || isVector(db, n));
  /* At least 64 blocks where there are rows enough, at most 256 rows each. */
  const bool wantsSums = dw || db;
  const int64_t block = wantsSums ? imin(256, imax(8, rows / 64)) : imax(1, 8192 / imax(n, 1));
  const int64_t blocks = ceilDiv(rows, block);
  float *partials = nullptr;
  if (wantsSums) {
    partials = (float *)diffit_cpu_shared(ctx, 0, (size_t)(imax(blocks, 1) * 2 * n) * sizeof(float));
    if (!partials) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "layer_norm_backward: no memory for partial sums");
  }
  withFloats(
      [&](auto in, auto grad, auto around, auto out) {
        layerNormBackward(ctx, in, optional(w), f32(mean), f32(rstd), grad, around, out, partials, rows, n, block);
      },
      x, dy, dresidual, dx);
  for (int which = 0; which < 2; which++) {
    const diffit_tensor *sums = which == 0 ? dw : db;
    if (!sums) continue;
    parallelChunks(ctx, n, 256, [=, to = f32(sums)](int64_t begin, int64_t end, int) {
      double total[256] = {0};
      for (int64_t k = 0; k < blocks; k++)
        for (int64_t j = begin; j < end; j++) total[j - begin] += partials[(2 * k + which) * n + j];
      for (int64_t j = begin; j < end; j++) to[j] = (float)total[j - begin];
    });
  }
  return DIFFIT_OK;
}

/* ---- group norm --------------------------------------------------------------------------------- */

/* x [B, ..., C] as batch x positions x channels; positions are cut into blocks that fit the L1 cache. */
struct GroupShape {
  int64_t batch, positions, channels, groups, perGroup, rows, blocks;
};

static GroupShape groupShape(const diffit_tensor *x, int64_t groups) {
  GroupShape g = {};
  g.batch = x->shape[0];
  g.channels = lastDim(x);
  g.groups = groups;
  g.perGroup = g.channels / groups;
  g.positions = 1;
  for (int d = 1; d < x->ndim - 1; d++) g.positions *= x->shape[d];
  g.rows = imax(1, imin(g.positions, 8192 / imax(g.channels, 1)));
  g.blocks = ceilDiv(g.positions, g.rows);
  return g;
}

/* body(sample, first position, positions, number of the block over all samples). */
template <class Body>
static void eachGroupBlock(diffit_context *ctx, const GroupShape &g, const Body &body) {
  parallelChunks(ctx, g.batch * g.blocks, 1, [=, &body](int64_t task, int64_t, int) {
    const int64_t first = task % g.blocks * g.rows;
    body(task / g.blocks, first, imin(g.rows, g.positions - first), task);
  });
}

/* stats: [batch x blocks][2][C], coefficients: [batch][3][C]. */
template <class P>
static void groupNorm(diffit_context *ctx, const GroupShape &g, P x, const float *w, const float *b, P y, float *mean,
                      float *rstd, float *stats, float *coefficients, double eps, bool silu) {
  const int64_t c = g.channels;
  /* Per block and channel: mean and sum of squared distances to it. */
  eachGroupBlock(ctx, g, [=](int64_t sample, int64_t first, int64_t rows, int64_t task) {
    const P from = x + (sample * g.positions + first) * c;
    float *blockMean = stats + task * 2 * c, *squares = blockMean + c;
    const float scale = 1.0f / (float)rows;
    sumColumns(from, rows, c, c, blockMean);
    mapVectors(blockMean, blockMean, 0, c, [=](vf v) { return v * scale; });
    eachVector(c, [=](auto get, auto put) {
      const vf m = get(blockMean);
      vf even = {}, odd = {};
      for (int64_t r = 0; r < rows; r += 2) {
        const vf d = get(from + r * c) - m;
        even += d * d;
        if (r + 1 == rows) break;
        const vf e = get(from + (r + 1) * c) - m;
        odd += e * e;
      }
      put(squares, even + odd);
    });
  });

  /* Per sample and group: join the blocks; then y = (x - mean) scale + shift per channel. */
  parallelChunks(ctx, g.batch * g.groups, imax(1, 4096 / (g.blocks * g.perGroup)),
                 [=](int64_t begin, int64_t end, int) {
                   for (int64_t task = begin; task < end; task++) {
                     const int64_t sample = task / g.groups, channel = task % g.groups * g.perGroup;
                     const float *own = stats + sample * g.blocks * 2 * c + channel;
                     double sum = 0, squares = 0;
                     for (int64_t k = 0; k < g.blocks; k++) {
                       const double rows = (double)imin(g.rows, g.positions - k * g.rows);
                       for (int64_t j = 0; j < g.perGroup; j++) sum += rows * own[2 * k * c + j];
                     }
                     const double count = (double)(g.positions * g.perGroup), m = sum / count;
                     for (int64_t k = 0; k < g.blocks; k++) {
                       const double rows = (double)imin(g.rows, g.positions - k * g.rows);
                       for (int64_t j = 0; j < g.perGroup; j++) {
                         const double distance = own[2 * k * c + j] - m;
                         squares += own[(2 * k + 1) * c + j] + rows * distance * distance;
                       }
                     }
                     const float s = (float)(1.0 / ::sqrt(squares / count + eps));
                     if (mean) mean[task] = (float)m;
                     if (rstd) rstd[task] = s;
                     float *channelMean = coefficients + sample * 3 * c, *scale = channelMean + c, *shift = scale + c;
                     for (int64_t j = channel; j < channel + g.perGroup; j++) {
                       channelMean[j] = (float)m;
                       scale[j] = w ? s * w[j] : s;
                       shift[j] = b ? b[j] : 0.0f;
                     }
                   }
                 });

  eachGroupBlock(ctx, g, [=](int64_t sample, int64_t first, int64_t rows, int64_t) {
    const float *channelMean = coefficients + sample * 3 * c, *scale = channelMean + c, *shift = scale + c;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = (sample * g.positions + first + r) * c;
      eachVector(c, [=, from = x + at, to = y + at](auto get, auto put) {
        const vf v = (get(from) - get(channelMean)) * get(scale) + get(shift);
        put(to, silu ? v * vsigmoid(v) : v);
      });
    }
  });
}

static diffit_status group_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                   const diffit_tensor *b, diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd,
                                   int64_t groups, double eps, int64_t silu) {
  REQUIRE_FLOAT(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const GroupShape g = groupShape(x, groups);
  const int64_t c = g.channels;
  REQUIRE(isFloats(y, numel(x)));
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(!mean || isVector(mean, g.batch * groups));
  REQUIRE(!rstd || isVector(rstd, g.batch * groups));
  if (numel(x) == 0) return DIFFIT_OK;
  float *stats = (float *)diffit_cpu_shared(ctx, 0, (size_t)(g.batch * g.blocks * 2 * c) * sizeof(float));
  float *coefficients = (float *)diffit_cpu_shared(ctx, 1, (size_t)(g.batch * 3 * c) * sizeof(float));
  if (!stats || !coefficients)
    return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "group_norm: no memory for statistics");
  withFloats(
      [&](auto in, auto out) {
        groupNorm(ctx, g, in, optional(w), optional(b), out, optional(mean), optional(rstd), stats, coefficients, eps,
                  silu != 0);
      },
      x, y);
  return DIFFIT_OK;
}

/* What the gradient needs per channel, [8 arrays][C] for each sample. */
struct GroupChannels {
  float *mean, *rstd, *w, *b; /* h = (x - mean) rstd, output h w + b */
  float *sum, *product; /* over positions: g and g h, where g is the gradient of h w + b */
  float *meanD, *meanDH; /* over the group: g w and g w h */
};
DIFFIT_INLINE GroupChannels groupChannels(float *memory, int64_t sample, int64_t c) {
  float *p = memory + sample * 8 * c;
  return {p, p + c, p + 2 * c, p + 3 * c, p + 4 * c, p + 5 * c, p + 6 * c, p + 7 * c};
}

/* Leaves the sums in `memory`; partials: [batch x blocks][2][C]. */
template <class P>
static void groupNormBackward(diffit_context *ctx, const GroupShape &g, P x, P dy, P dx, float *memory, float *partials,
                              bool silu) {
  const int64_t c = g.channels;
  /* Sums over positions, per block and channel. */
  eachGroupBlock(ctx, g, [=](int64_t sample, int64_t first, int64_t rows, int64_t task) {
    const GroupChannels channel = groupChannels(memory, sample, c);
    float *sum = partials + task * 2 * c, *product = sum + c;
    const int64_t at = (sample * g.positions + first) * c;
    eachVector(c, [=, from = x + at, grad = dy + at](auto get, auto put) {
      const vf m = get(channel.mean), s = get(channel.rstd), w = get(channel.w), b = get(channel.b);
      vf total = {}, products = {};
      for (int64_t r = 0; r < rows; r++) {
        const vf h = (get(from + r * c) - m) * s;
        vf d = get(grad + r * c);
        if (silu) d = d * unaryDerivative(DIFFIT_SILU, h * w + b);
        total += d;
        products += d * h;
      }
      put(sum, total);
      put(product, products);
    });
  });
  for (int64_t sample = 0; sample < g.batch; sample++) {
    const GroupChannels channel = groupChannels(memory, sample, c); /* sum and product lie behind each other */
    addPartials(ctx, partials + sample * g.blocks * 2 * c, g.blocks, 2 * c, 1.0, channel.sum);
    for (int64_t group = 0; group < g.groups; group++) {
      const int64_t begin = group * g.perGroup, end = begin + g.perGroup;
      double sum = 0, product = 0;
      for (int64_t j = begin; j < end; j++) {
        sum += (double)channel.w[j] * channel.sum[j];
        product += (double)channel.w[j] * channel.product[j];
      }
      for (int64_t j = begin; j < end; j++) {
        channel.meanD[j] = (float)(sum / (double)(g.positions * g.perGroup));
        channel.meanDH[j] = (float)(product / (double)(g.positions * g.perGroup));
      }
    }
  }

  eachGroupBlock(ctx, g, [=](int64_t sample, int64_t first, int64_t rows, int64_t) {
    const GroupChannels channel = groupChannels(memory, sample, c);
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = (sample * g.positions + first + r) * c;
      eachVector(c, [=, from = x + at, grad = dy + at, to = dx + at](auto get, auto put) {
        const vf s = get(channel.rstd), h = (get(from) - get(channel.mean)) * s;
        vf d = get(grad);
        if (silu) d = d * unaryDerivative(DIFFIT_SILU, h * get(channel.w) + get(channel.b));
        put(to, ((d * get(channel.w) - get(channel.meanD)) - h * get(channel.meanDH)) * s);
      });
    }
  });
}

static diffit_status group_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                            const diffit_tensor *b, const diffit_tensor *mean,
                                            const diffit_tensor *rstd, const diffit_tensor *dy, diffit_tensor *dx,
                                            diffit_tensor *dw, diffit_tensor *db, int64_t groups, int64_t silu) {
  REQUIRE_FLOAT(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const GroupShape g = groupShape(x, groups);
  const int64_t c = g.channels;
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(isVector(mean, g.batch * groups));
  REQUIRE(isVector(rstd, g.batch * groups));
  REQUIRE(isFloats(dy, numel(x)));
  REQUIRE(isFloats(dx, numel(x)));
  REQUIRE(!dw || isVector(dw, c));
  REQUIRE(!db || isVector(db, c));
  if (dw) memset(dw->data, 0, (size_t)c * sizeof(float));
  if (db) memset(db->data, 0, (size_t)c * sizeof(float));
  if (numel(x) == 0) return DIFFIT_OK;
  float *partials = (float *)diffit_cpu_shared(ctx, 0, (size_t)(g.batch * g.blocks * 2 * c) * sizeof(float));
  float *memory = (float *)diffit_cpu_shared(ctx, 1, (size_t)(g.batch * 8 * c) * sizeof(float));
  if (!partials || !memory)
    return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "group_norm_backward: no memory for partial sums");
  for (int64_t sample = 0; sample < g.batch; sample++) {
    const GroupChannels channel = groupChannels(memory, sample, c);
    for (int64_t j = 0; j < c; j++) {
      channel.mean[j] = f32(mean)[sample * groups + j / g.perGroup];
      channel.rstd[j] = f32(rstd)[sample * groups + j / g.perGroup];
      channel.w[j] = w ? f32(w)[j] : 1.0f;
      channel.b[j] = b ? f32(b)[j] : 0.0f;
    }
  }
  withFloats(
      [&](auto in, auto grad, auto out) { groupNormBackward(ctx, g, in, grad, out, memory, partials, silu != 0); }, x,
      dy, dx);

  /* w and b gather from all samples. */
  for (int which = 0; which < 2; which++) {
    const diffit_tensor *to = which == 0 ? dw : db;
    for (int64_t j = 0; to && j < c; j++) {
      double total = 0;
      for (int64_t sample = 0; sample < g.batch; sample++) {
        const GroupChannels channel = groupChannels(memory, sample, c);
        total += which == 0 ? channel.product[j] : channel.sum[j];
      }
      f32(to)[j] = (float)total;
    }
  }
  return DIFFIT_OK;
}

#endif
