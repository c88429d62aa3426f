// The means of regions of NHWC maps in float32 or bfloat16, and the regions that a region is routed to:
// compiled and called as attention.cpp is. All sums are float32.

#include "replay.h"
#include "vectors.h"

namespace {

// A map in side x side regions. A row of the result has the means of a region.
template <typename Number>
struct Means {
  const Number* x;
  Number* out;
  int64_t stride;
  int height, width, channels, side;  // height and width of a region
};

// The means of N lanes of channels of a region, whose first token is at `token`. The lines of the region are
// summed on their own: a sum of all tokens in order would be less exact.
template <typename Lane, int N, typename Number>
inline void lane_means(const Means<Number>& a, const Number* token, Number* out) {
  constexpr int width = sizeof(Lane) / sizeof(float);
  const int64_t line = int64_t(a.side) * a.width * a.stride;
  Lane sum[N] = {};
  for (int i = 0; i < a.height; i++) {
    Lane part[N] = {};
    for (int j = 0; j < a.width; j++)
      UNROLL for (int n = 0; n < N; n++)
        part[n] += load<Lane>(token + i * line + j * a.stride + n * width);
    UNROLL for (int n = 0; n < N; n++) sum[n] += part[n];
  }
  const float share = 1.f / (a.height * a.width);
  UNROLL for (int n = 0; n < N; n++) store(out + n * width, sum[n] * share);
}

// The means of region (y, x) of an image.
template <typename Number>
void region_mean(const Means<Number>& a, int64_t image, int y, int x) {
  const Number* first = a.x + ((image * a.side + y) * a.height * a.side + x) * a.width * a.stride;
  Number* out = a.out + ((image * a.side + y) * a.side + x) * a.channels;
  constexpr int N = 4;  // vectors of channels at a time
  int c = 0;
  for (; c + N * W <= a.channels; c += N * W) lane_means<Vec, N>(a, first + c, out + c);
  in_lanes(a.channels - c, [&](auto lane, int rest) {
    lane_means<decltype(lane), 1>(a, first + c + rest, out + c + rest);
  });
}

// A number by which to order logits from the largest on, and equal ones from the first region on. NaN is
// larger than all numbers, as in torch.topk.
inline uint64_t rank(float logit, int region) {
  uint32_t bits;
  logit += 0.f;  // -0 is 0
  std::memcpy(&bits, &logit, sizeof bits);
  const uint32_t order = logit != logit ? ~0u : bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t(order) << 32 | ~uint32_t(region);
}

template <typename Number>
struct Routing {
  const Number *q, *k;
  int64_t q_stride, k_stride;
  Number* best;
  int64_t* index;
  int regions, dim, most;
  float scale;
};

// The `most` regions with the largest q k^T * scale for `count` regions from `first` on. `keys` has a row
// for each channel. The last three arguments are room for queries, logits and ranks.
template <typename Number>
void route(const Routing<Number>& a, int64_t first, int count, const float* keys, float* queries,
           float* logits, uint64_t* ranks) {
  const int width = whole(a.regions);
  for (int i = 0; i < count; i++) copy(queries + i * a.dim, a.q + (first + i) * a.q_stride, a.dim);
  in_blocks<4>(count, [&](int i, auto size) {
    constexpr int R = decltype(size)::value;
    in_blocks<2>(width / W, [&](int c, auto wide) {
      constexpr int C = decltype(wide)::value;
      Vec acc[R][C] = {};
      accumulate<R, C>(queries + i * a.dim, a.dim, 1, keys + c * W, a.dim, acc, Nothing{}, width);
      UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < C; n++)
          store(logits + (i + r) * width + (c + n) * W, acc[r][n] * a.scale);
    });
  });
  for (int i = 0; i < count; i++) {
    for (int j = 0; j < a.regions; j++) ranks[j] = rank(logits[i * width + j], j);
    std::partial_sort(ranks, ranks + a.most, ranks + a.regions, std::greater<>());
    const int64_t to = (first + i) * a.most;
    for (int j = 0; j < a.most; j++) {
      const uint32_t region = ~uint32_t(ranks[j]);
      a.index[to + j] = region;
      store(a.best + to + j, logits[i * width + region]);
    }
  }
}

template <typename Number>
void route(const Routing<Number>& a, int batch, int threads) {
  constexpr int COUNT = 8;  // regions at a time
  const int width = whole(a.regions);
  const Floats keys = room(int64_t(a.dim) * width);
  for (int64_t image = 0; image < batch; image++)
#pragma omp parallel num_threads(threads)
  {
    const Floats buffer = room(COUNT * (a.dim + width));
    std::vector<uint64_t> ranks(a.regions);
#pragma omp for schedule(static)
    for (int j = 0; j < width; j++) {
      const Number* key = a.k + (image * a.regions + j) * a.k_stride;
      for (int c = 0; c < a.dim; c++)
        keys.get()[int64_t(c) * width + j] = j < a.regions ? load<float>(key + c) : 0.f;
    }
#pragma omp for schedule(static)
    for (int i = 0; i < a.regions; i += COUNT)
      route(a, image * a.regions + i, std::min(COUNT, a.regions - i), keys.get(), buffer.get(),
            buffer.get() + COUNT * a.dim, ranks.data());
  }
}

}  // namespace

// `bfloat16` says in which format the maps are; see in_format.
extern "C" {

void visattn_region_means(const void* x, int64_t stride, int batch, int height, int width, int channels,
                          int side, void* out, int bfloat16, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    const Means<Number> a{static_cast<const Number*>(x), static_cast<Number*>(out), stride,
                          height / side, width / side, channels, side};
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < int64_t(batch) * side * side; i++)
      region_mean(a, i / (side * side), i / side % side, i % side);
  });
}

void visattn_route(const void* q, const void* k, int64_t q_stride, int64_t k_stride, int batch,
                   int regions, int dim, int most, float scale, void* best, int64_t* index,
                   int bfloat16, int threads) {
  in_format(bfloat16, [&](auto zero) {
    using Number = decltype(zero);
    route(Routing<Number>{static_cast<const Number*>(q), static_cast<const Number*>(k), q_stride,
                          k_stride, static_cast<Number*>(best), index, regions, dim, most, scale},
          batch, threads);
  });
}

REPLAYED(visattn_region_means)
REPLAYED(visattn_route)

}  // extern "C"
