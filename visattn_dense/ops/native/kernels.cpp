// Softmax and focused linear attention between groups of tokens, and depthwise convolution inside
// windows, of NHWC maps in float32 or bfloat16: compiled for the processor at hand
// (visattn_dense/ops/native/build.py), called by visattn_dense/ops/native/operators.py, which says
// what the arguments are. All sums are in float32; bfloat16 is a format of the maps in memory alone.
//
// A vector holds the same number of W neighbouring queries, so the softmax runs down a column and
// needs no sum across a vector, and the entries of k and v are taken one at a time, not transposed.

#include "vectors.h"

namespace {

template <typename Number>
struct Attention {
  const Number *q, *k, *v;
  Number* out;
  int64_t q_stride, out_stride;
  int dim, width;
  float scale;
};

// A tile of queries meets KEYS keys at a time, and TILES tiles meet the same keys: so keys, values,
// weights and tiles stay in the cache.
constexpr int KEYS = 256, TILES = 16;

// One or two vectors of queries, and what the keys so far give: the softmax is that of these keys
// (Milakov and Gimelshein, 2018, algorithm 3).
struct Tile {
  const int32_t* rows;
  int count;
  float *queries, *result;  // transposed: dim and width rows of the vectors
  Vec top[2], sum[2];       // the largest logit; the sum of the weights
};

// Calls f(C) with the number of vectors of the tile, a constant to the compiler.
template <typename F>
inline void of_vectors(const Tile& tile, F&& f) {
  if (tile.count > W) f(std::integral_constant<int, 2>{});
  else f(std::integral_constant<int, 1>{});
}

template <int C, typename Number>
void begin(const Attention<Number>& a, Tile& tile, int head, float absent) {
  const float none = absent > 0 ? 0.f : -std::numeric_limits<float>::infinity();
  for (int c = 0; c < C; c++) tile.top[c] = splat(none), tile.sum[c] = splat(absent);
  std::fill(tile.result, tile.result + a.width * C * W, 0.f);
  // scale * log2(e) * q: logits to base 2.
  const float factor = a.scale * 1.44269504088896f;
  for (int c = 0; c < C; c++) {
    const Number* source[W];
    for (int i = 0; i < W; i++)
      source[i] = a.q + tile.rows[std::min(c * W + i, tile.count - 1)] * a.q_stride + head * a.dim;
    int d = 0;
    for (; d + W <= a.dim; d += W) {
      Vec x[W];
      for (int i = 0; i < W; i++) x[i] = load(source[i] + d) * factor;
      transpose(x);
      for (int i = 0; i < W; i++) store(tile.queries + ((d + i) * C + c) * W, x[i]);
    }
    for (; d < a.dim; d++)
      for (int i = 0; i < W; i++)
        tile.queries[(d * C + c) * W + i] = load<float>(source[i] + d) * factor;
  }
}

// n keys more, at most KEYS. `weights` has n rows of C vectors.
template <int C, typename Number>
void add(const Attention<Number>& a, Tile& tile, const float* keys, const float* values, int n,
         float* weights) {
  Vec top[C], shrink[C], sum[C];
  for (int c = 0; c < C; c++) top[c] = tile.top[c];
  in_blocks<C == 1 ? 2 * ROWS : ROWS>(n, [&](int j, auto size) {
    constexpr int R = decltype(size)::value;
    Vec acc[R][C];
    product<R, C>(keys + j * a.dim, a.dim, 1, tile.queries, a.dim, acc);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) {
        top[c] = max(top[c], acc[r][c]);
        store(weights + ((j + r) * C + c) * W, acc[r][c]);
      }
  });
  for (int c = 0; c < C; c++) {
    shrink[c] = exp2(tile.top[c] - top[c]);
    sum[c] = tile.sum[c] * shrink[c];
  }
  for (int j = 0; j < n; j++)
    for (int c = 0; c < C; c++) {
      float* weight = weights + (j * C + c) * W;
      const Vec e = exp2(load(weight) - top[c]);
      sum[c] += e;
      store(weight, e);
    }
  for (int c = 0; c < C; c++) tile.top[c] = top[c], tile.sum[c] = sum[c];
  in_blocks<C == 1 ? 2 * ROWS : ROWS>(a.width, [&](int d, auto size) {
    constexpr int R = decltype(size)::value;
    Vec acc[R][C];
    product<R, C>(values + d, 1, a.width, weights, n, acc);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) {
        float* value = tile.result + ((d + r) * C + c) * W;
        store(value, load(value) * shrink[c] + acc[r][c]);
      }
  });
}

// The weighted mean of the values, transposed back.
template <int C, typename Number>
void finish(const Attention<Number>& a, const Tile& tile, int head) {
  for (int c = 0; c < C; c++) {
    const int here = std::min(W, tile.count - c * W);
    const auto out = [&](int i) {
      return a.out + tile.rows[c * W + i] * a.out_stride + head * a.width;
    };
    int d = 0;
    for (; d + W <= a.width; d += W) {
      Vec x[W];
      for (int i = 0; i < W; i++) x[i] = load(tile.result + ((d + i) * C + c) * W) / tile.sum[c];
      transpose(x);
      for (int i = 0; i < here; i++) store(out(i) + d, x[i]);
    }
    for (; d < a.width; d++)
      for (int i = 0; i < here; i++)
        store(out(i) + d, tile.result[(d * C + c) * W + i] / tile.sum[c][i]);
  }
}

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

template <typename Number>
void attention(const Attention<Number>& a, int64_t k_stride, int64_t v_stride,
               const int32_t* q_rows, const int32_t* q_starts, const int32_t* k_rows,
               const int32_t* k_starts, const int32_t* routed, const float* absent, int groups,
               int routes, int heads, int threads) {
  const int dim = a.dim, width = a.width;
  // More items than threads, each with some of its group's queries.
  const int pairs = groups * heads;
  const int parts = pairs >= 4 * threads ? 1 : (4 * threads + pairs - 1) / std::max(1, pairs);
#pragma omp parallel num_threads(threads)
  {
    std::vector<float> keys, values, weights(KEYS * 2 * W), vectors(TILES * 2 * W * (dim + width));
    Tile tiles[TILES];
    for (int t = 0; t < TILES; t++) {
      tiles[t].queries = vectors.data() + t * 2 * W * (dim + width);
      tiles[t].result = tiles[t].queries + 2 * W * dim;
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < int64_t(pairs) * parts; item++) {
      const int part = item % parts, group = item / parts % groups, head = item / parts / groups;
      const int32_t* rows = q_rows + q_starts[group];
      const int count = q_starts[group + 1] - q_starts[group];
      const int size = (count + parts - 1) / parts, tile = (size + W - 1) / W * W;
      const int from = part * tile, to = std::min(count, from + tile);
      if (from >= to) continue;
      int n = 0;
      for (int i = 0; i < routes; i++) {
        const int target = routed ? routed[int64_t(group) * routes + i] : group;
        n += k_starts[target + 1] - k_starts[target];
      }
      keys.resize(int64_t(n) * dim);
      values.resize(int64_t(n) * width);
      float *key = keys.data(), *value = values.data();
      for (int i = 0; i < routes; i++) {
        const int target = routed ? routed[int64_t(group) * routes + i] : group;
        for (int j = k_starts[target]; j < k_starts[target + 1]; j++) {
          copy(key, a.k + k_rows[j] * k_stride + head * dim, dim);
          copy(value, a.v + k_rows[j] * v_stride + head * width, width);
          key += dim, value += width;
        }
      }
      const float zeros = absent ? absent[group] : 0.f;
      for (int i = from; i < to; i += TILES * 2 * W) {
        const int used = std::min(TILES, (to - i + 2 * W - 1) / (2 * W));
        for (int t = 0; t < used; t++) {
          const int first = i + t * 2 * W;
          tiles[t].rows = rows + first, tiles[t].count = std::min(2 * W, to - first);
          of_vectors(tiles[t], [&](auto c) { begin<c()>(a, tiles[t], head, zeros); });
        }
        for (int j = 0; j < n; j += KEYS)
          for (int t = 0; t < used; t++)
            of_vectors(tiles[t], [&](auto c) {
              add<c()>(a, tiles[t], keys.data() + int64_t(j) * dim,
                       values.data() + int64_t(j) * width, std::min(KEYS, n - j), weights.data());
            });
        for (int t = 0; t < used; t++)
          of_vectors(tiles[t], [&](auto c) { finish<c()>(a, tiles[t], head); });
      }
    }
  }
}

// Calls f with a number of the maps' format.
template <typename F>
auto in_format(int bfloat16, F&& f) {
  return bfloat16 ? f(Bfloat16{}) : f(float{});
}

}  // namespace

// `bfloat16` says in which format q, k, v, x and out are: 0 float32, 1 bfloat16.
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

void visattn_attention(const void* q, const void* k, const void* v, void* out, int64_t q_stride,
                       int64_t k_stride, int64_t v_stride, int64_t out_stride,
                       const int32_t* q_rows, const int32_t* q_starts, const int32_t* k_rows,
                       const int32_t* k_starts, const int32_t* routed, const float* absent,
                       int groups, int routes, int heads, int dim, int width, float scale,
                       int bfloat16, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    attention(Attention<Number>{static_cast<const Number*>(q), static_cast<const Number*>(k),
                                static_cast<const Number*>(v), static_cast<Number*>(out), q_stride,
                                out_stride, dim, width, scale},
              k_stride, v_stride, q_rows, q_starts, k_rows, k_starts, routed, absent, groups,
              routes, heads, threads);
  });
}

}  // extern "C"
