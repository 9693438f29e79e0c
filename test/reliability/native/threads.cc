/*
 * The threads of the addon without Node: the ordered queue, the pool, and the scheduler of the CPU kernels, driven from two threads and
 * more so that ThreadSanitizer and AddressSanitizer see all of their memory (node itself is not instrumented). Prints one line per part;
 * exit code 1 when a result is wrong.
 *
 *     threads [seconds per part]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../../../native/binding/pool.h"
#include "../../../native/binding/queue.h"
#include "../../../native/cpu/state.h"

using namespace diffit;

static int wrong = 0;
static double secondsPerPart = 1;

static void expect(bool right, const char *what) {
  if (right) return;
  fprintf(stderr, "wrong: %s\n", what);
  wrong++;
}

/* How often body(round) ran until the time was over. */
template <class Body>
static int64_t repeat(const Body &body) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(secondsPerPart);
  int64_t round = 0;
  do body(round++);
  while (std::chrono::steady_clock::now() < end);
  return round;
}

/* ---- the queue: one thread adds, one runs ---- */

struct Append final : Job {
  std::vector<int64_t> *list; /* the consumer's until the queue is drained */
  int64_t value;
  std::unique_ptr<int64_t> payload; /* so that a job that is dropped or run twice shows */
  Append(std::vector<int64_t> *l, int64_t v) : list(l), value(v), payload(new int64_t(v)) {}
  void run(Executor &executor) override {
    list->push_back(*payload);
    if (value % 1000 == 999) executor.fail(DIFFIT_INVALID, "append", "on purpose");
  }
};

static void queueInOrder(int64_t round) {
  diffit_backend backend = {};
  Queue queue(&backend, nullptr);
  std::vector<int64_t> list;
  const int64_t jobs = 20 + round % 7 * 2000;
  for (int64_t i = 0; i < jobs; i++) {
    queue.add(Append(&list, i));
    if (i % 97 == 0) std::this_thread::sleep_for(std::chrono::microseconds(i % 3 * 20)); /* some of them let it sleep */
    if (i % 611 == 0) queue.drain();
    (void)queue.pending();
    (void)queue.replayStats();
  }
  queue.drain();
  bool ordered = (int64_t)list.size() == jobs;
  for (int64_t i = 0; ordered && i < jobs; i++) ordered = list[(size_t)i] == i;
  expect(ordered, "jobs run once each, in order");
}

static void queueStopped(int64_t round) {
  diffit_backend backend = {};
  Queue queue(&backend, nullptr);
  std::vector<int64_t> list;
  for (int64_t i = 0; i < round % 300; i++) queue.add(Append(&list, i));
  queue.stop(); /* with jobs left */
  expect((int64_t)list.size() <= round % 300, "a job that was dropped did not run");
}

/* ---- the pool, as the device uses it: this thread's books, memory that the queue's thread writes ---- */

struct Write final : Job {
  char *data;
  size_t size;
  int value;
  Write(char *d, size_t s, int v) : data(d), size(s), value(v) {}
  void run(Executor &) override { memset(data, value, size); }
};
struct Check final : Job {
  char *data;
  size_t size;
  int value;
  Check(char *d, size_t s, int v) : data(d), size(s), value(v) {}
  void run(Executor &executor) override {
    for (size_t i = 0; i < size; i += 61)
      if (data[i] != (char)value) executor.fail(DIFFIT_INVALID, "check", "another tensor's bytes");
  }
};
struct Free final : Job {
  void *data;
  explicit Free(void *d) : data(d) {}
  void run(Executor &) override { free(data); }
};
struct Ask final : Job {
  bool *failed;
  explicit Ask(bool *f) : failed(f) {}
  void run(Executor &executor) override { *failed = executor.takeFailure() != nullptr; }
};

static void poolInStreamOrder(int64_t round) {
  struct Held {
    Pool::Block *block;
    size_t bytes;
    int value;
  };
  std::mt19937_64 random((uint64_t)round);
  Pool pool;
  diffit_backend backend = {};
  Queue queue(&backend, nullptr);
  std::vector<Held> held;
  std::map<char *, size_t> live;
  const auto put = [&](size_t i) {
    live.erase(held[i].block->data);
    pool.put(held[i].block, held[i].bytes); /* free at once: what uses it was added before */
    held[i] = held.back();
    held.pop_back();
  };
  for (int turn = 0; turn < 400; turn++) {
    if (held.size() > 20 || (!held.empty() && random() % 3 == 0)) {
      put((size_t)(random() % held.size()));
    } else {
      const size_t bytes = (size_t)(random() % (random() % 4 == 0 ? 1500000 : 3000));
      const size_t size = Pool::blockSize(bytes);
      Pool::Block *block = pool.reuse(size);
      if (!block) block = pool.add(malloc(size), size);
      pool.addLive(bytes);
      const int value = (int)(random() % 100) + 1;
      const auto next = live.lower_bound(block->data);
      expect(next == live.end() || block->data + bytes <= next->first, "blocks do not overlap");
      expect(next == live.begin() || std::prev(next)->first + std::prev(next)->second <= block->data, "nor from below");
      live[block->data] = bytes;
      queue.add(Write(block->data, bytes, value));
      held.push_back({block, bytes, value});
    }
    if (!held.empty()) {
      const Held &any = held[(size_t)(random() % held.size())];
      queue.add(Check(any.block->data, any.bytes, any.value));
    }
    if (turn % 50 == 49)
      for (void *data : pool.evict(pool.reserved() / 2)) queue.add(Free(data));
  }
  while (!held.empty()) put(held.size() - 1);
  for (void *data : pool.evict(0)) queue.add(Free(data));
  bool failed = true;
  queue.add(Ask(&failed));
  queue.drain();
  expect(!failed, "a block is its tensor's alone until the queue is past it");
  expect(pool.reserved() == 0 && pool.liveBuffers() == 0 && pool.liveBytes() == 0, "everything goes back");
}

/* ---- the scheduler: fork and join over several counts of threads ---- */

static void scheduler(int64_t round) {
  const int threads = 1 + (int)(round % 5);
  auto context = std::make_unique<diffit_context>();
  expect(startThreads(context.get(), threads), "threads start");
  for (int64_t job = 0; job < 200; job++) {
    struct Call {
      diffit_context *context;
      std::vector<int64_t> times;
      std::vector<int64_t> byThread;
    } call = {context.get(), std::vector<int64_t>((size_t)(job * 7 % 90)), std::vector<int64_t>((size_t)threads)};
    diffit_cpu_run(
        context.get(), (int64_t)call.times.size(),
        [](void *argument, int64_t index, int thread) {
          Call *c = (Call *)argument;
          const size_t bytes = 64 + (size_t)(index % 5) * 4096;
          memset(diffit_cpu_scratch(c->context, thread, (int)(index % 4), bytes), (int)index, bytes);
          c->times[(size_t)index]++; /* a task's own, plain */
          c->byThread[(size_t)thread]++; /* a thread's own, plain */
          if (index % 31 == 30) diffit_cpu_fail(c->context, DIFFIT_INVALID, "task %d", (int)index);
        },
        &call);
    int64_t sum = 0;
    for (int64_t n : call.byThread) sum += n;
    bool once = sum == (int64_t)call.times.size();
    for (int64_t n : call.times) once = once && n == 1;
    expect(once, "every task runs once");
    if (job % 40 == 39) std::this_thread::sleep_for(std::chrono::milliseconds(1)); /* the workers fall asleep */
  }
  stopThreads(context.get());
  freeScratch(context.get());
}

int main(int argc, char **argv) {
  if (argc > 1) secondsPerPart = atof(argv[1]);
  printf("queue, in order: %lld rounds\n", (long long)repeat(queueInOrder));
  printf("queue, stopped: %lld rounds\n", (long long)repeat(queueStopped));
  printf("pool: %lld rounds\n", (long long)repeat(poolInStreamOrder));
  printf("scheduler: %lld rounds\n", (long long)repeat(scheduler));
  return wrong > 0;
}
