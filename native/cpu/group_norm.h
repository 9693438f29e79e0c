/*
 * Group norm on NHWC (SiLU fused) and its gradient.
 *
 * Statistics take two passes over a piece that lies in the L1 cache (mean, then squared distance to it), and pieces are
 * joined in f64 (Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983). Gradients of w and b are
 * kept per block of rows and added in order: the same for any number of threads.
 *
 * Memory traffic: x twice, y once; the gradient reads x and dy twice.
 */
#ifndef DIFFIT_CPU_GROUP_NORM_H
#define DIFFIT_CPU_GROUP_NORM_H

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
