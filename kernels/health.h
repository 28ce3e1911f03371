// SPDX-License-Identifier: Apache-2.0
//
// From sums over elements to QuantizationHealth, the same on every backend.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/quantized_tensor.h"

namespace nibble {

// Over all elements: x the BF16 source, q what its code means.
struct HealthTotals {
  double xx = 0;     // sum of x^2
  double qq = 0;     // sum of q^2
  double xq = 0;     // sum of x q
  double error = 0;  // sum of (x - q)^2
  int64_t underflow = 0;
  int64_t saturated = 0;

  HealthTotals& operator+=(const HealthTotals& other);
};

// Rounding of enc may push the amax itself past the largest code by an ulp: no saturation.
inline constexpr float kSaturationSlack = 1.0f + 0x1p-20f;

// Everything but the range of the scales, which only the backend can read.
QuantizationHealth HealthFrom(const HealthTotals& totals, const QuantizedTensor& quantized);

}  // namespace nibble
