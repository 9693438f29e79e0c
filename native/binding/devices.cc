/*
 * The functions about devices: opening them, what they are, their memory, the time they take.
 */
#include <string.h>

#include "environment.h"
#include "js.h"

extern "C" double diffit_cpu_peak(diffit_context *, int dot, int alone);

namespace diffit {
namespace {

Environment &environmentOf(void *data) { return *static_cast<Environment *>(data); }

/* openDevice(spec, libraryPath, threads): DeviceId */
napi_value openDevice(napi_env env, napi_callback_info info) {
  Arguments<3> arguments(env, info);
  Environment &environment = environmentOf(arguments.data);
  std::string text, library, why;
  int64_t threads;
  if (!getString(env, arguments[0], "openDevice: the device", &text) ||
      !getString(env, arguments[1], "openDevice: the library's path", &library) ||
      !getInteger(env, arguments[2], "openDevice: the number of threads", 0, INT32_MAX, &threads)) {
    return nullptr;
  }
  DeviceSpec spec;
  if (!parseSpec(text, &spec, &why)) return fail(env, kNoDevice, "%s", why.c_str());
  auto &devices = environment.devices;
  for (size_t i = 0; i < devices.size(); i++) {
    if (devices[i]->name() == spec.name) return makeNumber(env, (double)(i + 1));
  }
  const diffit_backend *backend = findBackend(spec, library, &why);
  if (!backend) return fail(env, kNoDevice, "%s", why.c_str());
  std::unique_ptr<Device> device = Device::open(env, spec, backend, (int32_t)threads);
  if (!device) return nullptr;
  devices.push_back(std::move(device));
  return makeNumber(env, (double)devices.size());
}

/* deviceInfo(device): NativeDeviceInfo */
napi_value deviceInfo(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  const Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "deviceInfo: the device");
  if (!device) return nullptr;
  const diffit_device_info about = device->info();
  napi_value result;
  napi_create_object(env, &result);
  napi_set_named_property(env, result, "backend", makeString(env, device->backendName()));
  napi_set_named_property(env, result, "name", makeString(env, about.name));
  napi_set_named_property(env, result, "variant", makeString(env, about.variant));
  napi_set_named_property(env, result, "threads", makeNumber(env, about.threads));
  napi_set_named_property(env, result, "memory", makeNumber(env, (double)about.memory));
  return result;
}

/* countDevices(spec, libraryPath): number */
napi_value countThem(napi_env env, napi_callback_info info) {
  Arguments<2> arguments(env, info);
  std::string text, library, why;
  if (!getString(env, arguments[0], "countDevices: the device", &text) ||
      !getString(env, arguments[1], "countDevices: the library's path", &library)) {
    return nullptr;
  }
  DeviceSpec spec;
  if (!parseSpec(text, &spec, &why)) return fail(env, kNoDevice, "%s", why.c_str());
  return makeNumber(env, countDevices(spec, library));
}

/* cpuVariants(): string[] */
napi_value listCpuVariants(napi_env env, napi_callback_info) {
  napi_value result;
  napi_create_array(env, &result);
  uint32_t i = 0;
  for (const char *name : cpuVariants()) napi_set_element(env, result, i++, makeString(env, name));
  return result;
}

/* memory(device): NativeMemory */
napi_value memory(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "memory: the device");
  if (!device) return nullptr;
  const Pool &pool = device->pool();
  const struct {
    const char *name;
    uint64_t value;
  } fields[] = {
      {"liveBuffers", pool.liveBuffers()}, {"liveBytes", pool.liveBytes()}, {"reservedBytes", pool.reserved()},
      {"peakBytes", pool.peakBytes()},     {"limitBytes", pool.limit},      {"queued", device->queue().pending()},
  };
  napi_value result;
  napi_create_object(env, &result);
  for (const auto &field : fields) {
    napi_set_named_property(env, result, field.name, makeNumber(env, (double)field.value));
  }
  int64_t freeBytes, totalBytes;
  if (device->deviceMemory(&freeBytes, &totalBytes)) {
    napi_set_named_property(env, result, "deviceFreeBytes", makeNumber(env, (double)freeBytes));
    napi_set_named_property(env, result, "deviceTotalBytes", makeNumber(env, (double)totalBytes));
  }
  return result;
}

/* memoryOwners(device, most): NativeOwner[] */
napi_value memoryOwners(napi_env env, napi_callback_info info) {
  Arguments<2> arguments(env, info);
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "memoryOwners: the device");
  int64_t most;
  if (!device || !getInteger(env, arguments[1], "memoryOwners: how many", 0, INT32_MAX, &most)) return nullptr;
  napi_value result;
  napi_create_array(env, &result);
  uint32_t i = 0;
  for (const Device::Owner &owner : device->owners((size_t)most)) {
    const diffit_tensor &tensor = owner.example->first;
    napi_value entry, shape;
    napi_create_object(env, &entry);
    napi_create_array(env, &shape);
    for (int axis = 0; axis < tensor.ndim; axis++) {
      napi_set_element(env, shape, (uint32_t)axis, makeNumber(env, (double)tensor.shape[axis]));
    }
    napi_set_named_property(env, entry, "op", makeString(env, owner.example->maker ? owner.example->maker : ""));
    napi_set_named_property(env, entry, "dtype", makeNumber(env, tensor.dtype));
    napi_set_named_property(env, entry, "shape", shape);
    napi_set_named_property(env, entry, "count", makeNumber(env, (double)owner.count));
    napi_set_named_property(env, entry, "bytes", makeNumber(env, (double)owner.bytes));
    napi_set_element(env, result, i++, entry);
  }
  return result;
}

/* resetPeak(device) */
napi_value resetPeak(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "resetPeak: the device");
  if (device) device->pool().resetPeak();
  return nullptr;
}

/* setMemoryLimit(device, bytes) */
napi_value setMemoryLimit(napi_env env, napi_callback_info info) {
  Arguments<2> arguments(env, info);
  int64_t bytes;
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "setMemoryLimit: the device");
  if (device && getInteger(env, arguments[1], "setMemoryLimit: the limit", 0, INT64_MAX, &bytes)) {
    device->setMemoryLimit((size_t)bytes);
  }
  return nullptr;
}

/* trim(device) */
napi_value trim(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "trim: the device");
  if (device) device->trim();
  return nullptr;
}

/* Resolves with nothing when the queue has reached it. */
struct SynchronizeJob final : Job {
  Device *device;
  std::unique_ptr<Completion> completion;
  SynchronizeJob(Device *d, std::unique_ptr<Completion> c) : device(d), completion(std::move(c)) {}
  void run(Executor &executor) override {
    const diffit_backend *backend = executor.backend;
    constexpr int32_t kMark = DIFFIT_MARKS - 1; /* lib/device.ts leaves it to us */
    if (backend->mark) {
      double nothing;
      executor.check(backend->mark(executor.context, kMark), "synchronize");
      executor.check(backend->elapsed(executor.context, kMark, kMark, &nothing), "synchronize");
    }
    device->settle(std::move(completion), executor);
  }
};

/* synchronize(device): Promise<void> */
napi_value synchronize(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "synchronize: the device");
  if (!device) return nullptr;
  napi_value promise;
  std::unique_ptr<Completion> completion = device->promise(nullptr, &promise);
  if (!completion) return nullptr;
  device->queue().add(SynchronizeJob(device, std::move(completion)));
  return promise;
}

/* ---- marks ------------------------------------------------------------------------------------ */

constexpr const char kNoMarks[] = "this device has no marks";

struct MarkJob final : Job {
  int32_t slot;
  explicit MarkJob(int32_t s) : slot(s) {}
  void run(Executor &executor) override {
    if (!executor.backend->mark) return executor.fail(DIFFIT_UNSUPPORTED, "mark", kNoMarks);
    executor.check(executor.backend->mark(executor.context, slot), "mark");
  }
};

/* Waits for both marks, on the queue's thread. */
struct ElapsedJob final : Job {
  Device *device;
  int32_t from, to;
  std::unique_ptr<Completion> completion;
  void run(Executor &executor) override {
    if (executor.backend->elapsed)
      executor.check(executor.backend->elapsed(executor.context, from, to, &completion->number), "elapsed");
    else
      executor.fail(DIFFIT_UNSUPPORTED, "elapsed", kNoMarks);
    device->settle(std::move(completion), executor);
  }
};

/* mark(device, slot) */
napi_value mark(napi_env env, napi_callback_info info) {
  Arguments<2> arguments(env, info);
  int64_t slot;
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "mark: the device");
  if (device && getInteger(env, arguments[1], "mark: the slot", 0, DIFFIT_MARKS - 1, &slot)) {
    device->queue().add(MarkJob((int32_t)slot));
  }
  return nullptr;
}

/* elapsed(device, from, to): Promise<number> */
napi_value elapsed(napi_env env, napi_callback_info info) {
  Arguments<3> arguments(env, info);
  int64_t from, to;
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "elapsed: the device");
  if (!device || !getInteger(env, arguments[1], "elapsed: the first mark", 0, DIFFIT_MARKS - 1, &from) ||
      !getInteger(env, arguments[2], "elapsed: the second mark", 0, DIFFIT_MARKS - 1, &to)) {
    return nullptr;
  }
  ElapsedJob job;
  job.device = device;
  job.from = (int32_t)from;
  job.to = (int32_t)to;
  napi_value promise;
  job.completion = device->promise(nullptr, &promise);
  if (!job.completion) return nullptr;
  device->queue().add(std::move(job));
  return promise;
}

/* ---- the arithmetic peak of the processor, for the benchmarks --------------------------------------- */

struct PeakJob final : Job {
  Device *device;
  bool dot, alone;
  std::unique_ptr<Completion> completion;
  void run(Executor &executor) override {
    completion->number = diffit_cpu_peak(executor.context, dot, alone);
    device->settle(std::move(completion), executor);
  }
};

/* peakFlops(device, bf16, oneThread): Promise<number> */
napi_value peakFlops(napi_env env, napi_callback_info info) {
  Arguments<3> arguments(env, info);
  int64_t dot, alone;
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "peakFlops: the device");
  if (!device || !getInteger(env, arguments[1], "peakFlops: bf16", 0, 1, &dot) ||
      !getInteger(env, arguments[2], "peakFlops: oneThread", 0, 1, &alone)) {
    return nullptr;
  }
  if (strcmp(device->backendName(), "cpu") != 0) {
    return fail(env, codeOf(DIFFIT_UNSUPPORTED), "peakFlops: %s does not measure its peak.", device->name().c_str());
  }
  PeakJob job;
  job.device = device;
  job.dot = dot != 0;
  job.alone = alone != 0;
  napi_value promise;
  job.completion = device->promise(nullptr, &promise);
  if (!job.completion) return nullptr;
  device->queue().add(std::move(job));
  return promise;
}

/* ---- spans of operations that may be replayed (replay.h) -------------------------------------- */

struct BeginSpanJob final : Job {
  double key;
  explicit BeginSpanJob(double k) : key(k) {}
  void run(Executor &) override {}
  double opensSpan() const override { return key; }
};
struct EndSpanJob final : Job {
  void run(Executor &) override {}
  bool closesSpan() const override { return true; }
};
struct ForgetSpansJob final : Job {
  double key;
  explicit ForgetSpansJob(double k) : key(k) {}
  void run(Executor &executor) override { executor.replays->forget(executor, key); }
};

/* The device and the key of a call; nullptr and an exception. */
Device *getSpan(napi_env env, const Arguments<2> &arguments, const char *what, int64_t *key) {
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], what);
  return device && getInteger(env, arguments[1], what, 0, INT64_MAX, key) ? device : nullptr;
}

/* beginSpan(device, key) */
napi_value beginSpan(napi_env env, napi_callback_info info) {
  Arguments<2> arguments(env, info);
  int64_t key;
  if (Device *device = getSpan(env, arguments, "beginSpan", &key)) device->queue().add(BeginSpanJob((double)key));
  return nullptr;
}

/* endSpan(device) */
napi_value endSpan(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "endSpan: the device");
  if (device) device->queue().add(EndSpanJob());
  return nullptr;
}

/* forgetSpans(device, key) */
napi_value forgetSpans(napi_env env, napi_callback_info info) {
  Arguments<2> arguments(env, info);
  int64_t key;
  if (Device *device = getSpan(env, arguments, "forgetSpans", &key)) device->queue().add(ForgetSpansJob((double)key));
  return nullptr;
}

/* graphStats(device): NativeGraphStats */
napi_value graphStats(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  Device *device = getDevice(env, environmentOf(arguments.data), arguments[0], "graphStats: the device");
  if (!device) return nullptr;
  const Replays::Stats stats = device->queue().replayStats();
  napi_value result;
  napi_create_object(env, &result);
  napi_set_named_property(env, result, "captured", makeNumber(env, (double)stats.captured));
  napi_set_named_property(env, result, "replayed", makeNumber(env, (double)stats.replayed));
  napi_set_named_property(env, result, "plain", makeNumber(env, (double)stats.plain));
  return result;
}

}  // namespace

bool addDeviceFunctions(napi_env env, Environment *environment, napi_value exports) {
  const napi_property_descriptor methods[] = {
      method("openDevice", openDevice, environment),
      method("countDevices", countThem, environment),
      method("deviceInfo", deviceInfo, environment),
      method("cpuVariants", listCpuVariants, environment),
      method("memory", memory, environment),
      method("memoryOwners", memoryOwners, environment),
      method("resetPeak", resetPeak, environment),
      method("setMemoryLimit", setMemoryLimit, environment),
      method("trim", trim, environment),
      method("synchronize", synchronize, environment),
      method("mark", mark, environment),
      method("elapsed", elapsed, environment),
      method("peakFlops", peakFlops, environment),
      method("beginSpan", beginSpan, environment),
      method("endSpan", endSpan, environment),
      method("forgetSpans", forgetSpans, environment),
      method("graphStats", graphStats, environment),
  };
  return napi_define_properties(env, exports, sizeof methods / sizeof methods[0], methods) == napi_ok;
}

}  // namespace diffit
