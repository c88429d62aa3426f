// Softmax attention in vectors.

#pragma once

#include "attention.h"

namespace {

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
  float* queries;           // transposed: dim rows of the vectors
  float* result;            // a row for each query
  Vec top[2], sum[2];       // the largest logit; the sum of the weights
};

// Calls f(C) with the number of vectors of the tile, a constant to the compiler.
template <typename F>
inline void of_vectors(const Tile& tile, F&& f) {
  if (tile.count > W) f(std::integral_constant<int, 2>{});
  else f(std::integral_constant<int, 1>{});
}

// Copies of keys and values as floats, the values in whole vectors: the keys of an item in their order,
// or at places.
struct Copies {
  const float *keys, *values;
  int dim, width;

  const float* key(int j) const { return keys + int64_t(j) * dim; }
  const float* value(int j) const { return values + int64_t(j) * width; }
  Copies from(int j) const { return {key(j), value(j), dim, width}; }
};

struct Places {
  Copies all;
  const int32_t* places;

  const float* key(int j) const { return all.key(places[j]); }
  const float* value(int j) const { return all.value(places[j]); }
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
template <int C, typename Source>
void logits(const Tile& tile, int dim, const Source& from, int n, float* to, Vec (&top)[C]) {
  in_blocks<(C > 1 ? ROWS : W > 8 ? 12 : 8)>(n, [&](int j, auto size) {
    constexpr int R = decltype(size)::value;
    const float* key[R];
    for (int r = 0; r < R; r++) key[r] = from.key(j + r);
    Vec acc[R][C] = {};
    multiply_add<R, C>(dim, [&](int r, int d) { return key[r][d]; },
                       [&](int d) { return tile.queries + d * C * W; }, acc);
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int c = 0; c < C; c++) store(to + ((j + r) * C + c) * W, acc[r][c]);
    UNROLL for (int c = 0; c < C; c++) {
      UNROLL for (int r = 1; r < R; r++) acc[0][c] = max(acc[0][c], acc[r][c]);
      top[c] = max(top[c], acc[0][c]);
    }
  });
}

// Adds to R rows of the result, and to N vectors of each, the values of n keys. A row is multiplied by its
// `shrink` first.
template <int R, int N, int C, typename Source>
void add_values(const float* weights, const Source& from, int column, int n, const float* shrink,
                float* result, int64_t pitch) {
  Vec acc[R][N];
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < N; c++) acc[r][c] = load(result + r * pitch + c * W) * shrink[r];
  multiply_add<R, N>(n, [&](int r, int j) { return weights[j * C * W + r]; },
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
  logits<C>(tile, a.dim, from, n, weights, top);
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
    exp2(e);
    UNROLL for (int i = 0; i < N; i++) sum[i % C] += e[i];
    UNROLL for (int i = 0; i < N; i++) store(weight + i * W, e[i]);
  });
  UNROLL for (int c = 0; c < C; c++) tile.top[c] = top[c], tile.sum[c] = sum[c];
  const int whole = a.whole();
  in_blocks<ROWS>(tile.count, [&](int i, auto size) {
    constexpr int R = decltype(size)::value;
    int c = 0;
    for (; c + 2 * W <= whole; c += 2 * W)
      add_values<R, 2, C>(weights + i, from, c, n, shrink + i, tile.result + i * whole + c, whole);
    if (c < whole)
      add_values<R, 1, C>(weights + i, from, c, n, shrink + i, tile.result + i * whole + c, whole);
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
  // Whether to copy all keys of a head, since routed groups share them.
  const bool all = a.groups.routes > 1 && int64_t(a.groups.keys()) * (a.dim + a.whole()) <= HEAD;
  int head = -1;                // whose keys `copies` are
  Copies copies;
  Floats keys, values;
  int most = 0;                 // keys for which there is room
  const Floats weights = room(KEYS * 2 * W), vectors = room(TILES * 2 * W * (a.dim + a.whole()));
  Tile tiles[TILES];

  explicit InVectors(const Attention<Number>& a) : a(a) {
    for (int t = 0; t < TILES; t++) {
      tiles[t].queries = vectors.get() + t * 2 * W * (a.dim + a.whole());
      tiles[t].result = tiles[t].queries + 2 * W * a.dim;
    }
  }
  InVectors(const InVectors&) = delete;

  // Copies the keys and values at n places, or, without places, the first n ones.
  Copies copy_keys(int head, const int32_t* places, int n) {
    const int64_t dim = a.dim, width = a.whole();
    if (n > most) most = n, keys = room(n * dim), values = room(n * width);
    for (int j = 0; j < n; j++) {
      const int row = a.groups.k_rows[places ? places[j] : j];
      copy(keys.get() + j * dim, a.key(row, head), a.dim);
      copy(values.get() + j * width, a.value(row, head), a.width);
    }
    return {keys.get(), values.get(), a.dim, a.whole()};
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
