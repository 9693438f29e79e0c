/*
 * The CPU backend's context: which kernels it runs, its worker threads, its scratch memory, its last error.
 * Private to context.cc (threads, scratch, error) and backend.cc (choice of kernels, device memory).
 */
#ifndef DIFFIT_CPU_STATE_H
#define DIFFIT_CPU_STATE_H

#include <pthread.h>
#include <atomic>

#include "context.h"

namespace diffit {

constexpr int kMaxThreads = 1024;
constexpr int kScratchSlots = 5; /* 4 are the kernels' */
constexpr int kWidenSlot = 4; /* of the shared ones: widen.h */

struct Scratch {
  void *data[kScratchSlots] = {};
  size_t size[kScratchSlots] = {};
};

struct Worker {
  pthread_t handle;
  diffit_context *context;
  int thread; /* 1 .. threads - 1; the caller of diffit_cpu_run is thread 0 */
};

}  // namespace diffit

struct diffit_context {
  const diffit_ops *ops = nullptr;
  const char *variant = nullptr;
  int threads = 1;
  bool dots = false; /* products of bf16 by the dot product of pairs */

  /* The job at hand, and how many of its tasks nobody has taken yet and how many are not done. */
  alignas(64) std::atomic<int64_t> unclaimed{0};
  alignas(64) std::atomic<int64_t> unfinished{0};
  alignas(64) int64_t tasks = 0;
  void (*task)(void *argument, int64_t index, int thread) = nullptr;
  void *argument = nullptr;

  /* Sleep: workers wait for a job, the caller for the last task. */
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<bool> callerSleeps{false}, stop{false};
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t jobReady = PTHREAD_COND_INITIALIZER, jobDone = PTHREAD_COND_INITIALIZER;

  diffit::Worker *workers = nullptr; /* [threads - 1] */
  diffit::Scratch *scratch = nullptr; /* [threads + 1]: one per thread, the last one shared */
  double marks[DIFFIT_MARKS] = {}; /* milliseconds of a clock; 0: not set */
  char error[512] = "";
};

namespace diffit {

/* Starts threads - 1 workers; false when memory is out. Fewer start where the system refuses more. */
bool startThreads(diffit_context *, int threads);
void stopThreads(diffit_context *);
void freeScratch(diffit_context *);

}  // namespace diffit

#endif
