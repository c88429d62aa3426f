// Activations of vectors and of rows, those of linear layers.

#pragma once

#include "vectors.h"

namespace {

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

// The activations that need no more registers than a block of sums leaves.
inline bool is_simple(Activation kind) { return kind == kRelu || kind == kHardswish; }

// acc = act(acc), in the registers.
template <Activation kind, int R, int C>
inline void activate(Vec (&acc)[R][C]) {
  UNROLL for (int r = 0; r < R; r++)
    UNROLL for (int c = 0; c < C; c++) acc[r][c] = activate(acc[r][c], kind);
}

}  // namespace
