// SPDX-License-Identifier: Apache-2.0
#include "kernels/format_reference.h"

#include <cmath>

namespace nibble {
namespace {

// Magnitudes with `mantissa_bits` and exponent bias `bias`, up to `max`.
std::vector<double> Build(int mantissa_bits, int bias, double max) {
  std::vector<double> magnitudes;
  const int per_exponent = 1 << mantissa_bits;
  for (int code = 0;; ++code) {
    const int exponent = code / per_exponent;
    const double fraction = static_cast<double>(code % per_exponent) / per_exponent;
    const double value = exponent == 0 ? std::ldexp(fraction, 1 - bias)
                                       : std::ldexp(1.0 + fraction, exponent - bias);
    if (value > max) return magnitudes;
    magnitudes.push_back(value);
  }
}

// 0, step, 2 step, .. max.
std::vector<double> Even(double step, double max) {
  std::vector<double> magnitudes;
  for (int i = 0; i * step <= max; ++i) magnitudes.push_back(i * step);
  return magnitudes;
}

}  // namespace

std::vector<double> FormatMagnitudes(Elem elem) {
  switch (elem) {
    case Elem::kE4M3:
      return Build(3, 7, 448.0);
    case Elem::kE5M2:
      return Build(2, 15, 57344.0);
    case Elem::kE1M2:
      return Even(0.5, 3.5);
    case Elem::kE3M0:
      return {0, 0.25, 0.5, 1, 2, 4, 8, 16};
    case Elem::kInt4:
      return Even(1, 7);
    case Elem::kInt8:
      return Even(1, 127);
    default:
      return Build(1, 1, 6.0);
  }
}

int NearestCode(const std::vector<double>& magnitudes, double x) {
  const double a = std::fabs(x);
  if (a >= magnitudes.back()) return static_cast<int>(magnitudes.size()) - 1;
  int best = 0;
  for (int code = 1; code < static_cast<int>(magnitudes.size()); ++code) {
    const double mine = std::fabs(magnitudes[static_cast<size_t>(code)] - a);
    const double known = std::fabs(magnitudes[static_cast<size_t>(best)] - a);
    if (mine < known || (mine == known && code % 2 == 0)) best = code;
  }
  return best;
}

}  // namespace nibble
