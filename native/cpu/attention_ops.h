/*
 * The two operations. One table for the whole batch is the fast path (attention.h, attention_backward.h); with a table
 * per sample ([B, rows, heads]: the paper's "time token in the bias only") each sample is a call of its own.
 */
#ifndef DIFFIT_CPU_ATTENTION_OPS_H
#define DIFFIT_CPU_ATTENTION_OPS_H

/* Sample b of a tensor whose first axis is the batch, still with that axis (of 1); NULL stays NULL. */
struct SampleView {
  diffit_tensor tensor;
  diffit_tensor *of(const diffit_tensor *t, int64_t b) {
    if (!t) return nullptr;
    tensor = *t;
    tensor.shape[0] = 1;
    tensor.data = (char *)t->data + b * numel(&tensor) * (t->dtype == DIFFIT_F32 ? 4 : 2);
    return &tensor;
  }
};

/* Is there one table per sample, with every tensor given split by sample? */
DIFFIT_INLINE bool hasTables(const diffit_tensor *table) { return table && table->ndim == 3; }
DIFFIT_INLINE bool splits(const diffit_tensor *t, int64_t batch) {
  return !t || (t->ndim >= 1 && t->shape[0] == batch && (t->dtype == DIFFIT_F32 || t->dtype == DIFFIT_BF16));
}

static diffit_status attention_op(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                  const diffit_tensor *table, diffit_tensor *y, diffit_tensor *lse, int64_t heads,
                                  int64_t windowH, int64_t windowW, double scale) {
  if (!hasTables(table)) return attend(ctx, qkv, time, table, y, lse, heads, windowH, windowW, scale);
  REQUIRE(qkv->ndim == 4);
  const int64_t batch = qkv->shape[0];
  REQUIRE(splits(qkv, batch) && splits(time, batch) && splits(table, batch) && splits(y, batch) && splits(lse, batch));
  for (int64_t b = 0; b < batch; b++) {
    SampleView v[5];
    const diffit_status status = attend(ctx, v[0].of(qkv, b), v[1].of(time, b), v[2].of(table, b), v[3].of(y, b),
                                        v[4].of(lse, b), heads, windowH, windowW, scale);
    if (status != DIFFIT_OK) return status;
  }
  return DIFFIT_OK;
}

static diffit_status attention_backward_op(diffit_context *ctx, const diffit_tensor *qkv, const diffit_tensor *time,
                                           const diffit_tensor *table, const diffit_tensor *y, const diffit_tensor *lse,
                                           const diffit_tensor *dy, diffit_tensor *dqkv, diffit_tensor *dtime,
                                           diffit_tensor *dtable, int64_t heads, int64_t windowH, int64_t windowW,
                                           double scale) {
  if (!hasTables(table))
    return attendBackward(ctx, qkv, time, table, y, lse, dy, dqkv, dtime, dtable, heads, windowH, windowW, scale);
  REQUIRE(qkv->ndim == 4);
  const int64_t batch = qkv->shape[0];
  REQUIRE(splits(qkv, batch) && splits(time, batch) && splits(table, batch) && splits(y, batch) && splits(lse, batch));
  REQUIRE(splits(dy, batch) && splits(dqkv, batch) && splits(dtime, batch) && splits(dtable, batch));
  for (int64_t b = 0; b < batch; b++) {
    SampleView v[9];
    const diffit_status status = attendBackward(ctx, v[0].of(qkv, b), v[1].of(time, b), v[2].of(table, b),
                                                v[3].of(y, b), v[4].of(lse, b), v[5].of(dy, b), v[6].of(dqkv, b),
                                                v[7].of(dtime, b), v[8].of(dtable, b), heads, windowH, windowW, scale);
    if (status != DIFFIT_OK) return status;
  }
  return DIFFIT_OK;
}

#endif
