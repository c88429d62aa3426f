// Linear layers of float32 rows, two of them in a chain, and two with a depthwise convolution
// between: compiled as attention.cpp is.
//
// The rows are those of a matrix, or the patches that a convolution sees in an NHWC map. A few rows
// at a time go through all layers, so what lies between the layers stays in the cache.

#include "depthwise.h"
#include "shares.h"
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
constexpr int FEW = 64;       // rows for which it pays to split their numbers
constexpr int BLOCK = 192;    // rows that go through a chain at a time: whole steps of both forms
constexpr int SOME = 16;      // rows at a time whose sums stay in the cache until their norm
constexpr int HIDDEN = 256;   // about so many outputs of the first layer at a time
constexpr int CACHE = 1 << 18;  // weights that stay in the cache
constexpr int ROOM = 1 << 18;   // numbers between the layers of a mobile block that stay in the cache
constexpr int SPLIT = 1 << 18;  // parts of numbers that stay in the cache
constexpr int WIDTH = 1024;     // about so many numbers of a patch at a time

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

// x N(x), with N the normal distribution, or its approximation by tanh. N - 1/2 is odd, and 1/2 from 5.5
// on, up to 2e-8.
constexpr float TAIL = 5.5f;

#if defined(__AVX512F__)

// N - 1/2 on [0, TAIL] in 31 parts, and two halves of parts: cubic polynomials through the function
// at the Chebyshev nodes. Their error is 3e-7 at most.
struct Cubics {
  alignas(64) float factor[4][2 * W];

  explicit Cubics(double (*odd)(double)) {
    for (int i = 0; i < 2 * W; i++) {
      double node[4], f[4], power[4] = {};
      for (int j = 0; j < 4; j++) {
        node[j] = .5 * std::cos((2 * j + 1) * std::acos(-1.) / 8);
        f[j] = odd((i + node[j]) * (TAIL / (2 * W - 1)));
      }
      for (int step = 1; step < 4; step++)  // divided differences, of Newton's interpolation
        for (int j = 3; j >= step; j--) f[j] = (f[j] - f[j - 1]) / (node[j] - node[j - step]);
      for (int j = 3; j >= 0; j--) {
        for (int k = 3; k > 0; k--) power[k] = power[k - 1] - node[j] * power[k];
        power[0] = f[j] - node[j] * power[0];
      }
      for (int j = 0; j < 4; j++) factor[j][i] = power[j];
    }
    factor[0][2 * W - 1] = .5f;  // so gelu is 0 or x from TAIL on
  }
};
const Cubics ERF([](double x) { return .5 * std::erf(x * std::sqrt(.5)); });
const Cubics TANH([](double x) {
  return .5 * std::tanh(std::sqrt(2 / std::acos(-1.)) * (x + .044715 * x * x * x));
});

inline Vec gelu(Vec x, const Cubics& cubics) {
  const Vec size = (Vec)((Words)x & 0x7fffffffu);
  const Vec u = min(size * ((2 * W - 1) / TAIL), splat(2 * W - 1));
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec nearest = u + magic, rest = u - (nearest - magic);
  const auto factor = [&](int j) {
    return (Vec)_mm512_permutex2var_ps(_mm512_load_ps(cubics.factor[j]), (__m512i)nearest,
                                       _mm512_load_ps(cubics.factor[j] + W));
  };
  const Vec half = ((factor(3) * rest + factor(2)) * rest + factor(1)) * rest + factor(0);
  return x * .5f + size * half;
}

inline Vec gelu(Vec x) { return gelu(x, ERF); }
inline Vec gelu_tanh(Vec x) { return gelu(x, TANH); }

#else

inline Vec gelu(Vec x) {
  // t P(t^2), for |t| <= TAIL, with P the Chebyshev interpolant of degree 15, in
  // s = 2 t^2 / TAIL^2 - 1. The error of gelu is 5e-7 at most.
  constexpr float p[] = {1.285519295e-01f, -6.417232500e-02f, 4.773778316e-02f,
                         -3.879340558e-02f, 3.206742816e-02f, -2.604036884e-02f,
                         2.038357138e-02f, -1.504235102e-02f, 1.016775549e-02f,
                         -6.700172242e-03f, 4.718356385e-03f, -2.593710551e-03f,
                         6.437077840e-04f, -4.001957678e-04f, 6.551481797e-04f,
                         -2.740660155e-04f};
  const Vec t = min(splat(TAIL), max(splat(-TAIL), x));
  const Vec s = t * t * (2 / (TAIL * TAIL)) - 1.f;
  Vec sum = splat(p[15]);
  UNROLL for (int i = 14; i >= 0; i--) sum = sum * s + p[i];
  return x < splat(-TAIL) ? Vec{} : x * (sum * t + .5f);
}

// x / (1 + e^-y) with y = 2 sqrt(2 / pi) (x + 0.044715 x^3), in powers of 2.
inline Vec gelu_tanh(Vec x) {
  const Vec y = x * (x * x * (2.302208198f * .044715f) + 2.302208198f);
  const Vec power = exp2(min(y, -y));
  return x * (y < Vec{} ? power : splat(1.f)) / (power + 1.f);
}

#endif

// to = a + b, for n numbers; b may be null.
void add(const float* a, const float* b, int n, float* to) {
  for (int c = 0; c < n; c += W) {
    Vec x = get(a + c, n - c);
    if (b) x += get(b + c, n - c);
    put(to + c, x, n - c);
  }
}

// Calls f with the activation, a function of a vector.
template <typename F>
void with(Activation kind, F&& f) {
  switch (kind) {
    case kGelu: return f([](Vec y) { return gelu(y); });
    case kGeluTanh: return f([](Vec y) { return gelu_tanh(y); });
    case kHardswish: return f([](Vec y) { return activate(y, kHardswish); });
    default: return f([=](Vec y) { return activate(y, kind); });
  }
}

// x = act(x), for rows of n numbers.
void activate(float* x, int64_t stride, int rows, int n, Activation kind) {
  with(kind, [&](auto act) {
    for (int i = 0; i < rows; i++)
      for (int c = 0; c < n; c += W)
        put(x + i * stride + c, act(get(x + i * stride + c, n - c)), n - c);
  });
}

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

// The activations that need no more registers than a block of sums leaves.
inline bool is_simple(Activation kind) { return kind == kRelu || kind == kHardswish; }

// acc = act(acc), in the registers.
template <Activation kind, int R, int C>
inline void activate(Vec (&acc)[R][C]) {
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < C; c++) acc[r][c] = activate(acc[r][c], kind);
}

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

// The positions [first, last) of one patch of the map, zero beyond the border. Positions of a line of the
// map lie side by side, if its rows do.
void patch(const Source& from, int64_t row, int first, int last, float* to) {
  const int column = row % from.out_width, line = row / from.out_width % from.out_height;
  const int64_t image = row / from.out_width / from.out_height * from.height;
  for (int i = first, count; i < last; i += count, to += count * from.channels) {
    const int y = line * from.step - from.padding + i / from.kernel;
    const int x = column * from.step - from.padding + i % from.kernel;
    const float* source = from.x + ((image + y) * from.width + x) * from.stride;
    count = std::min(last - i, from.kernel - i % from.kernel);
    const bool inside = y >= 0 && y < from.height;
    if (inside && x >= 0 && x + count <= from.width && from.stride == from.channels) {
      copy(to, source, count * from.channels);
    } else {
      count = 1;
      if (inside && x >= 0 && x < from.width) copy(to, source, from.channels);
      else std::fill(to, to + from.channels, 0.f);
    }
  }
}

// From one row of a thread's buffer to the next.
inline int64_t apart(int n) { return whole(n) + 16; }

// Where the rows of a result lie: in lines of a map.
struct Map {
  float* x;
  int64_t stride, rows, line_stride;  // from row to row; rows of a line; from line to line

  float* at(int64_t row) const { return x + row / rows * line_stride + row % rows * stride; }
  // The first row behind the line of a row.
  int64_t end(int64_t row) const { return (row / rows + 1) * rows; }
};

void linear(const Source& from, const Layer& layer, Addend addend, const Map& out, int64_t rows,
            Activation kind, int threads) {
  const int inputs = from.inputs();
  // Weights that leave the cache are read anew for each block.
  const int most = layer.tiles ? 256 : int64_t(inputs) * layer.outputs > CACHE ? 240 : 96;
  int64_t blocks = blocks_of(rows, most, threads, layer.tiles);
  // Each part of a block in tiles splits the rows again: blocks of few rows are better.
  if (layer.tiles) blocks = std::max(blocks, std::min<int64_t>(2 * threads, rows / FEW));
  const int some = layer.tiles ? 2 * threads : blocks < threads ? 4 * threads : 0;
  const int parts = std::min<int64_t>(layer.panels(), std::max<int64_t>(1, some / blocks));
  // Rows at such distances share few places of the cache: copied apart, they stay there.
  const bool gather = from.kernel || from.norm
                      || (!layer.tiles && from.stride % 1024 == 0 && layer.panels() > parts);
  // Of wide patches, some positions at a time. Tiles begin at a multiple of DEPTH inputs.
  const int positions = std::max(1, from.kernel * from.kernel);
  int together = positions;
  if (from.kernel && !from.norm && inputs > WIDTH && (!layer.tiles || from.channels % DEPTH == 0))
    together = std::max(1, WIDTH / from.channels);
  const int width = from.kernel ? together * from.channels : inputs;
  const int64_t pitch = gather ? apart(width) : from.stride;
  Shares shares(blocks * parts, threads);
#pragma omp parallel num_threads(threads)
  {
    Ahead ahead;
    const Registers registers(layer.tiles);
    const Splitter rows_of(layer.tiles, most, width);
    const Floats buffer = room(gather ? most * pitch : 0);
    shares.work([&](int item) {
      const int block = item / parts, part = item % parts;
      const int64_t first = first_row(rows, block, blocks, layer.tiles);
      const int64_t last = first_row(rows, block + 1, blocks, layer.tiles);
      if (first == last) return;
      const int panel = layer.panels() * part / parts, column = layer.first(panel) * W;
      // Likely the next item of this thread.
      const int next = item + 1, next_panel = layer.panels() * (next % parts) / parts;
      ahead.clear();
      if (!from.kernel && next < blocks * parts && next / parts != block)
        ahead.add(from.x + first_row(rows, next / parts, blocks, layer.tiles) * from.stride,
                  (last - first) * from.stride);
      for (int p = 0; p < positions; p += together) {
        const int end = std::min(positions, p + together);
        if (gather)
          for (int64_t i = first; i < last; i++) {
            float* row = buffer.get() + (i - first) * pitch;
            if (from.kernel) patch(from, i, p, end, row);
            else copy(row, from.x + i * from.stride, inputs);
          }
        if (from.norm)
          Norm{nullptr, nullptr, from.epsilon}(buffer.get(), pitch, last - first, inputs, buffer.get(), pitch);
        if (!layer.tiles)
          ahead.weights = end < positions ? layer.panel(panel, end * from.channels)
                                          : layer.panel(next_panel, 0);
        const int n = (end - p) * from.channels;
        const float* x = gather ? buffer.get() : from.x + first * from.stride;
        for (int64_t i = first, next; i < last; i = next) {
          next = std::min(last, out.end(i));
          float* to = out.at(i) + column;
          Addend so_far{to, out.stride};
          if (!p) so_far = {addend.x ? addend.x + i * addend.stride + column : nullptr, addend.stride};
          multiply(rows_of(x + (i - first) * pitch, pitch, next - i, n), layer, panel,
                   layer.panels() * (part + 1) / parts, p * from.channels, n, p == 0, so_far, to,
                   out.stride, end == positions ? kind : kNone, ahead);
        }
      }
    });
  }
}

// act(a W^T + bias), for the panels [from, to) of a layer in tiles, as tiles in `lines`: a panel is a
// step.
Rows split_product(const Rows& rows, const Layer& layer, int from, int to, Activation kind,
                   Line* lines) {
  const auto place = [](int, int, int) { return Place{}; };
  with(kind, [&](auto act) {
    const auto put = [&](int p, int i, const float* sums) {
      const bool both = layer.first(p + 1) - layer.first(p) > 1;
      Line* to_line = lines + (int64_t(i / SIDE) * (to - from) + p - from) * STEP<PARTS> + i % SIDE;
      split(act(load(sums)), both ? act(load(sums + W)) : Vec{}, to_line);
    };
    in_tiles(rows, 0, layer, from, to, 0, layer.inputs, true, place, put);
  });
  return {rows.count, nullptr, 0, {lines, to - from}};
}

// out = addend + second(act(first(rows))). With a norm, the sum x + update is the addend. `normed`,
// which may be null, gets the `following` norm of `out`.
void chain(const Source& from, const Layer& first, const Layer& second, Addend addend, float* out,
           int64_t stride, int64_t rows, Activation kind, float* normed, const Norm& following,
           int threads) {
  const int inputs = from.inputs();
  // Panels of vectors need not end at a whole tile: then the second layer takes all at once.
  const int group = second.tiles && !first.tiles ? first.panels()
                                                 : std::max(1, HIDDEN / (first.wide() * W));
  const int blocks = blocks_of(rows, BLOCK, threads, first.tiles);
  const int64_t pitch = apart(inputs), between = apart(group * first.wide() * W);
  Shares shares(blocks, threads);
#pragma omp parallel num_threads(threads)
  {
    const Floats buffer = room(BLOCK * (pitch + between));
    float* hidden = buffer.get() + BLOCK * pitch;
    Ahead ahead;
    const Registers registers(first.tiles || second.tiles);
    const Splitter rows_of(first.tiles, BLOCK, inputs);
    const Splitter hidden_of(second.tiles, BLOCK, group * first.wide() * W);
    shares.work([&](int block) {
      const int64_t begin = first_row(rows, block, blocks, first.tiles);
      const int64_t end = first_row(rows, block + 1, blocks, first.tiles);
      if (begin == end) return;
      float* to = out + begin * stride;
      // What the second layer adds to.
      Addend start{addend.x ? addend.x + begin * addend.stride : nullptr, addend.stride};
      if (from.norm || second.tiles) start = {to, stride};
      for (int64_t some = begin; some < end; some += SOME) {
        const int64_t last = std::min(end, some + SOME);
        float *row = buffer.get() + (some - begin) * pitch, *sum = out + some * stride;
        for (int64_t i = some; i < last; i++, row += pitch, sum += stride) {
          if (from.norm) add(from.x + i * from.stride,
                             from.update ? from.update + i * from.update_stride : nullptr, inputs, sum);
          else if (from.kernel) patch(from, i, 0, from.kernel * from.kernel, row);
          else copy(row, from.x + i * from.stride, inputs);
        }
        row = buffer.get() + (some - begin) * pitch, sum = out + some * stride;
        if (from.norm)
          Norm{nullptr, nullptr, from.epsilon}(sum, stride, last - some, inputs, row, pitch);
        if (second.tiles)
          for (int64_t i = some; i < last; i++, sum += stride)
            add(second.bias(), from.norm ? sum : addend.x ? addend.x + i * addend.stride : nullptr,
                second.outputs, sum);
      }
      const Rows before = rows_of(buffer.get(), pitch, end - begin, inputs);
      // Likely the next block of this thread.
      ahead.clear();
      if (from.norm && block + 1 < blocks) {
        const int64_t next = first_row(rows, block + 1, blocks, first.tiles);
        const int64_t count = end - begin;
        ahead.add(from.x + next * from.stride, count * from.stride);
        if (from.update) ahead.add(from.update + next * from.update_stride, count * from.update_stride);
        ahead.add(out + next * stride, count * stride);
        if (normed) ahead.add(normed + next * second.outputs, count * second.outputs);
      }
      for (int p = 0; p < first.panels(); p += group) {
        const int q = std::min(first.panels(), p + group), k = first.first(p) * W;
        const int n = std::min(first.outputs, first.first(q) * W) - k;
        Rows after;
        if (first.tiles && second.tiles) {
          after = split_product(before, first, p, q, kind, hidden_of.lines.get());
        } else {
          if (!second.tiles) ahead.weights = second.panel(0, k);
          multiply(before, first, p, q, 0, inputs, true, {}, hidden, between, kind, ahead);
          after = hidden_of(hidden, between, before.count, n);
        }
        if (!first.tiles) ahead.weights = first.panel(q == first.panels() ? 0 : q, 0);
        multiply(after, second, 0, second.panels(), k, n, !p && !second.tiles,
                 p ? Addend{to, stride} : start, to, stride, kNone, ahead);
      }
      if (normed)
        following(to, stride, end - begin, second.outputs, normed + begin * second.outputs, second.outputs);
    });
  }
}

// A line of n channels of a 3x3 depthwise convolution of step S, and its activation. `weights` and the bias
// after them are rows of `channels` numbers.
template <int S, typename Act>
void depth_line(const float* const (&lines)[3], int64_t pitch, const Source& from, int n,
                const float* weights, int channels, Act&& act, float* out) {
  for (int c = 0; c < n; c += W) {
    Vec weight[9];
    for (int i = 0; i < 9; i++) weight[i] = get(weights + i * channels + c, n - c);
    const Vec bias = get(weights + 9 * channels + c, n - c);
    const float* here[3];
    for (int i = 0; i < 3; i++) here[i] = lines[i] ? lines[i] + c : nullptr;
    in_blocks<4>(from.out_width, [&](int x, auto size) {
      constexpr int T = decltype(size)::value;
      Vec acc[T];
      UNROLL for (int t = 0; t < T; t++) acc[t] = bias;
      if (x > 0 && (x + T - 1) * S + 1 < from.width)
        depth_tile<3, S, T, true>(here, pitch, 0, from.width, x, weight, acc);
      else
        depth_tile<3, S, T, false>(here, pitch, 0, from.width, x, weight, acc);
      UNROLL for (int t = 0; t < T; t++) store(out + (x + t) * pitch + c, act(acc[t]));
    });
  }
}

// out = addend + project(act(depthwise(act(expand(x))))), the depthwise convolution 3x3 with
// padding 1: `weights` are its 9 rows of channels and its bias. So many channels at a time that their
// lines stay in the cache.
void mobile(const Source& from, const Layer& expand, const float* weights, const Layer& project,
            Addend addend, float* out, int64_t stride, int batch, Activation kind, int threads) {
  const int height = from.height, width = from.width, step = from.step;
  // Lines of the result at a time, and the places for the lines that they are made of. Each part expands
  // the lines around it anew: so there are no more parts than threads.
  const int most = std::max(1, BLOCK / from.out_width), places = (most - 1) * step + 3;
  const int parts = std::min((from.out_height + most - 1) / most, (threads + batch - 1) / batch);
  const int cells = places * width + most * from.out_width;
  // Panels of vectors need not end at a whole tile: then the second layer takes all at once.
  const int groups = project.tiles && !expand.tiles
                         ? 1 : std::min<int64_t>(expand.panels(), int64_t(cells) * expand.outputs / ROOM + 1);
  const int group = (expand.panels() + groups - 1) / groups * expand.wide() * W;
  const int64_t pitch = apart(group), line = width * pitch;
  Shares shares(batch * parts, threads);
#pragma omp parallel num_threads(threads)
  {
    const Registers registers(expand.tiles || project.tiles);
    const Splitter rows_of(expand.tiles, places * width, from.channels);
    const Splitter between_of(project.tiles, most * from.out_width, group);
    const Floats buffer = room(cells * pitch);
    float* between = buffer.get() + places * line;
    Ahead ahead;
    shares.work([&](int item) {
      for (int g = 0; g < groups; g++) {
        const int part = item % parts;
        const int64_t image = item / parts;
        const int begin = from.out_height * part / parts, end = from.out_height * (part + 1) / parts;
        const int p = expand.panels() * g / groups, q = expand.panels() * (g + 1) / groups;
        const int first = expand.first(p) * W, n = std::min(expand.outputs, expand.first(q) * W) - first;
        int known = std::max(0, begin * step - 1);  // lines before it are in their places, or not needed
        for (int y = begin; y < end; y += most) {
          const int last = std::min(end, y + most), needed = std::min(height, (last - 1) * step + 2);
          if (!project.tiles) ahead.weights = project.panel(0, first);
          while (known < needed) {
            const int place = known % places, lines = std::min(needed - known, places - place);
            multiply(rows_of(from.x + (image * height + known) * width * from.stride, from.stride,
                             lines * width, from.channels),
                     expand, p, q, 0, from.channels, true, {}, buffer.get() + place * line, pitch, kind,
                     ahead);
            known += lines;
          }
          for (int i = y; i < last; i++) {
            const float* lines[3];
            for (int k = 0; k < 3; k++) {
              const int at = i * step - 1 + k;
              lines[k] = at < 0 || at >= height ? nullptr : buffer.get() + at % places * line;
            }
            float* to = between + (i - y) * from.out_width * pitch;
            with(kind, [&](auto act) {
              if (step == 1)
                depth_line<1>(lines, pitch, from, n, weights + first, expand.outputs, act, to);
              else
                depth_line<2>(lines, pitch, from, n, weights + first, expand.outputs, act, to);
            });
          }
          const int64_t row = (image * from.out_height + y) * from.out_width;
          float* to = out + row * stride;
          const Addend more = g ? Addend{to, stride}
                                : Addend{addend.x ? addend.x + row * addend.stride : nullptr, addend.stride};
          if (!expand.tiles) ahead.weights = expand.panel(p, 0);
          multiply(between_of(between, pitch, (last - y) * from.out_width, n), project, 0,
                   project.panels(), first, n, !g, more, to, stride, kNone, ahead);
        }
      }
    });
  }
}

// total = x + update and normed = act(norm(total)), for rows of n numbers. Without an update, total is x
// and is not written.
template <typename Number>
void add_norm(const Number* x, int64_t stride, const Number* update, int64_t update_stride, int64_t rows,
              int n, const Norm& norm, Activation kind, Number* total, Number* normed, int threads) {
  with(kind, [&](auto act) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t some = 0; some < rows; some += SOME) {
      const int64_t count = std::min<int64_t>(SOME, rows - some);
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

// float32 or bfloat16; see operators.py.
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

// Whether layers may be in tiles.
int visattn_tiles() { return may_use_tiles(); }

// How many floats `visattn_reorder` writes.
int64_t visattn_reordered(int inputs, int outputs, int tiles) {
  const Layer layer{nullptr, inputs, outputs, tiles != 0};
  return layer.size() + layer.vectors() * W;
}

// The weights (outputs, inputs) and the bias, which may be null, as a Layer has them.
void visattn_reorder(const float* weight, const float* bias, int inputs, int outputs, int tiles,
                     float* packed) {
  const Layer layer{packed, inputs, outputs, tiles != 0};
  const auto at = [&](int c, int k) {
    return c < outputs && k < inputs ? weight[int64_t(c) * inputs + k] : 0.f;
  };
  if (tiles)
    for (int c = 0; c < layer.vectors() * W; c++)
      for (int k = 0; k < steps_of(inputs) * DEPTH; k++) {
        float rest = at(c, k);
        Line* line = reinterpret_cast<Line*>(packed)
                     + (layer.weights().at(c, k / DEPTH) - layer.weights().lines) + k % SIDE;
        for (int part = 0; part < PARTS; part++, line += SIDE) {
          Bfloat16 nearest;
          store(&nearest, rest);
          line->number[c % SIDE * 2 + k % DEPTH / SIDE] = nearest.bits;
          rest -= load<float>(&nearest);
        }
      }
  else
    for (int p = 0; p < layer.panels(); p++)
      for (int k = 0; k < inputs; k++)
        for (int c = layer.first(p) * W; c < layer.first(p + 1) * W; c++) *packed++ = at(c, k);
  float* to = const_cast<float*>(layer.bias());
  for (int c = 0; c < layer.vectors() * W; c++) to[c] = bias && c < outputs ? bias[c] : 0.f;
}

void visattn_linear(const Source* source, const float* packed, int outputs, int tiles,
                    const float* addend, int64_t addend_stride, float* out, int64_t stride,
                    int64_t line, int64_t line_stride, int64_t rows, int activation, int threads) {
  linear(*source, {packed, source->inputs(), outputs, tiles != 0}, {addend, addend_stride},
         {out, stride, line, line_stride}, rows, Activation(activation), threads);
}

void visattn_chain(const Source* source, const float* first, int hidden, const float* second,
                   int outputs, int first_tiles, int second_tiles, const float* addend,
                   int64_t addend_stride, float* out, int64_t stride, int64_t rows, int activation,
                   float* normed, const float* weight, const float* bias, float epsilon,
                   int threads) {
  chain(*source, {first, source->inputs(), hidden, first_tiles != 0},
        {second, hidden, outputs, second_tiles != 0}, {addend, addend_stride}, out, stride, rows,
        Activation(activation), normed, {weight, bias, epsilon}, threads);
}

void visattn_mobile(const Source* source, const float* expand, int hidden, const float* depthwise,
                    const float* project, int outputs, int expand_tiles, int project_tiles,
                    const float* addend, int64_t addend_stride, float* out, int64_t stride,
                    int batch, int activation, int threads) {
  mobile(*source, {expand, source->channels, hidden, expand_tiles != 0}, depthwise,
         {project, hidden, outputs, project_tiles != 0}, {addend, addend_stride}, out, stride, batch,
         Activation(activation), threads);
}

}  // extern "C"
