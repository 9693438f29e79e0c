/*
 * The table that gives tensors their numbers. An id is a whole number below 2^53, so it crosses to JavaScript without
 * an object: slot (22 bits), tag of the environment (7 bits), generation of the slot (24 bits, never 0). A released id,
 * one of another worker, or any other number is not found; it cannot reach another tensor.
 */
#ifndef DIFFIT_BINDING_HANDLES_H
#define DIFFIT_BINDING_HANDLES_H

#include <vector>

#include "../abi/diffit.h"
#include "pool.h"

namespace diffit {

class Device;

/* Device memory that one or more tensors look into. */
struct Buffer {
  Device *device;
  Pool::Block *block;
  size_t bytes; /* asked for */
  uint32_t views;
  size_t index; /* in the device's list of buffers */
  diffit_tensor first; /* what it was made for */
  const char *maker; /* the operation that wrote it first; nullptr: none yet */
};

struct View {
  diffit_tensor tensor;
  int64_t bytes;
  Buffer *buffer; /* nullptr: the slot is free */
  uint32_t generation;
  uint32_t nextFree;
};

class Handles {
 public:
  explicit Handles(uint32_t environment) : tag_(environment % kTags) {}

  /* A new id; 0 when there are too many (4 million). Counts a view on the buffer. */
  double add(const diffit_tensor &tensor, int64_t bytes, Buffer *buffer);
  /* nullptr for an id that is not (or no longer) ours; valid until the next add. */
  View *find(double id);
  /* The view's buffer when this was its last view, else nullptr. */
  Buffer *remove(View *view);

 private:
  static constexpr uint32_t kSlots = 1u << 22, kTags = 1u << 7, kGenerations = 1u << 24;
  static constexpr uint32_t kNone = ~0u;
  const uint32_t tag_;
  uint32_t firstFree_ = kNone;
  std::vector<View> views_;
};

inline View *Handles::find(double id) {
  if (!(id >= 1 && id < 9007199254740992.0)) return nullptr;
  const uint64_t bits = (uint64_t)id;
  const uint64_t slot = bits % kSlots, tag = bits / kSlots % kTags, generation = bits / kSlots / kTags;
  if ((double)bits != id || slot >= views_.size() || tag != tag_) return nullptr;
  View *view = &views_[slot];
  return view->buffer && view->generation == generation ? view : nullptr;
}

}  // namespace diffit

#endif
