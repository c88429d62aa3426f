// Products of float32 matrices in the tile registers of a processor with AMX.
//
// The tile registers multiply bfloat16 numbers and add in float32. A float32 is the sum of three
// bfloat16 numbers, its parts: each holds the next eight bits. The product of two numbers is the sum
// of the nine products of their parts. The three smallest, about 2^-24 of the product, are left out
// (Henry, Tang and Heinecke, 2019, arXiv:1904.06376). So the result is as near as that of float32
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

constexpr int SIDE = 16;         // rows of a tile of numbers; rows and columns of a tile of sums
constexpr int BOTH = 2 * SIDE;   // rows, and columns, of a block of four tiles of sums
constexpr int DEPTH = 32;        // inputs of a tile of numbers
constexpr int PARTS = 3;         // of a float32; a bfloat16 is one part

// Rows of the tiles of all parts, one after another: a step of a product.
template <int P>
constexpr int STEP = P * SIDE;

alignas(64) constexpr float ZEROS[BOTH] = {};  // a start of sums, with distance 0

inline int steps_of(int inputs) { return (inputs + DEPTH - 1) / DEPTH; }

// Spreads a work of rows evenly over the products that it is done beside.
struct Spread {
  int rows, products, done = 0, due = 0;

  // Calls f(row) for the rows of the next product.
  template <typename F>
  void next(F&& f) {
    for (due += rows; due >= products && done < rows; due -= products) f(done++);
  }
  template <typename F>
  void rest(F&& f) {
    while (done < rows) f(done++);
  }
};

// A row of a tile.
struct alignas(64) Line {
  uint16_t number[DEPTH];
};

#if VISATTN_TILES

// Whether this process may use the tile registers: it has to ask.
inline bool may_use_tiles() {
  constexpr int ask = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, ask, tile_data) == 0;
}

// What was written is in memory, however few of GCC's intrinsics say that they read memory.
inline void settle(const void* p = nullptr) { asm volatile("" : : "r"(p) : "memory"); }

// The tile registers of a thread, each of SIDE rows, while this lives.
struct Registers {
  bool used;

  explicit Registers(bool use) : used(use) {
    if (!used) return;
    alignas(64) uint8_t shapes[64] = {1};       // palette 1; bytes of a row; rows
    for (int i = 0; i < 8; i++) shapes[16 + 2 * i] = sizeof(Line), shapes[48 + i] = SIDE;
    settle(shapes);
    _tile_loadconfig(shapes);
  }
  ~Registers() {
    if (used) _tile_release();
  }
  Registers(const Registers&) = delete;
};

// The parts of two vectors, from the largest on: a line of a tile for each, with the numbers of the
// two in turn. In a row of 32 numbers, place 2 i holds number i and place 2 i + 1 number i + 16. So
// row i of a right operand holds rows i and i + 16 of the matrix: the sum runs over the same pairs.
template <int P = PARTS>
inline void split(Vec even, Vec odd, Line* to) {
  if (P == 1) return _mm512_store_si512(to, (__m512i)pairs(even, odd));
  constexpr uint32_t upper = 0xffff0000u;  // the bits of a float that are its first part
  Words low = (Words)even, high = (Words)odd;
  UNROLL for (int part = 0; part < P; part++) {
    const Words first = low & upper, second = high & upper;
    _mm512_store_si512(to + part * SIDE, (__m512i)(low >> 16 | second));
    low = (Words)((Vec)low - (Vec)first), high = (Words)((Vec)high - (Vec)second);
  }
}

// to = start + a b^T over some steps, for R x C tiles of sums: registers 0 to 3, row by row. Calls
// meanwhile() once for each of the PRODUCTS of a step: the tile registers and the vectors work at
// the same time.
template <int R, int C, int P, typename F>
inline void tile_product_of(const Line* a0, const Line* a1, const Line* b0, const Line* b1,
                            int steps, const float* start, int64_t start_stride, float* to,
                            int64_t stride, F&& meanwhile) {
  constexpr int pitch = sizeof(Line), number = sizeof(float);
  const float* start_below = start + SIDE * start_stride;
  settle();
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
    if (P == 1) {
      load_a(0), load_b(0), multiply();
    } else {  // in this order only one of the two changes from product to product
      load_a(2), load_b(0), multiply();
      load_a(1), multiply();
      load_b(1), multiply();
      load_a(0), multiply();
      load_b(0), multiply();
      load_b(2), multiply();
    }
    a0 += STEP<P>, a1 += STEP<P>, b0 += STEP<P>, b1 += STEP<P>;
  }
  float* below = to + SIDE * stride;
  _tile_stored(0, to, stride * number);
  if (C > 1) _tile_stored(1, to + SIDE, stride * number);
  if (R > 1) _tile_stored(2, below, stride * number);
  if (R > 1 && C > 1) _tile_stored(3, below + SIDE, stride * number);
}

template <int P>
constexpr int PRODUCTS = P == 1 ? 1 : 6;

// The same with one or two tiles of rows, and one or two tiles of columns.
template <int P, typename F>
inline void tile_product(bool two_rows, bool two_columns, const Line* a0, const Line* a1,
                         const Line* b0, const Line* b1, int steps, const float* start,
                         int64_t start_stride, float* to, int64_t stride, F&& meanwhile) {
  const auto sized = [&](auto r, auto c) {
    tile_product_of<r(), c(), P>(a0, a1, b0, b1, steps, start, start_stride, to, stride, meanwhile);
  };
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, 2> two;
  if (two_rows) two_columns ? sized(two, two) : sized(two, one);
  else two_columns ? sized(one, two) : sized(one, one);
}

#else

inline bool may_use_tiles() { return false; }
struct Registers {
  explicit Registers(bool) {}
};
template <int P = PARTS>
inline void split(Vec, Vec, Line*) {}
template <int P>
constexpr int PRODUCTS = 1;
template <int P, typename F>
inline void tile_product(bool, bool, const Line*, const Line*, const Line*, const Line*, int,
                         const float*, int64_t, float*, int64_t, F&&) {}

#endif

}  // namespace
