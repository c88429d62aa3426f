// Softmax attention in vectors.

#pragma once

#include "attention.h"

namespace {

// Whether keys, queries, weights and values lie by pairs: of two numbers of a row, of the weights of two
// keys, of the values of two keys.
template <typename Number>
constexpr bool PAIRS = HAS_PAIRS && std::is_same_v<Number, Bfloat16>;

template <typename Number>
using ProductOf = std::conditional_t<PAIRS<Number>, OfPairs, OfNumbers>;

// Of numbers or of pairs, how many n numbers are.
template <typename Number>
int places_of(int n) { return PAIRS<Number> ? (n + 1) / 2 : n; }

// As vectors. A row of logits belongs to one key and has a vector for every W neighbouring queries: so the
// softmax runs down a column and needs no sum across a vector. A row of the result belongs to a query.

// A tile of queries meets KEYS keys at a time, and TILES tiles meet the same keys: so keys, values,
// weights and tiles stay in the cache.
constexpr int KEYS = 128, TILES = 16;
constexpr int HEAD = 1 << 18;  // numbers of a head's keys and values that stay in the cache

// Vectors that are exponentiated together.
constexpr int TOGETHER = W == 16 ? 8 : 4;

// One or two vectors of queries, and what the keys so far give.
struct Tile {
  const int32_t* rows;
  int count;
  float* queries;           // transposed: a row of the vectors for each number or pair
  float* result;            // a row for each query
  Vec top[2], sum[2];       // the largest logit; the sum of the weights
};

// Calls f(C) with the number of vectors of the tile, a constant to the compiler.
template <typename F>
inline void of_vectors(const Tile& tile, F&& f) {
  if (tile.count > W) f(std::integral_constant<int, 2>{});
  else f(std::integral_constant<int, 1>{});
}

// Copies of keys and values as floats or pairs, the values in whole vectors: the keys of an item in their
// order, or at places.
struct Copies {
  const float *keys, *values;
  int depth, width, together;    // of a key; of a row of values; keys of a row of values

  const float* key(int j) const { return keys + int64_t(j) * depth; }
  const float* value(int row) const { return values + int64_t(row) * width; }
  // From key j on, the first one of a row of values.
  Copies from(int j) const { return {key(j), value(j / together), depth, width, together}; }
};

struct Places {
  Copies all;
  const int32_t* places;

  const float* key(int j) const { return all.key(places[j]); }
  const float* value(int row) const {
    return all.value(places[row * all.together] / all.together);
  }
  Places from(int j) const { return {all, places + j}; }
};

template <int C, typename Number>
void begin(const Attention<Number>& a, Tile& tile, int head, float absent) {
  const float none = absent > 0 ? 0.f : -std::numeric_limits<float>::infinity();
  for (int c = 0; c < C; c++) tile.top[c] = splat(none), tile.sum[c] = splat(absent);
  std::fill(tile.result, tile.result + tile.count * a.whole(), 0.f);
  const float factor = a.factor();
  for (int c = 0; c < C; c++) {
    const Number* source[W];
    for (int i = 0; i < W; i++)
      source[i] = a.query(tile.rows[std::min(c * W + i, tile.count - 1)], head);
    int d = 0;
    if constexpr (PAIRS<Number>)
      for (; d < a.dim; d += 2 * W) {
        Vec x[W];
        for (int i = 0; i < W; i++) x[i] = pairs(source[i] + d, a.dim - d);
        transpose(x);
        for (int i = 0; i < W; i++) store(tile.queries + ((d / 2 + i) * C + c) * W, x[i]);
      }
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

// The logits of n keys, n rows of C vectors, and the largest logit of each query so far.
template <int C, typename Number, typename Source>
void logits(const Attention<Number>& a, const Tile& tile, const Source& from, int n, float* to,
            Vec (&top)[C]) {
  in_blocks<(C > 1 ? ROWS : W > 8 ? 12 : 8)>(n, [&](int j, auto size) {
    constexpr int R = decltype(size)::value;
    const float* key[R];
    for (int r = 0; r < R; r++) key[r] = from.key(j + r);
    Vec acc[R][C] = {};
    multiply_add<R, C, ProductOf<Number>>(
        places_of<Number>(a.dim), [&](int r, int d) { return key[r][d]; },
        [&](int d) { return tile.queries + d * C * W; }, acc);
    if constexpr (PAIRS<Number>)
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int c = 0; c < C; c++) acc[r][c] *= a.factor();
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int c = 0; c < C; c++) store(to + ((j + r) * C + c) * W, acc[r][c]);
    UNROLL for (int c = 0; c < C; c++) {
      UNROLL for (int r = 1; r < R; r++) acc[0][c] = max(acc[0][c], acc[r][c]);
      top[c] = max(top[c], acc[0][c]);
    }
  });
}

// Adds to R rows of the result, and to N vectors of each, n rows of values. A row of the result is
// multiplied by its `shrink` first.
template <int R, int N, int C, typename Product, typename Source>
void add_values(const float* weights, const Source& from, int column, int n, const float* shrink,
                float* result, int64_t pitch) {
  Vec acc[R][N];
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < N; c++) acc[r][c] = load(result + r * pitch + c * W) * shrink[r];
  multiply_add<R, N, Product>(n, [&](int r, int j) { return weights[j * C * W + r]; },
                              [&](int j) { return from.value(j) + column; }, acc);
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < N; c++) store(result + r * pitch + c * W, acc[r][c]);
}

// n keys more, at most KEYS. `weights` has n rows of C vectors.
template <int C, typename Number, typename Source>
void add(const Attention<Number>& a, Tile& tile, const Source& from, int n, float* weights) {
  Vec top[C], sum[C];
  float shrink[C * W];
  UNROLL for (int c = 0; c < C; c++) top[c] = tile.top[c];
  logits<C>(a, tile, from, n, weights, top);
  UNROLL for (int c = 0; c < C; c++) {
    const Vec factor = exp2(tile.top[c] - top[c]);
    sum[c] = tile.sum[c] * factor;
    store(shrink + c * W, factor);
  }
  in_blocks<TOGETHER / C>(n, [&](int j, auto size) {
    constexpr int N = decltype(size)::value * C;
    float* weight = weights + j * C * W;
    Vec e[N];
    UNROLL for (int i = 0; i < N; i++) e[i] = load(weight + i * W) - top[i % C];
    if constexpr (PAIRS<Number>) {
      // Blocks begin at an even key. Their pairs take half of the room.
      weight = weights + j / 2 * C * W;
      UNROLL for (int i = 0; i < N; i++) e[i] = rough_exp2(e[i]);
      UNROLL for (int i = 0; i < N; i += 2 * C)
        UNROLL for (int c = 0; c < C; c++)
          store(weight + (i / 2 + c) * W, pairs(e[i + c], N > C ? e[(i + C + c) % N] : Vec{}));
    } else {
      exp2(e);
      UNROLL for (int i = 0; i < N; i++) store(weight + i * W, e[i]);
    }
    UNROLL for (int i = 0; i < N; i++) sum[i % C] += e[i];
  });
  UNROLL for (int c = 0; c < C; c++) tile.top[c] = top[c], tile.sum[c] = sum[c];
  const int whole = a.whole(), rows = places_of<Number>(n);
  using Product = ProductOf<Number>;
  in_blocks<ROWS>(tile.count, [&](int i, auto size) {
    constexpr int R = decltype(size)::value;
    int c = 0;
    for (; c + 2 * W <= whole; c += 2 * W)
      add_values<R, 2, C, Product>(weights + i, from, c, rows, shrink + i,
                                   tile.result + i * whole + c, whole);
    if (c < whole)
      add_values<R, 1, C, Product>(weights + i, from, c, rows, shrink + i,
                                   tile.result + i * whole + c, whole);
  });
}

// The weighted mean of the values.
template <typename Number>
void finish(const Attention<Number>& a, const Tile& tile, int head) {
  for (int i = 0; i < tile.count; i++) {
    const float inverse = 1 / tile.sum[i / W][i % W];
    const float* from = tile.result + i * a.whole();
    Number* to = a.result(tile.rows[i], head);
    in_lanes(a.width, [&](auto lane, int c) {
      store(to + c, load<decltype(lane)>(from + c) * inverse);
    });
  }
}

template <typename Number>
struct InVectors {
  const Attention<Number>& a;
  const int depth = places_of<Number>(a.dim);                    // of a key
  const int lines = PAIRS<Number> ? ::whole(depth) : depth;      // of the queries of a tile
  const int together = PAIRS<Number> ? 2 : 1;                    // keys of a row of values
  // Whether to copy all keys of a head, since routed groups share them. No pair of keys may be of two groups.
  const bool all = a.groups.routes > 1
                   && int64_t(a.groups.keys()) * (depth + a.whole() / together) <= HEAD
                   && std::all_of(a.groups.k_starts, a.groups.k_starts + a.groups.groups + 1,
                                  [&](int start) { return start % together == 0; });
  int head = -1;                // whose keys `copies` are
  Copies copies;
  Floats keys, values;
  int most = 0;                 // keys for which there is room
  const Floats weights = room(KEYS * 2 * W), vectors = room(TILES * 2 * W * (lines + a.whole()));
  Tile tiles[TILES];

  explicit InVectors(const Attention<Number>& a) : a(a) {
    for (int t = 0; t < TILES; t++) {
      tiles[t].queries = vectors.get() + t * 2 * W * (lines + a.whole());
      tiles[t].result = tiles[t].queries + 2 * W * lines;
    }
  }
  InVectors(const InVectors&) = delete;

  // Copies the keys and values at n places, or, without places, the first n ones.
  Copies copy_keys(int head, const int32_t* places, int n) {
    const int64_t width = a.whole();
    // Pairs are stored in whole vectors, whose end is the next key's.
    if (n > most) most = n, keys = room(int64_t(n) * depth + W), values = room(n * width);
    const auto row = [&](int j) { return a.groups.k_rows[places ? places[j] : j]; };
    for (int j = 0; j < n; j++) {
      float* key = keys.get() + int64_t(j) * depth;
      if constexpr (PAIRS<Number>) {
        for (int d = 0; d < a.dim; d += 2 * W)
          store(key + d / 2, pairs(a.key(row(j), head) + d, a.dim - d));
        for (int c = 0; c < a.width && j % 2 == 0; c += W) {
          const auto values_of = [&](int i) {
            return i < n ? get(a.value(row(i), head) + c, a.width - c) : Vec{};
          };
          store(values.get() + j / 2 * width + c, pairs(values_of(j), values_of(j + 1)));
        }
      } else {
        copy(key, a.key(row(j), head), a.dim);
        copy(values.get() + j * width, a.value(row(j), head), a.width);
      }
    }
    return {keys.get(), values.get(), depth, a.whole(), together};
  }

  void operator()(const Item& item) {
    if (!all) return attend(item, copy_keys(item.head, item.places, item.keys));
    if (head != item.head) copies = copy_keys(head = item.head, nullptr, a.groups.keys());
    attend(item, Places{copies, item.places});
  }

  template <typename Source>
  void attend(const Item& item, const Source& from) {
    for (int i = 0; i < item.count; i += TILES * 2 * W) {
      const int used = std::min(TILES, (item.count - i + 2 * W - 1) / (2 * W));
      for (int t = 0; t < used; t++) {
        const int first = i + t * 2 * W;
        tiles[t].rows = item.rows + first, tiles[t].count = std::min(2 * W, item.count - first);
        of_vectors(tiles[t], [&](auto c) { begin<c()>(a, tiles[t], item.head, item.absent); });
      }
      for (int j = 0; j < item.keys; j += KEYS)
        for (int t = 0; t < used; t++)
          of_vectors(tiles[t], [&](auto c) {
            add<c()>(a, tiles[t], from.from(j), std::min(KEYS, item.keys - j), weights.get());
          });
      for (int t = 0; t < used; t++) finish(a, tiles[t], item.head);
    }
  }
};

}  // namespace
