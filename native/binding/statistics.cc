/*
 * Statistics in f64 for lib/metrics (native/abi/statistics.h): on the queue of a CPU device, over the memory of typed arrays, which the
 * promise keeps alive and JavaScript must leave alone until it settles.
 */
#include <string.h>

#include "../abi/statistics.h"
#include "environment.h"
#include "js.h"

namespace diffit {
namespace {

template <class Call>
struct StatisticsJob final : Job {
  Device *device;
  const char *name;
  Call call;
  std::unique_ptr<Completion> completion;
  StatisticsJob(Device *d, const char *n, const Call &c, std::unique_ptr<Completion> done)
      : device(d), name(n), call(c), completion(std::move(done)) {}
  void run(Executor &executor) override {
    executor.check(call(diffit_cpu_statistics(executor.context), executor.context), name);
    device->settle(std::move(completion), executor);
  }
};

/* A typed array of `type` with `length` elements; f32 or f64 for rows. */
struct Array {
  void *data = nullptr;
  size_t length = 0;
  napi_typedarray_type type = napi_uint8_array;
};

bool getArray(napi_env env, napi_value value, const char *what, Array *out) {
  bool matches = false;
  napi_value owner;
  size_t offset;
  if (napi_is_typedarray(env, value, &matches) == napi_ok && matches &&
      napi_get_typedarray_info(env, value, &out->type, &out->length, &out->data, &owner, &offset) == napi_ok) {
    return true;
  }
  fail(env, kBadArgument, "%s must be a typed array.", what);
  return false;
}

template <class T>
bool getElements(napi_env env, napi_value value, const char *what, size_t length, T **out) {
  constexpr napi_typedarray_type expected = sizeof(T) == 8 ? napi_float64_array : napi_uint8_array;
  Array array;
  if (!getArray(env, value, what, &array)) return false;
  *out = (T *)array.data;
  if (array.type == expected && array.length == length) return true;
  fail(env, kBadArgument, "%s must have %zu elements of %zu bytes.", what, length, sizeof(T));
  return false;
}

bool getRows(napi_env env, napi_value value, const char *what, int64_t width, diffit_rows *out) {
  Array array;
  if (!getArray(env, value, what, &array)) return false;
  const bool isF32 = array.type == napi_float32_array;
  *out = {array.data, (int64_t)array.length / width, width, isF32};
  if ((isF32 || array.type == napi_float64_array) && array.length > 0 && array.length % (size_t)width == 0) return true;
  fail(env, kBadArgument, "%s must be rows of %lld elements, f32 or f64.", what, (long long)width);
  return false;
}

/* A CPU device; its queue's context runs the statistics. */
Device *getProcessor(napi_env env, void *data, napi_value value, const char *what) {
  Device *device = getDevice(env, *static_cast<Environment *>(data), value, what);
  if (!device || strcmp(device->backendName(), "cpu") == 0) return device;
  fail(env, codeOf(DIFFIT_UNSUPPORTED), "%s: %s computes no statistics.", what, device->name().c_str());
  return nullptr;
}

/* Adds the job; the promise resolves with the call's arguments, which stay alive until then. */
template <size_t count, class Call>
napi_value enqueue(napi_env env, Device *device, const char *name, const Arguments<count> &arguments,
                   const Call &call) {
  napi_value kept, promise;
  if (napi_create_array_with_length(env, count, &kept) != napi_ok) return nullptr;
  for (uint32_t i = 0; i < count; i++) napi_set_element(env, kept, i, arguments[i]);
  std::unique_ptr<Completion> completion = device->promise(kept, &promise);
  if (!completion) return nullptr;
  device->queue().add(StatisticsJob<Call>(device, name, call, std::move(completion)));
  return promise;
}

/* mergeRows(device, rows, width, before, mean, scatter): Promise */
napi_value mergeRows(napi_env env, napi_callback_info info) {
  Arguments<6> arguments(env, info);
  Device *device = getProcessor(env, arguments.data, arguments[0], "mergeRows: the device");
  int64_t width, before;
  diffit_rows rows;
  double *mean, *scatter;
  if (!device || !getInteger(env, arguments[2], "mergeRows: the width", 1, INT32_MAX, &width) ||
      !getRows(env, arguments[1], "mergeRows: rows", width, &rows) ||
      !getInteger(env, arguments[3], "mergeRows: the number of rows before", 0, INT64_MAX, &before) ||
      !getElements(env, arguments[4], "mergeRows: mean", (size_t)width, &mean) ||
      !getElements(env, arguments[5], "mergeRows: scatter", (size_t)(width * width), &scatter)) {
    return nullptr;
  }
  return enqueue(env, device, "mergeRows", arguments, [=](const diffit_statistics *of, diffit_context *context) {
    return of->merge_rows(context, &rows, before, mean, scatter);
  });
}

/* nearest(device, a, b, width, k, nearestA, nearestB or undefined): Promise */
napi_value nearest(napi_env env, napi_callback_info info) {
  Arguments<7> arguments(env, info);
  Device *device = getProcessor(env, arguments.data, arguments[0], "nearest: the device");
  int64_t width, k;
  diffit_rows a, b;
  double *nearestA, *nearestB = nullptr;
  napi_valuetype type;
  if (!device || !getInteger(env, arguments[3], "nearest: the width", 1, INT32_MAX, &width) ||
      !getInteger(env, arguments[4], "nearest: k", 1, INT32_MAX, &k) ||
      !getRows(env, arguments[1], "nearest: a", width, &a) || !getRows(env, arguments[2], "nearest: b", width, &b) ||
      !getElements(env, arguments[5], "nearest: nearestA", (size_t)(a.count * k), &nearestA) ||
      napi_typeof(env, arguments[6], &type) != napi_ok ||
      (type != napi_undefined &&
       !getElements(env, arguments[6], "nearest: nearestB", (size_t)(b.count * k), &nearestB))) {
    return nullptr;
  }
  return enqueue(env, device, "nearest", arguments, [=](const diffit_statistics *of, diffit_context *context) {
    return of->nearest(context, &a, &b, k, nearestA, nearestB);
  });
}

/* within(device, a, b, width, radiiA, radiiB, aInB, bInA): Promise */
napi_value within(napi_env env, napi_callback_info info) {
  Arguments<8> arguments(env, info);
  Device *device = getProcessor(env, arguments.data, arguments[0], "within: the device");
  int64_t width;
  diffit_rows a, b;
  double *radiiA, *radiiB;
  uint8_t *aInB, *bInA;
  if (!device || !getInteger(env, arguments[3], "within: the width", 1, INT32_MAX, &width) ||
      !getRows(env, arguments[1], "within: a", width, &a) || !getRows(env, arguments[2], "within: b", width, &b) ||
      !getElements(env, arguments[4], "within: radiiA", (size_t)a.count, &radiiA) ||
      !getElements(env, arguments[5], "within: radiiB", (size_t)b.count, &radiiB) ||
      !getElements(env, arguments[6], "within: aInB", (size_t)a.count, &aInB) ||
      !getElements(env, arguments[7], "within: bInA", (size_t)b.count, &bInA)) {
    return nullptr;
  }
  return enqueue(env, device, "within", arguments, [=](const diffit_statistics *of, diffit_context *context) {
    return of->within(context, &a, &b, radiiA, radiiB, aInB, bInA);
  });
}

/* traceSqrt(device, a, b, width, out): Promise; overwrites a and b */
napi_value traceSqrt(napi_env env, napi_callback_info info) {
  Arguments<5> arguments(env, info);
  Device *device = getProcessor(env, arguments.data, arguments[0], "traceSqrt: the device");
  int64_t width;
  double *a, *b, *out;
  if (!device || !getInteger(env, arguments[3], "traceSqrt: the width", 1, INT32_MAX, &width) ||
      !getElements(env, arguments[1], "traceSqrt: a", (size_t)(width * width), &a) ||
      !getElements(env, arguments[2], "traceSqrt: b", (size_t)(width * width), &b) ||
      !getElements(env, arguments[4], "traceSqrt: the result", 1, &out)) {
    return nullptr;
  }
  return enqueue(env, device, "traceSqrt", arguments, [=](const diffit_statistics *of, diffit_context *context) {
    return of->trace_sqrt(context, a, b, width, out);
  });
}

}  // namespace

bool addStatistics(napi_env env, Environment *environment, napi_value exports) {
  const napi_property_descriptor methods[] = {
      method("mergeRows", mergeRows, environment),
      method("nearest", nearest, environment),
      method("within", within, environment),
      method("traceSqrt", traceSqrt, environment),
  };
  napi_value statistics;
  return napi_create_object(env, &statistics) == napi_ok &&
         napi_define_properties(env, statistics, sizeof methods / sizeof methods[0], methods) == napi_ok &&
         napi_set_named_property(env, exports, "statistics", statistics) == napi_ok;
}

}  // namespace diffit
