/*
 * What happens to a finished tile of a matrix product on its way to memory: bias, pre-activation copy, activation,
 * derivative gate, residual, accumulation (the order ops.def gives). The tile sits in L1 or L2, so each tensor of the
 * epilogue is read or written once and the product itself never makes a second trip.
 */
#ifndef DIFFIT_CPU_GEMM_EPILOGUE_H
#define DIFFIT_CPU_GEMM_EPILOGUE_H

/* Where row r of the product lies in y when the rows are the pixels of a sub-grid of an image (dgrad with stride);
   width 0: rows follow each other. */
struct RowGrid {
  int64_t width, height; /* pixels of the sub-grid, row-major per sample */
  int64_t offset, stepX, stepY, stepB; /* element offset of pixel (b, v, u) = offset + u stepX + v stepY + b stepB */
};

struct Epilogue {
  const float *bias; /* [n] or null */
  const float *gateInput; /* [rows, n] or null, used with gateKind */
  const float *residual; /* [rows, n] or null; may be y */
  float *y; /* [rows, n], or the pixels `grid` names */
  float *pre; /* [rows, n] or null */
  int64_t n;
  int activation, gateKind; /* unary kinds; activation -1: none */
  bool accumulate;
  RowGrid grid;

  /* The product can be written straight to y. */
  bool plain() const {
    return !bias && !gateInput && !residual && !pre && activation < 0 && !accumulate && grid.width == 0;
  }
  int64_t rowOffset(int64_t row) const {
    if (grid.width == 0) return row * n;
    const int64_t line = row / grid.width;
    return grid.offset + row % grid.width * grid.stepX + line % grid.height * grid.stepY +
           line / grid.height * grid.stepB;
  }
  /* Asks for what finishing this tile will touch, so that memory works while the tile is computed. */
  void prefetch(int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    for (int64_t r = row; r < row + rows; r++) {
      const int64_t offset = rowOffset(r) + col;
      for (int64_t i = 0; i < cols + 15; i += 16) {
        const int64_t at = offset + imin(i, cols - 1);
        __builtin_prefetch(y + at, 1);
        if (pre) __builtin_prefetch(pre + at, 1);
        if (gateInput) __builtin_prefetch(gateInput + at);
        if (residual && residual != y) __builtin_prefetch(residual + at);
      }
    }
  }
};

/* to[i] = f(i) for i < n, whole vectors first: f(i, take) gets how to read a vector of a row. */
struct WholeVector {
  vf operator()(const float *p) const { return load(p); }
};
struct PartialVector {
  int64_t n;
  vf operator()(const float *p) const { return loadPartial(p, n); }
};
template <class F>
DIFFIT_INLINE void forRow(float *to, int64_t n, const F &f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, f(i, WholeVector{}));
  if (i < n) storePartial(to + i, f(i, PartialVector{n - i}), n - i);
}

template <int kind>
static void activateTile(float *tile, int64_t stride, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++)
    for (float *t = tile + r * stride, *end = t + width; t < end; t += kLanes) store(t, unaryForward(kind, load(t)));
}

template <int kind>
static void gateTile(float *tile, int64_t stride, const float *gate, int64_t n, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; r++) {
    float *t = tile + r * stride;
    const float *g = gate + r * n;
    forRow(t, cols, [&](int64_t i, auto take) { return load(t + i) * unaryDerivative(kind, take(g + i)); });
  }
}

#define DIFFIT_EACH_KIND(use)                                                                                \
  use(DIFFIT_NEG) use(DIFFIT_EXP) use(DIFFIT_LOG) use(DIFFIT_SQRT) use(DIFFIT_RSQRT) use(DIFFIT_RECIPROCAL)  \
      use(DIFFIT_SIN) use(DIFFIT_COS) use(DIFFIT_TANH) use(DIFFIT_SIGMOID) use(DIFFIT_RELU) use(DIFFIT_SILU) \
          use(DIFFIT_GELU_TANH) use(DIFFIT_GELU_ERF) use(DIFFIT_ABS) use(DIFFIT_SQUARE) use(DIFFIT_IS_FINITE)

/* Rows row .. row + rows of the product, columns col .. col + cols, held in `tile` with that row stride; tile rows are
   padded to whole vectors. Overwrites the tile. */
static void finishTile(const Epilogue &e, float *tile, int64_t stride, int64_t row, int64_t rows, int64_t col,
                       int64_t cols) {
  const bool curved = e.pre || e.activation >= 0 || e.gateInput;
  const float *bias = e.bias ? e.bias + col : nullptr;
  if (curved) {
    for (int64_t r = 0; r < rows; r++) {
      float *t = tile + r * stride;
      if (bias) forRow(t, cols, [&](int64_t i, auto take) { return load(t + i) + take(bias + i); });
      if (e.pre) forRow(e.pre + (row + r) * e.n + col, cols, [&](int64_t i, auto) { return load(t + i); });
    }
    switch (e.activation) {
#define DIFFIT_ACTIVATE(kind)                                      \
  case kind:                                                       \
    activateTile<kind>(tile, stride, rows, roundUp(cols, kLanes)); \
    break;
      DIFFIT_EACH_KIND(DIFFIT_ACTIVATE)
#undef DIFFIT_ACTIVATE
    }
    if (e.gateInput) {
      const float *gate = e.gateInput + row * e.n + col;
      switch (e.gateKind) {
#define DIFFIT_GATE(kind)                                \
  case kind:                                             \
    gateTile<kind>(tile, stride, gate, e.n, rows, cols); \
    break;
        DIFFIT_EACH_KIND(DIFFIT_GATE)
#undef DIFFIT_GATE
      }
    }
    bias = nullptr;
  }
  for (int64_t r = 0; r < rows; r++) {
    const int64_t offset = e.rowOffset(row + r) + col;
    const float *t = tile + r * stride, *residual = e.residual ? e.residual + offset : nullptr;
    float *y = e.y + offset;
    forRow(y, cols, [&](int64_t i, auto take) {
      vf v = load(t + i);
      if (bias) v += take(bias + i);
      if (residual) v += take(residual + i);
      if (e.accumulate) v += take(y + i);
      return v;
    });
  }
}
#undef DIFFIT_EACH_KIND

#endif
