// Focused linear attention between groups of tokens, and depthwise convolution inside windows, of
// NHWC maps in float32 or bfloat16: compiled for the processor at hand
// (visattn_dense/ops/native/build.py), called by visattn_dense/ops/native/operators.py, which says
// what the arguments are. All sums are in float32; bfloat16 is a format of the maps in memory alone.

#include "vectors.h"

namespace {

// Focused linear attention (visattn_dense/attention/focused.py has the equation).
template <typename Number>
struct Focused {
  const Number *q, *k, *v;
  Number* out;
  int64_t q_stride, k_stride, v_stride, out_stride;
  const float *position, *inverse_scale;
  float epsilon;
  int power, heads, dim;

  int channels() const { return heads * dim; }
  // The values of a head and its sums over keys are cut in columns of two vectors.
  int columns() const { return (dim + 2 * W - 1) / (2 * W); }
};

inline float dot(const float* a, const float* b, int n) {
  Vec sum{};
  float rest = 0;
  int i = 0;
  for (; i + W <= n; i += W) sum += load(a + i) * load(b + i);
  for (; i < n; i++) rest += a[i] * b[i];
  return rest + total(sum);
}

// One token: u^p with u = t / |t|, t = (relu(x + position) + epsilon) * inverse_scale.
// Returns |t| / |u^p|, which f_p(t) is u^p times.
template <typename Number>
inline float focus(const Focused<Number>& a, const Number* x, const float* position,
                   float* powers) {
  const int channels = a.channels();
  Vec squares{};
  float rest = 0;
  const auto add = [&](auto value) {
    if constexpr (sizeof(value) == sizeof(float)) rest += value * value;
    else squares += value * value;
  };
  const auto length = [&] {
    const float sum = rest + total(squares);
    squares = Vec{}, rest = 0;
    return std::sqrt(sum);
  };
  in_lanes(channels, [&](auto zero, int c) {
    using Lane = decltype(zero);
    Lane t = load<Lane>(x + c);
    if (position) t += load<Lane>(position + c);
    t = ((t < zero ? zero : t) + a.epsilon) * load<Lane>(a.inverse_scale + c);
    add(t);
    store(powers + c, t);
  });
  const float norm = length(), inverse = 1 / norm;
  in_lanes(channels, [&](auto zero, int c) {
    using Lane = decltype(zero);
    const Lane u = load<Lane>(powers + c) * inverse;
    Lane power = u;
    for (int i = 1; i < a.power; i++) power *= u;
    add(power);
    store(powers + c, power);
  });
  return norm / length();
}

constexpr int TOKENS = 32;  // that are worked on at a time

// Adds to `sums`, for each head and column, f_p(k)^T v (dim rows of two vectors), and to `weight`
// f_p(k), over some keys.
template <typename Number>
void summarise(const Focused<Number>& a, const int32_t* rows, const int32_t* places, int count, float* sums,
               float* weight, float* powers, float* values) {
  const int channels = a.channels();
  for (int i = 0; i < count; i++) {
    float* power = powers + i * channels;
    const float* position = a.position ? a.position + int64_t(places[i]) * channels : nullptr;
    const float factor = focus(a, a.k + rows[i] * a.k_stride, position, power);
    for (int c = 0; c < channels; c++) weight[c] += power[c] *= factor;
  }
  for (int head = 0; head < a.heads; head++)
    for (int column = 0; column < a.columns(); column++, sums += a.dim * 2 * W) {
      const int from = column * 2 * W, here = std::min(2 * W, a.dim - from);
      for (int i = 0; i < count; i++) {
        copy(values + i * 2 * W, a.v + rows[i] * a.v_stride + head * a.dim + from, here);
        std::fill(values + i * 2 * W + here, values + (i + 1) * 2 * W, 0.f);
      }
      in_blocks<ROWS>(a.dim, [&](int d, auto size) {
        constexpr int R = decltype(size)::value;
        Vec acc[R][2];
        product<R, 2>(powers + head * a.dim + d, 1, channels, values, count, acc);
        for (int r = 0; r < R; r++)
          for (int c = 0; c < 2; c++) {
            float* to = sums + ((d + r) * 2 + c) * W;
            store(to, load(to) + acc[r][c]);
          }
      });
    }
}

// Adds to `out` what some queries take from the sums over their keys.
template <typename Number>
void distribute(const Focused<Number>& a, const int32_t* rows, int count, const float* sums,
                const float* weight, float* powers) {
  const int channels = a.channels();
  float factors[TOKENS];
  for (int i = 0; i < count; i++)
    factors[i] = focus(a, a.q + rows[i] * a.q_stride, nullptr, powers + i * channels);
  for (int head = 0; head < a.heads; head++) {
    float inverse[TOKENS];
    // The factor of q stands above and below the line.
    for (int i = 0; i < count; i++)
      inverse[i] = 1 / (dot(powers + i * channels + head * a.dim, weight + head * a.dim, a.dim) +
                        a.epsilon / factors[i]);
    for (int column = 0; column < a.columns(); column++, sums += a.dim * 2 * W) {
      const int from = column * 2 * W, here = std::min(2 * W, a.dim - from);
      in_blocks<ROWS>(count, [&](int i, auto size) {
        constexpr int R = decltype(size)::value;
        Vec acc[R][2];
        product<R, 2>(powers + i * channels + head * a.dim, channels, 1, sums, a.dim, acc);
        for (int r = 0; r < R; r++) {
          Number* to = a.out + rows[i + r] * a.out_stride + head * a.dim + from;
          float result[2 * W];
          for (int c = 0; c < 2; c++) store(result + c * W, acc[r][c] * inverse[i + r]);
          for (int c = 0; c < here; c++) store(to + c, load<float>(to + c) + result[c]);
        }
      });
    }
  }
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

// T neighbours from (y, x) on and one lane of their channels. `Inside`: all
// that the kernel touches is in the window.
template <int K, int T, bool Inside, typename Lane, typename Number>
inline void depthwise_tile(const Depthwise<Number>& a, const Lane (&weight)[K * K], Lane bias,
                           const Window& window, int64_t image, int y, int x, int c) {
  Number* out = a.out + (image + int64_t(y) * a.width + x) * a.out_stride + c;
  Lane acc[T];
  for (int t = 0; t < T; t++)
    acc[t] = a.accumulate ? bias + load<Lane>(out + t * a.out_stride) : bias;
  const Number* in = a.x + (image + int64_t(y) * a.width + x) * a.x_stride + c;
#pragma GCC unroll 8
  for (int ky = 0; ky < K; ky++) {
    const int dy = ky - K / 2;
    if (!Inside && (y + dy < window.top || y + dy >= window.bottom)) continue;
    const Number* line = in + (int64_t(dy) * a.width - K / 2) * a.x_stride;
#pragma GCC unroll 16
    for (int i = 0; i < T + K - 1; i++) {
      const int column = x + i - K / 2;
      if (!Inside && (column < window.left || column >= window.right)) continue;
      const Lane value = load<Lane>(line + i * a.x_stride);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++)
        if (i >= t && i - t < K) acc[t] += value * weight[ky * K + i - t];
    }
  }
  for (int t = 0; t < T; t++) store(out + t * a.out_stride, activate(acc[t], a.activation));
}

// Row y of a window, one lane of its channels.
template <int K, typename Lane, typename Number>
void depthwise_row(const Depthwise<Number>& a, const Window& window, int64_t image, int y, int c) {
  Lane weight[K * K];
  for (int i = 0; i < K * K; i++) weight[i] = load<Lane>(a.weight + int64_t(i) * a.channels + c);
  const Lane bias = a.bias ? load<Lane>(a.bias + c) : Lane{};
  const bool rows = y - K / 2 >= window.top && y + K / 2 < window.bottom;
  in_blocks<4>(window.right - window.left, [&](int i, auto size) {
    constexpr int T = decltype(size)::value;
    const int x = window.left + i;
    if (rows && x - K / 2 >= window.left && x + T - 1 + K / 2 < window.right)
      depthwise_tile<K, T, true>(a, weight, bias, window, image, y, x, c);
    else
      depthwise_tile<K, T, false>(a, weight, bias, window, image, y, x, c);
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

template <typename Number>
void focused(const Focused<Number>& a, const int32_t* rows, const int32_t* starts,
             const int32_t* places, int groups, int threads) {
  const int channels = a.channels(), sums_size = a.heads * a.columns() * a.dim * 2 * W;
  const int64_t size = sums_size + channels;
  std::vector<float> partial(threads * size);
  for (int group = 0; group < groups; group++) {
    const int from = starts[group], count = starts[group + 1] - from;
    const int blocks = (count + TOKENS - 1) / TOKENS;
    std::fill(partial.begin(), partial.end(), 0.f);
#pragma omp parallel num_threads(threads)
    {
      std::vector<float> powers(TOKENS * channels), values(TOKENS * 2 * W);
      // A part of the keys for each share of the sums, however many threads there really are.
#pragma omp for schedule(static)
      for (int part = 0; part < threads; part++) {
        float* sums = partial.data() + part * size;
        for (int block = part * blocks / threads; block < (part + 1) * blocks / threads; block++) {
          const int i = block * TOKENS;
          summarise(a, rows + from + i, places + from + i, std::min(TOKENS, count - i), sums,
                    sums + sums_size, powers.data(), values.data());
        }
      }
#pragma omp single
      for (int part = 1; part < threads; part++)
        for (int64_t i = 0; i < size; i++) partial[i] += partial[part * size + i];
#pragma omp for schedule(static)
      for (int block = 0; block < blocks; block++) {
        const int i = block * TOKENS;
        distribute(a, rows + from + i, std::min(TOKENS, count - i), partial.data(),
                   partial.data() + sums_size, powers.data());
      }
    }
  }
}

}  // namespace

// `bfloat16` says in which format q, k, v, x and out are; see in_format.
extern "C" {

void visattn_focused(const void* q, const void* k, const void* v, void* out, int64_t q_stride,
                     int64_t k_stride, int64_t v_stride, int64_t out_stride, const int32_t* rows,
                     const int32_t* starts, const int32_t* places, const float* position,
                     const float* inverse_scale, float epsilon, int power, int groups, int heads,
                     int dim, int bfloat16, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    focused(Focused<Number>{static_cast<const Number*>(q), static_cast<const Number*>(k),
                            static_cast<const Number*>(v), static_cast<Number*>(out), q_stride,
                            k_stride, v_stride, out_stride, position, inverse_scale, epsilon,
                            power, heads, dim},
            rows, starts, places, groups, threads);
  });
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
