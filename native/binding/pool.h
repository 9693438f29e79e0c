/*
 * The caching pool over a backend's raw memory: which blocks are free, and the books.
 *
 * Sizes are rounded up to classes (8 per power of two; whole 2 MiB from 16 MiB on: at most 12.5 % waste) and a free
 * block serves requests of its own class only, the one at the lowest address first: where tensors lie then follows from which are
 * live, not from what was freed in which order, and a loop comes back to the same addresses after a turn or two (replay.h). A block is free at once when its last tensor is released: everything
 * that still uses it was enqueued earlier on the same ordered queue (PyTorch's stream-ordered allocator rests on the
 * same fact). Returning a block to the device must wait for the queue; that is the caller's part (device.cc), so
 * evict() only hands blocks out. Used from the JavaScript thread alone.
 */
#ifndef DIFFIT_BINDING_POOL_H
#define DIFFIT_BINDING_POOL_H

#include <stddef.h>
#include <stdint.h>

#include <map>
#include <vector>

namespace diffit {

class Pool {
 public:
  static size_t blockSize(size_t bytes);

  /* A free block of exactly this class, or nullptr. */
  void *reuse(size_t block);
  /* Books for a block that came from the device, or went to a tensor or back. */
  void addReserved(size_t block) { reserved_ += block; }
  void addLive(size_t bytes);
  void put(void *data, size_t block, size_t bytes);
  /* A tensor's block went straight back to the device. */
  void lose(size_t block, size_t bytes);

  /* Takes free blocks out, longest unused first, until `reserved` is at most `target` or none is left. */
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
  using FreeBlocks = std::map<void *, uint64_t>; /* and since when */
  std::map<size_t, FreeBlocks> free_; /* by class */
  uint64_t clock_ = 0;
  size_t liveBuffers_ = 0, liveBytes_ = 0, reserved_ = 0, peakBytes_ = 0, highWater_ = 0;
};

}  // namespace diffit

#endif
