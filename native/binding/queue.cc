#include "queue.h"

#include <chrono>

namespace diffit {

void Executor::check(diffit_status status, const char *op) {
  if (status == DIFFIT_OK || failure) return;
  const char *why = backend->error(context);
  fail(status, op, why && *why ? why : "no reason was given");
}

void Executor::fail(diffit_status status, const char *op, const char *sentence) {
  if (!failure) failure = std::make_unique<Failure>(Failure{status, op, sentence});
}

Queue::Queue(const diffit_backend *backend, diffit_context *context) : executor_{backend, context, &replays_, nullptr} {
  newest_ = oldest_ = reusableEnd_ = new Node;
  consumed_.store(newest_, std::memory_order_relaxed);
  thread_ = std::thread([this] { loop(); });
}

Queue::Node *Queue::takeNode() {
  constexpr size_t kKept = 4096; /* a burst's nodes beyond these are given back one by one */
  if (oldest_ == reusableEnd_) reusableEnd_ = consumed_.load(std::memory_order_acquire);
  if (nodes_ > kKept && oldest_ != reusableEnd_) {
    Node *extra = oldest_;
    oldest_ = extra->next.load(std::memory_order_relaxed);
    delete extra;
    nodes_--;
  }
  if (oldest_ == reusableEnd_) {
    nodes_++;
    return new Node;
  }
  Node *node = oldest_;
  oldest_ = node->next.load(std::memory_order_relaxed);
  node->next.store(nullptr, std::memory_order_relaxed);
  __builtin_prefetch(oldest_, 1); /* the next one, which lies in the consumer's cache */
  return node;
}

void Queue::publish(Node *node) {
  added_++;
  Node *previous = newest_;
  newest_ = node;
  /* Sequentially consistent, as is the consumer's announcement of its sleep: one of the two sees the other. */
  previous->next.store(node, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst)) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_one();
  }
}

static void pauseBriefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

/* The node behind `last`, which is or will be there; nullptr when the queue stops. */
Queue::Node *Queue::after(Node *last) {
  Node *next = last->next.load(std::memory_order_acquire);
  return next && !stopping_.load(std::memory_order_relaxed) ? next : waitForNext(last);
}

Queue::Node *Queue::waitForNext(Node *last) {
  using Clock = std::chrono::steady_clock;
  constexpr auto kSpin = std::chrono::microseconds(20);
  const auto giveUp = Clock::now() + kSpin;
  do {
    for (int i = 0; i < 64; i++) {
      if (stopping_.load(std::memory_order_relaxed)) return nullptr;
      if (Node *next = last->next.load(std::memory_order_acquire)) return next;
      pauseBriefly();
    }
  } while (Clock::now() < giveUp);

  std::unique_lock<std::mutex> lock(mutex_);
  asleep_.store(true, std::memory_order_seq_cst);
  Node *next = nullptr;
  wake_.wait(lock, [&] {
    next = last->next.load(std::memory_order_seq_cst);
    return next || stopping_.load(std::memory_order_relaxed);
  });
  asleep_.store(false, std::memory_order_relaxed);
  return stopping_.load(std::memory_order_relaxed) ? nullptr : next;
}

void Queue::loop() {
  while (Node *node = after(consumed_.load(std::memory_order_relaxed))) {
    const double key = node->job->opensSpan();
    take(node, true);
    if (!isnan(key) && !runSpan(key)) return;
  }
}

/* Ends with the jobs up to `last`, having run them or not. */
void Queue::take(Node *last, bool run) {
  for (Node *node = consumed_.load(std::memory_order_relaxed); node != last;) {
    node = node->next.load(std::memory_order_acquire);
    if (run) node->job->run(executor_);
    node->job->~Job();
    node->job = nullptr;
    completed_.store(completed_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    consumed_.store(node, std::memory_order_release);
  }
}

/* The jobs up to the end of a span, part by part (replay.h); false when the queue stops. */
bool Queue::runSpan(double key) {
  for (uint32_t part = 0;; part++) {
    Node *last = consumed_.load(std::memory_order_relaxed), *node;
    replays_.begin(executor_.backend, key, part);
    while ((node = after(last)) && replays_.add(*node->job)) {
      if (!replays_.holding()) take(node, true);
      last = node;
    }
    if (!node) return false;
    const bool done = replays_.finish(executor_, [&] {
      for (Node *held = consumed_.load(std::memory_order_relaxed); held != last;) {
        held = held->next.load(std::memory_order_acquire);
        held->job->run(executor_);
      }
    });
    take(last, !done);
    const bool closes = node->job->closesSpan();
    take(node, true);
    if (closes) return true;
  }
}

namespace {
struct Signal {
  std::mutex mutex;
  std::condition_variable condition;
  bool raised = false;
};
struct SignalJob final : Job {
  Signal *signal;
  explicit SignalJob(Signal *s) : signal(s) {}
  void run(Executor &) override {
    std::lock_guard<std::mutex> lock(signal->mutex);
    signal->raised = true;
    signal->condition.notify_one();
  }
};
}  // namespace

void Queue::drain() {
  Signal signal;
  add(SignalJob(&signal));
  std::unique_lock<std::mutex> lock(signal.mutex);
  signal.condition.wait(lock, [&] { return signal.raised; });
}

void Queue::stop() {
  if (!thread_.joinable()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_.store(true);
    wake_.notify_one();
  }
  thread_.join();
  replays_.forgetAll(executor_);
  while (oldest_) {
    Node *node = oldest_;
    oldest_ = node->next.load(std::memory_order_relaxed);
    if (node->job) node->job->~Job();
    delete node;
  }
}

}  // namespace diffit
