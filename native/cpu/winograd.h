/*
 * The one-dimensional transforms of Winograd's minimal filtering, for 3 taps and M results: F(M, 3) with M + 2 products
 * where the direct form has 3 M (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"). Applied to the
 * columns and then to the rows of a tile they make F(M x M, 3 x 3): (M + 2)^2 products instead of 9 M^2.
 *
 *   y = A^T ((G g) * (B^T d))      d: M + 2 pixels, g: 3 taps, y: M results, * elementwise
 *   dg = G^T ((A dy) * (B^T d))    the gradient of the taps, with the same matrices
 *
 * F(2, 3) interpolates at 0, 1, -1 and infinity: its sums are nine times shorter than the direct form's and its error is smaller.
 * F(4, 3) at 0, +-5/8, +-3/2 and infinity: a third of the error of the usual 0, +-1, +-2 and every constant of A and B is exact.
 */
#ifndef DIFFIT_CPU_WINOGRAD_H
#define DIFFIT_CPU_WINOGRAD_H

template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  DIFFIT_INLINE void input(const vf *d, vf *v) { /* B^T d */
    v[0] = d[0] - d[2], v[1] = d[1] + d[2], v[2] = d[2] - d[1], v[3] = d[3] - d[1];
  }
  DIFFIT_INLINE void output(const vf *m, vf *y) { /* A^T m */
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
  }
  DIFFIT_INLINE void taps(const vf *g, vf *u) { /* G g */
    const vf even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
    u[0] = g[0], u[1] = even + odd, u[2] = even - odd, u[3] = g[2];
  }
  DIFFIT_INLINE void results(const vf *y, vf *m) { /* A y */
    m[0] = y[0], m[1] = y[0] + y[1], m[2] = y[0] - y[1], m[3] = y[1];
  }
  DIFFIT_INLINE void tapSums(const vf *u, vf *g) { /* G^T u */
    const vf even = 0.5f * (u[1] + u[2]);
    g[0] = u[0] + even, g[1] = 0.5f * (u[1] - u[2]), g[2] = even + u[3];
  }
};

template <>
struct Winograd<4> {
  static constexpr float a = 0.625f, b = 1.5f, a2 = a * a, b2 = b * b;
  static constexpr double pa = 1 / (2.0 * a2 * (a2 - b2)), pb = 1 / (2.0 * b2 * (b2 - a2)), p0 = 1 / ((double)a2 * b2);

  DIFFIT_INLINE void input(const vf *d, vf *v) {
    const vf evenA = d[4] - b2 * d[2], oddA = a * d[3] - (a * b2) * d[1];
    const vf evenB = d[4] - a2 * d[2], oddB = b * d[3] - (b * a2) * d[1];
    v[0] = (d[4] - (a2 + b2) * d[2]) + (a2 * b2) * d[0];
    v[1] = evenA + oddA, v[2] = evenA - oddA;
    v[3] = evenB + oddB, v[4] = evenB - oddB;
    v[5] = (d[5] - (a2 + b2) * d[3]) + (a2 * b2) * d[1];
  }
  DIFFIT_INLINE void output(const vf *m, vf *y) {
    const vf evenA = m[1] + m[2], oddA = m[1] - m[2], evenB = m[3] + m[4], oddB = m[3] - m[4];
    y[0] = m[0] + evenA + evenB;
    y[1] = a * oddA + b * oddB;
    y[2] = a2 * evenA + b2 * evenB;
    y[3] = (a * a2) * oddA + ((b * b2) * oddB + m[5]);
  }
  DIFFIT_INLINE void taps(const vf *g, vf *u) {
    const vf evenA = (float)pa * g[0] + (float)(pa * a2) * g[2], oddA = (float)(pa * a) * g[1];
    const vf evenB = (float)pb * g[0] + (float)(pb * b2) * g[2], oddB = (float)(pb * b) * g[1];
    u[0] = (float)p0 * g[0];
    u[1] = evenA + oddA, u[2] = evenA - oddA;
    u[3] = evenB + oddB, u[4] = evenB - oddB;
    u[5] = g[2];
  }
  DIFFIT_INLINE void results(const vf *y, vf *m) {
    const vf evenA = y[0] + a2 * y[2], oddA = a * y[1] + (a * a2) * y[3];
    const vf evenB = y[0] + b2 * y[2], oddB = b * y[1] + (b * b2) * y[3];
    m[0] = y[0];
    m[1] = evenA + oddA, m[2] = evenA - oddA;
    m[3] = evenB + oddB, m[4] = evenB - oddB;
    m[5] = y[3];
  }
  DIFFIT_INLINE void tapSums(const vf *u, vf *g) {
    const vf evenA = u[1] + u[2], oddA = u[1] - u[2], evenB = u[3] + u[4], oddB = u[3] - u[4];
    g[0] = (float)p0 * u[0] + ((float)pa * evenA + (float)pb * evenB);
    g[1] = (float)(pa * a) * oddA + (float)(pb * b) * oddB;
    g[2] = (float)(pa * a2) * evenA + ((float)(pb * b2) * evenB + u[5]);
  }
};

/* Both dimensions: the columns of `from` [From][From], then the rows. `step` is one of Winograd<M>'s, From numbers to To. */
template <int From, int To, class Step>
DIFFIT_INLINE void transformTile(const vf *from, vf *to, const Step &step) {
  vf half[To * From]; /* [column][transformed row] */
#pragma GCC unroll 6
  for (int x = 0; x < From; x++) {
    vf column[From];
#pragma GCC unroll 6
    for (int y = 0; y < From; y++) column[y] = from[y * From + x];
    step(column, half + x * To);
  }
#pragma GCC unroll 6
  for (int y = 0; y < To; y++) {
    vf row[From];
#pragma GCC unroll 6
    for (int x = 0; x < From; x++) row[x] = half[x * To + y];
    step(row, to + y * To);
  }
}

/* A convolution's images as M x M tiles of the output, in row-major order. */
struct TileGrid {
  int64_t side, rows, columns, count;
  TileGrid(int64_t m, int64_t batch, int64_t height, int64_t width)
      : side(m), rows(ceilDiv(height, m)), columns(ceilDiv(width, m)), count(batch * rows * columns) {}
  /* The first output pixel of a tile. */
  struct Place {
    int64_t item, y, x;
  };
  Place at(int64_t tile) const { return {tile / columns / rows, tile / columns % rows * side, tile % columns * side}; }
};

/* Where the pixels of a square of an image [batch, height, width, channels] of f32 or bf16 lie; those outside are `zeros`. */
template <class T>
struct TileImage {
  const T *data;
  int64_t height, width, channels;
  const T *zeros; /* at least `channels` of them */
  template <int Side>
  void locate(int64_t item, int64_t y0, int64_t x0, const T **pixels) const {
    for (int i = 0; i < Side * Side; i++) {
      const int64_t y = y0 + i / Side, x = x0 + i % Side;
      const bool inside = y >= 0 && y < height && x >= 0 && x < width;
      pixels[i] = inside ? data + ((item * height + y) * width + x) * channels : zeros;
    }
  }
};

/* n of the kLanes numbers at p; the others 0. */
template <class P>
DIFFIT_INLINE vf loadFirst(P p, int64_t n) {
  return n >= kLanes ? load(p) : loadPartial(p, n);
}
template <class P>
DIFFIT_INLINE void storeFirst(P p, vf v, int64_t n) {
  if (n >= kLanes)
    store(p, v);
  else
    storePartial(p, v, n);
}

/* Which of the two forms, if any, a 3x3 convolution of unit stride takes: 4, 2 or 0 for the implicit product. The costs are those
   measured with AVX-512, in multiply-adds for each pair of an input and an output channel: of the products, of transforming
   the weights, and of transforming tiles, which all channels of the other side share. Where sums are short the rounding of F(4, 3)'s
   transforms shows beside that of the sums, so it is for many channels: forward, of images and of weights. Its errors there are 8e-7 of the
   result in the Euclidean norm, the implicit product's 3.5e-7; of the largest number at most 2.5e-6, also for images of mean 100
   and deviation 1. */
static int winogradSide(int64_t batch, int64_t height, int64_t width, int64_t depth, int64_t lines) {
  if (imin(depth, lines) < 32) return 0;
  const double pairs = 1.0 / (double)imin(depth, lines);
  const double small = (double)TileGrid(2, batch, height, width).count,
               large = (double)TileGrid(4, batch, height, width).count;
  const double direct = 9.0 * (double)(batch * height * width);
  const double two = 525 + small * (17.6 + 480 * pairs);
  const double four = 1300 + large * (45 + 2300 * pairs);
  if (imin(depth, lines) >= 128 && four < two && four < direct) return 4;
  return two < direct ? 2 : 0;
}

#endif
