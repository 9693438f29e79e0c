/* Functions of one number and their derivatives, by the kinds of `unary` in diffit.h; f32, to a unit or two in the last place. */
#ifndef DIFFIT_CUDA_MATHFUN_CUH
#define DIFFIT_CUDA_MATHFUN_CUH

#include "context.cuh"

namespace diffit {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }
/* sigmoid(x) sigmoid(-x), which does not cancel for large x. */
__device__ inline float sigmoidSlope(float x) { return sigmoid(x) * sigmoid(-x); }

/* The gelu of tanh is x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)). */
__device__ inline float geluTanhArgument(float x) { return x * (x * x * 0x1.24449ap-4f + 0x1.988454p+0f); }
constexpr float kInverseSqrt2 = 0x1.6a09e6p-1f;

template <int kKind>
__device__ float unaryForward(float x) {
  if constexpr (kKind == DIFFIT_NEG) return -x;
  if constexpr (kKind == DIFFIT_EXP) return expf(x);
  if constexpr (kKind == DIFFIT_LOG) return logf(x);
  if constexpr (kKind == DIFFIT_SQRT) return sqrtf(x);
  if constexpr (kKind == DIFFIT_RSQRT) return 1.0f / sqrtf(x);
  if constexpr (kKind == DIFFIT_RECIPROCAL) return 1.0f / x;
  if constexpr (kKind == DIFFIT_SIN) return sinf(x);
  if constexpr (kKind == DIFFIT_COS) return cosf(x);
  if constexpr (kKind == DIFFIT_TANH) return tanhf(x);
  if constexpr (kKind == DIFFIT_SIGMOID) return sigmoid(x);
  if constexpr (kKind == DIFFIT_RELU) return x < 0.0f ? 0.0f : x;
  if constexpr (kKind == DIFFIT_SILU) return x * sigmoid(x);
  if constexpr (kKind == DIFFIT_GELU_TANH) return x * sigmoid(geluTanhArgument(x));
  if constexpr (kKind == DIFFIT_GELU_ERF) return 0.5f * x * (1.0f + erff(x * kInverseSqrt2));
  if constexpr (kKind == DIFFIT_ABS) return fabsf(x);
  if constexpr (kKind == DIFFIT_SQUARE) return x * x;
  if constexpr (kKind == DIFFIT_IS_FINITE) return fabsf(x) < INFINITY ? 1.0f : 0.0f;
  return x;
}

template <int kKind>
__device__ float unaryDerivative(float x) {
  if constexpr (kKind == DIFFIT_NEG) return -1.0f;
  if constexpr (kKind == DIFFIT_EXP) return expf(x);
  if constexpr (kKind == DIFFIT_LOG) return 1.0f / x;
  if constexpr (kKind == DIFFIT_SQRT) return 0.5f / sqrtf(x);
  if constexpr (kKind == DIFFIT_RSQRT) return -0.5f / (x * sqrtf(x));
  if constexpr (kKind == DIFFIT_RECIPROCAL) return -1.0f / (x * x);
  if constexpr (kKind == DIFFIT_SIN) return cosf(x);
  if constexpr (kKind == DIFFIT_COS) return -sinf(x);
  if constexpr (kKind == DIFFIT_TANH) return 4.0f * sigmoidSlope(2.0f * x);
  if constexpr (kKind == DIFFIT_SIGMOID) return sigmoidSlope(x);
  if constexpr (kKind == DIFFIT_RELU) return x <= 0.0f ? 0.0f : 1.0f;
  if constexpr (kKind == DIFFIT_SILU) return sigmoid(x) + x * sigmoidSlope(x);
  if constexpr (kKind == DIFFIT_GELU_TANH) {
    const float c = fminf(fmaxf(x, -16.0f), 16.0f); /* the derivative is 0 or 1 there; x^3 cannot overflow */
    const float a = geluTanhArgument(c);
    return sigmoid(a) + sigmoidSlope(a) * c * (c * c * 0x1.b6676cp-3f + 0x1.988454p+0f);
  }
  if constexpr (kKind == DIFFIT_GELU_ERF)
    return 0.5f * (1.0f + erff(x * kInverseSqrt2)) + x * expf(-0.5f * x * x) * 0x1.988454p-2f;
  if constexpr (kKind == DIFFIT_ABS) return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x;
  if constexpr (kKind == DIFFIT_SQUARE) return 2.0f * x;
  if constexpr (kKind == DIFFIT_IS_FINITE) return 0.0f;
  return 1.0f;
}

/* The same with a kind known at run time only; all threads of a warp have the same one. */
__device__ inline float unaryForwardOf(int kind, float x) {
  switch (kind) {
    case DIFFIT_GELU_TANH:
      return unaryForward<DIFFIT_GELU_TANH>(x);
    case DIFFIT_GELU_ERF:
      return unaryForward<DIFFIT_GELU_ERF>(x);
    case DIFFIT_SILU:
      return unaryForward<DIFFIT_SILU>(x);
    case DIFFIT_RELU:
      return unaryForward<DIFFIT_RELU>(x);
    case DIFFIT_TANH:
      return unaryForward<DIFFIT_TANH>(x);
    default:
      return unaryForward<DIFFIT_SIGMOID>(x);
  }
}
__device__ inline float unaryDerivativeOf(int kind, float x) {
  switch (kind) {
    case DIFFIT_GELU_TANH:
      return unaryDerivative<DIFFIT_GELU_TANH>(x);
    case DIFFIT_GELU_ERF:
      return unaryDerivative<DIFFIT_GELU_ERF>(x);
    case DIFFIT_SILU:
      return unaryDerivative<DIFFIT_SILU>(x);
    case DIFFIT_RELU:
      return unaryDerivative<DIFFIT_RELU>(x);
    case DIFFIT_TANH:
      return unaryDerivative<DIFFIT_TANH>(x);
    default:
      return unaryDerivative<DIFFIT_SIGMOID>(x);
  }
}
/* The kinds that a matrix product may end with. */
inline bool isActivation(int64_t kind) {
  return kind == DIFFIT_GELU_TANH || kind == DIFFIT_GELU_ERF || kind == DIFFIT_SILU || kind == DIFFIT_RELU ||
         kind == DIFFIT_TANH || kind == DIFFIT_SIGMOID;
}

template <int kKind>
__device__ float binaryForward(float a, float b) {
  if constexpr (kKind == DIFFIT_ADD) return a + b;
  if constexpr (kKind == DIFFIT_SUB) return a - b;
  if constexpr (kKind == DIFFIT_MUL) return a * b;
  if constexpr (kKind == DIFFIT_DIV) return a / b;
  if constexpr (kKind == DIFFIT_MAXIMUM) return a > b || a != a ? a : b;
  if constexpr (kKind == DIFFIT_MINIMUM) return a < b || a != a ? a : b;
  if constexpr (kKind == DIFFIT_POW) return powf(a, b);
  if constexpr (kKind == DIFFIT_EQUAL) return a == b ? 1.0f : 0.0f;
  if constexpr (kKind == DIFFIT_LESS) return a < b ? 1.0f : 0.0f;
  return a;
}

/* Calls f(Constant<kind>) for a kind in [0, last] known at run time only, and returns what it returns. */
template <int k>
struct Constant {
  static constexpr int value = k;
};
template <int last, int k = 0, class F>
diffit_status withConstant(int64_t kind, const F &f) {
  if constexpr (k < last)
    if (kind != k) return withConstant<last, k + 1>(kind, f);
  return f(Constant<k>{});
}

}  // namespace diffit

#endif
