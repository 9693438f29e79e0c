#include "device.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>

#include "js.h"

namespace diffit {
namespace {

/* "4294967296", "512M", "4G"; false for anything else. */
bool parseBytes(const char *text, size_t *bytes) {
  static const char kUnits[] = "KMGT";
  char *end;
  double number = strtod(text, &end);
  if (end == text) return false;
  if (const char *unit = *end ? strchr(kUnits, toupper(*end)) : nullptr) {
    number = ldexp(number, 10 * (int)(unit - kUnits + 1));
    end++;
  }
  if (*end != '\0' || !(number >= 0 && number < 9e15)) return false;
  *bytes = (size_t)number;
  return true;
}

/* Gives blocks back once everything enqueued before is done. */
struct FreeJob final : Job {
  std::vector<void *> blocks;
  explicit FreeJob(std::vector<void *> b) : blocks(std::move(b)) {}
  void run(Executor &executor) override {
    for (void *block : blocks) executor.backend->free(executor.context, block);
    blocks.clear();
  }
};

}  // namespace

std::unique_ptr<Device> Device::open(napi_env env, const DeviceSpec &spec, const diffit_backend *backend,
                                     int32_t threads) {
  size_t limit = 0;
  const char *limitText = getenv("DIFFIT_MEMORY_LIMIT");
  if (limitText && *limitText && !parseBytes(limitText, &limit)) {
    fail(env, kBadArgument, "DIFFIT_MEMORY_LIMIT is \"%.100s\"; expected bytes, or a number with K, M, G or T.",
         limitText);
    return nullptr;
  }
  diffit_context *context = nullptr;
  char why[512] = "";
  if (backend->create(spec.index, spec.variant.c_str(), threads, &context, why, sizeof why) != DIFFIT_OK) {
    fail(env, kNoDevice, "%s", *why ? why : "The device could not be opened.");
    return nullptr;
  }
  std::unique_ptr<Device> device(new Device(env, spec.name, backend, context));
  device->pool_.limit = limit;
  const napi_value label = makeString(env, "diffit");
  if (napi_create_threadsafe_function(env, nullptr, nullptr, label, 0, 1, nullptr, nullptr, device.get(), onSettled,
                                      &device->settled_) != napi_ok) {
    fail(env, kNoDevice, "Node gave the device %s no way to settle promises.", spec.name.c_str());
    return nullptr;
  }
  napi_unref_threadsafe_function(env, device->settled_); /* an idle device does not keep the process alive */
  device->queue_ = std::make_unique<Queue>(backend, context);
  /* Hooks run in reverse order: this one, added last, ends the queue before the function above goes away. */
  napi_add_env_cleanup_hook(
      env, [](void *self) { static_cast<Device *>(self)->close(); }, device.get());
  return device;
}

void Device::close() {
  if (!context_) return;
  if (queue_) queue_->stop();
  if (settled_) napi_release_threadsafe_function(settled_, napi_tsfn_abort);
  for (Buffer *buffer : buffers_) {
    pool_.put(buffer->block, buffer->bytes);
    delete buffer;
  }
  for (void *piece : pool_.evict(0)) backend_->free(context_, piece);
  tellV8();
  backend_->destroy(context_);
  context_ = nullptr;
}

/* ---- memory ----------------------------------------------------------------------------------- */

/* V8 sees what is reserved, not what is live: the collector is pressed exactly when tensors nobody disposed of make the
   pool grow, and a steady state costs nothing. Each byte is added once and taken away once. */
void Device::tellV8() {
  const int64_t change = (int64_t)pool_.reserved() - externalMemory_;
  if (change == 0) return;
  int64_t total;
  napi_adjust_external_memory(env_, change, &total);
  externalMemory_ += change;
}

void Device::freeInOrder(std::vector<void *> blocks) {
  if (!blocks.empty()) queue_->add(FreeJob(std::move(blocks)));
}

void Device::drainAndFree(const std::vector<void *> &blocks) {
  queue_->drain();
  for (void *block : blocks) backend_->free(context_, block);
}

/* A block from the device; free blocks make room for it where they must. */
void *Device::takeMemory(size_t block) {
  if (pool_.limit) {
    if (block > pool_.limit) return nullptr;
    if (pool_.reserved() + block > pool_.limit) drainAndFree(pool_.evict(pool_.limit - block));
    if (pool_.reserved() + block > pool_.limit) return nullptr;
  }
  void *data = backend_->alloc(context_, block);
  if (data) return data;
  drainAndFree(pool_.evict(0)); /* and those already on their way to the device */
  return backend_->alloc(context_, block);
}

Buffer *Device::allocate(diffit_tensor *tensor, size_t bytes) {
  const size_t size = Pool::blockSize(bytes);
  Pool::Block *block = pool_.reuse(size);
  if (!block) {
    void *data = takeMemory(size);
    if (data) block = pool_.add(data, size);
  }
  if (!block) {
    tellV8();
    int64_t freeBytes, totalBytes;
    const bool told = backend_->memory;
    if (told && backend_->memory(context_, &freeBytes, &totalBytes) != DIFFIT_OK) {
      fail(env_, codeOf(DIFFIT_DEVICE_FAULT),
           "The device %s has failed, and this process cannot use it again: start a new one.", name_.c_str());
      return nullptr;
    }
    const std::string limit = pool_.limit ? "the limit is " + formatBytes(pool_.limit)
                              : told      ? "of the device's " + formatBytes((uint64_t)totalBytes) + ", " +
                                           formatBytes((uint64_t)freeBytes) + " are free"
                                     : "there is no limit";
    fail(env_, codeOf(DIFFIT_OUT_OF_MEMORY), "There is no memory for %s more on %s: %s are live, %s.",
         formatBytes(bytes).c_str(), name_.c_str(), formatBytes(pool_.liveBytes()).c_str(), limit.c_str());
    return nullptr;
  }
  pool_.addLive(bytes);
  if (pool_.reserved() > pool_.softLimit()) freeInOrder(pool_.evict(pool_.softLimit()));
  tellV8();
  tensor->data = block->data;
  Buffer *buffer = new Buffer{this, block, bytes, 0, buffers_.size(), *tensor, nullptr};
  buffers_.push_back(buffer);
  return buffer;
}

void Device::release(Buffer *buffer) {
  pool_.put(buffer->block, buffer->bytes);
  buffers_.back()->index = buffer->index;
  buffers_[buffer->index] = buffers_.back();
  buffers_.pop_back();
  delete buffer;
}

std::vector<Device::Owner> Device::owners(size_t most) const {
  std::map<std::vector<int64_t>, Owner> groups;
  for (const Buffer *buffer : buffers_) {
    const diffit_tensor &tensor = buffer->first;
    std::vector<int64_t> key = {(int64_t)(intptr_t)buffer->maker, tensor.dtype};
    key.insert(key.end(), tensor.shape, tensor.shape + tensor.ndim);
    Owner &owner = groups.try_emplace(std::move(key), Owner{buffer, 0, 0}).first->second;
    owner.count++;
    owner.bytes += buffer->bytes;
  }
  std::vector<Owner> owners;
  for (const auto &group : groups) owners.push_back(group.second);
  std::stable_sort(owners.begin(), owners.end(), [](const Owner &a, const Owner &b) { return a.bytes > b.bytes; });
  if (owners.size() > most) owners.resize(most);
  return owners;
}

void Device::setMemoryLimit(size_t bytes) {
  pool_.limit = bytes;
  if (bytes) freeInOrder(pool_.evict(bytes));
  tellV8();
}

void Device::trim() {
  freeInOrder(pool_.evict(0));
  tellV8();
}

diffit_device_info Device::info() const {
  diffit_device_info info = {};
  backend_->info(context_, &info);
  return info;
}

bool Device::deviceMemory(int64_t *freeBytes, int64_t *totalBytes) const {
  return backend_->memory && backend_->memory(context_, freeBytes, totalBytes) == DIFFIT_OK;
}

/* ---- promises --------------------------------------------------------------------------------- */

std::unique_ptr<Completion> Device::promise(napi_value result, napi_value *promise) {
  auto completion = std::make_unique<Completion>(env_);
  if (result && napi_create_reference(env_, result, 1, &completion->result) != napi_ok) return nullptr;
  if (napi_create_promise(env_, &completion->deferred, promise) != napi_ok) return nullptr;
  if (promises_++ == 0) napi_ref_threadsafe_function(env_, settled_);
  return completion;
}

void Device::settle(std::unique_ptr<Completion> completion, Executor &executor) {
  completion->failure = executor.takeFailure();
  if (napi_call_threadsafe_function(settled_, completion.get(), napi_tsfn_nonblocking) == napi_ok) {
    (void)completion.release(); /* onSettled deletes it */
  } else {
    /* The environment ends, nobody waits any more; and this is not the thread to give it back on. */
    completion->result = nullptr;
  }
}

/* The operation, then the sentence; a kernel's own "gemm_op: " or "gemm: " in front of it says nothing new. */
static std::string explain(const Failure &failure) {
  const std::string op = failure.op;
  std::string sentence = failure.sentence;
  for (const std::string &prefix : {op + "_op: ", op + ": "}) {
    if (sentence.compare(0, prefix.size(), prefix) == 0) sentence.erase(0, prefix.size());
  }
  return op + ": " + sentence;
}

void Device::onSettled(napi_env env, napi_value, void *self, void *data) {
  std::unique_ptr<Completion> completion(static_cast<Completion *>(data));
  if (!env) return; /* the environment ends */
  Device *device = static_cast<Device *>(self);
  napi_value value = nullptr;
  if (completion->result) {
    napi_get_reference_value(env, completion->result, &value);
  } else if (!isnan(completion->number)) {
    value = makeNumber(env, completion->number);
  } else {
    napi_get_undefined(env, &value);
  }
  if (const Failure *failure = completion->failure.get()) {
    const napi_value code = makeString(env, codeOf(failure->status));
    const napi_value message = makeString(env, explain(*failure).c_str());
    napi_value error;
    napi_create_error(env, code, message, &error);
    napi_set_named_property(env, error, "op", makeString(env, failure->op));
    napi_reject_deferred(env, completion->deferred, error);
  } else {
    napi_resolve_deferred(env, completion->deferred, value);
  }
  if (--device->promises_ == 0) napi_unref_threadsafe_function(env, device->settled_);
}

}  // namespace diffit
