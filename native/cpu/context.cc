/*
 * Worker threads, scratch memory and the error sentence of the CPU backend (context.h).
 *
 * Fork and join: the caller publishes a job by one atomic counter of tasks, works on it like everybody else, and waits until the
 * last task is done. Whoever finds nothing to do spins for some fifty microseconds, the time between two operations of
 * a busy queue, and then sleeps on a condition variable, so an idle backend takes no processor time and the JavaScript
 * thread always finds one.
 */
#include "state.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <new>

namespace diffit {
namespace {

constexpr int kSpins = 2000; /* 50 us of `pause` on Zen 4, 90 us on Intel */

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

/* Takes tasks until none is left. A job cannot be replaced before all its tasks are reported as finished, so a task
   taken (the compare-and-swap succeeded) belongs to the job described by `task`, `argument` and `tasks`. */
void work(diffit_context *ctx, int thread) {
  for (;;) {
    int64_t done = 0;
    int64_t left = ctx->unclaimed.load();
    while (left > 0) {
      if (!ctx->unclaimed.compare_exchange_weak(left, left - 1)) continue;
      ctx->task(ctx->argument, ctx->tasks - left, thread);
      done++;
      left = ctx->unclaimed.load();
    }
    if (done == 0) return;
    if (ctx->unfinished.fetch_sub(done) == done && ctx->callerSleeps.load()) {
      pthread_mutex_lock(&ctx->mutex);
      pthread_cond_signal(&ctx->jobDone);
      pthread_mutex_unlock(&ctx->mutex);
    }
  }
}

bool hasWork(const diffit_context *ctx) { return ctx->unclaimed.load() > 0 || ctx->stop.load(); }

void *workerMain(void *argument) {
  const Worker *self = (const Worker *)argument;
  diffit_context *ctx = self->context;
  while (!ctx->stop.load()) {
    work(ctx, self->thread);
    int spins = 0;
    while (!hasWork(ctx) && ++spins < kSpins) pause();
    if (hasWork(ctx)) continue;
    pthread_mutex_lock(&ctx->mutex);
    ctx->sleepers.fetch_add(1);
    while (!hasWork(ctx)) pthread_cond_wait(&ctx->jobReady, &ctx->mutex);
    ctx->sleepers.fetch_sub(1);
    pthread_mutex_unlock(&ctx->mutex);
  }
  return nullptr;
}

void wakeWorkers(diffit_context *ctx) {
  if (ctx->sleepers.load() == 0) return;
  pthread_mutex_lock(&ctx->mutex);
  pthread_cond_broadcast(&ctx->jobReady);
  pthread_mutex_unlock(&ctx->mutex);
}

void runJob(diffit_context *ctx, int64_t tasks) {
  ctx->tasks = tasks;
  ctx->unfinished.store(tasks);
  ctx->unclaimed.store(tasks);
  wakeWorkers(ctx);
  work(ctx, 0);
  for (int spins = 0; ctx->unfinished.load() != 0; pause()) {
    if (++spins < kSpins) continue;
    pthread_mutex_lock(&ctx->mutex);
    ctx->callerSleeps.store(true);
    while (ctx->unfinished.load() != 0) pthread_cond_wait(&ctx->jobDone, &ctx->mutex);
    ctx->callerSleeps.store(false);
    pthread_mutex_unlock(&ctx->mutex);
    return;
  }
}

void *grow(Scratch *scratch, int slot, size_t bytes) {
  if (bytes > scratch->size[slot]) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    free(scratch->data[slot]);
    scratch->data[slot] = nullptr;
    scratch->size[slot] = 0;
    if (rounded < bytes || posix_memalign(&scratch->data[slot], DIFFIT_ALIGNMENT, rounded) != 0) {
      scratch->data[slot] = nullptr;
      return nullptr;
    }
    scratch->size[slot] = rounded;
  }
  return scratch->data[slot];
}

}  // namespace

bool startThreads(diffit_context *ctx, int threads) {
  ctx->workers = new (std::nothrow) Worker[threads];
  ctx->scratch = new (std::nothrow) Scratch[threads + 1];
  if (!ctx->workers || !ctx->scratch) return false;
  ctx->threads = 1;
  for (int i = 1; i < threads; i++) {
    Worker *worker = &ctx->workers[i - 1];
    worker->context = ctx;
    worker->thread = i;
    if (pthread_create(&worker->handle, nullptr, workerMain, worker) != 0) break;
#if defined(__linux__)
    pthread_setname_np(worker->handle, "diffit-cpu");
#endif
    ctx->threads = i + 1;
  }
  return true;
}

void stopThreads(diffit_context *ctx) {
  pthread_mutex_lock(&ctx->mutex);
  ctx->stop.store(true);
  pthread_cond_broadcast(&ctx->jobReady);
  pthread_mutex_unlock(&ctx->mutex);
  for (int i = 1; i < ctx->threads; i++) pthread_join(ctx->workers[i - 1].handle, nullptr);
  delete[] ctx->workers;
}

void freeScratch(diffit_context *ctx) {
  for (int i = 0; ctx->scratch && i <= ctx->threads; i++)
    for (void *data : ctx->scratch[i].data) free(data);
  delete[] ctx->scratch;
}

}  // namespace diffit

extern "C" {

void diffit_cpu_run(diffit_context *ctx, int64_t tasks, void (*task)(void *argument, int64_t index, int thread),
                    void *argument) {
  if (ctx->threads == 1 || tasks == 1) {
    for (int64_t i = 0; i < tasks; i++) task(argument, i, 0);
    return;
  }
  ctx->task = task;
  ctx->argument = argument;
  if (tasks > 0) diffit::runJob(ctx, tasks);
}

int diffit_cpu_threads(const diffit_context *ctx) { return ctx->threads; }

int diffit_cpu_dots(const diffit_context *ctx) { return ctx->dots; }

void *diffit_cpu_scratch(diffit_context *ctx, int thread, int slot, size_t bytes) {
  return diffit::grow(&ctx->scratch[thread], slot, bytes);
}

void *diffit_cpu_shared(diffit_context *ctx, int slot, size_t bytes) {
  return diffit::grow(&ctx->scratch[ctx->threads], slot, bytes);
}

diffit_status diffit_cpu_fail(diffit_context *ctx, diffit_status status, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pthread_mutex_lock(&ctx->mutex);
  vsnprintf(ctx->error, sizeof ctx->error, format, arguments);
  pthread_mutex_unlock(&ctx->mutex);
  va_end(arguments);
  return status;
}
}
