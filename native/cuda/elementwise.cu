/*
 * Elementwise operations on f32: unary and its gradient, affine, clamp, binary and where with broadcasting, linear
 * combination. (fill and conversions are in cast.cu.)
 *
 * Memory traffic: every input is read once, the output written once. Broadcasting: dimensions over which all operands
 * move alike are merged first, so equal shapes are one long row with no divisions, and a bias or a vector per sample are two dimensions.
 */
#include "mathfun.cuh"

namespace diffit {
namespace {

/* Strides of up to three operands over the dimensions of y, merged; innermost last. */
struct Broadcast {
  int dims;
  int64_t shape[DIFFIT_MAX_DIMS];
  int64_t strides[3][DIFFIT_MAX_DIMS];
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

/* body(i, place of element i of y in each operand). */
template <int kOperands, class Body>
diffit_status forEachBroadcast(diffit_context *ctx, const Broadcast &plan, int64_t n, Body body) {
  return forEach(ctx, n, [=] __device__(int64_t i) {
    int64_t at[3] = {0, 0, 0}, rest = i;
    for (int d = plan.dims - 1; d >= 0; d--) {
      const int64_t next = d == 0 ? 0 : rest / plan.shape[d];
      const int64_t index = rest - next * plan.shape[d];
      for (int o = 0; o < kOperands; o++) at[o] += index * plan.strides[o][d];
      rest = next;
    }
    body(i, at);
  });
}

/* Bodies that depend on a kind: nvcc takes no device lambda inside a generic one. */
template <int kKind>
struct Unary {
  const float *in;
  float *out;
  __device__ void operator()(int64_t i) const { out[i] = unaryForward<kKind>(in[i]); }
};
template <int kKind>
struct UnaryBackward {
  const float *in, *upstream;
  float *out;
  __device__ void operator()(int64_t i) const { out[i] = unaryDerivative<kKind>(in[i]) * upstream[i]; }
};
template <int kKind>
struct Binary {
  const float *a, *b;
  float *out;
  __device__ void operator()(int64_t i, const int64_t *at) const { out[i] = binaryForward<kKind>(a[at[0]], b[at[1]]); }
};

}  // namespace

diffit_status unary_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, int64_t kind) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(numel(x) == numel(y));
  REQUIRE(kind >= 0 && kind <= DIFFIT_IS_FINITE);
  const float *in = f32(x);
  float *out = f32(y);
  return withConstant<DIFFIT_IS_FINITE>(kind, [&](auto k) {
    return forEach(ctx, numel(x), Unary<decltype(k)::value>{in, out});
  });
}

diffit_status unary_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy, diffit_tensor *dx,
                                int64_t kind) {
  REQUIRE_F32(x);
  REQUIRE_F32(dy);
  REQUIRE_F32(dx);
  REQUIRE(numel(x) == numel(dy) && numel(x) == numel(dx));
  REQUIRE(kind >= 0 && kind <= DIFFIT_SQUARE);
  const float *in = f32(x), *upstream = f32(dy);
  float *out = f32(dx);
  return withConstant<DIFFIT_SQUARE>(kind, [&](auto k) {
    return forEach(ctx, numel(x), UnaryBackward<decltype(k)::value>{in, upstream, out});
  });
}

diffit_status affine_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double scale, double shift) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(numel(x) == numel(y));
  const float *in = f32(x), a = (float)scale, b = (float)shift;
  float *out = f32(y);
  return forEach(ctx, numel(x), [=] __device__(int64_t i) { out[i] = in[i] * a + b; });
}

diffit_status clamp_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double low, double high) {
  REQUIRE_F32(x);
  REQUIRE_F32(y);
  REQUIRE(numel(x) == numel(y));
  const float *in = f32(x), least = (float)low, most = (float)high;
  float *out = f32(y);
  return forEach(ctx, numel(x), [=] __device__(int64_t i) {
    const float v = in[i] < least ? least : in[i];
    out[i] = v > most ? most : v; /* comparisons with NaN are false: it stays */
  });
}

diffit_status linear_combination_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b,
                                    const diffit_tensor *c, diffit_tensor *y, double ca, double cb, double cc) {
  REQUIRE_F32(a);
  REQUIRE(!b || (b->dtype == DIFFIT_F32 && numel(b) == numel(a)));
  REQUIRE(!c || (c->dtype == DIFFIT_F32 && numel(c) == numel(a)));
  REQUIRE_F32(y);
  REQUIRE(numel(y) == numel(a));
  const float *pa = f32(a), *pb = f32(b), *pc = f32(c), fa = (float)ca, fb = (float)cb, fc = (float)cc;
  float *out = f32(y);
  return forEach(ctx, numel(a), [=] __device__(int64_t i) {
    float v = pa[i] * fa;
    if (pb) v += pb[i] * fb;
    if (pc) v += pc[i] * fc;
    out[i] = v;
  });
}

diffit_status binary_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b, diffit_tensor *y,
                        int64_t kind) {
  const bool integers = a->dtype == DIFFIT_I64 && (kind == DIFFIT_EQUAL || kind == DIFFIT_LESS);
  REQUIRE(integers || a->dtype == DIFFIT_F32);
  REQUIRE(b->dtype == a->dtype);
  REQUIRE_F32(y);
  REQUIRE(kind >= 0 && kind <= DIFFIT_LESS);
  const diffit_tensor *operands[] = {a, b};
  Broadcast plan;
  const bool shapesBroadcast = planBroadcast(y, operands, 2, &plan);
  REQUIRE(shapesBroadcast);
  float *out = f32(y);
  if (integers) {
    const int64_t *pa = (const int64_t *)a->data, *pb = (const int64_t *)b->data;
    const bool equal = kind == DIFFIT_EQUAL;
    return forEachBroadcast<2>(ctx, plan, numel(y), [=] __device__(int64_t i, const int64_t *at) {
      out[i] = (equal ? pa[at[0]] == pb[at[1]] : pa[at[0]] < pb[at[1]]) ? 1.0f : 0.0f;
    });
  }
  const float *pa = f32(a), *pb = f32(b);
  return withConstant<DIFFIT_LESS>(kind, [&](auto k) {
    return forEachBroadcast<2>(ctx, plan, numel(y), Binary<decltype(k)::value>{pa, pb, out});
  });
}

diffit_status where_op(diffit_context *ctx, const diffit_tensor *condition, const diffit_tensor *a,
                       const diffit_tensor *b, diffit_tensor *y) {
  REQUIRE_F32(condition);
  REQUIRE_F32(a);
  REQUIRE_F32(b);
  REQUIRE_F32(y);
  const diffit_tensor *operands[] = {condition, a, b};
  Broadcast plan;
  const bool shapesBroadcast = planBroadcast(y, operands, 3, &plan);
  REQUIRE(shapesBroadcast);
  const float *test = f32(condition), *pa = f32(a), *pb = f32(b);
  float *out = f32(y);
  return forEachBroadcast<3>(ctx, plan, numel(y), [=] __device__(int64_t i, const int64_t *at) {
    out[i] = test[at[0]] != 0.0f ? pa[at[1]] : pb[at[2]];
  });
}

}  // namespace diffit
