// Vectors of floats as wide as the processor's, and what the kernels of this folder share.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16, ROWS = 8;   // floats of a vector; rows of a block, of two vectors each
#elif defined(__AVX__)
constexpr int W = 8, ROWS = 6;
#else
constexpr int W = 4, ROWS = 6;
#endif

// Unroll a loop whole: only then are arrays of vectors kept in registers.
#define UNROLL _Pragma("GCC unroll 32")

typedef float Vec __attribute__((vector_size(W * 4)));
typedef int32_t Ints __attribute__((vector_size(W * 4)));
typedef uint32_t Words __attribute__((vector_size(W * 4)));
typedef uint16_t Halves __attribute__((vector_size(W * 2)));

inline Vec splat(float x) { return x - Vec{}; }

// The larger and the smaller one; b where one is NaN. GCC makes a comparison and a choice of `?`.
inline float max(float a, float b) { return a > b ? a : b; }
#if defined(__AVX512F__)
inline Vec max(Vec a, Vec b) { return (Vec)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX__)
inline Vec max(Vec a, Vec b) { return (Vec)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm256_min_ps((__m256)a, (__m256)b); }
#elif defined(__SSE__)
inline Vec max(Vec a, Vec b) { return (Vec)_mm_max_ps((__m128)a, (__m128)b); }
inline Vec min(Vec a, Vec b) { return (Vec)_mm_min_ps((__m128)a, (__m128)b); }
#else
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
#endif

// A lane is a vector or, for channels that fill none, a float.
template <typename Lane>
struct Unaligned {
  Lane x;
} __attribute__((packed, may_alias));

template <typename Lane = Vec>
inline Lane load(const float* p) {
  return reinterpret_cast<const Unaligned<Lane>*>(p)->x;
}

template <typename Lane>
inline void store(float* p, Lane x) {
  reinterpret_cast<Unaligned<Lane>*>(p)->x = x;
}

// n numbers, filled up to whole vectors.
inline int whole(int n) { return (n + W - 1) / W * W; }

// The totals of R vectors: lane i has that of vector i % R. Each step adds neighbouring blocks of lanes, of two
// vectors together as long as there are two.
template <int R, int BLOCK = 1>
inline Vec totals(const Vec* x) {
  if constexpr (BLOCK == W) {
    return x[0];
  } else {
    constexpr int LEFT = R > 1 ? R / 2 : 1;
    Ints first, second;
    for (int i = 0; i < W; i++) {
      const int block = i / BLOCK, from = block / 2 * 2 * BLOCK + i % BLOCK;
      first[i] = from + (R > 1 && block % 2 ? W : 0);
      second[i] = first[i] + BLOCK;
    }
    Vec sums[LEFT];
    UNROLL for (int i = 0; i < LEFT; i++) {
      const Vec a = x[R > 1 ? 2 * i : 0], b = x[R > 1 ? 2 * i + 1 : 0];
      sums[i] = __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
    }
    return totals<LEFT, 2 * BLOCK>(sums);
  }
}

inline float total(Vec x) { return totals<1>(&x)[0]; }

// Room for n floats, which hold anything at first. It starts where a vector in memory should.
struct Release {
  void operator()(float* x) const { ::operator delete(x, std::align_val_t(64)); }
};
using Floats = std::unique_ptr<float[], Release>;
inline Floats room(int64_t n) {
  return Floats(static_cast<float*>(::operator new(n * sizeof(float), std::align_val_t(64))));
}

// A number of bfloat16: the upper half of a float.
struct Bfloat16 {
  uint16_t bits;
};

// Pairs of bfloat16 numbers, each in the place of a float: the first n numbers of a row, then zeros.
inline Vec pairs(const Bfloat16* x, int n) {
#if defined(__AVX512BW__)
  return (Vec)_mm512_maskz_loadu_epi16(n >= 2 * W ? ~0u : (1u << n) - 1, x);
#else
  Vec lanes{};
  std::memcpy(&lanes, x, std::min(n, 2 * W) * sizeof *x);
  return lanes;
#endif
}

// The pairs of neighbours in two vectors, each number rounded to the nearest bfloat16.
inline Vec pairs(Vec first, Vec second) {
  const Words low = (Words)first + 0x8000u, high = (Words)second + 0x8000u;
  return (Vec)(low >> 16 | (high & 0xffff0000u));
}

// The nearest bfloat16, the even one of two; NaN stays NaN.
template <typename Bits>
inline Bits rounded(Bits bits) {
  const Bits magnitude = bits & 0x7fffffff;
  const Bits nearest = bits + 0x7fff + (bits >> 16 & 1);
  return (magnitude > 0x7f800000 ? bits | 0x400000 : nearest) >> 16;
}

template <typename Lane = Vec>
inline Lane load(const Bfloat16* p) {
  if constexpr (sizeof(Lane) == sizeof(float)) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  } else {
    const Halves bits = reinterpret_cast<const Unaligned<Halves>*>(p)->x;
    return (Lane)(__builtin_convertvector(bits, Words) << 16);
  }
}

template <typename Lane>
inline void store(Bfloat16* p, Lane x) {
  if constexpr (sizeof(Lane) == sizeof(float)) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    p->bits = rounded(bits);
  } else {
    reinterpret_cast<Unaligned<Halves>*>(p)->x = __builtin_convertvector(rounded((Words)x), Halves);
  }
}

#if defined(__AVX512F__)
// The first n lanes, none where n is negative.
inline __mmask16 first_lanes(int n) { return n > 0 ? (1u << n) - 1 : 0; }
#endif

// The first n numbers of a vector, then zeros.
template <typename Number>
inline Vec get(const Number* x, int n) {
  if (n >= W) return load(x);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Number, float>) return (Vec)_mm512_maskz_loadu_ps(first_lanes(n), x);
#endif
  float lanes[W] = {};
  for (int i = 0; i < n; i++) lanes[i] = load<float>(x + i);
  return load(lanes);
}

// Stores the first n numbers of a vector.
template <typename Number>
inline void put(Number* to, Vec x, int n) {
  if (n >= W) return store(to, x);
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<Number, float>) return _mm512_mask_storeu_ps(to, first_lanes(n), (__m512)x);
#endif
  for (int i = 0; i < n; i++) store(to + i, float(x[i]));
}

// Copies n numbers of a map into a buffer of floats. memcpy would be a call for each few numbers.
template <typename Number>
inline void copy(float* to, const Number* from, int n) {
  int i = 0;
  for (; i + W <= n; i += W) store(to + i, load(from + i));
  if (W > 8 && i < n) return put(to + i, get(from + i, n - i), n - i);
  for (; i < n; i++) to[i] = load<float>(from + i);
}

// x = 2^x for x <= 0, NaN where x is NaN. 2^x = 2^n 2^f, n whole; the polynomial of degree 5 has the least
// largest relative error in 2^f, 7.5e-8, where f is. The vectors take each step together: one alone would
// wait for its last step.
template <int N>
inline void exp2(Vec (&x)[N]) {
  Vec p[N];
#if defined(__AVX512F__)
  constexpr float factor[] = {9.9999992506e-1f, 6.9315307320e-1f, 2.4015361704e-1f,
                              5.5826318053e-2f, 8.9893400913e-3f, 1.8775766748e-3f};
  Vec f[N];
  UNROLL for (int i = 0; i < N; i++) f[i] = (Vec)_mm512_reduce_ps((__m512)x[i], _MM_FROUND_TO_NEG_INF);
#else
  constexpr float factor[] = {1.0000000717f,    6.9314696706e-1f, 2.4022119724e-1f,
                              5.5507132735e-2f, 9.6755413344e-3f, 1.3276471990e-3f};
  constexpr float magic = 12582912.f;           // 1.5 * 2^23: adding it rounds to a whole number
  Vec whole[N], (&f)[N] = x;
  UNROLL for (int i = 0; i < N; i++) x[i] = max(splat(-126.f), x[i]);
  UNROLL for (int i = 0; i < N; i++) whole[i] = x[i] + magic;
  UNROLL for (int i = 0; i < N; i++) x[i] -= whole[i] - magic;
#endif
  UNROLL for (int i = 0; i < N; i++) p[i] = f[i] * factor[5] + factor[4];
  UNROLL for (int k = 3; k >= 0; k--)
    UNROLL for (int i = 0; i < N; i++) p[i] = p[i] * f[i] + factor[k];
#if defined(__AVX512F__)
  UNROLL for (int i = 0; i < N; i++) x[i] = (Vec)_mm512_scalef_ps((__m512)p[i], (__m512)x[i]);  // 2^n p
#else
  UNROLL for (int i = 0; i < N; i++) x[i] = (Vec)((Ints)p[i] + ((Ints)whole[i] << 23));
#endif
}

inline Vec exp2(Vec x) {
  Vec one[] = {x};
  exp2(one);
  return one[0];
}

// The same of one vector, as near as bfloat16 needs.
inline Vec rough_exp2(Vec x) {
#if defined(__AVX512F__)
  // The error of the cubic is 1e-4 of 2^x, a twentieth of bfloat16's.
  const __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
  const Vec f = x - (Vec)whole;
  const Vec p = ((f * 5.5170980e-2f + .24260972f) * f + .69326097f) * f + .99992816f;
  return (Vec)_mm512_scalef_ps((__m512)p, whole);
#else
  return exp2(x);
#endif
}

// Row i and row i + W/2 interleaved, log2(W) times, is the transpose.
inline void transpose(Vec (&x)[W]) {
  Ints low, high;
  for (int i = 0; i < W; i++) {
    low[i] = i / 2 + i % 2 * W;
    high[i] = low[i] + W / 2;
  }
  for (int step = 1; step < W; step *= 2) {
    Vec y[W];
    for (int i = 0; i < W / 2; i++) {
      y[2 * i] = __builtin_shuffle(x[i], x[i + W / 2], low);
      y[2 * i + 1] = __builtin_shuffle(x[i], x[i + W / 2], high);
    }
    for (int i = 0; i < W; i++) x[i] = y[i];
  }
}

// sum + x y, of numbers.
struct OfNumbers {
  static Vec add(Vec sum, float x, Vec y) { return sum + x * y; }
};

// sum + x y + x' y', of pairs of bfloat16 numbers.
struct OfPairs;
#if defined(__AVX512BF16__) && defined(__AVX512BW__)
constexpr bool HAS_PAIRS = true;
struct OfPairs {
  static Vec add(Vec sum, float x, Vec y) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(x), (__m512bh)y);
  }
};
#else
constexpr bool HAS_PAIRS = false;
#endif

struct Nothing {
  void operator()(int) const {}
};

// acc[r][c] += sum over i < n of left(i)[r] right(i)[c]: left(i) gives R floats, right(i) the place of C
// vectors. Calls meanwhile(i) beside the products.
template <int R, int C, typename Product = OfNumbers, typename Left, typename Right,
          typename F = Nothing>
inline __attribute__((always_inline)) void multiply_add(int n, Left&& left, Right&& right,
                                                        Vec (&acc)[R][C], F&& meanwhile = {}) {
  // Places of several steps are one register and constants.
  _Pragma("GCC unroll 4")
  for (int i = 0; i < n; i++) {
    meanwhile(i);
    const float* b = right(i);
    Vec line[C];
    UNROLL for (int c = 0; c < C; c++) line[c] = load(b + c * W);
    UNROLL for (int r = 0; r < R; r++) {
      const float x = left(r, i);
      UNROLL for (int c = 0; c < C; c++) acc[r][c] = Product::add(acc[r][c], x, line[c]);
    }
  }
}

// The same with left(i)[r] = a[r * row + i * step], and C vectors of b at a distance, side by side by
// default.
template <int R, int C, typename F = Nothing>
inline __attribute__((always_inline)) void accumulate(const float* a, int64_t row, int64_t step,
                                                      const float* b, int n, Vec (&acc)[R][C],
                                                      F&& meanwhile = {}, int64_t distance = C * W) {
  multiply_add<R, C>(n, [&](int r, int i) { return a[r * row + i * step]; },
                     [&](int i) { return b + i * distance; }, acc, meanwhile);
}

// The largest power of two below R.
constexpr int half_of(int R) { return R > 2 ? 2 * half_of((R + 1) / 2) : 1; }

// Calls f(i, size) for blocks [i, i + size) of 0 .. n - 1: of R as long as there are so many, then of
// the powers of two below, each a constant to the compiler.
template <int R, typename F>
inline void in_blocks(int n, F&& f) {
  int i = 0;
  for (; i + R <= n; i += R) f(i, std::integral_constant<int, R>{});
  if constexpr (R > 1)
    if (i < n)
      in_blocks<half_of(R)>(n - i, [&](int j, auto size) { f(i + j, size); });
}

constexpr int NORM_ROWS = 16;  // rows at a time whose sums stay in the cache until their norm

// LayerNorm of rows of n numbers, and an activation; weight and bias may be null.
struct Norm {
  const float *weight, *bias;
  float epsilon;

  struct Same {
    Vec operator()(Vec y) const { return y; }
  };

  // A sum along a row waits for each of its steps: so several rows together, whose sums become a vector.
  template <typename From, typename To, typename Act = Same>
  void operator()(const From* x, int64_t stride, int64_t rows, int n, To* to, int64_t to_stride,
                  Act&& act = {}) const {
    in_blocks<W>(rows, [&](int64_t row, auto size) {
      some<decltype(size)::value>(x + row * stride, stride, n, to + row * to_stride, to_stride, act);
    });
  }

 private:
  template <int R, typename From, typename To, typename Act>
  void some(const From* x, int64_t stride, int n, To* to, int64_t to_stride, Act&& act) const {
    Vec sum[R] = {}, squares[R] = {};
    float mean[W], inverse[W];
    for (int c = 0; c < n; c += W)
      UNROLL for (int r = 0; r < R; r++) sum[r] += get(x + r * stride + c, n - c);
    store(mean, totals<R>(sum) / float(n));
    int c = 0;
    for (; c + W <= n; c += W)
      UNROLL for (int r = 0; r < R; r++) {
        const Vec centred = load(x + r * stride + c) - mean[r];
        squares[r] += centred * centred;
      }
    for (; c < n; c++)
      UNROLL for (int r = 0; r < R; r++) {
        const float centred = load<float>(x + r * stride + c) - mean[r];
        squares[r][0] += centred * centred;
      }
    store(inverse, totals<R>(squares) / float(n) + epsilon);
    for (float& x : inverse) x = 1 / std::sqrt(x);
    for (int r = 0; r < R; r++)
      for (int c = 0; c < n; c += W) {
        Vec y = (get(x + r * stride + c, n - c) - mean[r]) * inverse[r];
        if (weight) y = y * get(weight + c, n - c) + get(bias + c, n - c);
        put(to + r * to_stride + c, act(y), n - c);
      }
  }
};

// Calls f(Lane{}, c) for vectors of channels, then for the channels that fill none.
template <typename F>
inline void in_lanes(int channels, F&& f) {
  int c = 0;
  for (; c + W <= channels; c += W) f(Vec{}, c);
  for (; c < channels; c++) f(float{}, c);
}

enum Activation { kNone, kRelu, kHardswish, kGelu, kGeluTanh };  // as in calls.py

// The first three alone.
inline Vec activate(Vec x, Activation kind) {
  const Vec zero{};
  switch (kind) {
    case kRelu: return max(zero, x);
    case kHardswish: {
      const Vec gate = min(splat(6.f), max(zero, x + 3.f));
      return x * gate * (1 / 6.f);
    }
    default: return x;
  }
}

inline float activate(float x, Activation kind) { return activate(splat(x), kind)[0]; }

// Calls f with a number of the maps' format: 0 float32, 1 bfloat16.
template <typename F>
auto in_format(int bfloat16, F&& f) {
  return bfloat16 ? f(Bfloat16{}) : f(float{});
}

}  // namespace
