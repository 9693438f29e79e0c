/*
 * The tile of every matrix product on tensor cores: y[row, column] = epilogue(sum over k of a(row, k) b(column, k)), operands bf16, f16,
 * or f32 rounded to TF32 (T = float), sums f32.
 *
 * A block of four warps computes kTile x kTile results (128 or 64), each warp a quarter, 64 bytes of k at a time. Four
 * stages of shared memory: while one is multiplied, cp.async fills the next three. Operands lie in shared memory as they lie in
 * memory, 16-byte chunks swizzled so that ldmatrix meets no bank twice: along k, a line is 64 bytes and its chunk c is at
 * c ^ (line / 2 % 4); across k, a row of depth d holds one chunk of every few lines, at c ^ (d % 8), and ldmatrix transposes. Of
 * f32 across k the fragments are read number by number (c ^ 2 (d % 4)). Sums are in order of k; pieces of k
 * as in gemm_epilogue.cuh: the same bits on every run of one device.
 *
 * What a(row, k) is belongs to the loader: place(batch, line) is prepared once, find(place, depth, end) gives an address or null for zero. kWhole:
 * every chunk of both operands is 16 aligned bytes of memory or all zeros; otherwise numbers are fetched one by one.
 * Floor: 2 m n k operations at the tensor cores' peak; a tile of 128 reads 2/128 numbers per multiply-add.
 */
#ifndef DIFFIT_CUDA_GEMM_MMA_CUH
#define DIFFIT_CUDA_GEMM_MMA_CUH

#include "gemm_problem.cuh"
#include "gemm_tuning.cuh"

namespace diffit {

constexpr int kMmaThreads = 128, kMmaStages = 4;
/* Bytes of a line per step; numbers per chunk of 16 bytes, per mma and per step. */
constexpr int kLineBytes = 64;
template <class T>
constexpr int kChunk = 16 / (int)sizeof(T);
template <class T>
constexpr int kMmaDepth = 2 * kChunk<T>;
template <class T>
constexpr int kStepDepth = 4 * kChunk<T>;
/* Rows of f32 sums: pairs that a warp writes lie in different banks. */
template <int kTile>
constexpr int kSumPitch = kTile + 8;

template <int kTile>
union MmaShared {
  struct {
    char a[kMmaStages][kTile * kLineBytes], b[kMmaStages][kTile * kLineBytes];
  };
  float sums[kTile * kSumPitch<kTile>];
};

/* One operand's side of a tile: its chunks' way to shared memory, and its fragments from there. */
template <class T, int kTile, bool kWhole, class Loader>
struct MmaOperand {
  static constexpr bool kAlong = Loader::kAlongDepth;
  static constexpr int kLoads = kTile * kLineBytes / 16 / kMmaThreads;
  static constexpr int kRowChunks = kTile / kChunk<T>; /* across k */
  typename Loader::Place places[kAlong ? kLoads : 1];

  /* Line and depth of this thread's chunk number i within the tile. */
  __device__ static int lineOf(int i) {
    const int at = (int)threadIdx.x + i * kMmaThreads;
    return kAlong ? at / 4 : at % kRowChunks * kChunk<T>;
  }
  __device__ static int depthOf(int i) {
    const int at = (int)threadIdx.x + i * kMmaThreads;
    return kAlong ? at % 4 * kChunk<T> : at / kRowChunks;
  }
  /* Byte of the chunk that holds number (line, depth). */
  __device__ static int byteOf(int line, int depth) {
    if constexpr (kAlong) return line * kLineBytes + (((depth / kChunk<T>)^(line >> 1)) & 3) * 16;
    const int mix = sizeof(T) == 2 ? depth & 7 : (depth & 3) << 1;
    return (depth * kRowChunks + ((line / kChunk<T>)^mix)) * 16;
  }

  __device__ void prepare(const Loader &loader, int64_t batch, int firstLine) {
#pragma unroll
    for (int i = 0; i < (kAlong ? kLoads : 1); i++) places[i] = loader.place(batch, firstLine + lineOf(i));
  }
  __device__ void load(const Loader &loader, char *stage, int64_t batch, int firstLine, int firstDepth, int end) const {
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const int line = lineOf(i), depth = depthOf(i);
      char *to = stage + byteOf(line, depth);
      if constexpr (kWhole) {
        const T *from = loader.find(places[kAlong ? i : 0], firstDepth + depth, end);
        copyAsync16(to, from ? from : loader.data, from != nullptr);
      } else {
        struct alignas(16) Chunk {
          T v[kChunk<T>];
        } chunk;
#pragma unroll
        for (int e = 0; e < kChunk<T>; e++) {
          const T *from = kAlong ? loader.find(places[i], firstDepth + depth + e, end)
                                 : loader.find(loader.place(batch, firstLine + line + e), firstDepth + depth, end);
          chunk.v[e] = from ? *from : fromFloat<T>(0);
        }
        *(Chunk *)to = chunk;
      }
    }
  }

  /* Sixteen lines and one mma's depth: A's fragment (kRows), or those of two neighbouring B's, two registers each. */
  template <bool kRows>
  __device__ static void fragment(uint32_t (&r)[4], const char *stage, int firstLine, int slab) {
    if constexpr (kAlong || sizeof(T) == 2) {
      const int matrix = laneIndex() / 8, inside = laneIndex() % 8;
      const int lineHalf = kRows ? matrix % 2 : matrix / 2, depthHalf = kRows ? matrix / 2 : matrix % 2;
      if constexpr (kAlong)
        loadMatrices<4, false>(r,
                               stage + byteOf(firstLine + lineHalf * 8 + inside, (slab * 2 + depthHalf) * kChunk<T>));
      else
        loadMatrices<4, true>(r, stage + byteOf(firstLine + lineHalf * 8, (slab * 2 + depthHalf) * 8 + inside));
    } else {
      const int group = laneIndex() / 4, quad = laneIndex() % 4;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int line = firstLine + (kRows ? i % 2 : i / 2) * 8 + group;
        const int depth = slab * 8 + (kRows ? i / 2 : i % 2) * 4 + quad;
        r[i] = *(const uint32_t *)(stage + byteOf(line, depth) + line % kChunk<T> * sizeof(T));
      }
    }
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float v;
        memcpy(&v, &r[i], 4);
        r[i] = toTf32(v);
      }
    }
  }
};

template <class T>
__device__ __forceinline__ void multiplyAdd(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t b[2] = {b0, b1};
  if constexpr (sizeof(T) == 4)
    mma1688Tf32(d, a, b);
  else
    mma16816<T>(d, a, b);
}

/* Tile number `number` of rowTiles x columnTiles: eight rows of tiles go column by column, so that neighbours share operands in L2. */
__device__ inline void placeOfTile(unsigned number, unsigned rowTiles, unsigned columnTiles, int *row, int *column) {
  constexpr unsigned kBand = 8;
  const unsigned band = number / (kBand * columnTiles), inside = number - band * kBand * columnTiles;
  const unsigned height = rowTiles - band * kBand < kBand ? rowTiles - band * kBand : kBand;
  *row = (int)(band * kBand + inside % height);
  *column = (int)(inside / height);
}

/* blockIdx.x: tiles (placeOfTile); y: pieces of k; z: batch. */
template <class T, int kTile, bool kWhole, class LoadA, class LoadB>
__global__ void __launch_bounds__(kMmaThreads, 2) mmaKernel(LoadA loadA, LoadB loadB, Finish finish, int k, int piece,
                                                            unsigned rowTiles, unsigned columnTiles, int64_t batch) {
  using A = MmaOperand<T, kTile, kWhole, LoadA>;
  using B = MmaOperand<T, kTile, kWhole, LoadB>;
  constexpr int kSixteens = kTile / 32; /* of rows, and of columns, per warp */
  constexpr int kSlabs = kStepDepth<T> / kMmaDepth<T>;
  MmaShared<kTile> &shared = sharedMemory<MmaShared<kTile>>();
  int tileRow, tileColumn;
  placeOfTile(blockIdx.x, rowTiles, columnTiles, &tileRow, &tileColumn);
  const int firstRow = tileRow * kTile, firstColumn = tileColumn * kTile;
  const int begin = (int)blockIdx.y * piece, end = piece < k - begin ? begin + piece : k;
  const int steps = (end - begin + kStepDepth<T> - 1) / kStepDepth<T>;
  const int warp = (int)threadIdx.x / 32, warpRow = warp / 2 * (kTile / 2), warpColumn = warp % 2 * (kTile / 2);
  for (int64_t z = blockIdx.z; z < batch; z += gridDim.z) {
    float sums[kSixteens][2 * kSixteens][4] = {};
    A a;
    B b;
    a.prepare(loadA, z, firstRow);
    b.prepare(loadB, z, firstColumn);
    auto load = [&](int step) {
      const int stage = step % kMmaStages, depth = begin + step * kStepDepth<T>;
      a.load(loadA, shared.a[stage], z, firstRow, depth, end);
      b.load(loadB, shared.b[stage], z, firstColumn, depth, end);
    };
#pragma unroll
    for (int step = 0; step < kMmaStages - 1; step++) {
      if (step < steps) load(step);
      commitCopies();
    }
    for (int step = 0; step < steps; step++) {
      waitCopies<kMmaStages - 2>();
      __syncthreads(); /* everybody's copies are there, and the stage of the step before is free */
      if (step + kMmaStages - 1 < steps) load(step + kMmaStages - 1);
      commitCopies();
      const char *stageA = shared.a[step % kMmaStages], *stageB = shared.b[step % kMmaStages];
#pragma unroll
      for (int slab = 0; slab < kSlabs; slab++) {
        uint32_t left[kSixteens][4], right[kSixteens][4];
#pragma unroll
        for (int i = 0; i < kSixteens; i++) {
          A::template fragment<true>(left[i], stageA, warpRow + 16 * i, slab);
          B::template fragment<false>(right[i], stageB, warpColumn + 16 * i, slab);
        }
#pragma unroll
        for (int i = 0; i < kSixteens; i++)
#pragma unroll
          for (int j = 0; j < kSixteens; j++) {
            multiplyAdd<T>(sums[i][2 * j], left[i], right[j][0], right[j][1]);
            multiplyAdd<T>(sums[i][2 * j + 1], left[i], right[j][2], right[j][3]);
          }
      }
    }
    waitCopies<0>();
    __syncthreads(); /* the sums take the place of the operands */
    const int row = warpRow + laneIndex() / 4, column = warpColumn + laneIndex() % 4 * 2;
#pragma unroll
    for (int i = 0; i < kSixteens; i++)
#pragma unroll
      for (int j = 0; j < 2 * kSixteens; j++) {
        float *to = &shared.sums[(row + 16 * i) * kSumPitch<kTile> + column + 8 * j];
        *(float2 *)to = make_float2(sums[i][j][0], sums[i][j][1]);
        *(float2 *)(to + 8 * kSumPitch<kTile>) = make_float2(sums[i][j][2], sums[i][j][3]);
      }
    __syncthreads();
    finish.rows<kTile, kTile, kSumPitch<kTile>, kMmaThreads>(shared.sums, z, blockIdx.y, firstRow, firstColumn);
    __syncthreads();
  }
}

/* ---- choice of tile and pieces ------------------------------------------------------------------------------- */

constexpr int64_t kMmaSizeLimit = ((int64_t)1 << 31) - 256;

template <class T, int kTile, bool kWhole, class LoadA, class LoadB>
diffit_status launchMma(diffit_context *ctx, const LoadA &a, const LoadB &b, const Epilogue &e, int64_t batch,
                        int64_t m, int64_t n, int64_t k) {
  const int64_t rowTiles = ceilDiv(m, kTile), columnTiles = ceilDiv(n, kTile), tiles = rowTiles * columnTiles;
  REQUIRE(m < kMmaSizeLimit && n < kMmaSizeLimit && k < kMmaSizeLimit && tiles < kMmaSizeLimit);
  const int64_t piece = pieceOf(k, tiles * batch, ctx->about.multiProcessorCount, kStepDepth<T>);
  const dim3 grid((unsigned)tiles, (unsigned)imax(1, ceilDiv(k, piece)), (unsigned)imin(batch, 65535));
  return inPieces(ctx, e, batch, m, n, k, piece, [&](const Finish &finish) {
    return launch(ctx, mmaKernel<T, kTile, kWhole, LoadA, LoadB>, grid, dim3(kMmaThreads), sizeof(MmaShared<kTile>), a,
                  b, finish, (int)k, (int)piece, (unsigned)rowTiles, (unsigned)columnTiles, batch);
  });
}

/* y = epilogue(a b^T) over `batch` products of m x n x k; `whole`: see the header. */
template <class T, class LoadA, class LoadB>
diffit_status multiplyMma(diffit_context *ctx, const LoadA &a, const LoadB &b, bool whole, const Epilogue &e,
                          int64_t batch, int64_t m, int64_t n, int64_t k) {
  if (batch == 0 || m == 0 || n == 0) return DIFFIT_OK;
  if (!whole) return launchMma<T, 64, false>(ctx, a, b, e, batch, m, n, k);
  return takesLargeTile(ctx, batch, m, n) ? launchMma<T, 128, true>(ctx, a, b, e, batch, m, n, k)
                                          : launchMma<T, 64, true>(ctx, a, b, e, batch, m, n, k);
}

/* ---- loaders of matrices ------------------------------------------------------------------------------------- */

/* Stored [lines, k]. */
template <class T>
struct LineChunks {
  static constexpr bool kAlongDepth = true;
  using Place = const T *;
  const T *data;
  int lines, k;
  int64_t step;
  __device__ Place place(int64_t batch, int line) const {
    return line < lines ? data + batch * step + (int64_t)line * k : nullptr;
  }
  __device__ const T *find(Place from, int depth, int end) const {
    return from && depth < end ? from + depth : nullptr;
  }
};

/* Stored [k, lines]. */
template <class T>
struct DepthChunks {
  static constexpr bool kAlongDepth = false;
  using Place = const T *;
  const T *data;
  int lines;
  int64_t step;
  __device__ Place place(int64_t batch, int line) const { return line < lines ? data + batch * step + line : nullptr; }
  __device__ const T *find(Place from, int depth, int end) const {
    return from && depth < end ? from + (int64_t)depth * lines : nullptr;
  }
};

template <class T>
LineChunks<T> lineChunks(const diffit_tensor *t, int64_t lines, int64_t k, int64_t step) {
  return {(const T *)t->data, (int)lines, (int)k, step};
}
template <class T>
DepthChunks<T> depthChunks(const diffit_tensor *t, int64_t lines, int64_t step) {
  return {(const T *)t->data, (int)lines, step};
}
/* Are rows of `inner` numbers of a tensor whole chunks? */
template <class T>
bool hasWholeChunks(const diffit_tensor *t, int64_t inner) {
  return inner % kChunk<T> == 0 && isAligned(t->data, 16);
}

template <class T>
diffit_status mmaGemm(diffit_context *ctx, const GemmProblem &p) {
  const bool whole = hasWholeChunks<T>(p.a, p.transA ? p.m : p.k) && hasWholeChunks<T>(p.b, p.transB ? p.k : p.n);
  auto run = [&](const auto &a, const auto &b) {
    return multiplyMma<T>(ctx, a, b, whole, p.e, p.batch, p.m, p.n, p.k);
  };
  const LineChunks<T> a = lineChunks<T>(p.a, p.m, p.k, p.aStep), b = lineChunks<T>(p.b, p.n, p.k, p.bStep);
  const DepthChunks<T> acrossA = depthChunks<T>(p.a, p.m, p.aStep), acrossB = depthChunks<T>(p.b, p.n, p.bStep);
  if (p.transA && p.transB) return run(acrossA, b);
  if (p.transA) return run(acrossA, acrossB);
  return p.transB ? run(a, b) : run(a, acrossB);
}

}  // namespace diffit

#endif
