/*
 * Every line of ops.def as a JavaScript function: checks and converts the arguments, enqueues a job that holds them
 * (tensor views by value), and returns. The C types come from the function pointers of diffit_ops, the names and
 * which tensors may be absent from ops.def itself.
 */
#include <string.h>

#include <array>
#include <string_view>
#include <tuple>
#include <type_traits>

#include "environment.h"
#include "js.h"

namespace diffit {
namespace {

struct Parameter {
  const char *name;
  bool optional;
  bool written = false;
};

/* Whether an operation with these parameters draws random numbers: others each time. */
template <size_t count>
constexpr bool drawsNumbers(const std::array<Parameter, count> &parameters) {
  for (const Parameter &parameter : parameters)
    if (std::string_view(parameter.name) == "stream") return true;
  return false;
}

/* ---- arguments as a job keeps them, and as the kernel takes them ------------------------------------ */

/* describe(): as words for replay.h. */

void describeTensor(const diffit_tensor &tensor, Words &words) {
  words.push_back((uint64_t)(uintptr_t)tensor.data);
  if (!tensor.data) return;
  words.push_back((uint64_t)tensor.dtype << 32 | (uint64_t)tensor.ndim);
  for (int i = 0; i < tensor.ndim; i++) words.push_back((uint64_t)tensor.shape[i]);
}

struct TensorArgument {
  diffit_tensor tensor; /* data is nullptr: absent */
  diffit_tensor *get() { return tensor.data ? &tensor : nullptr; }
  void describe(Words &words) const { describeTensor(tensor, words); }
};

struct ListArgument {
  std::unique_ptr<diffit_tensor[]> items;
  diffit_list list;
  const diffit_list *get() { return &(list.items = items.get(), list); }
  void describe(Words &words) const {
    words.push_back((uint64_t)list.count);
    for (int64_t i = 0; i < list.count; i++) describeTensor(items[i], words);
  }
};

struct IntsArgument {
  static constexpr uint32_t kMost = 8;
  int64_t items[kMost];
  diffit_ints ints;
  const diffit_ints *get() { return &(ints.items = items, ints); }
  void describe(Words &words) const {
    words.push_back((uint64_t)ints.count);
    for (int64_t i = 0; i < ints.count; i++) words.push_back((uint64_t)items[i]);
  }
};

template <class Number>
struct NumberArgument {
  Number value;
  Number get() { return value; }
  void describe(Words &words) const {
    static_assert(sizeof(Number) == sizeof(uint64_t), "one word");
    uint64_t word;
    memcpy(&word, &value, sizeof word);
    words.push_back(word);
  }
};

/* Which of them stands for a C parameter; never defined, only asked for its type. */
struct Keep {
  static TensorArgument as(const diffit_tensor *);
  static TensorArgument as(diffit_tensor *);
  static ListArgument as(const diffit_list *);
  static IntsArgument as(const diffit_ints *);
  static NumberArgument<int64_t> as(int64_t);
  static NumberArgument<double> as(double);
};

/* ---- from JavaScript -------------------------------------------------------------------------------- */

/* Converts the arguments of one call one after the other; false: an exception is pending. */
class Reader {
 public:
  Reader(napi_env env, Environment &environment, const char *op) : env_(env), environment_(environment), op_(op) {}

  Device *device() const { return device_; }

  bool read(napi_value value, int position, const Parameter &parameter, TensorArgument *out) {
    return readTensor(value, position, parameter, &out->tensor);
  }

  bool read(napi_value value, int position, const Parameter &parameter, ListArgument *out) {
    uint32_t count;
    if (!readLength(value, position, parameter, "tensor ids", UINT32_MAX, &count)) return false;
    out->items.reset(new (std::nothrow) diffit_tensor[count]);
    if (!out->items) {
      fail(env_, codeOf(DIFFIT_OUT_OF_MEMORY), "%s: there is no memory for %u tensors.", op_, count);
      return false;
    }
    out->list.count = count;
    for (uint32_t i = 0; i < count; i++) {
      napi_value item;
      if (napi_get_element(env_, value, i, &item) != napi_ok) return false;
      if (!readTensor(item, position, {parameter.name, false}, &out->items[i])) return false;
    }
    return true;
  }

  bool read(napi_value value, int position, const Parameter &parameter, IntsArgument *out) {
    uint32_t count;
    if (!readLength(value, position, parameter, "whole numbers", IntsArgument::kMost, &count)) return false;
    out->ints.count = count;
    for (uint32_t i = 0; i < count; i++) {
      napi_value item;
      if (napi_get_element(env_, value, i, &item) != napi_ok) return false;
      NumberArgument<int64_t> number;
      if (!read(item, position, parameter, &number)) return false;
      out->items[i] = number.value;
    }
    return true;
  }

  bool read(napi_value value, int position, const Parameter &parameter, NumberArgument<int64_t> *out) {
    double number;
    if (napi_get_value_double(env_, value, &number) == napi_ok && toInteger(number, &out->value)) return true;
    return reject(position, parameter, "must be a whole number below 2^53");
  }

  bool read(napi_value value, int position, const Parameter &parameter, NumberArgument<double> *out) {
    if (napi_get_value_double(env_, value, &out->value) == napi_ok) return true;
    return reject(position, parameter, "must be a number");
  }

 private:
  bool reject(int position, const Parameter &parameter, const char *problem, const char *code = kBadArgument) {
    fail(env_, code, "%s: argument %d (%s) %s.", op_, position + 1, parameter.name, problem);
    return false;
  }

  bool readTensor(napi_value value, int position, const Parameter &parameter, diffit_tensor *out) {
    double id;
    if (napi_get_value_double(env_, value, &id) != napi_ok) return reject(position, parameter, "must be a tensor id");
    if (id == 0) {
      out->data = nullptr;
      return parameter.optional || reject(position, parameter, "is 0, but this tensor is required");
    }
    const View *view = environment_.handles.find(id);
    if (!view) return reject(position, parameter, "is no tensor: released, or of another thread", kStaleId);
    if (parameter.written && !view->buffer->maker) view->buffer->maker = op_;
    *out = view->tensor;
    Device *device = view->buffer->device;
    if (!device_) device_ = device;
    if (device == device_) return true;
    const std::string problem = "is on " + device->name() + ", another argument on " + device_->name();
    return reject(position, parameter, problem.c_str(), codeOf(DIFFIT_INVALID));
  }

  bool readLength(napi_value value, int position, const Parameter &parameter, const char *of, uint32_t most,
                  uint32_t *length) {
    bool isArray = false;
    if (napi_is_array(env_, value, &isArray) != napi_ok || !isArray ||
        napi_get_array_length(env_, value, length) != napi_ok) {
      return reject(position, parameter, (std::string("must be an array of ") + of).c_str());
    }
    return *length <= most || reject(position, parameter, format("has more than %u numbers", most).c_str());
  }

  const napi_env env_;
  Environment &environment_;
  const char *const op_;
  Device *device_ = nullptr;
};

/* ---- one operation ---------------------------------------------------------------------------------- */

template <class Op, class Function = std::remove_const_t<decltype(Op::function)>>
struct Operation;

template <class Op, class... C>
struct Operation<Op, diffit_status (*diffit_ops::*)(diffit_context *, C...)> {
  using Stored = std::tuple<decltype(Keep::as(std::declval<C>()))...>;
  static constexpr size_t kCount = sizeof...(C);
  static_assert(kCount == Op::parameters.size(), "ops.def was expanded wrongly");
  static constexpr bool kDraws = drawsNumbers(Op::parameters);

  struct OpJob final : Job {
    Stored arguments;
    void run(Executor &executor) override {
      const auto function = executor.backend->ops.*Op::function;
      if (!function) return executor.fail(DIFFIT_UNSUPPORTED, Op::name, "this device has no such operation");
      executor.check(std::apply([&](auto &...a) { return function(executor.context, a.get()...); }, arguments),
                     Op::name);
    }
    bool describe(Words &words) const override {
      if (kDraws) return false;
      words.push_back((uint64_t)(uintptr_t)Op::name);
      std::apply([&](const auto &...a) { (a.describe(words), ...); }, arguments);
      return true;
    }
  };

  template <size_t... i>
  static bool readAll(Reader &reader, const napi_value *values, Stored *stored, std::index_sequence<i...>) {
    return (reader.read(values[i], (int)i, Op::parameters[i], &std::get<i>(*stored)) && ...);
  }

  static napi_value call(napi_env env, napi_callback_info info) {
    Arguments<kCount> arguments(env, info);
    if (arguments.given != kCount) {
      return fail(env, kBadArgument, "%s: expected %zu arguments, got %zu.", Op::name, kCount, arguments.given);
    }
    Reader reader(env, *static_cast<Environment *>(arguments.data), Op::name);
    OpJob job;
    if (!readAll(reader, arguments.values, &job.arguments, std::make_index_sequence<kCount>())) return nullptr;
    if (Device *device = reader.device()) device->queue().add(std::move(job)); /* without any tensor: nothing to do */
    return nullptr;
  }
};

/* ---- all operations --------------------------------------------------------------------------------- */

constexpr Parameter required(const char *name) { return {name, false}; }
constexpr Parameter optional(const char *name) { return {name, true}; }
constexpr Parameter written(Parameter parameter) { return {parameter.name, parameter.optional, true}; }

#define IN(name) required(#name)
#define OPT(name) optional(#name)
#define OUT(name) written(required(#name))
#define OPT_OUT(name) written(optional(#name))
#define INOUT(name) written(required(#name))
#define LIST(name) required(#name)
#define LIST_INOUT(name) required(#name)
#define INTS(name) required(#name)
#define I64(name) required(#name)
#define F64(name) required(#name)
#define DIFFIT_OP(op, ...)                                  \
  struct Op_##op {                                          \
    static constexpr const char *name = #op;                \
    static constexpr auto function = &diffit_ops::op;       \
    static constexpr std::array parameters = {__VA_ARGS__}; \
  };
#include "../abi/ops.def"
#undef DIFFIT_OP

struct Entry {
  const char *name;
  napi_callback call;
};

constexpr Entry kOperations[] = {
#define DIFFIT_OP(op, ...) {#op, Operation<Op_##op>::call},
#include "../abi/ops.def"
#undef DIFFIT_OP
};

}  // namespace

bool addOperations(napi_env env, Environment *environment, napi_value exports) {
  napi_value ops, names;
  if (napi_create_object(env, &ops) != napi_ok || napi_create_array(env, &names) != napi_ok) return false;
  uint32_t i = 0;
  for (const Entry &entry : kOperations) {
    const napi_property_descriptor property = method(entry.name, entry.call, environment);
    if (napi_define_properties(env, ops, 1, &property) != napi_ok ||
        napi_set_element(env, names, i++, makeString(env, entry.name)) != napi_ok) {
      return false;
    }
  }
  return napi_set_named_property(env, exports, "ops", ops) == napi_ok &&
         napi_set_named_property(env, exports, "opNames", names) == napi_ok;
}

}  // namespace diffit
