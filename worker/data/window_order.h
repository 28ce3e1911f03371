// SPDX-License-Identifier: Apache-2.0
//
// PermuteIndex: a keyed permutation of 0..count-1, computed point by point. Thread-safe, no state.
//
// A balanced Feistel network of kFeistelRounds rounds over the smallest even number of bits that
// holds `count`, with cycle walking: a result at or above `count` is sent through again. A network
// is a bijection whatever its round function is, and walking along its cycles keeps it one, so
// every index has one image. The expected number of walks is below 4 (Black and Rogaway, "Ciphers
// with arbitrary finite domains", 2002). The round function is SplitMix64's finalizer.
#pragma once

#include <cstdint>

namespace nibble {

inline constexpr int kFeistelRounds = 6;

// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014: a bijection of 64
// bits in which every input bit affects every output bit.
constexpr uint64_t MixBits(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// Precondition: index < count, count <= 2^62.
constexpr uint64_t PermuteIndex(uint64_t key, uint64_t count, uint64_t index) {
  int half_bits = 1;
  while (half_bits < 31 && (uint64_t{1} << (2 * half_bits)) < count) ++half_bits;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  do {
    uint64_t left = index >> half_bits;
    uint64_t right = index & mask;
    for (int round = 0; round < kFeistelRounds; ++round) {
      const uint64_t round_key = MixBits(key + static_cast<uint64_t>(round));
      const uint64_t next = left ^ (MixBits(round_key ^ right) & mask);
      left = right;
      right = next;
    }
    index = (left << half_bits) | right;
  } while (index >= count);
  return index;
}

}  // namespace nibble
