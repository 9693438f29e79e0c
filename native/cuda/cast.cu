/*
 * Conversions between all element types, and fill. To integers: truncates toward zero, saturates, NaN gives 0. Memory
 * traffic: the input once, the output once.
 */
#include <type_traits>

#include "floats.cuh"

namespace diffit {
namespace {

constexpr float kTwo31 = 2147483648.0f, kTwo63 = 9223372036854775808.0f;

/* Every type goes through f32, or i64 where both sides are integers. */
template <class T>
__device__ float widen(T x) {
  return toFloat(x);
}
__device__ inline int64_t widen(int32_t x) { return x; }
__device__ inline int64_t widen(int64_t x) { return x; }
__device__ inline int64_t widen(uint8_t x) { return x; }

template <class T>
__device__ void narrow(float x, T *y) {
  *y = fromFloat<T>(x);
}
__device__ inline void narrow(float x, int32_t *y) {
  *y = x != x ? 0 : x >= kTwo31 ? INT32_MAX : x < -kTwo31 ? INT32_MIN : (int32_t)x;
}
__device__ inline void narrow(float x, int64_t *y) {
  *y = x != x ? 0 : x >= kTwo63 ? INT64_MAX : x < -kTwo63 ? INT64_MIN : (int64_t)x;
}
__device__ inline void narrow(float x, uint8_t *y) { *y = x != x || x < 0 ? 0 : x > 255 ? 255 : (uint8_t)x; }
template <class T>
__device__ void narrow(int64_t x, T *y) {
  *y = fromFloat<T>((float)x);
}
__device__ inline void narrow(int64_t x, int32_t *y) {
  *y = x > INT32_MAX ? INT32_MAX : x < INT32_MIN ? INT32_MIN : (int32_t)x;
}
__device__ inline void narrow(int64_t x, int64_t *y) { *y = x; }
__device__ inline void narrow(int64_t x, uint8_t *y) { *y = x > 255 ? 255 : x < 0 ? 0 : (uint8_t)x; }

template <class From, class To>
diffit_status castLoop(diffit_context *ctx, const From *x, To *y, int64_t n) {
  return forEach(ctx, n, [=] __device__(int64_t i) { narrow(widen(x[i]), &y[i]); });
}

/* Between f32, bf16 and f16: kWidth neighbours at a time, and what is left one by one. */
template <int kWidth>
diffit_status castFloats(diffit_context *ctx, const Floats &x, const Floats &y, int64_t n) {
  const int64_t packs = n / kWidth;
  return forEach(ctx, packs + (n - packs * kWidth), [=] __device__(int64_t i) {
    if (i < packs) {
      float v[kWidth];
      load(x, i * kWidth, v);
      store(y, i * kWidth, v);
    } else {
      const float v[1] = {loadOne(x, packs * kWidth + (i - packs))};
      store(y, packs * kWidth + (i - packs), v);
    }
  });
}

/* A double, or an i64 where it fits one, as an element of y. */
template <class T>
diffit_status fillFloat(diffit_context *ctx, T *y, int64_t n, float value) {
  return forEach(ctx, n, [=] __device__(int64_t i) { y[i] = fromFloat<T>(value); });
}
template <class T>
diffit_status fillInteger(diffit_context *ctx, T *y, int64_t n, double value) {
  const int64_t whole = value != value                   ? 0
                        : value >= 9223372036854775808.0 ? INT64_MAX
                        : value < -9223372036854775808.0 ? INT64_MIN
                                                         : (int64_t)value;
  return forEach(ctx, n, [=] __device__(int64_t i) { narrow(whole, &y[i]); });
}

/* Calls f(typed pointer) for the elements of a tensor. */
template <class F>
diffit_status withElements(diffit_context *ctx, const diffit_tensor *t, const F &f) {
  switch (t->dtype) {
    case DIFFIT_F32:
      return f((float *)t->data);
    case DIFFIT_BF16:
      return f((bf16 *)t->data);
    case DIFFIT_F16:
      return f((f16 *)t->data);
    case DIFFIT_I32:
      return f((int32_t *)t->data);
    case DIFFIT_I64:
      return f((int64_t *)t->data);
    case DIFFIT_U8:
      return f((uint8_t *)t->data);
    default:
      return fail(ctx, DIFFIT_INVALID, "%d is no element type", (int)t->dtype);
  }
}

template <class T>
struct IsFloating {
  static constexpr bool value = false;
};
template <>
struct IsFloating<float> {
  static constexpr bool value = true;
};
template <>
struct IsFloating<bf16> {
  static constexpr bool value = true;
};
template <>
struct IsFloating<f16> {
  static constexpr bool value = true;
};

}  // namespace

diffit_status cast_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y) {
  const int64_t n = numel(x);
  REQUIRE(numel(y) == n);
  if (isFloat(x) && isFloat(y)) {
    const Floats from = floats(x), to = floats(y);
    return withWidth(widthOf({from, to}, 8), [&](auto w) { return castFloats<decltype(w)::value>(ctx, from, to, n); });
  }
  return withElements(
      ctx, x, [&](auto *from) { return withElements(ctx, y, [&](auto *to) { return castLoop(ctx, from, to, n); }); });
}

diffit_status fill_op(diffit_context *ctx, diffit_tensor *y, double value) {
  const int64_t n = numel(y);
  return withElements(ctx, y, [&](auto *to) {
    if constexpr (IsFloating<std::remove_pointer_t<decltype(to)>>::value)
      return fillFloat(ctx, to, n, (float)value);
    else
      return fillInteger(ctx, to, n, value);
  });
}

}  // namespace diffit
