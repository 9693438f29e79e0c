/*
 * Attention in windows of at most 64 tokens on tensor cores, and its gradient: a window of one head lies on chip as a whole.
 *
 *   P = softmax((q + q_t) k^T scale + bias), y = P v + v_t; dP = dy v^T, dS = P (dP - row sums of P dP), dv = P^T dy,
 *   dq = scale dS k, dk = scale dS^T (q + q_t), dbias = dS
 *
 * qkv [B, H, W, 3C] and y, dy, dqkv are read and written in place: the partition into windows is in the addresses. 16 tokens are one
 * warp's, 64 are four warps', 16 queries each; smaller windows are filled up with keys of logit minus infinity and queries that
 * nobody stores. All logits of a warp are in its registers, so there is one pass and no running maximum. The gradient needs
 * no y: row sums of P dP are at hand (v_t adds the same to every dP of a row, so it drops out).
 *
 * A unit (a warp, or a block of four) has one head, whose column of the table stays in shared memory, and goes through a share of the
 * windows of all samples. Its sum of dS stays in registers, in f32; at its end it is folded onto rows of the table once, and units are
 * added in order by foldTables: no atomics, the same bits on every run. Forward copies of the next window run while the current one is
 * computed; the gradient has all shared memory in one window and relies on several blocks per multiprocessor.
 *
 * Bound by memory: forward qkv once and y once, 8 C bytes a token; the gradient qkv and dy once and dqkv once, 14 C. The time
 * token's gradient leaves 8 C bytes a window.
 */
#include "attention_mma.cuh"

namespace diffit {
namespace {

constexpr int kBlock = 128;

/* kTokens (16 or 64) a problem; problems side by side in a block. */
template <int kTokens>
constexpr int kProblems = 64 / kTokens;

/* The bias of one head over the scale, where sums of q . k start: a column of the table, or zeros. */
template <int kTokens>
struct WindowBias {
  float column[4 * kTokens];
  int keyParts[kTokens];

  template <class T>
  __device__ void load(const LowAttention<T> &a, int head, int thread) {
    for (int i = thread; i < a.s.tableRows; i += 2 * kTokens)
      column[i] = a.table ? a.table[(int64_t)i * a.s.heads + head] / a.s.scale : 0.0f;
    for (int i = thread; i < kTokens; i += 2 * kTokens) keyParts[i] = i < a.s.tokens ? keyPart(a.s, i) : 0;
  }
  /* For the queries with these parts and all keys; minus infinity for keys beyond the window. */
  __device__ __forceinline__ void start(float (&x)[kTokens / 8][4], const int (&queryParts)[2], int tokens) const {
    const int first = laneIndex() % 4 * 2;
#pragma unroll
    for (int n = 0; n < kTokens / 8; n++) {
      const int2 part = *(const int2 *)&keyParts[8 * n + first];
#pragma unroll
      for (int e = 0; e < 4; e++) x[n][e] = column[queryParts[e / 2] - (e % 2 ? part.y : part.x)];
    }
    if (tokens == kTokens) return;
#pragma unroll
    for (int n = 0; n < kTokens / 8; n++)
#pragma unroll
      for (int e = 0; e < 4; e++)
        if (8 * n + first + e % 2 >= tokens) x[n][e] = -INFINITY;
  }
};

template <class T, int kDim, int kTokens>
struct ForwardTiles {
  T q[kTokens][kPitch<kDim>], k[kTokens][kPitch<kDim>], v[kTokens][kPitch<kDim>];
};
template <class T, int kDim, int kTokens>
struct ForwardShared {
  struct {
    ForwardTiles<T, kDim, kTokens> stages[2];
    WindowBias<kTokens> bias;
  } problem[kProblems<kTokens>];
};
template <class T, int kDim, int kTokens>
struct BackwardTiles {
  T q[kTokens][kPitch<kDim>], k[kTokens][kPitch<kDim>], v[kTokens][kPitch<kDim>], dy[kTokens][kPitch<kDim>];
  T p[kTokens][kTokens + 8], ds[kTokens][kTokens + 8];
  float dq[kTokens / 16][kDim]; /* sums over the queries of a warp */
  WindowBias<kTokens> bias;
};
template <class T, int kDim, int kTokens>
struct BackwardShared {
  BackwardTiles<T, kDim, kTokens> problem[kProblems<kTokens>];
};

/* Windows (of all samples) of one head that a unit goes through. */
struct Shares {
  int perHead, size, count; /* windows of a head; of a share; shares */
};

/* Where a thread stands: its unit, and its 16 queries of the window. */
template <int kTokens>
struct Unit {
  static constexpr int kThreads = 2 * kTokens;
  int problem, thread, row, head, number, begin, end;
  __device__ Unit(const AttentionSizes &s, const Shares &shares) {
    problem = (int)threadIdx.x / kThreads;
    thread = (int)threadIdx.x % kThreads;
    row = thread / 32 * 16;
    number = (int)blockIdx.x * kProblems<kTokens> + problem;
    head = number % s.heads;
    begin = number / s.heads * shares.size;
    end = (int)imin(shares.perHead, (int64_t)begin + shares.size);
  }
  __device__ Problem window(const AttentionSizes &s, int pair) const {
    return Problem(head, pair / s.windows, pair % s.windows);
  }
  /* Barrier of the unit. */
  __device__ static void sync() {
    if constexpr (kThreads == 32)
      syncWarp();
    else
      __syncthreads();
  }
};

/* Parts of the table's row of this lane's two queries. */
__device__ inline void windowQueryParts(int (&parts)[2], const AttentionSizes &s, int row) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int query = row + laneIndex() / 4 + 8 * h;
    parts[h] = queryPart(s, query < s.tokens ? query : s.tokens - 1);
  }
}

template <class T, int kDim, int kTokens>
__global__ void __launch_bounds__(kBlock, 3) windowForwardKernel(LowAttention<T> a, Shares shares) {
  constexpr int kColumns = kTokens / 8;
  using Place = Unit<kTokens>;
  const AttentionSizes &s = a.s;
  const Place unit(s, shares);
  auto &shared = sharedMemory<ForwardShared<T, kDim, kTokens>>().problem[unit.problem];
  const int width = 3 * s.channels, channel = unit.head * s.dim, group = laneIndex() / 4, quad = laneIndex() % 4;
  const float scale2 = a.scale2();
  auto copy = [&](int stage, int pair) {
    const Problem p = unit.window(s, pair);
    auto &to = shared.stages[stage];
    eachPiece<kDim, kTokens, Place::kThreads>(s, 0, unit.thread, [&](int element, int token, int c, bool inside) {
      const T *from = inside ? a.qkv + p.token(s, token) * width + channel + c : a.qkv;
      const int step = inside ? s.channels : 0;
      copyAsync16(&to.q[0][0] + element, from, inside);
      copyAsync16(&to.k[0][0] + element, from + step, inside);
      copyAsync16(&to.v[0][0] + element, from + 2 * step, inside);
    });
    commitCopies();
  };
  if (unit.begin < unit.end) copy(0, unit.begin);
  shared.bias.load(a, unit.head, unit.thread);
  int queryParts[2], stage = 0;
  windowQueryParts(queryParts, s, unit.row);
  for (int pair = unit.begin; pair < unit.end; pair++, stage ^= 1) {
    const Problem p = unit.window(s, pair);
    auto &now = shared.stages[stage];
    const float *time = a.timeRow(p);
    waitCopies<0>();
    if (time) addTime<kDim, kTokens, Place::kThreads>(&now.q[0][0], s, time, 0, unit.thread);
    Place::sync(); /* this window is there, and the other stage is used up */
    if (pair + 1 < unit.end) copy(stage ^ 1, pair + 1);

    RowFragments<T, kDim> q[1];
    q[0].load(&now.q[unit.row][0]);
    float x[1][kColumns][4], factors[2];
    shared.bias.start(x[0], queryParts, s.tokens);
    multiplyRows<kDim>(x, q, &now.k[0][0]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float top = -INFINITY, total = 0;
#pragma unroll
      for (int n = 0; n < kColumns; n++) top = fmaxf(top, fmaxf(x[0][n][2 * h], x[0][n][2 * h + 1]));
      top = quadMax(top);
#pragma unroll
      for (int n = 0; n < kColumns; n++)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; e++) {
          x[0][n][e] = fastExp2(fmaf(x[0][n][e], scale2, -top * scale2));
          total += x[0][n][e];
        }
      total = quadSum(total);
      factors[h] = 1.0f / total;
      const int query = unit.row + group + 8 * h;
      if (a.lse && quad == 0 && query < s.tokens) a.lse[p.row(s, query)] = top * s.scale + log2f(total) * kLn2;
    }
    uint32_t weights[1][kColumns / 2][4];
    packFragments<T>(weights[0], x[0]);
    float sums[1][kDim / 8][4] = {};
    multiplyColumns<kDim>(sums, weights, &now.v[0][0]);
#pragma unroll
    for (int c = 0; c < kDim / 8; c++)
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const int d = 8 * c + 2 * quad + e % 2;
        sums[0][c][e] = sums[0][c][e] * factors[e / 2] + (time && d < s.dim ? time[2 * s.channels + d] : 0.0f);
      }
    putRows<T>(&now.q[unit.row][0], kPitch<kDim>, sums[0], 1.0f, 1.0f); /* this warp's own queries, used up */
    syncWarp();
    storeRows<kDim, 16, 32>(&now.q[unit.row][0], s, p, a.y, s.channels, channel, unit.row, laneIndex());
  }
}

/* Folds a unit's sum of dS, which lies in `square`, onto the rows of the table. */
template <int kTokens>
__device__ void foldSquare(const float (*square)[kTokens + 1], const AttentionSizes &s, float *to, int thread) {
  for (int row = thread; row < s.tableRows; row += Unit<kTokens>::kThreads) {
    const int dy = row / (2 * s.windowW - 1) - s.windowH + 1, dx = row % (2 * s.windowW - 1) - s.windowW + 1;
    float sum = 0;
    for (int i = 0; i < s.tokens; i++) {
      const int y = i / s.windowW - dy, x = i % s.windowW - dx;
      if (y >= 0 && y < s.windowH && x >= 0 && x < s.windowW) sum += square[i][y * s.windowW + x];
    }
    to[row] = sum;
  }
}

/* Parts of gradients that other kernels add, or null: of the table [shares, heads, rows], of the time token [B, windows, 2C] (q, v). */
struct Partials {
  float *table, *time;
};

template <class T, int kDim, int kTokens>
__global__ void __launch_bounds__(kBlock, kDim > 96 ? 2 : 3)
    windowBackwardKernel(LowAttention<T> a, Shares shares, Partials partials) {
  constexpr int kColumns = kTokens / 8, kSteps = kTokens / 16;
  using Place = Unit<kTokens>;
  const AttentionSizes &s = a.s;
  const Place unit(s, shares);
  auto &tiles = sharedMemory<BackwardShared<T, kDim, kTokens>>().problem[unit.problem];
  const int width = 3 * s.channels, channel = unit.head * s.dim, lane = laneIndex(), group = lane / 4, quad = lane % 4;
  const float scale2 = a.scale2();
  float tableSums[kColumns][4] = {};
  int queryParts[2];
  tiles.bias.load(a, unit.head, unit.thread);
  windowQueryParts(queryParts, s, unit.row);

  /* 16 rows of a part (0 q, 1 k, 2 v) of dqkv, by way of this warp's rows of a tile. */
  auto store = [&](T(*tile)[kPitch<kDim>], const float(&sums)[kDim / 8][4], float scale, const Problem &p, int part) {
    putRows<T>(&tile[unit.row][0], kPitch<kDim>, sums, scale, scale);
    syncWarp();
    storeRows<kDim, 16, 32>(&tile[unit.row][0], s, p, a.dqkv, width, part * s.channels + channel, unit.row, lane);
    syncWarp();
  };
  /* The 16 keys of this warp as left factors, from a square of [query, key]. */
  auto transposed = [&](uint32_t(&to)[kSteps][4], const T(*square)[kTokens + 8]) {
#pragma unroll
    for (int k = 0; k < kSteps; k++)
      loadMatrices<4, true>(to[k], &square[16 * k + (lane & 7) + (lane >> 4) * 8][unit.row + (lane & 8)]);
  };

  for (int pair = unit.begin; pair < unit.end; pair++) {
    const Problem p = unit.window(s, pair);
    const float *time = a.timeRow(p);
    Place::sync(); /* the window before is used up */
    eachPiece<kDim, kTokens, Place::kThreads>(s, 0, unit.thread, [&](int element, int token, int c, bool inside) {
      const int64_t at = inside ? p.token(s, token) : 0;
      const T *from = inside ? a.qkv + at * width + channel + c : a.qkv;
      const int step = inside ? s.channels : 0;
      copyAsync16(&tiles.q[0][0] + element, from, inside);
      copyAsync16(&tiles.k[0][0] + element, from + step, inside);
      copyAsync16(&tiles.v[0][0] + element, from + 2 * step, inside);
      copyAsync16(&tiles.dy[0][0] + element, inside ? a.dy + at * s.channels + channel + c : a.dy, inside);
    });
    commitCopies();
    float lse2[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int query = unit.row + group + 8 * h;
      lse2[h] = query < s.tokens ? a.lse[p.row(s, query)] * kLog2E : INFINITY;
    }
    waitCopies<0>();
    if (time) addTime<kDim, kTokens, Place::kThreads>(&tiles.q[0][0], s, time, 0, unit.thread);
    Place::sync();

    uint32_t slopes[1][kSteps][4];
    {
      RowFragments<T, kDim> rows[1];
      float x[1][kColumns][4], g[1][kColumns][4] = {};
      tiles.bias.start(x[0], queryParts, s.tokens);
      rows[0].load(&tiles.q[unit.row][0]);
      multiplyRows<kDim>(x, rows, &tiles.k[0][0]);
      rows[0].load(&tiles.dy[unit.row][0]);
      multiplyRows<kDim>(g, rows, &tiles.v[0][0]);
      float delta[2] = {};
#pragma unroll
      for (int n = 0; n < kColumns; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          x[0][n][e] = fastExp2(fmaf(x[0][n][e], scale2, -lse2[e / 2]));
          delta[e / 2] = fmaf(x[0][n][e], g[0][n][e], delta[e / 2]);
        }
      putRows<T>(&tiles.p[unit.row][0], kTokens + 8, x[0], 1.0f, 1.0f);
#pragma unroll
      for (int h = 0; h < 2; h++) delta[h] = quadSum(delta[h]);
#pragma unroll
      for (int n = 0; n < kColumns; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
          g[0][n][e] = x[0][n][e] * (g[0][n][e] - delta[e / 2]);
          tableSums[n][e] += g[0][n][e];
        }
      putRows<T>(&tiles.ds[unit.row][0], kTokens + 8, g[0], 1.0f, 1.0f);
      packFragments<T>(slopes[0], g[0]);
    }
    float sums[1][kDim / 8][4] = {};
    multiplyColumns<kDim>(sums, slopes, &tiles.k[0][0]);
    if (partials.time)
#pragma unroll
      for (int c = 0; c < kDim / 8; c++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          float sum = sums[0][c][e] + sums[0][c][e + 2];
#pragma unroll
          for (int mask = 4; mask < 32; mask *= 2) sum += shuffleXor(sum, mask);
          if (group == 0) tiles.dq[unit.row / 16][8 * c + 2 * quad + e] = sum;
        }
    Place::sync(); /* p, ds and dq are there; k and v are used up and serve as the way out */
    float *time2 = partials.time ? partials.time + ((int64_t)pair * 2 * s.heads + unit.head) * s.dim : nullptr;
    if (time2)
      for (int d = unit.thread; d < s.dim; d += Place::kThreads) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < kTokens / 16; w++) sum += tiles.dq[w][d];
        time2[d] = sum * s.scale;
      }
    store(tiles.k, sums[0], s.scale, p, 0);
    transposed(slopes[0], tiles.ds);
    memset(sums, 0, sizeof sums);
    multiplyColumns<kDim>(sums, slopes, &tiles.q[0][0]);
    store(tiles.k, sums[0], s.scale, p, 1);
    transposed(slopes[0], tiles.p);
    memset(sums, 0, sizeof sums);
    multiplyColumns<kDim>(sums, slopes, &tiles.dy[0][0]);
    store(tiles.v, sums[0], 1.0f, p, 2);
    if (time2 && unit.row == 0) { /* sums of dy over tokens: a factor of ones */
#pragma unroll
      for (int k = 0; k < kSteps; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) slopes[0][k][i] = packPair<T>(1.0f, 1.0f);
      memset(sums, 0, sizeof sums);
      multiplyColumns<kDim>(sums, slopes, &tiles.dy[0][0]);
#pragma unroll
      for (int c = 0; c < kDim / 8; c++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int d = 8 * c + 2 * quad + e;
          if (group == 0 && d < s.dim) time2[s.channels + d] = sums[0][c][e];
        }
    }
  }

  if (!partials.table || unit.begin >= unit.end) return;
  auto square = (float(*)[kTokens + 1]) & tiles;
  static_assert(sizeof(float[kTokens][kTokens + 1]) <= sizeof tiles, "the square lies on the tiles");
  Place::sync();
#pragma unroll
  for (int n = 0; n < kColumns; n++)
#pragma unroll
    for (int e = 0; e < 4; e++) square[unit.row + group + e / 2 * 8][8 * n + 2 * quad + e % 2] = tableSums[n][e];
  Place::sync();
  foldSquare<kTokens>(square, s, partials.table + (int64_t)unit.number * s.tableRows, unit.thread);
}

/* Shares for so many blocks per multiprocessor. */
template <int kTokens>
Shares shareWindows(diffit_context *ctx, const AttentionSizes &s, int blocks) {
  Shares shares;
  shares.perHead = s.windows * s.batch;
  const int64_t units = (int64_t)ctx->about.multiProcessorCount * blocks * kProblems<kTokens>;
  shares.size = (int)ceilDiv(shares.perHead, ceilDiv(units, s.heads));
  shares.count = (int)ceilDiv(shares.perHead, shares.size);
  return shares;
}

template <class Run>
diffit_status withWindow(const AttentionSizes &s, const Run &run) {
  return withLowDim(s, [&](auto dim) {
    return s.tokens <= 16 ? run(dim, std::integral_constant<int, 16>()) : run(dim, std::integral_constant<int, 64>());
  });
}

}  // namespace

bool windowForwardFits(diffit_context *ctx, const AttentionSizes &s) {
  size_t bytes = 0;
  withWindow(s, [&](auto dim, auto tokens) {
    bytes = sizeof(ForwardShared<bf16, decltype(dim)::value, decltype(tokens)::value>);
    return DIFFIT_OK;
  });
  return bytes <= ctx->about.sharedMemPerBlockOptin;
}

template <class T>
diffit_status windowForward(diffit_context *ctx, const LowAttention<T> &a) {
  return withWindow(a.s, [&](auto dim, auto tokens) -> diffit_status {
    constexpr int kDim = decltype(dim)::value, kTokens = decltype(tokens)::value;
    const Shares shares = shareWindows<kTokens>(ctx, a.s, 4);
    return launch(ctx, windowForwardKernel<T, kDim, kTokens>,
                  dim3((unsigned)ceilDiv((int64_t)shares.count * a.s.heads, kProblems<kTokens>)), dim3(kBlock),
                  sizeof(ForwardShared<T, kDim, kTokens>), a, shares);
  });
}
template diffit_status windowForward(diffit_context *, const LowAttention<bf16> &);
template diffit_status windowForward(diffit_context *, const LowAttention<f16> &);

template <class T>
diffit_status windowBackward(diffit_context *ctx, const LowAttention<T> &a, float *dtime, float *dtable) {
  const AttentionSizes &s = a.s;
  return withWindow(s, [&](auto dim, auto tokens) -> diffit_status {
    constexpr int kDim = decltype(dim)::value, kTokens = decltype(tokens)::value;
    const Shares shares = shareWindows<kTokens>(ctx, s, 3);
    const int64_t units = (int64_t)shares.count * s.heads, tableFloats = dtable ? units * s.tableRows : 0;
    const int64_t timeFloats = dtime ? (int64_t)s.batch * s.windows * 2 * s.channels : 0;
    Partials partials = {};
    if (tableFloats + timeFloats > 0) {
      float *room = (float *)scratch(ctx, 2, (size_t)(tableFloats + timeFloats) * sizeof(float));
      if (!room) return DIFFIT_OUT_OF_MEMORY;
      partials = {dtable ? room : nullptr, dtime ? room + tableFloats : nullptr};
    }
    TRY(launch(ctx, windowBackwardKernel<T, kDim, kTokens>, dim3((unsigned)ceilDiv(units, kProblems<kTokens>)),
               dim3(kBlock), sizeof(BackwardShared<T, kDim, kTokens>), a, shares, partials));
    if (dtime) TRY(joinTimeParts(ctx, partials.time, dtime, s, s.windows));
    return dtable ? foldTables(ctx, partials.table, dtable, 1, shares.count, s.heads, s.tableRows) : DIFFIT_OK;
  });
}
template diffit_status windowBackward(diffit_context *, const LowAttention<bf16> &, float *, float *);
template diffit_status windowBackward(diffit_context *, const LowAttention<f16> &, float *, float *);

}  // namespace diffit
