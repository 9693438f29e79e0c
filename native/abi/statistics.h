/*
 * Statistics in f64 that the CPU backend offers beside the operations (statistics.h, singular.h): what lib/metrics computes from features.
 * Plain memory instead of tensors, as there are no tensors of f64. Run them on the queue's thread of the context, like operations.
 */
#ifndef DIFFIT_ABI_STATISTICS_H
#define DIFFIT_ABI_STATISTICS_H

#include "diffit.h"

/* Rows of features, [count, width], f32 or f64. */
struct diffit_rows {
  const void *data;
  int64_t count, width;
  int32_t isF32;
};

struct diffit_statistics {
  /* Rows join `before` rows of which mean [width] and scatter [width, width] are known, the lower triangle alone. */
  diffit_status (*merge_rows)(diffit_context *, const diffit_rows *rows, int64_t before, double *mean, double *scatter);
  /* The k smallest squared distances of each row, in order, nearestA [a, k] and nearestB [b, k], with those between a and b added to what
     is there. Without nearestB a and b are the same rows, and no row is near itself. */
  diffit_status (*nearest)(diffit_context *, const diffit_rows *a, const diffit_rows *b, int64_t k, double *nearestA,
                           double *nearestB);
  /* aInB[i] becomes 1 where |a[i] - b[j]|^2 <= radiiB[j] for some j, bInA[j] likewise; they keep what they were elsewhere. */
  diffit_status (*within)(diffit_context *, const diffit_rows *a, const diffit_rows *b, const double *radiiA,
                          const double *radiiB, uint8_t *aInB, uint8_t *bInA);
  /* out[0] = tr sqrt(a b) of covariances [d, d]. Overwrites a and b. */
  diffit_status (*trace_sqrt)(diffit_context *, double *a, double *b, int64_t d, double *out);
};

extern "C" {
/* Those of the instruction set that the context runs. */
const diffit_statistics *diffit_cpu_statistics(const diffit_context *);
}

#endif
