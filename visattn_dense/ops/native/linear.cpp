// Linear layers of float32 rows: compiled as attention.cpp is.
//
// The rows are those of a matrix, or the patches that a convolution sees in an NHWC map.

#include "products.h"
#include "replay.h"
#include "shares.h"

namespace {

constexpr int FEW = 64;         // rows for which it pays to split their numbers
constexpr int CACHE = 1 << 18;  // weights that stay in the cache
constexpr int BLOCK = 96;       // rows at a time of a layer with such weights
constexpr int WIDTH = 1024;     // about so many numbers of a patch at a time

// Where the rows of a result lie: in lines of a map.
struct Map {
  float* x;
  int64_t stride, rows, line_stride;  // from row to row; rows of a line; from line to line

  float* at(int64_t row) const { return x + row / rows * line_stride + row % rows * stride; }
  // The first row behind the line of a row.
  int64_t end(int64_t row) const { return (row / rows + 1) * rows; }
};

// Columns [from, to) of a kernel, and the rows [first, last) of a line of the result that see them on the
// map.
struct Columns {
  int from, to, first, last;
};

std::vector<Columns> columns_of(const Source& from) {
  std::vector<Columns> all;
  for (int x = 0; x < from.kernel; x++) {
    const int first = (std::max(0, from.padding - x) + from.step - 1) / from.step;
    const int last = std::min(from.out_width, (from.width - 1 + from.padding - x) / from.step + 1);
    if (!all.empty() && all.back().first == first && all.back().last == last) all.back().to++;
    else all.push_back({x, x + 1, first, last});
  }
  return all;
}

// Whether a convolution is faster without copies of its patches: lines of some rows, and weights that stay
// in the cache from line to line.
bool suits_convolve(const Source& from, const Layer& layer, int64_t rows, int threads) {
  return from.kernel > 1 && !from.norm && !layer.tiles && from.stride == from.channels
         && from.channels >= 16 && 2 * from.padding < from.kernel && from.out_width >= 2 * LINES[WIDE]
         && rows / from.out_width >= 2 * threads && int64_t(from.inputs()) * layer.outputs <= CACHE;
}

// A convolution: products of the map in place. Of a line of the kernel, columns that the same rows see go
// together; what lies beyond the map is left out.
void convolve(const Source& from, const Layer& layer, Addend addend, float* out, int64_t stride,
              int64_t rows, Activation kind, int threads) {
  const int width = from.out_width, center = from.padding;
  const int lines = rows / width, blocks = blocks_of(rows, BLOCK, threads, false);
  const int64_t pitch = from.width * from.stride;  // from line to line of the map
  // First the columns that each row sees, in the line `center` of the kernel.
  std::vector<Columns> all = columns_of(from);
  std::rotate(all.begin(), std::find_if(all.begin(), all.end(), [=](const Columns& c) { return center < c.to; }),
              all.end());
  Shares shares(blocks, threads);
#pragma omp parallel num_threads(threads)
  {
    Ahead ahead;
    shares.work([&](int block) {
      const int begin = int64_t(lines) * block / blocks, end = int64_t(lines) * (block + 1) / blocks;
      // A line of the map that a line of the result sees; null beyond the map.
      const auto seen = [&](int line, int y) {
        const int at = line % from.out_height * from.step - from.padding + y;
        const int64_t image = int64_t(line / from.out_height) * from.height;
        return at < 0 || at >= from.height ? nullptr : from.x + (image + at) * pitch;
      };
      const auto add = [&](int y, const Columns& c, bool start) {
        for (int line = begin; line < end; line++) {
          const float* x = seen(line, y);
          if (!x || c.first >= c.last) continue;
          const int64_t row = int64_t(line) * width + c.first;
          float* to = out + row * stride;
          Addend so_far{to, stride};
          if (start) so_far = {addend.x ? addend.x + row * addend.stride : nullptr, addend.stride};
          x += (c.first * from.step - from.padding + c.from) * from.stride;
          multiply({c.last - c.first, x, from.step * from.stride, {}}, layer, 0, layer.panels(),
                   (y * from.kernel + c.from) * from.channels, (c.to - c.from) * from.channels, start,
                   so_far, to, stride, kNone, ahead);
        }
      };
      ahead.clear();
      if (block + 1 < blocks) ahead.add(seen(end, center), (end - begin) * from.step * pitch);
      for (int i = 0; i < from.kernel; i++)
        for (const Columns& c : all) add((center + i) % from.kernel, c, !i && &c == all.data());
      if (kind != kNone)
        activate(out + int64_t(begin) * width * stride, stride, (end - begin) * width, layer.outputs, kind);
    });
  }
}

void linear(const Source& from, const Layer& layer, Addend addend, const Map& out, int64_t rows,
            Activation kind, int threads) {
  if (suits_convolve(from, layer, rows, threads))
    return convolve(from, layer, addend, out.x, out.stride, rows, kind, threads);
  const int inputs = from.inputs();
  // Weights that leave the cache are read anew for each block.
  const int most = layer.tiles ? 256 : int64_t(inputs) * layer.outputs > CACHE ? 240 : BLOCK;
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
        if (from.kernel) patches(from, first, last, p, end, buffer.get(), pitch);
        else if (gather)
          for (int64_t i = first; i < last; i++)
            copy(buffer.get() + (i - first) * pitch, from.x + i * from.stride, inputs);
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

}  // namespace

extern "C" {

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

REPLAYED(visattn_linear)

}  // extern "C"
