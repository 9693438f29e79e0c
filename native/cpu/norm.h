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

/* Sum of (x - mean)^2 over n floats. */
static double sumSquaredDistance(const float *x, int64_t n, float mean) {
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
    for (; i < end; i++) total += (double)(x[i] - mean) * (x[i] - mean);
  }
  return total;
}

static bool isVector(const diffit_tensor *t, int64_t n) { return t->dtype == DIFFIT_F32 && numel(t) == n; }

/* Number of rows: all dimensions but the last. */
static int64_t leadingRows(const diffit_tensor *t) {
  int64_t rows = 1;
  for (int d = 0; d < t->ndim - 1; d++) rows *= t->shape[d];
  return rows;
}

/* ---- layer norm --------------------------------------------------------------------------------- */

static diffit_status layer_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                   const diffit_tensor *b, diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd,
                                   double eps) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(x->ndim >= 1 && numel(y) == numel(x));
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(!b || isVector(b, n));
  REQUIRE(!mean || isVector(mean, rows));
  REQUIRE(!rstd || isVector(rstd, rows));
  const float *in = f32(x), *pw = w ? f32(w) : nullptr, *pb = b ? f32(b) : nullptr;
  float *out = f32(y), *means = mean ? f32(mean) : nullptr, *rstds = rstd ? f32(rstd) : nullptr;
  parallelChunks(ctx, rows, imax(1, 8192 / imax(n, 1)), [=](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; r++) {
      const float *from = in + r * n;
      float *to = out + r * n;
      const float m = (float)(sumRow(from, n) / (double)n);
      const float s = (float)(1.0 / ::sqrt(sumSquaredDistance(from, n, m) / (double)n + eps));
      if (means) means[r] = m;
      if (rstds) rstds[r] = s;
      eachVector(n, [=](auto get, auto put) {
        vf v = (get(from) - m) * s;
        if (pw) v = v * get(pw);
        if (pb) v = v + get(pb);
        put(to, v);
      });
    }
  });
  return DIFFIT_OK;
}

static diffit_status layer_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                            const diffit_tensor *mean, const diffit_tensor *rstd,
                                            const diffit_tensor *dy, const diffit_tensor *dresidual, diffit_tensor *dx,
                                            diffit_tensor *dw, diffit_tensor *db) {
  REQUIRE_F32(x);
  REQUIRE(x->ndim >= 1);
  const int64_t n = lastDim(x), rows = leadingRows(x);
  REQUIRE(!w || isVector(w, n));
  REQUIRE(isVector(mean, rows));
  REQUIRE(isVector(rstd, rows));
  REQUIRE(isVector(dy, rows * n));
  REQUIRE(!dresidual || isVector(dresidual, rows * n));
  REQUIRE(isVector(dx, rows * n));
  REQUIRE(!dw || isVector(dw, n));
  REQUIRE(!db || isVector(db, n));
  const float *in = f32(x), *pw = w ? f32(w) : nullptr, *means = f32(mean), *rstds = f32(rstd), *upstream = f32(dy);
  const float *around = dresidual ? f32(dresidual) : nullptr;
  float *out = f32(dx);
  /* Partial gradients [blocks][w, b][n]: at least 64 blocks where there are rows enough, at most 256 rows each. */
  const bool wantsSums = dw || db;
  const int64_t block = wantsSums ? imin(256, imax(8, rows / 64)) : imax(1, 8192 / imax(n, 1));
  const int64_t blocks = ceilDiv(rows, block);
  float *partials = nullptr;
  if (wantsSums) {
    partials = (float *)diffit_cpu_shared(ctx, 0, (size_t)(imax(blocks, 1) * 2 * n) * sizeof(float));
    if (!partials) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "layer_norm_backward: no memory for partial sums");
  }
  parallelChunks(ctx, rows, block, [=](int64_t begin, int64_t end, int) {
    float *sumW = partials ? partials + begin / block * 2 * n : nullptr, *sumB = partials ? sumW + n : nullptr;
    if (partials) memset(sumW, 0, (size_t)(2 * n) * sizeof(float));
    for (int64_t r = begin; r < end; r++) {
      const float *from = in + r * n, *g = upstream + r * n, *skip = around ? around + r * n : nullptr;
      float *to = out + r * n;
      const float m = means[r], s = rstds[r];
      vf sum = {}, product = {};
      eachVector(n, [=, &sum, &product](auto get, auto put) {
        const vf h = (get(from) - m) * s;
        vf d = get(g);
        if (sumW) {
          put(sumW, get(sumW) + d * h);
          put(sumB, get(sumB) + d);
        }
        if (pw) d = d * get(pw);
        sum += d;
        product += d * h; /* 0 beyond the end, as d is */
      });
      const float meanD = hsum(sum) / (float)n, meanDH = hsum(product) / (float)n;
      eachVector(n, [=](auto get, auto put) {
        const vf h = (get(from) - m) * s;
        vf d = get(g);
        if (pw) d = d * get(pw);
        d = ((d - meanD) - h * meanDH) * s;
        if (skip) d = d + get(skip);
        put(to, d);
      });
    }
  });
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

static diffit_status group_norm_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                   const diffit_tensor *b, diffit_tensor *y, diffit_tensor *mean, diffit_tensor *rstd,
                                   int64_t groups, double eps, int64_t silu) {
  REQUIRE_F32(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const GroupShape g = groupShape(x, groups);
  const int64_t c = g.channels;
  REQUIRE(isVector(y, numel(x)));
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(!mean || isVector(mean, g.batch * groups));
  REQUIRE(!rstd || isVector(rstd, g.batch * groups));
  if (numel(x) == 0) return DIFFIT_OK;
  const float *in = f32(x), *pw = w ? f32(w) : nullptr, *pb = b ? f32(b) : nullptr;
  float *out = f32(y), *means = mean ? f32(mean) : nullptr, *rstds = rstd ? f32(rstd) : nullptr;
  float *stats = (float *)diffit_cpu_shared(ctx, 0, (size_t)(g.batch * g.blocks * 2 * c) * sizeof(float));
  float *coefficients = (float *)diffit_cpu_shared(ctx, 1, (size_t)(g.batch * 3 * c) * sizeof(float));
  if (!stats || !coefficients)
    return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "group_norm: no memory for statistics");

  /* Per block and channel: mean and sum of squared distances to it. */
  eachGroupBlock(ctx, g, [=](int64_t sample, int64_t first, int64_t rows, int64_t task) {
    const float *from = in + (sample * g.positions + first) * c;
    float *blockMean = stats + task * 2 * c, *squares = blockMean + c;
    const float scale = 1.0f / (float)rows;
    sumColumns(from, rows, c, c, blockMean);
    mapVectors(blockMean, blockMean, 0, c, [=](vf v) { return v * scale; });
    memset(squares, 0, (size_t)c * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
      eachVector(c, [=, row = from + r * c](auto get, auto put) {
        const vf d = get(row) - get(blockMean);
        put(squares, get(squares) + d * d);
      });
    }
  });

  /* Per sample and group: join the blocks; then y = (x - mean) scale + shift per channel. */
  parallelChunks(ctx, g.batch * groups, imax(1, 4096 / (g.blocks * g.perGroup)), [=](int64_t begin, int64_t end, int) {
    for (int64_t task = begin; task < end; task++) {
      const int64_t sample = task / groups, channel = task % groups * g.perGroup;
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
      if (means) means[task] = (float)m;
      if (rstds) rstds[task] = s;
      float *channelMean = coefficients + sample * 3 * c, *scale = channelMean + c, *shift = scale + c;
      for (int64_t j = channel; j < channel + g.perGroup; j++) {
        channelMean[j] = (float)m;
        scale[j] = pw ? s * pw[j] : s;
        shift[j] = pb ? pb[j] : 0.0f;
      }
    }
  });

  eachGroupBlock(ctx, g, [=](int64_t sample, int64_t first, int64_t rows, int64_t) {
    const float *channelMean = coefficients + sample * 3 * c, *scale = channelMean + c, *shift = scale + c;
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = (sample * g.positions + first + r) * c;
      eachVector(c, [=, from = in + at, to = out + at](auto get, auto put) {
        const vf v = (get(from) - get(channelMean)) * get(scale) + get(shift);
        put(to, silu ? v * vsigmoid(v) : v);
      });
    }
  });
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

static diffit_status group_norm_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *w,
                                            const diffit_tensor *b, const diffit_tensor *mean,
                                            const diffit_tensor *rstd, const diffit_tensor *dy, diffit_tensor *dx,
                                            diffit_tensor *dw, diffit_tensor *db, int64_t groups, int64_t silu) {
  REQUIRE_F32(x);
  REQUIRE(x->ndim >= 2 && groups >= 1 && lastDim(x) % groups == 0);
  const GroupShape g = groupShape(x, groups);
  const int64_t c = g.channels;
  REQUIRE(!w || isVector(w, c));
  REQUIRE(!b || isVector(b, c));
  REQUIRE(isVector(mean, g.batch * groups));
  REQUIRE(isVector(rstd, g.batch * groups));
  REQUIRE(isVector(dy, numel(x)));
  REQUIRE(isVector(dx, numel(x)));
  REQUIRE(!dw || isVector(dw, c));
  REQUIRE(!db || isVector(db, c));
  if (dw) memset(dw->data, 0, (size_t)c * sizeof(float));
  if (db) memset(db->data, 0, (size_t)c * sizeof(float));
  if (numel(x) == 0) return DIFFIT_OK;
  const float *in = f32(x), *upstream = f32(dy);
  float *out = f32(dx);
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

  /* Sums over positions, per block and channel. */
  eachGroupBlock(ctx, g, [=](int64_t sample, int64_t first, int64_t rows, int64_t task) {
    const GroupChannels channel = groupChannels(memory, sample, c);
    float *sum = partials + task * 2 * c, *product = sum + c;
    memset(sum, 0, (size_t)(2 * c) * sizeof(float));
    for (int64_t r = 0; r < rows; r++) {
      const int64_t at = (sample * g.positions + first + r) * c;
      eachVector(c, [=, from = in + at, grad = upstream + at](auto get, auto put) {
        const vf h = (get(from) - get(channel.mean)) * get(channel.rstd);
        vf d = get(grad);
        if (silu) d = d * unaryDerivative(DIFFIT_SILU, h * get(channel.w) + get(channel.b));
        put(sum, get(sum) + d);
        put(product, get(product) + d * h);
      });
    }
  });
  for (int64_t sample = 0; sample < g.batch; sample++) {
    const GroupChannels channel = groupChannels(memory, sample, c); /* sum and product lie behind each other */
    addPartials(ctx, partials + sample * g.blocks * 2 * c, g.blocks, 2 * c, 1.0, channel.sum);
    for (int64_t group = 0; group < groups; group++) {
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
      eachVector(c, [=, from = in + at, grad = upstream + at, to = out + at](auto get, auto put) {
        const vf s = get(channel.rstd), h = (get(from) - get(channel.mean)) * s;
        vf d = get(grad);
        if (silu) d = d * unaryDerivative(DIFFIT_SILU, h * get(channel.w) + get(channel.b));
        put(to, ((d * get(channel.w) - get(channel.meanD)) - h * get(channel.meanDH)) * s);
      });
    }
  });

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
