/*
 * tr sqrt(A B) of two covariances [d, d], what Frechet's distance needs: with A = L L^T and B = R R^T it is the sum of the singular values of
 * L^T R. Squaring nothing keeps them to rounding of the largest, where eigenvalues of A B would lose half the digits of the small ones.
 *
 * 1. Cholesky with diagonal pivoting, which stops at the rank (blocked as LAPACK's dpstrf): d^3 / 3 multiply-adds, and twice that as both
 *    triangles are kept.
 * 2. L^T R: d^3.
 * 3. Householder bidiagonalisation: 4/3 d^3, bound by memory: a step updates the trailing matrix and multiplies it from the left in one pass
 *    (read and written), and from the right in another (read). 8 d^3 bytes in all.
 * 4. Singular values of the bidiagonal as eigenvalues of the tridiagonal with its elements beside a zero diagonal (Golub and Kahan, 1965), by
 *    implicit QL: O(d^2), one thread.
 */
#ifndef DIFFIT_CPU_SINGULAR_H
#define DIFFIT_CPU_SINGULAR_H

static constexpr double kEpsilon64 = 2.220446049250313e-16;
static constexpr int64_t kPanel64 = 64;
static constexpr int64_t kStripe64 = 64; /* rows a task passes over */

static void swapRowsAndColumns(double *a, int64_t d, int64_t i, int64_t j) {
  for (int64_t k = 0; k < d; k++) {
    const double t = a[i * d + k];
    a[i * d + k] = a[j * d + k];
    a[j * d + k] = t;
  }
  for (int64_t k = 0; k < d; k++) {
    const double t = a[k * d + i];
    a[k * d + i] = a[k * d + j];
    a[k * d + j] = t;
  }
}

/* P^T A P = L L^T: L, [d, rank], takes the place of A's first columns below the diagonal; the rows are in the order of `pivots`. `work` [d]. A pivot that is
   negative beyond rounding: DIFFIT_INVALID. */
static diffit_status pivotedCholesky(diffit_context *ctx, double *a, int64_t d, int64_t *pivots, double *work,
                                     int64_t *rank) {
  double largest = 0;
  for (int64_t i = 0; i < d; i++) {
    pivots[i] = i;
    largest = a[i * d + i] > largest ? a[i * d + i] : largest;
  }
  const double least = (double)d * kEpsilon64 * largest;
  for (int64_t from = 0; from < d; from += kPanel64) {
    const int64_t end = imin(from + kPanel64, d);
    for (int64_t i = from; i < d; i++) work[i] = a[i * d + i];
    for (int64_t j = from; j < end; j++) {
      int64_t best = j;
      for (int64_t i = j; i < d; i++) {
        best = work[i] > work[best] ? i : best;
        if (work[i] < -1e3 * least)
          return diffit_cpu_fail(ctx, DIFFIT_INVALID, "It is not positive semidefinite (a pivot of %g beside %g).",
                                 work[i], largest);
      }
      if (!(work[best] > least)) {
        *rank = j;
        return DIFFIT_OK;
      }
      if (best != j) {
        swapRowsAndColumns(a, d, j, best);
        const int64_t p = pivots[j];
        const double w = work[j];
        pivots[j] = pivots[best];
        pivots[best] = p;
        work[j] = work[best];
        work[best] = w;
      }
      const double pivot = __builtin_sqrt(work[j]);
      parallelChunks(ctx, d - j - 1, 256, [=](int64_t begin, int64_t stop, int) {
        for (int64_t i = j + 1 + begin; i < j + 1 + stop; i++) {
          double sum = a[i * d + j];
          for (int64_t k = from; k < j; k++) sum -= a[i * d + k] * a[j * d + k];
          a[i * d + j] = sum / pivot;
          work[i] -= a[i * d + j] * a[i * d + j];
        }
      });
      a[j * d + j] = pivot;
    }
    if (end == d) break;
    const Matrix64 panel = {a + end * d + from, d, 1, false};
    double *rest = a + end * d + end;
    const diffit_status status = product64(ctx, panel, panel, d - end, d - end, end - from, rest, d, -1, false);
    if (status != DIFFIT_OK) return status;
  }
  *rank = d;
  return DIFFIT_OK;
}

/* The reflector I - tau v v^T, v[0] = 1, that maps x to (beta, 0, ...): v takes the place of x, beta is returned. */
static double reflector(double *x, int64_t n, double *tau) {
  double largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const double size = __builtin_fabs(x[i]);
    largest = size > largest ? size : largest;
  }
  *tau = 0;
  const double head = x[0];
  double sum = 0;
  if (largest > 0)
    for (int64_t i = 1; i < n; i++) sum += (x[i] / largest) * (x[i] / largest);
  x[0] = 1;
  if (sum == 0) return head;
  const double scaled = head / largest;
  const double norm = largest * __builtin_sqrt(scaled * scaled + sum);
  const double beta = head > 0 ? -norm : norm;
  *tau = (beta - head) / beta;
  for (int64_t i = 1; i < n; i++) x[i] /= head - beta;
  return beta;
}

/*
 * The bidiagonal of a [m, n], m >= n, with the singular values of a: diagonal[n], beside[n - 1]. a is overwritten.
 * With the left reflector (u, tau) and the right one (v, sigma) of a step the trailing matrix loses u y^T + x v^T, where y = tau A^T u and
 * x = sigma (A - u y^T) v; that is taken from it in the pass in which the next step multiplies it.
 */
static diffit_status bidiagonal(diffit_context *ctx, double *a, int64_t m, int64_t n, double *diagonal,
                                double *beside) {
  const int64_t stripes = ceilDiv(m, kStripe64);
  double *memory = (double *)diffit_cpu_shared(ctx, 0, (size_t)(3 * m + 2 * n + stripes * n) * sizeof(double));
  if (!memory) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for singular values.");
  double *u = memory, *x = u + m, *y = x + m, *v = y + n, *next = v + n, *partial = next + m;
  bool pending = false; /* `next` is the new u, while the old one is needed */
  for (int64_t j = 0; j < n; j++) {
    /* Column j of the up-to-date matrix, from row j on. */
    for (int64_t i = j; i < m; i++) {
      double *at = a + i * n + j;
      if (pending) *at -= u[i] * y[j] + x[i] * v[j];
    }
    double tau;
    for (int64_t i = j; i < m; i++) next[i - j] = a[i * n + j];
    diagonal[j] = reflector(next, m - j, &tau);
    for (int64_t i = j; i < m; i++) a[i * n + j] = next[i - j];
    if (j + 1 == n) break;
    /* One pass: the update of the step before, and A^T u. */
    const int64_t wide = n - j - 1, first = j / kStripe64;
    parallelChunks(ctx, stripes - first, 1, [=](int64_t stripe, int64_t, int) {
      double *sums = partial + (first + stripe) * n + j + 1;
      double *const columns = a + j + 1;
      for (int64_t k = 0; k < wide; k++) sums[k] = 0;
      const int64_t begin = imax(j, (first + stripe) * kStripe64), end = imin(m, (first + stripe + 1) * kStripe64);
      for (int64_t i = begin; i < end; i++) {
        double *row = columns + i * n;
        const double *yy = y + j + 1, *vv = v + j + 1;
        const double ui = u[i], xi = x[i], newU = a[i * n + j];
        if (pending) {
          for (int64_t k = 0; k < wide; k++) {
            row[k] -= ui * yy[k] + xi * vv[k];
            sums[k] += newU * row[k];
          }
        } else {
          for (int64_t k = 0; k < wide; k++) sums[k] += newU * row[k];
        }
      }
    });
    for (int64_t i = j; i < m; i++) u[i] = a[i * n + j];
    for (int64_t k = j + 1; k < n; k++) {
      double sum = 0;
      for (int64_t s = first; s < stripes; s++) sum += partial[s * n + k];
      y[k] = tau * sum;
    }
    /* Row j of the matrix after the left reflector gives the right one. */
    for (int64_t k = j + 1; k < n; k++) v[k] = a[j * n + k] - u[j] * y[k];
    double sigma;
    beside[j] = reflector(v + j + 1, wide, &sigma);
    double dot = 0;
    for (int64_t k = j + 1; k < n; k++) dot += y[k] * v[k];
    parallelChunks(ctx, m - j - 1, kStripe64, [=](int64_t begin, int64_t end, int) {
      for (int64_t i = j + 1 + begin; i < j + 1 + end; i++) {
        const double *row = a + i * n;
        vd four[4] = {};
        int64_t k = j + 1;
        for (; k + 4 * kLanes64 <= n; k += 4 * kLanes64)
          for (int part = 0; part < 4; part++)
            four[part] += load64(row + k + part * kLanes64) * load64(v + k + part * kLanes64);
        double lanes[kLanes64];
        store64(lanes, (four[0] + four[1]) + (four[2] + four[3]));
        double sum = 0;
        for (int l = 0; l < kLanes64; l++) sum += lanes[l];
        for (; k < n; k++) sum += row[k] * v[k];
        x[i] = sigma * (sum - u[i] * dot);
      }
    });
    pending = true;
  }
  return DIFFIT_OK;
}

/* Eigenvalues of the symmetric tridiagonal (d [n], e [n - 1], room for n), in d: implicit QL (Wilkinson and Reinsch, 1971). False when
   one does not come out in 60 steps. */
static bool tridiagonalEigenvalues(double *d, double *e, int64_t n) {
  e[n - 1] = 0;
  for (int64_t l = 0; l < n; l++) {
    for (int step = 0;; step++) {
      int64_t m = l;
      for (; m + 1 < n; m++) {
        const double size = __builtin_fabs(d[m]) + __builtin_fabs(d[m + 1]);
        const double off = __builtin_fabs(e[m]);
        if (off <= kEpsilon64 * size || off < 1e-290) break;
      }
      if (m == l) break;
      if (step == 60) return false;
      double g = (d[l + 1] - d[l]) / (2 * e[l]);
      double r = __builtin_sqrt(g * g + 1);
      g = d[m] - d[l] + e[l] / (g + (g >= 0 ? r : -r));
      double s = 1, c = 1, p = 0;
      int64_t i = m - 1;
      for (; i >= l; i--) {
        const double f = s * e[i], b = c * e[i];
        r = __builtin_sqrt(f * f + g * g);
        e[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
      }
      if (r == 0 && i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
  return true;
}

/* The sum of the singular values of a [m, n], m >= n >= 1; a is overwritten. */
static diffit_status nuclearNorm(diffit_context *ctx, double *a, int64_t m, int64_t n, double *out) {
  /* Powers of two bring the largest element near 1, so that no square leaves the range of f64. */
  double largest = 0;
  for (int64_t i = 0; i < m * n; i++) {
    const double size = __builtin_fabs(a[i]);
    largest = size > largest ? size : largest;
  }
  *out = 0;
  if (largest == 0) return DIFFIT_OK;
  double scale = 1;
  while (largest * scale < 0.5) scale *= 2;
  while (largest * scale > 1) scale /= 2;
  for (int64_t i = 0; i < m * n; i++) a[i] *= scale;
  double *memory = (double *)diffit_cpu_shared(ctx, 1, (size_t)(6 * n) * sizeof(double));
  if (!memory) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for singular values.");
  double *diagonal = memory, *beside = diagonal + n, *d = beside + n, *e = d + 2 * n;
  const diffit_status status = bidiagonal(ctx, a, m, n, diagonal, beside);
  if (status != DIFFIT_OK) return status;
  for (int64_t i = 0; i < n; i++) {
    d[2 * i] = d[2 * i + 1] = 0;
    e[2 * i] = diagonal[i];
    e[2 * i + 1] = i + 1 < n ? beside[i] : 0;
  }
  if (!tridiagonalEigenvalues(d, e, 2 * n))
    return diffit_cpu_fail(ctx, DIFFIT_INVALID, "The singular values do not converge.");
  double sum = 0;
  for (int64_t i = 0; i < 2 * n; i++) sum += __builtin_fabs(d[i]);
  *out = sum / (2 * scale);
  return DIFFIT_OK;
}

/* a becomes the mean of itself and its transpose, in squares that fit the cache; false where a number is not finite. */
static bool symmetrize(diffit_context *ctx, double *a, int64_t d) {
  static constexpr int64_t kSquare = 32;
  const int64_t across = ceilDiv(d, kSquare);
  int32_t bad = 0, *found = &bad;
  parallelChunks(ctx, across * across, across, [=](int64_t begin, int64_t end, int) {
    for (int64_t index = begin; index < end; index++) {
      const int64_t row = index / across * kSquare, column = index % across * kSquare;
      if (column > row) continue;
      double sum = 0;
      for (int64_t i = row; i < imin(row + kSquare, d); i++)
        for (int64_t j = column; j < imin(column + kSquare, i + 1); j++) {
          const double mean = 0.5 * (a[i * d + j] + a[j * d + i]);
          a[i * d + j] = a[j * d + i] = mean;
          sum += mean - mean; /* NaN of infinity and NaN */
        }
      if (sum != 0) __atomic_store_n(found, 1, __ATOMIC_RELAXED);
    }
  });
  return bad == 0;
}

/* tr sqrt(A B); both [d, d] positive semidefinite, symmetric but for rounding, both overwritten. */
static diffit_status trace_sqrt(diffit_context *ctx, double *a, double *b, int64_t d, double *out) {
  int64_t *pivots = (int64_t *)diffit_cpu_shared(ctx, 0, (size_t)d * sizeof(int64_t));
  double *work = (double *)diffit_cpu_shared(ctx, 1, (size_t)d * sizeof(double));
  double *spare = (double *)diffit_cpu_shared(ctx, 2, (size_t)(d * d) * sizeof(double));
  if (!pivots || !work || !spare) return diffit_cpu_fail(ctx, DIFFIT_OUT_OF_MEMORY, "There is no memory for a factor.");
  int64_t ranks[2];
  double *factors[2] = {a, b};
  for (int side = 0; side < 2; side++) {
    double *of = factors[side];
    if (!symmetrize(ctx, of, d)) return diffit_cpu_fail(ctx, DIFFIT_INVALID, "It has a number that is not finite.");
    const diffit_status status = pivotedCholesky(ctx, of, d, pivots, work, &ranks[side]);
    if (status != DIFFIT_OK) return status;
    /* Zeros above the diagonal, and rows back in their order. */
    for (int64_t i = 0; i < d; i++)
      for (int64_t j = i + 1; j < d; j++) of[i * d + j] = 0;
    memcpy(spare, of, (size_t)(d * d) * sizeof(double));
    for (int64_t i = 0; i < d; i++) memcpy(of + pivots[i] * d, spare + i * d, (size_t)d * sizeof(double));
  }
  const int tall = ranks[0] >= ranks[1] ? 0 : 1;
  const int64_t m = ranks[tall], n = ranks[1 - tall];
  *out = 0;
  if (n == 0) return DIFFIT_OK;
  const Matrix64 left = {factors[tall], 1, d, false}, right = {factors[1 - tall], 1, d, false};
  memset(spare, 0, (size_t)(m * n) * sizeof(double));
  const diffit_status status = product64(ctx, left, right, m, n, d, spare, n, 1, false);
  return status == DIFFIT_OK ? nuclearNorm(ctx, spare, m, n, out) : status;
}

#endif
