#include "block.h"

#include <string.h>

#include <memory>
#include <vector>

#include "fibre.h"

namespace diffit {
namespace emulator {
namespace {

struct Copy {
  void *to;
  const void *from;
  size_t bytes, zeroBytes;
};

struct Thread {
  StackPointer stack = nullptr;
  std::unique_ptr<char[]> memory;
  Index3 index;
  unsigned number = 0;
  bool done = false;
  const char *waitsFor = nullptr; /* nullptr: ready */
  const uint64_t *turn = nullptr; /* of the barrier or warp; ready when it is no longer `seen` */
  uint64_t seen = 0;
  std::vector<std::vector<Copy>> groups; /* of cp.async, oldest first */
  std::vector<Copy> open;
};

struct Barrier {
  unsigned arrived = 0;
  uint64_t turn = 0;
};

/* Two sets of slots take turns: nobody can be two operations ahead of a lane that still reads. */
struct Warp {
  unsigned arrived = 0;
  uint64_t turn = 0;
  const char *what = nullptr;
  alignas(16) char slots[2][kWarp * kSlotBytes];
};

struct Block {
  Index3 index, size, grid;
  unsigned threads = 0;
  const std::function<void()> *kernel = nullptr;
  std::vector<Thread> all;
  std::vector<Warp> warps;
  Barrier barriers[16];
  alignas(128) char shared[kMaxSharedBytes];
  Thread *running = nullptr;
  StackPointer scheduler = nullptr;
  std::string why;
};

thread_local std::unique_ptr<Block> current;

void suspend() {
  Thread *self = current->running;
  switchStack(&self->stack, current->scheduler);
}

/* Body of every fibre. */
void threadMain() {
  (*current->kernel)();
  current->running->done = true;
  for (;;) suspend();
}

void wait(const char *what, const uint64_t *turn) {
  Thread *self = current->running;
  self->waitsFor = what;
  self->turn = turn;
  self->seen = *turn;
  suspend();
  self->waitsFor = nullptr;
}

bool isReady(const Thread &thread) { return !thread.done && (!thread.waitsFor || *thread.turn != thread.seen); }

std::string where(const Block &block, const Thread &thread) {
  auto text = [](Index3 i) {
    return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  };
  return "thread " + text(thread.index) + " of block " + text(block.index);
}

/* Runs the block's threads until all are done; false on a fault. */
bool runBlock(Block &block, bool ascending, size_t sharedBytes) {
  memset(block.shared, 0xff, sharedBytes);
  for (Barrier &b : block.barriers) b = {};
  for (Warp &w : block.warps) w.arrived = 0, w.turn = 0;
  for (unsigned i = 0; i < block.threads; i++) {
    Thread &t = block.all[i];
    t.stack = prepareStack(t.memory.get(), kStackBytes, threadMain);
    t.done = false;
    t.waitsFor = nullptr;
    t.groups.clear();
    t.open.clear();
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (unsigned k = 0; k < block.threads; k++) {
      Thread &t = block.all[ascending ? k : block.threads - 1 - k];
      if (!isReady(t)) continue;
      progress = true;
      block.running = &t;
      switchStack(&block.scheduler, t.stack);
      if (!block.why.empty()) return false;
    }
  }
  for (unsigned i = 0; i < block.threads; i++) {
    const Thread &t = block.all[i];
    if (t.done) continue;
    block.why = where(block, t) + " waits at " + t.waitsFor + " for threads that never come";
    return false;
  }
  return true;
}

void prepare(Block &block, Index3 grid, Index3 size) {
  block.grid = grid;
  block.size = size;
  block.threads = size.x * size.y * size.z;
  block.why.clear();
  if (block.all.size() < block.threads) block.all.resize(block.threads);
  block.warps.resize((block.threads + kWarp - 1) / kWarp);
  for (unsigned i = 0; i < block.threads; i++) {
    Thread &t = block.all[i];
    if (!t.memory) t.memory.reset(new char[kStackBytes]);
    t.number = i;
    t.index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
  }
}

}  // namespace

bool runGrid(Index3 grid, Index3 block, size_t sharedBytes, const std::function<void()> &kernel, std::string *why) {
  const uint64_t threads = (uint64_t)block.x * block.y * block.z;
  const bool fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x <= 0x7fffffffu && grid.y <= 65535 &&
                    grid.z <= 65535 && threads >= 1 && threads <= kMaxThreads && block.z <= 64 &&
                    sharedBytes <= kMaxSharedBytes;
  if (!fits) {
    *why = "invalid launch: grid " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
           std::to_string(grid.z) + ", " + std::to_string(threads) + " threads, " + std::to_string(sharedBytes) +
           " bytes of shared memory";
    return false;
  }
  if (!current) current.reset(new Block);
  Block &b = *current;
  prepare(b, grid, block);
  b.kernel = &kernel;
  uint64_t number = 0;
  for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
      for (unsigned x = 0; x < grid.x; x++) {
        b.index = {x, y, z};
        if (!runBlock(b, number++ % 2 == 0, sharedBytes)) {
          *why = b.why;
          return false;
        }
      }
  return true;
}

const Index3 &threadIndex() { return current->running->index; }
const Index3 &blockIndex() { return current->index; }
const Index3 &blockSize() { return current->size; }
const Index3 &gridSize() { return current->grid; }
int lane() { return (int)(current->running->number % kWarp); }
void *sharedBytes() { return current->shared; }

void barrier(int id, unsigned threads) {
  Block &block = *current;
  Barrier &b = block.barriers[id];
  if (++b.arrived < (threads ? threads : block.threads)) {
    wait("a barrier", &b.turn);
    return;
  }
  b.arrived = 0;
  b.turn++;
}

const char *exchange(const char *what, const void *value, size_t bytes) {
  Block &block = *current;
  Warp &w = block.warps[block.running->number / kWarp];
  if (bytes > kSlotBytes) fault("a warp operation of more than " + std::to_string(kSlotBytes) + " bytes");
  if (w.arrived == 0)
    w.what = what;
  else if (strcmp(w.what, what) != 0)
    fault(where(block, *block.running) + " is at " + what + ", its warp at " + w.what);
  char *slots = w.slots[w.turn % 2];
  memcpy(slots + lane() * kSlotBytes, value, bytes);
  const unsigned first = block.running->number / kWarp * kWarp;
  const unsigned lanes = block.threads - first < kWarp ? block.threads - first : kWarp;
  if (++w.arrived < lanes) {
    wait(what, &w.turn);
  } else {
    w.arrived = 0;
    w.turn++;
  }
  return slots;
}

void copyLater(void *to, const void *from, size_t bytes, size_t zeroBytes) {
  current->running->open.push_back({to, from, bytes, zeroBytes});
}

void commitCopies() {
  Thread &self = *current->running;
  self.groups.push_back(std::move(self.open));
  self.open.clear();
}

void waitCopies(int pending) {
  Thread &self = *current->running;
  while ((int)self.groups.size() > pending) {
    for (const Copy &c : self.groups.front()) {
      if (c.bytes) memcpy(c.to, c.from, c.bytes);
      memset((char *)c.to + c.bytes, 0, c.zeroBytes);
    }
    self.groups.erase(self.groups.begin());
  }
}

void fault(const std::string &why) {
  current->why = why;
  for (;;) suspend();
}

}  // namespace emulator
}  // namespace diffit
