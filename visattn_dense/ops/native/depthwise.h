// The inner loop of depthwise convolutions.

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

}  // namespace
