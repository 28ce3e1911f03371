// SPDX-License-Identifier: Apache-2.0
//
// Every element format as a grid of magnitudes, and every rounding onto it.
//
// Purpose: one definition of tie rules and stochastic rounding for E2M1, E1M2, E3M0, E4M3, E5M2,
// INT4, INT8 and the centred INT4 of QuEST. A grid says where its points lie (`Step`), which of two
// neighbours has the even code, and where it ends; e2m1.h and fp8.h hold the fast nearest-even
// forms, which give the same values. Out of range saturates, infinities too; NaN stays NaN in the
// FP8 formats and becomes the largest value elsewhere. The sign of zero is kept, except by half_up
// and by integers, which have none. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"
#include "kernels/formats/e2m1.h"
#include "kernels/formats/fp8.h"

namespace nibble::formats {

// E1M2: 0, .5, .. 3.5, evenly spaced. E3M0: 0, .25, .5, 1, .. 16.
inline constexpr float kE1M2Max = 3.5f;
inline constexpr float kE3M0Max = 16.0f;
inline constexpr float kInt4Max = 7.0f;
inline constexpr float kInt8Max = 127.0f;
inline constexpr float kInt4CentredMax = 7.5f;

namespace internal {

// 2^(exponent of a, at least min_exponent, minus mantissa).
template <int mantissa, int min_exponent>
NIBBLE_HD inline float FloatStep(float a) {
  constexpr uint32_t kMinBits = static_cast<uint32_t>(min_exponent + 127) << 23;
  const uint32_t exponent_bits = FloatBits(a) & kInfinityBits;
  const uint32_t clamped = exponent_bits > kMinBits ? exponent_bits : kMinBits;
  return BitsFloat(clamped - (static_cast<uint32_t>(mantissa) << 23));
}

}  // namespace internal

// A grid: kMax; kHasNan; kSignedZero; Step(a), the distance of the points around magnitude a;
// Odd(a, below), whether the point below * Step(a) has an odd code.
struct E2M1Grid {
  static constexpr float kMax = kE2M1Max;
  static constexpr bool kHasNan = false;
  static constexpr bool kSignedZero = true;
  NIBBLE_HD static float Step(float a) { return E2M1Step(a); }
  NIBBLE_HD static bool Odd(float, int below) { return (below & 1) != 0; }
};

template <int max_in_halves>
struct HalfStepGrid {
  static constexpr float kMax = static_cast<float>(max_in_halves) * 0.5f;
  static constexpr bool kHasNan = false;
  static constexpr bool kSignedZero = true;
  NIBBLE_HD static float Step(float) { return 0.5f; }
  NIBBLE_HD static bool Odd(float, int below) { return (below & 1) != 0; }
};
using E1M2Grid = HalfStepGrid<7>;

struct E3M0Grid {
  static constexpr float kMax = kE3M0Max;
  static constexpr bool kHasNan = false;
  static constexpr bool kSignedZero = true;
  NIBBLE_HD static float Step(float a) { return internal::FloatStep<0, -2>(a); }
  // 2^e has code e + 3, as odd as its exponent field e + 127 is. Below .25: code 0.
  NIBBLE_HD static bool Odd(float a, int below) {
    return below != 0 && ((FloatBits(a) >> 23) & 1u) != 0;
  }
};

template <int mantissa, int min_exponent, int max_value>
struct Fp8Grid {
  static constexpr float kMax = static_cast<float>(max_value);
  static constexpr bool kHasNan = true;
  static constexpr bool kSignedZero = true;
  NIBBLE_HD static float Step(float a) { return internal::FloatStep<mantissa, min_exponent>(a); }
  NIBBLE_HD static bool Odd(float, int below) { return (below & 1) != 0; }
};
using E4M3Grid = Fp8Grid<3, -6, 448>;
using E5M2Grid = Fp8Grid<2, -14, 57344>;
using UE5M3Grid = Fp8Grid<3, -14, 61440>;

template <int max_value>
struct IntegerGrid {
  static constexpr float kMax = static_cast<float>(max_value);
  static constexpr bool kHasNan = false;
  static constexpr bool kSignedZero = false;
  NIBBLE_HD static float Step(float) { return 1.0f; }
  NIBBLE_HD static bool Odd(float, int below) { return (below & 1) != 0; }
};
using Int4Grid = IntegerGrid<7>;
using Int8Grid = IntegerGrid<127>;

namespace internal {

// Where |x| lies: below * step is the grid point at or under it, fraction in [0, 1) the way up.
struct Position {
  float step;
  int below;
  float fraction;
  float magnitude;
};

template <typename Grid>
NIBBLE_HD inline Position Locate(float a) {
  const float step = Grid::Step(a);
  const float scaled = a / step;  // exact: step is a power of two
  const int below = static_cast<int>(scaled);
  return {step, below, scaled - static_cast<float>(below), a};
}

template <typename Grid>
NIBBLE_HD inline float Saturate(float x) {
  const float a = Magnitude(x);
  return a <= Grid::kMax ? a : Grid::kMax;
}

// Puts the sign back and lets NaN through where the format has one.
template <typename Grid>
NIBBLE_HD inline float Finish(float x, float rounded, bool drop_zero_sign) {
  if (Grid::kHasNan && IsNan(x)) return x;
  const bool drop = rounded == 0.0f && (drop_zero_sign || !Grid::kSignedZero);
  const uint32_t sign = IsNan(x) || drop ? 0u : FloatBits(x) & kSignBit;
  return BitsFloat(FloatBits(rounded) | sign);
}

}  // namespace internal

// Nearest grid value under a tie rule.
template <typename Grid>
NIBBLE_HD inline float RoundNearest(float x, TieRule rule) {
  const internal::Position at = internal::Locate<Grid>(internal::Saturate<Grid>(x));
  const bool negative = (FloatBits(x) & kSignBit) != 0;
  const bool tie_up = rule == TieRule::kEven
                          ? Grid::Odd(at.magnitude, at.below)
                          : rule == TieRule::kAway || (rule == TieRule::kHalfUp && !negative);
  const bool up = at.fraction > 0.5f || (at.fraction == 0.5f && tie_up);
  const float rounded = static_cast<float>(at.below + (up ? 1 : 0)) * at.step;
  return internal::Finish<Grid>(x, rounded, rule == TieRule::kHalfUp);
}

// Away from zero iff word >> 8 < fraction * 2^24 (sr24): unbiased to 2^-24; grid values stay.
template <typename Grid>
NIBBLE_HD inline float RoundSr24(float x, uint32_t word) {
  const internal::Position at = internal::Locate<Grid>(internal::Saturate<Grid>(x));
  const float draw = static_cast<float>(static_cast<int32_t>(word >> 8));
  const bool up = draw < at.fraction * 16777216.0f;
  const float rounded = static_cast<float>(at.below + (up ? 1 : 0)) * at.step;
  return internal::Finish<Grid>(x, rounded, false);
}

// t = |x| + byte/256 * step(|x|), then down to the grid at t (te8).
template <typename Grid>
NIBBLE_HD inline float RoundTe8(float x, uint32_t byte) {
  const float a = internal::Saturate<Grid>(x);
  const float dither = static_cast<float>(static_cast<int32_t>(byte & 0xFFu)) * 0.00390625f;
  const float t = internal::Saturate<Grid>(a + dither * Grid::Step(a));
  const internal::Position at = internal::Locate<Grid>(t);
  return internal::Finish<Grid>(x, static_cast<float>(at.below) * at.step, false);
}

// Centred INT4 (QuEST, arXiv 2502.05003): rint(x + .5) - .5 within +-7.5; there is no zero.
// Stochastic: up iff word >> 8 < the way to the upper neighbour * 2^24.
NIBBLE_HD inline float RoundInt4Centred(float x) {
  if (IsNan(x)) return kInt4CentredMax;
  const float low = x < -kInt4CentredMax ? -kInt4CentredMax : x;
  const float clipped = low > kInt4CentredMax ? kInt4CentredMax : low;
  return (((clipped + 0.5f) + 12582912.0f) - 12582912.0f) - 0.5f;
}
NIBBLE_HD inline float RoundInt4CentredSr24(float x, uint32_t word) {
  if (IsNan(x)) return kInt4CentredMax;
  const float low = x < -kInt4CentredMax ? -kInt4CentredMax : x;
  const float shifted = (low > kInt4CentredMax ? kInt4CentredMax : low) + kInt4CentredMax;
  const int below = static_cast<int>(shifted);
  const float draw = static_cast<float>(static_cast<int32_t>(word >> 8));
  const bool up = draw < (shifted - static_cast<float>(below)) * 16777216.0f;
  return static_cast<float>(below + (up ? 1 : 0)) - kInt4CentredMax;
}

// Codes of grid values. E1M2, E3M0: sign in bit 3 and the magnitude's index. INT4, INT8: two's
// complement, INT4 in a nibble. Centred INT4: value + 7.5.
NIBBLE_HD inline uint8_t E1M2CodeOfGridValue(float value) {
  const uint32_t index = static_cast<uint32_t>(static_cast<int32_t>(Magnitude(value) * 2.0f));
  return static_cast<uint8_t>(index | (FloatBits(value) >> 31 << 3));
}
NIBBLE_HD inline float DecodeE1M2(uint8_t code) {
  const float magnitude = static_cast<float>(static_cast<int32_t>(code & 7u)) * 0.5f;
  return BitsFloat(FloatBits(magnitude) | (static_cast<uint32_t>(code & 8u) << 28));
}
NIBBLE_HD inline uint8_t E3M0CodeOfGridValue(float value) {
  const uint32_t bits = FloatBits(value) & kMagnitudeBits;
  const uint32_t index = bits == 0 ? 0u : (bits >> 23) - 124u;
  return static_cast<uint8_t>(index | (FloatBits(value) >> 31 << 3));
}
NIBBLE_HD inline float DecodeE3M0(uint8_t code) {
  const uint32_t index = code & 7u;
  const uint32_t magnitude = index == 0 ? 0u : (index + 124u) << 23;
  return BitsFloat(magnitude | (static_cast<uint32_t>(code & 8u) << 28));
}
NIBBLE_HD inline uint8_t Int8CodeOfGridValue(float value) {
  return static_cast<uint8_t>(static_cast<int32_t>(value));
}
NIBBLE_HD inline float DecodeInt8(uint8_t code) {
  return static_cast<float>(static_cast<int32_t>(static_cast<int8_t>(code)));
}
NIBBLE_HD inline uint8_t Int4CodeOfGridValue(float value) {
  return static_cast<uint8_t>(static_cast<int32_t>(value) & 15);
}
NIBBLE_HD inline float DecodeInt4(uint8_t code) {
  return static_cast<float>(static_cast<int32_t>((code & 15u) ^ 8u) - 8);
}
NIBBLE_HD inline uint8_t Int4CentredCodeOfGridValue(float value) {
  return static_cast<uint8_t>(static_cast<int32_t>(value + kInt4CentredMax));
}
NIBBLE_HD inline float DecodeInt4Centred(uint8_t code) {
  return static_cast<float>(static_cast<int32_t>(code & 15u)) - kInt4CentredMax;
}

}  // namespace nibble::formats
