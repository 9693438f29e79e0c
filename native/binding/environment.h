/*
 * The addon's state in one JavaScript environment (the main thread or a worker): nothing is shared between them.
 */
#ifndef DIFFIT_BINDING_ENVIRONMENT_H
#define DIFFIT_BINDING_ENVIRONMENT_H

#include <node_api.h>

#include <memory>
#include <vector>

#include "device.h"
#include "garbage.h"
#include "handles.h"

namespace diffit {

struct Environment {
  Handles handles;
  Garbage garbage;
  std::vector<std::unique_ptr<Device>> devices; /* id i + 1 is the i-th that was opened */

  /* Made once per environment, destroyed with it. */
  static Environment *create(napi_env env);

 private:
  Environment();
};

/* Both throw and return nullptr where the value is not a device / tensor of this environment; `what` as in js.h. */
Device *getDevice(napi_env env, Environment &environment, napi_value value, const char *what);
View *getView(napi_env env, Environment &environment, napi_value value, const char *what);

/* Adds the functions of devices.cc and tensors.cc, and `statistics`, to the addon's object. */
bool addDeviceFunctions(napi_env env, Environment *environment, napi_value exports);
bool addTensorFunctions(napi_env env, Environment *environment, napi_value exports);
/* Adds the functions of garbage.cc. */
bool addGarbageFunctions(napi_env env, Environment *environment, napi_value exports);
bool addStatistics(napi_env env, Environment *environment, napi_value exports);
/* Adds `ops` and `opNames`. */
bool addOperations(napi_env env, Environment *environment, napi_value exports);

/* A method whose `data` is the environment. */
inline napi_property_descriptor method(const char *name, napi_callback callback, Environment *environment) {
  return {name, nullptr, callback, nullptr, nullptr, nullptr, napi_enumerable, environment};
}

}  // namespace diffit

#endif
