/*
 * Elementwise operations on f32 and bf16: unary and its gradient, affine, clamp, binary and where with broadcasting, linear
 * combination; fill of any type. (Conversions are in cast.h.)
 *
 * Memory traffic: every input is read once, the output written once; tensors beyond the caches run at the speed of
 * memory. Broadcasting: dimensions over which all operands move alike are merged first, so equal shapes become one
 * long row and a bias, a scalar or a vector per sample become rows whose operands advance by one element or none.
 */
#ifndef DIFFIT_CPU_ELEMENTWISE_H
#define DIFFIT_CPU_ELEMENTWISE_H

/* Elements per task: 64 KiB of f32, some microseconds of work. */
static constexpr int64_t kElementGrain = 16384;

/* y[i] = op(x[i]) for i in [begin, end). */
template <class X, class Y, class Op>
DIFFIT_INLINE void mapVectors(X x, Y y, int64_t begin, int64_t end, Op op) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) store(y + i, op(load(x + i)));
  if (i < end) storePartial(y + i, op(loadPartial(x + i, end - i)), end - i);
}

/* y[i] = op(a[i], b[i]); an operand whose step is 0 stays at its first element. */
template <int stepA, int stepB, class A, class B, class Y, class Op>
DIFFIT_INLINE void mapVectors2(A a, B b, Y y, int64_t n, Op op) {
  const vf a0 = stepA ? vf{} : set1(element(a)), b0 = stepB ? vf{} : set1(element(b));
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, op(stepA ? load(a + i) : a0, stepB ? load(b + i) : b0));
  if (i < n) {
    const vf av = stepA ? loadPartial(a + i, n - i) : a0, bv = stepB ? loadPartial(b + i, n - i) : b0;
    storePartial(y + i, op(av, bv), n - i);
  }
}

/* f(get, put) once per vector of a row of n elements, where get(p) loads p's part and put(p, v) stores it; the last part
   may be shorter, get fills it with zeros. */
template <class F>
DIFFIT_INLINE void eachVector(int64_t n, const F &f) {
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    f([j](auto p) { return load(p + j); }, [j](auto p, vf v) { store(p + j, v); });
  }
  if (j < n) {
    const int64_t rest = n - j;
    f([j, rest](auto p) { return loadPartial(p + j, rest); },
      [j, rest](auto p, vf v) { storePartial(p + j, v, rest); });
  }
}

/* Calls f(Constant<kind>) for a kind in [0, last] known at run time only. */
template <int k>
struct Constant {
  static constexpr int value = k;
};
template <int last, int k = 0, class F>
DIFFIT_INLINE void withConstant(int64_t kind, const F &f) {
  if constexpr (k <= last) {
    if (kind == k) {
      f(Constant<k>{});
    } else {
      withConstant<last, k + 1>(kind, f);
    }
  }
}

/* y = op(x) for all elements of tensors of one size. */
template <class Op>
static diffit_status mapTensor(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, Op op) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(y);
  REQUIRE(numel(x) == numel(y));
  withFloats(
      [&](auto in, auto out) {
        parallelChunks(ctx, numel(x), kElementGrain,
                       [=](int64_t begin, int64_t end, int) { mapVectors(in, out, begin, end, op); });
      },
      x, y);
  return DIFFIT_OK;
}

/* ---- unary ------------------------------------------------------------------------------------ */

static diffit_status unary_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, int64_t kind) {
  REQUIRE(kind >= 0 && kind <= DIFFIT_IS_FINITE);
  diffit_status status = DIFFIT_OK;
  withConstant<DIFFIT_IS_FINITE>(
      kind, [&](auto k) { status = mapTensor(ctx, x, y, [](vf v) { return unaryForward(decltype(k)::value, v); }); });
  return status;
}

template <int kind, class P>
static void unaryBackwardLoop(diffit_context *ctx, P x, P dy, P dx, int64_t n) {
  parallelChunks(ctx, n, kElementGrain, [=](int64_t begin, int64_t end, int) {
    mapVectors2<1, 1>(x + begin, dy + begin, dx + begin, end - begin,
                      [](vf v, vf g) { return unaryDerivative(kind, v) * g; });
  });
}

static diffit_status unary_backward_op(diffit_context *ctx, const diffit_tensor *x, const diffit_tensor *dy,
                                       diffit_tensor *dx, int64_t kind) {
  REQUIRE_FLOAT(x);
  REQUIRE_FLOAT(dy);
  REQUIRE_FLOAT(dx);
  REQUIRE(numel(x) == numel(dy) && numel(x) == numel(dx));
  REQUIRE(kind >= 0 && kind <= DIFFIT_SQUARE);
  withConstant<DIFFIT_SQUARE>(kind, [&](auto k) {
    withFloats(
        [&](auto in, auto grad, auto out) { unaryBackwardLoop<decltype(k)::value>(ctx, in, grad, out, numel(x)); }, x,
        dy, dx);
  });
  return DIFFIT_OK;
}

static diffit_status affine_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double scale,
                               double shift) {
  const float s = (float)scale, t = (float)shift;
  return mapTensor(ctx, x, y, [=](vf v) { return v * s + t; });
}

static diffit_status clamp_op(diffit_context *ctx, const diffit_tensor *x, diffit_tensor *y, double low, double high) {
  const float lo = (float)low, hi = (float)high;
  return mapTensor(ctx, x, y, [=](vf v) { return vclamp(v, lo, hi); });
}

template <class P>
static void combine(diffit_context *ctx, P a, P b, P c, P y, int64_t n, float wa, float wb, float wc) {
  parallelChunks(ctx, n, kElementGrain, [=](int64_t begin, int64_t end, int) {
    if (!c) {
      mapVectors2<1, 1>(a + begin, b + begin, y + begin, end - begin, [=](vf u, vf v) { return u * wa + v * wb; });
      return;
    }
    eachVector(end - begin, [=](auto get, auto put) {
      const vf u = get(a + begin), v = get(b + begin),
               w = get(c + begin); /* first: then every type contracts the sum alike */
      put(y + begin, u * wa + v * wb + w * wc);
    });
  });
}

static diffit_status linear_combination_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b,
                                           const diffit_tensor *c, diffit_tensor *y, double ca, double cb, double cc) {
  REQUIRE_FLOAT(a);
  REQUIRE(!b || (isFloat(b) && numel(b) == numel(a)));
  REQUIRE(!c || (isFloat(c) && numel(c) == numel(a)));
  REQUIRE_FLOAT(y);
  REQUIRE(numel(y) == numel(a));
  if (!b && c) return linear_combination_op(ctx, a, c, nullptr, y, ca, cc, 0);
  if (!b) return affine_op(ctx, a, y, ca, 0);
  withFloats([&](auto pa, auto pb, auto pc,
                 auto out) { combine(ctx, pa, pb, pc, out, numel(a), (float)ca, (float)cb, (float)cc); },
             a, b, c, y);
  return DIFFIT_OK;
}

/* ---- broadcasting ----------------------------------------------------------------------------- */

static constexpr int kMaxOperands = 3;

/* How the operands advance along the dimensions of the result. The last stride of each is 0 or 1: the operands are
   contiguous and dimensions of size 1 are left out. */
struct Broadcast {
  int ndim;
  int64_t shape[DIFFIT_MAX_DIMS], strides[kMaxOperands][DIFFIT_MAX_DIMS];
};

/* False when an operand's shape does not broadcast to y's. */
static bool planBroadcast(const diffit_tensor *y, const diffit_tensor *const *operands, int count, Broadcast *plan) {
  int64_t strides[kMaxOperands][DIFFIT_MAX_DIMS];
  for (int o = 0; o < count; o++) {
    const diffit_tensor *t = operands[o];
    if (t->ndim > y->ndim) return false;
    int64_t stride = 1;
    for (int d = y->ndim - 1; d >= 0; d--) {
      const int own = d - (y->ndim - t->ndim);
      const int64_t size = own >= 0 ? t->shape[own] : 1;
      if (size != y->shape[d] && size != 1) return false;
      strides[o][d] = size == 1 ? 0 : stride;
      stride *= size;
    }
  }
  plan->ndim = 0;
  for (int d = 0; d < y->ndim; d++) {
    if (y->shape[d] == 1) continue;
    const int last = plan->ndim - 1;
    bool merges = last >= 0;
    for (int o = 0; o < count && merges; o++) merges = plan->strides[o][last] == strides[o][d] * y->shape[d];
    const int to = merges ? last : plan->ndim++;
    plan->shape[to] = merges ? plan->shape[last] * y->shape[d] : y->shape[d];
    for (int o = 0; o < count; o++) plan->strides[o][to] = strides[o][d];
  }
  if (plan->ndim == 0) { /* one element */
    plan->ndim = 1;
    plan->shape[0] = 1;
    for (int o = 0; o < count; o++) plan->strides[o][0] = 0;
  }
  return true;
}

/* row(offsets of the operands, first element of y, length) for the pieces of rows that make up elements [begin, end). */
template <class Row>
DIFFIT_INLINE void broadcastRows(const Broadcast &plan, int count, int64_t begin, int64_t end, const Row &row) {
  const int inner = plan.ndim - 1;
  int64_t index[DIFFIT_MAX_DIMS], offsets[kMaxOperands] = {0, 0, 0};
  int64_t rest = begin;
  for (int d = inner; d >= 0; d--) {
    index[d] = rest % plan.shape[d];
    rest /= plan.shape[d];
    for (int o = 0; o < count; o++) offsets[o] += index[d] * plan.strides[o][d];
  }
  while (begin < end) {
    const int64_t length = imin(end - begin, plan.shape[inner] - index[inner]);
    row(offsets, begin, length);
    begin += length;
    /* on to the start of the next row */
    for (int o = 0; o < count; o++) offsets[o] -= index[inner] * plan.strides[o][inner];
    index[inner] = 0;
    for (int d = inner - 1; d >= 0; d--) {
      for (int o = 0; o < count; o++) offsets[o] += plan.strides[o][d];
      if (++index[d] < plan.shape[d]) break;
      for (int o = 0; o < count; o++) offsets[o] -= plan.shape[d] * plan.strides[o][d];
      index[d] = 0;
    }
  }
}

template <int kind>
DIFFIT_INLINE vf binaryVector(vf a, vf b) {
  const vf zero = {}, one = set1(1.0f);
  if constexpr (kind == DIFFIT_ADD) return a + b;
  if constexpr (kind == DIFFIT_SUB) return a - b;
  if constexpr (kind == DIFFIT_MUL) return a * b;
  if constexpr (kind == DIFFIT_DIV) return a / b;
  if constexpr (kind == DIFFIT_MAXIMUM) return vselect(a != a, a, vmax(a, b)); /* NaN wins on either side */
  if constexpr (kind == DIFFIT_MINIMUM) return vselect(a != a, a, vmin(a, b));
  if constexpr (kind == DIFFIT_EQUAL) return vselect(a == b, one, zero);
  if constexpr (kind == DIFFIT_LESS) return vselect(a < b, one, zero);
  static_assert(kind <= DIFFIT_LESS, "a kind of binary operation");
  float p[kLanes], q[kLanes];
  store(p, a);
  store(q, b);
  for (int i = 0; i < kLanes; i++) p[i] = ::powf(p[i], q[i]); /* DIFFIT_POW */
  return load(p);
}

template <int kind, class P>
static void binaryLoop(diffit_context *ctx, const Broadcast &plan, P a, P b, P y, int64_t n) {
  const int inner = plan.ndim - 1;
  const int64_t steps = plan.strides[0][inner] * 2 + plan.strides[1][inner];
  parallelChunks(ctx, n, kElementGrain, [=, &plan](int64_t begin, int64_t end, int) {
    broadcastRows(plan, 2, begin, end, [=](const int64_t *offsets, int64_t at, int64_t length) {
      const P pa = a + offsets[0], pb = b + offsets[1];
      const auto op = [](vf u, vf v) { return binaryVector<kind>(u, v); };
      switch (steps) {
        case 3:
          return mapVectors2<1, 1>(pa, pb, y + at, length, op);
        case 2:
          return mapVectors2<1, 0>(pa, pb, y + at, length, op);
        case 1:
          return mapVectors2<0, 1>(pa, pb, y + at, length, op);
        default:
          return mapVectors2<0, 0>(pa, pb, y + at, length, op);
      }
    });
  });
}

/* EQUAL and LESS of i64. */
static void compareIntegers(diffit_context *ctx, const Broadcast &plan, const int64_t *a, const int64_t *b, float *y,
                            int64_t n, bool equal) {
  const int64_t stepA = plan.strides[0][plan.ndim - 1], stepB = plan.strides[1][plan.ndim - 1];
  parallelChunks(ctx, n, kElementGrain, [=, &plan](int64_t begin, int64_t end, int) {
    broadcastRows(plan, 2, begin, end, [=](const int64_t *offsets, int64_t at, int64_t length) {
      const int64_t *pa = a + offsets[0], *pb = b + offsets[1];
      for (int64_t i = 0; i < length; i++) {
        const int64_t u = pa[i * stepA], v = pb[i * stepB];
        y[at + i] = (equal ? u == v : u < v) ? 1.0f : 0.0f;
      }
    });
  });
}

static diffit_status binary_op(diffit_context *ctx, const diffit_tensor *a, const diffit_tensor *b, diffit_tensor *y,
                               int64_t kind) {
  const bool integers = a->dtype == DIFFIT_I64 && (kind == DIFFIT_EQUAL || kind == DIFFIT_LESS);
  REQUIRE(integers ? b->dtype == DIFFIT_I64 && y->dtype == DIFFIT_F32 : isFloat(a) && isFloat(b) && isFloat(y));
  REQUIRE(kind >= 0 && kind <= DIFFIT_LESS);
  const diffit_tensor *operands[] = {a, b};
  Broadcast plan;
  const bool shapesBroadcast = planBroadcast(y, operands, 2, &plan);
  REQUIRE(shapesBroadcast);
  const int64_t n = numel(y);
  if (integers) {
    compareIntegers(ctx, plan, (const int64_t *)a->data, (const int64_t *)b->data, f32(y), n, kind == DIFFIT_EQUAL);
  } else {
    withConstant<DIFFIT_LESS>(kind, [&](auto k) {
      withFloats([&](auto pa, auto pb, auto out) { binaryLoop<decltype(k)::value>(ctx, plan, pa, pb, out, n); }, a, b,
                 y);
    });
  }
  return DIFFIT_OK;
}

/* y = condition != 0 ? a : b. */
template <class P>
static void chooseLoop(diffit_context *ctx, const Broadcast &plan, P condition, P a, P b, P y, int64_t n) {
  const int64_t stepC = plan.strides[0][plan.ndim - 1], stepA = plan.strides[1][plan.ndim - 1],
                stepB = plan.strides[2][plan.ndim - 1];
  parallelChunks(ctx, n, kElementGrain, [=, &plan](int64_t begin, int64_t end, int) {
    broadcastRows(plan, 3, begin, end, [=](const int64_t *offsets, int64_t at, int64_t length) {
      const P pc = condition + offsets[0], pa = a + offsets[1], pb = b + offsets[2], out = y + at;
      const auto operand = [](P p, int64_t step, const auto &get) { return step == 0 ? set1(element(p)) : get(p); };
      eachVector(length, [=](auto get, auto put) {
        const vf c = operand(pc, stepC, get), u = operand(pa, stepA, get), v = operand(pb, stepB, get);
        put(out, vselect(c != 0.0f, u, v));
      });
    });
  });
}

static diffit_status where_op(diffit_context *ctx, const diffit_tensor *condition, const diffit_tensor *a,
                              const diffit_tensor *b, diffit_tensor *y) {
  REQUIRE_FLOAT(condition);
  REQUIRE_FLOAT(a);
  REQUIRE_FLOAT(b);
  REQUIRE_FLOAT(y);
  const diffit_tensor *operands[] = {condition, a, b};
  Broadcast plan;
  const bool shapesBroadcast = planBroadcast(y, operands, 3, &plan);
  REQUIRE(shapesBroadcast);
  withFloats([&](auto pc, auto pa, auto pb, auto out) { chooseLoop(ctx, plan, pc, pa, pb, out, numel(y)); }, condition,
             a, b, y);
  return DIFFIT_OK;
}

#endif
