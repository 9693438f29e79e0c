/*
 * Elementary functions on vectors of f32: exp, log, tanh, sigmoid, erf, sin and cos, and with them every kind of
 * the `unary` operation and its derivative.
 *
 * Method: argument reduction, then a polynomial (own weighted minimax fits, coefficients rounded to f32 one after the
 * other). Branch-free but for sin and cos of huge arguments. NaN in gives NaN out, infinities and denormals behave as
 * in C's <math.h>. The errors named are the largest found against double precision in any variant, over 4 million
 * arguments each: half of them spread evenly over the range, half over the exponents.
 */
#ifndef DIFFIT_CPU_MATHFUN_H
#define DIFFIT_CPU_MATHFUN_H

/* condition ? a : b per lane, with the lanes of `condition` 0 or -1. */
DIFFIT_INLINE vf vselect(vi condition, vf a, vf b) { return condition ? a : b; }
DIFFIT_INLINE vf vcopysign(vf magnitude, vf sign) {
  return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & (int32_t)0x80000000));
}
/* a limited to [low, high]; NaN stays NaN. */
DIFFIT_INLINE vf vclamp(vf a, float low, float high) {
  a = vmax(set1(low), a);
  return vmin(set1(high), a);
}

/* 2^n for n in [-126, 127]. */
DIFFIT_INLINE vf vpow2(vi n) { return (vf)((vu)(n + 127) << 23); }

/* y = n ln 2 + r with integer n and |r| <= ln(2) / 2 (1 + 2^-12); |y| < 2^21. */
struct ExpParts {
  vf r, nf;
  vi n;
};
DIFFIT_INLINE ExpParts reduceExp(vf y) {
  const vf magic = set1(12582912.0f); /* 1.5 * 2^23: pushes the fraction out of the mantissa */
  const vf shifted = y * 0x1.715476p+0f + magic;
  ExpParts e;
  e.n = (vi)((vu)shifted - (vu)magic);
  e.nf = shifted - magic;
  e.r = y - e.nf * 0x1.62e8p-1f; /* 13 bits of ln 2: the product is exact without fma, too */
  e.r = e.r + e.nf * 0x1.e8082ep-16f;
  return e;
}

/* e^x, at most 1.1 ulp; overflows to inf above 88.72, denormals are rounded once. */
DIFFIT_INLINE vf vexp(vf x) {
  const ExpParts e = reduceExp(vclamp(x, -104.0f, 89.0f));
  vf p = e.r * 0x1.6d7c8ep-10f + 0x1.123992p-7f;
  p = p * e.r + 0x1.5554bep-5f;
  p = p * e.r + 0x1.555492p-3f;
  p = p * e.r + 0.5f;
  p = p * (e.r * e.r) + e.r;
  p = p + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_scalef_ps((__mmask16)-1, (__m512)p, (__m512)e.nf);
#else
  const vi half = e.n >> 1; /* in two steps, so that denormals round once and overflow reaches infinity */
  return p * vpow2(half) * vpow2(e.n - half);
#endif
}

/* Natural logarithm, at most 0.8 ulp; log(0) = -inf, log of a negative number = NaN. */
DIFFIT_INLINE vf vlog(vf x) {
  const vi tiny = x < 0x1p-126f;
  const vf scaled = vselect(tiny, x * 0x1p23f, x);
  /* scaled = 2^e m with m in [sqrt(1/2), sqrt(2)) */
  const vi shifted = (vi)((vu)scaled - 0x3f3504f3u);
  const vi exponent = (shifted >> 23) - (tiny & 23);
  const vf e = __builtin_convertvector(exponent, vf);
  const vf f = (vf)((vu)(shifted & 0x007fffff) + 0x3f3504f3u) - 1.0f;
  vf p = f * 0x1.1b4374p-4f - 0x1.e2e482p-4f;
  p = p * f + 0x1.e64d7p-4f;
  p = p * f - 0x1.fb43dep-4f;
  p = p * f + 0x1.233306p-3f;
  p = p * f - 0x1.5562ep-3f;
  p = p * f + 0x1.99a542p-3f;
  p = p * f - 0x1.ffffeep-3f;
  p = p * f + 0x1.555546p-2f;
  const vf ff = f * f;
  vf r = p * (ff * f) - e * 0x1.e8082ep-16f;
  r = r - 0.5f * ff;
  r = r + f;
  r = r + e * 0x1.62e8p-1f;
  r = vselect(x < __builtin_inff(), r, x); /* inf and NaN */
  r = vselect(x == 0.0f, set1(-__builtin_inff()), r);
  return vselect(x < 0.0f, set1(__builtin_nanf("")), r);
}

/* tanh x = E / (E + 2) with E = e^2x - 1; at most 2.5 ulp. */
DIFFIT_INLINE vf vtanh(vf x) {
  const ExpParts e = reduceExp(vmin(set1(20.0f), 2.0f * vabs(x)));
  vf p = e.r * 0x1.a2477cp-13f + 0x1.6d3c88p-10f;
  p = p * e.r + 0x1.111002p-7f;
  p = p * e.r + 0x1.5554f6p-5f;
  p = p * e.r + 0x1.555556p-3f;
  p = p * e.r + 0.5f;
  p = p * (e.r * e.r) + e.r;
  const vf s = vpow2(e.n);
  const vf em1 = s * p + (s - 1.0f);
  return vcopysign(em1 / (em1 + 2.0f), x);
}

/* 1 / (1 + e^-x), at most 2.4 ulp on both sides. */
DIFFIT_INLINE vf vsigmoid(vf x) {
  const vf e = vexp((vf)((vi)x | (int32_t)0x80000000));
  return vselect(x < 0.0f, e, set1(1.0f)) / (1.0f + e);
}

/* The sigmoid s and its derivative s (1 - s) for one exponential and one division, without cancellation on either side;
   the derivative is at most 4.8 ulp off. */
struct SigmoidSlope {
  vf value, slope;
};
DIFFIT_INLINE SigmoidSlope vsigmoidSlope(vf x) {
  const vf e = vexp((vf)((vi)x | (int32_t)0x80000000)), r = 1.0f / (1.0f + e), er = e * r;
  return {vselect(x < 0.0f, er, r), er * r};
}

/* Error function: x + x P(x^2) up to 1, then 1 - e^-Q(x); at most 1.3 ulp. */
DIFFIT_INLINE vf verf(vf x) {
  const vf a = vmin(set1(4.0f), vabs(x));
  const vf z = a * a;
  vf p = z * 0x1.4771fcp-14f - 0x1.a3515ep-11f;
  p = p * z + 0x1.53f224p-8f;
  p = p * z - 0x1.b7f71ap-6f;
  p = p * z + 0x1.ce2ce6p-4f;
  p = p * z - 0x1.81273ep-2f;
  p = p * z + 0x1.06eba8p-3f;
  p = p * a + a;
  vf q = a * 0x1.6bf30ep-16f - 0x1.cedf1ep-12f;
  q = q * a + 0x1.139616p-8f;
  q = q * a - 0x1.9d0a5ep-6f;
  q = q * a + 0x1.bc1868p-4f;
  q = q * a + 0x1.4434f8p-1f;
  q = q * a + 0x1.212c2cp+0f;
  q = q * a - 0x1.8b3eep-13f;
  return vcopysign(vselect(a < 1.0f, p, 1.0f - vexp(-q)), x);
}

/* sin and cos of quarterTurns pi / 2 + r, |r| <= pi / 4 and a little. */
struct SinCos {
  vf sin, cos;
};
DIFFIT_INLINE SinCos sincosReduced(vf r, vi quarterTurns) {
  const vf z = r * r;
  vf s = z * 0x1.7cd836p-19f - 0x1.a05bbap-13f;
  s = s * z + 0x1.111176p-7f;
  s = s * z - 0x1.555556p-3f;
  s = s * (z * r) + r;
  vf c = z * -0x1.361c14p-22f + 0x1.a071c6p-16f;
  c = c * z - 0x1.6c175ep-10f;
  c = c * z + 0x1.555556p-5f;
  c = c * (z * z) + (1.0f - 0.5f * z);
  const vi swap = (quarterTurns & 1) != 0;
  const vi sinSign = (vi)((vu)(quarterTurns & 2) << 30);
  const vi cosSign = (vi)((vu)((quarterTurns + 1) & 2) << 30);
  return {(vf)((vi)vselect(swap, c, s) ^ sinSign), (vf)((vi)vselect(swap, s, c) ^ cosSign)};
}

/* sin x and cos x. Up to 1e5 the reduction runs in double (pi/2 in two parts), beyond that the C library takes
   over. At most 1.6 ulp. */
DIFFIT_INLINE SinCos vsincos(vf x) {
  const vf magic = set1(12582912.0f);
  const vf shifted = x * 0x1.45f306p-1f + magic;
  const vf nf = shifted - magic;
  float xs[kLanes], ns[kLanes], rs[kLanes];
  store(xs, x);
  store(ns, nf);
  for (int i = 0; i < kLanes; i++) {
    const double n = ns[i];
    rs[i] = (float)((xs[i] - n * 0x1.921fb5444p+0) - n * 0x1.68c234c4c6629p-39);
  }
  const SinCos y = sincosReduced(load(rs), (vi)((vu)shifted - (vu)magic));
  const vi huge = ~(vabs(x) <= 1e5f);
  if (hmax(vselect(huge, set1(1.0f), vf{})) == 0.0f) return y;
  float s[kLanes], c[kLanes];
  for (int i = 0; i < kLanes; i++) {
    s[i] = ::sinf(xs[i]);
    c[i] = ::cosf(xs[i]);
  }
  return {vselect(huge, load(s), y.sin), vselect(huge, load(c), y.cos)};
}

/* sin and cos of 2 pi turns for turns in [0, 1): the reduction is exact, at most 1.1e-7 off. */
DIFFIT_INLINE SinCos vsincosTurns(vf turns) {
  const vf magic = set1(12582912.0f);
  const vf shifted = turns * 4.0f + magic;
  const vf r = (turns - (shifted - magic) * 0.25f) * 0x1.921fb6p+2f;
  return sincosReduced(r, (vi)((vu)shifted - (vu)magic));
}

DIFFIT_INLINE vf vsin(vf x) { return vsincos(x).sin; }
DIFFIT_INLINE vf vcos(vf x) { return vsincos(x).cos; }

/* gelu_tanh(x) = x sigmoid(2u), this is 2u = sqrt(8 / pi) (x + 0.044715 x^3). */
DIFFIT_INLINE vf geluTanhArgument(vf x) { return x * (x * x * 0x1.2444f2p-4f + 0x1.988454p+0f); }

/* y = kind(x) for every kind of `unary`. With a constant kind only that case remains; a caller whose kind is not
   known at compile time should switch outside its loop. */
DIFFIT_INLINE vf unaryForward(int kind, vf x) {
  const vf zero = {}, one = set1(1.0f);
  switch (kind) {
    case DIFFIT_NEG:
      return -x;
    case DIFFIT_EXP:
      return vexp(x);
    case DIFFIT_LOG:
      return vlog(x);
    case DIFFIT_SQRT:
      return vsqrt(x);
    case DIFFIT_RSQRT:
      return 1.0f / vsqrt(x);
    case DIFFIT_RECIPROCAL:
      return 1.0f / x;
    case DIFFIT_SIN:
      return vsin(x);
    case DIFFIT_COS:
      return vcos(x);
    case DIFFIT_TANH:
      return vtanh(x);
    case DIFFIT_SIGMOID:
      return vsigmoid(x);
    case DIFFIT_RELU:
      return vselect(x < 0.0f, zero, x);
    case DIFFIT_SILU:
      return x * vsigmoid(x);
    case DIFFIT_GELU_TANH:
      return x * vsigmoid(geluTanhArgument(x));
    case DIFFIT_GELU_ERF:
      return 0.5f * x * (1.0f + verf(x * 0x1.6a09e6p-1f));
    case DIFFIT_ABS:
      return vabs(x);
    case DIFFIT_SQUARE:
      return x * x;
    case DIFFIT_IS_FINITE:
      return vselect(vabs(x) < __builtin_inff(), one, zero);
    default:
      return x;
  }
}

/* kind'(x); 0 for IS_FINITE, 1 for an unknown kind. */
DIFFIT_INLINE vf unaryDerivative(int kind, vf x) {
  const vf zero = {}, one = set1(1.0f);
  switch (kind) {
    case DIFFIT_NEG:
      return -one;
    case DIFFIT_EXP:
      return vexp(x);
    case DIFFIT_LOG:
      return 1.0f / x;
    case DIFFIT_SQRT:
      return 0.5f / vsqrt(x);
    case DIFFIT_RSQRT:
      return -0.5f / (x * vsqrt(x));
    case DIFFIT_RECIPROCAL:
      return -1.0f / (x * x);
    case DIFFIT_SIN:
      return vcos(x);
    case DIFFIT_COS:
      return -vsin(x);
    case DIFFIT_TANH:
      return 4.0f * vsigmoidSlope(2.0f * x).slope;
    case DIFFIT_SIGMOID:
      return vsigmoidSlope(x).slope;
    case DIFFIT_RELU:
      return vselect(x <= 0.0f, zero, one);
    case DIFFIT_SILU: {
      const SigmoidSlope s = vsigmoidSlope(x);
      return s.value + x * s.slope;
    }
    case DIFFIT_GELU_TANH: {
      const vf c = vclamp(x, -16.0f, 16.0f); /* the derivative is 0 or 1 there; x^3 cannot overflow */
      const SigmoidSlope s = vsigmoidSlope(geluTanhArgument(c));
      return s.value + s.slope * c * (c * c * 0x1.b6676cp-3f + 0x1.988454p+0f);
    }
    case DIFFIT_GELU_ERF: {
      const vf density = vexp(-0.5f * x * x) * 0x1.988454p-2f;
      return 0.5f * (1.0f + verf(x * 0x1.6a09e6p-1f)) + x * density;
    }
    case DIFFIT_ABS:
      return vselect(x > 0.0f, one, vselect(x < 0.0f, -one, x));
    case DIFFIT_SQUARE:
      return 2.0f * x;
    case DIFFIT_IS_FINITE:
      return zero;
    default:
      return one;
  }
}

#endif
