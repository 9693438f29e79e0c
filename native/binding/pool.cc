#include "pool.h"

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
  void *data = found->second.back().data;
  found->second.pop_back();
  return data;
}

void Pool::addLive(size_t bytes) {
  liveBuffers_++;
  liveBytes_ += bytes;
  if (liveBytes_ > peakBytes_) peakBytes_ = liveBytes_;
  if (liveBytes_ > highWater_) highWater_ = liveBytes_;
}

void Pool::put(void *data, size_t block, size_t bytes) {
  free_[block].push_back({data, clock_++});
  liveBuffers_--;
  liveBytes_ -= bytes;
}

std::vector<void *> Pool::evict(size_t target) {
  std::vector<void *> evicted;
  while (reserved_ > target) {
    auto oldest = free_.end();
    for (auto it = free_.begin(); it != free_.end();) {
      if (it->second.empty()) {
        it = free_.erase(it);
        continue;
      }
      if (oldest == free_.end() || it->second.front().since < oldest->second.front().since) oldest = it;
      ++it;
    }
    if (oldest == free_.end()) break;
    evicted.push_back(oldest->second.front().data);
    oldest->second.erase(oldest->second.begin());
    reserved_ -= oldest->first;
  }
  return evicted;
}

}  // namespace diffit
