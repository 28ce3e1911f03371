// SPDX-License-Identifier: Apache-2.0
//
// BF16: the upper half of a float32, rounded to nearest, ties to even, or stochastically.
//
// Thread-safety: pure functions. NaN stays NaN (made quiet), infinities stay, overflow rounds to
// infinity as IEEE says.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

inline constexpr float kBf16Max = 3.38953138925e38f;  // 0x7F7F

// The 16 bits of the nearest BF16 value.
NIBBLE_HD inline uint16_t ToBf16(float x) {
  const uint32_t bits = FloatBits(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & kMagnitudeBits) > kInfinityBits ? quiet : rounded);
}

NIBBLE_HD inline float FromBf16(uint16_t bits) {
  return BitsFloat(static_cast<uint32_t>(bits) << 16);
}

// The nearest BF16 value as a float.
NIBBLE_HD inline float RoundBf16(float x) {
  const uint32_t bits = FloatBits(x);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
  const uint32_t quiet = (bits & 0xFFFF0000u) | 0x00400000u;
  return BitsFloat((bits & kMagnitudeBits) > kInfinityBits ? quiet : rounded);
}

// The BF16 value at or beside x towards or away from zero, away with the probability of x's place
// between them; `word` is uniform, 16 of its bits count. A finite x stays finite.
NIBBLE_HD inline uint16_t StochasticBf16(float x, uint32_t word) {
  const uint32_t bits = FloatBits(x);
  const uint32_t magnitude = bits & kMagnitudeBits;
  if (magnitude >= kInfinityBits) return ToBf16(x);
  const uint32_t rounded = (magnitude + (word & 0xFFFFu)) >> 16;
  const uint32_t finite = rounded > 0x7F7Fu ? 0x7F7Fu : rounded;
  return static_cast<uint16_t>(finite | (bits >> 31) << 15);
}

// Keys that order BF16 values: -Inf < ... < -0 < +0 < ... < +Inf, and every NaN last.
NIBBLE_HD inline uint16_t Bf16OrderKey(uint16_t bits) {
  const uint16_t flipped = static_cast<uint16_t>((bits & 0x8000u) != 0 ? ~bits : bits | 0x8000u);
  return (bits & 0x7FFFu) > 0x7F80u ? static_cast<uint16_t>(0xFFFFu) : flipped;
}

NIBBLE_HD inline uint16_t Bf16FromOrderKey(uint16_t key) {
  return static_cast<uint16_t>((key & 0x8000u) != 0 ? key & 0x7FFFu : ~key);
}

}  // namespace nibble::formats
