#include "js.h"

#include <stdarg.h>
#include <stdio.h>

namespace diffit {

const char *codeOf(diffit_status status) {
  switch (status) {
    case DIFFIT_INVALID:
      return "DIFFIT_INVALID";
    case DIFFIT_OUT_OF_MEMORY:
      return "DIFFIT_OUT_OF_MEMORY";
    case DIFFIT_UNSUPPORTED:
      return "DIFFIT_UNSUPPORTED";
    default:
      return "DIFFIT_DEVICE_FAULT";
  }
}

static std::string vformat(const char *format, va_list arguments) {
  char text[1024];
  vsnprintf(text, sizeof text, format, arguments);
  return text;
}

std::string format(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text = vformat(format, arguments);
  va_end(arguments);
  return text;
}

napi_value fail(napi_env env, const char *code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  napi_throw_error(env, code, vformat(format, arguments).c_str());
  va_end(arguments);
  return nullptr;
}

std::string formatBytes(uint64_t bytes) {
  static const char *const kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return format("%d bytes", (int)bytes);
  double value = (double)bytes / 1024;
  int unit = 0;
  for (; value >= 1024 && unit < 4; unit++) value /= 1024;
  return format("%.4g %s", value, kUnits[unit]);
}

bool getNumber(napi_env env, napi_value value, const char *what, double *out) {
  if (napi_get_value_double(env, value, out) == napi_ok) return true;
  fail(env, kBadArgument, "%s must be a number.", what);
  return false;
}

bool getInteger(napi_env env, napi_value value, const char *what, int64_t least, int64_t most, int64_t *out) {
  double number;
  if (!getNumber(env, value, what, &number)) return false;
  if (toInteger(number, out) && *out >= least && *out <= most) return true;
  fail(env, kBadArgument, "%s is %.17g; expected a whole number from %lld to %lld.", what, number, (long long)least,
       (long long)most);
  return false;
}

bool getString(napi_env env, napi_value value, const char *what, std::string *out) {
  size_t length;
  if (napi_get_value_string_utf8(env, value, nullptr, 0, &length) != napi_ok) {
    fail(env, kBadArgument, "%s must be a string.", what);
    return false;
  }
  out->resize(length);
  napi_get_value_string_utf8(env, value, &(*out)[0], length + 1, &length);
  return true;
}

napi_value makeNumber(napi_env env, double value) {
  napi_value result;
  return napi_create_double(env, value, &result) == napi_ok ? result : nullptr;
}

napi_value makeString(napi_env env, const char *text) {
  napi_value result;
  return napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &result) == napi_ok ? result : nullptr;
}

}  // namespace diffit
