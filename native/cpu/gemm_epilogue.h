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

/* Numbers of f32 or bf16, known at run time; a float * is one. */
struct Floats : AnyFloats {
  Floats(const float *p = nullptr) : AnyFloats{(char *)p, 2} {}
  Floats(AnyFloats p) : AnyFloats(p) {}
};
static Floats floatsOf(const diffit_tensor *t) {
  return t ? AnyFloats{(char *)t->data, t->dtype == DIFFIT_BF16 ? 1 : 2} : Floats();
}

struct Epilogue {
  const float *bias; /* [n] or null */
  Floats gateInput; /* [rows, n] or null, used with gateKind */
  Floats residual; /* [rows, n] or null; may be y */
  Floats y; /* [rows, n], or the pixels `grid` names */
  Floats pre; /* [rows, n] or null */
  int64_t n;
  int activation, gateKind; /* unary kinds; activation -1: none */
  bool accumulate;
  RowGrid grid;

  /* The product can be written straight to y. */
  bool plain() const {
    return !bias && !gateInput && !residual && !pre && activation < 0 && !accumulate && grid.width == 0 && y.shift == 2;
  }
  int64_t rowOffset(int64_t row) const {
    if (grid.width == 0) return row * n;
    const int64_t line = row / grid.width;
    return grid.offset + row % grid.width * grid.stepX + line % grid.height * grid.stepY +
           line / grid.height * grid.stepB;
  }
  /* What finishing this tile will touch. */
  void fetch(FetchList *list, int64_t row, int64_t rows, int64_t col, int64_t cols) const {
    for (int64_t r = row; r < row + rows; r++) {
      const int64_t offset = rowOffset(r) + col;
      list->span((y + offset).data, cols << y.shift);
      if (pre) list->span((pre + offset).data, cols << pre.shift);
      if (gateInput) list->span((gateInput + offset).data, cols << gateInput.shift);
      if (residual && residual.data != y.data) list->span((residual + offset).data, cols << residual.shift);
    }
  }
};

/* f(i, take, put) for each vector of a row of n numbers, whole ones first: take and put read and write a vector of it. */
struct WholeVector {
  template <class Pointer>
  vf operator()(Pointer p) const {
    return load(p);
  }
  template <class Pointer>
  void operator()(Pointer p, vf v) const {
    store(p, v);
  }
};
struct PartialVector {
  int64_t n;
  template <class Pointer>
  vf operator()(Pointer p) const {
    return loadPartial(p, n);
  }
  template <class Pointer>
  void operator()(Pointer p, vf v) const {
    storePartial(p, v, n);
  }
};
template <class F>
DIFFIT_INLINE void forRow(int64_t n, const F &f) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, WholeVector{});
  if (i < n) f(i, PartialVector{n - i});
}

template <int kind>
static void gateTile(float *tile, int64_t stride, AnyFloats gate, int64_t n, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; r++) {
    float *t = tile + r * stride;
    const AnyFloats g = gate + r * n;
    forRow(cols, [&](int64_t i, auto at) { store(t + i, load(t + i) * unaryDerivative(kind, at(g + i))); });
  }
}

/* Everything but the gate in one pass. Y: the pointer to numbers of y, f32 alone or either type. */
template <int activation, class Y>
static void finishRows(const Epilogue &e, const float *tile, int64_t stride, int64_t row, int64_t rows, int64_t col,
                       int64_t cols, Y y, bool bias, Y pre, Y residual, bool accumulate) {
  for (int64_t r = 0; r < rows; r++, tile += stride) {
    const int64_t offset = e.rowOffset(row + r) + col;
    forRow(cols, [&](int64_t i, auto at) {
      vf v = load(tile + i);
      if (bias) v += at(e.bias + col + i);
      if (pre) at(pre + offset + i, v);
      v = unaryForward(activation, v);
      if (residual) v += at(residual + offset + i);
      if (accumulate) v += at(y + offset + i);
      at(y + offset + i, v);
    });
  }
}

#define DIFFIT_EACH_KIND(use)                                                                                \
  use(DIFFIT_NEG) use(DIFFIT_EXP) use(DIFFIT_LOG) use(DIFFIT_SQRT) use(DIFFIT_RSQRT) use(DIFFIT_RECIPROCAL)  \
      use(DIFFIT_SIN) use(DIFFIT_COS) use(DIFFIT_TANH) use(DIFFIT_SIGMOID) use(DIFFIT_RELU) use(DIFFIT_SILU) \
          use(DIFFIT_GELU_TANH) use(DIFFIT_GELU_ERF) use(DIFFIT_ABS) use(DIFFIT_SQUARE) use(DIFFIT_IS_FINITE)

template <class Y>
static void finishActivated(const Epilogue &e, const float *tile, int64_t stride, int64_t row, int64_t rows,
                            int64_t col, int64_t cols, Y y, int activation, bool bias, Y pre, Y residual,
                            bool accumulate) {
  switch (activation) {
#define DIFFIT_FINISH(kind) \
  case kind:                \
    return finishRows<kind>(e, tile, stride, row, rows, col, cols, y, bias, pre, residual, accumulate);
    DIFFIT_EACH_KIND(DIFFIT_FINISH)
#undef DIFFIT_FINISH
    default:
      return finishRows<DIFFIT_NO_ACTIVATION>(e, tile, stride, row, rows, col, cols, y, bias, pre, residual,
                                              accumulate);
  }
}

template <int kind>
static void activateRows(float *tile, int64_t stride, int64_t rows, int64_t cols) {
  for (int64_t r = 0; r < rows; r++)
    forRow(cols, [&](int64_t i, auto) {
      float *t = tile + r * stride + i;
      store(t, unaryForward(kind, load(t)));
    });
}
static void activateTile(int activation, float *tile, int64_t stride, int64_t rows, int64_t cols) {
  switch (activation) {
#define DIFFIT_ACTIVATE(kind) \
  case kind:                  \
    return activateRows<kind>(tile, stride, rows, cols);
    DIFFIT_EACH_KIND(DIFFIT_ACTIVATE)
#undef DIFFIT_ACTIVATE
  }
}

static void gateRows(const Epilogue &e, float *tile, int64_t stride, int64_t row, int64_t rows, int64_t col,
                     int64_t cols) {
  const AnyFloats gate = e.gateInput + row * e.n + col;
  switch (e.gateKind) {
#define DIFFIT_GATE(kind) \
  case kind:              \
    return gateTile<kind>(tile, stride, gate, e.n, rows, cols);
    DIFFIT_EACH_KIND(DIFFIT_GATE)
#undef DIFFIT_GATE
  }
}
#undef DIFFIT_EACH_KIND

/* Rows row .. row + rows of the product, columns col .. col + cols, held in `tile` with that row stride; tile rows
   are padded to whole vectors. May overwrite the tile. */
static void finishTile(const Epilogue &e, float *tile, int64_t stride, int64_t row, int64_t rows, int64_t col,
                       int64_t cols) {
  const bool bias = e.bias != nullptr, low = (e.y.shift & e.pre.shift & e.residual.shift) != 2;
  if (e.gateInput) {
    if (bias || e.pre || e.activation >= 0) {
      for (int64_t r = 0; r < rows; r++) {
        float *t = tile + r * stride;
        forRow(cols, [&](int64_t i, auto at) {
          vf v = load(t + i);
          if (bias) v += at(e.bias + col + i);
          if (e.pre) at(e.pre + (row + r) * e.n + col + i, v);
          store(t + i, v);
        });
      }
      activateTile(e.activation, tile, stride, rows, cols);
    }
    gateRows(e, tile, stride, row, rows, col, cols);
    return finishActivated<AnyFloats>(e, tile, stride, row, rows, col, cols, e.y, DIFFIT_NO_ACTIVATION, false, Floats(),
                                      e.residual, e.accumulate);
  }
  if (low)
    return finishActivated<AnyFloats>(e, tile, stride, row, rows, col, cols, e.y, e.activation, bias, e.pre, e.residual,
                                      e.accumulate);
  return finishActivated<float *>(e, tile, stride, row, rows, col, cols, (float *)e.y.data, e.activation, bias,
                                  (float *)e.pre.data, (float *)e.residual.data, e.accumulate);
}

#endif
