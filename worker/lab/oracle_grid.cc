// SPDX-License-Identifier: Apache-2.0
#include "worker/lab/oracle_grid.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace nibble::oracle {
namespace {

// Magnitudes of a floating-point format up to max.
std::vector<double> MiniFloat(int exponents, int mantissa_bits, int bias, double max) {
  std::vector<double> grid;
  const int steps = 1 << mantissa_bits;
  for (int e = 0; e < exponents; ++e) {
    for (int m = 0; m < steps; ++m) {
      const double fraction = static_cast<double>(m) / steps + (e > 0 ? 1 : 0);
      const double value = std::ldexp(fraction, (e > 0 ? e : 1) - bias);
      if (value <= max) grid.push_back(value);
    }
  }
  return grid;
}

}  // namespace

double Bf16(double x) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), -126);
  const double unit = std::ldexp(1.0, exponent - 7);
  return std::nearbyint(x / unit) * unit;
}

const std::vector<double>& GridOf(Elem elem) {
  static const auto make = [](double last, double step) {
    std::vector<double> grid;
    for (double v = 0; v <= last; v += step) grid.push_back(v);
    return grid;
  };
  static const std::map<Elem, std::vector<double>> grids = {
      {Elem::kE2M1, {0, .5, 1, 1.5, 2, 3, 4, 6}},
      {Elem::kE1M2, make(3.5, .5)},
      {Elem::kE3M0, {0, .25, .5, 1, 2, 4, 8, 16}},
      {Elem::kE4M3, MiniFloat(16, 3, 7, 448)},
      {Elem::kE5M2, MiniFloat(31, 2, 15, 57344)},
      {Elem::kInt4, make(7, 1)},
      {Elem::kInt8, make(127, 1)}};
  return grids.at(elem);
}
const std::vector<double>& ScaleGrid(bool e4m3) {
  static const std::vector<double> ue5m3 = MiniFloat(31, 3, 15, 61440);
  return e4m3 ? GridOf(Elem::kE4M3) : ue5m3;
}

Place PlaceOf(const std::vector<double>& grid, double magnitude) {
  if (magnitude >= grid.back()) return {grid.size() - 1, 0};
  const auto above = std::upper_bound(grid.begin(), grid.end(), magnitude);
  const size_t below = static_cast<size_t>(above - grid.begin()) - 1;
  return {below, (magnitude - grid[below]) / (grid[below + 1] - grid[below])};
}

double Nearest(const std::vector<double>& grid, double y, Round round) {
  const Place p = PlaceOf(grid, std::fabs(y));
  bool up = p.fraction > 0.5;
  if (p.fraction == 0.5) {
    const bool odd = p.below % 2 == 1;
    up = round == Round::kAway || (round == Round::kHalfUp && y > 0) ||
         (round == Round::kEven && odd);
  }
  const double value = grid[p.below + (up ? 1 : 0)];
  return y < 0 ? -value : value;
}

double Stochastic(const std::vector<double>& grid, double y, uint32_t word) {
  const Place p = PlaceOf(grid, std::fabs(y));
  const bool up = static_cast<double>(word >> 8) < p.fraction * 16777216.0;
  const double value = grid[p.below + (up ? 1 : 0)];
  return y < 0 ? -value : value;
}

double Te8(double y, uint32_t byte) {
  const double a = std::fabs(y);
  const auto step = [](double v) { return v < 2 ? .5 : v < 4 ? 1.0 : 2.0; };
  const double t = D(F(a + static_cast<double>(byte) / 256.0 * step(a)));
  const double value = std::min(6.0, std::floor(t / step(t)) * step(t));
  return y < 0 ? -value : value;
}

double Centred(double y) { return std::nearbyint(std::clamp(y, -7.5, 7.5) + 0.5) - 0.5; }

double CentredStochastic(double y, uint32_t word) {
  const double inside = std::clamp(y, -7.5, 7.5);
  const double below = std::floor(inside + 0.5) - 0.5;
  const bool up = static_cast<double>(word >> 8) < (inside - below) * 16777216.0;
  return below + (up ? 1 : 0);
}

bool OnThreshold(const std::vector<double>& grid, double y, Round round, uint32_t word) {
  const Place p = PlaceOf(grid, std::fabs(y));
  const double unit = p.below + 1 < grid.size() ? grid[p.below + 1] - grid[p.below] : 1.0;
  const double close = 1e-5 * std::max(std::fabs(y), 0.25) / unit;
  double threshold = 0.5;
  if (round == Round::kSr24) threshold = static_cast<double>(word >> 8) / 16777216.0;
  if (round == Round::kTe8) threshold = 1 - static_cast<double>(word) / 256.0;
  return std::fabs(p.fraction - threshold) < close || p.fraction < close || p.fraction > 1 - close;
}

double PowerOfTwo(double amax, double max) {
  if (!(amax > 0) || !std::isfinite(amax)) return 1;
  int exponent = std::ilogb(max) - std::ilogb(amax);
  if (std::ldexp(amax, exponent) > max) --exponent;
  return std::ldexp(1.0, std::min(exponent, 127));
}

double PlainEnc(const Quant& q, double amax) {
  const bool usable = amax > 0 && std::isfinite(amax);
  switch (q.scale) {
    case ScaleRule::kF32:
      return usable ? std::min(kFloatMax, D(q.scale_max / F(amax))) : 1;
    case ScaleRule::kP2:
      return PowerOfTwo(amax, D(q.scale_max));
    case ScaleRule::kCurrent:
      return usable ? std::min(kBf16Max, D(q.scale_max / F(amax))) : 1;
    case ScaleRule::kCurrentP2:
      return usable ? std::ldexp(1.0, std::ilogb(std::min(kBf16Max, D(q.scale_max / F(amax))))) : 1;
    default:
      return 1;  // dly: nothing has been seen before
  }
}

}  // namespace nibble::oracle
