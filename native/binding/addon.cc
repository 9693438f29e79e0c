/*
 * Registration: what `require` of the addon gives. Its type is NativeAddon in lib/native.ts.
 */
#include <node_api.h>

#include "environment.h"
#include "js.h"

NAPI_MODULE_INIT() {
  using namespace diffit;
  Environment *environment = Environment::create(env);
  if (!environment) return fail(env, "DIFFIT_NO_ADDON", "Node gave the addon no place for its state.");
  if (napi_set_named_property(env, exports, "abiVersion", makeNumber(env, DIFFIT_ABI_VERSION)) != napi_ok ||
      !addDeviceFunctions(env, environment, exports) || !addTensorFunctions(env, environment, exports) ||
      !addGarbageFunctions(env, environment, exports) || !addStatistics(env, environment, exports) ||
      !addOperations(env, environment, exports)) {
    return nullptr;
  }
  return exports;
}
