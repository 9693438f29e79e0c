/*
 * The emulator's CUDA runtime: devices, streams, events, memory, graphs.
 *
 * A kernel runs when it is launched. A copy from or to pinned memory happens as late as a GPU may do it: before the next
 * other work of its stream, or when its stream or an event behind it is waited for; so pinned memory that is used again
 * without a wait gives wrong results. Whoever uses a stream of a device that is not the current one gets an error, also where a GPU is
 * lenient. Memory given back is the device's again when something was waited for; until then a block of it serves one request, of its size or
 * less. A captured stream remembers kernels and memsets; what would have to wait or allocate fails.
 *
 * Environment: DIFFIT_EMULATOR_DEVICES, how many there are (1); DIFFIT_EMULATOR_MEMORY, bytes of each (16 GiB);
 * DIFFIT_EMULATOR_SHARED, bytes of shared memory that a block may have (227 KiB, those of sm_90; sm_80 has 163, sm_86 and sm_89 99);
 * DIFFIT_EMULATOR_FAULT=n, the n-th kernel of the process accesses an illegal address, which as on a GPU shows in whatever is
 * asked next, and in everything after.
 */
#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "cuda_runtime.h"

using diffit::emulator::Index3;

namespace {

struct Copy {
  void *to;
  const void *from;
  size_t bytes;
};

/* A kernel, or a memset where there is none. */
struct Work {
  Index3 grid, block;
  size_t sharedBytes = 0;
  std::function<void()> kernel;
  void *memory = nullptr;
  int value = 0;
  size_t bytes = 0;
};

struct Block {
  size_t bytes;
  int device;
};

constexpr int kMostDevices = 16;

std::mutex mutex; /* of the tables below; streams, events and graphs belong to whoever uses them */
std::map<void *, Block> deviceBlocks;
std::map<const char *, size_t> pinnedBlocks;
size_t used[kMostDevices];
std::vector<size_t> unreleased[kMostDevices]; /* sizes of blocks that were given back and still count as used */
std::atomic<bool> lost{false}; /* an illegal address was accessed */
std::atomic<long> launches{0};

thread_local int current = 0;
thread_local std::string sentence; /* of the thread's last fault */

/* A whole number from the environment, perhaps with K, M or G behind it. */
size_t setting(const char *name, size_t otherwise) {
  const char *text = getenv(name);
  if (!text || !*text) return otherwise;
  char *end;
  const size_t number = strtoull(text, &end, 10);
  return number << (*end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0);
}

int deviceCount() { return (int)setting("DIFFIT_EMULATOR_DEVICES", 1); }
size_t deviceMemory() { return setting("DIFFIT_EMULATOR_MEMORY", (size_t)16 << 30); }
size_t sharedMemory() { return setting("DIFFIT_EMULATOR_SHARED", diffit::emulator::kMaxSharedBytes); }

/* Whether the current device has that much, perhaps as a block that was given back. */
bool findMemory(size_t bytes) {
  if (bytes <= deviceMemory() - used[current]) return true;
  auto &blocks = unreleased[current];
  const auto fits = std::find_if(blocks.begin(), blocks.end(), [=](size_t block) { return block >= bytes; });
  if (fits == blocks.end()) return false;
  used[current] -= *fits;
  blocks.erase(fits);
  return true;
}
void releaseMemory() {
  std::lock_guard<std::mutex> lock(mutex);
  for (size_t bytes : unreleased[current]) used[current] -= bytes;
  unreleased[current].clear();
}

bool isPinned(const void *memory) {
  std::lock_guard<std::mutex> lock(mutex);
  auto after = pinnedBlocks.upper_bound((const char *)memory);
  if (after == pinnedBlocks.begin()) return false;
  --after;
  return (const char *)memory < after->first + after->second;
}

double milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

struct CUgraph_st {
  std::vector<Work> nodes;
};
struct CUgraphExec_st {
  std::vector<Work> nodes;
  int device;
};
struct CUstream_st {
  int device;
  CUgraph_st *capture = nullptr;
  std::mutex copies; /* another thread may wait for the stream */
  std::deque<Copy> late; /* copies not yet made */
  uint64_t enqueued = 0, made = 0; /* copies */

  explicit CUstream_st(int onDevice) : device(onDevice) {}
  /* Makes late copies until `target` have been made in all. */
  void catchUp(uint64_t target) {
    std::lock_guard<std::mutex> lock(copies);
    for (; made < target && !late.empty(); made++, late.pop_front())
      memcpy(late.front().to, late.front().from, late.front().bytes);
  }
  void catchUp() { catchUp(UINT64_MAX); }
};
struct CUevent_st {
  int device;
  CUstream_st *stream = nullptr;
  uint64_t after = 0; /* copies of the stream */
  double time = 0;

  explicit CUevent_st(int onDevice) : device(onDevice) {}
};

namespace {

/* Whether the stream may be used now: the device works and is the thread's current one. */
cudaError_t usable(const CUstream_st *stream) {
  if (lost) return cudaErrorIllegalAddress;
  if (!stream) return cudaErrorInvalidResourceHandle; /* native/cuda never means the default stream */
  return stream->device == current ? cudaSuccess : cudaErrorInvalidResourceHandle;
}

cudaError_t run(const Work &work) {
  if (!work.kernel) {
    memset(work.memory, work.value, work.bytes);
    return cudaSuccess;
  }
  static const long faulty = (long)setting("DIFFIT_EMULATOR_FAULT", 0);
  if (++launches == faulty) {
    lost = true;
    return cudaSuccess;
  }
  return diffit::emulator::runGrid(work.grid, work.block, work.sharedBytes, work.kernel, &sentence)
             ? cudaSuccess
             : cudaErrorLaunchFailure;
}

cudaError_t enqueue(CUstream_st *stream, Work work) {
  if (const cudaError_t error = usable(stream)) return error;
  if (work.sharedBytes > sharedMemory()) return cudaErrorInvalidValue;
  if (stream->capture) {
    stream->capture->nodes.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->catchUp();
  return run(work);
}

}  // namespace

namespace diffit {
namespace emulator {

cudaError_t launch(cudaStream_t stream, Index3 grid, Index3 block, size_t sharedBytes, std::function<void()> kernel) {
  Work work;
  work.grid = grid;
  work.block = block;
  work.sharedBytes = sharedBytes;
  work.kernel = std::move(kernel);
  return enqueue(stream, std::move(work));
}

}  // namespace emulator
}  // namespace diffit

/* ---- devices ------------------------------------------------------------------------------------------------- */

const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "a stream or an event of a device that is not the current one";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return sentence.c_str();
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    default:
      return "no error";
  }
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDeviceCount(int *count) {
  *count = deviceCount();
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int index) {
  if (index < 0 || index >= deviceCount() || index >= kMostDevices) return cudaErrorInvalidDevice;
  current = index;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *about, int) {
  *about = {"CUDA emulator", deviceMemory(), 8, 0, 4, sharedMemory(), 1};
  return cudaSuccess;
}

/* ---- memory -------------------------------------------------------------------------------------------------- */

cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
  if (lost) return cudaErrorIllegalAddress;
  std::lock_guard<std::mutex> lock(mutex);
  *total = deviceMemory();
  *free = *total - used[current];
  return cudaSuccess;
}

/* Memory starts as NaN, so that what is read before it is written shows. */
cudaError_t cudaMallocAsync(void **memory, size_t bytes, cudaStream_t stream) {
  if (const cudaError_t error = usable(stream)) return error;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  std::lock_guard<std::mutex> lock(mutex);
  if (!findMemory(bytes) || posix_memalign(memory, 256, bytes ? bytes : 1) != 0) return cudaErrorMemoryAllocation;
  memset(*memory, 0xff, bytes);
  used[current] += bytes;
  deviceBlocks[*memory] = {bytes, current};
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void *memory, cudaStream_t stream) {
  if (stream && stream->device == current) stream->catchUp();
  std::lock_guard<std::mutex> lock(mutex);
  const auto found = deviceBlocks.find(memory);
  if (found == deviceBlocks.end()) return cudaErrorInvalidValue;
  unreleased[found->second.device].push_back(found->second.bytes);
  deviceBlocks.erase(found);
  free(memory);
  return lost ? cudaErrorIllegalAddress : cudaSuccess;
}
cudaError_t cudaMallocHost(void **memory, size_t bytes) {
  if (lost) return cudaErrorIllegalAddress;
  if (!(*memory = malloc(bytes))) return cudaErrorMemoryAllocation;
  std::lock_guard<std::mutex> lock(mutex);
  pinnedBlocks[(const char *)*memory] = bytes;
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void *memory) {
  std::lock_guard<std::mutex> lock(mutex);
  pinnedBlocks.erase((const char *)memory);
  free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (const cudaError_t error = usable(stream)) return error;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  {
    std::lock_guard<std::mutex> lock(stream->copies);
    stream->late.push_back({to, from, bytes});
    stream->enqueued++;
  }
  if (!isPinned(to) && !isPinned(from)) stream->catchUp();
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream) {
  Work work;
  work.memory = memory;
  work.value = value;
  work.bytes = bytes;
  return enqueue(stream, std::move(work));
}

/* ---- streams and events -------------------------------------------------------------------------------------- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
  if (lost) return cudaErrorIllegalAddress;
  *stream = new CUstream_st(current);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  if (const cudaError_t error = usable(stream)) return error;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  stream->catchUp();
  releaseMemory();
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
  if (lost) return cudaErrorIllegalAddress;
  *event = new CUevent_st(current);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (const cudaError_t error = usable(stream)) return error;
  if (event->device != stream->device) return cudaErrorInvalidResourceHandle;
  event->stream = stream;
  event->after = stream->enqueued;
  event->time = milliseconds();
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (lost) return cudaErrorIllegalAddress;
  if (event->stream) event->stream->catchUp(event->after);
  releaseMemory();
  return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  if (lost) return cudaErrorIllegalAddress;
  if (!from->stream || !to->stream) return cudaErrorInvalidResourceHandle;
  *milliseconds = (float)(to->time - from->time);
  return cudaSuccess;
}

/* ---- graphs -------------------------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (const cudaError_t error = usable(stream)) return error;
  if (stream->capture) return cudaErrorStreamCaptureUnsupported;
  stream->capture = new CUgraph_st;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
  *graph = stream->capture;
  stream->capture = nullptr;
  return *graph ? usable(stream) : cudaErrorInvalidValue;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{graph->nodes, current};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  if (const cudaError_t error = usable(stream)) return error;
  if (executable->device != stream->device) return cudaErrorInvalidResourceHandle;
  for (const Work &work : executable->nodes)
    if (const cudaError_t error = enqueue(stream, work)) return error;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
