// Softmax attention in the tile registers, for bfloat16.

#pragma once

#include "attention.h"
#include "tiles.h"

#if VISATTN_TILES

namespace {

// Rows of queries by columns of keys give rows of logits. Their weights, rounded to bfloat16, are the left
// operand of the product with the values.
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

  void prepare_keys(const Item& item) {
    for (int j = 0; j < steps_of(item.keys) * DEPTH; j += SIDE)
      for (int d = 0; d < depth; d++) {
        Vec key[W];
        for (int i = 0; i < W; i++) {
          key[i] = Vec{};
          if (j + i < item.keys)
            key[i] = pairs(a.key(k_rows[item.places[j + i]], item.head) + d * DEPTH,
                           a.dim - d * DEPTH);
        }
        transpose(key);
        Line* to = keys.get() + (int64_t(j / SIDE) * depth + d) * SIDE;
        for (int i = 0; i < W; i++) _mm512_store_si512(to + i, (__m512i)key[i]);
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
        _mm512_store_si512(to + d * SIDE, (__m512i)pairs(
            a.query(item.rows[r], item.head) + d * DEPTH, a.dim - d * DEPTH));
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

}  // namespace

#endif
