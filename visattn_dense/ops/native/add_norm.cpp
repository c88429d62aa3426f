// LayerNorm of the rows of a map, with a residual sum before it and an activation after it: compiled as
// attention.cpp is.

#include "activations.h"
#include "replay.h"

namespace {

// total = x + update and normed = act(norm(total)), for rows of n numbers. Without an update, total is x
// and is not written.
template <typename Number>
void add_norm(const Number* x, int64_t stride, const Number* update, int64_t update_stride, int64_t rows,
              int n, const Norm& norm, Activation kind, Number* total, Number* normed, int threads) {
  with(kind, [&](auto act) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t some = 0; some < rows; some += NORM_ROWS) {
      const int64_t count = std::min<int64_t>(NORM_ROWS, rows - some);
      if (update)
        for (int64_t i = some; i < some + count; i++)
          for (int c = 0; c < n; c += W)
            put(total + i * n + c,
                get(x + i * stride + c, n - c) + get(update + i * update_stride + c, n - c), n - c);
      norm(update ? total + some * n : x + some * stride, update ? n : stride, count, n,
           normed + some * n, n, act);
    }
  });
}

}  // namespace

extern "C" {

// float32 or bfloat16; see calls.py.
void visattn_add_norm(const void* x, int64_t stride, const void* update, int64_t update_stride,
                      int64_t rows, int n, const float* weight, const float* bias, float epsilon,
                      int activation, void* total, void* normed, int bfloat16, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    add_norm(static_cast<const Number*>(x), stride, static_cast<const Number*>(update), update_stride,
             rows, n, {weight, bias, epsilon}, Activation(activation), static_cast<Number*>(total),
             static_cast<Number*>(normed), threads);
  });
}

REPLAYED(visattn_add_norm)

}  // extern "C"
