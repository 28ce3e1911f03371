// SPDX-License-Identifier: Apache-2.0
//
// Means and confidence intervals over a handful of seeds.
// Thread-safety: pure functions.
#pragma once

#include <vector>

namespace nibble {

// A mean and half the width of its 95 % confidence interval, Student's t with count - 1 degrees of
// freedom. One value has no interval: half_width is then infinite.
struct Interval {
  int count = 0;
  double mean = 0;
  double half_width = 0;

  double low() const { return mean - half_width; }
  double high() const { return mean + half_width; }
  bool bounded() const { return count >= 2; }
};

// The two-sided 95 % quantile of Student's t. Precondition: degrees >= 1.
double StudentT95(int degrees);

// Precondition: at least one value.
Interval MeanInterval(const std::vector<double>& values);

// The interval of the mean of a[i] - b[i]: what a and b share (seed, data order) drops out.
// Precondition: equal sizes, at least one pair.
Interval PairedDifference(const std::vector<double>& a, const std::vector<double>& b);

}  // namespace nibble
