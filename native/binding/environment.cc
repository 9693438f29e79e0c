#include "environment.h"

#include <atomic>

#include "js.h"

namespace diffit {

static std::atomic<uint32_t> environmentsMade{0};

Environment::Environment() : handles(environmentsMade.fetch_add(1)) {}

Environment *Environment::create(napi_env env) {
  Environment *environment = new Environment;
  const auto destroy = [](napi_env, void *data, void *) { delete static_cast<Environment *>(data); };
  if (napi_set_instance_data(env, environment, destroy, nullptr) == napi_ok) return environment;
  delete environment;
  return nullptr;
}

Device *getDevice(napi_env env, Environment &environment, napi_value value, const char *what) {
  double id;
  if (!getNumber(env, value, what, &id)) return nullptr;
  int64_t index;
  if (toInteger(id, &index) && index >= 1 && (size_t)index <= environment.devices.size()) {
    return environment.devices[(size_t)index - 1].get();
  }
  fail(env, kBadArgument, "%s is %.17g, which is no open device.", what, id);
  return nullptr;
}

View *getView(napi_env env, Environment &environment, napi_value value, const char *what) {
  double id;
  if (!getNumber(env, value, what, &id)) return nullptr;
  View *view = environment.handles.find(id);
  if (!view) fail(env, kStaleId, "%s is %.17g, which is no tensor: released, or of another thread.", what, id);
  return view;
}

}  // namespace diffit
