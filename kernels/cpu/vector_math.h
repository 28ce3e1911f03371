// SPDX-License-Identifier: Apache-2.0
//
// Helpers of the vectorised loops: instruction-set clones, exp, fixed-order dot products.
//
// Purpose: hot loops are plain C++ that the compiler vectorises, built once per instruction set;
// the process runs one of the forms (LoopsOfProcess). Multiply-add contraction is off and sums use
// kLanes fixed partial sums, so every clone gives the same bits. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_features.h"
#include "kernels/formats/bits.h"

// A loop that Cloned runs in the form of this CPU: NIBBLE_LOOP void Add(...) {...},
// Cloned<Add>(...).
#define NIBBLE_LOOP [[gnu::always_inline]] inline
#if defined(__x86_64__)
#define NIBBLE_V3 __attribute__((target("avx2,fma,bmi,bmi2,f16c,lzcnt,movbe"), noinline))
#define NIBBLE_V4                                                                                \
  __attribute__((target("avx2,fma,bmi,bmi2,f16c,lzcnt,movbe,avx512f,avx512bw,avx512cd,avx512dq," \
                        "avx512vl"),                                                             \
                 noinline))
#endif

// Before a loop whose arrays are either distinct or the very same (never shifted).
#if defined(__clang__)
#define NIBBLE_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define NIBBLE_INDEPENDENT _Pragma("GCC ivdep")
#endif

namespace nibble::cpu {

template <auto kLoop>
struct Clones;

// The forms of one NIBBLE_LOOP function.
template <typename Result, typename... Args, Result (*kLoop)(Args...)>
struct Clones<kLoop> {
#if defined(__x86_64__)
  NIBBLE_V4 static Result RunV4(Args... args) { return kLoop(args...); }
  NIBBLE_V3 static Result RunV3(Args... args) { return kLoop(args...); }
#endif
  [[gnu::noinline]] static Result RunPlain(Args... args) { return kLoop(args...); }
  Result operator()(Args... args) const {
#if defined(__x86_64__)
    const LoopSet loops = LoopsOfProcess();
    if (loops == LoopSet::kV4) return RunV4(args...);
    if (loops == LoopSet::kV3) return RunV3(args...);
#endif
    return RunPlain(args...);
  }
};
template <auto kLoop>
inline constexpr Clones<kLoop> Cloned;

// Partial sums of every reduction; the fold order is part of the result.
inline constexpr int kLanes = 16;

// e^x: range reduction by ln 2 in two parts, degree-6 polynomial; relative error below 3e-7 over
// the range, 0 below -87.3 and saturated above 88.7; NaN stays NaN.
NIBBLE_LOOP float Exp(float x) {
  const float low = x < -87.3f ? -87.3f : x;
  const float bounded = low > 88.7f ? 88.7f : low;
  const float shifted = bounded * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  // 2^n in two factors: n reaches 128.
  const uint32_t bits = formats::FloatBits(shifted) - 0x4B400000u;
  const int32_t exponent = static_cast<int32_t>(bits);
  const int32_t half = exponent >> 1;
  const float scale1 = formats::BitsFloat(static_cast<uint32_t>(half + 127) << 23);
  const float scale2 = formats::BitsFloat(static_cast<uint32_t>(exponent - half + 127) << 23);
  const float value = (p * scale1) * scale2;
  return x < -87.3f ? 0.0f : value;
}

// Largest of n values; NaN is passed over (sums of exp(x - max) carry it on). n >= 1.
NIBBLE_LOOP float LargestOf(const float* x, int64_t n) {
  float lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = -formats::kLargestFloat;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] = x[i + l] > lanes[l] ? x[i + l] : lanes[l];
  }
  for (int l = 0; i < n; ++i, ++l) lanes[l] = x[i] > lanes[l] ? x[i] : lanes[l];
  float max = lanes[0];
  for (int l = 1; l < kLanes; ++l) max = lanes[l] > max ? lanes[l] : max;
  return max;
}

// Halves onto each other until one is left: ((0+8)+(4+12)) + ...
template <typename Number>
NIBBLE_LOOP Number FoldLanes(const Number* lanes) {
  Number sums[kLanes / 2];
  for (int i = 0; i < kLanes / 2; ++i) sums[i] = lanes[i] + lanes[i + kLanes / 2];
  for (int width = kLanes / 4; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[i + width];
  }
  return sums[0];
}

}  // namespace nibble::cpu
