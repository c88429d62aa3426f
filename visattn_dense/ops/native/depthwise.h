// Depthwise convolution, and its inner loop.

#pragma once

#include "vectors.h"

namespace {

// Adds to T neighbours from column x on what a KxK convolution of step S takes from its K lines, one lane
// of the channels. A line starts at column 0, and `pitch` numbers lie from one column to the next. A line
// beyond the map is null, and the map ends at the columns `left` and `right`. `Inside`: all columns that
// the kernel touches are on the map.
template <int K, int S, int T, bool Inside, typename Lane, typename Number>
inline void depth_tile(const Number* const (&lines)[K], int64_t pitch, int left, int right, int x,
                       const Lane (&weight)[K * K], Lane (&acc)[T]) {
  UNROLL for (int ky = 0; ky < K; ky++) {
    if (!lines[ky]) continue;
    UNROLL for (int i = 0; i < (T - 1) * S + K; i++) {
      const int column = x * S - K / 2 + i;
      if (!Inside && (column < left || column >= right)) continue;
      const Lane value = load<Lane>(lines[ky] + column * pitch);
      UNROLL for (int t = 0; t < T; t++)
        if (i >= t * S && i < t * S + K) acc[t] += value * weight[ky * K + i - t * S];
    }
  }
}

// The windows of a map: height and width, and how many rows and columns of the first one lie before the map.
struct Windows {
  int height, width, top, left;
};

template <typename Number>
struct Depthwise {
  const Number* x;
  const float *weight, *bias;
  Number* out;
  int64_t x_stride, out_stride;
  int batch, height, width, channels;
  Windows windows;
  bool accumulate;
  Activation activation;
  Number* normed;  // gets the norm of each row of `out`, side by side; or null
  Norm norm;
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

// The threads of the team share the lines.
template <int K, typename Number>
void depthwise(const Depthwise<Number>& a) {
  const auto [h, w, top, left] = a.windows;
#pragma omp for schedule(static) nowait
  for (int line = 0; line < a.batch * a.height; line++) {
    const int y = line % a.height;
    const int64_t image = int64_t(line / a.height) * a.height * a.width;
    const int start = (y + top) / h * h - top;
    for (int from = -left; from < a.width; from += w) {
      const Window window{std::max(0, start), std::min(a.height, start + h), std::max(0, from),
                          std::min(a.width, from + w)};
      in_lanes(a.channels, [&](auto lane, int c) {
        depthwise_row<K, decltype(lane)>(a, window, image, y, c);
      });
    }
    const int64_t row = int64_t(line) * a.width;
    if (a.normed)
      a.norm(a.out + row * a.out_stride, a.out_stride, a.width, a.channels, a.normed + row * a.channels,
             a.channels);
  }
}

// Calls f with the side of a kernel, 3 or 5, a constant to the compiler.
template <typename F>
void with_kernel(int side, F&& f) {
  if (side == 3) f(std::integral_constant<int, 3>{});
  if (side == 5) f(std::integral_constant<int, 5>{});
}

}  // namespace
