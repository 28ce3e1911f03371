// SPDX-License-Identifier: Apache-2.0
//
// FP8: E4M3 ("fn": max 448, NaN only), E5M2 (max 57344, IEEE style) and the unsigned scale format
// UE5M3 (bias 15, max a parameter because no standard fixes it).
//
// Purpose: round to nearest, ties to even, saturating (infinities too); NaN stays NaN; the sign of
// zero is kept. Thread-safety: pure, branch-free functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

inline constexpr float kE4M3Max = 448.0f;
inline constexpr float kE5M2Max = 57344.0f;
// Top exponent reserved. With a finite top exponent and one NaN code it would be 114688.
inline constexpr float kUE5M3Max = 61440.0f;

namespace internal {

// |x| rounded to `mantissa` bits with smallest normal exponent `min_exponent`, saturated at `max`.
// Adding 2^(e + 23 - mantissa) makes the FPU round a of exponent e to a multiple of
// 2^(e - mantissa), nearest even. NaN passes through.
template <int mantissa, int min_exponent>
NIBBLE_HD inline float RoundMagnitude(float x, float max) {
  const float magnitude = Magnitude(x);
  const float a = magnitude > max ? max : magnitude;
  constexpr uint32_t kMinBits = static_cast<uint32_t>(min_exponent + 127) << 23;
  const uint32_t exponent_bits = FloatBits(a) & kInfinityBits;
  const uint32_t clamped = exponent_bits > kMinBits ? exponent_bits : kMinBits;
  const float magic = BitsFloat(clamped + (static_cast<uint32_t>(23 - mantissa) << 23));
  return IsNan(x) ? a : (a + magic) - magic;
}

// Code of a magnitude on the grid of a format with `mantissa` bits and exponent bias `bias`.
template <int mantissa, int bias>
NIBBLE_HD inline uint32_t MagnitudeCode(float a) {
  const uint32_t bits = FloatBits(a);
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - bias) << mantissa;
  const uint32_t normal = (bits >> (23 - mantissa)) - kRebias;
  // Below the smallest normal 2^(1 - bias) the code counts multiples of 2^(1 - bias - mantissa).
  const float inverse_step = BitsFloat(static_cast<uint32_t>(127 + bias - 1 + mantissa) << 23);
  constexpr uint32_t kMinNormal = static_cast<uint32_t>(128 - bias) << 23;
  const bool is_normal = bits >= kMinNormal;
  const uint32_t subnormal =
      static_cast<uint32_t>(static_cast<int32_t>(is_normal ? 0.0f : a * inverse_step));
  return is_normal ? normal : subnormal;
}

template <int mantissa, int bias>
NIBBLE_HD inline float DecodeMagnitude(uint32_t code) {
  constexpr uint32_t kRebias = static_cast<uint32_t>(127 - bias) << mantissa;
  const float step = BitsFloat(static_cast<uint32_t>(127 - (bias - 1 + mantissa)) << 23);
  const float normal = BitsFloat((code + kRebias) << (23 - mantissa));
  const float subnormal = static_cast<float>(static_cast<int32_t>(code)) * step;
  return code >= (1u << mantissa) ? normal : subnormal;
}

}  // namespace internal

NIBBLE_HD inline float RoundE4M3(float x) {
  return WithSignOf(internal::RoundMagnitude<3, -6>(x, kE4M3Max), x);
}
NIBBLE_HD inline float RoundE5M2(float x) {
  return WithSignOf(internal::RoundMagnitude<2, -14>(x, kE5M2Max), x);
}
// Negative input becomes 0; the result is never negative.
NIBBLE_HD inline float RoundUE5M3(float x, float max = kUE5M3Max) {
  const float positive = x < 0.0f ? 0.0f : Magnitude(x);
  return internal::RoundMagnitude<3, -14>(positive, max);
}

// Codes of grid values (what the Round functions return); NaN gives the NaN code.
NIBBLE_HD inline uint8_t E4M3CodeOfGridValue(float value) {
  const uint32_t sign = FloatBits(value) >> 31 << 7;
  const uint32_t code = internal::MagnitudeCode<3, 7>(Magnitude(value));
  return static_cast<uint8_t>((IsNan(value) ? 0x7Fu : code) | sign);
}
NIBBLE_HD inline uint8_t E5M2CodeOfGridValue(float value) {
  const uint32_t sign = FloatBits(value) >> 31 << 7;
  const uint32_t code = internal::MagnitudeCode<2, 15>(Magnitude(value));
  return static_cast<uint8_t>((IsNan(value) ? 0x7Fu : code) | sign);
}
NIBBLE_HD inline uint8_t EncodeE4M3(float x) { return E4M3CodeOfGridValue(RoundE4M3(x)); }
NIBBLE_HD inline uint8_t EncodeE5M2(float x) { return E5M2CodeOfGridValue(RoundE5M2(x)); }
NIBBLE_HD inline uint8_t EncodeUE5M3(float x, float max = kUE5M3Max) {
  const float value = RoundUE5M3(x, max);
  return static_cast<uint8_t>(IsNan(value) ? 0xFFu : internal::MagnitudeCode<3, 15>(value));
}

NIBBLE_HD inline float DecodeE4M3(uint8_t code) {
  const uint32_t magnitude = code & 0x7Fu;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t value = FloatBits(internal::DecodeMagnitude<3, 7>(magnitude));
  return BitsFloat((magnitude == 0x7Fu ? 0x7FC00000u : value) | sign);
}
NIBBLE_HD inline float DecodeE5M2(uint8_t code) {
  const uint32_t magnitude = code & 0x7Fu;
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24;
  const uint32_t value = FloatBits(internal::DecodeMagnitude<2, 15>(magnitude));
  const uint32_t special = magnitude == 0x7Cu ? kInfinityBits : 0x7FC00000u;
  return BitsFloat((magnitude >= 0x7Cu ? special : value) | sign);
}
// 0xFF is NaN whatever the maximum.
NIBBLE_HD inline float DecodeUE5M3(uint8_t code) {
  return code == 0xFFu ? BitsFloat(0x7FC00000u) : internal::DecodeMagnitude<3, 15>(code);
}

}  // namespace nibble::formats
