// Linear attention, focused (between groups of tokens) or of ReLU features (of the whole map), of NHWC
// maps in float32 or bfloat16: compiled and called as attention.cpp is. All sums are float32.

#include "replay.h"
#include "vectors.h"

namespace {

// The sum of each of W vectors.
inline Vec totals(const Vec (&x)[W]) {
  Ints even, odd;
  for (int i = 0; i < W; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
  Vec y[W];
  UNROLL for (int i = 0; i < W; i++) y[i] = x[i];
  UNROLL for (int n = W / 2; n >= 1; n /= 2)
    UNROLL for (int i = 0; i < n; i++)
      y[i] = __builtin_shuffle(y[2 * i], y[2 * i + 1], even) +
             __builtin_shuffle(y[2 * i], y[2 * i + 1], odd);
  return y[0];
}

// Linear attention. The sums of a head over its keys, features^T values, have a row for each
// feature. The rows are cut in columns of two vectors, the last column filled up with zeros. The
// columns lie one after the other.

constexpr int TOKENS = 64;            // that are worked on at a time
constexpr int BLOCK = W > 8 ? 8 : 4;  // rows of a product: heads have 32 channels as a rule
static_assert(TOKENS % W == 0);

// The numbers of a value, filled up to whole columns.
inline int whole_columns(int dim) { return (dim + 2 * W - 1) / (2 * W) * 2 * W; }

// Adds features^T values of some keys. The features are rows at a distance. The values have a row
// of two vectors for each key, column after column.
inline void add_products(const float* features, int distance, const float* values, int count,
                         int dim, float* sums) {
  for (int from = 0; from < dim; from += 2 * W, sums += dim * 2 * W, values += count * 2 * W)
    in_blocks<BLOCK>(dim, [&](int d, auto size) {
      constexpr int R = decltype(size)::value;
      float* to = sums + d * 2 * W;
      Vec acc[R][2];
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++) acc[r][c] = load(to + (2 * r + c) * W);
      accumulate<R, 2>(features + d, 1, distance, values, count, acc);
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++) store(to + (2 * r + c) * W, acc[r][c]);
    });
}

// Calls write(i, from, n, x) with features sums of each query i: x is a vector of them from channel
// `from` on, of which the first n count (none if n <= 0).
template <typename Write>
inline void multiply_sums(const float* features, int distance, int count, int dim,
                          const float* sums, Write&& write) {
  for (int from = 0; from < dim; from += 2 * W, sums += dim * 2 * W)
    in_blocks<BLOCK>(count, [&](int i, auto size) {
      constexpr int R = decltype(size)::value;
      Vec acc[R][2];
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++) acc[r][c] = Vec{};
      accumulate<R, 2>(features + i * distance, distance, 1, sums, dim, acc);
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < 2; c++)
          write(i + r, from + c * W, dim - from - c * W, acc[r][c]);
    });
}

// Attention of ReLU features (visattn_dense/attention/litemla.py has the equation). A token has q,
// k and v of each head side by side: `heads * 3` rows of `dim` numbers, at a distance of `stride`.
template <typename Number>
struct ReluAttention {
  const Number* qkv;
  Number* out;
  int64_t stride, out_row;       // from row to row; from one token of the result to the next
  int tokens, heads, dim;
  float epsilon;

  // From one token to the next.
  int64_t row() const { return 3 * stride * heads; }
  // q (0), k (1) or v (2) of a token.
  const Number* part(int64_t token, int head, int which) const {
    return qkv + token * row() + (3 * head + which) * stride;
  }
  // Numbers of a head's features, filled up to whole vectors.
  int features() const { return whole(dim); }
  // The sums of a head, features^T values, then those of the features alone.
  int64_t products() const { return int64_t(dim) * whole_columns(dim); }
  int64_t sums() const { return products() + features(); }
};

// Adds what `count` keys (and the values behind them) give to the sums of a head.
template <typename Number>
void summarise(const ReluAttention<Number>& a, const Number* keys, int count, float* sums,
               float* features, float* values) {
  const int dim = a.dim, distance = a.features(), width = whole_columns(dim);
  const int64_t row = a.row(), to_value = a.stride;
  for (int i = 0; i < count; i++) {
    const Number *k = keys + i * row, *v = k + to_value;
    for (int c = 0; c < distance; c += W)
      store(features + i * distance + c, activate(get(k + c, dim - c), kRelu));
    float* to = values + i * 2 * W;
    for (int c = 0; c < width; c += 2 * W, to += count * 2 * W) {
      store(to, get(v + c, dim - c));
      store(to + W, get(v + c + W, dim - c - W));
    }
  }
  add_products(features, distance, values, count, dim, sums);
  float* weight = sums + a.products();
  for (int c = 0; c < distance; c += W) {
    Vec sum = load(weight + c);
    for (int i = 0; i < count; i++) sum += load(features + i * distance + c);
    store(weight + c, sum);
  }
}

// Writes what `count` queries take from the sums of a head.
template <typename Number>
void distribute(const ReluAttention<Number>& a, const Number* queries, int count, const float* sums,
                Number* out, float* features) {
  const int dim = a.dim, distance = a.features();
  const int64_t row = a.row(), out_row = a.out_row;
  const float* weight = sums + a.products();
  float inverse[TOKENS];
  for (int from = 0; from < count; from += W) {
    Vec below[W] = {};
    for (int i = 0; i < std::min(W, count - from); i++)
      for (int c = 0; c < distance; c += W) {
        const Number* q = queries + (from + i) * row + c;
        const Vec feature = activate(get(q, dim - c), kRelu);
        store(features + (from + i) * distance + c, feature);
        below[i] += feature * load(weight + c);
      }
    store(inverse + from, 1 / (totals(below) + a.epsilon));
  }
  multiply_sums(features, distance, count, dim, sums, [&](int i, int from, int n, Vec x) {
    put(out + i * out_row + from, x * inverse[i], n);
  });
}

template <typename Number>
void relu_attention(const ReluAttention<Number>& a, int batch, int threads) {
  // Each share of an image's tokens has sums of its own, however many threads there are. An image
  // has 64 shares at most.
  const int size = std::max(4, (a.tokens + 64 * TOKENS - 1) / (64 * TOKENS)) * TOKENS;
  const int shares = (a.tokens + size - 1) / size;
  // Where there are few shares, a thread has a part of the heads.
  const int64_t all_shares = int64_t(batch) * shares;
  const int wanted = threads == 1 ? 1 : (2 * threads + all_shares - 1) / all_shares;
  const int parts = std::min(a.heads, wanted);
  const Floats sums = room(all_shares * a.heads * a.sums());
  const auto sums_of = [&](int64_t share, int head) {
    return sums.get() + (share * a.heads + head) * a.sums();
  };
  // Calls f(share, head, token, count) for each share and head, some tokens at a time.
  const auto each = [&](auto&& f) {
#pragma omp for schedule(static)
    for (int64_t item = 0; item < all_shares * parts; item++) {
      const int64_t share = item / parts, image = share / shares;
      const int part = item % parts, from = share % shares * size;
      for (int i = from; i < std::min(a.tokens, from + size); i += TOKENS)
        for (int head = part * a.heads / parts; head < (part + 1) * a.heads / parts; head++)
          f(share, head, image * a.tokens + i, std::min(TOKENS, a.tokens - i));
    }
  };
#pragma omp parallel num_threads(threads)
  {
    const Floats features = room(TOKENS * a.features());
    const Floats values = room(TOKENS * whole_columns(a.dim));
    each([&](int64_t share, int head, int64_t token, int count) {
      float* own = sums_of(share, head);
      if (token % a.tokens % size == 0) std::fill(own, own + a.sums(), 0.f);
      summarise(a, a.part(token, head, 1), count, own, features.get(), values.get());
    });
    // The sums of an image go to its first share.
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < int64_t(batch) * a.heads; pair++) {
      const int64_t first = pair / a.heads * shares;
      const int head = pair % a.heads;
      float* to = sums_of(first, head);
      for (int64_t share = first + 1; share < first + shares; share++) {
        const float* from = sums_of(share, head);
        for (int64_t i = 0; i < a.sums(); i++) to[i] += from[i];
      }
    }
    each([&](int64_t share, int head, int64_t token, int count) {
      distribute(a, a.part(token, head, 0), count, sums_of(share / shares * shares, head),
                 a.out + token * a.out_row + head * a.dim, features.get());
    });
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
  int64_t products() const { return int64_t(channels()) * whole_columns(dim); }
};

inline Vec root(Vec x) {
  for (int i = 0; i < W; i++) x[i] = std::sqrt(x[i]);
  return x;
}

// Of some tokens: u^p with u = t / |t|, t = (relu(x + position) + epsilon) * inverse_scale, and the
// factors |t| / |u^p|, which f_p(t) is u^p times. token(i) and position(i) (or null) point to the
// channels of token i.
template <typename Number, typename Token, typename Position>
inline void focus(const Focused<Number>& a, int count, Token&& token, Position&& position,
                  float* powers, float* factors) {
  const int channels = a.channels(), power = a.power;
  const float epsilon = a.epsilon, *inverse_scale = a.inverse_scale;
  for (int from = 0; from < count; from += W) {
    Vec squares[W] = {};
    // Calls f(i, lane, c) for all channels of the tokens, and returns the lengths of what f gives.
    // Sums from zero on would be denormal at first: where relu gives zero, u^p is tiny. A processor
    // takes a hundred times as long for denormal numbers.
    const auto lengths = [&](auto&& f) {
      for (int i = 0; i < std::min(W, count - from); i++) {
        float rest = std::numeric_limits<float>::min();
        Vec sum = splat(rest);
        in_lanes(channels, [&](auto zero, int c) {
          const auto x = f(i, zero, c);
          if constexpr (sizeof x == sizeof rest) rest += x * x;
          else sum += x * x;
          store(powers + (from + i) * channels + c, x);
        });
        sum[0] += rest;
        squares[i] = sum;
      }
      return root(totals(squares));
    };
    const Vec norm = lengths([&](int i, auto zero, int c) {
      using Lane = decltype(zero);
      Lane t = load<Lane>(token(from + i) + c);
      if (const float* added = position(from + i)) t += load<Lane>(added + c);
      return (max(zero, t) + epsilon) * load<Lane>(inverse_scale + c);
    });
    const Vec inverse = 1 / norm;
    store(factors + from, norm / lengths([&](int i, auto zero, int c) {
      using Lane = decltype(zero);
      const Lane u = load<Lane>(powers + (from + i) * channels + c) * inverse[i];
      Lane result = u;
      for (int j = 1; j < power; j++) result *= u;
      return result;
    }));
  }
}

// Adds to `sums`, for each head, f_p(k)^T v, and to `weight` f_p(k), over some keys.
template <typename Number>
void summarise(const Focused<Number>& a, const int32_t* rows, const int32_t* places, int count,
               float* sums, float* weight, float* powers, float* values) {
  const int channels = a.channels(), dim = a.dim, width = whole_columns(dim);
  const int64_t stride = a.v_stride;
  float factors[TOKENS];
  focus(a, count, [&](int i) { return a.k + rows[i] * a.k_stride; },
        [&](int i) { return a.position ? a.position + int64_t(places[i]) * channels : nullptr; },
        powers, factors);
  in_lanes(channels, [&](auto zero, int c) {
    auto sum = load<decltype(zero)>(weight + c);
    for (int i = 0; i < count; i++)
      sum += load<decltype(zero)>(powers + i * channels + c) * factors[i];
    store(weight + c, sum);
  });
  for (int head = 0; head < a.heads; head++, sums += dim * width) {
    // The factor of k stands at v.
    for (int i = 0; i < count; i++) {
      const Number* v = a.v + rows[i] * stride + head * dim;
      float* to = values + i * 2 * W;
      for (int c = 0; c < width; c += 2 * W, to += count * 2 * W) {
        store(to, get(v + c, dim - c) * factors[i]);
        store(to + W, get(v + c + W, dim - c - W) * factors[i]);
      }
    }
    add_products(powers + head * dim, channels, values, count, dim, sums);
  }
}

// Adds to `out` what some queries take from the sums over their keys.
template <typename Number>
void distribute(const Focused<Number>& a, const int32_t* rows, int count, const float* sums,
                const float* weight, float* powers) {
  const int channels = a.channels(), dim = a.dim;
  const int64_t stride = a.out_stride;
  float factors[TOKENS], inverse[TOKENS];
  focus(a, count, [&](int i) { return a.q + rows[i] * a.q_stride; },
        [](int) { return static_cast<const float*>(nullptr); }, powers, factors);
  for (int head = 0; head < a.heads; head++, sums += dim * whole_columns(dim)) {
    const float *features = powers + head * dim, *keys = weight + head * dim;
    for (int from = 0; from < count; from += W) {
      Vec below[W] = {};
      for (int i = 0; i < std::min(W, count - from); i++)
        for (int c = 0; c < dim; c += W)
          below[i] += get(features + (from + i) * channels + c, dim - c) * get(keys + c, dim - c);
      // The factor of q stands above and below the line.
      store(inverse + from, 1 / (totals(below) + a.epsilon / load(factors + from)));
    }
    Number* out = a.out + head * dim;
    multiply_sums(features, channels, count, dim, sums, [&](int i, int from, int n, Vec x) {
      Number* to = out + rows[i] * stride + from;
      put(to, get(to, n) + x * inverse[i], n);
    });
  }
}

template <typename Number>
void focused(const Focused<Number>& a, const int32_t* rows, const int32_t* starts,
             const int32_t* places, int groups, int threads) {
  const int channels = a.channels();
  const int64_t products = a.products(), size = products + channels;
  const Floats partial = room(threads * size);
  for (int group = 0; group < groups; group++) {
    const int from = starts[group], count = starts[group + 1] - from;
    const int blocks = (count + TOKENS - 1) / TOKENS;
    std::fill(partial.get(), partial.get() + threads * size, 0.f);
#pragma omp parallel num_threads(threads)
    {
      const Floats powers = room(TOKENS * channels), values = room(TOKENS * whole_columns(a.dim));
      // A part of the keys for each share of the sums, however many threads there really are.
#pragma omp for schedule(static)
      for (int part = 0; part < threads; part++) {
        float* sums = partial.get() + part * size;
        for (int block = part * blocks / threads; block < (part + 1) * blocks / threads; block++) {
          const int i = block * TOKENS;
          summarise(a, rows + from + i, places + from + i, std::min(TOKENS, count - i), sums,
                    sums + products, powers.get(), values.get());
        }
      }
#pragma omp single
      for (int part = 1; part < threads; part++)
        for (int64_t i = 0; i < size; i++) partial.get()[i] += partial.get()[part * size + i];
#pragma omp for schedule(static)
      for (int block = 0; block < blocks; block++) {
        const int i = block * TOKENS;
        distribute(a, rows + from + i, std::min(TOKENS, count - i), partial.get(),
                   partial.get() + products, powers.get());
      }
    }
  }
}

}  // namespace

// `bfloat16` says in which format the maps are; see in_format.
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

void visattn_relu_attention(const void* qkv, void* out, int64_t stride, int64_t out_row, int batch,
                            int tokens, int heads, int dim, float epsilon, int bfloat16, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    relu_attention(ReluAttention<Number>{static_cast<const Number*>(qkv), static_cast<Number*>(out),
                                         stride, out_row, tokens, heads, dim, epsilon},
                   batch, threads);
  });
}

REPLAYED(visattn_focused)
REPLAYED(visattn_relu_attention)

}  // extern "C"
