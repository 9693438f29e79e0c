/*
 * Small helpers around N-API: numbers out of JavaScript values, and errors with a code.
 * A function that returns false or nullptr here has left a JavaScript exception pending.
 */
#ifndef DIFFIT_BINDING_JS_H
#define DIFFIT_BINDING_JS_H

#include <node_api.h>
#include <stdint.h>

#include <string>

#include "../abi/diffit.h"

namespace diffit {

/* The values of `error.code`. */
constexpr const char kBadArgument[] = "DIFFIT_BAD_ARGUMENT";
constexpr const char kStaleId[] = "DIFFIT_STALE_ID";
constexpr const char kNoDevice[] = "DIFFIT_NO_DEVICE";
const char *codeOf(diffit_status status);

/* Throws an Error with `code` and a printf-style sentence; returns nullptr, the value of a call that throws. */
napi_value fail(napi_env env, const char *code, const char *format, ...) __attribute__((format(printf, 3, 4)));

std::string format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "1.5 MiB" */
std::string formatBytes(uint64_t bytes);

/* The arguments of one call; those not given are undefined. */
template <size_t count>
struct Arguments {
  size_t given = count;
  napi_value values[count];
  void *data = nullptr;

  Arguments(napi_env env, napi_callback_info info) { napi_get_cb_info(env, info, &given, values, nullptr, &data); }
  napi_value operator[](size_t i) const { return values[i]; }
};

/* A whole number of magnitude below 2^53. */
inline bool toInteger(double number, int64_t *out) {
  constexpr double kLimit = 9007199254740992.0;
  if (!(number > -kLimit && number < kLimit)) return false;
  *out = (int64_t)number;
  return (double)*out == number;
}

/* `what` names the function and the argument in the error: "alloc: the dtype". */
bool getNumber(napi_env env, napi_value value, const char *what, double *out);
bool getInteger(napi_env env, napi_value value, const char *what, int64_t least, int64_t most, int64_t *out);
bool getString(napi_env env, napi_value value, const char *what, std::string *out);

napi_value makeNumber(napi_env env, double value);
napi_value makeString(napi_env env, const char *text);

}  // namespace diffit

#endif
