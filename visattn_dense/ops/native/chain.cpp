// Two linear layers of float32 rows in a chain, and two with a depthwise convolution between: compiled as
// attention.cpp is. A few rows at a time go through all layers, so what lies between the layers stays in
// the cache.

#include "depthwise.h"
#include "products.h"
#include "replay.h"
#include "shares.h"

namespace {

constexpr int BLOCK = 192;    // rows that go through a chain at a time: whole steps of both forms
constexpr int HIDDEN = 256;   // about so many outputs of the first layer at a time
constexpr int ROOM = 1 << 18;  // numbers between the layers of a mobile block that stay in the cache

// to = a + b, for n numbers; b may be null.
void add(const float* a, const float* b, int n, float* to) {
  for (int c = 0; c < n; c += W) {
    Vec x = get(a + c, n - c);
    if (b) x += get(b + c, n - c);
    put(to + c, x, n - c);
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
      for (int64_t some = begin; some < end; some += NORM_ROWS) {
        const int64_t last = std::min(end, some + NORM_ROWS);
        float *row = buffer.get() + (some - begin) * pitch, *sum = out + some * stride;
        if (from.kernel) patches(from, some, last, 0, from.kernel * from.kernel, row, pitch);
        else
          for (int64_t i = some; i < last; i++) {
            if (from.norm) add(from.x + i * from.stride,
                               from.update ? from.update + i * from.update_stride : nullptr, inputs,
                               sum + (i - some) * stride);
            else copy(row + (i - some) * pitch, from.x + i * from.stride, inputs);
          }
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
    const auto weights_of = [&](int i) { return weight[i]; };
    const float* here[3];
    for (int i = 0; i < 3; i++) here[i] = lines[i] ? lines[i] + c : nullptr;
    in_blocks<4>(from.out_width, [&](int x, auto size) {
      constexpr int T = decltype(size)::value;
      Vec acc[T];
      UNROLL for (int t = 0; t < T; t++) acc[t] = bias;
      if (x > 0 && (x + T - 1) * S + 1 < from.width)
        depth_tile<3, S, T, true>(here, pitch, 0, from.width, x, weights_of, acc);
      else
        depth_tile<3, S, T, false>(here, pitch, 0, from.width, x, weights_of, acc);
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

}  // namespace

extern "C" {

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

REPLAYED(visattn_chain)
REPLAYED(visattn_mobile)

}  // extern "C"
