// SPDX-License-Identifier: Apache-2.0
//
// Differentiable gradient estimator of arXiv 2501.17116 for E2M1.
//
// Purpose: D(x) = min((1/k) |u|^(1/k - 1), clip) on each grid interval [g, g + d), where
// u = 2 (x - g)/d - 1; x = 6 belongs to the last interval; 0 outside [-6, 6]; NaN stays NaN.
// The power is computed here, in FP32 from short polynomials, so that every backend gets the same
// bits: relative error below 5e-7, fl(1/k) at grid values, and fl(clip) wherever the power exceeds
// it by more than that. Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bf16.h"
#include "kernels/formats/bits.h"
#include "kernels/formats/e2m1.h"

namespace nibble::formats {

// Exponent and fractional part of log2: log2(x) = whole + part, |part| <= 1/2.
struct Log2Parts {
  float whole;
  float part;
};

// log2 of a positive normal float; the error of `part` is below 1.2e-7. Zero reads as 2^-127.
NIBBLE_HD inline Log2Parts Log2(float x) {
  const uint32_t bits = FloatBits(x);
  // Mantissa in [0.7071, 1.4142): subtracting the bits of sqrt(1/2) aligns the exponent.
  const int32_t exponent = static_cast<int32_t>(bits - 0x3F3504F3u) >> 23;
  const float m = BitsFloat(bits - (static_cast<uint32_t>(exponent) << 23));
  // 2/ln 2 * atanh(s)/s in s^2: minimax over |s| <= 0.1716.
  const float s = (m - 1.0f) / (m + 1.0f);
  const float z = s * s;
  float series = 0.595796525f;
  series = series * z + 0.961587846f;
  series = series * z + 2.88539052f;
  return {static_cast<float>(exponent), s * series};
}

// factor * 2^(whole + part) for a sum in [-126, 127.49] and |part| <= 1; relative error of the
// power below 2.5e-7.
NIBBLE_HD inline float ScaledExp2(float factor, float whole, float part) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: the sum is rounded to a whole number
  const float shifted = (whole + part) + kRound;
  const float f = (whole - (shifted - kRound)) + part;
  // 2^f: minimax over |f| <= 1/2, exact at 0. Summed in pairs: the loop waits for every step.
  const float f2 = f * f;
  const float low = 6.93147182e-1f * f + 1.0f;
  const float middle = 5.55035695e-2f * f + 2.40226507e-1f;
  const float high = (1.33908668e-3f * f + 9.61803086e-3f) + 1.54697351e-4f * f2;
  const float power = (high * f2 + middle) * f2 + low;
  // The low bits of `shifted` are the whole number, and those above shift out.
  return factor * BitsFloat(FloatBits(power) + (FloatBits(shifted) << 23));
}

// |u| of magnitude a within its grid interval; beyond the grid, and for NaN, that of 6.
NIBBLE_HD inline float DgeOffset(float a) {
  const float saturated = a < kE2M1Max ? a : kE2M1Max;
  // 1/step is 2^(1 - exponent) from 1 on and 2 below: 255 less the biased exponent of max(a, 1).
  const uint32_t bits = FloatBits(saturated);
  const uint32_t bounded = bits > 0x3F800000u ? bits : 0x3F800000u;
  const float scaled = saturated * BitsFloat(0x7F800000u - (bounded & 0x7F800000u));
  const float below = static_cast<float>(static_cast<int32_t>(scaled));
  // At 6 the position reads 0 instead of 1: |u| is 1 at both ends of an interval.
  return Magnitude(2.0f * (scaled - below) - 1.0f);
}

// What the two constants of D give for its loops. Precondition: 0 < inverse_k <= 1, clip > 0.
struct DgeConstants {
  NIBBLE_HD DgeConstants(double inverse, double bound)
      : inverse_k(static_cast<float>(inverse)),
        exponent(static_cast<float>(inverse - 1.0)),
        high(BitsFloat(FloatBits(exponent) & 0xFFFFF000u)),
        low(static_cast<float>(inverse - 1.0 - static_cast<double>(high))),
        clip(static_cast<float>(bound)) {}

  float inverse_k;
  float exponent;  // 1/k - 1
  // The exponent in two parts; 12 bits times the whole part of a logarithm are exact.
  float high, low;
  float clip;
};

// log2 of offset^(1/k - 1), in two terms. offset <= 2^100.
NIBBLE_HD inline Log2Parts DgeLog2(const DgeConstants& c, float offset) {
  const Log2Parts log2 = Log2(offset);
  return {c.high * log2.whole, c.low * log2.whole + c.exponent * log2.part};
}

// min((1/k) offset^(1/k - 1), clip).
NIBBLE_HD inline float DgeClipped(const DgeConstants& c, Log2Parts log2) {
  const float power = ScaledExp2(c.inverse_k, log2.whole, log2.part);
  return power < c.clip ? power : c.clip;
}
NIBBLE_HD inline float DgePower(float offset, double inverse_k, double clip) {
  const DgeConstants constants(inverse_k, clip);
  return DgeClipped(constants, DgeLog2(constants, offset));
}

// D(x) with 1/k = inverse_k and upper bound clip.
NIBBLE_HD inline float DgeDerivative(float x, double inverse_k, double clip) {
  const float a = Magnitude(x);
  const float inside = DgePower(DgeOffset(a), inverse_k, clip);
  const float within = a <= kE2M1Max ? inside : 0.0f;
  return x == x ? within : x;
}

// |bf16(weight)| * enc; meaningless for NaN.
NIBBLE_HD inline float DgeAxisMagnitude(float weight, float enc) {
  const uint32_t bits = FloatBits(weight) & kMagnitudeBits;
  return BitsFloat((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u) * enc;
}

// What D of the weight is, given its magnitude on the axis and the clipped power there.
// enc = fl(6/amax) can carry the group's amax past 6 by two roundings (6 * 2^-23); by the rule's
// meaning it lies on 6, so anything this close above is 6.
NIBBLE_HD inline float DgeOfMagnitude(float weight, float a, float inside) {
  constexpr float kSnap = kE2M1Max * (1.0f + 0x1p-22f);
  const float within = a <= kSnap ? inside : 0.0f;
  return weight == weight ? within : weight;
}

// D(bf16(weight) * enc).
NIBBLE_HD inline float DgeOfWeight(const DgeConstants& c, float weight, float enc) {
  const float a = DgeAxisMagnitude(weight, enc);
  return DgeOfMagnitude(weight, a, DgeClipped(c, DgeLog2(c, DgeOffset(a))));
}

// The surrogate whose derivative D is: f(x) = g + (d/2)(1 + sign(u)|u|^(1/k)). |x| <= 6.
NIBBLE_HD inline double DgeSurrogate(float x, double inverse_k) {
  const float a = E2M1Saturate(x);
  const float step = a < kE2M1Max ? E2M1Step(a) : 2.0f;
  const int32_t whole = static_cast<int32_t>(a / step);
  const float grid = a < kE2M1Max ? static_cast<float>(whole) * step : 4.0f;
  const float u = 2.0f * ((a - grid) / step) - 1.0f;
  const float magnitude = Magnitude(u);
  // |u|^(1/k) = |u| * |u|^(1/k - 1).
  const double unclipped = static_cast<double>(DgePower(magnitude, inverse_k, 1e30)) / inverse_k;
  const double power = static_cast<double>(magnitude) * unclipped;
  const double value = static_cast<double>(grid) +
                       0.5 * static_cast<double>(step) * (1.0 + (u < 0 ? -power : power));
  return (FloatBits(x) & kSignBit) != 0 ? -value : value;
}

}  // namespace nibble::formats
