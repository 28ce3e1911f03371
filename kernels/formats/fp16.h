// SPDX-License-Identifier: Apache-2.0
//
// FP16: IEEE binary16. Rounding is to nearest, ties to even, saturating at 65504 (infinities too);
// NaN stays NaN; the sign of zero is kept. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/fp8.h"

namespace nibble::formats {

inline constexpr float kF16Max = 65504.0f;

NIBBLE_HD inline float RoundF16(float x) {
  return WithSignOf(internal::RoundMagnitude<10, -14>(x, kF16Max), x);
}
NIBBLE_HD inline uint16_t EncodeF16(float x) {
  const float value = RoundF16(x);
  const uint32_t sign = FloatBits(value) >> 31 << 15;
  const uint32_t code = internal::MagnitudeCode<10, 15>(Magnitude(value));
  return static_cast<uint16_t>((IsNan(value) ? 0x7E00u : code) | sign);
}
NIBBLE_HD inline float DecodeF16(uint16_t code) {
  const uint32_t magnitude = code & 0x7FFFu;
  const uint32_t sign = static_cast<uint32_t>(code & 0x8000u) << 16;
  const uint32_t value = FloatBits(internal::DecodeMagnitude<10, 15>(magnitude));
  const uint32_t special = magnitude == 0x7C00u ? kInfinityBits : 0x7FC00000u;
  return BitsFloat((magnitude >= 0x7C00u ? special : value) | sign);
}

}  // namespace nibble::formats
