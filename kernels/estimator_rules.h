// SPDX-License-Identifier: Apache-2.0
//
// The derivative that a weight estimator puts in place of the step function's, once for every
// backend.
//
// Thread-safety: pure functions; they compile for host and device and give the same bits there.
#pragma once

#include "kernels/formats/bf16.h"
#include "kernels/formats/surrogates.h"
#include "kernels/recipe/recipe.h"

namespace nibble {

// At y, a weight on the axis of scaled values.
NIBBLE_HD inline float EstimatorDerivative(const WeightEstimator& estimator, float y) {
  switch (estimator.kind) {
    case Estimator::kSte:
      return 1.0f;
    case Estimator::kDge:
      // MS-AMP's factor is BF16.
      return estimator.extrapolate ? formats::RoundBf16(formats::DgeExtrapolated(
                                         y, 1.0 / estimator.k, estimator.clip))
                                   : formats::DgeDerivative(y, 1.0 / estimator.k, estimator.clip);
    case Estimator::kPower:
      return formats::PowerDerivative(y, 1.0 / estimator.k);
    case Estimator::kSpline:
      return formats::SplineDerivative(y);
    case Estimator::kSigmoid:
      return formats::SigmoidDerivative(y, estimator.temperature);
  }
  return 1.0f;
}

// enc = fl(6/amax) can carry the amax two roundings past 6: by the rule's meaning it is 6.
NIBBLE_HD inline float SnapToE2M1Max(float y) {
  constexpr float kSnap = 6.0f * (1.0f + 0x1p-22f);
  const float a = formats::Magnitude(y);
  return a > formats::kE2M1Max && a <= kSnap ? formats::WithSignOf(formats::kE2M1Max, y) : y;
}

}  // namespace nibble
