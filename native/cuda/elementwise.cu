/*
 * Elementwise operations: unary and its gradient, affine, clamp, binary and where with broadcasting, linear combination, all in f32 on
 * tensors of any float type (floats.cuh). (fill and conversions are in cast.cu.)
 *
 * One kernel runs them all: a thread takes up to eight neighbours, and what depends on types and kinds is asked once for them. Broadcasting:
 * dimensions over which all operands move alike are merged first, so equal shapes are one long row with no divisions, and a
 * bias or a vector per sample are two dimensions, with one division for the neighbours together. Memory traffic: every input is read
 * once, the output written once.
 */
#include "floats.cuh"
#include "mathfun.cuh"

namespace diffit {
namespace {

/* Strides of up to three operands over the dimensions of y, merged; innermost last, where they are 0 or 1. */
struct Broadcast {
  int dims;
  int64_t shape[DIFFIT_MAX_DIMS];
  int64_t strides[3][DIFFIT_MAX_DIMS];
  bool still[3]; /* the last stride is 0 */
};

/* False where a shape does not broadcast to y's. */
bool planBroadcast(const diffit_tensor *y, const diffit_tensor *const *operands, int count, Broadcast *plan) {
  int64_t strides[3][DIFFIT_MAX_DIMS];
  for (int o = 0; o < count; o++) {
    const diffit_tensor *t = operands[o];
    if (t->ndim > y->ndim) return false;
    int64_t stride = 1;
    for (int d = y->ndim - 1; d >= 0; d--) {
      const int own = d - (y->ndim - t->ndim);
      const int64_t size = own >= 0 ? t->shape[own] : 1;
      if (size != 1 && size != y->shape[d]) return false;
      strides[o][d] = size == 1 ? 0 : stride;
      stride *= size;
    }
  }
  plan->dims = 0;
  for (int d = 0; d < y->ndim; d++) {
    if (y->shape[d] == 1) continue;
    const int last = plan->dims - 1;
    bool merges = last >= 0;
    for (int o = 0; o < count && merges; o++) merges = plan->strides[o][last] == strides[o][d] * y->shape[d];
    if (merges) {
      plan->shape[last] *= y->shape[d];
      for (int o = 0; o < count; o++) plan->strides[o][last] = strides[o][d];
    } else {
      plan->shape[plan->dims] = y->shape[d];
      for (int o = 0; o < count; o++) plan->strides[o][plan->dims] = strides[o][d];
      plan->dims++;
    }
  }
  return true;
}

template <int kInputs>
struct Operands {
  Floats in[kInputs], out;
};

/* Elements i to i + kWidth - 1 of the output; operands that do not move along the last dimension give one number for all. */
template <int kWidth, int kInputs, class Body>
__device__ __forceinline__ void elements(const Broadcast &plan, const Operands<kInputs> &operands, const Body &body,
                                         int64_t i) {
  int64_t at[kInputs] = {}, rest = i;
  for (int d = plan.dims - 1; d >= 0; d--) {
    const int64_t next = d == 0 ? 0 : rest / plan.shape[d];
    const int64_t index = rest - next * plan.shape[d];
#pragma unroll
    for (int o = 0; o < kInputs; o++) at[o] += index * plan.strides[o][d];
    rest = next;
  }
  Bits<kWidth> bits[kInputs];
#pragma unroll
  for (int o = 0; o < kInputs; o++) {
    const Floats &t = operands.in[o];
    if (kWidth > 1 && plan.still[o]) {
      const uint32_t one = loadBits<1>(t, at[o]).words.x, word = t.dtype == DIFFIT_F32 ? one : one | one << 16;
      bits[o].words = make_uint4(word, word, word, word);
    } else {
      bits[o] = loadBits<kWidth>(t, at[o]);
    }
  }
  float in[kInputs][kWidth], out[kWidth] = {};
#pragma unroll
  for (int o = 0; o < kInputs; o++) unpack(operands.in[o], bits[o], in[o]);
  body(in, out);
  store(operands.out, i, out);
}

template <int kWidth, int kInputs, class Body>
__global__ void __launch_bounds__(kThreads)
    elementsKernel(int64_t n, Broadcast plan, Operands<kInputs> operands, Body body) {
  const int64_t packs = n / kWidth, first = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  for (int64_t p = first; p < packs; p += (int64_t)gridDim.x * kThreads)
    elements<kWidth>(plan, operands, body, p * kWidth);
  const int64_t rest = packs * kWidth + first;
  if (kWidth > 1 && rest < n) elements<1>(plan, operands, body, rest);
}

/* y = body(operands), broadcast; false in *broadcasts, and nothing done, where their shapes do not. */
template <int kInputs, class Body>
diffit_status eachElement(diffit_context *ctx, const diffit_tensor *const *inputs, const diffit_tensor *y,
                          const Body &body, bool *broadcasts) {
  Broadcast plan;
  *broadcasts = planBroadcast(y, inputs, kInputs, &plan);
  const int64_t n = numel(y);
  if (!*broadcasts || n == 0) return DIFFIT_OK;
  Operands<kInputs> operands;
  operands.out = floats(y);
  const int last = plan.dims - 1;
  Floats moving[3] = {};
  for (int o = 0; o < kInputs; o++) {
    operands.in[o] = floats(inputs[o]);
    plan.still[o] = last >= 0 && plan.strides[o][last] == 0;
    if (!plan.still[o]) moving[o] = operands.in[o];
  }
  /* One row may end in a few single elements; of several, all have to begin aligned. */
  const int64_t length = plan.dims > 1 ? plan.shape[last] : 8;
  int width = widthOf({operands.out, moving[0], moving[1], moving[2]}, length);
  for (int o = 0; o < kInputs; o++)
    if (width == 8 && operands.in[o].dtype == DIFFIT_F32) width = 4;
  return withWidth(width, [&](auto w) {
    constexpr int kWidth = decltype(w)::value;
    const int64_t blocks = imin(ceilDiv(imax(n / kWidth, 1), kThreads), (int64_t)ctx->about.multiProcessorCount * 16);
    return launch(ctx, elementsKernel<kWidth, kInputs, Body>, dim3((unsigned)blocks), dim3(kThreads), 0, n, plan,
                  operands, body);
  });
}

/* The same for tensors of one size, whatever their shapes. */
template <int kInputs, class Body>
diffit_status eachOf(diffit_context *ctx, const diffit_tensor *const *inputs, const diffit_tensor *y,
                     const Body &body) {
  diffit_tensor flat[kInputs + 1];
  const diffit_tensor *in[kInputs];
  for (int o = 0; o <= kInputs; o++) {
    flat[o] = o < kInputs ? *inputs[o] : *y;
    flat[o].shape[0] = numel(y);
    flat[o].ndim = 1;
    if (o < kInputs) in[o] = &flat[o];
  }
  bool broadcasts;
  return eachElement<kInputs>(ctx, in, &flat[kInputs], body, &broadcasts);
}

/* Calls f(Constant<kind>); on the device, where all threads have the same kind. */
template <int last, int k = 0, class F>
__device__ __forceinline__ void withKind(int kind, const F &f) {
  if constexpr (k < last)
    if (kind != k) return withKind<last, k + 1>(kind, f);
  f(Constant<k>{});
}

/* kTrigonometric: sine and cosine, whose reduction of large arguments needs a stack that the other kinds should not have. */
template <bool kTrigonometric>
struct Unary {
  int kind;
  template <int kWidth>
  __device__ void operator()(const float (&in)[1][kWidth], float (&out)[kWidth]) const {
    withKind<DIFFIT_IS_FINITE>(kind, [&](auto k) {
      constexpr int kKind = decltype(k)::value;
      if constexpr ((kKind == DIFFIT_SIN || kKind == DIFFIT_COS) == kTrigonometric) {
#pragma unroll
        for (int e = 0; e < kWidth; e++) out[e] = unaryForward<kKind>(in[0][e]);
      }
    });
  }
};

template <bool kTrigonometric>
struct UnaryBackward {
  int kind;
  template <int kWidth>
  __device__ void operator()(const float (&in)[2][kWidth], float (&out)[kWidth]) const {
    withKind<DIFFIT_SQUARE>(kind, [&](auto k) {
      constexpr int kKind = decltype(k)::value;
      if constexpr ((kKind == DIFFIT_SIN || kKind == DIFFIT_COS) == kTrigonometric) {
#pragma unroll
        for (int e = 0; e < kWidth; e++) out[e] = unaryDerivative<kKind>(in[0][e]) * in[1][e];
      }
    });
  }
};

struct Affine {
  float scale, shift;
  template <int kWidth>
  __device__ void operator()(const float (&in)[1][kWidth], float (&out)[kWidth]) const {
#pragma unroll
    for (int e = 0; e < kWidth; e++) out[e] = in[0][e] * scale + shift;
  }
};

struct Clamp {
  float low, high;
  template <int kWidth>
  __device__ void operator()(const float (&in)[1][kWidth], float (&out)[kWidth]) const {
#pragma unroll
    for (int e = 0; e < kWidth; e++) {
      const float v = in[0][e] < low ? low : in[0][e];
      out[e] = v > high ? high : v; /* comparisons with NaN are false: it stays */
    }
  }
};

template <int kInputs>
struct LinearCombination {
  float factors[kInputs];
  template <int kWidth>
  __device__ void operator()(const float (&in)[kInputs][kWidth], float (&out)[kWidth]) const {
#pragma unroll
    for (int e = 0; e < kWidth; e++) {
      out[e] = in[0][e] * factors[0];
#pragma unroll
      for (int o = 1; o < kInputs; o++) out[e] += in[o][e] * factors[o];
    }
  }
};

struct Binary {
  int kind;
  template <int kWidth>
  __device__ void operator()(const float (&in)[2][kWidth], float (&out)[kWidth]) const {
    withKind<DIFFIT_LESS>(kind, [&](auto k) {
#pragma unroll
      for (int e = 0; e < kWidth; e++) out[e] = binaryForward<decltype(k)::value>(in[0][e], in[1][e]);
    });
  }
};

struct Where {
  template <int kWidth>
  __device__ void operator()(const float (&in)[3][kWidth], float (&out)[kWidth]) const {
#pragma unroll
    for (int e = 0; e < kWidth; e++) out[e] = in[0][e] != 0.0f ? in[1][e] : in[2][e];
  }
};

/* EQUAL and LESS of i64. */
diffit_status compareIntegers(diffit_context *ctx, const Broadcast &plan, const diffit_tensor *a,
                              const diffit_tensor *b, const diffit_tensor *y, bool equal) {
  const int64_t *pa = (const int64_t *)a->data, *pb = (const int64_t *)b->data;
  float *out = f32(y);
  return forEach(ctx, numel(y), [=] __device__(int64_t i) {
    int64_t u = 0, v = 0, rest = i;
    for (int d = plan.dims - 1; d >= 0; d--) {
      const int64_t index = rest % plan.shape[d];
      u += index * plan.strides[0][d];
      v += index * plan.strides[1][d];
      rest /= plan.shape[d];
    }
    out[i] = (equal ? pa[u] == pb[v] : pa[u] < pb[v]) ? 1.0f : 0.0f;
  });
}

}  // namespace

diffit_status unary_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, int64_t kind) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(y);
  REQUIRE(numel(x) == numel(y));
  REQUIRE(kind >= 0 && kind <= DIFFIT_IS_FINITE);
  if (kind == DIFFIT_SIN || kind == DIFFIT_COS) return eachOf<1>(ctx, &x, y, Unary<true>{(int)kind});
  return eachOf<1>(ctx, &x, y, Unary<false>{(int)kind});
}

diffit_status unary_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy, diffit_tensor *dx,
                                int64_t kind) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(dy);
  REQUIRE_FLOAT(dx);
  REQUIRE(numel(x) == numel(dy) && numel(x) == numel(dx));
  REQUIRE(kind >= 0 && kind <= DIFFIT_SQUARE);
  const diffit_tensor *inputs[] = {x, dy};
  if (kind == DIFFIT_SIN || kind == DIFFIT_COS) return eachOf<2>(ctx, inputs, dx, UnaryBackward<true>{(int)kind});
  return eachOf<2>(ctx, inputs, dx, UnaryBackward<false>{(int)kind});
}

diffit_status affine_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double scale, double shift) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(y);
  REQUIRE(numel(x) == numel(y));
  return eachOf<1>(ctx, &x, y, Affine{(float)scale, (float)shift});
}

diffit_status clamp_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double low, double high) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(y);
  REQUIRE(numel(x) == numel(y));
  return eachOf<1>(ctx, &x, y, Clamp{(float)low, (float)high});
}

diffit_status linear_combination_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b,
                                    const diffit_tensor *c, diffit_tensor *y, double ca, double cb, double cc) {
  REQUIRE_FLOAT(a);
  REQUIRE(!b || isFloatVector(b, numel(a)));
  REQUIRE(!c || isFloatVector(c, numel(a)));
  REQUIRE_FLOAT(y);
  REQUIRE(numel(y) == numel(a));
  const float fa = (float)ca, fb = (float)cb, fc = (float)cc;
  const diffit_tensor *inputs[] = {a, b ? b : c, c};
  if (b && c) return eachOf<3>(ctx, inputs, y, LinearCombination<3>{{fa, fb, fc}});
  if (b || c) return eachOf<2>(ctx, inputs, y, LinearCombination<2>{{fa, b ? fb : fc}});
  return eachOf<1>(ctx, inputs, y, LinearCombination<1>{{fa}});
}

diffit_status binary_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b, diffit_tensor *y,
                        int64_t kind) {
  const diffit_tensor *operands[] = {a, b};
  REQUIRE(kind >= 0 && kind <= DIFFIT_LESS);
  bool shapesBroadcast;
  if (a->dtype == DIFFIT_I64 && (kind == DIFFIT_EQUAL || kind == DIFFIT_LESS)) {
    REQUIRE(b->dtype == DIFFIT_I64);
    REQUIRE_F32(y);
    Broadcast plan;
    shapesBroadcast = planBroadcast(y, operands, 2, &plan);
    REQUIRE(shapesBroadcast);
    return compareIntegers(ctx, plan, a, b, y, kind == DIFFIT_EQUAL);
  }
  REQUIRE_FLOAT(a);
  REQUIRE_FLOAT(b);
  REQUIRE_FLOAT(y);
  TRY(eachElement<2>(ctx, operands, y, Binary{(int)kind}, &shapesBroadcast));
  REQUIRE(shapesBroadcast);
  return DIFFIT_OK;
}

diffit_status where_op(diffit_context *ctx, const diffit_tensor *condition, const diffit_tensor *a,
                       const diffit_tensor *b, diffit_tensor *y) {
  REQUIRE_F32(condition);
  REQUIRE_FLOAT(a);
  REQUIRE_FLOAT(b);
  REQUIRE_FLOAT(y);
  const diffit_tensor *operands[] = {condition, a, b};
  bool shapesBroadcast;
  TRY(eachElement<3>(ctx, operands, y, Where{}, &shapesBroadcast));
  REQUIRE(shapesBroadcast);
  return DIFFIT_OK;
}

}  // namespace diffit
