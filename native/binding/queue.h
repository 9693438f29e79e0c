/*
 * The ordered queue of one open device: the JavaScript thread adds jobs and goes on; one thread runs them in order.
 *
 * One producer, one consumer, so the list needs no lock: a job is a node of fixed size, published by its predecessor's
 * `next`; nodes the consumer is done with are recycled by the producer (Vyukov's unbounded SPSC queue). A consumer
 * without work spins for some microseconds, then sleeps; only then does adding a job cost a wake-up.
 *
 * The first failure of a job is kept, later jobs still run, and the next job that reports (a read or a synchronize)
 * takes the failure with it, after which the device is as good as new.
 */
#ifndef DIFFIT_BINDING_QUEUE_H
#define DIFFIT_BINDING_QUEUE_H

#include <math.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>

#include "../abi/diffit.h"
#include "replay.h"

namespace diffit {

struct Failure {
  diffit_status status;
  const char *op;
  std::string sentence;
};

/* What jobs run on; touched by the queue's thread alone. */
struct Executor {
  const diffit_backend *backend;
  diffit_context *context;
  Replays *replays;
  std::unique_ptr<Failure> failure;

  /* Both keep the first failure; check() asks the backend for the sentence. */
  void check(diffit_status status, const char *op);
  void fail(diffit_status status, const char *op, const char *sentence);
  std::unique_ptr<Failure> takeFailure() { return std::move(failure); }
};

/* A job that is dropped (the environment ends) or replayed is destroyed without being run. */
struct Job {
  virtual void run(Executor &executor) = 0;
  /* Appends what tells this operation from others, all arguments included, and may then be run more than once; false for what is no
     operation, or is another one each time. */
  virtual bool describe(Words &) const { return false; }
  /* The key of the span that begins here, or NaN. */
  virtual double opensSpan() const { return NAN; }
  virtual bool closesSpan() const { return false; }
  virtual ~Job() = default;
};

class Queue {
 public:
  static constexpr size_t kJobBytes = 768;

  Queue(const diffit_backend *backend, diffit_context *context);
  ~Queue() { stop(); }
  Queue(const Queue &) = delete;
  Queue &operator=(const Queue &) = delete;

  template <class J>
  void add(J &&job) {
    using Type = std::decay_t<J>;
    static_assert(sizeof(Type) <= kJobBytes && alignof(Type) <= alignof(Node), "raise kJobBytes");
    Node *node = takeNode();
    node->job = new (node->storage) Type(std::forward<J>(job));
    publish(node);
  }

  /* Blocks until everything added so far has run. */
  void drain();
  /* Ends the thread after the job that is running now; the others are dropped. */
  void stop();

  Replays::Stats replayStats() const { return replays_.stats(); }
  uint64_t pending() const { return added_ - completed_.load(std::memory_order_relaxed); }

 private:
  struct Node {
    std::atomic<Node *> next{nullptr};
    Job *job = nullptr;
    alignas(16) unsigned char storage[kJobBytes];
  };

  Node *takeNode();
  void publish(Node *node);
  void loop();
  Node *after(Node *node);
  Node *waitForNext(Node *node);
  void take(Node *last, bool run);
  bool runSpan(double key);

  Replays replays_;
  Executor executor_;
  /* Producer's side: the chain oldest_ .. consumed .. newest_, of which the part before consumed_ can be reused. */
  Node *newest_, *oldest_, *reusableEnd_;
  size_t nodes_ = 1;
  uint64_t added_ = 0;
  /* Consumer's side: the last node that was run. */
  alignas(64) std::atomic<Node *> consumed_;
  std::atomic<uint64_t> completed_{0};
  /* Sleep. */
  alignas(64) std::atomic<bool> asleep_{false};
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::thread thread_;
};

}  // namespace diffit

#endif
