/*
 * Objects that nobody holds any more, found at once instead of when the collector's own callbacks get their turn.
 *
 * JavaScript tells of an object that was collected in a later turn of the event loop (FinalizationRegistry), and collects when it sees a
 * reason to. Memory that runs out in between would be an error although most of it is garbage, so what owns device memory is watched with a
 * weak reference, and collect(), called then and only then, has V8 collect everything and tells which references have become empty.
 */
#ifndef DIFFIT_BINDING_GARBAGE_H
#define DIFFIT_BINDING_GARBAGE_H

#include <node_api.h>
#include <stdint.h>

#include <vector>

namespace diffit {

class Garbage {
 public:
  /* A slot for the object; -1 and a pending exception where it is no object. */
  int64_t watch(napi_env env, napi_value object);
  void unwatch(napi_env env, size_t slot);
  /* Collects, and lets go of the slots whose objects are gone. */
  std::vector<uint32_t> collect(napi_env env);

 private:
  std::vector<napi_ref> watched_; /* nullptr: a free slot */
  std::vector<uint32_t> free_;
};

}  // namespace diffit

#endif
