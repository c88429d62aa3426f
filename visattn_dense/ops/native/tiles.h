// Products of float32 matrices in the tile registers of a processor with AMX.
//
// The tile registers multiply bfloat16 numbers and add in float32. A float32 is the sum of three
// bfloat16 numbers, its parts: each holds the next eight bits. The product of two numbers is the sum
// of the nine products of their parts. The three smallest, less than 2^-24 of the product, are left
// out (Henry, Tang and Heinecke, 2019, arXiv:1904.06376). So the result is as near as that of float32
// products. Infinite numbers give NaN.

#pragma once

#include "vectors.h"

#if defined(__AMX_BF16__) && defined(__AVX512BW__) && defined(__linux__)
#define VISATTN_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#else
#define VISATTN_TILES 0
#endif

namespace {

constexpr int SIDE = 16;     // rows of a tile of numbers; rows and columns of a tile of sums
constexpr int DEPTH = 32;    // inputs of a tile of numbers
constexpr int PARTS = 3;     // of a number
constexpr int STEP = PARTS * SIDE;  // rows of the tiles of all parts, one after another
constexpr int BOTH = 2 * SIDE;      // rows, and columns, of a block of four tiles of sums

inline int steps_of(int inputs) { return (inputs + DEPTH - 1) / DEPTH; }

// A row of a tile.
struct alignas(64) Line {
  uint16_t number[DEPTH];
};

// Rows of numbers as tiles: SIDE rows at a time, `steps` tiles of DEPTH inputs and of all parts.
struct Tiles {
  const Line* lines;
  int steps;

  const Line* at(int row, int step) const {
    return lines + (int64_t(row / SIDE) * steps + step) * STEP;
  }
};

#if VISATTN_TILES

// Whether this process may use the tile registers: it has to ask.
inline bool may_use_tiles() {
  constexpr int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, ask, tile_data) == 0;
}

// The tile registers of a thread, each of SIDE rows, while this lives.
struct Registers {
  bool used;

  explicit Registers(bool use) : used(use) {
    if (!used) return;
    alignas(64) uint8_t shapes[64] = {1};       // palette 1; bytes of a row; rows
    for (int i = 0; i < 8; i++) shapes[16 + 2 * i] = sizeof(Line), shapes[48 + i] = SIDE;
    _tile_loadconfig(shapes);
  }
  ~Registers() {
    if (used) _tile_release();
  }
  Registers(const Registers&) = delete;
};

// The parts of 32 neighbouring numbers of a row, from the largest on.
inline void split(Vec low, Vec high, Line* to) {
  Words upper_halves;
  UNROLL for (int i = 0; i < W; i++)
    upper_halves[i] = (4 * i % 32 + 1 + i / 8 * 32) | (4 * i % 32 + 3 + i / 8 * 32) << 16;
  UNROLL for (int part = 0; part < PARTS; part++) {
    _mm512_store_si512(to + part * SIDE,
                       _mm512_permutex2var_epi16((__m512i)low, (__m512i)upper_halves, (__m512i)high));
    low -= (Vec)((Words)low & 0xffff0000u);
    high -= (Vec)((Words)high & 0xffff0000u);
  }
}

// The first n numbers, then zeros.
inline Vec some(const float* x, int n) {
  const int mask = n >= W ? 0xffff : n > 0 ? (1 << n) - 1 : 0;
  return (Vec)_mm512_maskz_loadu_ps(mask, x);
}

// Rows of n numbers as tiles, with zeros behind them. What is in the rest of the last tile stays there.
void split(const float* x, int64_t pitch, int rows, int n, Line* to) {
  const int steps = steps_of(n);
  for (int r = 0; r < rows; r++) {
    const float* row = x + r * pitch;
    Line* line = to + int64_t(r / SIDE) * steps * STEP + r % SIDE;
    for (int k = 0; k < n; k += DEPTH, line += STEP)
      split(some(row + k, n - k), some(row + k + W, n - k - W), line);
  }
}

// to = start + a b^T over some steps, for R x C tiles of sums: registers 0 to 3, row by row. Calls
// meanwhile() six times a step: the tile registers and the vectors work at the same time.
template <int R, int C, typename F>
inline void product(const Line* a0, const Line* a1, const Line* b0, const Line* b1, int steps,
                    const float* start, int64_t start_stride, float* to, int64_t stride,
                    F&& meanwhile) {
  constexpr int pitch = sizeof(Line), number = sizeof(float);
  const float* start_below = start + SIDE * start_stride;
  _tile_loadd(0, start, start_stride * number);
  if (C > 1) _tile_loadd(1, start + SIDE, start_stride * number);
  if (R > 1) _tile_loadd(2, start_below, start_stride * number);
  if (R > 1 && C > 1) _tile_loadd(3, start_below + SIDE, start_stride * number);
  const auto load_a = [&](int part) __attribute__((always_inline)) {
    _tile_loadd(4, a0 + part * SIDE, pitch);
    if (R > 1) _tile_loadd(5, a1 + part * SIDE, pitch);
  };
  const auto load_b = [&](int part) __attribute__((always_inline)) {
    _tile_loadd(6, b0 + part * SIDE, pitch);
    if (C > 1) _tile_loadd(7, b1 + part * SIDE, pitch);
  };
  const auto multiply = [&]() __attribute__((always_inline)) {
    _tile_dpbf16ps(0, 4, 6);
    if (C > 1) _tile_dpbf16ps(1, 4, 7);
    if (R > 1) _tile_dpbf16ps(2, 5, 6);
    if (R > 1 && C > 1) _tile_dpbf16ps(3, 5, 7);
    meanwhile();
  };
  for (int step = 0; step < steps; step++) {
    // In this order only one of the two changes from product to product.
    load_a(2), load_b(0), multiply();
    load_a(1), multiply();
    load_b(1), multiply();
    load_a(0), multiply();
    load_b(0), multiply();
    load_b(2), multiply();
    a0 += STEP, a1 += STEP, b0 += STEP, b1 += STEP;
  }
  float* below = to + SIDE * stride;
  _tile_stored(0, to, stride * number);
  if (C > 1) _tile_stored(1, to + SIDE, stride * number);
  if (R > 1) _tile_stored(2, below, stride * number);
  if (R > 1 && C > 1) _tile_stored(3, below + SIDE, stride * number);
}

#else

inline bool may_use_tiles() { return false; }
struct Registers {
  explicit Registers(bool) {}
};
inline void split(Vec, Vec, Line*) {}
inline void split(const float*, int64_t, int, int, Line*) {}
template <int R, int C, typename F>
inline void product(const Line*, const Line*, const Line*, const Line*, int, const float*, int64_t,
                    float*, int64_t, F&&) {}

#endif

}  // namespace
