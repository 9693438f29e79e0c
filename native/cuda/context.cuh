/*
 * What every kernel file uses: the device's state, sizes and checks of tensors, the launch, and loops over elements.
 *
 * Everything is ordered by the one stream of the context. An operation returns when its kernels are enqueued; what
 * goes wrong in them is found by the next copy to the host.
 */
#ifndef DIFFIT_CUDA_CONTEXT_CUH
#define DIFFIT_CUDA_CONTEXT_CUH

#include "../abi/diffit.h"
#include "arch.cuh"

constexpr int kScratchSlots = 4;

/* The first bad index that a kernel met, in host memory that kernels reach. Reported by the next wait for the device, behind which
   kernels may be running: it is read when it is `complete`. */
struct diffit_bad_index {
  int taken, complete;
  const char *op; /* a literal of the host's; the device only carries it */
  int64_t value, position, limit;
};

struct diffit_staging; /* copies.cu */

struct diffit_context {
  int index = 0;
  cudaStream_t home = nullptr; /* where everything runs, in order */
  cudaStream_t recorder = nullptr; /* which runs nothing: operations are captured there, graph.cu */
  cudaStream_t stream = nullptr; /* where operations go: one of the two */
  cudaDeviceProp about = {};
  void *scratch[kScratchSlots] = {};
  size_t scratchBytes[kScratchSlots] = {};
  uint64_t scratchMoves = 0; /* how often a slot got other memory */
  diffit_bad_index *badIndex = nullptr;
  diffit_staging *staging = nullptr;
  cudaEvent_t marks[DIFFIT_MARKS] = {};
  char error[512] = "";
};

namespace diffit {

/* Stores a printf-style sentence for diffit_backend.error and returns `status`. */
diffit_status fail(diffit_context *ctx, diffit_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* DIFFIT_OK, or the status and sentence of a failed call of the runtime. For the queue's thread. */
diffit_status check(diffit_context *ctx, cudaError_t error, const char *what);
/* Device memory that is the operation's own until the next operation asks for the same slot; nullptr when there is none (fail is
   already called). While operations are captured it cannot grow: it fails, and the operations have to run once before. */
void *scratch(diffit_context *ctx, int slot, size_t bytes);
/* Blocks of a kernel may have `bytes` of dynamic shared memory from now on. That setting is one of the whole process, for other threads
   and for captured graphs too, so it is never lowered. */
diffit_status allowShared(diffit_context *ctx, const void *kernel, size_t bytes);

/* ---- the rest of the backend's table: copies.cu, graph.cu ----------------------------------------------------- */

diffit_status upload(diffit_context *ctx, void *device, const void *host, size_t bytes);
diffit_status download(diffit_context *ctx, void *host, const void *device, size_t bytes);
void freeStaging(diffit_context *ctx);
/* The first bad index that a kernel met, as the failure of whoever has waited for the device. */
diffit_status reportBadIndex(diffit_context *ctx);
diffit_status captureBegin(diffit_context *ctx);
diffit_status captureEnd(diffit_context *ctx, void **graph);
diffit_status replay(diffit_context *ctx, void *graph);
void freeGraph(diffit_context *ctx, void *graph);

/* ---- checks and sizes ----------------------------------------------------------------------------------------- */

/* Leaves the operation with DIFFIT_INVALID and a sentence that names the condition. `ctx` must be in scope. */
#define REQUIRE(condition)                                                                                 \
  do {                                                                                                     \
    if (!(condition)) return ::diffit::fail(ctx, DIFFIT_INVALID, "%s: expected %s", __func__, #condition); \
  } while (0)
#define REQUIRE_F32(t) REQUIRE((t)->dtype == DIFFIT_F32)
/* Leaves the operation when a step of it failed. */
#define TRY(call)                         \
  do {                                    \
    const diffit_status tried = (call);   \
    if (tried != DIFFIT_OK) return tried; \
  } while (0)

inline int64_t numel(const diffit_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}
inline int64_t lastDim(const diffit_tensor *t) { return t->ndim > 0 ? t->shape[t->ndim - 1] : 1; }
/* Number of rows: all dimensions but the last. */
inline int64_t leadingRows(const diffit_tensor *t) {
  int64_t rows = 1;
  for (int d = 0; d < t->ndim - 1; d++) rows *= t->shape[d];
  return rows;
}
inline bool isVector(const diffit_tensor *t, int64_t n) { return t->dtype == DIFFIT_F32 && numel(t) == n; }
inline float *f32(const diffit_tensor *t) { return t ? (float *)t->data : nullptr; }
__host__ __device__ inline int64_t imin(int64_t a, int64_t b) { return a < b ? a : b; }
__host__ __device__ inline int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }
__host__ __device__ inline int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Enqueues kernel(arguments...) on `grid` blocks of `block` threads with `sharedBytes` of dynamic shared memory. */
template <class... Parameters, class... Arguments>
diffit_status launch(diffit_context *ctx, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t sharedBytes,
                     Arguments... arguments) {
  const size_t most = ctx->about.sharedMemPerBlockOptin;
  if (sharedBytes > most)
    return fail(ctx, DIFFIT_UNSUPPORTED, "A kernel needs %zu bytes of shared memory; this device has %zu for a block.",
                sharedBytes, most);
#if defined(DIFFIT_EMULATED)
  return check(ctx,
               emulator::launch(ctx->stream, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, sharedBytes,
                                [=] { kernel(arguments...); }),
               "A kernel");
#else
  if (sharedBytes > 48 << 10) TRY(allowShared(ctx, (const void *)kernel, sharedBytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = sharedBytes;
  config.stream = ctx->stream;
  return check(ctx, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "A kernel launch");
#endif
}

/* Where the kernels of an operation report a bad index. Made on the host alone: a literal in a kernel lies in the device's memory,
   and the host, which prints the name, cannot read it there. */
struct IndexReport {
  diffit_bad_index *first;
  const char *op;

  IndexReport(const diffit_context *ctx, const char *name) : first(ctx->badIndex), op(name) {}
};

/* Is ids[position] in [0, limit)? If not, it is remembered for the next copy to the host. */
__device__ inline bool isIndex(const IndexReport &report, const int64_t *ids, int64_t position, int64_t limit) {
  const int64_t value = ids[position];
  if (value >= 0 && value < limit) return true;
  if (atomicCAS(&report.first->taken, 0, 1) == 0) {
    report.first->op = report.op;
    report.first->value = value;
    report.first->position = position;
    report.first->limit = limit;
    __threadfence_system();
    *(volatile int *)&report.first->complete = 1;
  }
  return false;
}

/* ---- loops over elements ------------------------------------------------------------------------------------- */

constexpr int kThreads = 256;

template <class Body>
__global__ void __launch_bounds__(kThreads) forEachKernel(int64_t n, Body body) {
  const int64_t stride = (int64_t)gridDim.x * kThreads;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < n; i += stride) body(i);
}

/* body(i) for i in [0, n), neighbours in neighbouring threads; body is a `[=] __device__` lambda. */
template <class Body>
diffit_status forEach(diffit_context *ctx, int64_t n, Body body) {
  if (n <= 0) return DIFFIT_OK;
  const int64_t blocks = imin(ceilDiv(n, kThreads), (int64_t)ctx->about.multiProcessorCount * 16);
  return launch(ctx, forEachKernel<Body>, dim3((unsigned)blocks), dim3(kThreads), 0, n, body);
}

/* ---- loops over rows ----------------------------------------------------------------------------------------- */

constexpr int kWarpsPerBlock = kThreads / 32;

template <class Body>
__global__ void __launch_bounds__(kThreads) eachRowKernel(int64_t rows, Body body) {
  const int64_t stride = (int64_t)gridDim.x * kWarpsPerBlock;
  for (int64_t r = (int64_t)blockIdx.x * kWarpsPerBlock + threadIdx.x / 32; r < rows; r += stride) body(r, laneIndex());
}

/* body(row, lane) with a whole warp per row. */
template <class Body>
diffit_status eachRow(diffit_context *ctx, int64_t rows, Body body) {
  if (rows <= 0) return DIFFIT_OK;
  const int64_t blocks = imin(ceilDiv(rows, kWarpsPerBlock), (int64_t)ctx->about.multiProcessorCount * 32);
  return launch(ctx, eachRowKernel<Body>, dim3((unsigned)blocks), dim3(kThreads), 0, rows, body);
}

/* ---- sums over warps and blocks, in a fixed order ------------------------------------------------------------- */

template <class T>
__device__ T warpSum(T value) {
  for (int mask = 16; mask > 0; mask /= 2) value += shuffleXor(value, mask);
  return value;
}
template <class T>
__device__ T warpMax(T value) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const T other = shuffleXor(value, mask);
    value = other > value || other != other ? other : value; /* NaN stays */
  }
  return value;
}
/* The sum over a block of kBlock threads, in every thread; `shared` has kBlock / 32 elements and is free afterwards. */
template <int kBlock, class T>
__device__ T blockSum(T value, T *shared) {
  value = warpSum(value);
  if (laneIndex() == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (int i = 0; i < kBlock / 32; i++) sum += shared[i];
  __syncthreads();
  return sum;
}

}  // namespace diffit

#endif
