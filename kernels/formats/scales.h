// SPDX-License-Identifier: Apache-2.0
//
// Scale rules: from the absolute maximum of a scale group to `enc`, the multiplier applied before
// rounding to the element grid.
//
// Purpose: each rule is evaluated in float32 in the order written, no contraction, no approximate
// reciprocal. F is the element maximum the group's amax is mapped to. A non-finite amax follows the
// poison rule: scale 1, and the caller counts it. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bf16.h"
#include "kernels/formats/bits.h"
#include "kernels/formats/e8m0.h"

namespace nibble::formats {

// f32(F): fl(F/amax). Zero, Inf, NaN -> 1; overflow -> FLT_MAX. Decoding divides by enc.
NIBBLE_HD inline float ScaleF32(float amax, float max) {
  if (!IsFinite(amax) || amax == 0.0f) return 1.0f;
  const float enc = max / amax;
  return IsFinite(enc) ? enc : kLargestFloat;
}

// p2(F): the largest power of two with amax * enc <= F, from exponent bits. Zero and non-finite
// keep the previous scale (1 when there is none). At most 2^127.
NIBBLE_HD inline float ScaleP2(float amax, float max, float previous = 1.0f) {
  if (!IsFinite(amax) || amax == 0.0f) return previous;
  const int amax_exponent = FloorLog2(amax);
  const int max_exponent = FloorLog2(max);
  // Mantissas in [1, 2), both exact. Subnormal amax: two exact steps keep the factors in range.
  const float lifted = amax_exponent < -100 ? amax * PowerOfTwo(100) : amax;
  const int lifted_exponent = amax_exponent < -100 ? amax_exponent + 100 : amax_exponent;
  const uint32_t amax_mantissa =
      FloatBits(lifted) - (static_cast<uint32_t>(lifted_exponent + 127) << 23);
  const uint32_t max_mantissa = FloatBits(max) - (static_cast<uint32_t>(max_exponent + 127) << 23);
  const int exponent = max_exponent - amax_exponent - (amax_mantissa <= max_mantissa ? 0 : 1);
  return PowerOfTwo(exponent);
}

// cur(F) of Transformer Engine: fl(F/amax); zero, Inf, NaN -> 1; overflow -> the largest finite
// value of the input type. Decoding multiplies by fl(1/enc). power_of_two clears the mantissa.
NIBBLE_HD inline float ScaleCurrent(float amax, float max, bool power_of_two,
                                    float largest = kBf16Max) {
  if (!IsFinite(amax) || amax == 0.0f) return 1.0f;
  float enc = max / amax;
  if (!IsFinite(enc)) enc = largest;
  if (!power_of_two) return enc;
  const uint32_t cleared = FloatBits(enc) & kInfinityBits;
  return cleared == 0 ? PowerOfTwo(-126) : BitsFloat(cleared);
}

enum class HistoryRule : uint8_t { kMax, kMostRecent };

// dly(F, L) of Transformer Engine: history = [current, oldest .. newest]. A zero or non-finite amax
// keeps the old scale. Precondition: length >= 1.
NIBBLE_HD inline float ScaleDelayed(const float* history, int length, float max, HistoryRule rule,
                                    int margin, float previous) {
  uint32_t bits = FloatBits(history[0]) & kMagnitudeBits;
  if (rule == HistoryRule::kMax) {
    for (int i = 1; i < length; ++i) bits = AmaxUpdate(bits, history[i]);
  }
  const float amax = BitsFloat(bits);
  if (!IsFinite(amax) || amax == 0.0f) return previous;
  const float enc = (max / amax) * PowerOfTwo(-margin);
  return IsFinite(enc) ? enc : kLargestFloat;
}

// After the update: the current amax becomes the newest, slot 0 is free again.
NIBBLE_HD inline void RotateHistory(float* history, int length) {
  const float current = history[0];
  for (int i = 0; i + 1 < length; ++i) history[i] = history[i + 1];
  history[length - 1] = current;
  history[0] = 0.0f;
}

}  // namespace nibble::formats
