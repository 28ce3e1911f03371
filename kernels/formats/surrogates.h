// SPDX-License-Identifier: Apache-2.0
//
// Surrogate derivatives of the E2M1 quantizer from the design-space study (arXiv 2509.17791), each
// clipped to [0.5, 1e4].
//
// Purpose: what replaces the step function's gradient on the axis of scaled values, beside the
// estimator of dge.h. Computed from dge.h's polynomials, so that every backend gets the same bits.
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"
#include "kernels/formats/dge.h"
#include "kernels/formats/e2m1.h"

namespace nibble::formats {

inline constexpr double kSurrogateLow = 0.5;
inline constexpr double kSurrogateHigh = 1e4;
inline constexpr int kSplinePoints = 40;  // over [-6, 6]

NIBBLE_HD inline float ClipSurrogate(double value) {
  const double low = value > kSurrogateLow ? value : kSurrogateLow;
  return static_cast<float>(low < kSurrogateHigh ? low : kSurrogateHigh);
}

// (d/2)(1/k)|x - c|^(1/k - 1), c and d the middle and the width of the grid interval: the study's
// own form, which equals the DGE's only where d = 2. The bound at 0 for |x| > 6.
NIBBLE_HD inline float PowerDerivative(float x, double inverse_k) {
  const float a = Magnitude(x);
  if (IsNan(x)) return x;
  if (a > kE2M1Max) return static_cast<float>(kSurrogateLow);
  const float half = 0.5f * (a < kE2M1Max ? E2M1Step(a) : 2.0f);
  const float distance = half * DgeOffset(a);
  if (distance == 0.0f) return static_cast<float>(kSurrogateHigh);
  return ClipSurrogate(static_cast<double>(half * DgePower(distance, inverse_k, 1e30)));
}

// Slope of the line between the quantized values of neighbouring points of 40 over [-6, 6].
NIBBLE_HD inline float SplineDerivative(float x) {
  if (IsNan(x)) return x;
  const float a = Magnitude(x);
  if (a > kE2M1Max) return static_cast<float>(kSurrogateLow);
  // 39 cells of 12/39: (x + 6) * 3.25 is exact.
  const double per_cell = 12.0 / (kSplinePoints - 1);
  int cell = static_cast<int>((static_cast<double>(x) + 6.0) * 3.25);
  if (cell > kSplinePoints - 2) cell = kSplinePoints - 2;
  const float left = static_cast<float>(-6.0 + cell * per_cell);
  const float right = static_cast<float>(-6.0 + (cell + 1) * per_cell);
  const float rise = RoundE2M1Even(right) - RoundE2M1Even(left);
  return ClipSurrogate(static_cast<double>(rise) / per_cell);
}

// e^(temperature * distance) for a distance of at most 0 from the largest: an unnormalised weight
// of a softmax. Beyond e^-60 nothing is left.
NIBBLE_HD inline double SoftmaxWeight(double temperature, double distance) {
  const double t = temperature * distance;
  if (!(t > -60.0)) return 0.0;
  return static_cast<double>(
      ScaledExp2(1.0f, static_cast<float>((t < 0.0 ? t : 0.0) * 1.4426950408889634), 0.0f));
}

// Derivative of the sum of logistic steps of width `temperature`, one at each midpoint of the grid.
NIBBLE_HD inline float SigmoidDerivative(float x, double temperature) {
  if (IsNan(x)) return x;
  constexpr float kMiddles[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  constexpr float kSteps[] = {0.5f, 0.5f, 0.5f, 0.5f, 1.0f, 1.0f, 2.0f};
  double sum = 0;
  for (int i = 0; i < 7; ++i) {
    for (int sign = -1; sign <= 1; sign += 2) {
      double t = static_cast<double>(x - static_cast<float>(sign) * kMiddles[i]) / temperature;
      t = t < 0 ? -t : t;
      // e^-|t|: beyond 60 nothing is left.
      const double e = t < 60.0 ? static_cast<double>(ScaledExp2(
                                      1.0f, static_cast<float>(-t * 1.4426950408889634), 0.0f))
                                : 0.0;
      sum += static_cast<double>(kSteps[i]) * e / ((1.0 + e) * (1.0 + e)) / temperature;
    }
  }
  return ClipSurrogate(sum);
}

// The DGE as MS-AMP's kernel evaluates it: below -6 the first interval's formula goes on; the
// result is BF16.
NIBBLE_HD inline float DgeExtrapolated(float x, double inverse_k, double clip) {
  if (x >= -kE2M1Max || IsNan(x)) return DgeDerivative(x, inverse_k, clip);
  const float u = Magnitude(x + 5.0f);
  return DgePower(u, inverse_k, clip);
}

}  // namespace nibble::formats
