// SPDX-License-Identifier: Apache-2.0
//
// Differentiable gradient estimator of arXiv 2501.17116 for E2M1.
//
// Purpose: D(x) = min((1/k) |u|^(1/k - 1), clip) on each grid interval [g, g + d), where
// u = 2 (x - g)/d - 1; x = 6 belongs to the last interval; 0 outside [-6, 6]; NaN stays NaN.
// The power is computed here, in double from short series, so that every backend gets the same
// bits. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"
#include "kernels/formats/e2m1.h"

namespace nibble::formats {

// log2 of a positive normal float; relative error below 1e-13.
NIBBLE_HD inline double Log2(float x) {
  const uint32_t bits = FloatBits(x);
  // Mantissa in [0.7071, 1.4142): subtracting the bits of sqrt(1/2) aligns the exponent.
  const int32_t exponent = static_cast<int32_t>(bits - 0x3F3504F3u) >> 23;
  const float mantissa = BitsFloat(bits - (static_cast<uint32_t>(exponent) << 23));
  const double m = static_cast<double>(mantissa);
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double series = 1.0 / 17.0;
  series = series * z + 1.0 / 15.0;
  series = series * z + 1.0 / 13.0;
  series = series * z + 1.0 / 11.0;
  series = series * z + 1.0 / 9.0;
  series = series * z + 1.0 / 7.0;
  series = series * z + 1.0 / 5.0;
  series = series * z + 1.0 / 3.0;
  series = series * z + 1.0;
  return static_cast<double>(exponent) + 2.8853900817779268 * s * series;  // 2/ln 2
}

// 2^t for t in [-120, 120]; relative error below 1e-13.
NIBBLE_HD inline double Exp2(double t) {
  const float rounded = (static_cast<float>(t) + 12582912.0f) - 12582912.0f;
  const uint32_t exponent = FloatBits(static_cast<float>(t) + 12582912.0f) - 0x4B400000u;
  const double f = (t - static_cast<double>(rounded)) * 0.69314718055994531;  // ln 2
  double series = 1.0 / 39916800.0;
  series = series * f + 1.0 / 3628800.0;
  series = series * f + 1.0 / 362880.0;
  series = series * f + 1.0 / 40320.0;
  series = series * f + 1.0 / 5040.0;
  series = series * f + 1.0 / 720.0;
  series = series * f + 1.0 / 120.0;
  series = series * f + 1.0 / 24.0;
  series = series * f + 1.0 / 6.0;
  series = series * f + 0.5;
  series = series * f + 1.0;
  series = series * f + 1.0;
  return series * static_cast<double>(BitsFloat((exponent + 127u) << 23));
}

// |u| of x within its grid interval, for |x| <= 6.
NIBBLE_HD inline float DgeOffset(float x) {
  const float a = Magnitude(x);
  const float saturated = a < kE2M1Max ? a : kE2M1Max;
  const float step = E2M1Step(saturated);
  const float scaled = saturated / step;
  const float below = static_cast<float>(static_cast<int32_t>(scaled));
  // At 6 the position reads 0 instead of 1: |u| is 1 at both ends of an interval.
  return Magnitude(2.0f * (scaled - below) - 1.0f);
}

// min((1/k) offset^(1/k - 1), clip). Precondition: 0 < inverse_k <= 1, clip > 0.
NIBBLE_HD inline float DgePower(float offset, double inverse_k, double clip) {
  // Below 2^-60 the power is far above any clip in use; keeps Log2 off zero.
  const float bounded = offset > 8.67361738e-19f ? offset : 8.67361738e-19f;
  const double power = inverse_k * Exp2((inverse_k - 1.0) * Log2(bounded));
  return static_cast<float>(power < clip ? power : clip);
}

// A BF16 weight on the E2M1 axis: weight * enc, in magnitude unless it lies beyond the grid.
// enc = fl(6/amax) can carry the group's amax past 6 by two roundings (6 * 2^-23); by the rule's
// meaning it lies on 6, so anything this close above is 6.
NIBBLE_HD inline float DgeAxisValue(float weight, float enc) {
  constexpr float kSnap = kE2M1Max * (1.0f + 0x1p-22f);
  const float product = weight * enc;
  const float a = Magnitude(product);
  return a > kSnap ? product : (a > kE2M1Max ? kE2M1Max : a);
}

// `inside` for |x| <= 6, 0 beyond, NaN for NaN.
NIBBLE_HD inline float DgeWithin(float x, float inside) {
  const float a = Magnitude(x);
  const float outside = a > kE2M1Max ? 0.0f : x;
  return a <= kE2M1Max ? inside : outside;
}

// D(x) with 1/k = inverse_k and upper bound clip.
NIBBLE_HD inline float DgeDerivative(float x, double inverse_k, double clip) {
  return DgeWithin(x, DgePower(DgeOffset(x), inverse_k, clip));
}

// The surrogate whose derivative D is: f(x) = g + (d/2)(1 + sign(u)|u|^(1/k)). |x| <= 6.
NIBBLE_HD inline double DgeSurrogate(float x, double inverse_k) {
  const float a = E2M1Saturate(x);
  const float step = a < kE2M1Max ? E2M1Step(a) : 2.0f;
  const int32_t whole = static_cast<int32_t>(a / step);
  const float grid = a < kE2M1Max ? static_cast<float>(whole) * step : 4.0f;
  const double u = 2.0 * static_cast<double>(a - grid) / static_cast<double>(step) - 1.0;
  const float magnitude = static_cast<float>(u < 0 ? -u : u);
  const double power = magnitude < 1e-30f ? 0.0 : Exp2(inverse_k * Log2(magnitude));
  const double value = static_cast<double>(grid) +
                       0.5 * static_cast<double>(step) * (1.0 + (u < 0 ? -power : power));
  return (FloatBits(x) & kSignBit) != 0 ? -value : value;
}

}  // namespace nibble::formats
