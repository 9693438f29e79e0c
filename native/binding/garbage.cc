#include "garbage.h"

#include "environment.h"
#include "js.h"

namespace diffit {

int64_t Garbage::watch(napi_env env, napi_value object) {
  napi_ref reference;
  if (napi_create_reference(env, object, 0, &reference) != napi_ok) {
    fail(env, kBadArgument, "watch: expected an object.");
    return -1;
  }
  if (free_.empty()) {
    watched_.push_back(reference);
    return (int64_t)watched_.size() - 1;
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  watched_[slot] = reference;
  return slot;
}

void Garbage::unwatch(napi_env env, size_t slot) {
  if (slot >= watched_.size() || !watched_[slot]) return;
  napi_delete_reference(env, watched_[slot]);
  watched_[slot] = nullptr;
  free_.push_back((uint32_t)slot);
}

/* Told of external memory far beyond what its heap may grow to, V8 collects all garbage before it returns; the only way to ask for that
   which needs no flag. What it was told is taken back at once. */
std::vector<uint32_t> Garbage::collect(napi_env env) {
  constexpr int64_t kFarTooMuch = (int64_t)1 << 46;
  int64_t total;
  napi_adjust_external_memory(env, kFarTooMuch, &total);
  napi_adjust_external_memory(env, -kFarTooMuch, &total);
  std::vector<uint32_t> gone;
  for (size_t slot = 0; slot < watched_.size(); slot++) {
    if (!watched_[slot]) continue;
    napi_handle_scope scope;
    napi_open_handle_scope(env, &scope);
    napi_value object = nullptr;
    const bool known = napi_get_reference_value(env, watched_[slot], &object) == napi_ok;
    napi_close_handle_scope(env, scope);
    if (!known || object) continue;
    unwatch(env, slot);
    gone.push_back((uint32_t)slot);
  }
  return gone;
}

namespace {

Garbage &garbageOf(void *data) { return static_cast<Environment *>(data)->garbage; }

/* watch(object): slot */
napi_value watch(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  const int64_t slot = garbageOf(arguments.data).watch(env, arguments[0]);
  return slot < 0 ? nullptr : makeNumber(env, (double)slot);
}

/* unwatch(slot) */
napi_value unwatch(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  int64_t slot;
  if (getInteger(env, arguments[0], "unwatch: the slot", 0, UINT32_MAX, &slot)) {
    garbageOf(arguments.data).unwatch(env, (size_t)slot);
  }
  return nullptr;
}

/* collectGarbage(): slots */
napi_value collectGarbage(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  napi_value result;
  napi_create_array(env, &result);
  uint32_t i = 0;
  for (const uint32_t slot : garbageOf(arguments.data).collect(env)) {
    napi_set_element(env, result, i++, makeNumber(env, slot));
  }
  return result;
}

}  // namespace

bool addGarbageFunctions(napi_env env, Environment *environment, napi_value exports) {
  const napi_property_descriptor methods[] = {
      method("watch", watch, environment),
      method("unwatch", unwatch, environment),
      method("collectGarbage", collectGarbage, environment),
  };
  return napi_define_properties(env, exports, sizeof methods / sizeof methods[0], methods) == napi_ok;
}

}  // namespace diffit
