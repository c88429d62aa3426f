// Depthwise convolution inside windows, of NHWC maps in float32 or bfloat16, and the norm of its result; 1x1
// convolution in groups of channels, float32: compiled and called as attention.cpp is. All sums are float32.

#include "depthwise.h"
#include "replay.h"

namespace {

constexpr int BLOCK = W > 8 ? 8 : 4;  // rows of a product

// 1x1 convolution in groups of channels. The weight of a group has a row of `line` numbers for each
// input, filled up with zeros.
struct Grouped {
  const float *x, *weight;
  float* out;
  int64_t stride, rows;
  int groups, inputs, outputs, line;
};

// R rows of one group, two vectors of the outputs. Inlined, GCC keeps the sums in memory.
template <int R>
__attribute__((noinline)) void multiply_group(const float* x, int64_t stride, const float* weight,
                                              int64_t line, int inputs, Vec (&acc)[R][2]) {
  Vec sum[R][2] = {};
  accumulate<R, 2>(x, stride, 1, weight, inputs, sum, Nothing{}, line);
  UNROLL for (int r = 0; r < R; r++) acc[r][0] = sum[r][0], acc[r][1] = sum[r][1];
}

// Some rows of one group, from the group's first input and to its first output.
inline void multiply_group(const Grouped& a, const float* x, const float* weight, float* out,
                           int count) {
  const int outputs = a.outputs;
  const int64_t out_stride = int64_t(a.groups) * outputs;
  for (int from = 0; from < outputs; from += 2 * W)
    in_blocks<BLOCK>(count, [&](int row, auto size) {
      constexpr int R = decltype(size)::value;
      Vec acc[R][2];
      multiply_group<R>(x + row * a.stride, a.stride, weight + from, a.line, a.inputs, acc);
      float* to = out + row * out_stride + from;
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++)
          put(to + r * out_stride + c * W, acc[r][c], outputs - from - c * W);
    });
}

void grouped(const Grouped& a, int threads) {
  constexpr int COUNT = 16;  // rows at a time: few, so that memory is read and written in order
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < a.rows; row += COUNT)
    for (int g = 0; g < a.groups; g++)
      multiply_group(a, a.x + row * a.stride + g * a.inputs,
                     a.weight + int64_t(g) * a.inputs * a.line,
                     a.out + (row * a.groups + g) * a.outputs,
                     std::min<int64_t>(COUNT, a.rows - row));
}

}  // namespace

extern "C" {

// float32 alone.
void visattn_grouped(const float* x, int64_t stride, int64_t rows, const float* weight, float* out,
                     int groups, int inputs, int outputs, int line, int threads) {
  grouped(Grouped{x, weight, out, stride, rows, groups, inputs, outputs, line}, threads);
}

void visattn_depthwise(const void* x, void* out, int64_t x_stride, int64_t out_stride, int batch,
                       int height, int width, int channels, int window_h, int window_w, int top,
                       int left, int kernel, const float* weight, const float* bias, int accumulate,
                       int activation, void* normed, const float* norm_weight,
                       const float* norm_bias, float epsilon, int bfloat16, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    const Depthwise<Number> a{static_cast<const Number*>(x), weight, bias, static_cast<Number*>(out),
                              x_stride, out_stride, batch, height, width, channels,
                              {window_h, window_w, top, left}, accumulate != 0, Activation(activation),
                              static_cast<Number*>(normed), {norm_weight, norm_bias, epsilon}};
    with_kernel(kernel, [&](auto side) {
#pragma omp parallel num_threads(threads)
      depthwise<decltype(side)::value>(a);
    });
  });
}

REPLAYED(visattn_grouped)
REPLAYED(visattn_depthwise)

}  // extern "C"
