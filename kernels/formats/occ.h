// SPDX-License-Identifier: Apache-2.0
//
// Outlier clamping (arXiv 2501.17116): which order statistics bound the body of n signed values.
//
// Thread-safety: pure functions.
#pragma once

#include <cstdint>

#include "kernels/formats/bits.h"
#include "kernels/formats/fp8.h"

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

// Code of an outlier `halves` half units large, on the scale of its row: the nearest integer, at
// most 127. `e4m3`: with four significant bits, as E4M3 values have, and at most 112, so that its
// distance from the code of a clamped value fits a byte.
NIBBLE_HD inline float WideCode(float halves, bool e4m3) {
  const float most = e4m3 ? 112.0f : 127.0f;
  const float raised = halves < -most ? -most : halves;
  const float clamped = raised > most ? most : raised;
  // Ties to even; exact, since 1.5 * 2^23 leaves no bits for a fraction.
  const float integer = (clamped + 12582912.0f) - 12582912.0f;
  return e4m3 && Magnitude(clamped) >= 16.0f ? RoundE4M3(clamped) : integer;
}

// NaN stays NaN.
NIBBLE_HD inline float OccClamp(float x, float low, float high) {
  const float raised = x < low ? low : x;
  return raised > high ? high : raised;
}

}  // namespace nibble::formats
