// SPDX-License-Identifier: Apache-2.0
//
// E8M0: block scales 2^(code - 127); code 255 is NaN, there is no zero.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

inline constexpr uint8_t kE8M0Nan = 255;

NIBBLE_HD inline float DecodeE8M0(uint8_t code) {
  return code == kE8M0Nan ? BitsFloat(0x7FC00000u) : PowerOfTwo(static_cast<int>(code) - 127);
}

// Rounds toward +infinity: 0 -> 0, Inf -> 254, NaN -> 255; values in (0, 2^-127] -> 0.
NIBBLE_HD inline uint8_t E8M0RoundUp(float value) {
  if (IsNan(value)) return kE8M0Nan;
  const uint32_t bits = FloatBits(value) & kMagnitudeBits;
  if (bits >= kInfinityBits) return 254;
  const uint32_t exponent = bits >> 23;
  const uint32_t mantissa = bits & 0x7FFFFFu;
  if (exponent == 0 && mantissa <= 0x400000u) return 0;
  const bool up = mantissa != 0 && exponent != 0xFEu;
  return static_cast<uint8_t>(exponent + (up ? 1u : 0u));
}

// floor(log2 amax) for a positive finite value, subnormals included.
NIBBLE_HD inline int FloorLog2(float value) {
  uint32_t bits = FloatBits(value) & kMagnitudeBits;
  int exponent = static_cast<int>(bits >> 23) - 127;
  if (exponent == -127) {
    exponent = -126;
    while ((bits & 0x800000u) == 0 && bits != 0) {
      bits <<= 1;
      --exponent;
    }
  }
  return exponent;
}

// Rule e8f (OCP MX): floor(log2 amax) - element_exponent, clamped to [-127, 127]. element_exponent
// is 2 for E2M1, 8 for E4M3. 0 -> 0; non-finite -> NaN code.
NIBBLE_HD inline uint8_t E8M0FloorScale(float amax, int element_exponent) {
  if (!IsFinite(amax)) return kE8M0Nan;
  if (amax == 0.0f) return 0;
  int exponent = FloorLog2(amax) - element_exponent;
  if (exponent < -127) exponent = -127;
  if (exponent > 127) exponent = 127;
  return static_cast<uint8_t>(exponent + 127);
}

// Rule e8u(F): v = fl(amax * fl(1/F)), rounded up to a power of two.
NIBBLE_HD inline uint8_t E8M0UpScale(float amax, float max) {
  const float inverse = 1.0f / max;
  return E8M0RoundUp(amax * inverse);
}

}  // namespace nibble::formats
