// SPDX-License-Identifier: Apache-2.0
//
// E2M1 (FP4): codes 0..7 are 0, .5, 1, 1.5, 2, 3, 4, 6; bit 3 is the sign. No Inf, no NaN.
//
// Purpose: rounding to the grid under the four tie rules found in the wild, and stochastic
// rounding. Out of range (infinities too) saturates to 6; NaN becomes +6, as cuda_fp4.h does: the
// poison rule on the amax catches it earlier. The sign of zero is kept, except by kHalfUp.
// Thread-safety: pure, branch-free functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

inline constexpr float kE2M1Max = 6.0f;

// kEven: OCP MX, cuda_fp4.h. kHalfUp: ties toward +infinity (MS-AMP's kernel; zero is always +0).
// kAway: microxcaling "nearest". kZero: strict > on magnitudes.
enum class TieRule : uint8_t { kEven, kHalfUp, kAway, kZero };

// Distance of the grid points around magnitude a (below 6).
NIBBLE_HD inline float E2M1Step(float a) { return a < 2.0f ? 0.5f : (a < 4.0f ? 1.0f : 2.0f); }

// min(|x|, 6); 6 for NaN.
NIBBLE_HD inline float E2M1Saturate(float x) {
  const float a = Magnitude(x);
  return a <= kE2M1Max ? a : kE2M1Max;
}

// Sign bit of the result: NaN counts as positive.
NIBBLE_HD inline uint32_t E2M1Sign(float x) { return IsNan(x) ? 0u : FloatBits(x) & kSignBit; }

// Nearest grid value, ties to even codes. Adding and subtracting 1.5 * 2^23 steps makes the FPU
// round to a multiple of the step; even multiples are even codes in all three ranges.
NIBBLE_HD inline float RoundE2M1Even(float x) {
  const float a = E2M1Saturate(x);
  const float magic = E2M1Step(a) * 12582912.0f;
  const float rounded = (a + magic) - magic;
  return BitsFloat(FloatBits(rounded) | E2M1Sign(x));
}

NIBBLE_HD inline float RoundE2M1(float x, TieRule rule) {
  if (rule == TieRule::kEven) return RoundE2M1Even(x);
  const float a = E2M1Saturate(x);
  const float step = E2M1Step(a);
  const float scaled = a / step;  // exact: step is a power of two
  const int below = static_cast<int>(scaled);
  const float fraction = scaled - static_cast<float>(below);
  const bool negative = E2M1Sign(x) != 0;
  const bool tie_up = rule == TieRule::kAway || (rule == TieRule::kHalfUp && !negative);
  const bool up = fraction > 0.5f || (fraction == 0.5f && tie_up);
  const float rounded = static_cast<float>(below + (up ? 1 : 0)) * step;
  const bool drop_sign = rule == TieRule::kHalfUp && rounded == 0.0f;
  return BitsFloat(FloatBits(rounded) | (drop_sign ? 0u : E2M1Sign(x)));
}

// Stochastic rounding with 24 random bits of `word` (an unbiased choice to within 2^-24): away from
// zero iff word >> 8 < fraction * 2^24. Grid values never move.
NIBBLE_HD inline float RoundE2M1Sr24(float x, uint32_t word) {
  const float a = E2M1Saturate(x);
  const float step = E2M1Step(a);
  const float scaled = a / step;
  const int below = static_cast<int>(scaled);
  const float fraction = scaled - static_cast<float>(below);
  const float draw = static_cast<float>(static_cast<int32_t>(word >> 8));
  const bool up = draw < fraction * 16777216.0f;
  const float rounded = static_cast<float>(below + (up ? 1 : 0)) * step;
  return BitsFloat(FloatBits(rounded) | E2M1Sign(x));
}

// Stochastic rounding with one random byte, as Transformer Engine's software path does:
// t = |x| + byte/256 * step(|x|), then down to the grid at t. Biased toward zero by up to 1/256.
NIBBLE_HD inline float RoundE2M1Te8(float x, uint32_t byte) {
  const float a = E2M1Saturate(x);
  const float dither = static_cast<float>(static_cast<int32_t>(byte & 0xFFu)) * 0.00390625f;
  const float t = E2M1Saturate(a + dither * E2M1Step(a));
  const float step = E2M1Step(t);
  const float rounded = static_cast<float>(static_cast<int>(t / step)) * step;
  return BitsFloat(FloatBits(rounded) | E2M1Sign(x));
}

// Code of a grid value (result undefined for other values).
NIBBLE_HD inline uint8_t E2M1CodeOfGridValue(float value) {
  const uint32_t bits = FloatBits(value);
  const uint32_t magnitude = bits & kMagnitudeBits;
  // Exponent and top mantissa bit of 1, 1.5, 2, 3, 4, 6 count 254..259.
  const uint32_t normal = (magnitude >> 22) - 252u;
  const uint32_t small = magnitude != 0 ? 1u : 0u;
  const uint32_t code = magnitude >= 0x3F800000u ? normal : small;
  return static_cast<uint8_t>(code | (bits >> 31 << 3));
}

NIBBLE_HD inline float DecodeE2M1(uint8_t code) {
  const uint32_t magnitude = code & 7u;
  // 1 (code 2) has exponent and top mantissa bit 254; two codes per power of two.
  const uint32_t normal = (magnitude + 252u) << 22;
  const uint32_t small = magnitude == 1 ? 0x3F000000u : 0u;
  const uint32_t sign = static_cast<uint32_t>(code & 8u) << 28;
  return BitsFloat((magnitude >= 2 ? normal : small) | sign);
}

NIBBLE_HD inline uint8_t EncodeE2M1(float x, TieRule rule = TieRule::kEven) {
  return E2M1CodeOfGridValue(RoundE2M1(x, rule));
}

// Two codes per byte: the even index sits in the low nibble.
NIBBLE_HD inline uint8_t PackE2M1(uint8_t even, uint8_t odd) {
  return static_cast<uint8_t>((even & 15u) | (odd << 4));
}

}  // namespace nibble::formats
