// Softmax attention between groups of tokens, of NHWC maps in float32 or bfloat16: compiled for the
// processor at hand (build.py), called by operators.py, which says what the arguments are. All sums are
// float32; bfloat16 is a format of the maps in memory alone.
//
// The keys of a group are taken some at a time, and the softmax is that of the keys so far (Milakov
// and Gimelshein, 2018, algorithm 3).

#include "depthwise.h"
#include "replay.h"
#include "shares.h"
#include "tiles.h"

#include <numeric>

namespace {

// Which rows attend to which rows; see Groups in operators.py.
struct Groups {
  const int32_t *q_rows, *q_starts, *k_rows, *k_starts;
  const int64_t* routed;
  const float* absent;
  int groups, routes;

  int keys() const { return k_starts[groups]; }
};

template <typename Number>
struct Attention {
  Groups groups;
  const Number *q, *k, *v;
  Number* out;
  int64_t q_stride, k_stride, v_stride, out_stride;
  int dim, width;
  float scale;

  const Number* query(int row, int head) const { return q + row * q_stride + head * dim; }
  const Number* key(int row, int head) const { return k + row * k_stride + head * dim; }
  const Number* value(int row, int head) const { return v + row * v_stride + head * width; }
  Number* result(int row, int head) const { return out + row * out_stride + head * width; }
  // The width in whole vectors.
  int whole() const { return ::whole(width); }
  // Logits to base 2.
  float factor() const { return scale * 1.44269504088896f; }
};

// Some queries of one head, and all their keys: places in k_rows.
struct Item {
  int head, count, keys;
  const int32_t *rows, *places;
  float absent;
};

// The items of one of the attentions that are computed together.
struct Items {
  const Groups& groups;
  int heads, parts, together;

  // More items than threads, each with some of its group's queries. `together`: an item has a multiple
  // of so many queries, but the last of a group.
  Items(const Groups& groups, int heads, int attentions, int threads, int together)
      : groups(groups), heads(heads), together(together) {
    const int pairs = std::max(1, groups.groups * heads * attentions);
    parts = pairs >= 4 * threads ? 1 : (4 * threads + pairs - 1) / pairs;
  }
  int64_t count() const { return int64_t(groups.groups) * heads * parts; }
  // Item i, whose keys are in `places`.
  Item at(int64_t i, std::vector<int32_t>& places) const {
    const int part = i % parts;
    const int64_t pair = i / parts;
    // Routed groups share the keys of a head. Else the heads of a group lie side by side in memory.
    const bool shared = groups.routes > 1;
    const int group = shared ? pair % groups.groups : pair / heads;
    const int head = shared ? pair / groups.groups : pair % heads;
    const int first = groups.q_starts[group], queries = groups.q_starts[group + 1] - first;
    const int size = ((queries + parts - 1) / parts + together - 1) / together * together;
    const int from = std::min(queries, part * size), to = std::min(queries, from + size);
    places.clear();
    for (int r = 0; r < groups.routes; r++) {
      const int target = groups.routed ? groups.routed[int64_t(group) * groups.routes + r] : group;
      const int start = groups.k_starts[target], known = places.size();
      places.resize(known + groups.k_starts[target + 1] - start);
      std::iota(places.begin() + known, places.end(), start);
    }
    return {head, to - from, int(places.size()), groups.q_rows + first + from, places.data(),
            groups.absent ? groups.absent[group] : 0.f};
  }
};

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

// In the tile registers, for bfloat16: rows of queries by columns of keys give rows of logits. Their
// weights, rounded to bfloat16, are the left operand of the product with the values.
#if VISATTN_TILES

constexpr int FEW = 128;        // keys at a time, at most eight vectors
constexpr int ROUND = 512;      // queries at a time, in blocks of BOTH

struct InTiles {
  const Attention<Bfloat16>& a;
  const int32_t* const k_rows = a.groups.k_rows;
  const Registers registers{true};
  const int depth = steps_of(a.dim), width = (a.width + SIDE - 1) / SIDE * SIDE;
  // Queries: tiles of rows. Keys: SIDE of them, numbers by pairs. Values: SIDE numbers of all keys,
  // keys by pairs. Weights: two tiles of rows, of FEW keys. The last two in turn.
  std::unique_ptr<Line[]> queries, keys, values, weights;
  std::vector<float> logits, result, top, shrink, sum;
  int most = 0;                 // keys for which there is room

  explicit InTiles(const Attention<Bfloat16>& a)
      : a(a), queries(new Line[ROUND * depth]), weights(new Line[2 * BOTH * FEW / DEPTH]),
        logits(2 * BOTH * FEW), result(ROUND * width), top(ROUND), shrink(2 * BOTH),
        sum(ROUND * W) {}
  InTiles(const InTiles&) = delete;

  void operator()(const Item& item) {
    if (item.keys > most) {
      most = item.keys;
      keys.reset(new Line[int64_t(steps_of(most)) * BOTH * depth]);
      values.reset(new Line[int64_t(steps_of(most)) * width]);
    }
    prepare_keys(item);
    prepare_values(item);
    for (int i = 0; i < item.count; i += ROUND) {
      Item part = item;
      part.rows += i, part.count = std::min(ROUND, item.count - i);
      round(part);
    }
  }

  // The first n numbers of a row of a tile, then zeros.
  static __m512i line(const Bfloat16* x, int n) {
    return _mm512_maskz_loadu_epi16(n >= DEPTH ? ~0u : (1u << n) - 1, x);
  }

  void prepare_keys(const Item& item) {
    for (int j = 0; j < steps_of(item.keys) * DEPTH; j += SIDE)
      for (int d = 0; d < depth; d++) {
        Vec pairs[W];
        for (int i = 0; i < W; i++) {
          pairs[i] = Vec{};
          if (j + i < item.keys)
            pairs[i] = (Vec)line(a.key(k_rows[item.places[j + i]], item.head) + d * DEPTH,
                                 a.dim - d * DEPTH);
        }
        transpose(pairs);
        Line* to = keys.get() + (int64_t(j / SIDE) * depth + d) * SIDE;
        for (int i = 0; i < W; i++) _mm512_store_si512(to + i, (__m512i)pairs[i]);
      }
  }

  void prepare_values(const Item& item) {
    const int steps = steps_of(item.keys);
    for (int step = 0; step < steps; step++)
      for (int i = 0; i < SIDE; i++)
        for (int d = 0; d < width; d += SIDE) {
          const auto value = [&](int j) {
            return j < item.keys ? get(a.value(k_rows[item.places[j]], item.head) + d, a.width - d)
                                 : Vec{};
          };
          split<1>(value(step * DEPTH + i), value(step * DEPTH + SIDE + i),
                   values.get() + (int64_t(d / SIDE) * steps + step) * SIDE + i);
        }
  }

  // At most ROUND queries. A piece is a block of queries and FEW keys. While one piece is softened,
  // the registers compute the logits of the next one and add the values of the one before.
  void round(const Item& item) {
    for (int r = 0; r < item.count; r++) {
      Line* to = queries.get() + int64_t(r / SIDE) * depth * SIDE + r % SIDE;
      for (int d = 0; d < depth; d++)
        _mm512_store_si512(to + d * SIDE, line(a.query(item.rows[r], item.head) + d * DEPTH,
                                               a.dim - d * DEPTH));
      top[r] = item.absent > 0 ? 0.f : -std::numeric_limits<float>::infinity();
      store(sum.data() + r * W, Vec{item.absent});
    }
    if (!item.keys) std::fill(result.begin(), result.end(), 0.f);
    const int blocks = (item.count + BOTH - 1) / BOTH;
    const int pieces = blocks * ((item.keys + FEW - 1) / FEW);
    for (int i = 0; i < pieces + 2; i++) {
      const auto piece = [&](int i) {
        const int first = i / blocks * FEW, block = i % blocks * BOTH;
        return Piece{i % 2, block, std::min(BOTH, item.count - block), first,
                     std::min(FEW, item.keys - first)};
      };
      const bool soft = i >= 1 && i <= pieces;
      const Piece before = piece(i - soft);
      const int products = (i < pieces) * depth + (i >= 2) * ((width + SIDE) / BOTH);
      Spread rows{soft ? before.count : 0, products * FEW / DEPTH};
      const auto soften_next = [&](int r) { soften(before, r); };
      const auto meanwhile = [&]() __attribute__((noinline)) { rows.next(soften_next); };
      if (i < pieces) multiply_keys(piece(i), meanwhile);
      if (i >= 2) multiply_values(piece(i - 2), steps_of(item.keys), meanwhile);
      rows.rest(soften_next);
    }
    for (int r = 0; r < item.count; r++) {
      const Vec inverse = splat(1 / total(load(sum.data() + r * W)));
      Bfloat16* to = a.result(item.rows[r], item.head);
      const float* from = result.data() + r * width;
      in_lanes(a.width, [&](auto lane, int c) {
        if constexpr (sizeof(lane) == sizeof(float)) store(to + c, from[c] * inverse[0]);
        else store(to + c, load(from + c) * inverse);
      });
    }
  }

  // Some queries and keys: `count` queries from `block` on, n keys from `first` on. `turn` says
  // which places of the logits and weights are the piece's.
  struct Piece {
    int turn, block, count, first, n;
  };

  template <typename F>
  void multiply_keys(const Piece& piece, F&& meanwhile) {
    const Line* query = queries.get() + int64_t(piece.block) * depth;
    float* to = logits.data() + piece.turn * BOTH * FEW;
    for (int j = 0; j < piece.n; j += BOTH) {
      const Line* key = keys.get() + int64_t(piece.first + j) * depth;
      tile_product<1>(piece.count > SIDE, true, query, query + SIDE * depth, key,
                      key + SIDE * depth, depth, ZEROS, 0, to + j, FEW, meanwhile);
    }
  }

  // The weights of a row, and the row's largest logit and sum of weights so far.
  void soften(const Piece& piece, int r) {
    float* row = logits.data() + (piece.turn * BOTH + r) * FEW;
    std::fill(row + piece.n, row + steps_of(piece.n) * DEPTH,
              -std::numeric_limits<float>::infinity());
    Line* to = weights.get() + (piece.turn * BOTH + r / SIDE * SIDE) * FEW / DEPTH + r % SIDE;
    float& less = shrink[piece.turn * BOTH + r];
    switch (steps_of(piece.n)) {
      case 1: return soften<2>(row, piece.block + r, less, to);
      case 2: return soften<4>(row, piece.block + r, less, to);
      case 3: return soften<6>(row, piece.block + r, less, to);
      default: return soften<8>(row, piece.block + r, less, to);
    }
  }

  // 2^x for x <= 0. The error of the cubic is 1e-4 of 2^x, a twentieth of bfloat16's.
  static Vec rough_exp2(Vec x) {
    const __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
    const Vec f = x - (Vec)whole;
    const Vec p = ((f * 5.5170980e-2f + .24260972f) * f + .69326097f) * f + .99992816f;
    return (Vec)_mm512_scalef_ps((__m512)p, whole);
  }

  template <int N>
  void soften(const float* row, int query, float& shrink, Line* to) {
    Vec x[N], largest = splat(top[query]);
    UNROLL for (int i = 0; i < N; i++) x[i] = load(row + i * W) * a.factor();
    UNROLL for (int i = 0; i < N; i++) largest = (Vec)_mm512_max_ps((__m512)x[i], (__m512)largest);
    const float most = _mm512_reduce_max_ps((__m512)largest);
    shrink = exp2(splat(top[query] - most))[0];
    Vec total = load(sum.data() + query * W) * shrink;
    UNROLL for (int i = 0; i < N; i += 2, to += SIDE) {
      const Vec low = rough_exp2(x[i] - most), high = rough_exp2(x[i + 1] - most);
      total += low + high;
      split<1>(low, high, to);
    }
    store(sum.data() + query * W, total);
    top[query] = most;
  }

  template <typename F>
  void multiply_values(const Piece& piece, int steps, F&& meanwhile) {
    const Line* left = weights.get() + piece.turn * BOTH * FEW / DEPTH;
    float* so_far = result.data() + piece.block * width;
    if (piece.first)
      for (int r = 0; r < piece.count; r++)
        for (int c = 0; c < width; c += W) {
          float* to = so_far + r * width + c;
          store(to, load(to) * shrink[piece.turn * BOTH + r]);
        }
    for (int d = 0; d < width; d += BOTH) {
      const Line* right = values.get() + int64_t(d) * steps + piece.first / DEPTH * SIDE;
      tile_product<1>(piece.count > SIDE, width - d > SIDE, left, left + SIDE * FEW / DEPTH, right,
                      right + SIDE * steps, steps_of(piece.n), piece.first ? so_far + d : ZEROS,
                      piece.first ? width : 0, so_far + d, width, meanwhile);
    }
  }
};

#endif

// Attentions that a team of threads computes.
template <typename Number>
class Attentions {
  const std::vector<Attention<Number>>& all;
  std::vector<Items> items;
  std::vector<Shares> shares;
  const bool tiles;

  // By an F for each attention, which computes items.
  template <typename F>
  void compute_by() {
    std::vector<int32_t> places;
    for (size_t which = 0; which < all.size(); which++) {
      F compute(all[which]);
      shares[which].work([&](int i) {
        if (const Item item = items[which].at(i, places); item.count) compute(item);
      });
    }
  }

 public:
  Attentions(const std::vector<Attention<Number>>& all, int heads, bool tiles, int threads)
      : all(all), tiles(VISATTN_TILES && tiles && std::is_same_v<Number, Bfloat16>) {
    for (const auto& a : all) {
      items.emplace_back(a.groups, heads, int(all.size()), threads, this->tiles ? BOTH : W);
      shares.emplace_back(items.back().count(), threads);
    }
  }

  // Each thread of the team calls this once.
  void compute() {
#if VISATTN_TILES
    if constexpr (std::is_same_v<Number, Bfloat16>)
      if (tiles) return compute_by<InTiles>();
#endif
    compute_by<InVectors<Number>>();
  }
};

}  // namespace

extern "C" {

// Softmax attention.
void visattn_attention(
    const void* q, const void* k, const void* v, void* out, int64_t q_stride, int64_t k_stride,
    int64_t v_stride, int64_t out_stride, const int32_t* q_rows, const int32_t* q_starts,
    const int32_t* k_rows, const int32_t* k_starts, const int64_t* routed, const float* absent,
    int groups, int routes, int heads, int dim, int width, float scale, int bfloat16, int tiles,
    int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    const std::vector<Attention<Number>> all{
        {{q_rows, q_starts, k_rows, k_starts, routed, absent, groups, routes},
         static_cast<const Number*>(q), static_cast<const Number*>(k), static_cast<const Number*>(v),
         static_cast<Number*>(out), q_stride, k_stride, v_stride, out_stride, dim, width, scale}};
    Attentions<Number> attentions(all, heads, tiles, threads);
#pragma omp parallel num_threads(threads)
    attentions.compute();
  });
}

// Windows of one kind, whose tokens attend to each other, and a depthwise convolution inside them; as in
// build.py.
struct Part {
  const int32_t *rows, *starts;
  const float *absent, *weight, *bias;
  int groups, height, width, top, left;
};

// Softmax attention inside windows, and a depthwise convolution of v that is added. A row of qkv has q, k
// and v of all parts, `apart` numbers from one to the next; a part has `heads` heads. `kernel`: the side of
// the convolution's kernel, 3 or 5.
void visattn_windows(const void* qkv, int64_t stride, int64_t apart, void* out, int batch, int height,
                     int width, const Part* parts, int count, int heads, int dim, float scale,
                     int kernel, int bfloat16, int tiles, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    const int channels = heads * dim;
    const int64_t all_channels = int64_t(channels) * count;
    const Number* from = static_cast<const Number*>(qkv);
    Number* to = static_cast<Number*>(out);
    std::vector<Attention<Number>> all;
    std::vector<Depthwise<Number>> convolutions;
    for (int i = 0; i < count; i++) {
      const Part& part = parts[i];
      const Number *q = from + i * channels, *k = q + apart, *v = k + apart;
      Number* result = to + i * channels;
      all.push_back({{part.rows, part.starts, part.rows, part.starts, nullptr, part.absent, part.groups, 1},
                     q, k, v, result, stride, stride, stride, all_channels, dim, dim, scale});
      convolutions.push_back({v, part.weight, part.bias, result, stride, all_channels, batch, height, width,
                              channels, {part.height, part.width, part.top, part.left}, true, kNone});
    }
    Attentions<Number> attentions(all, heads, tiles, threads);
    with_kernel(kernel, [&](auto side) {
#pragma omp parallel num_threads(threads)
      {
        attentions.compute();
#pragma omp barrier
        for (const auto& convolution : convolutions) depthwise<decltype(side)::value>(convolution);
      }
    });
  });
}

REPLAYED(visattn_attention)
REPLAYED(visattn_windows)

}  // extern "C"
