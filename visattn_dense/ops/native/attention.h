// What the forms of softmax attention share: the groups of tokens, the maps, and the items of work.

#pragma once

#include "vectors.h"

#include <numeric>

namespace {

// Which rows attend to which rows; see Groups in attention.py.
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

}  // namespace
