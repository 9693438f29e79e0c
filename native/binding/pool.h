/*
 * The caching pool over a backend's raw memory: which blocks are free, and the books.
 *
 * A request is rounded up to a block (16 sizes per power of two; whole 512 KiB from 16 MiB on: at most an eighth of waste from 512 bytes on)
 * and takes the smallest free piece it fits into, of several the one at the lowest address; else the device gives a piece of just that
 * size. What is left of a larger piece stays free, and free neighbours from one piece of the device become one again: a training step's
 * gradients lie where activations of other sizes lay, and what is reserved stays within a percent of the most that was live. Blocks below
 * 256 KiB serve requests of their own size only: one small tensor would keep a large piece from being whole again.
 *
 * Where tensors lie thus follows from which are live, not from what was freed in which order, and a loop comes back to the same addresses
 * after a turn or two (replay.h). A block is free at once when its last tensor is released: everything that still uses it was enqueued
 * earlier on the same ordered queue (PyTorch's stream-ordered allocator rests on the same fact). Returning a piece to the device must
 * wait for the queue; that is the caller's part (device.cc), so evict() only hands pieces out. Used from the JavaScript thread alone.
 */
#ifndef DIFFIT_BINDING_POOL_H
#define DIFFIT_BINDING_POOL_H

#include <stddef.h>
#include <stdint.h>

#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace diffit {

class Pool {
 public:
  /* Memory of one tensor's buffer, or free; with its neighbours in what the device gave as one piece. */
  struct Block {
    char *data;
    size_t size;
    Block *before = nullptr, *after = nullptr;
    bool isFree = false;
    uint64_t since = 0; /* it is free */
  };

  Pool() = default;
  ~Pool();
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;

  static size_t blockSize(size_t bytes);

  /* A block of this size from what is free, or nullptr. */
  Block *reuse(size_t size);
  /* A block of memory that came from the device. */
  Block *add(void *data, size_t size);
  /* A tensor of so many bytes has a block; gives it back. */
  void addLive(size_t bytes);
  void put(Block *block, size_t bytes);

  /* Takes out pieces that are free as a whole, longest unused first, until `reserved` is at most `target` or none is left. */
  std::vector<void *> evict(size_t target);

  /* What may stay reserved without a limit: sizes that vary (last batches, other resolutions) must not pile up. */
  size_t softLimit() const { return 2 * highWater_ + ((size_t)256 << 20); }

  size_t liveBuffers() const { return liveBuffers_; }
  size_t liveBytes() const { return liveBytes_; }
  size_t reserved() const { return reserved_; }
  size_t peakBytes() const { return peakBytes_; }
  void resetPeak() { peakBytes_ = liveBytes_; }
  size_t limit = 0; /* cap on reserved, 0 for none */

 private:
#if defined(DIFFIT_EXACT_BLOCKS)
  static constexpr bool kExact =
      true; /* a piece of its own, no byte larger, for every size: AddressSanitizer sees its ends */
#else
  static constexpr bool kExact = false;
#endif
  static constexpr size_t kDivisible = kExact ? SIZE_MAX : (size_t)256 << 10;

  struct BySize {
    bool operator()(const Block *a, const Block *b) const {
      return a->size != b->size ? a->size < b->size : a->data < b->data;
    }
  };
  /* Of one size: a heap with the lowest address on top, which costs a tiny operation less than a tree. */
  using Pieces = std::vector<std::pair<char *, Block *>>;

  void merge(Block *left, Block *right);

  std::unordered_map<size_t, Pieces> small_; /* whole pieces below kDivisible */
  std::set<Block *, BySize> divisible_; /* parts of the others, of any size */
  uint64_t clock_ = 0;
  size_t liveBuffers_ = 0, liveBytes_ = 0, reserved_ = 0, peakBytes_ = 0, highWater_ = 0;
};

}  // namespace diffit

#endif
