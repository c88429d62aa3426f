// Depthwise convolution inside windows, of NHWC maps in float32 or bfloat16; 1x1 convolution in groups of
// channels, float32: compiled and called as attention.cpp is. All sums are float32.

#include "depthwise.h"

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

template <typename Number>
struct Depthwise {
  const Number* x;
  const float *weight, *bias;
  Number* out;
  int64_t x_stride, out_stride;
  int width, channels;
  bool accumulate;
  Activation activation;
};

// Where a window lies on the map: rows [top, bottom), columns [left, right).
struct Window {
  int top, bottom, left, right;
};

// Row y of a window, one lane of its channels.
template <int K, typename Lane, typename Number>
void depthwise_row(const Depthwise<Number>& a, const Window& window, int64_t image, int y, int c) {
  Lane weight[K * K];
  for (int i = 0; i < K * K; i++) weight[i] = load<Lane>(a.weight + int64_t(i) * a.channels + c);
  const Lane bias = a.bias ? load<Lane>(a.bias + c) : Lane{};
  const Number* lines[K];
  for (int i = 0; i < K; i++) {
    const int row = y + i - K / 2;
    lines[i] = row < window.top || row >= window.bottom
                   ? nullptr : a.x + (image + int64_t(row) * a.width) * a.x_stride + c;
  }
  in_blocks<4>(window.right - window.left, [&](int i, auto size) {
    constexpr int T = decltype(size)::value;
    const int x = window.left + i;
    Number* out = a.out + (image + int64_t(y) * a.width + x) * a.out_stride + c;
    Lane acc[T];
    for (int t = 0; t < T; t++)
      acc[t] = a.accumulate ? bias + load<Lane>(out + t * a.out_stride) : bias;
    if (x - K / 2 >= window.left && x + T - 1 + K / 2 < window.right)
      depth_tile<K, 1, T, true>(lines, a.x_stride, window.left, window.right, x, weight, acc);
    else
      depth_tile<K, 1, T, false>(lines, a.x_stride, window.left, window.right, x, weight, acc);
    for (int t = 0; t < T; t++) store(out + t * a.out_stride, activate(acc[t], a.activation));
  });
}

template <int K, typename Number>
void depthwise(const Depthwise<Number>& a, int batch, int height, int window_h, int window_w, int pad_top,
               int pad_left, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int line = 0; line < batch * height; line++) {
    const int y = line % height;
    const int64_t image = int64_t(line / height) * height * a.width;
    const int start = (y + pad_top) / window_h * window_h - pad_top;
    for (int from = -pad_left; from < a.width; from += window_w) {
      const Window window{std::max(0, start), std::min(height, start + window_h),
                          std::max(0, from), std::min(a.width, from + window_w)};
      in_lanes(a.channels, [&](auto lane, int c) {
        depthwise_row<K, decltype(lane)>(a, window, image, y, c);
      });
    }
  }
}

}  // namespace

extern "C" {

// float32 alone.
void visattn_grouped(const float* x, int64_t stride, int64_t rows, const float* weight, float* out,
                     int groups, int inputs, int outputs, int line, int threads) {
  grouped(Grouped{x, weight, out, stride, rows, groups, inputs, outputs, line}, threads);
}

int visattn_depthwise(const void* x, void* out, int64_t x_stride, int64_t out_stride, int batch,
                      int height, int width, int channels, int window_h, int window_w, int pad_top,
                      int pad_left, int kernel, const float* weight, const float* bias,
                      int accumulate, int activation, int bfloat16, int threads) {
  return in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    const Depthwise<Number> a{static_cast<const Number*>(x), weight, bias,
                              static_cast<Number*>(out), x_stride, out_stride, width, channels,
                              accumulate != 0, Activation(activation)};
    const auto run = [&](auto size) {
      depthwise<decltype(size)::value>(a, batch, height, window_h, window_w, pad_top, pad_left,
                                       threads);
      return 0;
    };
    switch (kernel) {
      case 3: return run(std::integral_constant<int, 3>{});
      case 5: return run(std::integral_constant<int, 5>{});
      default: return 1;
    }
  });
}

}  // extern "C"
