// SPDX-License-Identifier: Apache-2.0
//
// Scales of small groups: E8M0, two-level E4M3 and UE5M3, QuEST, Quartet and MS-EDEN.
//
// Purpose: from a group's statistic (and the tensor's) to what its elements are multiplied by
// before rounding (`enc`) and by after it. Each rule is evaluated in float32 in the order written.
// Two-level rules decode as fl(fl(fl(code * scale) * outer) / divisor); outer and divisor carry a
// power of two that keeps the products in range, so the decoded value of a BF16 amax is rounded
// only once. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"
#include "kernels/formats/e8m0.h"
#include "kernels/formats/fp8.h"
#include "kernels/formats/grids.h"

namespace nibble::formats {

// How one group is scaled. Elements become x * enc, or x / enc where the rule divides.
struct GroupScale {
  float enc;
  float scale;   // value of the code, what decoding multiplies by
  uint8_t code;  // E8M0, E4M3 or UE5M3
};

// The second level: T/g or its like, and how decoding undoes it.
struct OuterScale {
  float enc;      // multiplies a group's amax before it is rounded to the scale format
  float dec;      // fl(1/enc)
  float scale;    // g times a power of two
  float divisor;  // what code * scale * g is divided by, times the same power of two
};

// --- One level -----------------------------------------------------------------------------------

NIBBLE_HD inline GroupScale E8M0Group(uint8_t code) {
  const float scale = DecodeE8M0(code);
  const float enc = code == kE8M0Nan ? scale : PowerOfTwo(127 - static_cast<int>(code));
  return {enc, scale, code};
}

NIBBLE_HD inline uint8_t E8M0OfExponent(int exponent) {
  const int low = exponent < -127 ? -127 : exponent;
  return static_cast<uint8_t>((low > 127 ? 127 : low) + 127);
}

// Rule qst (Quartet forward, arXiv 2505.14669): E = floor(log2(c * std + 1e-8)), c =
// 2.92247856 / 6, std the population deviation of the group. Non-finite: the NaN code.
NIBBLE_HD inline GroupScale QuartetGroup(double deviation) {
  const float value = static_cast<float>(2.92247856 / 6.0 * deviation + 1e-8);
  if (!IsFinite(value)) return E8M0Group(kE8M0Nan);
  return E8M0Group(E8M0OfExponent(FloorLog2(value)));
}

// Rule a34 (Quartet backward): s = 2^floor(log2 amax), elements 3x/s in [3, 6), decoded code * s/3.
// A zero group takes the smallest scale.
NIBBLE_HD inline GroupScale ThreeQuarterGroup(float amax) {
  if (!IsFinite(amax)) return E8M0Group(kE8M0Nan);
  GroupScale group = E8M0Group(amax == 0.0f ? 0 : E8M0OfExponent(FloorLog2(amax)));
  group.enc *= 3.0f;
  if (!IsFinite(group.enc)) group.enc = kLargestFloat;
  return group;
}

// Rule quest (arXiv 2502.05003): clip point alpha * rms + 1e-8 on the grid's maximum; elements are
// divided by enc, the grid's step.
NIBBLE_HD inline GroupScale QuestGroup(double rms, float alpha, float element_max) {
  const float clip = static_cast<float>(static_cast<double>(alpha) * rms + 1e-8);
  const float step = clip / element_max;
  const bool usable = IsFinite(step) && step > 0.0f;
  return {usable ? step : 1.0f, usable ? step : 1.0f, 0};
}

// --- Two levels ----------------------------------------------------------------------------------

// How a group's scale is put on its own grid: nearest even, up, or up iff word >> 8 < the way up *
// 2^24.
enum class ScaleRounding : uint8_t { kEven, kUp, kStochastic };

namespace internal {

// A power of two that brings `product` into [1/2, 1).
NIBBLE_HD inline float Normaliser(float product) { return PowerOfTwo(-FloorLog2(product) - 1); }

// enc = numerator / g, 1 for a zero or non-finite g, at most FLT_MAX; undone by g / product.
NIBBLE_HD inline OuterScale OuterOf(float g, float numerator, float product) {
  const float power = Normaliser(product);
  float enc = numerator / g;
  float source = g;
  if (!IsFinite(g) || g == 0.0f || enc == 0.0f) {
    enc = 1.0f;
    source = numerator;
  } else if (!IsFinite(enc)) {
    enc = kLargestFloat;
    source = numerator / enc;
  }
  return {enc, 1.0f / enc, source * power, product * power};
}

// A non-negative value on a scale grid.
template <typename Grid>
NIBBLE_HD inline float RoundScale(float value, ScaleRounding rounding, uint32_t word) {
  if (rounding == ScaleRounding::kEven) return RoundNearest<Grid>(value, TieRule::kEven);
  if (rounding == ScaleRounding::kStochastic) return RoundSr24<Grid>(value, word);
  return RoundSr24<Grid>(value, 0u);  // up iff there is any way to go
}

}  // namespace internal

// Rule nv(bound), NVFP4 (arXiv 2509.25149, Transformer Engine): enc = fl(6 bound / g).
NIBBLE_HD inline OuterScale NvOuter(float g, float bound, float element_max) {
  const float product = bound * element_max;
  return internal::OuterOf(g, product, product);
}

// s = E4M3(fl(amax * m)), m = fl(enc * fl(1/element_max)); element enc = min(fl(1/fl(s * dec)),
// FLT_MAX). s may be 0: then codes are +-element_max and decode to 0. `mapped` != element_max is an
// alternative of "four over six": base = fl(fl(amax/element_max) * enc), s = E4M3(fl(base *
// fl(element_max/mapped))).
NIBBLE_HD inline GroupScale NvGroup(float amax, const OuterScale& outer, float element_max,
                                    float mapped, bool alternatives, ScaleRounding rounding,
                                    uint32_t word) {
  float value;
  if (alternatives) {
    const float base = (amax / element_max) * outer.enc;
    value = mapped == element_max ? base : (element_max / mapped) * base;
  } else {
    value = amax * (outer.enc * (1.0f / element_max));
  }
  if (value > kLargestFloat) value = kLargestFloat;
  const float s = internal::RoundScale<E4M3Grid>(value, rounding, word);
  const float enc = 1.0f / (s * outer.dec);
  return {enc > kLargestFloat ? kLargestFloat : enc, s, E4M3CodeOfGridValue(s)};
}

// The order of Quartet II's simulation (arXiv 2601.22813): sdec = (g/bound)/element_max, 1 for a
// zero tensor; s = E4M3((amax/element_max)/sdec); elements are divided by fl(s * sdec), which also
// decodes them; a zero scale divides by 1.
NIBBLE_HD inline float QuartetTwoOuter(float g, float bound, float element_max) {
  const float sdec = (g / bound) / element_max;
  return IsFinite(sdec) && sdec > 0.0f ? sdec : 1.0f;
}
NIBBLE_HD inline GroupScale QuartetTwoGroup(float amax, float sdec, float element_max,
                                            float mapped) {
  const float share = amax / element_max;
  const float wanted = mapped == element_max ? share : share * (element_max / mapped);
  const float s = RoundE4M3(wanted / sdec);
  return {s == 0.0f ? 1.0f : s * sdec, s * sdec, E4M3CodeOfGridValue(s)};
}

// Rule u53(T) (arXiv 2509.17791, 2609.02846): r = fl(T/g); s = UE5M3(fl(amax * r)), 1 where that is
// 0; element enc = fl(fl(element_max * r)/s); decoded code * s * g/(element_max * T).
NIBBLE_HD inline OuterScale U53Outer(float g, float target, float element_max) {
  return internal::OuterOf(g, target, target * element_max);
}
NIBBLE_HD inline GroupScale U53Group(float amax, const OuterScale& outer, float element_max,
                                     float mapped, ScaleRounding rounding, uint32_t word) {
  float value = amax * outer.enc;
  if (mapped != element_max) value = value * (element_max / mapped);
  if (value > kLargestFloat) value = kLargestFloat;
  float s = internal::RoundScale<UE5M3Grid>(value, rounding, word);
  if (s == 0.0f) s = 1.0f;
  const float enc = (element_max * outer.enc) / s;
  return {enc > kLargestFloat ? kLargestFloat : enc, s, EncodeUE5M3(s)};
}

// --- MS-EDEN (Quartet II) ------------------------------------------------------------------------

// The simulation: v = element_max / factor; sdec = (g/bound)/v; s = E4M3((amax/v)/sdec), 1 where
// that is 0; elements are divided by fl(s * sdec).
NIBBLE_HD inline float EdenOuter(float g, float bound, float v) {
  const float sdec = (g / bound) / v;
  return IsFinite(sdec) && sdec > 0.0f ? sdec : 1.0f;
}
NIBBLE_HD inline GroupScale EdenGroup(float amax, float sdec, float v) {
  float s = RoundE4M3((amax / v) / sdec);
  if (s == 0.0f) s = 1.0f;
  return {s * sdec, s, E4M3CodeOfGridValue(s)};
}

// The kernel: fl(amax/v) cut to four mantissa bits; elements are multiplied by its reciprocal.
NIBBLE_HD inline GroupScale EdenKernelGroup(float amax, float v) {
  const float m = BitsFloat(FloatBits(amax / v) & 0xFFF80000u);
  const float enc = m > 0.0f ? 1.0f / m : 0.0f;
  return {enc > kLargestFloat ? kLargestFloat : enc, m, 0};
}

// c = num/den; 1 where den is 0 (a zero group) or the quotient is not finite.
NIBBLE_HD inline float EdenCorrection(double num, double den) {
  const float c = static_cast<float>(num / den);
  return den != 0.0 && IsFinite(c) ? c : 1.0f;
}

// A corrected scale on the E4M3 grid: up iff the low 20 mantissa bits exceed noise * 16 (16 random
// bits); nearest even below 2^-6, where E4M3 is subnormal, and above 448.
NIBBLE_HD inline float EdenStochasticScale(float t, uint32_t noise16) {
  if (!(t >= 0.015625f) || t > kE4M3Max) return RoundE4M3(t);
  const uint32_t bits = FloatBits(t);
  const uint32_t low = bits & 0xFFFFFu;
  const float down = BitsFloat(bits & ~0xFFFFFu);
  const bool up = low > ((noise16 & 0xFFFFu) << 4);
  return up ? BitsFloat(FloatBits(down) + 0x100000u) : down;
}

}  // namespace nibble::formats
