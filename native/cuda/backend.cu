/*
 * The CUDA backend: devices, stream-ordered memory, marks, and the table of operations.
 *
 * Memory comes from the driver's stream-ordered pool: a block freed here is used again by what is enqueued later. It is taken and
 * given back on the home stream, from any thread, also while operations are captured on the other one.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <map>
#include <mutex>
#include <new>
#include <utility>

#include "context.cuh"

namespace diffit {

#define IN(name) const diffit_tensor *name
#define OPT(name) const diffit_tensor *name
#define OUT(name) diffit_tensor *name
#define OPT_OUT(name) diffit_tensor *name
#define INOUT(name) diffit_tensor *name
#define LIST(name) const diffit_list *name
#define LIST_INOUT(name) const diffit_list *name
#define INTS(name) const diffit_ints *name
#define I64(name) int64_t name
#define F64(name) double name
#define DIFFIT_OP(name, ...) diffit_status name##_op(diffit_context *, __VA_ARGS__);
#include "../abi/ops.def"
#undef DIFFIT_OP

#if defined(DIFFIT_EMULATED)
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

diffit_status fail(diffit_context *ctx, diffit_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(ctx->error, sizeof ctx->error, format, arguments);
  va_end(arguments);
  return status;
}

/* Errors after which the driver fails every call of the process on this device. */
static bool endsContext(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
      return true;
    case cudaErrorLaunchFailure:
      return !kEmulated; /* where a fault is found by the launch, and has done nothing worse */
    default:
      return false;
  }
}

diffit_status check(diffit_context *ctx, cudaError_t error, const char *what) {
  if (error == cudaSuccess) return DIFFIT_OK;
  cudaGetLastError(); /* a launch that failed must not fail the next one */
  const diffit_status status = error == cudaErrorMemoryAllocation ? DIFFIT_OUT_OF_MEMORY : DIFFIT_DEVICE_FAULT;
  return fail(
      ctx, status, "%s failed: %s.%s", what, cudaGetErrorString(error),
      endsContext(error) ? " The GPU's memory is lost, and this process cannot use it again: start a new one." : "");
}

/* What was given back may be gone from the device only after a wait, so an allocation that fails is tried again behind one. */
static cudaError_t takeMemory(diffit_context *ctx, void **memory, size_t bytes) {
  cudaError_t error = cudaMallocAsync(memory, bytes ? bytes : 1, ctx->home);
  if (error != cudaErrorMemoryAllocation) return error;
  cudaGetLastError();
  error = cudaStreamSynchronize(ctx->home);
  return error == cudaSuccess ? cudaMallocAsync(memory, bytes ? bytes : 1, ctx->home) : error;
}

void *scratch(diffit_context *ctx, int slot, size_t bytes) {
  if (ctx->scratch[slot] && bytes <= ctx->scratchBytes[slot]) return ctx->scratch[slot];
  if (ctx->stream != ctx->home) {
    fail(ctx, DIFFIT_UNSUPPORTED, "Scratch memory cannot grow while operations are captured.");
    return nullptr;
  }
  ctx->scratchMoves++;
  if (ctx->scratch[slot]) cudaFreeAsync(ctx->scratch[slot], ctx->home);
  ctx->scratch[slot] = nullptr;
  ctx->scratchBytes[slot] = 0;
  if (check(ctx, takeMemory(ctx, &ctx->scratch[slot], bytes), "Scratch memory") != DIFFIT_OK)
    return ctx->scratch[slot] = nullptr;
  ctx->scratchBytes[slot] = bytes;
  return ctx->scratch[slot];
}

#if !defined(DIFFIT_EMULATED)
diffit_status allowShared(diffit_context *ctx, const void *kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<const void *, int>, size_t> allowed; /* by kernel and device */
  std::lock_guard<std::mutex> lock(mutex);
  size_t &most = allowed[{kernel, ctx->index}];
  if (bytes <= most) return DIFFIT_OK;
  TRY(check(ctx, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
            "A kernel's shared memory"));
  most = bytes;
  return DIFFIT_OK;
}
#endif

namespace {

constexpr const char *kName = kEmulated ? "cuda-emulated" : "cuda";
/* Oldest architecture the library has code for. */
constexpr int kOldestMajor = 8;

void destroy(diffit_context *ctx) {
  if (!ctx) return;
  cudaSetDevice(ctx->index);
  for (void *memory : ctx->scratch)
    if (memory) cudaFreeAsync(memory, ctx->home);
  if (ctx->home) cudaStreamSynchronize(ctx->home);
  freeStaging(ctx);
  for (cudaEvent_t mark : ctx->marks)
    if (mark) cudaEventDestroy(mark);
  if (ctx->home) cudaStreamDestroy(ctx->home);
  if (ctx->recorder) cudaStreamDestroy(ctx->recorder);
  if (ctx->badIndex) cudaFreeHost(ctx->badIndex);
  delete ctx;
}

/* One sentence for what keeps the device from being used. */
diffit_status explain(cudaError_t error, int index, int count, char *why, size_t whySize) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver); /* the newest CUDA the driver knows; 0 without one */
  cudaRuntimeGetVersion(&runtime);
  if (driver == 0)
    snprintf(why, whySize, "There is no NVIDIA driver on this machine.");
  else if (driver / 1000 < runtime / 1000)
    snprintf(why, whySize, "The NVIDIA driver is too old: it is made for CUDA %d.%d, and %d.0 is needed.",
             driver / 1000, driver % 1000 / 10, runtime / 1000);
  else if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    snprintf(why, whySize, "There is an NVIDIA driver, but it shows no GPU (CUDA_VISIBLE_DEVICES counts).");
  else if (error == cudaSuccess && index >= count)
    snprintf(why, whySize, "There is no device %s:%d; this machine has %d.", kName, index, count);
  else
    snprintf(why, whySize, "The device %s:%d could not be opened: %s.", kName, index, cudaGetErrorString(error));
  return DIFFIT_DEVICE_FAULT;
}

diffit_status create(int32_t index, const char *, int32_t, diffit_context **context, char *why, size_t whySize) {
  *context = nullptr;
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || index >= count) return explain(error, index, count, why, whySize);
  diffit_context *ctx = new (std::nothrow) diffit_context;
  if (!ctx) {
    snprintf(why, whySize, "There is no memory for the state of a device.");
    return DIFFIT_OUT_OF_MEMORY;
  }
  ctx->index = index;
  error = cudaSetDevice(index);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&ctx->about, index);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&ctx->home, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&ctx->recorder, cudaStreamNonBlocking);
  ctx->stream = ctx->home;
  if (error == cudaSuccess) error = cudaMallocHost((void **)&ctx->badIndex, sizeof *ctx->badIndex);
  if (error == cudaSuccess) memset(ctx->badIndex, 0, sizeof *ctx->badIndex);
  if (error != cudaSuccess) {
    destroy(ctx);
    return explain(error, index, count, why, whySize);
  }
  if (ctx->about.major < kOldestMajor) {
    snprintf(why, whySize, "%s is of compute capability %d.%d; %d.0 or newer is needed.", ctx->about.name,
             ctx->about.major, ctx->about.minor, kOldestMajor);
    destroy(ctx);
    return DIFFIT_UNSUPPORTED;
  }
  if (!ctx->about.memoryPoolsSupported) {
    snprintf(why, whySize, "The driver of %s has no stream-ordered memory, which diffit needs.", ctx->about.name);
    destroy(ctx);
    return DIFFIT_UNSUPPORTED;
  }
  *context = ctx;
  return DIFFIT_OK;
}

void info(diffit_context *ctx, diffit_device_info *out) {
  snprintf(out->name, sizeof out->name, "%.127s", ctx->about.name);
  snprintf(out->variant, sizeof out->variant, "sm_%d%d", ctx->about.major, ctx->about.minor);
  out->threads = ctx->about.multiProcessorCount;
  out->memory = (int64_t)ctx->about.totalGlobalMem;
}

/* Called from any thread, where another device may be the current one. */
void *allocate(diffit_context *ctx, size_t bytes) {
  void *memory = nullptr;
  if (cudaSetDevice(ctx->index) == cudaSuccess && takeMemory(ctx, &memory, bytes) == cudaSuccess) return memory;
  cudaGetLastError();
  return nullptr;
}

void release(diffit_context *ctx, void *memory) {
  cudaSetDevice(ctx->index);
  cudaFreeAsync(memory, ctx->home);
}

/* Called from any thread; leaves the sentence of a failure to the queue's. */
diffit_status memory(diffit_context *ctx, int64_t *freeBytes, int64_t *totalBytes) {
  size_t free = 0, total = 0;
  if (cudaSetDevice(ctx->index) != cudaSuccess || cudaMemGetInfo(&free, &total) != cudaSuccess) {
    cudaGetLastError();
    return DIFFIT_DEVICE_FAULT;
  }
  *freeBytes = (int64_t)free;
  *totalBytes = (int64_t)total;
  return DIFFIT_OK;
}

int32_t count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

diffit_status mark(diffit_context *ctx, int32_t slot) {
  REQUIRE(slot >= 0 && slot < DIFFIT_MARKS);
  TRY(check(ctx, cudaSetDevice(ctx->index), "The device"));
  if (!ctx->marks[slot]) TRY(check(ctx, cudaEventCreateWithFlags(&ctx->marks[slot], cudaEventDefault), "A mark"));
  return check(ctx, cudaEventRecord(ctx->marks[slot], ctx->home), "A mark");
}

diffit_status elapsed(diffit_context *ctx, int32_t from, int32_t to, double *milliseconds) {
  REQUIRE(from >= 0 && from < DIFFIT_MARKS && ctx->marks[from]);
  REQUIRE(to >= 0 && to < DIFFIT_MARKS && ctx->marks[to]);
  float time = 0;
  TRY(check(ctx, cudaSetDevice(ctx->index), "The device"));
  TRY(check(ctx, cudaEventSynchronize(ctx->marks[from]), "A kernel or a copy"));
  TRY(check(ctx, cudaEventSynchronize(ctx->marks[to]), "A kernel or a copy"));
  TRY(check(ctx, cudaEventElapsedTime(&time, ctx->marks[from], ctx->marks[to]), "The time between two marks"));
  *milliseconds = time;
  return reportBadIndex(ctx);
}

const char *error(diffit_context *ctx) { return ctx->error; }

/* Calls an operation with its device current: the queue's thread may serve several. */
template <class Op, Op op>
struct OnDevice;
template <class... Arguments, diffit_status (*op)(diffit_context *, Arguments...)>
struct OnDevice<diffit_status (*)(diffit_context *, Arguments...), op> {
  static diffit_status call(diffit_context *ctx, Arguments... arguments) {
    TRY(check(ctx, cudaSetDevice(ctx->index), "The device"));
    return op(ctx, arguments...);
  }
};

const diffit_backend kBackend = {DIFFIT_ABI_VERSION,
                                 kName,
                                 create,
                                 destroy,
                                 info,
                                 allocate,
                                 release,
                                 upload,
                                 download,
                                 error,
                                 count,
                                 memory,
                                 mark,
                                 elapsed,
                                 captureBegin,
                                 captureEnd,
                                 replay,
                                 freeGraph,
                                 {
#define DIFFIT_OP(name, ...) OnDevice<decltype(&name##_op), &name##_op>::call,
#include "../abi/ops.def"
#undef DIFFIT_OP
                                 }};

}  // namespace
}  // namespace diffit

extern "C" __attribute__((visibility("default"))) const diffit_backend *diffit_backend_table(void) {
  return &diffit::kBackend;
}
