// How the threads of a team share the items of a loop.

#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace {

// Items 0 .. count - 1. Each thread has a share of neighbours, so that it finds in its cache what it wrote
// for the items of the loop before. A thread that is done takes from the ends of the others' shares.
class Shares {
  // The first item that is left, and the one behind the last, in 32 bits each.
  struct alignas(64) Share {
    std::atomic<uint64_t> left;

    // Takes an item from the front or from the end; -1 if none is left.
    int take(bool front) {
      uint64_t now = left.load(std::memory_order_relaxed);
      for (;;) {
        const uint32_t first = now >> 32, end = now;
        if (first == end) return -1;
        const uint64_t next = front ? now + (uint64_t(1) << 32) : now - 1;
        if (left.compare_exchange_weak(now, next, std::memory_order_relaxed))
          return front ? first : end - 1;
      }
    }
  };
  std::unique_ptr<Share[]> shares;
  int count;

 public:
  Shares(int64_t items, int threads) : shares(new Share[threads]), count(threads) {
    for (int t = 0; t < threads; t++)
      shares[t].left = uint64_t(items * t / threads) << 32 | uint64_t(items * (t + 1) / threads);
  }

  // Calls f(i) for items until none is left. Each thread of the team calls this once.
  template <typename F>
  void work(F&& f) {
    const int own = omp_get_thread_num();
    for (int t = 0; t < count; t++)
      for (int i; (i = shares[(own + t) % count].take(!t)) >= 0;) f(i);
  }
};

}  // namespace
