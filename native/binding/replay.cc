#include "replay.h"

#include <string.h>

#include <algorithm>

#include "queue.h"

namespace diffit {

void Replays::begin(const diffit_backend *backend, double key, uint32_t part) {
  key_ = {key, part};
  candidates_.clear();
  words_.clear();
  watched_ = backend->capture_begin != nullptr;
  const auto found = known_.find(key_);
  if (!watched_ || found == known_.end()) return;
  Known &known = found->second;
  if (known.rest > 0) {
    known.rest--;
    watched_ = false;
    return;
  }
  for (List &list : known.lists)
    if (!list.hopeless) candidates_.push_back(&list);
}

bool Replays::add(const Job &job) {
  const size_t from = words_.size();
  if (!job.describe(words_)) return false;
  const auto differs = [&](const List *list) {
    return list->words.size() < words_.size() ||
           memcmp(&list->words[from], &words_[from], (words_.size() - from) * sizeof(uint64_t)) != 0;
  };
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), differs), candidates_.end());
  return true;
}

bool Replays::finish(Executor &executor, const std::function<void()> &runAll) {
  if (words_.empty()) return false;
  const auto ended = [&](const List *list) { return list->words.size() == words_.size(); };
  const auto found = std::find_if(candidates_.begin(), candidates_.end(), ended);
  if (found != candidates_.end() && replay(executor, **found, runAll)) return true;
  plain_++;
  if (watched_) learn(executor, known_[key_]);
  return false;
}

bool Replays::replay(Executor &executor, List &list, const std::function<void()> &runAll) {
  Known &known = known_[key_];
  known.misses = 0;
  const auto place = std::find_if(known.lists.begin(), known.lists.end(), [&](const List &l) { return &l == &list; });
  known.lists.splice(known.lists.begin(), known.lists, place);
  if (!list.graph && !capture(executor, list, runAll)) return false;
  const diffit_status status = executor.backend->replay(executor.context, list.graph);
  if (status == DIFFIT_UNSUPPORTED) { /* stale: it is captured again when it comes again */
    executor.backend->free_graph(executor.context, list.graph);
    list.graph = nullptr;
    return false;
  }
  executor.check(status, "replay");
  replayed_++;
  return true;
}

/* A failure of this is no failure of the operations, which run plainly then and fail again if they must. */
bool Replays::capture(Executor &executor, List &list, const std::function<void()> &runAll) {
  std::unique_ptr<Failure> before = executor.takeFailure();
  if (executor.backend->capture_begin(executor.context) == DIFFIT_OK) {
    runAll();
    if (executor.backend->capture_end(executor.context, &list.graph) != DIFFIT_OK) list.graph = nullptr;
    if (list.graph && executor.failure) {
      executor.backend->free_graph(executor.context, list.graph);
      list.graph = nullptr;
    }
  }
  executor.failure = std::move(before);
  list.hopeless = !list.graph;
  if (list.graph) captured_++;
  return list.graph;
}

/* Remembers the part at hand, which ran plainly. */
void Replays::learn(Executor &executor, Known &known) {
  const auto same = [&](const List &list) { return list.words == words_; };
  if (std::any_of(known.lists.begin(), known.lists.end(), same)) return;
  if (known.lists.size() == kLists) {
    std::list<List> last;
    last.splice(last.begin(), known.lists, std::prev(known.lists.end()));
    drop(executor, last);
  }
  known.lists.push_front({words_});
  if (++known.misses < kMisses) return;
  drop(executor, known.lists);
  known.misses = 0;
  known.rest = kRest;
}

void Replays::drop(Executor &executor, std::list<List> &lists) {
  for (List &list : lists)
    if (list.graph) executor.backend->free_graph(executor.context, list.graph);
  lists.clear();
}

void Replays::forget(Executor &executor, double key) {
  const auto first = known_.lower_bound({key, 0}), last = known_.upper_bound({key, UINT32_MAX});
  for (auto it = first; it != last; ++it) drop(executor, it->second.lists);
  known_.erase(first, last);
}

void Replays::forgetAll(Executor &executor) {
  for (auto &[key, known] : known_) drop(executor, known.lists);
  known_.clear();
}

}  // namespace diffit
