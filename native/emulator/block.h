/*
 * One CUDA block on one host thread: its threads are fibres that run until they meet a barrier or a warp operation.
 *
 * Blocks run one after another. Threads of even blocks run in ascending order and those of odd blocks in descending
 * order, shared memory starts filled with NaN, and a copy by cp.async happens only when it is waited for: so a missing barrier or wait gives a wrong
 * result in one block or the other. A thread that waits for one that will never come is a fault, with a sentence.
 */
#ifndef DIFFIT_EMULATOR_BLOCK_H
#define DIFFIT_EMULATOR_BLOCK_H

#include <stddef.h>
#include <stdint.h>

#include <functional>
#include <string>

namespace diffit {
namespace emulator {

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

/* Most of what a block may have; the numbers of sm_80 to sm_90. */
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kMaxSharedBytes = 227 << 10;
constexpr int kWarp = 32;
/* Bytes a lane may show the others in one warp operation. */
constexpr size_t kSlotBytes = 64;

/* Runs kernel() for every thread of every block. Returns false and a sentence in *why on a fault. */
bool runGrid(Index3 grid, Index3 block, size_t sharedBytes, const std::function<void()> &kernel, std::string *why);

/* ---- for the thread that is running -------------------------------------------------------------------------- */

const Index3 &threadIndex();
const Index3 &blockIndex();
const Index3 &blockSize();
const Index3 &gridSize();
int lane();
/* The block's dynamic shared memory. */
void *sharedBytes();

/* Waits until `threads` threads (0: all of the block) have come to barrier `id` (0 to 15). */
void barrier(int id = 0, unsigned threads = 0);

/* Every lane of the warp shows `bytes` bytes; returns the slots of all 32, kSlotBytes apart, once all have come. `what` must
   be the same for all: a warp whose lanes meet in different operations is a fault. Valid until the lane's next warp operation. */
const char *exchange(const char *what, const void *value, size_t bytes);

/* cp.async: remembers a copy (source null: zeros), closes a group of them, and makes all but the newest `pending` groups happen. */
void copyLater(void *to, const void *from, size_t bytes, size_t zeroBytes);
void commitCopies();
void waitCopies(int pending);

/* Ends the kernel with a sentence; the launch fails. */
[[noreturn]] void fault(const std::string &why);

}  // namespace emulator
}  // namespace diffit

#endif
