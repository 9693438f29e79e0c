/*
 * bf16 and f16 for kernels that know f32 alone: an operation's low-precision tensors are converted to f32 scratch memory, the
 * kernel runs on that, and what it wrote is converted back, rounded once. So the processor computes in f32 whatever the
 * storage. One template for all operations: roles and order of the tensors are those of ops.def. Kernels that read and write
 * bf16 themselves (kTakesBf16) get it as it is.
 *
 * Memory traffic: 6 bytes an element more for each converted tensor that is read, and as many for one that is written.
 */
#ifndef DIFFIT_CPU_WIDEN_H
#define DIFFIT_CPU_WIDEN_H

#include <tuple>
#include <type_traits>
#include <utility>

#include "state.h"

namespace diffit {

/* What an operation does with a parameter. */
enum class Role { kOther, kRead, kWritten, kUpdated };

/* Each line of ops.def as a type. */
#define IN(name) Role::kRead
#define OPT(name) Role::kRead
#define OUT(name) Role::kWritten
#define OPT_OUT(name) Role::kWritten
#define INOUT(name) Role::kUpdated
#define LIST(name) Role::kOther
#define LIST_INOUT(name) Role::kOther
#define INTS(name) Role::kOther
#define I64(name) Role::kOther
#define F64(name) Role::kOther
#define DIFFIT_OP(op, ...)                            \
  struct Op_##op {                                    \
    static constexpr const char *name = #op;          \
    static constexpr auto function = &diffit_ops::op; \
    static constexpr Role roles[] = {__VA_ARGS__};    \
  };
#include "../abi/ops.def"
#undef DIFFIT_OP
#undef IN
#undef OPT
#undef OUT
#undef OPT_OUT
#undef INOUT
#undef LIST
#undef LIST_INOUT
#undef INTS
#undef I64
#undef F64

/* The operations whose tensors ops.def calls "T" or "float" and whose kernels take f32. The others' kernels check for themselves. */
constexpr const char *kWidened[] = {
    "unary",
    "unary_backward",
    "affine",
    "clamp",
    "binary",
    "where",
    "linear_combination",
    "reduce",
    "upsample2x",
    "upsample2x_backward",
    "pool2d",
    "gemm",
    "conv2d",
    "conv2d_dgrad",
    "conv2d_wgrad",
    "layer_norm",
    "layer_norm_backward",
    "group_norm",
    "group_norm_backward",
    "attention",
    "attention_backward",
    "dropout",
    "sampler_step",
};

/* Of these, the operations whose kernels take bf16 wherever ops.def allows it: beside f32 where it says "float". A call with a tensor of
   f16 is converted all the same, whole. */
constexpr const char *kTakesBf16[] = {
    "unary",        "unary_backward",
    "affine",       "clamp",
    "binary",       "where",
    "reduce",       "linear_combination",
    "upsample2x",   "upsample2x_backward",
    "layer_norm",   "layer_norm_backward",
    "gemm",         "conv2d",
    "conv2d_dgrad", "conv2d_wgrad",
    "group_norm",   "group_norm_backward",
    "attention",    "attention_backward",
    "dropout",      "sampler_step",
};

constexpr bool sameText(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}
template <size_t n>
constexpr bool isListed(const char *op, const char *const (&names)[n]) {
  for (const char *name : names)
    if (sameText(name, op)) return true;
  return false;
}

/* Whether the kernel reads parameter `position` as it is, low precision or not. gemm multiplies by a bf16 b where it is the
   transposed one: a linear layer with half-size weights. */
template <class Op, class... Arguments>
bool readsAsIs(size_t position, const std::tuple<Arguments...> &arguments) {
  if constexpr (std::is_same<Op, Op_gemm>::value) {
    constexpr size_t kB = 1, kTransA = 11, kTransB = 12;
    return position == kB && std::get<kB>(arguments)->dtype == DIFFIT_BF16 && !std::get<kTransA>(arguments) &&
           std::get<kTransB>(arguments);
  }
  return false;
}

inline bool isLow(const diffit_tensor *t) { return t && (t->dtype == DIFFIT_BF16 || t->dtype == DIFFIT_F16); }

/* The f32 tensors that stand for an operation's parameters, and where they lie in the scratch memory. */
struct Copies {
  static constexpr size_t kMost = 24; /* parameters */
  diffit_tensor wide[kMost];
  bool used[kMost] = {};
  size_t offsets[kMost], bytes = 0;

  void add(size_t i, const diffit_tensor *t) {
    size_t size = sizeof(float);
    for (int d = 0; d < t->ndim; d++) size *= (size_t)t->shape[d];
    used[i] = true;
    wide[i] = *t;
    wide[i].dtype = DIFFIT_F32;
    offsets[i] = bytes;
    bytes += (size / DIFFIT_ALIGNMENT + 1) * DIFFIT_ALIGNMENT;
  }
  bool place(diffit_context *ctx) {
    if (bytes == 0) return true;
    char *memory = (char *)diffit_cpu_shared(ctx, kWidenSlot, bytes);
    for (size_t i = 0; memory && i < kMost; i++)
      if (used[i]) wide[i].data = memory + offsets[i];
    return memory != nullptr;
  }
};

/* The call of one operation of the context's variant, with the tensors that its kernel does not take converted. */
template <class Op, class Function = std::remove_const_t<decltype(Op::function)>>
struct Through;

template <class Op, class... C>
struct Through<Op, diffit_status (*diffit_ops::*)(diffit_context *, C...)> {
  static diffit_status call(diffit_context *ctx, C... arguments) {
    if constexpr (isListed(Op::name, kWidened)) {
      static_assert(sizeof...(C) <= Copies::kMost, "too many parameters");
      Copies copies;
      const std::tuple<C...> all(arguments...);
      planAll(&copies, all, std::make_index_sequence<sizeof...(C)>());
      if (copies.bytes > 0) return widened(ctx, &copies, all, std::make_index_sequence<sizeof...(C)>());
    }
    return (ctx->ops->*Op::function)(ctx, arguments...);
  }

 private:
  template <size_t i>
  static constexpr bool kIsTensor =
      std::is_convertible<std::tuple_element_t<i, std::tuple<C...>>, const diffit_tensor *>::value;

  template <size_t i>
  static void plan(Copies *copies, const std::tuple<C...> &all) {
    if constexpr (kIsTensor<i>)
      if (isLow(std::get<i>(all)) && !readsAsIs<Op>(i, all)) copies->add(i, std::get<i>(all));
  }
  template <size_t... i>
  static void planAll(Copies *copies, const std::tuple<C...> &all, std::index_sequence<i...>) {
    if constexpr (isListed(Op::name, kTakesBf16))
      if (!(isF16<i>(all) || ...)) return;
    (plan<i>(copies, all), ...);
  }
  template <size_t i>
  static bool isF16(const std::tuple<C...> &all) {
    if constexpr (kIsTensor<i>) return std::get<i>(all) && std::get<i>(all)->dtype == DIFFIT_F16;
    return false;
  }

  template <size_t i>
  static diffit_status widen(diffit_context *ctx, Copies *copies, const std::tuple<C...> &all) {
    if constexpr (kIsTensor<i> && Op::roles[i] != Role::kWritten)
      if (copies->used[i]) return ctx->ops->cast(ctx, std::get<i>(all), &copies->wide[i]);
    return DIFFIT_OK;
  }
  template <size_t i>
  static auto replaced(Copies *copies, const std::tuple<C...> &all) {
    auto argument = std::get<i>(all);
    if constexpr (kIsTensor<i>)
      if (copies->used[i]) argument = &copies->wide[i];
    return argument;
  }
  template <size_t i>
  static diffit_status narrow(diffit_context *ctx, Copies *copies, const std::tuple<C...> &all) {
    if constexpr (kIsTensor<i> && Op::roles[i] != Role::kRead)
      if (copies->used[i]) return ctx->ops->cast(ctx, &copies->wide[i], std::get<i>(all));
    return DIFFIT_OK;
  }

  template <size_t... i>
  static diffit_status widened(diffit_context *ctx, Copies *copies, const std::tuple<C...> &all,
                               std::index_sequence<i...>) {
    if (!copies->place(ctx))
      return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "no memory for %zu bytes of f32 copies", copies->bytes);
    diffit_status status = DIFFIT_OK;
    ((status = status == DIFFIT_OK ? widen<i>(ctx, copies, all) : status), ...);
    if (status == DIFFIT_OK) status = (ctx->ops->*Op::function)(ctx, replaced<i>(copies, all)...);
    ((status = status == DIFFIT_OK ? narrow<i>(ctx, copies, all) : status), ...);
    return status;
  }
};

}  // namespace diffit

#endif
