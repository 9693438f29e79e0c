/*
 * The functions about tensors: making, viewing and releasing them, and copying their bytes in and out.
 */
#include <string.h>

#include "environment.h"
#include "js.h"

namespace diffit {
namespace {

Environment &environmentOf(void *data) { return *static_cast<Environment *>(data); }

constexpr int64_t kElementBytes[] = {4, 2, 2, 4, 8, 1}; /* by diffit_dtype */

/* dtype, ndim and dimensions from arguments[0..]: a tensor without data, and its size in bytes. */
bool getShape(napi_env env, const napi_value *arguments, const char *function, diffit_tensor *tensor, int64_t *bytes) {
  int64_t dtype, ndim;
  const auto what = [&](const char *name) { return std::string(function) + ": " + name; }; /* for a failure only */
  const auto whole = [&](napi_value value, int64_t most, int64_t *out) {
    double number;
    return napi_get_value_double(env, value, &number) == napi_ok && toInteger(number, out) && *out >= 0 && *out <= most;
  };
  if (!whole(arguments[0], DIFFIT_U8, &dtype)) {
    return getInteger(env, arguments[0], what("the dtype").c_str(), DIFFIT_F32, DIFFIT_U8, &dtype);
  }
  if (!whole(arguments[1], DIFFIT_MAX_DIMS, &ndim)) {
    return getInteger(env, arguments[1], what("the number of dimensions").c_str(), 0, DIFFIT_MAX_DIMS, &ndim);
  }
  *tensor = {};
  tensor->dtype = (diffit_dtype)dtype;
  tensor->ndim = (int32_t)ndim;
  constexpr int64_t kMostBytes = (int64_t)1 << 52;
  int64_t size = kElementBytes[dtype]; /* a dimension of 0 does not excuse absurd other ones, so it is left out here */
  bool empty = false;
  for (int i = 0; i < ndim; i++) {
    int64_t &extent = tensor->shape[i];
    if (!whole(arguments[2 + i], INT64_MAX, &extent)) {
      return getInteger(env, arguments[2 + i], what(format("dimension %d", i).c_str()).c_str(), 0, kMostBytes, &extent);
    }
    if (extent == 0) {
      empty = true;
    } else if (size > kMostBytes / extent) {
      fail(env, kBadArgument, "%s: the tensor would have more than 2^52 bytes.", function);
      return false;
    } else {
      size *= extent;
    }
  }
  *bytes = empty ? 0 : size;
  return true;
}

/* A new id over `buffer`, or an exception. */
napi_value makeTensor(napi_env env, Environment &environment, const diffit_tensor &tensor, int64_t bytes,
                      Buffer *buffer) {
  const double id = environment.handles.add(tensor, bytes, buffer);
  if (id > 0) return makeNumber(env, id);
  if (buffer->views == 0) buffer->device->release(buffer);
  return fail(env, codeOf(DIFFIT_OUT_OF_MEMORY), "There are 4194304 tensors; no more can be made.");
}

/* alloc(device, dtype, ndim, d0..d5): TensorId */
napi_value alloc(napi_env env, napi_callback_info info) {
  Arguments<9> arguments(env, info);
  Environment &environment = environmentOf(arguments.data);
  diffit_tensor tensor;
  int64_t bytes;
  Device *device = getDevice(env, environment, arguments[0], "alloc: the device");
  if (!device || !getShape(env, arguments.values + 1, "alloc", &tensor, &bytes)) return nullptr;
  Buffer *buffer = device->allocate(&tensor, (size_t)bytes);
  if (!buffer) return nullptr;
  return makeTensor(env, environment, tensor, bytes, buffer);
}

/* view(id, byteOffset, dtype, ndim, d0..d5): TensorId */
napi_value view(napi_env env, napi_callback_info info) {
  Arguments<10> arguments(env, info);
  Environment &environment = environmentOf(arguments.data);
  diffit_tensor tensor;
  int64_t offset, bytes;
  const View *base = getView(env, environment, arguments[0], "view: the tensor");
  if (!base || !getInteger(env, arguments[1], "view: the offset", 0, base->bytes, &offset) ||
      !getShape(env, arguments.values + 2, "view", &tensor, &bytes)) {
    return nullptr;
  }
  if (bytes > base->bytes - offset) {
    return fail(env, kBadArgument, "view: %lld bytes from offset %lld on do not fit into a tensor of %lld bytes.",
                (long long)bytes, (long long)offset, (long long)base->bytes);
  }
  tensor.data = (char *)base->tensor.data + offset;
  if ((uintptr_t)tensor.data % (uintptr_t)kElementBytes[tensor.dtype] != 0) {
    return fail(env, kBadArgument, "view: offset %lld is not a multiple of the element size, %lld bytes.",
                (long long)offset, (long long)kElementBytes[tensor.dtype]);
  }
  return makeTensor(env, environment, tensor, bytes, base->buffer);
}

/* release(id) */
napi_value release(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  Environment &environment = environmentOf(arguments.data);
  double id;
  if (!getNumber(env, arguments[0], "release: the tensor", &id)) return nullptr;
  View *view = environment.handles.find(id);
  if (!view) return nullptr;
  if (Buffer *buffer = environment.handles.remove(view)) buffer->device->release(buffer);
  return nullptr;
}

/* ---- bytes in --------------------------------------------------------------------------------- */

/* Holds its own copy of the bytes: small ones in place, others on the heap. */
struct WriteJob final : Job {
  static constexpr size_t kInPlace = 256;
  void *target;
  size_t bytes;
  std::unique_ptr<unsigned char[]> staged;
  unsigned char small[kInPlace];
  void run(Executor &executor) override {
    const void *source = bytes <= kInPlace ? small : staged.get();
    executor.check(executor.backend->upload(executor.context, target, source, bytes), "write");
    staged.reset();
  }
};

/* The bytes a typed array, Buffer or DataView shows. */
bool getBytes(napi_env env, napi_value value, void **data, size_t *bytes) {
  bool matches = false;
  size_t offset;
  napi_value owner;
  if (napi_is_typedarray(env, value, &matches) == napi_ok && matches) {
    static constexpr size_t kSizes[] = {1, 1, 1, 2, 2, 4, 4, 4, 8, 8, 8}; /* by napi_typedarray_type */
    napi_typedarray_type type;
    size_t length;
    if (napi_get_typedarray_info(env, value, &type, &length, data, &owner, &offset) != napi_ok) return false;
    if ((size_t)type >= sizeof kSizes / sizeof kSizes[0]) return false;
    *bytes = length * kSizes[type];
    return true;
  }
  if (napi_is_dataview(env, value, &matches) == napi_ok && matches) {
    return napi_get_dataview_info(env, value, bytes, data, &owner, &offset) == napi_ok;
  }
  return false;
}

/* write(id, data, byteOffset) */
napi_value write(napi_env env, napi_callback_info info) {
  Arguments<3> arguments(env, info);
  Environment &environment = environmentOf(arguments.data);
  const View *view = getView(env, environment, arguments[0], "write: the tensor");
  if (!view) return nullptr;
  void *data;
  size_t bytes;
  if (!getBytes(env, arguments[1], &data, &bytes)) {
    return fail(env, kBadArgument, "write: the data must be a typed array or a DataView.");
  }
  int64_t offset;
  if (!getInteger(env, arguments[2], "write: the offset", 0, view->bytes, &offset)) return nullptr;
  if (bytes > (size_t)(view->bytes - offset)) {
    return fail(env, kBadArgument, "write: %zu bytes at offset %lld do not fit into a tensor of %lld bytes.", bytes,
                (long long)offset, (long long)view->bytes);
  }
  if (bytes == 0) return nullptr;
  WriteJob job;
  job.target = (char *)view->tensor.data + offset;
  job.bytes = bytes;
  if (bytes > WriteJob::kInPlace) {
    job.staged.reset(new (std::nothrow) unsigned char[bytes]);
    if (!job.staged) {
      return fail(env, codeOf(DIFFIT_OUT_OF_MEMORY), "There is no memory to stage %s.", formatBytes(bytes).c_str());
    }
  }
  memcpy(job.staged ? job.staged.get() : job.small, data, bytes);
  if (!view->buffer->maker) view->buffer->maker = "write";
  view->buffer->device->queue().add(std::move(job));
  return nullptr;
}

/* ---- bytes out -------------------------------------------------------------------------------- */

/* Copies straight into the ArrayBuffer's memory, which the completion's reference keeps alive. */
struct ReadJob final : Job {
  Device *device;
  const void *source;
  void *target;
  size_t bytes;
  std::unique_ptr<Completion> completion;
  void run(Executor &executor) override {
    if (bytes) executor.check(executor.backend->download(executor.context, target, source, bytes), "read");
    device->settle(std::move(completion), executor);
  }
};

/* read(id): Promise<ArrayBuffer> */
napi_value read(napi_env env, napi_callback_info info) {
  Arguments<1> arguments(env, info);
  const View *view = getView(env, environmentOf(arguments.data), arguments[0], "read: the tensor");
  if (!view) return nullptr;
  ReadJob job;
  job.device = view->buffer->device;
  job.source = view->tensor.data;
  job.bytes = (size_t)view->bytes;
  napi_value result, promise;
  if (napi_create_arraybuffer(env, job.bytes, &job.target, &result) != napi_ok) {
    bool pending;
    if (napi_is_exception_pending(env, &pending) == napi_ok && pending) return nullptr;
    return fail(env, codeOf(DIFFIT_OUT_OF_MEMORY), "There is no memory to read %s.", formatBytes(job.bytes).c_str());
  }
  job.completion = job.device->promise(result, &promise);
  if (!job.completion) return nullptr;
  job.device->queue().add(std::move(job));
  return promise;
}

}  // namespace

bool addTensorFunctions(napi_env env, Environment *environment, napi_value exports) {
  const napi_property_descriptor methods[] = {
      method("alloc", alloc, environment),     method("view", view, environment),   method("read", read, environment),
      method("release", release, environment), method("write", write, environment),
  };
  return napi_define_properties(env, exports, sizeof methods / sizeof methods[0], methods) == napi_ok;
}

}  // namespace diffit
