// Calls of kernels that a loop can make: each kernel of a recording (recording.py) takes its arguments as 64
// bits each.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace {

template <typename T>
T from_bits(uint64_t bits) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(bits);
  } else if constexpr (std::is_same_v<T, float>) {
    const uint32_t low = bits;
    float x;
    std::memcpy(&x, &low, sizeof x);
    return x;
  } else {
    return static_cast<T>(bits);
  }
}

template <typename... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), const uint64_t* bits, std::index_sequence<I...>) {
  kernel(from_bits<Arguments>(bits[I])...);
}

template <typename... Arguments>
void call(void (*kernel)(Arguments...), const uint64_t* bits) {
  call(kernel, bits, std::index_sequence_for<Arguments...>{});
}

}  // namespace

#define REPLAYED(kernel) \
  void kernel##_again(const uint64_t* bits) { call(kernel, bits); }
