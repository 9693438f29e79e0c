/*
 * The gradient of attention in windows of more than 64 tokens on tensor cores, bf16 or f16 (SPEC section 1), without atomics.
 *
 *   P = exp(S - lse), dP = dy v^T, dS = P (dP - delta), delta = row sums of dy (y - v_t)
 *   dq = scale dS k, dk = scale dS^T (q + q_t), dv = P^T dy, dbias = dS
 *
 * v_t adds dy . v_t to every dP of a row, and dS does not change when the same is added to a row of dP and to its delta: so neither has
 * it, and delta = sum of P dP = dy . (P v) is taken from y - v_t. (P sums to one only in f32: with v_t in both, its rounding
 * would not cancel.)
 *
 * Two kernels, each computing logits again, which costs 7 products of N^2 d for the least possible 5, but no sums in global memory:
 * - keys: a block has 64 keys, a warp 16 of them with k and v in registers, and goes through the queries 64 at a time. It
 *   computes S^T and dP^T, whose fragments are at once the left factors of dv = P^T dy and dk = dS^T q.
 * - queries: the same with the roles exchanged, for dq; and the table's gradient. A block has a head and 64 queries and goes
 *   through a share of the samples' windows. A warp keeps its sums of dS in shared memory: one per lane and pair of fragments on the
 *   same diagonals where that fits (N = 256), 16 bytes in and out per 16 x 8 of dS; else one per diagonal. They are put onto rows of
 *   the table once, at the block's end, and blocks are added in order by foldTables. Against a third kernel for the table
 *   this saves two of nine products.
 *
 * Memory traffic: qkv and dy once per kernel (the other side again per block, from the L2 cache), dqkv once, y once for delta; the
 * table's parts, [shares, tiles of queries, heads, rows], once out and in.
 */
#include "attention_mma.cuh"

namespace diffit {
namespace {

constexpr int kWarps = 4, kBlock = 32 * kWarps, kTile = 64;

template <class T, int kDim>
using Tile = T[kTile][kPitch<kDim>];

/* 16 rows of a part (0 q, 1 k, 2 v) of dqkv, by way of 16 rows of shared memory that are the warp's own. */
template <int kDim, class T>
__device__ __forceinline__ void storePart(T *rows, const LowAttention<T> &a, const Problem &p, int part, int first,
                                          const float (&sums)[kDim / 8][4], float scale) {
  putRows<T>(rows, kPitch<kDim>, sums, scale, scale);
  syncWarp();
  storeRows<kDim, 16, 32>(rows, a.s, p, a.dqkv, 3 * a.s.channels, part * a.s.channels + p.head * a.s.dim, first,
                          laneIndex());
}

/* ---- keys: dk, dv -------------------------------------------------------------------------------------------- */

template <class T, int kDim>
struct KeyShared {
  Tile<T, kDim> k, v, q[2], dy[2];
  float lse2[2][kTile], delta[2][kTile];
  int queryParts[2][kTile];
  /* float column[ColumnRange::most] follows */
};

/* blockIdx.x: tiles of keys, then heads, then windows, then samples. */
template <class T, int kDim>
__global__ void __launch_bounds__(kBlock, 2) gridKeyGradientKernel(LowAttention<T> a) {
  constexpr int kSlab = kDim > 96 ? 16 : 32, kColumns = kSlab / 8; /* queries at a time: as many as registers hold */
  KeyShared<T, kDim> &shared = sharedMemory<KeyShared<T, kDim>>();
  float *column = (float *)(&shared + 1);
  const AttentionSizes &s = a.s;
  const int thread = (int)threadIdx.x, group = laneIndex() / 4, quad = laneIndex() % 4, row = thread / 32 * 16;
  const int tiles = (s.tokens + kTile - 1) / kTile, firstKey = (int)(blockIdx.x % tiles) * kTile;
  int rest = (int)(blockIdx.x / tiles);
  const int head = rest % s.heads;
  rest /= s.heads;
  const Problem p(head, rest / s.windows, rest % s.windows);
  const int width = 3 * s.channels, channel = head * s.dim;
  const float *time = a.timeRow(p);

  auto copyQueries = [&](int buffer, int first) {
    copyTile<kDim, kTile, kBlock>(&shared.q[buffer][0][0], s, p, a.qkv, width, channel, first, thread);
    copyTile<kDim, kTile, kBlock>(&shared.dy[buffer][0][0], s, p, a.dy, s.channels, channel, first, thread);
    commitCopies();
  };
  /* What else belongs to a query: loaded early, put into shared memory late, by the first 64 threads. */
  float lse2 = 0, delta = 0;
  auto loadRows = [&](int first) {
    const int query = first + thread;
    const bool inside = thread < kTile && query < s.tokens;
    const int64_t at = inside ? p.row(s, query) : 0;
    lse2 = inside ? a.lse[at] * kLog2E : INFINITY; /* P = 0 beyond the window */
    delta = inside ? a.delta[at] : 0.0f;
  };
  const ColumnRange range = ColumnRange::ofKeys(s, firstKey, kTile);
  auto putQueryRows = [&](int buffer, int first) {
    if (thread >= kTile) return;
    const int query = first + thread;
    shared.lse2[buffer][thread] = lse2;
    shared.delta[buffer][thread] = delta;
    shared.queryParts[buffer][thread] = queryPart(s, query < s.tokens ? query : s.tokens - 1) - range.first;
  };
  copyTile<kDim, kTile, kBlock>(&shared.k[0][0], s, p, a.qkv, width, s.channels + channel, firstKey, thread);
  copyTile<kDim, kTile, kBlock>(&shared.v[0][0], s, p, a.qkv, width, 2 * s.channels + channel, firstKey, thread);
  copyQueries(0, 0);
  loadRows(0);
  putQueryRows(0, 0);
  if (a.columns) range.load<kBlock>(column, a, head, thread);
  int keyParts[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int key = firstKey + row + group + 8 * h;
    keyParts[h] = keyPart(s, key < s.tokens ? key : s.tokens - 1);
  }
  RowFragments<T, kDim> k[1], v[1];
  float dk[1][kDim / 8][4] = {}, dv[1][kDim / 8][4] = {};
  const float scale2 = a.scale2();

  for (int first = 0, buffer = 0; first < s.tokens; first += kTile, buffer ^= 1) {
    const bool more = first + kTile < s.tokens;
    waitCopies<0>();
    if (time) addTime<kDim, kTile, kBlock>(&shared.q[buffer][0][0], s, time, first, thread);
    __syncthreads(); /* these queries are there, and the other buffer is used up */
    if (more) {
      copyQueries(buffer ^ 1, first + kTile);
      loadRows(first + kTile);
    }
    if (first == 0) {
      k[0].load(&shared.k[row][0]);
      v[0].load(&shared.v[row][0]);
    }
#pragma unroll
    for (int slab = 0; slab < kTile; slab += kSlab) {
      float x[1][kColumns][4], g[1][kColumns][4] = {};
#pragma unroll
      for (int n = 0; n < kColumns; n++) {
        const int2 part = *(const int2 *)&shared.queryParts[buffer][slab + 8 * n + 2 * quad];
#pragma unroll
        for (int e = 0; e < 4; e++) x[0][n][e] = a.columns ? column[(e % 2 ? part.y : part.x) - keyParts[e / 2]] : 0.0f;
      }
      multiplyRows<kDim>(x, k, &shared.q[buffer][slab][0]);
      multiplyRows<kDim>(g, v, &shared.dy[buffer][slab][0]);
#pragma unroll
      for (int n = 0; n < kColumns; n++) {
        const float2 lse = *(const float2 *)&shared.lse2[buffer][slab + 8 * n + 2 * quad];
        const float2 mean = *(const float2 *)&shared.delta[buffer][slab + 8 * n + 2 * quad];
#pragma unroll
        for (int e = 0; e < 4; e++) {
          x[0][n][e] = fastExp2(fmaf(x[0][n][e], scale2, -(e % 2 ? lse.y : lse.x)));
          g[0][n][e] = x[0][n][e] * (g[0][n][e] - (e % 2 ? mean.y : mean.x));
        }
      }
      uint32_t factors[1][kSlab / 16][4];
      packFragments<T>(factors[0], x[0]);
      multiplyColumns<kDim>(dv, factors, &shared.dy[buffer][slab][0]);
      packFragments<T>(factors[0], g[0]);
      multiplyColumns<kDim>(dk, factors, &shared.q[buffer][slab][0]);
    }
    if (more) putQueryRows(buffer ^ 1, first + kTile);
  }
  storePart<kDim>(&shared.k[row][0], a, p, 1, firstKey + row, dk[0], s.scale); /* rows that only this warp has read */
  storePart<kDim>(&shared.v[row][0], a, p, 2, firstKey + row, dv[0], 1.0f);
}

/* ---- queries: dq, and the table ------------------------------------------------------------------------------ */

template <class T, int kDim>
struct QueryShared {
  Tile<T, kDim> k[2], v[2]; /* at first k[1] and v[1] are the queries and their dy, which then stay in registers */
  int keyParts[2][kTile];
  /* float column[ColumnRange::most], and sums[kWarps][Sums::size] where the table's gradient is wanted, follow */
};

/*
 * A warp's sums of dS for its 16 queries, neighbours in a row of the window, with all keys, 16 neighbours at a time. The row of the table
 * follows from the key's row y and the key's column less the query's place among the 16: `difference`, -15 to W - 1.
 * The lower half of a fragment (queries 8 to 15) lies on the same diagonals as the upper half of the fragment 8 keys before.
 */

/* Every lane keeps its own sums, of fragments; diagonals are added at the end. 256 (W / 8 + 1) H bytes. */
struct LaneSums {
  float2 *at;
  float kept[2]; /* the upper half of the fragment before */
  int x; /* column of the next key */

  static __host__ __device__ int fragments(const AttentionSizes &s) { return s.windowW / 8 + 1; }
  static __host__ __device__ int size(const AttentionSizes &s) { return 64 * fragments(s) * s.windowH; }

  __device__ void begin(float *sums) {
    at = (float2 *)sums + laneIndex();
    kept[0] = kept[1] = 0;
    x = 0;
  }
  __device__ __forceinline__ void add(const float (&ds)[4], const float (&next)[4], const AttentionSizes &s) {
    const float2 one = at[0], two = at[32];
    at[0] = make_float2(one.x + (ds[2] + kept[0]), one.y + (ds[3] + kept[1]));
    at[32] = make_float2(two.x + (next[2] + ds[0]), two.y + (next[3] + ds[1]));
    kept[0] = next[0];
    kept[1] = next[1];
    at += 64;
    x += 16;
    if (x < s.windowW) return;
    at[0] = make_float2(at[0].x + kept[0], at[0].y + kept[1]);
    kept[0] = kept[1] = 0;
    at += 32;
    x = 0;
  }
  static __device__ float value(const float *sums, const AttentionSizes &s, int y, int difference) {
    float sum = 0;
    for (int g = 0; g < 8; g++) { /* rows of a fragment */
      const int fragment = (difference + g + 16) / 8 - 1, c = (difference + g + 16) % 8;
      if (fragment >= 0 && fragment < fragments(s)) sum += sums[(y * fragments(s) + fragment) * 64 + 8 * g + c];
    }
    return sum;
  }
};

/* One sum per diagonal, where there is no room for more: four shuffles a fragment. 4 (W + 15) H bytes. */
struct DiagonalSums {
  float *at; /* where the main diagonal of the next fragment's upper half lies */
  int x;

  static __host__ __device__ int length(const AttentionSizes &s) { return s.windowW + 15; }
  static __host__ __device__ int size(const AttentionSizes &s) { return s.windowH * length(s); }

  __device__ void begin(float *sums) {
    at = sums + 15;
    x = 0;
  }
  /* Lane (g, q) has (g, 2q) and (g, 2q + 1), on diagonals 2q - g and the next. Afterwards lanes of g < 2 or q = 0 have the
     sums of theirs, and lane 31 that of diagonal 7. */
  static __device__ __forceinline__ float alongDiagonals(float first, float second) {
    const int lane = laneIndex(), group = lane / 4, quad = lane % 4;
    const float above = shuffle(second, (lane + 4) & 31), edge = shuffle(second, (lane == 31 ? 3 : lane - 5) & 31);
    float sum = first + (group < 7 ? above : 0.0f);
    const float one = shuffle(sum, (lane + 9) & 31); /* two rows down and two columns on */
    sum += group < 6 && quad < 3 ? one : 0.0f;
    const float two = shuffle(sum, (lane + 18) & 31);
    sum += group < 4 && quad < 2 ? two : 0.0f;
    return (lane == 31 ? 0.0f : sum) + (lane == 31 || (group == 1 && quad > 0) ? edge : 0.0f);
  }
  __device__ __forceinline__ void add(const float (&ds)[4], const float (&next)[4], const AttentionSizes &s) {
    const int lane = laneIndex(), group = lane / 4, quad = lane % 4;
    const float low = alongDiagonals(ds[2], ds[3]), middle = alongDiagonals(ds[0] + next[2], ds[1] + next[3]),
                high = alongDiagonals(next[0], next[1]);
    float *to = at + (lane == 31 ? 7 : 2 * quad - group);
    const bool writes = group < 2 || quad == 0 || lane == 31;
    if (writes) { /* 16 apart: none meets another */
      to[-8] += low;
      to[8] += high;
    }
    syncWarp();
    if (writes) to[0] += middle;
    syncWarp();
    at += 16;
    x += 16;
    if (x < s.windowW) return;
    at += 15;
    x = 0;
  }
  static __device__ float value(const float *sums, const AttentionSizes &s, int y, int difference) {
    return sums[y * length(s) + difference + 15];
  }
};

/* Windows (of all samples) of one head that a block goes through. */
struct Shares {
  int perHead, size, count; /* windows of a head; of a share; shares */
};

/* blockIdx.x: tiles of queries, then heads, then shares. partials [shares, tiles, heads, tableRows], or null. */
template <class T, int kDim, class Sums>
__global__ void __launch_bounds__(kBlock, 2)
    gridQueryGradientKernel(LowAttention<T> a, Shares shares, float *partials, int columnFloats) {
  constexpr int kSlab = 32, kColumns = kSlab / 8; /* keys at a time */
  QueryShared<T, kDim> &shared = sharedMemory<QueryShared<T, kDim>>();
  const AttentionSizes &s = a.s;
  float *column = (float *)(&shared + 1), *sums = column + columnFloats;
  const int thread = (int)threadIdx.x, group = laneIndex() / 4, quad = laneIndex() % 4, row = thread / 32 * 16;
  const int tiles = (s.tokens + kTile - 1) / kTile, tile = (int)(blockIdx.x % tiles), firstQuery = tile * kTile;
  const int head = (int)(blockIdx.x / tiles % s.heads);
  const int share = (int)(blockIdx.x / tiles) / s.heads, begin = share * shares.size;
  const int end = (int)imin(shares.perHead, (int64_t)begin + shares.size);
  const int width = 3 * s.channels, channel = head * s.dim, warpSums = Sums::size(s);
  const float scale2 = a.scale2();

  const ColumnRange range = ColumnRange::ofQueries(s, firstQuery, kTile);
  if (a.columns) range.load<kBlock>(column, a, head, thread);
  if (partials)
    for (int i = thread; i < kWarps * warpSums; i += kBlock) sums[i] = 0;
  int queryParts[2];
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int query = firstQuery + row + group + 8 * h;
    queryParts[h] = queryPart(s, query < s.tokens ? query : s.tokens - 1) - range.first;
  }
  for (int pair = begin; pair < end; pair++) {
    const Problem p(head, pair / s.windows, pair % s.windows);
    const float *time = a.timeRow(p);
    auto copyKeys = [&](int buffer, int first) {
      copyTile<kDim, kTile, kBlock>(&shared.k[buffer][0][0], s, p, a.qkv, width, s.channels + channel, first, thread);
      copyTile<kDim, kTile, kBlock>(&shared.v[buffer][0][0], s, p, a.qkv, width, 2 * s.channels + channel, first,
                                    thread);
      commitCopies();
      if (thread < kTile) shared.keyParts[buffer][thread] = first + thread < s.tokens ? keyPart(s, first + thread) : 0;
    };
    __syncthreads(); /* the window before is used up */
    copyTile<kDim, kTile, kBlock>(&shared.k[1][0][0], s, p, a.qkv, width, channel, firstQuery, thread);
    copyTile<kDim, kTile, kBlock>(&shared.v[1][0][0], s, p, a.dy, s.channels, channel, firstQuery, thread);
    copyKeys(0, 0);
    float lse2[2], delta[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int query = firstQuery + row + group + 8 * h;
      const int64_t at = query < s.tokens ? p.row(s, query) : 0;
      lse2[h] = query < s.tokens ? a.lse[at] * kLog2E : INFINITY; /* P = 0 beyond the window */
      delta[h] = query < s.tokens ? a.delta[at] : 0.0f;
    }
    RowFragments<T, kDim> q[1], dy[1];
    float dq[1][kDim / 8][4] = {};
    Sums table;
    table.begin(sums + thread / 32 * warpSums);
    waitCopies<0>();
    if (time) addTime<kDim, kTile, kBlock>(&shared.k[1][0][0], s, time, firstQuery, thread);
    __syncthreads();
    q[0].load(&shared.k[1][row][0]);
    dy[0].load(&shared.v[1][row][0]);

    for (int first = 0, buffer = 0; first < s.tokens; first += kTile, buffer ^= 1) {
      waitCopies<0>();
      __syncthreads(); /* these keys are there, and the other buffer is used up */
      if (first + kTile < s.tokens) copyKeys(buffer ^ 1, first + kTile);
#pragma unroll
      for (int slab = 0; slab < kTile; slab += kSlab) {
        float x[1][kColumns][4], g[1][kColumns][4] = {};
#pragma unroll
        for (int n = 0; n < kColumns; n++) {
          const int2 part = *(const int2 *)&shared.keyParts[buffer][slab + 8 * n + 2 * quad];
#pragma unroll
          for (int e = 0; e < 4; e++)
            x[0][n][e] = a.columns ? column[queryParts[e / 2] - (e % 2 ? part.y : part.x)] : 0.0f;
        }
        multiplyRows<kDim>(x, q, &shared.k[buffer][slab][0]);
        multiplyRows<kDim>(g, dy, &shared.v[buffer][slab][0]);
#pragma unroll
        for (int n = 0; n < kColumns; n++)
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const float weight = fastExp2(fmaf(x[0][n][e], scale2, -lse2[e / 2]));
            const bool inside = first + slab + 8 * n + 2 * quad + e % 2 < s.tokens;
            g[0][n][e] = inside ? weight * (g[0][n][e] - delta[e / 2]) : 0.0f;
          }
        if (partials)
#pragma unroll
          for (int n = 0; n < kColumns; n += 2)
            if (first + slab + 8 * n < s.tokens) table.add(g[0][n], g[0][n + 1], s);
        uint32_t factors[1][kSlab / 16][4];
        packFragments<T>(factors[0], g[0]);
        multiplyColumns<kDim>(dq, factors, &shared.k[buffer][slab][0]);
      }
    }
    const int unused = (s.tokens - 1) / kTile % 2 ^ 1; /* the buffer of the keys before the last ones */
    storePart<kDim>(&shared.k[unused][row][0], a, p, 0, firstQuery + row, dq[0], s.scale);
  }

  if (!partials) return;
  __syncthreads();
  float *to = partials + (((int64_t)share * tiles + tile) * s.heads + head) * s.tableRows;
  for (int i = thread; i < s.tableRows; i += kBlock) {
    const int dy = i / (2 * s.windowW - 1) - s.windowH + 1, dx = i % (2 * s.windowW - 1) - s.windowW + 1;
    float sum = 0;
    for (int w = 0; w < kWarps; w++) {
      const int query = firstQuery + 16 * w, y = query / s.windowW - dy, difference = query % s.windowW - dx;
      if (query < s.tokens && y >= 0 && y < s.windowH && difference >= -15 && difference < s.windowW)
        sum += Sums::value(sums + w * warpSums, s, y, difference);
    }
    to[i] = sum;
  }
}

/* ---- host ---------------------------------------------------------------------------------------------------- */

template <class T, int kDim>
size_t keyBytes(const AttentionSizes &s, bool table) {
  return sizeof(KeyShared<T, kDim>) + ColumnRange::most(s, table, kTile) * sizeof(float);
}
template <class T, int kDim, class Sums>
size_t queryBytes(const AttentionSizes &s, bool table, bool tableGradient) {
  const size_t sums = tableGradient ? (size_t)kWarps * Sums::size(s) : 0;
  return sizeof(QueryShared<T, kDim>) + (ColumnRange::most(s, table, kTile) + sums) * sizeof(float);
}

template <class T, int kDim, class Sums>
diffit_status queryGradient(diffit_context *ctx, const LowAttention<T> &a, float *dtable) {
  const AttentionSizes &s = a.s;
  const int64_t tiles = ceilDiv(s.tokens, kTile);
  Shares shares = {s.windows * s.batch, 1, 0};
  if (dtable) /* enough blocks to fill the device a few times, but no more parts of the table */
    shares.size = (int)imax(1, shares.perHead * s.heads * tiles / (8 * (int64_t)ctx->about.multiProcessorCount));
  shares.count = (int)ceilDiv(shares.perHead, shares.size);
  float *partials = nullptr;
  if (dtable) {
    partials = (float *)scratch(ctx, 2, (size_t)(shares.count * tiles * s.heads * s.tableRows) * sizeof(float));
    if (!partials) return DIFFIT_OUT_OF_MEMORY;
  }
  TRY(launch(ctx, gridQueryGradientKernel<T, kDim, Sums>, dim3((unsigned)(shares.count * s.heads * tiles)),
             dim3(kBlock), queryBytes<T, kDim, Sums>(s, a.columns, dtable), a, shares, partials,
             (int)ColumnRange::most(s, a.columns, kTile)));
  return dtable ? foldTables(ctx, partials, dtable, 1, shares.count * tiles, s.heads, s.tableRows) : DIFFIT_OK;
}

template <class T, int kDim>
diffit_status run(diffit_context *ctx, const LowAttention<T> &a, float *dtable) {
  const AttentionSizes &s = a.s;
  const int64_t blocks = s.problems * ceilDiv(s.tokens, kTile);
  if (blocks >= (int64_t)1 << 31) return fail(ctx, DIFFIT_UNSUPPORTED, "attention_backward: more than 2^31 blocks");
  TRY(launch(ctx, gridKeyGradientKernel<T, kDim>, dim3((unsigned)blocks), dim3(kBlock), keyBytes<T, kDim>(s, a.columns),
             a));
  /* a sum per lane where two blocks still fit a multiprocessor */
  if (dtable && queryBytes<T, kDim, LaneSums>(s, a.columns, true) <= ctx->about.sharedMemPerBlockOptin / 2)
    return queryGradient<T, kDim, LaneSums>(ctx, a, dtable);
  return queryGradient<T, kDim, DiagonalSums>(ctx, a, dtable);
}

}  // namespace

bool gridBackwardFits(diffit_context *ctx, const AttentionSizes &s, bool table, bool tableGradient) {
  if (tableGradient && s.windowW % 16 != 0) return false;
  size_t bytes = 0;
  withLowDim(s, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    bytes = keyBytes<bf16, kDim>(s, table);
    const size_t other = queryBytes<bf16, kDim, DiagonalSums>(s, table, tableGradient);
    if (other > bytes) bytes = other;
    return DIFFIT_OK;
  });
  return bytes <= ctx->about.sharedMemPerBlockOptin;
}

template <class T>
diffit_status gridBackward(diffit_context *ctx, const LowAttention<T> &a, float *dtable) {
  return withLowDim(a.s, [&](auto dim) { return run<T, decltype(dim)::value>(ctx, a, dtable); });
}
template diffit_status gridBackward(diffit_context *, const LowAttention<bf16> &, float *);
template diffit_status gridBackward(diffit_context *, const LowAttention<f16> &, float *);

}  // namespace diffit
