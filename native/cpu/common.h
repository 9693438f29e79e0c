/*
 * What every kernel file uses: sizes of tensors, checks that return a clear status, and the parallel loop.
 */
#ifndef DIFFIT_CPU_COMMON_H
#define DIFFIT_CPU_COMMON_H

DIFFIT_INLINE int64_t numel(const diffit_tensor *t) {
  int64_t n = 1;
  for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
  return n;
}
DIFFIT_INLINE int64_t lastDim(const diffit_tensor *t) { return t->ndim > 0 ? t->shape[t->ndim - 1] : 1; }
DIFFIT_INLINE float *f32(const diffit_tensor *t) { return (float *)t->data; }
DIFFIT_INLINE int64_t imin(int64_t a, int64_t b) { return a < b ? a : b; }
DIFFIT_INLINE int64_t imax(int64_t a, int64_t b) { return a > b ? a : b; }
DIFFIT_INLINE int64_t ceilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
DIFFIT_INLINE int64_t roundUp(int64_t a, int64_t b) { return ceilDiv(a, b) * b; }

/* Leaves the operation with DIFFIT_INVALID and a sentence that names the condition. `ctx` must be in scope. */
#define REQUIRE(condition)                                                                                  \
  do {                                                                                                      \
    if (!(condition)) return diffit_cpu_fail(ctx, DIFFIT_INVALID, "%s: expected %s", __func__, #condition); \
  } while (0)
#define REQUIRE_F32(t) REQUIRE((t)->dtype == DIFFIT_F32)
#define REQUIRE_FLOAT(t) REQUIRE((t)->dtype == DIFFIT_F32 || (t)->dtype == DIFFIT_BF16)

/* body(begin, end, thread) over [0, n) in chunks of `grain`: chunk borders depend on n and grain alone, never on the
   number of threads, so sums kept per chunk come out the same on any machine. */
template <class Body>
static void parallelChunks(diffit_context *ctx, int64_t n, int64_t grain, const Body &body) {
  if (n <= 0) return;
  struct Call {
    const Body *body;
    int64_t n, grain;
  } call = {&body, n, grain};
  const int64_t tasks = ceilDiv(n, grain);
  if (tasks == 1) {
    body((int64_t)0, n, 0);
    return;
  }
  diffit_cpu_run(
      ctx, tasks,
      [](void *argument, int64_t index, int thread) {
        const Call *c = (const Call *)argument;
        (*c->body)(index * c->grain, imin(c->n, (index + 1) * c->grain), thread);
      },
      &call);
}

#endif
