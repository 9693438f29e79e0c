/*
 * Spans of operations that repeat: run plainly at first, captured when they come again, then replayed in one launch.
 *
 * A span is what the queue gets between two markers. Whatever is no operation (a copy, a read) or draws random numbers cuts it into
 * parts and runs between them, in order. The operations of a part are written down as words: which operation, and every argument:
 * addresses, dtypes, shapes, scalars. Only a part with exactly the same words is replayed, so a replay does what running the
 * operations would do. While a part agrees with one that is known its jobs are held back; at the first difference they run plainly, and
 * so does the rest of it. Used by the queue's thread alone, except stats().
 */
#ifndef DIFFIT_BINDING_REPLAY_H
#define DIFFIT_BINDING_REPLAY_H

#include <stdint.h>

#include <atomic>
#include <functional>
#include <list>
#include <map>
#include <utility>
#include <vector>

#include "../abi/diffit.h"

namespace diffit {

struct Executor;
struct Job;

/* What tells one operation from another, appended word by word. */
using Words = std::vector<uint64_t>;

class Replays {
 public:
  struct Stats {
    uint64_t captured, replayed, plain; /* parts; `plain` ones ran as ever */
  };
  Stats stats() const { return {captured_, replayed_, plain_}; }

  /* Starts part `part` of a span. */
  void begin(const diffit_backend *backend, double key, uint32_t part);
  /* Takes the part's next job; false: it does not belong to one, the part has ended. */
  bool add(const Job &job);
  /* Whether the jobs so far are to be held back. */
  bool holding() const { return !candidates_.empty(); }
  /* The part has ended. true: what was held is done, by a replay; false: run it. `runAll` runs each job that is held. */
  bool finish(Executor &executor, const std::function<void()> &runAll);
  /* Drops what is known of a key, or of all. */
  void forget(Executor &executor, double key);
  void forgetAll(Executor &executor);

 private:
  static constexpr size_t kLists = 8; /* of a part: loops alternate between buffers, sampling between two batch sizes */
  static constexpr int kMisses = 16, kRest = 256;

  struct List {
    Words words;
    void *graph = nullptr;
    bool hopeless = false; /* could not be captured */
  };
  struct Known {
    std::list<List> lists; /* latest used first */
    int misses = 0; /* in a row */
    int rest = 0; /* times to pass by, after too many misses */
  };
  using Key = std::pair<double, uint32_t>; /* of a span, and which part of it */

  bool replay(Executor &executor, List &list, const std::function<void()> &runAll);
  bool capture(Executor &executor, List &list, const std::function<void()> &runAll);
  void learn(Executor &executor, Known &known);
  void drop(Executor &executor, std::list<List> &lists);

  std::map<Key, Known> known_;
  std::atomic<uint64_t> captured_{0}, replayed_{0}, plain_{0};
  /* The part at hand. */
  Key key_;
  bool watched_ = false;
  std::vector<List *> candidates_; /* whose words begin with these */
  Words words_;
};

}  // namespace diffit

#endif
