// SPDX-License-Identifier: Apache-2.0
//
// Random: the simulator's only source of chance; the same numbers for a seed on every machine
// (SplitMix64, Steele et al. 2014). The distributions of <random> are not: they differ by library.
#pragma once

#include <cstdint>

namespace nibble::sim {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  // Uniform in [low, high].
  int64_t Range(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(double probability) {
    return static_cast<double>(Next() >> 11) < probability * 9007199254740992.0;
  }

 private:
  uint64_t state_;
};

}  // namespace nibble::sim
