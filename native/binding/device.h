/*
 * An open device of one environment: the backend's context, the pool of its memory, its queue, and the way back to
 * JavaScript for promises. Everything but the queue's jobs runs on the JavaScript thread.
 */
#ifndef DIFFIT_BINDING_DEVICE_H
#define DIFFIT_BINDING_DEVICE_H

#include <math.h>
#include <node_api.h>

#include <memory>
#include <string>

#include "backend.h"
#include "handles.h"
#include "pool.h"
#include "queue.h"

namespace diffit {

/* A promise on its way: settled on the JavaScript thread when the queue has reached it. */
struct Completion {
  napi_env env;
  napi_deferred deferred = nullptr;
  napi_ref result = nullptr; /* what to resolve with; without it: `number`, or undefined where that is NaN */
  double number = NAN;
  std::unique_ptr<Failure> failure;

  explicit Completion(napi_env e) : env(e) {}
  /* On the JavaScript thread; one that is not settled, because the environment ends, still has what it would have resolved with. */
  ~Completion() {
    if (result) napi_delete_reference(env, result);
  }
  Completion(const Completion &) = delete;
  Completion &operator=(const Completion &) = delete;
};

class Device {
 public:
  /* nullptr and a pending exception when the device cannot be had. Closes itself when the environment ends. */
  static std::unique_ptr<Device> open(napi_env env, const DeviceSpec &spec, const diffit_backend *backend,
                                      int32_t threads);
  ~Device() { close(); }

  /* A buffer of at least `bytes`, for `tensor`, whose data is set to it. When memory or the limit is exhausted the queue is drained, the pool's free blocks go
     back to the device, and it is tried once more; then DIFFIT_OUT_OF_MEMORY is thrown and nullptr returned. */
  Buffer *allocate(diffit_tensor *tensor, size_t bytes);
  /* The buffer's last view is gone. */
  void release(Buffer *buffer);

  /* Starts a promise that is settled by settle() from the queue's thread. `result` as in Completion. */
  std::unique_ptr<Completion> promise(napi_value result, napi_value *promise);
  /* Called from the queue's thread; takes the failure that is to be reported along. */
  void settle(std::unique_ptr<Completion> completion, Executor &executor);

  /* Live buffers of one maker, dtype and shape. */
  struct Owner {
    const Buffer *example;
    size_t count, bytes;
  };
  /* The `most` largest of them. */
  std::vector<Owner> owners(size_t most) const;

  void setMemoryLimit(size_t bytes);
  void trim();
  diffit_device_info info() const;
  /* Of the whole device, now; false where it does not tell. */
  bool deviceMemory(int64_t *freeBytes, int64_t *totalBytes) const;

  const std::string &name() const { return name_; }
  const char *backendName() const { return backend_->name; }
  Queue &queue() { return *queue_; }
  Pool &pool() { return pool_; }

 private:
  Device(napi_env env, std::string name, const diffit_backend *backend, diffit_context *context)
      : env_(env), name_(std::move(name)), backend_(backend), context_(context) {}
  Device(const Device &) = delete;

  void close();
  void *takeMemory(size_t block);
  void freeInOrder(std::vector<void *> blocks);
  void drainAndFree(const std::vector<void *> &blocks);
  void tellV8();
  static void onSettled(napi_env env, napi_value, void *device, void *completion);

  const napi_env env_;
  const std::string name_;
  const diffit_backend *const backend_;
  diffit_context *context_;
  std::unique_ptr<Queue> queue_;
  Pool pool_;
  std::vector<Buffer *> buffers_;
  napi_threadsafe_function settled_ = nullptr;
  uint32_t promises_ = 0;
  int64_t externalMemory_ = 0; /* what V8 has been told */
};

}  // namespace diffit

#endif
