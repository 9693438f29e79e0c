#include "pool.h"

#include <algorithm>
#include <functional>

#include "../abi/diffit.h"

namespace diffit {

Pool::~Pool() {
  for (const auto &[size, pieces] : small_)
    for (const auto &[data, block] : pieces) delete block;
  for (Block *block : divisible_) delete block;
}

size_t Pool::blockSize(size_t bytes) {
  if (kExact) return bytes ? bytes : 1;
  constexpr size_t kLargestStep = (size_t)512 << 10;
  size_t step = DIFFIT_ALIGNMENT;
  while (step * 32 < bytes && step < kLargestStep) step *= 2; /* rounds up by less than a sixteenth */
  const size_t block = (bytes + step - 1) / step * step;
  return block ? block : step;
}

Pool::Block *Pool::reuse(size_t size) {
  if (size < kDivisible) {
    Pieces &pieces = small_[size];
    if (pieces.empty()) return nullptr;
    std::pop_heap(pieces.begin(), pieces.end(), std::greater<>());
    Block *block = pieces.back().second;
    pieces.pop_back();
    block->isFree = false;
    return block;
  }
  Block least{nullptr, size};
  const auto found = divisible_.lower_bound(&least);
  if (found == divisible_.end()) return nullptr;
  Block *block = *found;
  divisible_.erase(found);
  block->isFree = false;
  if (block->size > size) {
    Block *rest = new Block{block->data + size, block->size - size, block, block->after, true, block->since};
    if (rest->after) rest->after->before = rest;
    block->after = rest;
    block->size = size;
    divisible_.insert(rest);
  }
  return block;
}

Pool::Block *Pool::add(void *data, size_t size) {
  reserved_ += size;
  return new Block{static_cast<char *>(data), size};
}

void Pool::addLive(size_t bytes) {
  liveBuffers_++;
  liveBytes_ += bytes;
  if (liveBytes_ > peakBytes_) peakBytes_ = liveBytes_;
  if (liveBytes_ > highWater_) highWater_ = liveBytes_;
}

/* `right` becomes part of `left`. */
void Pool::merge(Block *left, Block *right) {
  left->size += right->size;
  left->after = right->after;
  if (left->after) left->after->before = left;
  delete right;
}

void Pool::put(Block *block, size_t bytes) {
  liveBuffers_--;
  liveBytes_ -= bytes;
  block->isFree = true;
  block->since = clock_++;
  Block *before = block->before, *after = block->after;
  if (after && after->isFree) {
    divisible_.erase(after);
    merge(block, after);
  }
  if (before && before->isFree) {
    divisible_.erase(before);
    before->since = block->since;
    merge(before, block);
    block = before;
  }
  if (block->before || block->after || block->size >= kDivisible) {
    divisible_.insert(block);
    return;
  }
  Pieces &pieces = small_[block->size];
  pieces.emplace_back(block->data, block);
  std::push_heap(pieces.begin(), pieces.end(), std::greater<>());
}

std::vector<void *> Pool::evict(size_t target) {
  std::vector<void *> evicted;
  if (reserved_ <= target) return evicted;
  std::vector<Block *> whole;
  for (const auto &[size, pieces] : small_)
    for (const auto &[data, block] : pieces) whole.push_back(block);
  for (Block *block : divisible_)
    if (!block->before && !block->after) whole.push_back(block);
  std::sort(whole.begin(), whole.end(), [](const Block *a, const Block *b) { return a->since < b->since; });
  size_t count = 0;
  for (; count < whole.size() && reserved_ > target; count++) {
    Block *block = whole[count];
    reserved_ -= block->size;
    evicted.push_back(block->data);
    block->isFree = false;
    if (block->size >= kDivisible) divisible_.erase(block);
  }
  for (auto &[size, pieces] : small_) {
    const auto taken = [](const auto &piece) { return !piece.second->isFree; };
    pieces.erase(std::remove_if(pieces.begin(), pieces.end(), taken), pieces.end());
    std::make_heap(pieces.begin(), pieces.end(), std::greater<>());
  }
  for (size_t i = 0; i < count; i++) delete whole[i];
  return evicted;
}

}  // namespace diffit
