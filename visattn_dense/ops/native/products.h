// Products of float32 rows and packed layers, which the kernels of linear layers are made of.

#pragma once

#include "activations.h"
#include "tiles.h"

namespace {

// The weights of a layer are cut in panels of at most WIDE vectors of outputs, and the entries of a
// panel lie in the order in which `accumulate` takes them. A block of a panel and of LINES rows fills
// the registers.
#if defined(__AVX512F__)
constexpr int WIDE = 4, LINES[] = {0, 14, 12, 8, 6};
#else
constexpr int WIDE = 3, LINES[] = {0, 8, 6, 4};
#endif

constexpr int PART = 8192 / (WIDE * W);  // inputs at a time, whose part of a panel fits the L1 cache
constexpr int SPLIT = 1 << 18;  // parts of numbers that stay in the cache

// Rows of numbers as tiles: SIDE rows at a time, `steps` tiles of DEPTH inputs and of all parts.
struct Tiles {
  const Line* lines;
  int steps;

  const Line* at(int row, int step) const {
    return lines + (int64_t(row / SIDE) * steps + step) * STEP<PARTS>;
  }
};

// `packed`: the panels, then the bias, all outputs padded to whole vectors. In tiles, a row of a tile
// has two inputs of SIDE outputs, and a panel is one or two vectors of outputs.
struct Layer {
  const float* packed;
  int inputs, outputs;
  bool tiles;

  int vectors() const { return (outputs + W - 1) / W; }
  int wide() const { return tiles ? BOTH / W : WIDE; }
  int panels() const { return (vectors() + wide() - 1) / wide(); }
  // The first vector of panel p.
  int first(int p) const {
    return tiles ? std::min(vectors(), p * wide()) : vectors() * p / panels();
  }
  // The entries of panel p from input k on, not in tiles.
  const float* panel(int p, int k) const {
    return packed + (int64_t(first(p)) * inputs + int64_t(k) * (first(p + 1) - first(p))) * W;
  }
  Tiles weights() const { return {reinterpret_cast<const Line*>(packed), steps_of(inputs)}; }
  // How many floats the panels are.
  int64_t size() const {
    constexpr int line = sizeof(Line) / sizeof(float);
    return int64_t(vectors()) * (tiles ? steps_of(inputs) * STEP<PARTS> * line : inputs * W);
  }
  const float* bias() const { return packed + size(); }
};

// Rows of numbers, as they are or, for a layer in tiles, as tiles.
struct Rows {
  int count;
  const float* x;
  int64_t pitch;
  Tiles tiles;
};

// Rows of n numbers as tiles, with zeros behind them. The rest of the last tile stays as it is.
void split_rows(const float* x, int64_t pitch, int rows, int n, Line* to) {
  const int steps = steps_of(n);
  for (int r = 0; r < rows; r++) {
    const float* row = x + r * pitch;
    Line* line = to + int64_t(r / SIDE) * steps * STEP<PARTS> + r % SIDE;
    for (int k = 0; k < n; k += DEPTH, line += STEP<PARTS>)
      split(get(row + k, n - k), get(row + k + W, n - k - W), line);
  }
}

// Places for the tiles of `count` rows of n numbers, if they are used.
struct Splitter {
  std::unique_ptr<Line[]> lines;

  Splitter(bool use, int count, int n)
      : lines(use ? new Line[(count + SIDE - 1) / SIDE * int64_t(steps_of(n)) * STEP<PARTS>]
                  : nullptr) {}

  // Rows of n numbers in the form that the layer takes.
  Rows operator()(const float* x, int64_t pitch, int count, int n) const {
    if (lines) split_rows(x, pitch, count, n, lines.get());
    return {count, x, pitch, {lines.get(), steps_of(n)}};
  }
};
// How many rows a layer takes at a time.
inline int rows_at_once(bool tiles) { return tiles ? BOTH : LINES[WIDE]; }

// In how many blocks of at most `most` rows to cut the rows: as many for each thread.
inline int64_t blocks_of(int64_t rows, int most, int threads, bool tiles) {
  const int64_t round = int64_t(most) * threads, step = rows_at_once(tiles);
  return std::min((rows + step - 1) / step, (rows + round - 1) / round * threads);
}

// The first row of a block, of `blocks` of about the same size.
inline int64_t first_row(int64_t rows, int block, int blocks, bool tiles) {
  const int step = rows_at_once(tiles);
  return std::min(rows, (rows + step - 1) / step * block / blocks * step);
}

// What is added to a product, beside the bias: rows of numbers, or nothing.
struct Addend {
  const float* x;
  int64_t stride;
};

// Memory that later products need, fetched line by line into the second-level cache beside the products
// of now: the weights of a layer, and the rows of a large map, are rarely there.
class Ahead {
  static constexpr int MOST = 4;
  const float *at[MOST], *end[MOST];
  int used = 0, now = 0;

 public:
  const float* weights = nullptr;  // what comes after the panels of a product
  void clear() { used = now = 0; }
  void add(const float* x, int64_t n) { at[used] = x, end[used++] = x + n; }
  // The place of the next n lines, or null.
  const float* take(int n) {
    while (now < used && at[now] >= end[now]) now++;
    if (now == used) return nullptr;
    const float* lines = at[now];
    at[now] += n * W;
    return lines;
  }
};

// out = act(a W^T + bias + addend), for R rows, a panel of C vectors and a simple activation. Fetches n
// lines from `ahead` on, which may be null.
template <int R, int C>
void tile(const float* a, int64_t pitch, const float* panel, int n, const float* bias,
          Addend addend, float* out, int64_t stride, Activation kind, const float* ahead) {
  Vec acc[R][C];
  UNROLL for (int c = 0; c < C; c++) {
    const Vec b = bias ? load(bias + c * W) : Vec{};
    UNROLL for (int r = 0; r < R; r++) acc[r][c] = b;
  }
  if (addend.x)
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int c = 0; c < C; c++) acc[r][c] += load(addend.x + r * addend.stride + c * W);
  const float* line = ahead ? ahead : panel;
  const int step = ahead ? W : 0;
  accumulate<R, C>(a, pitch, 1, panel, n, acc, [&](int) {
    __builtin_prefetch(line, 0, 2);
    line += step;
  });
  if (kind == kRelu) activate<kRelu>(acc);
  if (kind == kHardswish) activate<kHardswish>(acc);
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < C; c++) store(out + r * stride + c * W, acc[r][c]);
}

// The same, where the panel has fewer columns than its vectors have.
template <int R, int C>
void narrow_tile(const float* a, int64_t pitch, const float* panel, int n, const float* bias,
                 Addend addend, float* out, int64_t stride, Activation kind, int columns) {
  constexpr int whole = C * W;
  float more[R * whole] = {}, result[R * whole];
  if (addend.x)
    for (int r = 0; r < R; r++) copy(more + r * whole, addend.x + r * addend.stride, columns);
  tile<R, C>(a, pitch, panel, n, bias, {more, whole}, result, whole, kind, nullptr);
  for (int r = 0; r < R; r++) copy(out + r * stride, result + r * whole, columns);
}

// Where a block of sums starts from, and where it goes to.
struct Place {
  const float* start;
  int64_t start_stride;
  float* to;
  int64_t stride;
};

// Products of n inputs, of rows from `step` on and of a layer in tiles from k on, for the panels
// [from, to). Calls f(p, i, sums) with the sums of row i and panel p. Where the block of BOTH rows
// from row i on has its place in memory, place(p, i, count) gives this place, and f is not called.
template <typename At, typename F>
void in_tiles(const Rows& rows, int step, const Layer& layer, int from, int to, int k, int n,
              bool bias, At&& place, F&& f) {
  alignas(64) float sums[2][BOTH * BOTH];
  const Tiles weights = layer.weights();
  const int steps = steps_of(n);
  // The block whose sums are given to f while the next product is computed.
  struct {
    int panel, row;
    const float* sums;
  } last{};
  Spread give{0, PRODUCTS<PARTS> * steps};
  const auto one = [&](int r) { f(last.panel, last.row + r, last.sums + r * BOTH); };
  const auto meanwhile = [&]() __attribute__((noinline)) { give.next(one); };
  for (int p = from, block = 0; p < to; p++) {
    const int first = layer.first(p) * W;
    const Line *left = weights.at(first, k / DEPTH), *right = weights.at(first + W, k / DEPTH);
    const bool both = layer.first(p + 1) * W > first + W;
    for (int i = 0; i < rows.count; i += BOTH, block ^= 1) {
      const int count = std::min(BOTH, rows.count - i);
      const Line *a = rows.tiles.at(i, step), *below = rows.tiles.at(i + SIDE, step);
      const auto run = [&](const float* start, int64_t start_stride, float* to, int64_t stride) {
        tile_product<PARTS>(count > SIDE, both, a, below, left, right, steps, start, start_stride,
                            to, stride, meanwhile);
      };
      if (const auto [start, start_stride, to, stride] = place(p, i, count); to) {
        // Stores that wait for their lines would stop the products behind them.
        for (int r = 0; r < count; r++)
          for (int c = 0; c < (both ? 2 : 1); c++) __builtin_prefetch(to + r * stride + c * W, 1);
        run(start, start_stride, to, stride);
        continue;
      }
      run(bias ? layer.bias() + first : ZEROS, 0, sums[block], BOTH);
      give.rest(one);
      last = {p, i, sums[block]};
      give = {count, PRODUCTS<PARTS> * steps};
    }
  }
  give.rest(one);
}

// `multiply`, see below, of a layer in tiles and of rows from `step` on.
void multiply_tiles(const Rows& rows, int step, const Layer& layer, int from, int to, int k, int n,
                    bool bias, Addend addend, float* out, int64_t stride, Activation kind) {
  const auto column = [&](int p) { return (layer.first(p) - layer.first(from)) * W; };
  const auto place = [&](int p, int i, int count) -> Place {
    const int first = layer.first(p) * W, end = layer.first(p + 1) * W;
    if (kind != kNone || (bias && addend.x) || count % SIDE || end > layer.outputs) return {};
    float* to = out + i * stride + column(p);
    if (addend.x) return {addend.x + i * addend.stride + column(p), addend.stride, to, stride};
    return {bias ? layer.bias() + first : ZEROS, 0, to, stride};
  };
  with(kind, [&](auto act) {
    in_tiles(rows, step, layer, from, to, k, n, bias, place, [&](int p, int i, const float* sums) {
      const int columns = std::min(BOTH, layer.outputs - layer.first(p) * W);
      float* to = out + i * stride + column(p);
      for (int c = 0; c < columns; c += W) {
        Vec y = load(sums + c);
        if (addend.x) y += get(addend.x + i * addend.stride + column(p) + c, columns - c);
        put(to + c, act(y), columns - c);
      }
    });
  });
}

// out = act(a W^T + bias + addend), for the panels [from, to) and n inputs from k on of a layer.
// Column 0 of `out` and of `addend` is the first output of panel `from`. `ahead` is fetched meanwhile.
void multiply(const Rows& rows, const Layer& layer, int from, int to, int k, int n, bool bias,
              Addend addend, float* out, int64_t stride, Activation kind, Ahead& ahead) {
  if (layer.tiles) {
    // So many inputs at a time that the tiles of all rows stay in the cache.
    const int most = std::max(4, SPLIT / (rows.count * PARTS * DEPTH)), steps = steps_of(n);
    const int times = (steps + most - 1) / most;
    for (int i = 0; i < times; i++) {
      const int step = steps * i / times, end = steps * (i + 1) / times;
      multiply_tiles(rows, step, layer, from, to, k + step * DEPTH, (end - step) * DEPTH,
                     bias && !i, i ? Addend{out, stride} : addend, out, stride,
                     i + 1 == times ? kind : kNone);
    }
    return;
  }
  const auto column = [&](int p) { return (layer.first(p) - layer.first(from)) * W; };
  for (int p = from; p < to; p++) {
    const int first = layer.first(p) * W;
    const int columns = std::min(layer.outputs, layer.first(p + 1) * W) - first;
    const auto run = [&](auto vectors) {
      constexpr int C = decltype(vectors)::value;
      const float* following = p + 1 < to ? layer.panel(p + 1, k) : ahead.weights;
      for (int done = 0; done < n; done += PART) {
        const int now = std::min(PART, n - done);
        const float* part = layer.panel(p, k + done);
        const Activation in_registers = done + now == n && is_simple(kind) ? kind : kNone;
        const float* next = done + now < n ? part + int64_t(now) * C * W : following;
        in_blocks<LINES[C]>(rows.count, [&](int i, auto size) {
          constexpr int R = decltype(size)::value;
          const int64_t pitch = rows.pitch;
          const float* row = rows.x + i * pitch + done;
          float* to = out + i * stride + column(p);
          Addend so_far = done ? Addend{to, stride} : addend;
          if (!done && so_far.x) so_far.x += i * addend.stride + column(p);
          const float* biases = bias && !done ? layer.bias() + first : nullptr;
          // The next part of the panels first: it has about C lines for each input.
          const int block = i / LINES[C];
          const float* lines = next && block < C ? next + int64_t(block) * now * W : ahead.take(now);
          if (columns == C * W)
            tile<R, C>(row, pitch, part, now, biases, so_far, to, stride, in_registers, lines);
          else
            narrow_tile<R, C>(row, pitch, part, now, biases, so_far, to, stride, in_registers,
                              columns);
          if (done + now == n && kind != in_registers && kind != kNone)
            activate(to, stride, R, columns, kind);
        });
      }
    };
    switch (layer.first(p + 1) - layer.first(p)) {
      case 1: run(std::integral_constant<int, 1>{}); break;
      case 2: run(std::integral_constant<int, 2>{}); break;
      case 3: run(std::integral_constant<int, 3>{}); break;
      default: run(std::integral_constant<int, WIDE>{});
    }
  }
}

// Where the rows of a layer come from.
struct Source {
  const float *x, *update;           // rows: of x, or of x + update
  int64_t stride, update_stride;     // from row to row
  int channels;                      // of a row
  int norm;                          // whether the rows are normalised, as in LayerNorm
  float epsilon;                     // of the norm
  int kernel;                        // rows are patches of kernel^2 positions of a map; 0: as they are
  int step, padding, height, width;  // of the convolution and of its map
  int out_height, out_width;

  int inputs() const { return channels * std::max(1, kernel * kernel); }
};

// Positions of one patch of the map, zero beyond the border: `count` of them from row ky and column kx of the
// kernel on. Positions of a line of the map lie side by side, if its rows do.
inline void patch(const Source& from, int64_t image, int line, int column, int ky, int kx, int count, float* to) {
  for (; count > 0; ky++, kx = 0) {
    const int some = std::min(count, from.kernel - kx);
    const int y = line * from.step - from.padding + ky, x = column * from.step - from.padding + kx;
    const float* source = from.x + ((image + y) * from.width + x) * from.stride;
    const bool inside = y >= 0 && y < from.height;
    if (inside && x >= 0 && x + some <= from.width && from.stride == from.channels) {
      copy(to, source, some * from.channels);
    } else {
      for (int i = 0; i < some; i++) {
        if (inside && x + i >= 0 && x + i < from.width)
          copy(to + i * from.channels, source + i * from.stride, from.channels);
        else
          std::fill_n(to + i * from.channels, from.channels, 0.f);
      }
    }
    count -= some, to += some * from.channels;
  }
}

// The positions [first, last) of the patches that the rows [row, end) see. A row of `to` has those of one patch.
inline void patches(const Source& from, int64_t row, int64_t end, int first, int last, float* to, int64_t pitch) {
  const int ky = first / from.kernel, kx = first % from.kernel;
  int column = row % from.out_width, line = row / from.out_width % from.out_height;
  int64_t image = row / from.out_width / from.out_height * from.height;
  for (; row < end; row++, to += pitch) {
    patch(from, image, line, column, ky, kx, last - first, to);
    if (++column < from.out_width) continue;
    column = 0;
    if (++line == from.out_height) line = 0, image += from.height;
  }
}

// From one row of a thread's buffer to the next.
inline int64_t apart(int n) { return whole(n) + 16; }

}  // namespace
