// SPDX-License-Identifier: Apache-2.0
//
// Philox4x32-10: counter-based random words (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011).
//
// Purpose: randomness as a pure function of (seed, step, stream, element), equal on every backend
// and thread count. Element i uses lane i mod 4 of counter (i/4 low, i/4 high, step, stream) under
// key (seed low, seed high). Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

struct PhiloxWords {
  uint32_t word[4];
};

NIBBLE_HD inline PhiloxWords Philox4x32(PhiloxWords counter, uint32_t key0, uint32_t key1) {
  uint32_t c0 = counter.word[0], c1 = counter.word[1];
  uint32_t c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<uint32_t>(product1);
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The four words of elements 4 * group .. 4 * group + 3.
NIBBLE_HD inline PhiloxWords RandomGroup(uint64_t seed, uint32_t step, uint32_t stream,
                                         uint64_t group) {
  const PhiloxWords counter = {
      {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), step, stream}};
  return Philox4x32(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The word of one element.
NIBBLE_HD inline uint32_t RandomWord(uint64_t seed, uint32_t step, uint32_t stream,
                                     uint64_t element) {
  return RandomGroup(seed, step, stream, element / 4).word[element % 4];
}

// The byte of one element for te8: 4 elements share one word, byte i mod 4, least significant
// first; the word of elements 4g .. 4g+3 is that of element g.
NIBBLE_HD inline uint32_t RandomByte(uint64_t seed, uint32_t step, uint32_t stream,
                                     uint64_t element) {
  return (RandomWord(seed, step, stream, element / 4) >> (8 * (element % 4))) & 0xFFu;
}

}  // namespace nibble::formats
