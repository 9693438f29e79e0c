/*
 * The tile of every matrix product in f32 (gemm.cu, conv.cu): y[row, column] = epilogue(sum over k of a(row, k) b(column, k)).
 *
 * A block of 256 threads computes kTile x kTile results (128: 8 x 8 per thread; 64: 4 x 4), 8 or 16 numbers of k at a
 * time through two buffers in shared memory: the next ones are loaded from global memory while the current ones are multiplied. Sums are f32
 * FMAs in order of k. Where there are too few tiles for the device, k is cut into pieces whose sums are added in order
 * by a second kernel: the same bits on every run of one device.
 *
 * What a(row, k) means is the loader's: it returns four neighbours, along k (kAlongDepth) or along the rows, zeros outside.
 * Floor: 2 m n k operations at the f32 peak; a tile of 128 reads (1/128 + 1/128) floats per multiply-add.
 */
#ifndef DIFFIT_CUDA_GEMM_TILE_CUH
#define DIFFIT_CUDA_GEMM_TILE_CUH

#include "gemm_epilogue.cuh"

namespace diffit {

constexpr int kPad = 4;
/* Numbers of k per step: the larger tile has fewer registers left to hold the next ones. */
template <int kTile>
constexpr int kDepth = kTile == 128 ? 8 : 16;

/* Sums of 64 rows go to shared memory at a time, over the operands. */
template <int kTile>
union GemmShared {
  struct {
    float a[2][kDepth<kTile>][kTile + kPad], b[2][kDepth<kTile>][kTile + kPad];
  };
  float sums[64][kTile + kPad];
};

/* Four numbers per thread and step of one operand's kTile x kDepth<kTile>, from the loader to shared memory. */
template <int kTile, class Loader>
struct Stage {
  static constexpr int kLoads = kTile * kDepth<kTile> / 4 / kThreads;
  float4 held[kLoads];

  /* Place of this thread's load number i in the tile. */
  __device__ static void place(int i, int *line, int *depth) {
    const int at = (int)threadIdx.x + i * kThreads;
    if constexpr (Loader::kAlongDepth) {
      *line = at / (kDepth<kTile> / 4);
      *depth = at % (kDepth<kTile> / 4) * 4;
    } else {
      *line = at % (kTile / 4) * 4;
      *depth = at / (kTile / 4);
    }
  }
  __device__ void load(const Loader &loader, int64_t batch, int firstLine, int firstDepth, int endDepth) {
    for (int i = 0; i < kLoads; i++) {
      int line, depth;
      place(i, &line, &depth);
      held[i] = loader.load(batch, firstLine + line, firstDepth + depth, endDepth);
    }
  }
  __device__ void store(float (&to)[kDepth<kTile>][kTile + kPad]) const {
    for (int i = 0; i < kLoads; i++) {
      int line, depth;
      place(i, &line, &depth);
      if constexpr (Loader::kAlongDepth) {
        to[depth][line] = held[i].x;
        to[depth + 1][line] = held[i].y;
        to[depth + 2][line] = held[i].z;
        to[depth + 3][line] = held[i].w;
      } else {
        *(float4 *)&to[depth][line] = held[i];
      }
    }
  }
};

/* blockIdx.x: tiles of columns, then of rows; y: pieces of k; z: batch. */
template <int kTile, class LoadA, class LoadB>
__global__ void __launch_bounds__(kThreads, 2)
    gemmKernel(LoadA loadA, LoadB loadB, Finish finish, int k, int piece, unsigned columnTiles, int64_t batch) {
  constexpr int kQuads = kTile / 64; /* groups of four rows, and of four columns, per thread */
  GemmShared<kTile> &shared = sharedMemory<GemmShared<kTile>>();
  const int firstRow = (int)(blockIdx.x / columnTiles) * kTile;
  const int firstColumn = (int)(blockIdx.x % columnTiles) * kTile;
  const int begin = (int)blockIdx.y * piece, end = piece < k - begin ? begin + piece : k;
  const int row = (int)threadIdx.x / 16 * 4, column = (int)threadIdx.x % 16 * 4;
  for (int64_t z = blockIdx.z; z < batch; z += gridDim.z) {
    float sums[4 * kQuads][4 * kQuads] = {};
    Stage<kTile, LoadA> a;
    Stage<kTile, LoadB> b;
    if (begin < end) {
      a.load(loadA, z, firstRow, begin, end);
      b.load(loadB, z, firstColumn, begin, end);
      a.store(shared.a[0]);
      b.store(shared.b[0]);
    }
    __syncthreads();
    int buffer = 0;
    for (int at = begin; at < end; at += kDepth<kTile>, buffer ^= 1) {
      const bool more = at + kDepth<kTile> < end;
      if (more) {
        a.load(loadA, z, firstRow, at + kDepth<kTile>, end);
        b.load(loadB, z, firstColumn, at + kDepth<kTile>, end);
      }
#pragma unroll
      for (int d = 0; d < kDepth<kTile>; d++) {
        float4 left[kQuads], right[kQuads];
        for (int q = 0; q < kQuads; q++) {
          left[q] = *(const float4 *)&shared.a[buffer][d][q * 64 + row];
          right[q] = *(const float4 *)&shared.b[buffer][d][q * 64 + column];
        }
        for (int i = 0; i < 4 * kQuads; i++)
          for (int j = 0; j < 4 * kQuads; j++)
            sums[i][j] = fmaf((&left[i / 4].x)[i % 4], (&right[j / 4].x)[j % 4], sums[i][j]);
      }
      if (more) {
        a.store(shared.a[buffer ^ 1]);
        b.store(shared.b[buffer ^ 1]);
      }
      __syncthreads();
    }
#pragma unroll
    for (int half = 0; half < kQuads; half++) {
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int q = 0; q < kQuads; q++) {
          const float *v = &sums[4 * half + i][4 * q];
          *(float4 *)&shared.sums[row + i][q * 64 + column] = make_float4(v[0], v[1], v[2], v[3]);
        }
      __syncthreads();
      finish.rows<64, kTile, kTile + kPad, kThreads>(&shared.sums[0][0], z, blockIdx.y, firstRow + half * 64,
                                                     firstColumn);
      __syncthreads();
    }
  }
}

/* ---- choice of tile and pieces ------------------------------------------------------------------------------- */

/* Rows, columns and k are counted in 32 bits (with a tile to spare). */
constexpr int64_t kSizeLimit = ((int64_t)1 << 31) - 256;

template <int kTile, class LoadA, class LoadB>
diffit_status launchGemm(diffit_context *ctx, const LoadA &a, const LoadB &b, const Epilogue &e, int64_t batch,
                         int64_t m, int64_t n, int64_t k) {
  const int64_t columnTiles = ceilDiv(n, kTile), tiles = ceilDiv(m, kTile) * columnTiles;
  REQUIRE(m < kSizeLimit && n < kSizeLimit && k < kSizeLimit && tiles < kSizeLimit);
  const int64_t piece = pieceOf(k, tiles * batch, ctx->about.multiProcessorCount, 16);
  const dim3 grid((unsigned)tiles, (unsigned)imax(1, ceilDiv(k, piece)), (unsigned)imin(batch, 65535));
  return inPieces(ctx, e, batch, m, n, k, piece, [&](const Finish &finish) {
    return launch(ctx, gemmKernel<kTile, LoadA, LoadB>, grid, dim3(kThreads), sizeof(GemmShared<kTile>), a, b, finish,
                  (int)k, (int)piece, (unsigned)columnTiles, batch);
  });
}

/* y = epilogue(a b^T) over `batch` products of m x n x k. */
template <class LoadA, class LoadB>
diffit_status multiply(diffit_context *ctx, const LoadA &a, const LoadB &b, const Epilogue &e, int64_t batch, int64_t m,
                       int64_t n, int64_t k) {
  if (batch == 0 || m == 0 || n == 0) return DIFFIT_OK;
  const bool large = ceilDiv(m, 128) * ceilDiv(n, 128) * batch >= ctx->about.multiProcessorCount && m > 64 && n > 64;
  return large ? launchGemm<128>(ctx, a, b, e, batch, m, n, k) : launchGemm<64>(ctx, a, b, e, batch, m, n, k);
}

}  // namespace diffit

#endif
