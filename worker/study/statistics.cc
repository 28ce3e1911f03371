// SPDX-License-Identifier: Apache-2.0
#include "worker/study/statistics.h"

#include <cmath>
#include <limits>

namespace nibble {
namespace {

constexpr double kPi = 3.14159265358979323846;

// P(|T| <= t) by the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
double CentralProbability(double t, int degrees) {
  const double theta = std::atan(t / std::sqrt(static_cast<double>(degrees)));
  const double cosine = std::cos(theta);
  const double square = cosine * cosine;
  const bool odd = degrees % 2 == 1;
  double term = odd ? cosine : 1.0;
  double sum = degrees == 1 ? 0.0 : term;
  for (int j = odd ? 3 : 2; j <= degrees - 2; j += 2) {
    term *= square * (j - 1) / j;
    sum += term;
  }
  if (odd) return 2 / kPi * (theta + std::sin(theta) * sum);
  return std::sin(theta) * sum;
}

}  // namespace

double StudentT95(int degrees) {
  double low = 1.9;
  double high = 13.0;  // 12.706 for one degree of freedom
  for (int i = 0; i < 80; ++i) {
    const double middle = 0.5 * (low + high);
    (CentralProbability(middle, degrees) < 0.95 ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

Interval MeanInterval(const std::vector<double>& values) {
  Interval interval;
  interval.count = static_cast<int>(values.size());
  for (const double value : values) interval.mean += value;
  interval.mean /= interval.count;
  if (interval.count < 2) {
    interval.half_width = std::numeric_limits<double>::infinity();
    return interval;
  }
  double squares = 0;
  for (const double value : values) squares += (value - interval.mean) * (value - interval.mean);
  const double deviation = std::sqrt(squares / (interval.count - 1));
  interval.half_width =
      StudentT95(interval.count - 1) * deviation / std::sqrt(static_cast<double>(interval.count));
  return interval;
}

Interval PairedDifference(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> differences;
  for (size_t i = 0; i < a.size(); ++i) differences.push_back(a[i] - b[i]);
  return MeanInterval(differences);
}

}  // namespace nibble
