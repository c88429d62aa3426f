// Linear layers of float32 rows: compiled as attention.cpp is.
//
// The rows are those of a matrix, or the patches that a convolution sees in an NHWC map.

#include "products.h"
#include "shares.h"

namespace {

constexpr int FEW = 64;         // rows for which it pays to split their numbers
constexpr int CACHE = 1 << 18;  // weights that stay in the cache
constexpr int WIDTH = 1024;     // about so many numbers of a patch at a time

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

}  // extern "C"
