// Softmax attention between groups of tokens, of NHWC maps in float32 or bfloat16: compiled for the
// processor at hand (build.py), called by attention.py, which says what the arguments are. All sums are
// float32. Where the processor multiplies bfloat16 numbers, the products of bfloat16 maps are such, and the
// weights of the softmax are rounded to bfloat16. Elsewhere bfloat16 is a format of the maps in memory alone.
//
// The keys of a group are taken some at a time, and the softmax is that of the keys so far (Milakov
// and Gimelshein, 2018, algorithm 3).

#include "attention_tiles.h"
#include "attention_vectors.h"
#include "depthwise.h"
#include "replay.h"
#include "shares.h"

namespace {

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
