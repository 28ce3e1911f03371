// SPDX-License-Identifier: Apache-2.0
//
// NIBBLE_HD and float bit casts for the element formats.
//
// Purpose: kernels/formats compiles unchanged for host and device; this is the only place that
// knows which compiler reads it. Build without fast-math and without multiply-add contraction:
// every formula here is specified operation by operation in IEEE float32.
// Thread-safety: pure functions. The loops that call them rely on their being branch-free.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define NIBBLE_HD __host__ __device__
#else
#define NIBBLE_HD
#endif

namespace nibble::formats {

NIBBLE_HD inline uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

NIBBLE_HD inline float BitsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline constexpr uint32_t kSignBit = 0x80000000u;
inline constexpr uint32_t kMagnitudeBits = 0x7FFFFFFFu;
inline constexpr uint32_t kInfinityBits = 0x7F800000u;
inline constexpr float kLargestFloat = 3.402823466e38f;  // FLT_MAX

NIBBLE_HD inline float Magnitude(float x) { return BitsFloat(FloatBits(x) & kMagnitudeBits); }
NIBBLE_HD inline float WithSignOf(float magnitude, float sign_source) {
  return BitsFloat(FloatBits(magnitude) | (FloatBits(sign_source) & kSignBit));
}
NIBBLE_HD inline bool IsNan(float x) { return (FloatBits(x) & kMagnitudeBits) > kInfinityBits; }
NIBBLE_HD inline bool IsFinite(float x) { return (FloatBits(x) & kMagnitudeBits) < kInfinityBits; }

// 2^exponent for exponent in [-149, 127]; smaller gives 0, larger gives 2^127.
NIBBLE_HD inline float PowerOfTwo(int exponent) {
  if (exponent > 127) exponent = 127;
  if (exponent >= -126) return BitsFloat(static_cast<uint32_t>(exponent + 127) << 23);
  if (exponent < -149) return 0.0f;
  return BitsFloat(1u << (exponent + 149));
}

// Poison rule: the running absolute maximum as magnitude bits. NaN bits order above infinity, so
// one NaN anywhere keeps the maximum NaN; the order of the updates does not matter.
NIBBLE_HD inline uint32_t AmaxUpdate(uint32_t amax_bits, float x) {
  const uint32_t bits = FloatBits(x) & kMagnitudeBits;
  return bits > amax_bits ? bits : amax_bits;
}

}  // namespace nibble::formats
