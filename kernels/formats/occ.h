// SPDX-License-Identifier: Apache-2.0
//
// Outlier clamping (arXiv 2501.17116): which order statistics bound the body of n signed values.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"

namespace nibble::formats {

struct QuantileIndices {
  int64_t low;
  int64_t high;
};

// Of n values sorted ascending: low = int((1 - alpha) * n), high = int(alpha * n), in double with
// truncation (so alpha .9, n 100 gives 9, because (1 - .9) * 100 is 9.99..), inside [0, n - 1].
NIBBLE_HD inline QuantileIndices OccIndices(double alpha, int64_t n) {
  const double count = static_cast<double>(n);
  int64_t low = static_cast<int64_t>((1.0 - alpha) * count);
  int64_t high = static_cast<int64_t>(alpha * count);
  if (low > n - 1) low = n - 1;
  if (high > n - 1) high = n - 1;
  return {low, high};
}

// NaN stays NaN.
NIBBLE_HD inline float OccClamp(float x, float low, float high) {
  const float raised = x < low ? low : x;
  return raised > high ? high : raised;
}

}  // namespace nibble::formats
