#include "handles.h"

namespace diffit {

double Handles::add(const diffit_tensor &tensor, int64_t bytes, Buffer *buffer) {
  uint32_t slot = firstFree_;
  if (slot == kNone) {
    if (views_.size() == kSlots) return 0;
    slot = (uint32_t)views_.size();
    views_.push_back({tensor, bytes, buffer, 1, kNone});
  } else {
    View &view = views_[slot];
    firstFree_ = view.nextFree;
    view.tensor = tensor;
    view.bytes = bytes;
    view.buffer = buffer;
  }
  buffer->views++;
  const uint64_t generation = views_[slot].generation;
  return (double)((generation * kTags + tag_) * kSlots + slot);
}

Buffer *Handles::remove(View *view) {
  Buffer *buffer = view->buffer;
  view->buffer = nullptr;
  if (++view->generation < kGenerations) { /* a slot whose generations are used up is never used again */
    view->nextFree = firstFree_;
    firstFree_ = (uint32_t)(view - views_.data());
  }
  return --buffer->views == 0 ? buffer : nullptr;
}

}  // namespace diffit
