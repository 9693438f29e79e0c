/*
 * Convolutions in CUTLASS's terms (native/cuda/cutlass_conv_shape.cuh), without a GPU: small ones are summed pixel by pixel where TMA's
 * im2col mode finds them, by the corners and offsets that CUTLASS gives it, and compared with sums by the definition of ops.def.
 * Prints a JSON object: per case and kind "right", "refused", or what is wrong.
 *
 * im2col mode (PTX ISA): base pixels go from the lower corner by the traversal stride, as many as fit before the far side moved by the
 * upper corner; each is moved by the offset of a tap; outside of the image there are zeros.
 */
#include <stdio.h>

#include <string>
#include <vector>

#include <cutlass/detail/dependent_false.hpp>
#include <cutlass/detail/layout.hpp>

#include <cutlass/conv/collective/detail.hpp>

#include <cutlass/conv/detail.hpp>

#include "cutlass_conv_shape.cuh"

namespace diffit {
namespace {

using Numbers = std::vector<int>;

struct Case {
  const char *name;
  int batch, height, width, inputs, outputs, kh, kw, oh, ow, stride, padTop, padLeft;
};

diffit_tensor tensor(int a, int b, int c, int d) {
  diffit_tensor t = {};
  t.ndim = 4;
  t.shape[0] = a, t.shape[1] = b, t.shape[2] = c, t.shape[3] = d;
  return t;
}
Numbers numbers(const diffit_tensor &t, unsigned seed) {
  Numbers v((size_t)numel(&t));
  for (int &i : v) i = (int)((seed = seed * 1664525u + 1013904223u) >> 28) - 8;
  return v;
}

/* The result by definition: every product of a pixel of x, a weight and a pixel of y that belong together. */
Numbers byDefinition(const Case &c, ConvKind kind, const Numbers &x, const Numbers &w, const Numbers &y) {
  Numbers result(kind == ConvKind::kFprop ? y.size() : kind == ConvKind::kDgrad ? x.size() : w.size());
  for (int n = 0; n < c.batch; n++)
    for (int oy = 0; oy < c.oh; oy++)
      for (int ox = 0; ox < c.ow; ox++)
        for (int o = 0; o < c.outputs; o++)
          for (int ky = 0; ky < c.kh; ky++)
            for (int kx = 0; kx < c.kw; kx++)
              for (int i = 0; i < c.inputs; i++) {
                const int iy = oy * c.stride + ky - c.padTop, ix = ox * c.stride + kx - c.padLeft;
                if (iy < 0 || iy >= c.height || ix < 0 || ix >= c.width) continue;
                const size_t atX = (((size_t)n * c.height + iy) * c.width + ix) * c.inputs + i;
                const size_t atW = (((size_t)o * c.kh + ky) * c.kw + kx) * c.inputs + i;
                const size_t atY = (((size_t)n * c.oh + oy) * c.ow + ox) * c.outputs + o;
                if (kind == ConvKind::kFprop) result[atY] += x[atX] * w[atW];
                if (kind == ConvKind::kDgrad) result[atX] += y[atY] * w[atW];
                if (kind == ConvKind::kWgrad) result[atW] += y[atY] * x[atX];
              }
  return result;
}

template <ConvKind kKind>
std::string outcome(const Case &c) {
  const diffit_tensor x = tensor(c.batch, c.height, c.width, c.inputs), w = tensor(c.outputs, c.kh, c.kw, c.inputs),
                      y = tensor(c.batch, c.oh, c.ow, c.outputs);
  const Numbers xs = numbers(x, 1), ws = numbers(w, 2), ys = numbers(y, 3);
  const Epilogue e = {};
  const ConvProblem p = {kKind, &x, &w, &y, e, {c.stride, c.padTop, c.padLeft}};
  sm90::ConvShape<kKind> shape;
  if (!sm90::shapeOf<kKind>(p, &shape)) return "refused";

  constexpr bool kFprop = kKind == ConvKind::kFprop, kWgrad = kKind == ConvKind::kWgrad;
  const diffit_tensor &image = kKind == ConvKind::kDgrad ? y : x; /* that goes through im2col */
  const diffit_tensor &result = kFprop ? y : kWgrad ? w : x, &pixels = kKind == ConvKind::kDgrad ? x : y;
  for (int i = 0; i < 4; i++) {
    if (shape.shape_C[i] != result.shape[i]) return "another result";
    if (shape.shape_A[i] != (kFprop ? x : y).shape[i]) return "another first factor";
    if (shape.shape_B[i] != (kWgrad ? x : w).shape[i]) return "another second factor";
  }
  const auto lower = cutlass::conv::collective::detail::compute_lower_corner_whd(shape);
  const auto upper = cutlass::conv::collective::detail::compute_upper_corner_whd(shape);
  const auto offset = cutlass::conv::collective::detail::compute_lower_srt(shape);
  const int direction = kKind == ConvKind::kDgrad ? -1 : 1;
  for (int i = 0; i < 2; i++) { /* width, height */
    const int64_t passed = image.shape[2 - i] + upper[i] - lower[i], step = shape.traversal_stride[1 - i];
    if ((passed + step - 1) / step != pixels.shape[2 - i]) return "another number of pixels";
  }

  using Layout = std::conditional_t<kWgrad, cutlass::layout::TensorKCSR, cutlass::layout::TensorNHWC>;
  const auto steps = sm90::resultStride<kKind, cutlass::detail::TagToStrideC_t<Layout>>(shape);
  const Numbers &first = kFprop ? xs : ys, &second = kWgrad ? xs : ws;
  const Numbers &seen = kWgrad ? second : first, &other = kWgrad ? first : second;
  const auto &seenSteps = kWgrad ? shape.stride_B : shape.stride_A,
             &otherSteps = kWgrad ? shape.stride_A : shape.stride_B;
  Numbers sums((size_t)numel(&result));
  for (int n = 0; n < pixels.shape[0]; n++)
    for (int py = 0; py < pixels.shape[1]; py++)
      for (int px = 0; px < pixels.shape[2]; px++)
        for (int r = 0; r < c.kh; r++)
          for (int s = 0; s < c.kw; s++) {
            const int ix = lower[0] + px * shape.traversal_stride[1] + offset[0] + direction * s * shape.dilation[1];
            const int iy = lower[1] + py * shape.traversal_stride[0] + offset[1] + direction * r * shape.dilation[0];
            if (iy < 0 || iy >= image.shape[1] || ix < 0 || ix >= image.shape[2]) continue;
            for (int i = 0; i < c.inputs; i++)
              for (int o = 0; o < c.outputs; o++) {
                const int64_t channel = kKind == ConvKind::kDgrad ? o : i;
                const int64_t at = n * seenSteps[0] + iy * seenSteps[1] + ix * seenSteps[2] + channel * seenSteps[3];
                int64_t with, to;
                if constexpr (kWgrad) {
                  with = n * otherSteps[0] + py * otherSteps[1] + px * otherSteps[2] + o * otherSteps[3];
                  to = o * cute::get<0>(steps) + i * cute::get<1, 0>(steps) + s * cute::get<1, 1>(steps) +
                       r * cute::get<1, 2>(steps);
                } else {
                  with = o * otherSteps[0] + r * otherSteps[1] + s * otherSteps[2] + i * otherSteps[3];
                  to = px * cute::get<0, 0>(steps) + py * cute::get<0, 1>(steps) + n * cute::get<0, 2>(steps) +
                       (kFprop ? o : i) * cute::get<1>(steps);
                }
                sums[(size_t)to] += seen[(size_t)at] * other[(size_t)with];
              }
          }
  return sums == byDefinition(c, kKind, xs, ws, ys) ? "right" : "other sums";
}

constexpr Case kCases[] = {
    {"3x3", 2, 6, 5, 3, 4, 3, 3, 6, 5, 1, 1, 1},
    {"3x3, no padding", 2, 6, 5, 3, 4, 3, 3, 4, 3, 1, 0, 0},
    {"3x3, stride 2, padded above and left", 2, 8, 6, 3, 2, 3, 3, 4, 3, 2, 1, 1},
    {"3x3, stride 2, padded below and right", 2, 8, 6, 3, 2, 3, 3, 4, 3, 2, 0, 0},
    {"3x3, stride 2, odd sides", 1, 7, 9, 2, 2, 3, 3, 4, 5, 2, 1, 1},
    {"1x1", 2, 4, 3, 5, 4, 1, 1, 4, 3, 1, 0, 0},
    {"1x1, stride 2: the last pixels are not seen", 1, 6, 4, 2, 2, 1, 1, 3, 2, 2, 0, 0},
    {"2x5, other padding on each side", 1, 5, 7, 2, 3, 2, 5, 7, 6, 1, 1, 2},
    {"5x5, padding of a whole window", 1, 4, 4, 2, 2, 5, 5, 8, 8, 1, 4, 4},
    {"2x2, stride 2", 2, 6, 8, 2, 3, 2, 2, 3, 4, 2, 0, 0},
    {"cut off", 1, 6, 6, 2, 2, 3, 3, 4, 3, 1, 0, 0},
    {"padding below zero", 1, 6, 6, 2, 2, 3, 3, 3, 4, 1, -1, 0},
    {"stride 9", 1, 18, 18, 2, 2, 3, 3, 2, 2, 9, 0, 0},
};

}  // namespace
}  // namespace diffit

int main() {
  using namespace diffit;
  printf("{");
  for (const Case &c : kCases)
    printf("%s\"%s\": [\"%s\", \"%s\", \"%s\"]", &c == kCases ? "" : ", ", c.name, outcome<ConvKind::kFprop>(c).c_str(),
           outcome<ConvKind::kDgrad>(c).c_str(), outcome<ConvKind::kWgrad>(c).c_str());
  printf("}\n");
  return 0;
}
