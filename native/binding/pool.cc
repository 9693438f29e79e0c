#include "pool.h"

#include <algorithm>

#include "../abi/diffit.h"

namespace diffit {

size_t Pool::blockSize(size_t bytes) {
  constexpr size_t kLargestStep = (size_t)512 << 10;
  size_t step = DIFFIT_ALIGNMENT;
  while (step * 32 < bytes && step < kLargestStep) step *= 2; /* rounds up by less than a sixteenth */
  const size_t block = (bytes + step - 1) / step * step;
  return block ? block : step;
}

void *Pool::reuse(size_t block) {
  const auto found = free_.find(block);
  if (found == free_.end() || found->second.empty()) return nullptr;
  void *data = found->second.begin()->first;
  found->second.erase(found->second.begin());
  return data;
}

void Pool::addLive(size_t bytes) {
  liveBuffers_++;
  liveBytes_ += bytes;
  if (liveBytes_ > peakBytes_) peakBytes_ = liveBytes_;
  if (liveBytes_ > highWater_) highWater_ = liveBytes_;
}

void Pool::put(void *data, size_t block, size_t bytes) {
  free_[block].emplace(data, clock_++);
  liveBuffers_--;
  liveBytes_ -= bytes;
}

void Pool::lose(size_t block, size_t bytes) {
  reserved_ -= block;
  liveBuffers_--;
  liveBytes_ -= bytes;
}

std::vector<void *> Pool::evict(size_t target) {
  std::vector<void *> evicted;
  if (reserved_ <= target) return evicted;
  struct Oldest {
    uint64_t since;
    size_t block;
    void *data;
  };
  std::vector<Oldest> all;
  for (const auto &[block, blocks] : free_)
    for (const auto &[data, since] : blocks) all.push_back({since, block, data});
  std::sort(all.begin(), all.end(), [](const Oldest &a, const Oldest &b) { return a.since < b.since; });
  for (const Oldest &oldest : all) {
    if (reserved_ <= target) break;
    evicted.push_back(oldest.data);
    free_[oldest.block].erase(oldest.data);
    reserved_ -= oldest.block;
  }
  return evicted;
}

}  // namespace diffit
