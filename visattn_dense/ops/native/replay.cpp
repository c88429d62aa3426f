// The loop of a replay: compiled as attention.cpp is.

#include <cstdint>

extern "C" {

struct Call {
  void (*kernel)(const uint64_t*);
  const uint64_t* bits;
};

void visattn_replay(const Call* calls, int count) {
  for (int i = 0; i < count; i++) calls[i].kernel(calls[i].bits);
}

}  // extern "C"
