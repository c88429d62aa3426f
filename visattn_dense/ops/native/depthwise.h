// Depthwise convolution, and its inner loop.

#pragma once

#include "vectors.h"

namespace {

// Adds to T neighbours from column x on what a KxK convolution of step S takes from its K lines, one lane
// of the channels. A line starts at column 0, and `pitch` numbers lie from one column to the next. A line
// beyond the map is null, and the map ends at the columns `left` and `right`. `Inside`: all columns that
// the kernel touches are on the map. weights(i) is the lane of weight i.
template <int K, int S, int T, bool Inside, typename Lane, typename Number, typename Weights>
inline __attribute__((always_inline)) void depth_tile(const Number* const (&lines)[K], int64_t pitch,
                                                      int left, int right, int x, Weights&& weights,
                                                      Lane (&acc)[T]) {
  UNROLL for (int ky = 0; ky < K; ky++) {
    if (!lines[ky]) continue;
    Lane weight[K];
    UNROLL for (int i = 0; i < K; i++) weight[i] = weights(ky * K + i);
    UNROLL for (int i = 0; i < (T - 1) * S + K; i++) {
      const int column = x * S - K / 2 + i;
      if (!Inside && (column < left || column >= right)) continue;
      const Lane value = load<Lane>(lines[ky] + column * pitch);
      UNROLL for (int t = 0; t < T; t++)
        if (i >= t * S && i < t * S + K) acc[t] += value * weight[i - t * S];
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

// T neighbours in row y of a window, from column x on, and their norm. All channels of a position lie side by
// side: so memory is read in order.
template <int K, int T, typename Number>
void depthwise_tile(const Depthwise<Number>& a, const Window& window, int64_t image, int y, int x) {
  const Number* lines[K];
  for (int i = 0; i < K; i++) {
    const int row = y + i - K / 2;
    lines[i] = row < window.top || row >= window.bottom
                   ? nullptr : a.x + (image + int64_t(row) * a.width) * a.x_stride;
  }
  const int64_t first = image + int64_t(y) * a.width + x;
  Number* out = a.out + first * a.out_stride;
  const bool inside = x - K / 2 >= window.left && x + T - 1 + K / 2 < window.right;
  in_lanes(a.channels, [&](auto lane, int c) {
    using Lane = decltype(lane);
    const Number* here[K];
    for (int i = 0; i < K; i++) here[i] = lines[i] ? lines[i] + c : nullptr;
    const auto weights = [&](int i) { return load<Lane>(a.weight + int64_t(i) * a.channels + c); };
    const Lane bias = a.bias ? load<Lane>(a.bias + c) : Lane{};
    Lane acc[T];
    UNROLL for (int t = 0; t < T; t++)
      acc[t] = a.accumulate ? bias + load<Lane>(out + t * a.out_stride + c) : bias;
    if (inside)
      depth_tile<K, 1, T, true>(here, a.x_stride, window.left, window.right, x, weights, acc);
    else
      depth_tile<K, 1, T, false>(here, a.x_stride, window.left, window.right, x, weights, acc);
    UNROLL for (int t = 0; t < T; t++) store(out + t * a.out_stride + c, activate(acc[t], a.activation));
  });
  if (a.normed) a.norm(out, a.out_stride, T, a.channels, a.normed + first * a.channels, a.channels);
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
      in_blocks<8>(window.right - window.left, [&](int i, auto size) {
        depthwise_tile<K, decltype(size)::value>(a, window, image, y, window.left + i);
      });
    }
  }
}

// Calls f with the side of a kernel, 3 or 5, a constant to the compiler.
template <typename F>
void with_kernel(int side, F&& f) {
  if (side == 3) f(std::integral_constant<int, 3>{});
  if (side == 5) f(std::integral_constant<int, 5>{});
}

}  // namespace
