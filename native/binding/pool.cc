#include "pool.h"

#include <algorithm>

#include "../abi/diffit.h"

namespace diffit {

Pool::~Pool() {
  for (const FreeBlocks *blocks : {&small_, &divisible_})
    for (Block *block : *blocks) delete block;
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
  const bool divisible = size >= kDivisible;
  FreeBlocks &blocks = divisible ? divisible_ : small_;
  Block least{nullptr, size};
  const auto found = blocks.lower_bound(&least);
  if (found == blocks.end() || (!divisible && (*found)->size != size)) return nullptr;
  Block *block = *found;
  blocks.erase(found);
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
  const bool part = block->before || block->after;
  (part || block->size >= kDivisible ? divisible_ : small_).insert(block);
}

std::vector<void *> Pool::evict(size_t target) {
  std::vector<void *> evicted;
  if (reserved_ <= target) return evicted;
  std::vector<Block *> whole(small_.begin(), small_.end());
  for (Block *block : divisible_)
    if (!block->before && !block->after) whole.push_back(block);
  std::sort(whole.begin(), whole.end(), [](const Block *a, const Block *b) { return a->since < b->since; });
  for (Block *block : whole) {
    if (reserved_ <= target) break;
    (block->size >= kDivisible ? divisible_ : small_).erase(block);
    evicted.push_back(block->data);
    reserved_ -= block->size;
    delete block;
  }
  return evicted;
}

}  // namespace diffit
